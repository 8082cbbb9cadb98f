"""Cut harmonized cases into a shard set: split by patient (copies of a scan together), shuffle all slices, write tars, then the tables.

The plan (which slice lies where) is a pure function of the finished cases, the condition, the seed and the split; so shards can be
written in any order by any number of processes, and a killed run goes on where it stopped. A slice takes a few numbers of memory;
what is known of it lies in the plan's files (`shard.plan_files`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, Int32, UInt64

from medvar_data.catalog.recipe import Recipe
from medvar_data.engine.engine import Engine, as_engine
from medvar_data.errors import WorkspaceError
from medvar_data.harmonize.dependencies import PIPELINE_VERSION
from medvar_data.naming import how_many
from medvar_data.records import Progress, Reject
from medvar_data.shard.append import fresh_slices, held_cases, kept_splits, next_numbers, open_earlier
from medvar_data.shard.choose import allowed_alone, chosen_slices, left_of_cases, left_out_by_condition
from medvar_data.shard.collections import collections_table, with_column
from medvar_data.shard.duplicates import SLICE_INPUTS, edges_table
from medvar_data.shard.grouping import Grouping, group_cases, left_out
from medvar_data.shard.manifests import Earlier, Provenance, SetContents, write_manifests
from medvar_data.shard.plan import NONE_YET, ShardSpec, ShardTask, cut_shards, order_keys, plan_digest
from medvar_data.shard.plan_files import CASES, SLICES, batches, mapped, settle, write_rows
from medvar_data.shard.rows import (
    PLANNED_SCHEMA,
    KeptCase,
    Numbering,
    case_row,
    finished_cases,
    measured_row,
    planned_slices,
)
from medvar_data.shard.terms import strictest_terms
from medvar_data.shard.write import SAID_BY_CASE, write_shard
from medvar_data.shard.write_missing import missing_shards, write_missing
from medvar_data.shardset.dataset import DATASET_FILE, is_shard_set, read_dataset
from medvar_data.shardset.schema import CASES_SCHEMA, SPLITS, case_keys
from medvar_data.storage.parquet import table_from_rows
from medvar_data.storage.store import Store, remove_partials, scratch_path
from medvar_data.workspace.workspace import Workspace


@dataclass(frozen=True)
class ShardSummary:
    """What was written."""

    digest: str  # "" where shards of other parts are missing, and the set is not complete
    n_slices: dict[str, int]
    n_shards: int
    n_cases: int
    n_rejected: int
    n_reused: int  # shards found finished
    n_elsewhere: int  # shards left to other parts and not finished yet
    left_out: dict[str, int]  # cases that the condition left out, by collection


@dataclass(frozen=True, eq=False)
class _Plan:
    """What the set will hold, and which shards are to be written for it."""

    tasks: list[ShardTask]
    contents: SetContents
    numbered: pa.Table  # rows of cases.parquet by the case's number

    def summary(self, n_done: int, n_missing: int, digest: str) -> ShardSummary:
        """Tell what was written."""
        kept, earlier = self.contents.cases, self.contents.earlier
        n_earlier = sum(len(split.shards) for split in earlier.dataset.splits.values()) if earlier else 0
        counts = {split: kept.filter(pc.equal(kept["split"], split))["n_kept"].to_numpy() for split in SPLITS}
        return ShardSummary(
            digest=digest,
            n_slices={split: int(n.sum()) for split, n in counts.items()},
            n_shards=len(self.tasks) + n_earlier,
            n_cases=kept.num_rows,
            n_rejected=len(self.contents.rejects),
            n_reused=n_done + n_earlier,
            n_elsewhere=n_missing,
            left_out=left_out_by_condition(self.contents.rejects),
        )


def write_shards(
    workspace: Workspace,
    store: Store,
    spec: ShardSpec,
    engine: Engine | int,
    progress: Callable[[Progress], None],
    *,
    append: bool = False,
) -> ShardSummary:
    """Write a shard set.

    With `append` the store holds a finished set of this workspace, made with the same spec (the size of shards may be another).
    Cases that it lacks go into further shards; no finished shard is touched, no patient changes its split. Where such a run is
    killed, the set stays what it was, with shards beside it that no table names, until the tables are replaced at its end; for
    the moment between the first of them and dataset.json the set is refused as damaged. The same command again completes it.

    Args:
        workspace: with every ingested case harmonized under `spec.recipe`.
        store: where the set goes; an unfinished run of the same plan is completed.
        spec: recipe, split, seed, shard size, codec and condition.
        engine: who does the work; a number means so many processes. A part writes its shards alone, and the tables
            where no shard is missing any more.
        progress: called at the start and after every shard.
        append: add to the set that is there.

    Raises:
        WorkspaceError: cases are not harmonized yet, the store holds another set, or a case to be kept has changed.
        ShardSetError: there is no finished set to add to.
    """
    engine = as_engine(engine)
    _refuse_workspace(store, workspace)
    kept, rejects = _finished_cases(workspace, spec.recipe)
    earlier = open_earlier(workspace, store, spec) if append else None
    for folder in (workspace.path / "shards", *filter(None, [store.folder])):
        remove_partials(folder)
    with scratch_path(workspace.path / "shards" / SLICES) as slices:
        plan = _plan(workspace, (kept, rejects), earlier, (store, spec), slices, engine)
        missing = missing_shards(plan.tasks, store)
        if missing:
            _place_plan(slices, plan, Path(missing[0].plan))
    if missing and not append:
        store.remove(DATASET_FILE)  # of an earlier set under the same names: it is not complete any more
    n_done = len(plan.tasks) - len(missing)
    n_missing = write_missing(write_shard, missing, n_done, store, engine, progress)
    digest = "" if n_missing else write_manifests(store, plan.contents, _provenance(workspace, spec))
    if not n_missing:
        for path in {Path(task.plan) / name for task in plan.tasks[:1] for name in (SLICES, CASES)}:
            path.unlink(missing_ok=True)
    return plan.summary(n_done, n_missing, digest)


def _finished_cases(workspace: Workspace, recipe: Recipe) -> tuple[list[KeptCase], list[Reject]]:
    """Read every case's outcome; every ingested case must have one, under this recipe."""
    found = finished_cases(workspace, recipe)
    if found.n_missing:
        raise WorkspaceError(
            f"{how_many(found.n_missing, 'case')} {'is' if found.n_missing == 1 else 'are'} not harmonized with recipe {recipe.name!r}. "
            f"Run `medvar-data harmonize -w {workspace.path}` with the same --recipe first."
        )
    return found.kept, found.rejects


def _plan(
    workspace: Workspace,
    found: tuple[Sequence[KeptCase], Sequence[Reject]],
    earlier: Earlier | None,
    target: tuple[Store, ShardSpec],
    path: Path,
    engine: Engine,
) -> _Plan:
    """Plan the set; refuses a store that holds anything else.

    Args:
        workspace: whose cases they are.
        found: kept and rejected cases.
        earlier: the set that is added to.
        target: where the set goes, and what it is made of.
        path: where the plan's slices are written.
        engine: who compares scans.
    """
    (kept, rejects), (store, spec) = found, target
    ids = workspace.condition_ids({k.case.condition for k in kept})
    case_of, order = _write_slices(path, kept, spec.seed)
    cases, grouping = _grouped(
        kept, Numbering(ids, workspace), spec, earlier, mapped(path).select(SLICE_INPUTS), engine
    )
    collections = collections_table(workspace)
    numbered = cases.append_column("__case", pa.array(np.arange(len(kept), dtype=np.int32)))
    asked = (spec.where, mapped(path).drop_columns("__row"), numbered, collections, ["__case"])
    chosen, alone = chosen_slices(*asked), np.bincount(case_of[allowed_alone(*asked)], minlength=len(kept))
    duplicates = _duplicates(kept, grouping, np.bincount(case_of[chosen], minlength=len(kept)), earlier, spec)
    chosen &= ~np.isin(case_of, list(duplicates))
    counts = np.bincount(case_of[chosen], minlength=len(kept))
    cases, not_selected = left_of_cases(cases, collections, counts, spec.where, alone, duplicates)
    left = cases.filter(pc.greater(cases["n_kept"], 0))
    fresh = chosen
    if earlier:
        fresh = fresh_slices(held_cases(earlier, cases, batches(path), chosen), case_of, chosen)
    shards = cut_shards(_splits_of(cases, case_of), order, fresh, spec.slices_per_shard, _first(earlier))
    _refuse_other_set(store, {name for name, _ in shards}, earlier, workspace)
    tasks = _tasks(shards, _contents(kept, cases, spec), spec, store, workspace)
    edges = edges_table(grouping.links, cases)
    return _Plan(tasks, SetContents(tasks, left, edges, collections, [*rejects, *not_selected], earlier), cases)


def _grouped(
    kept: Sequence[KeptCase],
    numbering: Numbering,
    spec: ShardSpec,
    earlier: Earlier | None,
    slices: pa.Table,
    engine: Engine,
) -> tuple[pa.Table, Grouping]:
    """Make the rows of cases.parquet, each patient in one split; where a set has the patient already, it stays."""
    measured = table_from_rows((measured_row(k, numbering) for k in kept), CASES_SCHEMA)
    known = kept_splits(earlier, numbering.workspace, (k.case.group for k in kept)) if earlier else {}
    # by plain digests, so that copies of public files are found
    grouping = group_cases(kept, measured, slices, spec, known, engine, numbering.workspace.comparisons)
    cases = table_from_rows((case_row(k, numbering) for k in kept), CASES_SCHEMA)
    cases = strictest_terms(cases, ((link.first, link.second) for link in grouping.links))
    return with_column(cases, "split", grouping.splits), grouping


def _duplicates(
    kept: Sequence[KeptCase],
    grouping: Grouping,
    counts: Int[np.ndarray, " cases"],
    earlier: Earlier | None,
    spec: ShardSpec,
) -> dict[int, str]:
    """The cases that are left out since the set holds the same scan; `counts` are their chosen slices."""
    there = set(case_keys(earlier.cases)) if earlier else set()
    held = np.array([(k.case.collection, k.case.case) in there for k in kept], dtype=np.bool_)
    return left_out(grouping, kept, counts, held, drop_duplicates=spec.drop_duplicates)


def _write_slices(
    path: Path, kept: Sequence[KeptCase], seed: int
) -> tuple[Int32[np.ndarray, " slices"], UInt64[np.ndarray, "slices 2"]]:
    """Write the plan's slices, case by case; gives the case of each and its place in the order."""
    counts, orders = [], [np.empty((0, 2), dtype=np.uint64)]

    def tables() -> Iterator[pa.Table]:
        for number, case in enumerate(kept):
            table = planned_slices(case, number)
            counts.append(table.num_rows)
            orders.append(order_keys(table["key"].to_pylist(), seed))
            yield table

    write_rows(path, tables(), PLANNED_SCHEMA)
    return np.repeat(np.arange(len(kept), dtype=np.int32), counts), np.concatenate(orders)


def _splits_of(cases: pa.Table, case_of: Int32[np.ndarray, " slices"]) -> np.ndarray:
    numbers = [SPLITS.index(split) for split in cases["split"].to_pylist()]
    return np.array(numbers, dtype=np.int8)[case_of] if numbers else np.empty(0, dtype=np.int8)


def _contents(kept: Sequence[KeptCase], cases: pa.Table, spec: ShardSpec) -> Iterator[bytes]:
    """What the numbers of slices stand for: the condition, and of each case what its rows say and which slices it has."""
    yield spec.where.encode()
    for case, row in zip(kept, cases.select(SAID_BY_CASE).to_pylist(), strict=True):
        yield json.dumps([row, case.rows_sha256], sort_keys=True).encode()


def _tasks(
    shards: Sequence[tuple[str, Int32[np.ndarray, " _"]]],
    contents: Iterator[bytes],
    spec: ShardSpec,
    store: Store,
    workspace: Workspace,
) -> list[ShardTask]:
    digest = plan_digest(shards, spec.codec, contents)
    folder = str(workspace.path / "shards" / sha256(f"{digest} {store.url}".encode()).hexdigest()[:16])
    return [
        ShardTask(name, rows, folder, str(workspace.path), spec.codec, store.url, folder, digest)
        for name, rows in shards
    ]


def _place_plan(slices: Path, plan: _Plan, folder: Path) -> None:
    """Put the plan's files where every process finds them."""
    settle(slices, folder / SLICES)
    with scratch_path(folder / CASES) as path:
        write_rows(path, [plan.numbered], CASES_SCHEMA)
        settle(path, folder / CASES)


def _provenance(workspace: Workspace, spec: ShardSpec) -> Provenance:
    return Provenance(
        image_side=spec.recipe.side,
        codec=spec.codec,
        recipe=asdict(spec.recipe),
        split=asdict(spec.split),
        seed=spec.seed,
        salt_sha256=workspace.salt_digest(),
        pipeline=PIPELINE_VERSION,
        where=spec.where,
        drop_duplicates=spec.drop_duplicates,
    )


def _first(earlier: Earlier | None) -> dict[str, int]:
    return next_numbers(earlier.dataset) if earlier else dict(NONE_YET)


def _refuse_workspace(store: Store, workspace: Workspace) -> None:
    place = Path(store.url).expanduser().resolve()
    if "://" not in store.url and (place == workspace.path.resolve() or workspace.path.resolve() in place.parents):
        raise WorkspaceError(
            f"{store.url} lies in the workspace, which is private; wanted a folder of its own for what may be published."
        )


def _refuse_other_set(store: Store, wanted: set[str], earlier: Earlier | None, workspace: Workspace) -> None:
    if is_shard_set(store) and read_dataset(store).salt_sha256 != workspace.salt_digest():
        raise WorkspaceError(f"{store.url} holds the shard set of another workspace. Give an empty folder.")
    there = {name for name in store.names() if name.endswith(".tar")}
    if earlier:
        wanted = wanted | {shard.name for split in earlier.dataset.splits.values() for shard in split.shards}
    if other := there - wanted:
        way_on = "Delete them." if earlier else "Give an empty folder."
        raise WorkspaceError(f"{store.url} holds {len(other)} shards of another set, such as {min(other)}. {way_on}")
