"""Run ingest: find the cases of several collections and note them in the workspace.

In: collection names with their folders or archives. Out: one `Ingested` a collection, also written to the workspace.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import collection_text, find_collections, template_names
from medvar_data.engine.engine import Engine, run_tasks
from medvar_data.errors import SourceError, WorkspaceError
from medvar_data.ingest.find_cases import archive_rejects, ingest, with_rejects
from medvar_data.naming import how_many
from medvar_data.records import Ingested, LayoutCount
from medvar_data.sources.archives import DEFAULT_ACCESS, Access, AccessSpec, open_access, reading
from medvar_data.sources.tree import Tree, open_tree
from medvar_data.workspace.workspace import Workspace


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
            yield _save(found.source.name, spec, with_rejects(result, archive_rejects(spec, broken)), workspace)
        else:  # part of a family, or lost with an archive
            counts = tuple(LayoutCount(layout.id, 0, layout.expected, 0) for layout in spec.layouts)
            empty = Ingested(spec.name, (), tuple(archive_rejects(spec, broken)), counts, ())
            yield _save(found.source.name, spec, empty, workspace) if broken else empty
        broken = []


def _save(name: str, spec: CollectionSpec, result: Ingested, workspace: Workspace) -> Ingested:
    own = name.endswith(".toml") or name in template_names()
    if spec.name in workspace.ingested():
        gone = {case.case for case in workspace.cases(spec.name)} - {case.case for case in result.cases}
        if gone:
            note = f"{how_many(len(gone), 'case')} of an earlier ingest not found here, which no longer {'counts' if len(gone) == 1 else 'count'}; give all folders of a collection at once"
            result = replace(result, notes=(*result.notes, note))
    workspace.save_ingested(spec, collection_text(name if own else spec.name), result, own=own)
    return result


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
