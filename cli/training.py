"""What the training commands share: options, a bar with loss and speed, and a stop that leaves a checkpoint."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from medvar_cli.console import console, errors, print_json
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medvar_data.errors import SpecError
from medvar_model.loader import DataSpec
from medvar_model.recipe import LoopSettings, StepLog, TrainResult

STOPPED = 1  # exit code of a run that was asked to stop before its end

ShardsArgument = Annotated[str, typer.Argument(help="Shard set S: a folder or URL.")]
OutOption = Annotated[Path, typer.Option("-o", "--out", help="The run's folder.")]
SamplesOption = Annotated[int | None, typer.Option(help="Images to train on, repeats counted.", min=1)]
BatchOption = Annotated[int | None, typer.Option(help="Images of a step, all processes together.", min=1)]
MicroBatchOption = Annotated[int, typer.Option(help="Images of one pass, to save memory; 0 takes all at once.", min=0)]
RateOption = Annotated[float | None, typer.Option(help="Peak learning rate at a batch of 256; grows with the batch.")]
AverageOption = Annotated[float, typer.Option(help="Keep a running average of weights with this decay; 0 keeps none.")]
SeedOption = Annotated[int, typer.Option(help="Of weights, order and dropping.", min=0)]
PrecisionOption = Annotated[str, typer.Option(help="auto (bfloat16 on GPUs), float32 or bfloat16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
WorkersOption = Annotated[int, typer.Option(help="Threads that read ahead.", min=0)]
MixOption = Annotated[list[str] | None, typer.Option("--mix", help="CONDITION=WEIGHT; others are left out. Repeat.")]
CacheOption = Annotated[str, typer.Option(help="Local folder for the shards of a remote set.")]
CacheSizeOption = Annotated[float, typer.Option("--cache-gb", help="Bound of that folder, GB.")]
WindowOption = Annotated[int, typer.Option(help="Mix only so many shards at a time; 0 mixes all.", min=0)]
ValidateOption = Annotated[int | None, typer.Option(help="Samples between validations; 0 never validates.", min=0)]
CheckpointOption = Annotated[int | None, typer.Option(help="Samples between checkpoints.", min=1)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration and stop.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def data_spec(
    shards: str, mix: list[str] | None, cache: str, cache_gb: float, window_shards: int, workers: int
) -> DataSpec:
    """Build a `DataSpec` from options."""
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


def show_spec(spec: Any, as_json: bool) -> None:
    """Print a resolved configuration."""
    if as_json:
        print_json(asdict(spec))
    else:
        console.print(json.dumps(asdict(spec), indent=2, default=str), markup=False)


def is_main() -> bool:
    """Say whether this process prints; of those that torchrun starts, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def finish(result: TrainResult, as_json: bool) -> None:
    """Print how a run ended; leave with `STOPPED` if it has not seen all its samples."""
    if is_main():
        if as_json:
            print_json(asdict(result) | {"is_finished": result.is_finished})
        else:
            best = "" if result.best is None else f", best validation loss {result.best:.4f}"
            state = "Trained" if result.is_finished else "Stopped; the same command goes on from here"
            console.print(f"{state}: {result.out}, {result.samples:,} images, step {result.step}{best}.", markup=False)
    if not result.is_finished:
        raise typer.Exit(STOPPED)


@contextmanager
def shown(title: str) -> Iterator[Callable[[StepLog], None]]:
    """Show a bar with loss and speed on a terminal, and a line for each validation anywhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not (errors.is_terminal and is_main())) as bar:
        task = bar.add_task(title, total=None)

        def report(log: StepLog) -> None:
            speed = f"{log.numbers['images_per_second']:,.0f} images/s"
            text = f"{title}  loss {log.numbers['loss']:.4f}  {speed}"
            bar.update(task, completed=log.step, total=log.steps, description=text)
            if log.validation:
                numbers = "  ".join(f"{name} {log.validation[name]:.4g}" for name in headline(log))
                errors.print(f"{title} {log.samples:,} images: validation {numbers}  ({speed})", markup=False)

        yield report


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
