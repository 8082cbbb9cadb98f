"""The commands of the data road as functions: each takes a frozen spec and returns what it did."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvar_data.casefile import read_case_file, wanted_inputs, why_to_do, write_kept, write_rejected
from medvar_data.catalog import CollectionSpec, Recipe, collection_text, find_collections
from medvar_data.choices import recipe_for
from medvar_data.engine import Engine, as_engine, run_tasks
from medvar_data.errors import CaseRejected, MedvarError, Reason, SourceError, WorkspaceError
from medvar_data.harmonize import harmonize
from medvar_data.ingest import Ingested, ingest
from medvar_data.matching import LayoutCount
from medvar_data.memory import show_size
from medvar_data.planning import CaseTask, Pending, add_calibration, peak_bytes, pending_cases
from medvar_data.readers import read_scan
from medvar_data.records import Progress, Reject
from medvar_data.store import Store, remove_partials
from medvar_data.tables import read_manifest
from medvar_data.tree import open_tree
from medvar_data.verify import read_dataset
from medvar_data.workspace import Workspace


@dataclass(frozen=True)
class HarmonizeSummary:
    """What one run of harmonize did; found = kept + rejected + left to other parts, over everything ingested."""

    n_cases: int
    n_kept: int
    n_rejected: int
    n_skipped: int  # finished before this run
    n_elsewhere: int  # left to other parts and not finished yet
    n_slices: int
    reasons: dict[str, int]
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class _Source:
    """One source to ingest: a folder or archive and the collections to look for in it."""

    name: str
    path: Path
    specs: tuple[CollectionSpec, ...]
    salt: bytes


@dataclass(frozen=True)
class _Found:
    source: _Source
    results: tuple[tuple[CollectionSpec, Ingested | None], ...]
    miss: str  # what the first collection that is not there says


@dataclass(frozen=True)
class _Outcome:
    name: str
    status: str  # kept, rejected or skipped
    seconds: float


def run_ingest(
    sources: dict[str, Path], workspace: Workspace, salt: bytes | None = None, engine: Engine | int = 1
) -> Iterator[Ingested]:
    """Find the cases of several collections and note them in the workspace.

    Args:
        sources: collection name, family name or path of an own TOML -> folder or archive.
        workspace: made where it does not exist, once something was found.
        salt: behind patient hashes; the workspace's own, or a new one, where absent.
        engine: who does the work; one source is one piece.

    Raises:
        SpecError: an unknown collection. SourceError: a path that is not there or holds nothing of the collection.
        WorkspaceError: the workspace has another salt.
    """
    salt = workspace.salt_to_use(salt)
    tasks = [_Source(name, path, tuple(find_collections(name)), salt) for name, path in sources.items()]
    for found in run_tasks(_ingest_source, tasks, engine, _ingest_killed):
        if all(result is None for _, result in found.results):
            raise SourceError(found.miss)
        own = found.source.name.endswith(".toml")
        for spec, result in found.results:
            if result:
                workspace.set_salt(salt)
                text = collection_text(found.source.name if own else spec.name)
                workspace.save_ingested(spec, text, result, own=own)
                yield result
        for spec, result in found.results:  # part of a family: shown, but nothing to keep
            if not result:
                counts = tuple(LayoutCount(layout.id, 0, layout.expected, 0) for layout in spec.layouts)
                yield Ingested(spec.name, (), (), counts, ())


def run_harmonize(
    workspace: Workspace,
    recipe: Recipe,
    engine: Engine | int,
    progress: Callable[[Progress], None],
    names: list[str] | None = None,
) -> HarmonizeSummary:
    """Harmonize every ingested case that is not finished yet; the same call again goes on where it stopped.

    Args:
        workspace: with ingested collections.
        recipe: how.
        engine: who does the work; a number means so many processes of this machine.
        progress: called at the start and after every case.
        names: collections; all where None.
    """
    engine = as_engine(engine)
    remove_partials(workspace.path / "harmonized")
    pending = pending_cases(workspace, recipe, names, engine.part)
    total = len(pending.tasks) + pending.n_finished
    task_of = {task.name: task for task in pending.tasks}
    progress(Progress(pending.n_finished, total, "", "skipped"))
    took = []
    try:
        outcomes = run_tasks(_harmonize_case, pending.tasks, engine, _killed, lambda task: peak_bytes(task.case))
        for done, outcome in enumerate(outcomes, start=pending.n_finished + 1):
            if outcome.status == "kept":
                task = task_of[outcome.name]
                took.append((task.case, outcome.seconds, Path(task.path)))
            progress(Progress(done, total, outcome.name, outcome.status))
    finally:
        remove_partials(workspace.path / "harmonized")
    add_calibration(workspace, took)
    return _summary(workspace, recipe, names or workspace.collections(), pending)


def read_statistics(store: Store) -> list[dict[str, Any]]:
    """Rows of a shard set's stats.parquet."""
    read_dataset(store)
    return list(read_manifest(store, "stats.parquet").to_pylist())


def read_reject_counts(store: Store) -> list[tuple[str, str, int]]:
    """Rejected cases of a shard set: (collection, reason, cases)."""
    rows = read_manifest(store, "rejects.parquet", columns=["collection", "reason"]).to_pylist()
    counts = Counter((row["collection"], row["reason"]) for row in rows)
    return [(*pair, n) for pair, n in sorted(counts.items())]


def _ingest_source(source: _Source) -> _Found:
    """Look for the collections of one source in its tree, which is listed once."""
    tree = open_tree(source.path)
    results: list[tuple[CollectionSpec, Ingested | None]] = []
    misses = []
    for spec in source.specs:
        try:
            results.append((spec, ingest(spec, tree, source.salt)))
        except SourceError as error:
            results.append((spec, None))
            misses.append(str(error))
    return _Found(source, tuple(results), misses[0] if misses else "")


def _ingest_killed(source: _Source) -> _Found:
    raise WorkspaceError(
        f"The process that ingested {source.name} was killed twice; it may need more memory. The same command tries again."
    )


def _harmonize_case(task: CaseTask) -> _Outcome:
    """Read, harmonize and commit one case; a bad case becomes a rejected one."""
    path, case = Path(task.path), task.case
    if not why_to_do(path, wanted_inputs(case, task.spec, task.recipe)):
        return _Outcome(task.name, "skipped", 0.0)  # another run has finished it meanwhile
    started = time.perf_counter()
    try:
        recipe_for(case, task.recipe)
        volume = harmonize(read_scan(case, task.spec), case, task.spec, task.recipe)
    except CaseRejected as error:
        write_rejected(path, error, case, task.spec, task.recipe)
        return _Outcome(task.name, "rejected", time.perf_counter() - started)
    write_kept(path, volume, case, task.spec, task.recipe)
    return _Outcome(task.name, "kept", time.perf_counter() - started)


def _killed(task: CaseTask) -> _Outcome:
    detail = (
        "its process died, or ran out of memory, twice, the second time alone; "
        f"it was expected to need {show_size(peak_bytes(task.case))} of memory"
    )
    write_rejected(Path(task.path), CaseRejected(Reason.WORKER_KILLED, detail), task.case, task.spec, task.recipe)
    return _Outcome(task.name, "rejected", 0.0)


def _summary(workspace: Workspace, recipe: Recipe, names: list[str], pending: Pending) -> HarmonizeSummary:
    rejects: list[Reject] = []
    kept = slices = found = elsewhere = 0
    for name in names:
        spec = workspace.spec(name)
        early = workspace.ingest_rejects(name)
        rejects += early
        found += len(early)
        for case in workspace.cases(name):
            found += 1
            path = workspace.case_file(case)
            if pending.n_elsewhere and why_to_do(path, wanted_inputs(case, spec, recipe)):
                elsewhere += 1
                continue
            file = read_case_file(path)
            if file.reject:
                rejects.append(file.reject)
            elif file.harmonized:
                kept += 1
                slices += file.harmonized.n_kept
    if found != kept + len(rejects) + elsewhere:
        raise MedvarError(
            f"{found} cases in, but {kept} kept, {len(rejects)} rejected and {elsewhere} left to others; "
            "this is a fault of medvar, please report it."
        )
    reasons = dict(Counter(reject.reason.value for reject in rejects))
    return HarmonizeSummary(found, kept, len(rejects), pending.n_finished, elsewhere, slices, reasons, tuple(rejects))


def default_workers() -> int:
    """Processes to start where the user does not say: one a processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
