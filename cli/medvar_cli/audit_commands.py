"""The commands of `medvar-data` that explain and prove a shard set: `stats`, `report`, `verify`, `seal`, `diff`, `trace`, `reconstruct`, `sheets`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import DIFFERENT, WRONG, console, fail, print_json, progress_bar
from medvar_cli.data_feedback import (
    show_difference,
    show_losses,
    show_statistics,
    show_trace,
    show_verification,
    statistics_parts,
)
from medvar_cli.data_options import ArchiveOptions, ShardsArgument
from medvar_cli.option_groups import JsonOption, takes_options
from medvar_data.audit.contact_sheets import contact_sheets
from medvar_data.audit.contents import contents_of
from medvar_data.audit.diff import diff
from medvar_data.audit.figures import figure2, figure2_counts
from medvar_data.audit.reconstruct import measure_losses, reconstruct, write_reconstruction
from medvar_data.audit.remake import RemakeSpec
from medvar_data.audit.seal import SEAL_FILE, seal
from medvar_data.audit.seal import new_key as make_key
from medvar_data.audit.trace import trace
from medvar_data.audit.verify import verify
from medvar_data.catalog.recipe import load_recipe
from medvar_data.storage.store import Store, write_bytes
from medvar_data.workspace.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the commands to `medvar-data`."""
    app.command("stats")(stats_command)
    app.command("report")(report_command)
    app.command("verify")(verify_command)
    app.command("seal")(seal_command)
    app.command("diff")(diff_command)
    app.command("trace")(trace_command)
    app.command("reconstruct")(reconstruct_command)
    app.command("sheets")(sheets_command)


def stats_command(
    place: Annotated[str, typer.Argument(help="Shard set S, or workspace W as far as it is harmonized.")],
    figure: Annotated[
        Path | None,
        typer.Option(help="Write volumes by region and modality, beside the paper's, as .svg, .png or .pdf."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Of a workspace: recipe that it was harmonized by.")] = "paper",
    as_json: JsonOption = False,
) -> None:
    """Print what a shard set or a workspace holds: per-dataset statistics, labels, rejects; and the paper's Figure 2 of it.

    docs/statistics.md says what each column means.

    Example: medvar-data stats shards --figure figure2.svg

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.contents import contents_of
    from medvar_data.audit.figures import figure2, figure2_counts
    from medvar_data.catalog.recipe import load_recipe
    contents = contents_of("shards", load_recipe("paper"))
    rows = contents.statistics.to_pylist()
    volumes = figure2_counts(contents.cases)
    picture = figure2(volumes, "svg")
    """
    contents = contents_of(place, load_recipe(recipe))
    volumes = figure2_counts(contents.cases)
    if figure:
        write_bytes(figure, figure2(volumes, figure.suffix.removeprefix(".")))
    if as_json:
        return print_json(statistics_parts(contents, volumes) | ({"figure": str(figure)} if figure else {}))
    return show_statistics(contents, volumes, figure)


def report_command(
    place: Annotated[str, typer.Argument(help="Shard set S, or workspace W as far as it is harmonized.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("report.html"),
    recipe: Annotated[str, typer.Option(help="Of a workspace: recipe that it was harmonized by.")] = "paper",
    as_json: JsonOption = False,
) -> None:
    """Write all of a shard set or a workspace on one page: contents, licences, overlaps, histograms, pictures, rejects.

    The page is one file and needs no network.

    Example: medvar-data report shards -o report.html

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.report import write_report
    from medvar_data.catalog.recipe import load_recipe
    recipe = load_recipe("paper")
    page = write_report("shards", Path("report.html"), recipe)
    """
    from medvar_data.audit.report import write_report  # slow to import

    page = write_report(place, output, load_recipe(recipe))
    if as_json:
        return print_json({"page": str(page)})
    return console.print(page, markup=False)


@takes_options
def verify_command(
    shards: ShardsArgument,
    *,
    workspace: Annotated[
        Path | None, typer.Option("-w", "--workspace", help="For --remake: what S was made from.")
    ] = None,
    remake: Annotated[
        int, typer.Option(help="Make this many slices again from their sources, and compare.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the draw of these slices.", min=0)] = 0,
    seal: Annotated[Path | None, typer.Option(help="Public key (PEM) of whoever is to have sealed S.")] = None,
    archives: ArchiveOptions,
    as_json: JsonOption = False,
) -> None:
    """Check every byte, count and promise of a shard set. Exit code 2 where something is wrong.

    Example: medvar-data verify shards -w work --remake 20 --seal public.pem

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.remake import RemakeSpec
    from medvar_data.audit.report import write_report
    from medvar_data.audit.verify import verify
    from medvar_data.storage.store import Store
    from medvar_data.workspace.workspace import Workspace
    spec, key = RemakeSpec(Workspace(Path("work")), 20), Path("public.pem")
    result = verify(Store("shards"), remake=spec, public_key=key)
    """
    if bool(remake) != bool(workspace):
        fail("--remake N and -w go together: slices are made again with the workspace that the set was made from.")
    spec = RemakeSpec(Workspace(workspace), remake, seed, archives.access()) if workspace else None
    with progress_bar("verify", quiet=as_json) as report:
        result = verify(Store(shards), report, remake=spec, public_key=seal)
    if as_json:
        print_json(asdict(result))
    else:
        show_verification(result)
    if result.findings:
        raise typer.Exit(WRONG)


def seal_command(
    shards: Annotated[str, typer.Argument(help="Shard set S.")] = "",
    key: Annotated[Path | None, typer.Option(help="File with your private key.")] = None,
    new_key: Annotated[
        Path | None, typer.Option(help="Make a private key in this new file, and print the public one.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of another key's seal.")] = False,
) -> None:
    """Sign a shard set as its publisher: writes seal.json, which `verify --seal` checks with the public key.

    Example: medvar-data seal shards --key private.pem

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.seal import seal
    from medvar_data.storage.store import Store
    made = seal(Store("shards"), Path("private.pem"))
    """
    if bool(new_key) == bool(shards) or bool(key) != bool(shards):
        fail("Wanted either a shard set and --key FILE, or --new-key FILE alone.")
    if new_key:
        return print(make_key(new_key), end="")
    assert key, "checked above"
    made = seal(Store(shards), key, replace=replace)
    return console.print(f"{SEAL_FILE} written, by the key {made.public_key_sha256}", markup=False)


def diff_command(
    first: Annotated[str, typer.Argument(help="A shard set.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two shard sets. Exit code 0 where they are equal, 1 where they differ.

    Example: medvar-data diff shards newer

    Python:

    \b
    from medvar_data.audit.diff import diff
    from medvar_data.storage.store import Store
    found = diff(Store("shards"), Store("newer"))
    """
    found = diff(Store(first), Store(second))
    if as_json:
        print_json(asdict(found))
    else:
        show_difference(found)
    if found:
        raise typer.Exit(DIFFERENT)


@takes_options
def trace_command(
    shards: ShardsArgument,
    key: Annotated[str, typer.Argument(help="Key of a slice, such as acdc-patient001-frame01-z0004.")],
    *,
    workspace: Annotated[Path | None, typer.Option("-w", "--workspace", help="To go back to the source files.")] = None,
    archives: ArchiveOptions,
    as_json: JsonOption = False,
) -> None:
    """Show where a slice comes from: its licence, every number that made it and, with -w, its file. Exit code 2 where it is wrong.

    What people read first is printed; --json prints all columns of its slice, case and source.

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
    if as_json:
        print_json(report)
    else:
        show_trace(report)
    if report["verdict"].startswith("wrong"):
        raise typer.Exit(WRONG)


@takes_options
def reconstruct_command(
    shards: ShardsArgument,
    case: Annotated[str, typer.Argument(help="A slice's key without its end, such as acdc-patient001-frame01.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The image, .nii.gz; its mask goes beside it.")],
    *,
    workspace: Annotated[
        Path | None,
        typer.Option("-w", "--workspace", help="To measure what was lost, and for the place in the scanner."),
    ] = None,
    archives: ArchiveOptions,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a case as NIfTI on its source grid; with -w, measure the loss of each step against the source.

    Of a collection that is not public the set does not hold the place in the scanner; with -w it is taken from the workspace.

    Example: medvar-data reconstruct shards acdc-patient001-frame01 -o case.nii.gz -w work

    Python:

    \b
    from pathlib import Path
    from medvar_data.audit.diff import diff
    from medvar_data.audit.reconstruct import measure_losses, reconstruct
    from medvar_data.audit.reconstruct import write_reconstruction
    from medvar_data.storage.store import Store
    from medvar_data.workspace.workspace import Workspace
    workspace = Workspace(Path("work"))
    rebuilt = reconstruct(Store("shards"), "acdc-patient001-frame01", workspace)
    image, mask = write_reconstruction(rebuilt, Path("case.nii.gz"))
    losses = measure_losses(Store("shards"), rebuilt, workspace)
    """
    store = Store(shards)
    source = Workspace(workspace) if workspace else None
    rebuilt = reconstruct(store, case, source)
    image, mask = write_reconstruction(rebuilt, output)
    losses = measure_losses(store, rebuilt, source, archives.access()) if source else None
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
