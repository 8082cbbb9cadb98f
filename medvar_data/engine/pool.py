"""Run independent pieces of work in processes of this machine, within a memory budget, and survive the death of any.

Each process holds one piece of work at a time, so the one that dies names its piece and harms no other. A piece whose
process died, or ran out of memory, is tried again alone once all others are done; where that fails too it is handed to
`on_killed`. Results come back as they finish; the order means nothing.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from medvar_data.engine.threads import OneThread
from medvar_data.errors import WorkspaceError

Task = TypeVar("Task")
Result = TypeVar("Result")

READY, DONE, STARVED, FAILED, DEAD = "ready", "done", "starved", "failed", "dead"
MAX_FAILED_STARTS = 5  # in a row; one that dies before it is given a task says nothing of any task
LEAVE_SECONDS = 10.0  # for a process that was told to end


@dataclass
class _Worker(Generic[Task]):
    """A process and what it is doing: nothing yet, nothing, or one task."""

    process: BaseProcess
    connection: Connection
    is_ready: bool = False
    task: Task | None = None
    cost: int = 0


def run_here(
    function: Callable[[Task], Result], tasks: Iterable[Task], on_killed: Callable[[Task], Result]
) -> Iterator[Result]:
    """Apply a function to every task in this process; one that runs out of memory goes to `on_killed`."""
    one_thread = OneThread()
    for task in tasks:
        try:
            with one_thread():
                result = function(task)
        except MemoryError:
            result = on_killed(task)
        yield result


def run_pool(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    on_killed: Callable[[Task], Result],
    cost: Callable[[Task], int],
    budget: int,
) -> Iterator[Result]:
    """Apply a picklable function to every task.

    Args:
        function: pure but for the files it writes; must be importable.
        tasks: picklable; started in this order, but for those that must wait for memory.
        workers: processes.
        on_killed: makes the result of a task that failed twice, the second time alone.
        cost: bytes that a task is expected to need.
        budget: bytes that all running tasks together may be expected to need; a task beyond it runs alone. 0: no bound.

    Raises:
        WorkspaceError: processes die before they are given anything to do.
    """
    waiting = deque((task, cost(task)) for task in tasks)
    suspects: list[Task] = []
    yield from _drain(function, waiting, workers, budget, suspects)
    for suspect in suspects:
        again: list[Task] = []
        yield from _drain(function, deque([(suspect, 0)]), 1, 0, again)
        if again:
            yield on_killed(suspect)


def _drain(
    function: Callable[[Task], Result],
    waiting: deque[tuple[Task, int]],
    workers: int,
    budget: int,
    suspects: list[Task],
) -> Iterator[Result]:
    """Work until nothing waits; `suspects` takes the tasks whose process died or ran out of memory."""
    started: list[_Worker[Task]] = []
    finished, failed_starts = False, 0
    try:
        while waiting or any(w.task is not None for w in started):
            while len(started) < min(workers, len(waiting) + sum(w.task is not None for w in started)):
                started.append(_start(function))
            _hand_out(started, waiting, budget)
            ready = wait([w.connection for w in started])
            for worker in [w for w in started if w.connection in ready]:
                kind, value = _receive(worker)
                task, worker.task, worker.cost = worker.task, None, 0
                if kind == READY:
                    worker.is_ready, failed_starts = True, 0
                elif kind == DONE:
                    yield value
                elif kind == FAILED:
                    raise value
                elif task is not None:  # died or starved at work; one that died idle is only replaced
                    suspects.append(task)
                if kind == DEAD:
                    failed_starts += not worker.is_ready
                    if failed_starts == MAX_FAILED_STARTS:
                        raise WorkspaceError(
                            "Worker processes die as they start, before they are given a case. Check memory limits and the "
                            "installation, or run with --workers 1. Nothing was rejected; the same command goes on from here."
                        )
                    started.remove(worker)
                    worker.process.join()
        finished = True
    finally:
        _end_all(started, gently=finished)


def _hand_out(started: list[_Worker[Task]], waiting: deque[tuple[Task, int]], budget: int) -> None:
    """Give each idle process the first task that fits into what is left of the budget, or any where none is running."""
    for worker in started:
        if not worker.is_ready or worker.task is not None:
            continue
        left = budget - sum(w.cost for w in started)
        alone = all(w.task is None for w in started)
        place = next((i for i, (_, cost) in enumerate(waiting) if alone or not budget or cost <= left), None)
        if place is None:
            return
        task, cost = waiting[place]
        try:
            worker.connection.send(task)
        except OSError:  # it died idle, which `_receive` will tell
            continue
        del waiting[place]
        worker.task, worker.cost = task, cost


def _receive(worker: _Worker[Task]) -> tuple[str, Any]:
    """Receive what a process reports."""
    try:
        kind, value = worker.connection.recv()
        return kind, value
    except (EOFError, OSError):
        return DEAD, None


def _start(function: Callable[[Task], Result]) -> _Worker[Task]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()  # so that its end is noticed
    return _Worker(process, ours)


def _end_all(started: list[_Worker[Task]], *, gently: bool) -> None:
    """End all processes: idle ones leave by themselves, and where the run was broken off none is waited for."""
    for worker in started:
        worker.connection.close()
        if not gently:
            worker.process.kill()
    for worker in started:
        worker.process.join(LEAVE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Life of a process: one thread, since the pool is the parallelism; deaf to Ctrl-C, which is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        with OneThread()():
            connection.send((READY, None))
            while True:
                connection.send(_outcome(function, connection.recv()))
    except (EOFError, OSError):  # no more work
        return


def _outcome(function: Callable[[Any], Any], task: Any) -> tuple[str, Any]:
    try:
        return DONE, function(task)
    except MemoryError:
        return STARVED, None
    except Exception as error:
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return FAILED, RuntimeError(f"{type(error).__name__} in a worker process:\n{traceback.format_exc()}")
        return FAILED, error


def _leave_with_parent() -> None:
    """No child outlives a parent that was killed, not even in the middle of a case."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
