"""The commands of the data road as functions: each takes a frozen spec and returns what it did."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvar_data.casefile import fingerprint, is_done, read_case_file, write_kept, write_rejected
from medvar_data.catalog import CollectionSpec, Recipe, collection_text, find_collections
from medvar_data.engine import run_tasks
from medvar_data.errors import CaseRejected, MedvarError, Reason, SourceError
from medvar_data.harmonize import harmonize
from medvar_data.ingest import Ingested, ingest
from medvar_data.matching import LayoutCount
from medvar_data.readers import read_scan
from medvar_data.records import Case, Progress
from medvar_data.store import Store, remove_partials
from medvar_data.tables import read_manifest
from medvar_data.tree import open_tree
from medvar_data.verify import read_dataset
from medvar_data.workspace import Workspace


@dataclass(frozen=True)
class HarmonizeSummary:
    """What one run of harmonize did; found = kept + rejected, over everything ingested."""

    n_cases: int
    n_kept: int
    n_rejected: int
    n_skipped: int  # finished before this run
    n_slices: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class HarmonizePlan:
    """What harmonize would do."""

    n_todo: int
    n_finished: int
    todo_bytes: int  # of source files
    todo_by_collection: dict[str, int]


@dataclass(frozen=True)
class _CaseTask:
    case: Case
    spec: CollectionSpec
    recipe: Recipe
    path: str


def run_ingest(sources: dict[str, Path], workspace: Workspace) -> Iterator[Ingested]:
    """Find the cases of several collections and note them in the workspace.

    Args:
        sources: collection name, family name or path of an own TOML -> folder or archive.
        workspace: made where it does not exist.

    Raises:
        SpecError: an unknown collection. SourceError: a path that is not there or holds nothing of the collection.
    """
    for name, path in sources.items():
        specs = find_collections(name)
        tree = open_tree(path)
        misses: list[tuple[CollectionSpec, SourceError]] = []
        for spec in specs:
            try:
                result = ingest(spec, tree, workspace.salt())
            except SourceError as error:
                misses.append((spec, error))
                continue
            own = name.endswith(".toml")
            workspace.save_ingested(spec, collection_text(name if own else spec.name), result, own=own)
            yield result
        if len(misses) == len(specs):
            raise misses[0][1]
        for spec, _ in misses:  # part of a family: shown, but nothing to keep
            counts = tuple(LayoutCount(layout.id, 0, layout.expected, 0) for layout in spec.layouts)
            yield Ingested(spec.name, (), (), counts, ())


def run_harmonize(
    workspace: Workspace,
    recipe: Recipe,
    workers: int,
    progress: Callable[[Progress], None],
    names: list[str] | None = None,
) -> HarmonizeSummary:
    """Harmonize every ingested case that is not finished yet; the same call again goes on where it stopped.

    Args:
        workspace: with ingested collections.
        recipe: how.
        workers: processes.
        progress: called after every case.
        names: collections; all where None.
    """
    remove_partials(workspace.path / "harmonized")
    tasks, skipped = _pending(workspace, recipe, names)
    total = len(tasks) + skipped
    for done, (name, status) in enumerate(run_tasks(_harmonize_case, tasks, workers, _killed), start=skipped + 1):
        progress(Progress(done, total, name, status))
    return _summary(workspace, names or workspace.collections(), skipped)


def plan_harmonize(workspace: Workspace, recipe: Recipe, names: list[str] | None = None) -> HarmonizePlan:
    """Tell what `run_harmonize` would do, without doing it."""
    tasks, finished = _pending(workspace, recipe, names)
    by_collection = Counter(t.case.collection for t in tasks)
    return HarmonizePlan(len(tasks), finished, sum(t.case.n_bytes for t in tasks), dict(by_collection))


def read_statistics(store: Store) -> list[dict[str, Any]]:
    """Rows of a shard set's stats.parquet."""
    read_dataset(store)
    return list(read_manifest(store, "stats.parquet").to_pylist())


def read_reject_counts(store: Store) -> list[tuple[str, str, int]]:
    """Rejected cases of a shard set: (collection, reason, cases)."""
    rows = read_manifest(store, "rejects.parquet", columns=["collection", "reason"]).to_pylist()
    counts = Counter((row["collection"], row["reason"]) for row in rows)
    return [(*pair, n) for pair, n in sorted(counts.items())]


def _pending(workspace: Workspace, recipe: Recipe, names: list[str] | None) -> tuple[list[_CaseTask], int]:
    """Cases to do, largest first so that no giant is left to the end, and how many are done."""
    tasks, skipped = [], 0
    for name in names or workspace.collections():
        spec = workspace.spec(name)
        for case in workspace.cases(name):
            path = workspace.case_file(case)
            if is_done(path, fingerprint(case, spec, recipe)):
                skipped += 1
            else:
                tasks.append(_CaseTask(case, spec, recipe, str(path)))
    return sorted(tasks, key=lambda t: (-t.case.n_bytes, t.case.collection, t.case.case)), skipped


def _harmonize_case(task: _CaseTask) -> tuple[str, str]:
    """Read, harmonize and commit one case; a bad case becomes a rejected one."""
    path = Path(task.path)
    name = f"{task.case.collection}/{task.case.case}"
    try:
        volume = harmonize(read_scan(task.case, task.spec), task.case, task.spec, task.recipe)
    except CaseRejected as error:
        write_rejected(path, error, task.case, task.spec, task.recipe)
        return name, "rejected"
    except MemoryError:
        starved = CaseRejected(Reason.WORKER_KILLED, "there is not enough memory for this case")
        write_rejected(path, starved, task.case, task.spec, task.recipe)
        return name, "rejected"
    write_kept(path, volume, task.case, task.spec, task.recipe)
    return name, "kept"


def _killed(task: _CaseTask) -> tuple[str, str]:
    error = CaseRejected(Reason.WORKER_KILLED, "its process died twice, the second time alone; it may need more memory")
    write_rejected(Path(task.path), error, task.case, task.spec, task.recipe)
    return f"{task.case.collection}/{task.case.case}", "rejected"


def _summary(workspace: Workspace, names: list[str], skipped: int) -> HarmonizeSummary:
    reasons: Counter[str] = Counter()
    kept = slices = found = 0
    for name in names:
        rejects = workspace.ingest_rejects(name)
        reasons.update(r.reason.value for r in rejects)
        found += len(rejects)
        for case in workspace.cases(name):
            found += 1
            file = read_case_file(workspace.case_file(case))
            if file.reject:
                reasons[file.reject.reason.value] += 1
            elif file.harmonized:
                kept += 1
                slices += file.harmonized.n_kept
    rejected = sum(reasons.values())
    if found != kept + rejected:
        raise MedvarError(
            f"{found} cases in, but {kept} kept and {rejected} rejected; this is a fault of medvar, please report it."
        )
    return HarmonizeSummary(found, kept, rejected, skipped, slices, dict(reasons))


def default_workers() -> int:
    """Processes to start where the user does not say: one a processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
