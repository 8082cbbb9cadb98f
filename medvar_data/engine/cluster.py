"""Run independent pieces of work on a Dask cluster: SLURM, Kubernetes, SSH or whatever else Dask is deployed on.

The package `distributed` is imported when a run asks for it and not before. Workers need medvar installed and the workspace
and the sources under the same paths; what they return is small, since results go into files.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

from medvar_data.engine.threads import OneThread
from medvar_data.errors import WorkspaceError

Task = TypeVar("Task")
Result = TypeVar("Result")

CONNECT_SECONDS = 20
WATCH_SECONDS = 2.0  # between two looks at the connection while nothing finishes
RETRIES = 2  # of a piece of work that raised; one whose process died is Dask's to move to another worker


def run_cluster(
    function: Callable[[Task], Result],
    tasks: list[Task],
    scheduler: str,
    on_killed: Callable[[Task], Result],
) -> Iterator[Result]:
    """Apply a picklable function to every task, on the workers of a Dask scheduler.

    A task that killed several workers is tried again alone once all others are done; where that fails too it goes to
    `on_killed`, here.

    Args:
        function: importable on the workers.
        tasks: picklable, the longest first.
        scheduler: address (`tcp://host:8786`) or path of a scheduler file.
        on_killed: makes the result of a task that kills its workers.

    Raises:
        WorkspaceError: Dask is not installed, no scheduler answers, the scheduler is lost, or workers lack medvar.
    """
    try:
        import distributed
    except ImportError as error:
        raise WorkspaceError(
            "A scheduler needs Dask, which is not installed. Run: pip install 'medvar[dask]'"
        ) from error
    with _quiet(), _client(distributed, scheduler) as client:
        suspects: list[Task] = []
        yield from _drain(distributed, client, function, tasks, scheduler, suspects)
        for suspect in suspects:
            again: list[Task] = []
            yield from _drain(distributed, client, function, [suspect], scheduler, again)
            if again:
                yield on_killed(suspect)


def _drain(
    distributed: Any,
    client: Any,
    function: Callable[[Task], Result],
    tasks: list[Task],
    scheduler: str,
    suspects: list[Task],
) -> Iterator[Result]:
    futures = client.map(_on_worker, [function] * len(tasks), tasks, pure=False, retries=RETRIES)
    task_of = dict(zip((f.key for f in futures), tasks, strict=True))
    finished: Queue[Any] = Queue()
    for future in futures:
        future.add_done_callback(finished.put)
    del futures, future  # so that a result is forgotten, there and here, once it was handed on
    while task_of:
        try:
            future = finished.get(timeout=WATCH_SECONDS)
        except Empty:
            if _is_connected(client):
                continue
            raise _lost(scheduler) from None
        if future.status in ("pending", "lost"):  # its worker died with the result; the scheduler has it made again
            future.add_done_callback(finished.put)
            continue
        task = task_of.pop(future.key)
        if future.status == "finished":
            try:
                yield future.result()
            except (CancelledError, distributed.comm.CommClosedError) as error:
                raise _lost(scheduler) from error
        elif future.status == "error":
            cause = future.exception()
            if not isinstance(cause, distributed.scheduler.KilledWorker | MemoryError):
                raise _told(cause)
            suspects.append(task)
        else:
            raise _lost(scheduler)


def _is_connected(client: Any) -> bool:
    """Ask the client's state, since a scheduler that was shut down in good order cancels nothing."""
    channel = client.scheduler_comm
    return client.status == "running" and channel is not None and not channel.comm.closed()


def _lost(scheduler: str) -> WorkspaceError:
    return WorkspaceError(
        f"The connection to the Dask scheduler at {scheduler} is lost. Finished work stays; start the cluster again and "
        "run the same command."
    )


def _on_worker(function: Callable[[Task], Result], task: Task) -> Result:
    """Work with one thread: the cluster is the parallelism."""
    with OneThread()():
        return function(task)


@contextlib.contextmanager
def _client(distributed: Any, scheduler: str) -> Iterator[Any]:
    where = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = distributed.Client(**where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise WorkspaceError(
            f"No Dask scheduler answers at {scheduler} within {CONNECT_SECONDS} s. Wanted an address such as "
            "tcp://host:8786, or the file that `dask scheduler --scheduler-file` writes."
        ) from error
    try:
        yield client
    finally:  # gives up what still waits on the cluster, so that a run that was stopped leaves it idle
        with contextlib.suppress(Exception):
            client.close(timeout=5)


def _told(error: BaseException) -> BaseException:
    """A worker without medvar is a fault of the set-up and told in a sentence; anything else is passed on."""
    if isinstance(error, ImportError):
        return WorkspaceError(
            f"A worker of the cluster cannot import {error.name or 'a module'}. Install the same medvar there as here."
        )
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own tracebacks off the terminal: what matters of them is raised."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
