"""What people see of a training: what a dry run found, a bar with loss and speed, and how the run ended."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medvar_cli.console import INTERRUPTED, console, errors, print_json
from medvar_model.checkpoints.checkpoint import find_last
from medvar_model.training.checks import Ready
from medvar_model.training.reports import RunStart, StepLog, TrainResult

LINE_EVERY_S = 30.0
STOPPED_NOTE = "MEDVAR_STOPPED_NOTE"  # names a file that tells the launcher of a stop that is a success


def show_spec(spec: Any, as_json: bool) -> None:
    """Print a resolved configuration."""
    if as_json:
        print_json(asdict(spec))
    else:
        console.print(json.dumps(asdict(spec), indent=2, default=str), markup=False)


def show_check(made: Ready) -> None:
    """Say on standard error what a dry run found."""
    loader, loop = made.loader, made.loop
    reduced = f", averaged down from {loader.set_side}" if loader.set_side != loader.image_side else ""
    last = find_last(made.job.out)
    begin = "The run would be fresh" if last is None else f"The run would go on from {last}"
    errors.print(
        f"All inputs fit: {len(loader):,} training slices of {loader.image_side} pixels a side{reduced}; "
        f"{loop.steps * loop.batch_size:,} images in {loop.steps:,} steps. {begin}.",
        markup=False,
    )


def is_main() -> bool:
    """Say whether this process prints; of those that torchrun starts, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def finish(result: TrainResult, as_json: bool, stop_is_success: bool = False) -> None:
    """Print how a run ended; leave with `INTERRUPTED` if it has not seen all its samples and that is no success."""
    if is_main():
        if as_json:
            print_json(asdict(result) | {"is_finished": result.is_finished})
        else:
            best = "" if result.best is None else f", best validation loss {result.best:.4f}"
            state = "Trained" if result.is_finished else "Stopped; the same command goes on from here"
            waited = f", {result.waiting:.1%} of the time waiting for images" if result.waiting else ""
            console.print(
                f"{state}: {result.out}, {result.samples:,} images, step {result.step}{best}{waited}.", markup=False
            )
            if result.unreadable:
                console.print(
                    f"{result.unreadable:,} slices could not be read, and others took their place; `medvar-data verify` lists them."
                )
    if result.is_finished:
        return
    if not stop_is_success:
        raise typer.Exit(INTERRUPTED)
    if is_main() and (note := os.environ.get(STOPPED_NOTE)):
        Path(note).touch()


class Feedback:
    """What people see of a training: how it begins, a bar on a terminal, and elsewhere a line now and then.

    Args:
        title: of every line.
        bar: the open bar.
        clock: gives seconds.
    """

    def __init__(self, title: str, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self.bar, self.clock = title, bar, clock
        self.task = bar.add_task(title, total=None)
        self.said_at, self.said_samples = clock(), 0

    def begin(self, start: RunStart) -> None:
        """Say what is trained, where, on what, and from which step on."""
        total, batch = start.steps * start.batch_size, start.batch_size
        self.said_at, self.said_samples = self.clock(), start.step * batch
        if start.step >= start.steps:
            return
        where = f"in {start.out}, log in {start.out / 'log.jsonl'}"
        if start.step:
            how = f"resumed at step {start.step:,} of {start.steps:,} ({start.step * batch:,} of {total:,} images)"
        else:
            how = f"fresh run{f' from the weights of {start.init_from}' if start.init_from else ''}"
        reduced = f", averaged down from {start.set_side}" if start.set_side != start.image_side else ""
        together = f" on {start.processes} processes" if start.processes > 1 else ""
        self._say(f"{self.title}: {how} {where}")
        self._say(
            f"{self.title}: {start.device}{together}, {start.precision}; {start.slices:,} training slices of "
            f"{start.image_side} pixels a side{reduced}; {start.parameters:,} parameters; "
            f"{total:,} images in {start.steps:,} steps of {batch:,}"
        )

    def step(self, log: StepLog) -> None:
        """Move the bar; say a line after a validation, and without a terminal every half minute."""
        speed = f"{log.numbers['images_per_second']:,.0f} images/s"
        used = f"{log.numbers['waiting']:.0%} waiting  {log.numbers['mfu']:.0%} of the peak"
        text = f"{self.title}  loss {log.numbers['loss']:.4f}  {speed}  {used}"
        self.bar.update(self.task, completed=log.step, total=log.steps, description=text)
        if log.validation:
            numbers = "  ".join(f"{name} {log.validation[name]:.4g}" for name in headline(log))
            self._say(f"{self.title} {log.samples:,} images: validation {numbers}  ({speed})")
        elapsed_s = self.clock() - self.said_at
        if elapsed_s >= LINE_EVERY_S and not errors.is_terminal:
            rate = (log.samples - self.said_samples) / elapsed_s
            total = log.samples * log.steps // log.step
            left = f"{(total - log.samples) / rate / 60:,.0f} min left"
            self._say(
                f"{self.title} {log.samples:,} of {total:,} images: loss {log.numbers['loss']:.4f}  "
                f"({rate:,.1f} images/s, {log.numbers['waiting']:.0%} waiting for images, "
                f"{log.numbers['mfu']:.0%} of the peak, {left})"
            )
            self.said_at, self.said_samples = self.clock(), log.samples

    def _say(self, line: str) -> None:
        if is_main():
            errors.print(line, markup=False)


@contextmanager
def shown(title: str) -> Iterator[Feedback]:
    """Show a training to people, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not (errors.is_terminal and is_main())) as bar:
        yield Feedback(title, bar)


def headline(log: StepLog) -> list[str]:
    """Name the validation's numbers that are worth a line."""
    return [name for name in ("loss", "psnr", "accuracy", "codes_used") if name in (log.validation or {})]


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Turn the first interrupt or termination into a wish to stop at the next checkpoint; the second one is obeyed at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        os.write(
            2, b"Stopping after this step; once more stops at once.\n"
        )  # what is interrupted may be writing to sys.stderr
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
