"""What the training commands share: options, a bar with loss and speed, and a stop that leaves a checkpoint."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medvar_cli.console import INTERRUPTED, console, errors, print_json
from medvar_data.errors import SpecError
from medvar_model.checkpoints.checkpoint import find_last
from medvar_model.errors import ConfigMismatch
from medvar_model.loader import DataSpec
from medvar_model.sampling.sample import SAMPLINGS, SampleSettings
from medvar_model.training.checks import Ready
from medvar_model.training.reports import RunStart, StepLog, TrainResult
from medvar_model.training.settings import LoopSettings

LINE_EVERY_S = 30.0

ShardsArgument = Annotated[str, typer.Argument(help="Shard set S: a folder or URL.")]
OutOption = Annotated[Path, typer.Option("-o", "--out", help="The run's folder.")]
SamplesOption = Annotated[
    int | None,
    typer.Option(help="Images to train on, repeats counted; whole steps are taken. Default: by preset.", min=1),
]
BatchOption = Annotated[
    int | None, typer.Option(help="Images of a step, all processes together. Default: by preset.", min=1)
]
MicroBatchOption = Annotated[int, typer.Option(help="Images of one pass, to save memory; 0 takes all at once.", min=0)]
RateOption = Annotated[
    float | None, typer.Option(help="Peak learning rate at a batch of 256; grows with the batch. Default: by preset.")
]
AverageOption = Annotated[float, typer.Option(help="Keep a running average of weights with this decay; 0 keeps none.")]
SeedOption = Annotated[int, typer.Option(help="Of weights, order and dropping.", min=0)]
PrecisionOption = Annotated[str, typer.Option(help="auto (bfloat16 on GPUs), float32 or bfloat16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
WorkersOption = Annotated[int, typer.Option(help="Threads that read ahead.", min=0)]
MixOption = Annotated[list[str] | None, typer.Option("--mix", help="CONDITION=WEIGHT; others are left out. Repeat.")]
CacheOption = Annotated[str, typer.Option(help="Local folder for the shards of a remote set.")]
CacheSizeOption = Annotated[float, typer.Option("--cache-gb", help="Bound of that folder, GB.")]
WindowOption = Annotated[int, typer.Option(help="Mix only so many shards at a time; 0 mixes all.", min=0)]
ValidateOption = Annotated[
    int | None, typer.Option(help="Samples between validations; 0 never validates. Default: by preset.", min=0)
]
CheckpointOption = Annotated[int | None, typer.Option(help="Samples between checkpoints. Default: by preset.", min=1)]
InitFromOption = Annotated[str, typer.Option(help="Run or checkpoint whose weights a fresh run begins with.")]
SamplingOption = Annotated[
    str,
    typer.Option("--preset", help="paper: guidance 4, top-k 900, top-p 0.95. demo: 1, 0, 0.98, for small networks."),
]
GuidanceOption = Annotated[float | None, typer.Option(help="Classifier-free guidance; 0 is off. Default: by preset.")]
TopKOption = Annotated[int | None, typer.Option(help="Codes kept at each position; 0: all. Default: by preset.")]
TopPOption = Annotated[
    float | None, typer.Option(help="Probability kept at each position; 0: all. Default: by preset.")
]
DrawSeedOption = Annotated[
    int | None, typer.Option("--seed", help="Image n of a seed is always the same. Default: 42.", min=0)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check all inputs, show the configuration and stop.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def data_spec(
    shards: str, mix: list[str] | None, cache: str, cache_gb: float, window_shards: int, workers: int
) -> DataSpec:
    """Build a `DataSpec` from options."""
    if not 0 <= cache_gb < math.inf:
        raise SpecError(f"--cache-gb is {cache_gb}; wanted a number from 0 on.")
    mixture = []
    for item in mix or []:
        name, _, weight = item.partition("=")
        try:
            mixture.append((name, float(weight)))
        except ValueError:
            raise SpecError(f"--mix {item} is not understood; wanted CONDITION=WEIGHT, such as acdc-mr=0.5.") from None
    return DataSpec(shards, tuple(mixture), window_shards, cache, int(cache_gb * 1e9), workers)


def loop_settings(preset: LoopSettings, **options: Any) -> LoopSettings:
    """Change a preset by the options that were given; None leaves what the preset says."""
    return replace(preset, **{name: value for name, value in options.items() if value is not None})


def sampling(
    preset: str, guidance: float | None, top_k: int | None, top_p: float | None, seed: int | None
) -> SampleSettings:
    """Change a named way of sampling by the options that were given."""
    if preset not in SAMPLINGS:
        raise ConfigMismatch(f"There is no --preset {preset!r} to sample with; choose one of {', '.join(SAMPLINGS)}.")
    given: dict[str, Any] = {"guidance": guidance, "top_k": top_k, "top_p": top_p, "seed": seed}
    return replace(SAMPLINGS[preset], **{name: value for name, value in given.items() if value is not None})


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


def finish(result: TrainResult, as_json: bool) -> None:
    """Print how a run ended; leave with `INTERRUPTED` if it has not seen all its samples."""
    if is_main():
        if as_json:
            print_json(asdict(result) | {"is_finished": result.is_finished})
        else:
            best = "" if result.best is None else f", best validation loss {result.best:.4f}"
            state = "Trained" if result.is_finished else "Stopped; the same command goes on from here"
            console.print(f"{state}: {result.out}, {result.samples:,} images, step {result.step}{best}.", markup=False)
    if not result.is_finished:
        raise typer.Exit(INTERRUPTED)


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
        text = f"{self.title}  loss {log.numbers['loss']:.4f}  {speed}"
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
                f"({rate:,.1f} images/s, {left})"
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
        errors.print("Stopping after this step; once more stops at once.")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
