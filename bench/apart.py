"""Run a rival in a process of its own, so that memory, threads and settings of one side do not help or hinder the other.

The rival is built once; then it works when it is asked, one call at a time, and waits without computing in between.
"""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

Runs = Mapping[str, Callable[[], object]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clocked(run: Callable[[], object], clock: str, device: torch.device) -> float:
    """Seconds of one call, on a clock of `CLOCKS`."""
    now = CLOCKS[clock]
    begun = now()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - begun


class Apart:
    """A rival's process, to be used in a `with` block.

    Args:
        build: makes what can be run, by name, in that process; a function of a module.
        arguments: of `build`.
        clock: "wall" or "cpu".
        device: what it computes on.
    """

    def __init__(self, build: Callable[..., Runs], arguments: tuple[Any, ...], clock: str, device: torch.device):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        threads = torch.get_num_threads()
        self._process = context.Process(
            target=_serve, args=(theirs, build, arguments, threads, clock, device), daemon=True
        )

    def __enter__(self) -> "Apart":
        self._process.start()
        if self._connection.recv() != "built":
            raise RuntimeError("the rival could not be built; its error stands above")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.send("")
        self._process.join()

    def seconds(self, name: str) -> float:
        """Run one of what was built, and tell how long it took in its own process."""
        self._connection.send(name)
        return float(self._connection.recv())


def _serve(
    connection: Connection, build: Callable[..., Runs], arguments: tuple[Any, ...], threads: int, clock: str, device: torch.device
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    try:
        runs = build(*arguments)
    except BaseException:
        connection.send("failed")
        raise
    connection.send("built")
    while name := connection.recv():
        connection.send(clocked(runs[name], clock, device))
