"""Cut harmonized cases into a shard set: split by patient, shuffle all slices, write tars, then the tables.

The plan (which slice lies where) is a pure function of the finished cases, the seed and the split; so shards can be
written in any order by any number of processes, and a killed run goes on where it stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from medvar_data.catalog.recipe import Recipe
from medvar_data.engine.engine import Engine, as_engine, run_tasks
from medvar_data.errors import WorkspaceError
from medvar_data.harmonize.dependencies import wanted_inputs
from medvar_data.records import Progress, Reject
from medvar_data.shard.datasheet import origins_of
from medvar_data.shard.manifests import SetContents, write_manifests
from medvar_data.shard.plan import ShardSpec, ShardTask, plan_digest, plan_shards
from medvar_data.shard.rows import KeptCase, Numbering, PlannedSlice, case_row, planned_slices
from medvar_data.shard.splits import assign_splits
from medvar_data.shard.write import is_written, raise_killed, write_shard
from medvar_data.shardset.dataset import DATASET_FILE, is_shard_set, read_dataset
from medvar_data.shardset.schema import SPLITS
from medvar_data.storage.store import Store, remove_partials
from medvar_data.workspace.case_file import read_case_file
from medvar_data.workspace.workspace import Workspace

SLICE_MEMORY_BYTES = 400_000  # of a slice on its way: its pictures twice, its row


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


def write_shards(
    workspace: Workspace, store: Store, spec: ShardSpec, engine: Engine | int, progress: Callable[[Progress], None]
) -> ShardSummary:
    """Write a shard set.

    Args:
        workspace: with every ingested case harmonized under `spec.recipe`.
        store: where the set goes; an unfinished run of the same plan is completed.
        spec: recipe, split, seed and shard size.
        engine: who does the work; a number means so many processes. A part writes its shards alone, and the tables
            where no shard is missing any more.
        progress: called at the start and after every shard.

    Raises:
        WorkspaceError: cases are not harmonized yet, or the store holds another set.
    """
    kept, rejects = _finished_cases(workspace, spec.recipe)
    splits = assign_splits(((k.case.collection, k.case.group) for k in kept), spec.split)
    ids = workspace.condition_ids({k.case.condition for k in kept})
    numbering = Numbering(splits, ids, workspace)
    slices = [planned for k in kept for planned in planned_slices(k, numbering)]
    tasks = _tasks(slices, spec, store, workspace)
    n_done, missing = _write_missing(tasks, store, as_engine(engine), progress)
    if not missing:
        rows = [case_row(k, numbering) for k in kept]
        origins = origins_of(k.spec for k in kept)
        write_manifests(store, SetContents(tasks, rows, rejects, ids, workspace.salt_digest(), origins), spec)
    return ShardSummary(
        digest="" if missing else read_dataset(store).digest,
        n_slices={split: sum(s.split == split for s in slices) for split in SPLITS},
        n_shards=len(tasks),
        n_cases=len(kept),
        n_rejected=len(rejects),
        n_reused=n_done,
        n_elsewhere=missing,
    )


def _finished_cases(workspace: Workspace, recipe: Recipe) -> tuple[list[KeptCase], list[Reject]]:
    """Read every case's outcome; every ingested case must have one, under this recipe."""
    kept, rejects, missing = [], [], 0
    for name in workspace.collections():
        rejects += workspace.ingest_rejects(name)
        spec = workspace.spec(name)
        for case in workspace.cases(name):
            path = workspace.case_file(case)
            file = read_case_file(path) if path.exists() else None
            if file is None or file.inputs != wanted_inputs(case, spec, recipe):
                missing += 1
            elif file.reject:
                rejects.append(file.reject)
            elif file.harmonized:
                kept.append(KeptCase(path, case, file.harmonized, spec, recipe))
    if missing:
        raise WorkspaceError(
            f"{missing} cases are not harmonized with recipe {recipe.name!r}. "
            f"Run `medvar-data harmonize -w {workspace.path}` with the same --recipe first."
        )
    return kept, rejects


def _tasks(slices: list[PlannedSlice], spec: ShardSpec, store: Store, workspace: Workspace) -> list[ShardTask]:
    """Plan the shards; refuses a store that holds anything else."""
    plan = plan_shards(slices, spec)
    digest = plan_digest(plan, spec.codec)
    _refuse_other_set(store, {name for name, _ in plan}, workspace)
    folder = workspace.path / "shards" / sha256(f"{digest} {store.url}".encode()).hexdigest()[:16]
    return [
        ShardTask(name, members, spec.codec, store.url, str(folder / f"{name}.parquet"), digest)
        for name, members in plan
    ]


def _refuse_other_set(store: Store, wanted: set[str], workspace: Workspace) -> None:
    place = Path(store.url).expanduser().resolve()
    if "://" not in store.url and (place == workspace.path.resolve() or workspace.path.resolve() in place.parents):
        raise WorkspaceError(
            f"{store.url} lies in the workspace, which is private; wanted a folder of its own for what may be published."
        )
    if is_shard_set(store) and read_dataset(store).salt_sha256 != workspace.salt_digest():
        raise WorkspaceError(f"{store.url} holds the shard set of another workspace. Give an empty folder.")
    there = {name for name in store.names() if name.endswith(".tar")}
    if other := there - wanted:
        raise WorkspaceError(
            f"{store.url} holds {len(other)} shards of another set, such as {min(other)}. Give an empty folder."
        )


def _write_missing(
    tasks: list[ShardTask], store: Store, engine: Engine, progress: Callable[[Progress], None]
) -> tuple[int, int]:
    """Write the shards that are not there yet, of the engine's part.

    Returns:
        How many were there before, and how many are missing still.
    """
    folders = {Path(task.index).parent for task in tasks} | {*filter(None, [store.folder])}
    for folder in folders:
        remove_partials(folder)
    missing = [task for task in tasks if not is_written(task, store)]
    if missing:
        store.remove(DATASET_FILE)  # of an earlier set under the same names: it is not complete any more
    todo = [task for task in missing if engine.part.holds(task.name)]
    n_done = len(tasks) - len(missing)
    total = n_done + len(todo)
    progress(Progress(n_done, total, "", "skipped"))
    try:
        names = run_tasks(write_shard, todo, engine, raise_killed, lambda task: len(task.slices) * SLICE_MEMORY_BYTES)
        for done, name in enumerate(names, start=n_done + 1):
            progress(Progress(done, total, name, "kept"))
    finally:
        for folder in folders:
            remove_partials(folder)
    return n_done, 0 if engine.part.is_whole else sum(not is_written(task, store) for task in tasks)
