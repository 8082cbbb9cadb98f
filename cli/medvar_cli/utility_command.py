"""The command `utility` of `medvar-model`: what samples are good for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import console, print_json, print_table
from medvar_cli.model_feedback import show_spec
from medvar_cli.model_options import (
    CacheOptions,
    DeviceOption,
    OutputOptions,
    SamplingOptions,
    ShardsArgument,
)
from medvar_cli.option_groups import takes_options
from medvar_model.evaluation.utility.page import arms_table, differences_table
from medvar_model.evaluation.utility.run import check_utility, measure_utility
from medvar_model.evaluation.utility.settings import TASKS, Utility
from medvar_model.machine import processes

SHOWN = (0, 1, 3, 4)  # columns of the page's table that fit a terminal


def register(app: typer.Typer) -> None:
    """Add the command to `medvar-model`."""
    app.command("utility")(utility_command)


@dataclass(frozen=True, kw_only=True)
class UtilityOptions:
    """What is trained on what, and how often."""

    images: Annotated[
        str, typer.Option(help="Folder of any model's images instead of a run: as of `evaluate`, or of `sample`.")
    ] = ""
    count: Annotated[int, typer.Option("-n", "--count", help="Images drawn of each condition.", min=1)] = 256
    sampling: SamplingOptions
    share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the real training patients; repeat for several. Default: 0.1 and 1."),
    ] = None
    seeds: Annotated[int, typer.Option(help="Trainings of each arm.", min=1)] = 5
    steps: Annotated[int, typer.Option(help="Steps of each training.", min=1)] = 500
    batch_size: Annotated[int, typer.Option(help="Images of a step.", min=1)] = 64
    task: Annotated[str, typer.Option(help=f"What is named: {' or '.join(TASKS)} (with modality).")] = "condition"
    slices: Annotated[int, typer.Option(help="Most training slices of each condition.", min=1)] = 2000
    held_out: Annotated[int, typer.Option(help="Most slices of each held-out split; 0 takes all.", min=0)] = 2048
    intervals: Annotated[int, typer.Option(help="Replicates of the intervals; 0: none.", min=0)] = 400
    caching: CacheOptions

    def spec(self, shards: str, run: str, out: Path) -> Utility:
        """Make the library's value.

        Raises:
            MedvarError: an option is not understood.
        """
        return Utility(
            out=str(out),
            data=self.caching.data(shards),
            run=run,
            images=self.images,
            count=self.count,
            settings=self.sampling.settings(run),
            shares=tuple(self.share or Utility.shares),
            seeds=self.seeds,
            steps=self.steps,
            batch_size=self.batch_size,
            task=self.task,
            slices=self.slices,
            held_out=self.held_out,
            replicates=self.intervals,
        )


@takes_options
def utility_command(
    shards: ShardsArgument,
    run: Annotated[str, typer.Argument(help="A transformer's run or checkpoint; none with --images.")] = "",
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for results, page and samples.")],
    training: UtilityOptions,
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Train a small classifier on real slices, on samples and on both; test it on unseen patients.

    It names the condition of a slice. Real slices are also taken of a share of
    the patients alone, where synthetic ones help most. Every arm takes the same
    number of steps and is repeated with the same seeds; intervals are over
    patients and seeds.

    Example: medvar-model utility S runs/d4 -o utility -n 8 --seeds 2 --steps 20

    Python:

    \b
    from medvar_model.evaluation.utility.run import measure_utility
    from medvar_model.evaluation.utility.settings import Utility
    from medvar_model.loader import DataSpec
    from medvar_model.machine.processes import Process
    spec = Utility(
        "utility", DataSpec("S"), "runs/d4", count=8, seeds=2, steps=20
    )
    result = measure_utility(spec, Process.alone().device)
    """
    spec = training.spec(shards, run, out)
    if output.dry_run:
        check_utility(spec, processes.device_of(device))
        return show_spec(spec, output.as_json)
    with processes.joined({}, device) as process:
        result = measure_utility(spec, process.device, lambda line: None if output.as_json else print(line, flush=True))
    if output.as_json:
        return print_json(result)
    columns, rows = arms_table(result)
    print_table("\nUtility", [columns[n] for n in SHOWN], [[row[n] for n in SHOWN] for row in rows])
    print_table("\nBeside real slices alone", *differences_table(result))
    for note in result["notes"]:
        console.print(f"Note: {note}", markup=False)
    return console.print(f"\nReport: {out / 'index.html'}", markup=False)
