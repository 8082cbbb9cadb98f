"""The commands of the data road as functions: each takes a frozen spec and returns what it did."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medvar_data.archives import DEFAULT_ACCESS, Access, AccessSpec, open_access, reading
from medvar_data.casefile import read_case_file, wanted_inputs, why_to_do, write_kept, write_rejected
from medvar_data.catalog import CollectionSpec, collection_text, find_collections, template_names
from medvar_data.choices import recipe_for
from medvar_data.engine import Engine, as_engine, run_tasks
from medvar_data.errors import CaseRejected, MedvarError, Reason, SourceError, WorkspaceError
from medvar_data.harmonize import harmonize
from medvar_data.ingest import Ingested, archive_rejects, ingest, with_rejects
from medvar_data.matching import LayoutCount
from medvar_data.memory import show_size
from medvar_data.planning import CaseTask, Pending, add_calibration, peak_bytes, pending_cases
from medvar_data.readers import read_scan
from medvar_data.recipes import Recipe
from medvar_data.records import Progress, Reject
from medvar_data.store import Store, remove_partials
from medvar_data.tables import read_manifest
from medvar_data.tree import Tree, open_tree
from medvar_data.unpacking import unpacked_batches
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
    never_met: dict[str, tuple[str, ...]]  # per collection, labels that it defines and no kept case holds


@dataclass(frozen=True)
class _Source:
    """One source to ingest: a folder or archive and the collections to look for in it."""

    name: str
    path: Path = field(repr=False)
    specs: tuple[CollectionSpec, ...]
    salt: bytes = field(repr=False)
    access: Access


@dataclass(frozen=True)
class _Found:
    source: _Source
    tree: Tree  # without its files
    results: tuple[tuple[CollectionSpec, Ingested | None], ...]
    miss: str  # what the first collection that is not there says


@dataclass(frozen=True)
class _Outcome:
    name: str
    status: str  # kept, rejected or skipped
    seconds: float


def run_ingest(
    sources: dict[str, Path],
    workspace: Workspace,
    salt: bytes | None = None,
    engine: Engine | int = 1,
    archives: AccessSpec = DEFAULT_ACCESS,
) -> Iterator[Ingested]:
    """Find the cases of several collections and note them in the workspace.

    Args:
        sources: collection name, family name or path of an own TOML -> folder or archive.
        workspace: made where it does not exist, once something was found.
        salt: behind patient hashes; the workspace's own, or a new one, where absent.
        engine: who does the work; one source is one piece.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        SpecError: an unknown collection. SourceError: a path that is not there or holds nothing of the collection.
        WorkspaceError: the workspace has another salt.
    """
    salt = workspace.salt_to_use(salt)
    reported: set[Path] = set()  # a broken archive is one reject, however many collections its folder is given for
    results: list[Ingested] = []
    taken: dict[str, str] = {}
    with open_access(archives) as access:
        tasks = [_Source(name, path, tuple(find_collections(name)), salt, access) for name, path in sources.items()]
        waiting = iter(tasks)
        arrived: dict[str, _Found] = {}
        due = next(waiting, None)
        for found in run_tasks(_ingest_source, tasks, engine, _ingest_killed):
            arrived[found.source.name] = found
            while due and due.name in arrived:  # in the order given, whatever the order of arrival
                results += _note(arrived[due.name], workspace, reported, taken)
                due = next(waiting, None)
    return iter(results)


def _note(found: _Found, workspace: Workspace, reported: set[Path], taken: dict[str, str]) -> Iterator[Ingested]:
    """Write what one source holds to the workspace; the first of its collections carries its broken archives."""
    tree = found.tree
    there = [result for _, result in found.results if result]
    if not there and not tree.broken:
        raise SourceError(found.miss)
    for spec, result in found.results:
        if result and taken.setdefault(spec.name, found.source.name) != found.source.name:
            raise SourceError(
                f"{spec.name} was found in two of the sources given ({taken[spec.name]} and {found.source.name}); wanted one folder "
                "for each collection: put both below one folder, or give one of them."
            )
    workspace.set_salt(found.source.salt)
    workspace.note_archives(tree)
    broken = [b for b in tree.broken if tree.root / b[0] not in reported]
    reported.update(tree.root / b[0] for b in broken)
    for spec, result in sorted(found.results, key=lambda pair: pair[1] is None):  # what was found comes first
        if result:
            yield _save(found.source.name, spec, with_rejects(result, archive_rejects(spec.name, broken)), workspace)
        else:  # part of a family, or lost with an archive
            counts = tuple(LayoutCount(layout.id, 0, layout.expected, 0) for layout in spec.layouts)
            empty = Ingested(spec.name, (), tuple(archive_rejects(spec.name, broken)), counts, ())
            yield _save(found.source.name, spec, empty, workspace) if broken else empty
        broken = []


def _save(name: str, spec: CollectionSpec, result: Ingested, workspace: Workspace) -> Ingested:
    own = name.endswith(".toml") or name in template_names()
    if spec.name in workspace.ingested():
        gone = {case.case for case in workspace.cases(spec.name)} - {case.case for case in result.cases}
        if gone:
            note = f"{len(gone)} cases of an earlier ingest are not here: they no longer count; give all folders of a collection at once"
            result = replace(result, notes=(*result.notes, note))
    workspace.save_ingested(spec, collection_text(name if own else spec.name), result, own=own)
    return result


def run_harmonize(
    workspace: Workspace,
    recipe: Recipe,
    engine: Engine | int,
    progress: Callable[[Progress], None],
    names: list[str] | None = None,
    archives: AccessSpec = DEFAULT_ACCESS,
) -> HarmonizeSummary:
    """Harmonize every ingested case that is not finished yet; the same call again goes on where it stopped.

    Args:
        workspace: with ingested collections.
        recipe: how.
        engine: who does the work; a number means so many processes of this machine.
        progress: called at the start and after every case.
        names: collections; all where None.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        SourceError: an archive needs another password or more scratch space. Nothing is rejected for that.
    """
    engine = as_engine(engine)
    remove_partials(workspace.path / "harmonized")
    pending = pending_cases(workspace, recipe, names, engine.part)
    done, total = pending.n_finished, len(pending.tasks) + pending.n_finished
    task_of = {task.name: task for task in pending.tasks}
    progress(Progress(done, total, "", "skipped"))
    took = []
    try:
        with open_access(archives) as access:
            for batch in unpacked_batches(pending.tasks, workspace.archive_notes(), access):
                for outcome in run_tasks(_harmonize_case, batch, engine, _killed, lambda task: peak_bytes(task.case)):
                    done += 1
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
    with reading(source.access):
        tree = open_tree(source.path)
        results: list[tuple[CollectionSpec, Ingested | None]] = []
        misses = []
        for spec in source.specs:
            try:
                results.append((spec, ingest(spec, replace(tree, broken=()), source.salt)))
            except SourceError as error:
                results.append((spec, None))
                misses.append(str(error))
    return _Found(source, replace(tree, files=()), tuple(results), misses[0] if misses else "")


def _ingest_killed(source: _Source) -> _Found:
    raise WorkspaceError(
        f"The process that ingested {source.name} was killed twice; it may need more memory. The same command tries again."
    )


def _harmonize_case(task: CaseTask) -> _Outcome:
    """Read, harmonize and commit one case; a bad case becomes a rejected one."""
    path, case = Path(task.path), task.case
    if not why_to_do(path, wanted_inputs(case, task.spec, task.recipe), retry=True):
        return _Outcome(task.name, "skipped", 0.0)  # another run has finished it meanwhile
    if not Path(case.root).is_dir():
        raise SourceError(
            f"The folder that {case.collection} was found in is not there (any more) on this machine. Mount it, or run ingest "
            "again; nothing was rejected, and the same command goes on from here."
        )
    started = time.perf_counter()
    try:
        recipe_for(case, task.recipe)
        with reading(task.access):
            scan = read_scan(case, task.spec)
        volume = harmonize(scan, case, task.spec, task.recipe)
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
    never_met: dict[str, tuple[str, ...]] = {}
    kept = slices = found = elsewhere = 0
    for name in names:
        spec = workspace.spec(name)
        early = workspace.ingest_rejects(name)
        rejects += early
        found += len(early)
        met: set[int] = set()
        n_labelled = 0
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
                met |= file.harmonized.label_mm3.keys()
                n_labelled += bool(file.harmonized.label_digest)
        absent = tuple(dict.fromkeys(label.name for label in spec.labels if label.id not in met))
        if n_labelled and absent:
            never_met[name] = absent
    if found != kept + len(rejects) + elsewhere:
        raise MedvarError(
            f"{found} cases in, but {kept} kept, {len(rejects)} rejected and {elsewhere} left to others; "
            "this is a fault of medvar, please report it."
        )
    reasons = dict(Counter(reject.reason.value for reject in rejects))
    return HarmonizeSummary(
        found, kept, len(rejects), pending.n_finished, elsewhere, slices, reasons, tuple(rejects), never_met
    )


def default_workers() -> int:
    """Processes to start where the user does not say: one a processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
