"""The program `medvar-data`, and its commands that make a shard set: `ingest`, `harmonize`, `shard`, `reshard`, and `demo` for the first three.

A command parses, makes one value, calls one library function and prints what it returned.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli import audit_commands, catalog_commands, stream_commands
from medvar_cli.console import MOST_LETTERS, SOME_REJECTED, console, errors, fail, print_json, program, progress_bar
from medvar_cli.data_feedback import show_demo, show_harmonized, show_ingested, show_plan, show_shards
from medvar_cli.data_options import (
    ArchiveOptions,
    DryRunOption,
    EngineOptions,
    RecipeOption,
    ReshardOptions,
    ShardOptions,
    SourceEngineOptions,
    WorkersOption,
    WorkspaceOption,
)
from medvar_cli.option_groups import JsonOption, Without, takes_options
from medvar_data.catalog.recipe import load_recipe
from medvar_data.demo.demo import DemoSpec, run_data_demo
from medvar_data.engine.engine import Engine, default_workers
from medvar_data.engine.memory import default_budget
from medvar_data.errors import SourceError
from medvar_data.harmonize.plan import plan_harmonize
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.naming import how_many, printable
from medvar_data.shard.reshard import reshard
from medvar_data.shard.run import ShardSummary, write_shards
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

app = program(
    "Turn downloaded CT/MR collections into auditable training shards: ingest, harmonize, shard, stats, verify.",
    names_files=False,
)
catalog_commands.register(app)
stream_commands.register(app)


@app.command("ingest")
@takes_options
def ingest_command(
    sources: Annotated[
        list[str], typer.Argument(help="NAME=PATH: a collection (or your TOML) and its folder or archive.")
    ],
    workspace: WorkspaceOption,
    *,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the salt of patient hashes, 64 hex digits; without it a new workspace makes its own."
        ),
    ] = None,
    engine: Annotated[SourceEngineOptions, Without(("memory", "part"))],
    archives: ArchiveOptions,
    as_json: JsonOption = False,
) -> None:
    """Find the cases of downloaded collections; headers are checked, no voxel is read.

    Example: medvar-data ingest acdc=~/data/ACDC msd=~/data/msd -w work

    Python:

    \b
    from pathlib import Path
    from medvar_data.ingest.run import run_ingest
    from medvar_data.workspace.workspace import Workspace
    sources = {"acdc": Path.home() / "data/ACDC"}
    found = list(run_ingest(sources, Workspace(Path("work"))))
    """
    folders = _folders(sources)
    salt = _salt(salt_file) if salt_file else None
    found = list(run_ingest(folders, Workspace(workspace), salt, engine.engine(), archives.access()))
    show_ingested(found, workspace, as_json=as_json)


@app.command("harmonize")
@takes_options
def harmonize_command(
    workspace: WorkspaceOption,
    recipe: RecipeOption = "paper",
    *,
    engine: EngineOptions,
    max_rejects: Annotated[int, typer.Option(help="Exit with 1 where more cases are rejected.", min=0)] = 1_000_000,
    archives: ArchiveOptions,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring every ingested case to square 8-bit slices. The same command again resumes.

    Example: medvar-data harmonize -w work --recipe paper

    Python:

    \b
    from pathlib import Path
    from medvar_data.catalog.recipe import load_recipe
    from medvar_data.harmonize.run import run_harmonize
    from medvar_data.workspace.workspace import Workspace
    workspace, recipe = Workspace(Path("work")), load_recipe("paper")
    summary = run_harmonize(workspace, recipe, 1, print)
    """
    chosen, work, who = load_recipe(recipe), Workspace(workspace), engine.engine()
    if dry_run:
        return show_plan(chosen, plan_harmonize(work, chosen, None, who), who, as_json=as_json)
    with progress_bar("harmonize", quiet=as_json) as report:
        summary = run_harmonize(work, chosen, who, report, archives=archives.access())
    show_harmonized(summary, as_json=as_json)
    if summary.n_rejected > max_rejects:
        raise typer.Exit(SOME_REJECTED)
    return None


@app.command("shard")
@takes_options
def shard_command(
    workspace: WorkspaceOption,
    output: Annotated[str, typer.Argument(help="Folder or fsspec URL of the shard set S.")],
    made_of: ShardOptions,
    *,
    engine: Annotated[EngineOptions, Without(("memory",))],
    append: Annotated[
        bool,
        typer.Option("--append", help="Add cases that came since to a finished set; its shards and splits stay."),
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write WebDataset tars and Parquet manifests. The same command again resumes.

    Exit code 1 where a condition leaves nothing.

    Example: medvar-data shard -w work shards

    Python:

    \b
    from pathlib import Path
    from medvar_data.catalog.recipe import load_recipe
    from medvar_data.shard.plan import ShardSpec
    from medvar_data.shard.run import write_shards
    from medvar_data.storage.store import Store
    from medvar_data.workspace.workspace import Workspace
    workspace, spec = Workspace(Path("work")), ShardSpec(load_recipe("paper"))
    summary = write_shards(workspace, Store("shards"), spec, 1, print)
    """
    spec = made_of.spec()
    if dry_run:
        return print_json(asdict(spec))
    with progress_bar("shard", quiet=as_json) as report:
        summary = write_shards(Workspace(workspace), Store(output), spec, engine.engine(), report, append=append)
    show_shards(summary, as_json=as_json)
    return _refuse_empty(summary, spec.where)


@app.command("reshard")
@takes_options
def reshard_command(
    source: Annotated[str, typer.Argument(help="Folder or fsspec URL of the finished shard set.")],
    output: Annotated[str, typer.Argument(help="Folder or fsspec URL of the new one.")],
    made_of: ReshardOptions,
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a shard set from another one: other codec, size or order of shards, or fewer slices. The same command again resumes.

    Exit code 1 where a condition leaves nothing.

    Example: medvar-data reshard shards shards-zstd --codec zstd

    Python:

    \b
    from medvar_data.shard.reshard import ReshardSpec, reshard
    from medvar_data.storage.store import Store
    spec = ReshardSpec(codec="zstd")
    summary = reshard(Store("shards"), Store("shards-zstd"), spec, 1, print)
    """
    engine, spec = Engine(workers or default_workers(), default_budget()), made_of.spec()
    with progress_bar("reshard", quiet=as_json) as report:
        summary = reshard(Store(source), Store(output), spec, engine, report)
    show_shards(summary, as_json=as_json)
    return _refuse_empty(summary, spec.where)


audit_commands.register(app)


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Argument(help="Folder for everything that the demo makes.")] = Path("demo"),
    data: Annotated[Path | None, typer.Option(help="Folder of real downloads; phantoms where absent.")] = None,
    patients: Annotated[int, typer.Option(help="Phantom patients a collection.", min=3)] = 30,
    workers: WorkersOption = 0,
) -> None:
    """Run the whole data pipeline: scans, ingest, harmonize, shard, stats, verify, contact sheets and a report.

    Example: medvar-data demo demo

    Python:

    \b
    from pathlib import Path
    from medvar_data.demo.demo import DemoSpec, run_data_demo
    result = run_data_demo(DemoSpec(Path("demo")), print)
    """
    spec = DemoSpec(output, data, patients, workers or default_workers())
    show_demo(run_data_demo(spec, lambda line: console.print(line, markup=False)))


def _refuse_empty(summary: ShardSummary, where: str) -> None:
    """Leave with exit code 1 where a condition left nothing; a set of rejected cases alone is no error."""
    if not summary.left_out or any(summary.n_slices.values()):
        return
    n = sum(summary.left_out.values())
    sentence = (
        f"warning: the set is empty: the condition {where or 'that it was made with'} left out {how_many(n, 'case')}, all that there "
        "were; wanted a condition that some slice fulfils. rejects.parquet says of each case why. Change --where or --require, and give "
        "an empty folder."
    )
    errors.print(printable(sentence, MOST_LETTERS), markup=False)
    raise typer.Exit(SOME_REJECTED)


def _folders(sources: list[str]) -> dict[str, Path]:
    """Read NAME=PATH, each name once."""
    folders: dict[str, Path] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        if not equals or not path:
            raise SourceError(f"{source!r} is not NAME=PATH. Example: medvar-data ingest acdc=~/data/ACDC -w work")
        if name in folders:
            raise SourceError(f"{name} is given twice; wanted one folder or archive a collection.")
        folders[name] = Path(path)
    return folders


def _salt(path: Path) -> bytes:
    if not path.is_file():
        fail(f"No salt file at {path}; wanted 64 hexadecimal digits in it, such as `openssl rand -hex 32` prints.")
    text = path.read_bytes().decode("ascii", "replace").strip()
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        fail(f"{path} is not a salt; wanted 64 hexadecimal digits, such as `openssl rand -hex 32` prints.")
    return bytes.fromhex(text)
