"""The commands of `medvar-model` that begin with real slices: `continue`, `inpaint` and `features`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import console, print_json
from medvar_cli.model_feedback import show_spec
from medvar_cli.model_options import (
    CacheOptions,
    DeviceOption,
    OutputOptions,
    RunArgument,
    SamplingOptions,
    ShardsArgument,
    TokenizerOption,
)
from medvar_cli.option_groups import takes_options
from medvar_model.errors import ConfigMismatch
from medvar_model.loader import DataSpec
from medvar_model.machine import processes
from medvar_model.sampling.edit import Box, Edit, check_edit, write_edits
from medvar_model.sampling.features import Features, check_features, write_features

FolderOption = Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `medvar-model`."""
    app.command("continue")(continue_command)
    app.command("inpaint")(inpaint_command)
    app.command("features")(features_command)


@dataclass(frozen=True, kw_only=True)
class SliceOptions:
    """Which slices of the set."""

    split: Annotated[str, typer.Option(help="train, val or test.")] = "test"
    where: Annotated[str, typer.Option(help="A condition in SQL that the slices fulfil.")] = ""
    caching: CacheOptions

    def data(self, shards: str) -> DataSpec:
        """Say how the set is read."""
        return self.caching.data(shards, self.where)


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """What both editing commands are told."""

    slices: SliceOptions
    count: Annotated[int, typer.Option("-n", "--count", help="Slices, evenly spread over the split.", min=1)] = 4
    variants: Annotated[int, typer.Option(help="Images of each slice.", min=1)] = 4
    condition: Annotated[str, typer.Option(help="Draw by this condition in place of each slice's own.")] = ""
    sampling: SamplingOptions
    tokenizer: TokenizerOption = ""

    def spec(self, where: tuple[str, str, Path], coarse: int, box: Box | None = None, mask: str = "") -> Edit:
        """Make the library's value; `where` is shard set, run and folder.

        Raises:
            ConfigMismatch: an option is not understood.
        """
        shards, run, out = where
        return Edit(
            self.slices.data(shards), run, str(out), coarse, box, mask, self.slices.split, self.count, self.variants,
            self.condition, self.sampling.settings(run), self.tokenizer,
        )  # fmt: skip


@takes_options
def continue_command(
    shards: ShardsArgument,
    run: RunArgument,
    out: FolderOption,
    *,
    scales: Annotated[int, typer.Option(help="Coarse scales that are kept of each slice.", min=1)] = 4,
    editing: EditOptions,
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Draw the finer scales of real slices anew: images with their layout and other details.

    Example: medvar-model continue S runs/d4 -o continued --scales 3

    Python:

    \b
    from medvar_model.loader import DataSpec
    from medvar_model.machine.processes import Process
    from medvar_model.sampling.edit import Edit, write_edits
    spec = Edit(DataSpec("S"), "runs/d4", "continued", coarse=3)
    write_edits(spec, Process.alone().device)
    """
    _edit(editing.spec((shards, run, out), scales), device, output)


@takes_options
def inpaint_command(
    shards: ShardsArgument,
    run: RunArgument,
    out: FolderOption,
    *,
    box: Annotated[str, typer.Option(help="top,left,bottom,right of what is drawn, as shares of the image.")] = "",
    mask: Annotated[str, typer.Option(help="A PNG, bright where something is drawn; in place of --box.")] = "",
    scales: Annotated[int, typer.Option(help="Coarse scales that are kept whole, besides.", min=0)] = 0,
    editing: EditOptions,
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Draw a part of real slices anew: tokens outside it are kept at every scale.

    Example: medvar-model inpaint S runs/d4 -o painted --box 0.25,0.25,0.75,0.75

    Python:

    \b
    from medvar_model.loader import DataSpec
    from medvar_model.machine.processes import Process
    from medvar_model.sampling.edit import Edit, write_edits
    box = (0.25, 0.25, 0.75, 0.75)
    spec = Edit(DataSpec("S"), "runs/d4", "painted", box=box)
    write_edits(spec, Process.alone().device)
    """
    if bool(box) == bool(mask):
        raise ConfigMismatch("wanted either --box, such as --box 0.25,0.25,0.75,0.75, or --mask FILE.")
    _edit(editing.spec((shards, run, out), scales, _box(box), mask), device, output)


@takes_options
def features_command(
    shards: ShardsArgument,
    run: RunArgument,
    out: FolderOption,
    *,
    slices: SliceOptions,
    count: Annotated[int, typer.Option("-n", "--count", help="Slices, evenly spread; 0 takes all.", min=0)] = 0,
    block: Annotated[
        list[int] | None, typer.Option(help="Keep the positions after this block as maps. Repeat.")
    ] = None,
    scan_maps: Annotated[bool, typer.Option(help="Write surprise/, to lay back onto scans.")] = True,
    batch_size: Annotated[int, typer.Option(help="Slices at a time.", min=1)] = 16,
    tokenizer: TokenizerOption = "",
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Write what a run makes of slices: tokens, latents, hidden states, log-likelihood, surprise.

    The folder surprise is a shard set with the geometry of the slices, so that
    `medvar-data reconstruct` lays its maps back onto the scans.

    Example: medvar-model features S runs/d4 -o inside --block 2 -n 8

    Python:

    \b
    from medvar_model.loader import DataSpec
    from medvar_model.machine.processes import Process
    from medvar_model.sampling.features import Features, write_features
    spec = Features(DataSpec("S"), "runs/d4", "inside", "test", 8, (2,))
    n = write_features(spec, Process.alone().device)
    """
    spec = Features(
        slices.data(shards), run, str(out), slices.split, count, tuple(block or ()), scan_maps, batch_size, tokenizer
    )
    if output.dry_run:
        processes.device_of(device)
        check_features(spec)
        return show_spec(spec, output.as_json)
    with processes.joined({}, device) as process:
        n = write_features(spec, process.device)
    if output.as_json:
        return print_json({"slices": n, "out": str(out)})
    return console.print(f"{n:,} slices; a row of each in {out / 'slices.parquet'}.", markup=False)


def _edit(spec: Edit, device: str, output: OutputOptions) -> None:
    if output.dry_run:
        processes.device_of(device)
        check_edit(spec)
        return show_spec(spec, output.as_json)
    with processes.joined({}, device) as process:
        files = write_edits(spec, process.device)
    if output.as_json:
        return print_json([str(file) for file in files])
    grid = Path(spec.out) / "grid.png"
    return console.print(
        f"{len(files)} images in {spec.out}, beside the slices they began with in {grid}.", markup=False
    )


def _box(text: str) -> Box | None:
    if not text:
        return None
    try:
        top, left, bottom, right = (float(share) for share in text.split(","))
    except ValueError:
        raise ConfigMismatch(f"--box is {text!r}; wanted four numbers such as 0.25,0.25,0.75,0.75.") from None
    return top, left, bottom, right
