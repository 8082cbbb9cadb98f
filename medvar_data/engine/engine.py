"""Run independent pieces of work: in this process, in processes of this machine, on a Dask cluster, or a part of them.

The three give the same files, since a piece of work is a pure function of its inputs and puts its result in place by
renaming. Which one it is, is one value, `Engine`.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar

from medvar_data.engine.cluster import run_cluster
from medvar_data.engine.pool import run_here, run_pool
from medvar_data.errors import WorkspaceError

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `count`: the work whose key's hash falls to it, whatever else is to do."""

    number: int = 1
    count: int = 1

    def holds(self, key: str) -> bool:
        """Tell whether a piece of work with this key belongs to the part."""
        return int.from_bytes(sha256(key.encode()).digest()[:8], "big") % self.count == self.number - 1

    @property
    def is_whole(self) -> bool:
        """Whether there is but one part."""
        return self.count == 1


WHOLE = Part()


@dataclass(frozen=True)
class Engine:
    """Who does the work.

    Attributes:
        workers: processes of this machine; 1 works in this process. Unused with a scheduler.
        memory_bytes: what all running pieces of work may be expected to need together; 0 sets no bound.
        scheduler: address of a Dask scheduler, or the path of its scheduler file.
        part: of the work; the rest is left to others.
    """

    workers: int = 1
    memory_bytes: int = 0
    scheduler: str = ""
    part: Part = field(default=WHOLE)


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    engine: Engine | int,
    on_killed: Callable[[Task], Result],
    cost: Callable[[Task], int] = lambda _: 0,
) -> Iterator[Result]:
    """Apply a picklable function to every task; results come as they finish.

    Args:
        function: pure but for the files it writes; must be importable.
        tasks: picklable, the longest first; already only those of the engine's part.
        engine: who does the work; a number means so many processes of this machine.
        on_killed: makes the result of a task that killed its process, or ran out of memory, alone as well.
        cost: bytes of memory that a task is expected to need.

    Raises:
        WorkspaceError: processes die before they are given anything to do, or the scheduler is gone.
    """
    engine = as_engine(engine)
    todo = list(tasks)
    if not todo:
        return iter(())
    if engine.scheduler:
        return run_cluster(function, todo, engine.scheduler, on_killed)
    if engine.workers <= 1:
        return run_here(function, todo, on_killed)
    return run_pool(function, todo, engine.workers, on_killed, cost, engine.memory_bytes)


def as_engine(engine: Engine | int) -> Engine:
    """Take a number for so many processes of this machine."""
    return Engine(workers=engine) if isinstance(engine, int) else engine


def parse_part(text: str) -> Part:
    """Read `I/N`.

    >>> parse_part("3/8")
    Part(number=3, count=8)

    Raises:
        WorkspaceError: it is no part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise WorkspaceError(f"{text!r} is no part; wanted I/N with I from 1 to N, such as 3/8.")
    return Part(int(match[1]), int(match[2]))


def default_workers() -> int:
    """Processes to start where the user does not say: one a processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
