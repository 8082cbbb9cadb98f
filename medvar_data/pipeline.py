"""The commands of the data road as functions: each takes a frozen spec and returns what it did."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvar_data.archives import (
    DEFAULT_ACCESS,
    NOTHING_OPEN,
    SEPARATOR,
    Access,
    AccessSpec,
    clear_scratch,
    list_archive,
    open_access,
    reading,
    room_bytes,
)
from medvar_data.casefile import fingerprint, is_done, read_case_file, write_kept, write_rejected
from medvar_data.catalog import CollectionSpec, Recipe, collection_text, find_collections
from medvar_data.engine import run_tasks
from medvar_data.errors import CaseRejected, MedvarError, Reason, SourceError
from medvar_data.harmonize import harmonize
from medvar_data.ingest import Ingested, archive_rejects, ingest, with_rejects
from medvar_data.matching import LayoutCount
from medvar_data.readers import read_scan
from medvar_data.records import Case, Progress
from medvar_data.store import Store, remove_partials
from medvar_data.tables import read_manifest
from medvar_data.tree import open_tree
from medvar_data.verify import read_dataset
from medvar_data.workspace import ArchiveNote, Workspace, archives_of


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
    access: Access = NOTHING_OPEN


def run_ingest(
    sources: dict[str, Path], workspace: Workspace, archives: AccessSpec = DEFAULT_ACCESS
) -> Iterator[Ingested]:
    """Find the cases of several collections and note them in the workspace.

    Args:
        sources: collection name, family name or path of an own TOML -> folder or archive.
        workspace: made where it does not exist.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        SpecError: an unknown collection. SourceError: a path that is not there or holds nothing of the collection.
    """
    reported: set[Path] = set()  # a broken archive is one reject, however many collections its folder is given for
    with open_access(archives):
        return iter([result for name, path in sources.items() for result in _ingest(name, path, workspace, reported)])


def _ingest(name: str, path: Path, workspace: Workspace, reported: set[Path]) -> Iterator[Ingested]:
    specs = find_collections(name)
    tree = open_tree(path)
    workspace.note_archives(tree)
    broken = [b for b in tree.broken if tree.root / b[0] not in reported]
    reported.update(tree.root / b[0] for b in broken)
    misses: list[tuple[CollectionSpec, SourceError]] = []
    for spec in specs:
        try:
            result = ingest(spec, replace(tree, broken=()), workspace.salt())
        except SourceError as error:
            misses.append((spec, error))
            continue
        yield _save(name, spec, with_rejects(result, archive_rejects(spec.name, broken)), workspace)
        broken = []
    if len(misses) == len(specs) and not tree.broken:
        raise misses[0][1]
    for spec, _ in misses:  # part of a family, or lost with an archive
        counts = tuple(LayoutCount(layout.id, 0, layout.expected, 0) for layout in spec.layouts)
        result = Ingested(spec.name, (), tuple(archive_rejects(spec.name, broken)), counts, ())
        yield _save(name, spec, result, workspace) if broken else result
        broken = []


def _save(name: str, spec: CollectionSpec, result: Ingested, workspace: Workspace) -> Ingested:
    own = name.endswith(".toml")
    workspace.save_ingested(spec, collection_text(name if own else spec.name), result, own=own)
    return result


def run_harmonize(
    workspace: Workspace,
    recipe: Recipe,
    workers: int,
    progress: Callable[[Progress], None],
    names: list[str] | None = None,
    archives: AccessSpec = DEFAULT_ACCESS,
) -> HarmonizeSummary:
    """Harmonize every ingested case that is not finished yet; the same call again goes on where it stopped.

    Args:
        workspace: with ingested collections.
        recipe: how.
        workers: processes.
        progress: called after every case.
        names: collections; all where None.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        SourceError: an archive needs another password or more scratch space. Nothing is rejected for that.
    """
    remove_partials(workspace.path / "harmonized")
    tasks, skipped = _pending(workspace, recipe, names)
    done, total = skipped, len(tasks) + skipped
    with open_access(archives) as access:
        for batch in _unpacked_batches(tasks, workspace.archive_notes(), access):
            for name, status in run_tasks(_harmonize_case, batch, workers, _killed):
                done += 1
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


def _unpacked_batches(
    tasks: list[_CaseTask], notes: dict[Path, ArchiveNote], access: Access
) -> Iterator[list[_CaseTask]]:
    """Part the cases so that what each batch needs unpacked fits into scratch, and unpack it before the batch is given out."""
    ready = [replace(task, access=access) for task in tasks]
    packed = {id(t): {a: notes[a] for a in archives_of(t.case) if a in notes and notes[a].scratch_bytes} for t in ready}
    users: dict[Path, list[Case]] = {}
    for task in ready:
        for archive in archives_of(task.case) & notes.keys():
            users.setdefault(archive, []).append(task.case)
    for archive, cases in users.items():
        if notes[archive].encrypted and not notes[archive].scratch_bytes:
            _check_opens(archive, cases)
    if plain := [task for task in ready if not packed[id(task)]]:
        yield plain
    batch: list[_CaseTask] = []
    held: dict[Path, int] = {}
    for task in sorted((t for t in ready if packed[id(t)]), key=lambda t: min(packed[id(t)])):
        more = {a: note.scratch_bytes for a, note in packed[id(task)].items()}
        if batch and sum((held | more).values()) > room_bytes():
            yield batch
            clear_scratch()
            batch, held = [], {}
        for archive in more.keys() - held.keys():
            _check_opens(archive, users[archive])
        batch.append(task)
        held |= more
    if batch:
        yield batch


def _check_opens(archive: Path, cases: list[Case]) -> None:
    """List an archive again, which unpacks what has to be and tries the passwords; damage is left to its cases to tell.

    Raises:
        SourceError: there is no password or no room for it, or for an archive in it that holds one of the cases.
    """
    root = Path(cases[0].root)
    path = archive.relative_to(root).as_posix()
    try:
        failed = list_archive(root, path).broken
    except CaseRejected as error:
        failed = (("", error.reason, error.detail),)
    for inner, reason, detail in failed:
        within = f"{path}{SEPARATOR}{inner}" if inner else path
        used = any(name.startswith(f"{within}{SEPARATOR}") for case in cases for name in (*case.image, *case.label))
        if used and reason in (Reason.ARCHIVE_PASSWORD, Reason.SCRATCH_FULL):
            raise SourceError(f"{cases[0].collection}: {detail}.")


def _harmonize_case(task: _CaseTask) -> tuple[str, str]:
    """Read, harmonize and commit one case; a bad case becomes a rejected one."""
    path = Path(task.path)
    name = f"{task.case.collection}/{task.case.case}"
    try:
        with reading(task.access):
            scan = read_scan(task.case, task.spec)
        volume = harmonize(scan, task.case, task.spec, task.recipe)
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
