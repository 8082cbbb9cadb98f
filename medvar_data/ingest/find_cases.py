"""Find the cases of a collection in a download: match paths, check headers, compare published lists with the disk. No voxel is read.

In: a collection's description and the tree of its files. Out: one `Case` a scan and one `Reject` for each that cannot
be used; `found = kept + rejected` holds by construction.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.describe import readable
from medvar_data.catalog.patterns import found_by_any
from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.ingest.case_lists import CASE_LISTS, ListedCases
from medvar_data.ingest.dicom_series import find_volumes
from medvar_data.ingest.headers import check_headers
from medvar_data.ingest.match_paths import Matched, match_files
from medvar_data.ingest.names import natural
from medvar_data.records import Case, Ingested, Reject
from medvar_data.sources.archives import is_archive
from medvar_data.sources.detached import data_files, no_data_file
from medvar_data.sources.tree import Tree, modified_ns

# All that an error may say of file names: a name can be a patient's, and so can what follows its first dot.
SHOWN_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".mgz",
    ".mgh",
    ".mha",
    ".mhd",
    ".nrrd",
    ".dcm",
    ".ima",
    ".png",
    ".json",
    ".csv",
    ".txt",
    ".gz",
    ".rar",
)


IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh")


def ingest(spec: CollectionSpec, tree: Tree, salt: bytes) -> Ingested:
    """Find every case of `spec` in `tree`.

    Args:
        spec: the collection.
        tree: the files of the download.
        salt: secret that hides a user's own file names (`case_names = "hash"`).

    Raises:
        SourceError: nothing in the tree looks like this collection; says what was looked for and what is there.
    """
    matched = match_files(spec, tree, salt)
    volumes = find_volumes(spec, tree, salt)
    candidates = (*matched.candidates, *volumes.candidates)
    rejects = [*archive_rejects(spec, tree.broken), *matched.rejects, *volumes.rejects]
    if not candidates and not rejects:
        raise SourceError(_nothing_found(spec, tree))
    found = ListedCases(candidates)
    if spec.case_list:
        found = CASE_LISTS[spec.case_list](spec, tree, list(candidates))
    named, matched_keys = {reject.case for reject in rejects}, {case.case for case in candidates}
    rejects += [reject for reject in found.rejects if reject.case in matched_keys or reject.case not in named]
    cases = []
    sizes = {file.path: file.n_bytes for file in tree.files}
    for case, reject in check_headers(spec, found.cases):
        if reject:
            rejects.append(reject)
            continue
        try:
            cases.append(_with_data_files(case, tree, sizes))
        except CaseRejected as error:
            rejects.append(
                Reject(spec.name, case.case, "ingest", error.reason, error.detail, (*case.image, *case.label))
            )
    order = sorted(cases, key=lambda c: natural(c.case))
    return Ingested(
        spec.name,
        tuple(order),
        tuple(sorted(rejects, key=lambda r: natural(r.case))),
        (*matched.counts, *volumes.counts),
        (*volumes.notes, *found.notes, *_left_over(spec, tree, matched)),
    )


def _left_over(spec: CollectionSpec, tree: Tree, matched: Matched) -> tuple[str, ...]:
    """Tell of image files that no pattern of a user's own description takes; a published download holds many others."""
    if spec.case_names != "hash" or any(layout.reader == "dicom" for layout in spec.layouts):
        return ()
    known = [file for file in tree.files if not found_by_any(spec.exclude, file.path)]
    n = sum(file.path.lower().endswith(IMAGE_SUFFIXES) and file.path not in matched.claimed for file in known)
    return (f"{n} image files are taken by no pattern; `exclude` says which are not wanted",) if n else ()


def _with_data_files(case: Case, tree: Tree, sizes: Mapping[str, int]) -> Case:
    """Note the newest time of a case's files, and count the bytes of those that its headers point to.

    Raises:
        CaseRejected: a file or data file is not there or may not be read, or lies outside the folder of its header.
    """
    paths = (*case.image, *case.label)
    data = [path for header in paths for path in data_files(tree.root, header)]
    if any(path not in sizes for path in data):
        raise no_data_file()
    return replace(
        case,
        n_bytes=case.n_bytes + sum(sizes[path] for path in data),
        modified_ns=max(modified_ns(tree.root, path) for path in (*paths, *data)),
    )


def archive_rejects(spec: CollectionSpec, broken: Iterable[tuple[str, Reason, str]]) -> list[Reject]:
    """Make a reject of each archive or folder of which nothing is used.

    The name of an archive stays out, since it could name a person; a folder's is told where names are published, else how
    deep it lies.
    """
    rejects = []
    for i, (path, reason, detail) in enumerate(broken):
        kind = "archive" if is_archive(path) else "folder"
        if kind == "folder":
            place = (
                path if spec.case_names == "published" else f"one {path.count('/') + 1} levels below the folder given"
            )
            detail = f"{detail} (at {place})"
        rejects.append(Reject(spec.name, f"{kind}-{i}", "ingest", reason, detail, (path,)))
    return rejects


def with_rejects(result: Ingested, rejects: Iterable[Reject]) -> Ingested:
    """Add rejects to what an ingest found out."""
    return replace(result, rejects=tuple(sorted((*result.rejects, *rejects), key=lambda r: natural(r.case))))


def _nothing_found(spec: CollectionSpec, tree: Tree) -> str:
    wanted = "; ".join(
        dict.fromkeys("DICOM files" if layout.reader == "dicom" else readable(layout.image) for layout in spec.layouts)
    )
    kinds: dict[str, int] = {}
    for file in tree.files:
        kind = next((s for s in SHOWN_SUFFIXES if file.path.lower().endswith(s)), "other")
        kinds[kind] = kinds.get(kind, 0) + 1
    common = sorted(kinds.items(), key=lambda item: -item[1])[:4]
    there = ", ".join(f"{n} {kind}" for kind, n in common) or "no files"
    tell = f"`medvar-data describe {spec.name}` tells the layout."
    if spec.case_names == "hash":
        tell = "Compare the patterns of your description with the paths below that folder."
    return f"Nothing here looks like {spec.name}. Looked for {wanted}; the folder holds {there}. {tell}"
