"""Run independent pieces of work in a pool of processes and survive the death of one of them.

Results come back as they finish; the order means nothing. When a child dies (out of memory, a library's crash), every
piece that was in flight is tried again alone; one that kills its process a second time is handed to `on_killed`.
"""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from medvar_data.errors import WorkspaceError

Task = TypeVar("Task")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 2
PARENT_CHECK_SECONDS = 1.0


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    on_killed: Callable[[Task], Result],
) -> Iterator[Result]:
    """Apply a picklable function to every task.

    Args:
        function: pure but for the files it writes; must be importable.
        tasks: picklable.
        workers: processes; 1 runs in this process, without a pool.
        on_killed: makes the result of a task whose process died twice.
    """
    if workers <= 1:
        cv2.setNumThreads(1)
        yield from map(function, tasks)
        return
    waiting = deque(tasks)
    while waiting:
        suspects: list[Task] = []
        yield from _run_pool(function, waiting, workers, suspects)
        for suspect in suspects:
            yield _run_alone(function, suspect, on_killed)


def _run_pool(
    function: Callable[[Task], Result], waiting: deque[Task], workers: int, suspects: list[Task]
) -> Iterator[Result]:
    """Drain `waiting` until done or a child dies; then `suspects` holds what was in flight."""
    with _pool(workers) as pool:
        _check_alive(pool)
        flying: dict[Future[Result], Task] = {}
        while waiting or flying:
            while waiting and len(flying) < workers * IN_FLIGHT_PER_WORKER:
                task = waiting.popleft()
                try:
                    flying[pool.submit(function, task)] = task
                except BrokenProcessPool:
                    waiting.appendleft(task)
                    break
            if not flying:  # the pool broke while nothing was in flight: go on with a new one
                return
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                task = flying.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    suspects.append(task)
                    broken = True
            if broken:
                suspects.extend(flying.values())
                return


def _run_alone(function: Callable[[Task], Result], task: Task, on_killed: Callable[[Task], Result]) -> Result:
    with _pool(1) as pool:
        _check_alive(pool)
        try:
            return pool.submit(function, task).result()
        except BrokenProcessPool:
            return on_killed(task)


def _check_alive(pool: ProcessPoolExecutor) -> None:
    """Start a process and hear from it: one that cannot even start says nothing about the task it was meant for.

    Raises:
        WorkspaceError: processes die before they are given anything to do.
    """
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise WorkspaceError(
            "Worker processes die as they start, before they are given a case. Check memory limits and the installation, "
            "or run with --workers 1. Nothing was rejected; the same command goes on from here."
        ) from error


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(os.getpid(),))


def _start(parent: int) -> None:
    """One thread a process, since the pool is the parallelism; and no child outlives a parent that was killed."""
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)
