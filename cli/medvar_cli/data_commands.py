"""The command `medvar-data`: parse, make one value, call one library function, print what it returned."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import SOME_REJECTED, WRONG, console, fail, print_json, print_table, progress_bar
from medvar_cli.feedback import show_harmonized, show_plan
from medvar_data.audit.contact_sheets import contact_sheets
from medvar_data.audit.reconstruct import measure_losses, reconstruct, write_reconstruction
from medvar_data.audit.trace import trace
from medvar_data.audit.verify import verify
from medvar_data.catalog.collection import Layout, license_text
from medvar_data.catalog.describe import describe_collection
from medvar_data.catalog.load import collection_text, find_collections, load_collections
from medvar_data.catalog.recipe import load_recipe
from medvar_data.demo.demo import DemoSpec, run_data_demo
from medvar_data.engine.engine import Engine, default_workers, parse_part
from medvar_data.engine.memory import default_budget, parse_size
from medvar_data.errors import SourceError
from medvar_data.harmonize.plan import plan_harmonize
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.records import Ingested
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.dataset import read_reject_counts, read_statistics
from medvar_data.sources.archives import AccessSpec, read_passwords
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

app = typer.Typer(
    help="Turn downloaded CT/MR collections into auditable training shards: ingest, harmonize, shard, stats, verify.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WorkspaceOption = Annotated[Path, typer.Option("-w", "--workspace", help="Private folder W that holds the work.")]
RecipeOption = Annotated[str, typer.Option(help="Recipe name, or the path of your own TOML.")]
WorkersOption = Annotated[int, typer.Option(help="Processes; 0 takes one a processor.", min=0)]
SchedulerOption = Annotated[str, typer.Option(help="Dask scheduler that does the work: its address or scheduler file.")]
PartOption = Annotated[str, typer.Option(help="Do only part I of N, as in 3/8; the others are other jobs'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration and stop.")]
PasswordOption = Annotated[
    Path | None, typer.Option(help="Text file with the passwords of encrypted archives, one a line. Stored nowhere.")
]
ScratchOption = Annotated[
    Path | None,
    typer.Option(
        help="Where to unpack .tar.gz, .7z and nested archives for the run; the temporary folder where absent."
    ),
]
ScratchLimitOption = Annotated[
    float | None, typer.Option(help="GB that may be unpacked at one time; the free space but 1 GB where absent.", min=0)
]


@app.command()
def collections(as_json: JsonOption = False) -> None:
    """List the collections that medvar knows.

    Example: medvar-data collections

    Python: medvar_data.catalog.load.load_collections()
    """
    specs = load_collections()
    if as_json:
        print_json([asdict(s) for s in specs])
        return
    rows = [
        (
            s.name,
            s.region,
            _modalities(s.modality, s.layouts),
            s.n_expected,
            license_text(s.license, s.license_confirmed),
            s.title,
        )
        for s in specs
    ]
    print_table("Collections", ("name", "region", "modality", "cases", "license", "title"), rows)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="Collection, family, template, or path of your own TOML.")],
    as_toml: Annotated[bool, typer.Option("--toml", help="Print the TOML itself, to start your own from.")] = False,
) -> None:
    """Tell how to get a collection, what is expected where, and what is unconfirmed.

    Example: medvar-data describe acdc

    Python: medvar_data.catalog.describe.describe_collection(spec)
    """
    for spec in find_collections(name):
        if as_toml:
            print(collection_text(name if name.endswith(".toml") else spec.name), end="")
        else:
            console.print(describe_collection(spec), markup=False)


@app.command()
def ingest(
    sources: Annotated[
        list[str], typer.Argument(help="NAME=PATH: a collection (or your TOML) and its folder or archive.")
    ],
    workspace: WorkspaceOption,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the salt of patient hashes, 64 hex digits; without it a new workspace makes its own."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes, a source each; 0 takes one a processor.", min=0)] = 1,
    scheduler: SchedulerOption = "",
    password_file: PasswordOption = None,
    scratch: ScratchOption = None,
    scratch_limit: ScratchLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the cases of downloaded collections; headers are judged, no voxel is read.

    Example: medvar-data ingest acdc=~/data/ACDC msd=~/data/msd -w work

    Python: medvar_data.ingest.run.run_ingest({"acdc": Path("~/data/ACDC")}, Workspace(Path("work")))
    """
    pairs: dict[str, Path] = {}
    for name, path in map(_pair, sources):
        if name in pairs:
            raise SourceError(f"{name} is given twice; wanted one folder or archive a collection.")
        pairs[name] = path
    salt = _salt(salt_file) if salt_file else None
    archives = _archives(password_file, scratch, scratch_limit)
    results = list(run_ingest(pairs, Workspace(workspace), salt, _engine(workers, scheduler), archives))
    if as_json:
        print_json([_ingest_note(r) for r in results])
        return
    absent = [r.collection for r in results if not r.n_found]
    rows = [
        (r.collection, c.layout, c.found, *(_promised(c.expected, c.found)), c.unlabelled)
        for r in results
        if r.n_found
        for c in r.counts
    ]
    print_table("Found", ("collection", "layout", "found", "expected", "missing", "no label"), rows)
    rejects = [(x.collection, x.case, x.reason.value, x.detail) for r in results for x in r.rejects]
    if rejects:
        print_table("\nRejected", ("collection", "case", "reason", "detail"), rejects)
        console.print(f"{workspace / 'rejected'} names their files", markup=False)
    if absent:
        console.print(f"\nNothing found of {', '.join(absent)}", markup=False)
    for result in results:
        for note in result.notes:
            console.print(f"note: {result.collection}: {note}", markup=False)


@app.command()
def harmonize(
    workspace: WorkspaceOption,
    recipe: RecipeOption = "paper",
    workers: WorkersOption = 0,
    memory: Annotated[str, typer.Option(help="For all processes together, such as 8GB; 80 % where absent.")] = "",
    scheduler: SchedulerOption = "",
    part: PartOption = "1/1",
    max_rejects: Annotated[int, typer.Option(help="Exit with 1 where more cases are rejected.", min=0)] = 1_000_000,
    password_file: PasswordOption = None,
    scratch: ScratchOption = None,
    scratch_limit: ScratchLimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring every ingested case to square 8-bit slices. The same command again resumes.

    Example: medvar-data harmonize -w work --recipe paper

    Python: medvar_data.harmonize.run.run_harmonize(Workspace(Path("work")), load_recipe("paper"), 4, print)
    """
    chosen = load_recipe(recipe)
    process = Workspace(workspace)
    engine = _engine(workers, scheduler, part, memory)
    if dry_run:
        show_plan(chosen, plan_harmonize(process, chosen, None, engine), engine, as_json=as_json)
        return
    archives = _archives(password_file, scratch, scratch_limit)
    with progress_bar("harmonize", quiet=as_json) as report:
        summary = run_harmonize(process, chosen, engine, report, archives=archives)
    show_harmonized(summary, as_json=as_json)
    if summary.n_rejected > max_rejects:
        raise typer.Exit(SOME_REJECTED)


@app.command()
def shard(
    workspace: WorkspaceOption,
    output: Annotated[str, typer.Argument(help="Folder or fsspec URL of the shard set S.")],
    recipe: RecipeOption = "paper",
    val: Annotated[float, typer.Option(help="Fraction of patients for validation.", min=0, max=1)] = 0.1,
    test: Annotated[float, typer.Option(help="Fraction of patients for test.", min=0, max=1)] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the split and of the order of slices.")] = 0,
    slices_per_shard: Annotated[int, typer.Option(help="Upper bound.", min=1)] = 1024,
    workers: WorkersOption = 0,
    scheduler: SchedulerOption = "",
    part: PartOption = "1/1",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write WebDataset tars and Parquet manifests. The same command again resumes.

    Example: medvar-data shard -w work shards

    Python: medvar_data.shard.run.write_shards(Workspace(Path("work")), Store("shards"), ShardSpec(load_recipe("paper")), 4, print)
    """
    spec = ShardSpec(load_recipe(recipe), SplitSpec(val, test, seed), seed, slices_per_shard)
    if dry_run:
        print_json(asdict(spec))
        return
    with progress_bar("shard", quiet=as_json) as report:
        summary = write_shards(Workspace(workspace), Store(output), spec, _engine(workers, scheduler, part), report)
    if as_json:
        print_json(asdict(summary))
        return
    counts = ", ".join(f"{split} {n:,}" for split, n in summary.n_slices.items())
    console.print(
        f"{summary.n_shards:,} shards ({summary.n_reused:,} were finished before): {sum(summary.n_slices.values()):,} slices "
        f"of {summary.n_cases:,} cases ({counts}); {summary.n_rejected:,} cases rejected"
    )
    if summary.n_elsewhere:
        console.print(f"{summary.n_elsewhere:,} shards are left to other parts; the tables come with the last of them")


@app.command()
def stats(
    shards: Annotated[str, typer.Argument(help="Shard set S.")],
    as_json: JsonOption = False,
) -> None:
    """Print per-dataset statistics from the Parquet tables.

    Example: medvar-data stats shards

    Python: pandas.read_parquet("shards/stats.parquet")
    """
    rows = read_statistics(Store(shards))
    if as_json:
        print_json(rows)
        return
    columns = ("collection", "modality", "region", "sequence", "split", "patients", "cases", "labelled_cases", "slices",
               "in_plane_mm_median", "through_plane_mm_median", "foreground_fraction_mean", "license")  # fmt: skip
    names = ("collection", "mod.", "region", "sequence", "split", "patients", "cases", "labelled", "slices", "mm", "step mm",
             "foreground", "license")  # fmt: skip
    shown = [{**row, "license": license_text(row["license"], row["license_confirmed"])} for row in rows]
    print_table("Statistics", names, [tuple(row[c] for c in columns) for row in shown])
    rejects = read_reject_counts(Store(shards))
    if rejects:
        print_table("\nRejected", ("collection", "reason", "cases"), rejects)


@app.command("verify")
def verify_command(
    shards: Annotated[str, typer.Argument(help="Shard set S.")],
    as_json: JsonOption = False,
) -> None:
    """Check every digest, offset, count and split of a shard set. Exit code 2 where something is wrong.

    Example: medvar-data verify shards

    Python: medvar_data.audit.verify.verify(Store("shards"))
    """
    with progress_bar("verify", quiet=as_json) as report:
        result = verify(Store(shards), report)
    if as_json:
        print_json(asdict(result))
    else:
        for finding in result.findings:
            console.print(f"wrong: {finding}", markup=False)
        verdict = f"{len(result.findings)} things are wrong" if result.findings else "sound"
        console.print(f"{result.n_shards:,} shards, {result.n_slices:,} slices, {result.n_cases:,} cases: {verdict}")
    if result.findings:
        raise typer.Exit(WRONG)


@app.command("trace")
def trace_command(
    shards: Annotated[str, typer.Argument(help="Shard set S.")],
    key: Annotated[str, typer.Argument(help="Key of a slice, such as acdc-patient001-frame01-z0004.")],
    workspace: Annotated[Path | None, typer.Option("-w", "--workspace", help="To go back to the source files.")] = None,
    password_file: PasswordOption = None,
    scratch: ScratchOption = None,
    scratch_limit: ScratchLimitOption = None,
) -> None:
    """Show where a slice comes from: its licence, every number that made it and, with -w, its file.

    Example: medvar-data trace shards acdc-patient001-frame01-z0004 -w work

    Python: medvar_data.audit.trace.trace(Store("shards"), key, Workspace(Path("work")))
    """
    archives = _archives(password_file, scratch, scratch_limit)
    print_json(trace(Store(shards), key, Workspace(workspace) if workspace else None, archives))


@app.command("reconstruct")
def reconstruct_command(
    shards: Annotated[str, typer.Argument(help="Shard set S.")],
    case: Annotated[str, typer.Argument(help="A slice's key without its end, such as acdc-patient001-frame01.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The image, .nii.gz; its mask goes beside it.")],
    workspace: Annotated[Path | None, typer.Option("-w", "--workspace", help="To measure what was lost.")] = None,
    password_file: PasswordOption = None,
    scratch: ScratchOption = None,
    scratch_limit: ScratchLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a case as NIfTI on its source grid; with -w, measure the loss of each step against the source.

    Example: medvar-data reconstruct shards acdc-patient001-frame01 -o case.nii.gz -w work

    Python: medvar_data.audit.reconstruct.reconstruct(Store("shards"), "acdc-patient001-frame01")
    """
    store = Store(shards)
    rebuilt = reconstruct(store, case)
    files = write_reconstruction(rebuilt, output)
    archives = _archives(password_file, scratch, scratch_limit)
    losses = measure_losses(store, rebuilt, Workspace(workspace), archives) if workspace else None
    if as_json:
        print_json({"image": str(files[0]), "mask": str(files[1]), "losses": asdict(losses) if losses else None})
        return
    console.print(f"{files[0]}\n{files[1]}", markup=False)
    if losses:
        rows = [
            ("window", losses.window),
            ("resampling", losses.resampling),
            ("cleanup around the body", losses.cleanup),
            ("8 bits", losses.quantization),
            ("together", losses.image_error),
        ]
        console.print("\nMean absolute difference inside the body on kept slices, HU or the scanner's unit:")
        print_table("", ("step", "loss"), rows)
        console.print("\nDice of the mask against the source label:")
        print_table("", ("label", "Dice"), sorted(losses.dice.items()))


@app.command()
def sheets(
    shards: Annotated[str, typer.Argument(help="Shard set S.")],
    output: Annotated[Path, typer.Argument(help="Folder for the pictures.")],
    tiles: Annotated[int, typer.Option(help="Slices a sheet.", min=1)] = 24,
) -> None:
    """Write a contact sheet a collection.

    Example: medvar-data sheets shards pictures

    Python: medvar_data.audit.contact_sheets.contact_sheets(Store("shards"), Path("pictures"))
    """
    for sheet in contact_sheets(Store(shards), output, tiles):
        console.print(f"{sheet.path}  {sheet.n_slices} slices", markup=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(help="Folder for everything that the demo makes.")] = Path("demo"),
    data: Annotated[Path | None, typer.Option(help="Folder of real downloads; phantoms where absent.")] = None,
    patients: Annotated[int, typer.Option(help="Phantom patients a collection.", min=3)] = 30,
    workers: WorkersOption = 0,
) -> None:
    """Run the whole data road: scans, ingest, harmonize, shard, stats, verify, contact sheets and a report.

    Example: medvar-data demo demo

    Python: medvar_data.demo.demo.run_data_demo(DemoSpec(Path("demo")), print)
    """
    spec = DemoSpec(output, data, patients, workers or default_workers())
    result = run_data_demo(spec, lambda line: console.print(line, markup=False))
    columns = ("collection", "found", "kept", "rejected", "slices", "reasons")
    print_table("\nCollections", columns, [tuple(asdict(row)[c] for c in columns) for row in result.rows])
    console.print(f"\nReport: {result.report}", markup=False)


def _promised(expected: int, found: int) -> tuple[int | str, int | str]:
    """What a publisher promises and what of it is missing; dashes where nobody does."""
    return (expected, max(0, expected - found)) if expected else ("–", "–")


def _modalities(modality: str, layouts: tuple[Layout, ...]) -> str:
    return " ".join(sorted({layout.modality or modality for layout in layouts}))


def _pair(source: str) -> tuple[str, Path]:
    name, equals, path = source.partition("=")
    if not equals or not path:
        raise SourceError(f"{source!r} is not NAME=PATH. Example: medvar-data ingest acdc=~/data/ACDC -w work")
    return name, Path(path)


def _archives(password_file: Path | None, scratch: Path | None, scratch_limit: float | None) -> AccessSpec:
    passwords = read_passwords(password_file) if password_file else ()
    return AccessSpec(passwords, scratch, None if scratch_limit is None else int(scratch_limit * 1e9))


def _salt(path: Path) -> bytes:
    if not path.is_file():
        fail(f"No salt file at {path}; wanted 64 hexadecimal digits in it, such as `openssl rand -hex 32` prints.")
    text = path.read_bytes().decode("ascii", "replace").strip()
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        fail(f"{path} is not a salt; wanted 64 hexadecimal digits, such as `openssl rand -hex 32` prints.")
    return bytes.fromhex(text)


def _ingest_note(result: Ingested) -> dict[str, object]:
    return {
        "collection": result.collection,
        "kept": len(result.cases),
        "layouts": [asdict(c) for c in result.counts],
        "rejects": [{k: v for k, v in asdict(r).items() if k != "files"} for r in result.rejects],
        "notes": list(result.notes),
    }


def _engine(workers: int, scheduler: str = "", part: str = "1/1", memory: str = "") -> Engine:
    n_bytes = parse_size(memory) if memory else default_budget()
    return Engine(workers or default_workers(), n_bytes, scheduler, parse_part(part))
