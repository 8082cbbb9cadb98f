"""The commands of `medvar-data` that explain and prove a shard set: `stats`, `verify`, `trace`, `reconstruct`, `sheets`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import WRONG, console, print_json, progress_bar
from medvar_cli.data_feedback import show_losses, show_statistics, show_verification
from medvar_cli.data_options import ArchiveOptions, ShardsArgument
from medvar_cli.option_groups import JsonOption, takes_options
from medvar_data.audit.contact_sheets import contact_sheets
from medvar_data.audit.reconstruct import measure_losses, reconstruct, write_reconstruction
from medvar_data.audit.trace import trace
from medvar_data.audit.verify import verify
from medvar_data.shardset.dataset import read_reject_counts, read_statistics
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the commands to `medvar-data`."""
    app.command("stats")(stats_command)
    app.command("verify")(verify_command)
    app.command("trace")(trace_command)
    app.command("reconstruct")(reconstruct_command)
    app.command("sheets")(sheets_command)


def stats_command(shards: ShardsArgument, as_json: JsonOption = False) -> None:
    """Print per-dataset statistics from the Parquet tables.

    Example: medvar-data stats shards

    Python:

    \b
    from medvar_data.shardset.dataset import read_statistics
    from medvar_data.storage.store import Store
    rows = read_statistics(Store("shards"))
    """
    rows = read_statistics(Store(shards))
    if as_json:
        return print_json(rows)
    return show_statistics(rows, read_reject_counts(Store(shards)))


def verify_command(shards: ShardsArgument, as_json: JsonOption = False) -> None:
    """Check every digest, offset, count and split of a shard set. Exit code 2 where something is wrong.

    Example: medvar-data verify shards

    Python:

    \b
    from medvar_data.audit.verify import verify
    from medvar_data.storage.store import Store
    result = verify(Store("shards"))
    """
    with progress_bar("verify", quiet=as_json) as report:
        result = verify(Store(shards), report)
    if as_json:
        print_json(asdict(result))
    else:
        show_verification(result)
    if result.findings:
        raise typer.Exit(WRONG)


@takes_options
def trace_command(
    shards: ShardsArgument,
    key: Annotated[str, typer.Argument(help="Key of a slice, such as acdc-patient001-frame01-z0004.")],
    *,
    workspace: Annotated[Path | None, typer.Option("-w", "--workspace", help="To go back to the source files.")] = None,
    archives: ArchiveOptions,
) -> None:
    """Show where a slice comes from: its licence, every number that made it and, with -w, its file. Exit code 2 where it is wrong.

    Example: medvar-data trace shards acdc-patient001-frame01-z0004 -w work

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.trace import trace
    from medvar_data.storage.store import Store
    from medvar_data.workspace.workspace import Workspace
    key, workspace = "acdc-patient001-frame01-z0004", Workspace(Path("work"))
    report = trace(Store("shards"), key, workspace)
    """
    report = trace(Store(shards), key, Workspace(workspace) if workspace else None, archives.access())
    print_json(report)
    if report["verdict"].startswith("wrong"):
        raise typer.Exit(WRONG)


@takes_options
def reconstruct_command(
    shards: ShardsArgument,
    case: Annotated[str, typer.Argument(help="A slice's key without its end, such as acdc-patient001-frame01.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The image, .nii.gz; its mask goes beside it.")],
    *,
    workspace: Annotated[Path | None, typer.Option("-w", "--workspace", help="To measure what was lost.")] = None,
    archives: ArchiveOptions,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a case as NIfTI on its source grid; with -w, measure the loss of each step against the source.

    Example: medvar-data reconstruct shards acdc-patient001-frame01 -o case.nii.gz -w work

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.reconstruct import measure_losses, reconstruct
    from medvar_data.audit.reconstruct import write_reconstruction
    from medvar_data.storage.store import Store
    from medvar_data.workspace.workspace import Workspace
    rebuilt = reconstruct(Store("shards"), "acdc-patient001-frame01")
    image, mask = write_reconstruction(rebuilt, Path("case.nii.gz"))
    workspace = Workspace(Path("work"))
    losses = measure_losses(Store("shards"), rebuilt, workspace)
    """
    store = Store(shards)
    rebuilt = reconstruct(store, case)
    image, mask = write_reconstruction(rebuilt, output)
    losses = measure_losses(store, rebuilt, Workspace(workspace), archives.access()) if workspace else None
    if as_json:
        return print_json({"image": str(image), "mask": str(mask), "losses": asdict(losses) if losses else None})
    console.print(f"{image}\n{mask}", markup=False)
    return show_losses(losses) if losses else None


def sheets_command(
    shards: ShardsArgument,
    output: Annotated[Path, typer.Argument(help="Folder for the pictures.")],
    tiles: Annotated[int, typer.Option(help="Slices a sheet.", min=1)] = 24,
) -> None:
    """Write a contact sheet a collection.

    Example: medvar-data sheets shards pictures

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.contact_sheets import contact_sheets
    from medvar_data.storage.store import Store
    sheets = contact_sheets(Store("shards"), Path("pictures"))
    """
    for sheet in contact_sheets(Store(shards), output, tiles):
        console.print(f"{sheet.path}  {sheet.n_slices} slices", markup=False)
