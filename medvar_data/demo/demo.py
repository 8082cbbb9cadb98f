"""Run the data pipeline end to end on phantoms or real downloads, and leave tables, contact sheets, a report and a page to look at.

Two shard sets come out: `shards` by the recipe `paper` (256 x 256), and `shards-64` by the recipe `demo` for a model that
two cores can train.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from medvar_data.audit.contact_sheets import contact_sheets
from medvar_data.audit.verify import verify
from medvar_data.catalog.collection import CollectionSpec, license_text
from medvar_data.catalog.load import load_collections
from medvar_data.catalog.recipe import load_recipe
from medvar_data.demo.phantoms import write_phantoms
from medvar_data.errors import ShardSetError, SourceError
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.find_cases import ingest
from medvar_data.ingest.run import run_ingest
from medvar_data.naming import how_many
from medvar_data.records import Reject
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.dataset import read_statistics
from medvar_data.sources.tree import Tree, open_tree
from medvar_data.storage.html import assemble, figure, table, write_section
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

PHANTOM_SALT = sha256(b"phantoms have no privacy").digest()
RECIPES = {"paper": "", "demo": "-64"}  # recipe -> suffix of its folders
HELD_OUT = 0.15


@dataclass(frozen=True)
class DemoSpec:
    """What to run the demo on."""

    output: Path
    data: Path | None = None  # a folder of downloads; phantoms where None
    patients: int = 30  # phantom patients a collection
    workers: int = 1


@dataclass(frozen=True)
class DemoRow:
    """One collection in the demo's table."""

    collection: str
    found: int
    kept: int
    rejected: int
    slices: int
    reasons: str


@dataclass(frozen=True)
class DemoResult:
    """What the demo left behind."""

    rows: tuple[DemoRow, ...]
    shards: dict[str, Path]
    report: Path
    data_report: Path


def run_data_demo(spec: DemoSpec, say: Callable[[str], None]) -> DemoResult:
    """Run ingest, harmonize, shard, verify, the pictures and the report.

    Args:
        spec: where from and where to.
        say: called with a line of text after each stage.
    """
    started = time.monotonic()

    def tell(line: str) -> None:
        say(f"[{time.monotonic() - started:5.1f} s] {line}")

    sources = _sources(spec, tell)
    shards = {}
    for recipe, suffix in RECIPES.items():
        shards[recipe] = _pipeline(spec, recipe, suffix, sources, tell)
    sheets = contact_sheets(Store(str(shards["paper"])), spec.output / "sheets")
    tell(f"{len(sheets)} contact sheets in {spec.output / 'sheets'}")
    data_report = _report(spec, shards["paper"])
    tell(f"report of the data in {data_report}")
    rows = _rows(Workspace(spec.output / "work"))
    parts = [
        "<h2>Data</h2>",
        f'<p><a href="{data_report.name}">The report of the data set</a>: what is in it, from where, and what was left out.</p>',
        _counts(rows),
    ]
    parts += ["<h3>Slices as they go into training</h3>"]
    parts += [
        figure(f"sheets/{s.path.name}", f"{s.collection}: {s.n_slices} slices, outlines are the labels") for s in sheets
    ]
    parts += ["<h3>Statistics</h3>", _statistics(shards["paper"])]
    write_section(spec.output, "1-data", "".join(parts))
    what = "Real scans" if spec.data else "Phantoms: scans synthesised by code, no patient's data"
    report = assemble(spec.output, "medvar demo", f"{what}, from the published folder layouts to training shards.")
    return DemoResult(tuple(rows), shards, report, data_report)


def _counts(rows: list[DemoRow]) -> str:
    columns = ("collection", "found", "kept", "rejected", "slices", "why rejected")
    return table(columns, [(r.collection, r.found, r.kept, r.rejected, r.slices, r.reasons) for r in rows])


def _report(spec: DemoSpec, shards: Path) -> Path:
    from medvar_data.audit.report import write_report  # slow to import

    return write_report(str(shards), spec.output / "report.html")


def _sources(spec: DemoSpec, tell: Callable[[str], None]) -> dict[str, Path]:
    """Write phantoms, or find out which collections a folder of downloads holds."""
    if spec.data is None:
        folders = write_phantoms(spec.output / "phantoms", seed=0, patients=spec.patients, workers=spec.workers)
        tell(f"phantoms of {len(folders)} collections in {spec.output / 'phantoms'}")
        return folders
    tree = open_tree(spec.data)
    found = {s.name: spec.data for s in load_collections() if _holds(s, tree)}
    if not found:
        raise SourceError(f"{spec.data} holds no collection that medvar knows. `medvar-data collections` lists them.")
    tell(f"{spec.data} holds {', '.join(found)}")
    return found


def _holds(spec: CollectionSpec, tree: Tree) -> bool:
    try:
        ingest(spec, replace(tree, broken=()), b"")
    except SourceError:
        return False
    return True


def _pipeline(
    spec: DemoSpec, recipe_name: str, suffix: str, sources: dict[str, Path], tell: Callable[[str], None]
) -> Path:
    recipe = load_recipe(recipe_name)
    workspace = Workspace(spec.output / f"work{suffix}")
    if spec.data is None:
        workspace.set_salt(PHANTOM_SALT)
    found = sum(r.n_found for r in run_ingest(sources, workspace))
    tell(f"ingest: {how_many(found, 'case')} found in {how_many(len(workspace.collections()), 'collection')}")
    summary = run_harmonize(workspace, recipe, spec.workers, lambda _: None)
    tell(
        f"harmonize ({recipe.side} x {recipe.side}): {summary.n_kept} kept, {summary.n_rejected} rejected, {how_many(summary.n_slices, 'slice')}"
    )
    store = Store(str(spec.output / f"shards{suffix}"))
    split = SplitSpec(val=HELD_OUT, test=HELD_OUT)
    shards = write_shards(workspace, store, ShardSpec(recipe, split), spec.workers, lambda _: None)
    check = verify(store)
    if check.findings:
        raise ShardSetError(f"{store.url} is not sound: {check.findings[0]}")
    tell(f"shard: {how_many(shards.n_shards, 'shard')}, {shards.n_slices}; verified")
    return Path(store.url)


def _rows(workspace: Workspace) -> list[DemoRow]:
    rows = []
    for name in workspace.collections():
        rejects: list[Reject] = [*workspace.ingest_rejects(name), *workspace.harmonize_rejects(name)]
        kept, slices = workspace.kept(name)
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(Counter(r.reason.value for r in rejects).items()))
        rows.append(DemoRow(name, kept + len(rejects), kept, len(rejects), slices, reasons))
    return rows


def _statistics(shards: Path) -> str:
    columns = ("collection", "modality", "region", "sequence", "split", "patients", "cases", "slices",
               "in_plane_mm_median", "through_plane_mm_median", "foreground_fraction_mean", "license")  # fmt: skip
    names = ("collection", "modality", "region", "sequence", "split", "patients", "cases", "slices", "pixel mm", "step mm",
             "foreground", "licence")  # fmt: skip
    rows = read_statistics(Store(str(shards)))
    for row in rows:
        row["license"] = license_text(row["license"], row["license_confirmed"])
    return table(names, [[row[c] for c in columns] for row in rows])
