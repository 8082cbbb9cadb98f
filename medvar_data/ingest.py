"""Find the cases of a collection in a download: match paths, judge headers, hold lists against the disk. No voxel is read.

In: a collection's description and the tree of its files. Out: one `Case` a scan and one `Reject` for each that cannot
be used; `found = kept + rejected` holds by construction.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from medvar_data.catalog import CollectionSpec
from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.finders import FINDERS, Found
from medvar_data.matching import LayoutCount, Matched, match_files, natural, readable
from medvar_data.readers import Header, read_volume_header
from medvar_data.readers.detached import data_files, no_data_file
from medvar_data.readers.scan import check_same_shape
from medvar_data.readers.size import sized
from medvar_data.records import Case, Reject
from medvar_data.series import find_volumes
from medvar_data.tree import Tree, modified_ns

# All that an error may say of file names: a name can be a patient's, and so can what follows its first dot.
SHOWN_SUFFIXES = (
    ".nii.gz",
    ".nii",
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


IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")


@dataclass(frozen=True)
class Ingested:
    """Everything that one collection's ingest found out."""

    collection: str
    cases: tuple[Case, ...]
    rejects: tuple[Reject, ...]
    counts: tuple[LayoutCount, ...]
    notes: tuple[str, ...]

    @property
    def n_found(self) -> int:
        """Cases and rejects together."""
        return len(self.cases) + len(self.rejects)


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
    rejects = [*archive_rejects(spec.name, tree.broken), *matched.rejects, *volumes.rejects]
    if not candidates and not rejects:
        raise SourceError(_nothing_found(spec, tree))
    found = Found(candidates)
    if spec.finder:
        found = FINDERS[spec.finder](spec, tree, list(candidates))
    named, matched_keys = {reject.case for reject in rejects}, {case.case for case in candidates}
    rejects += [reject for reject in found.rejects if reject.case in matched_keys or reject.case not in named]
    cases = []
    sizes = {file.path: file.n_bytes for file in tree.files}
    for case, reject in _judge(spec, found.cases):
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
    known = [file for file in tree.files if not any(re.search(pattern, file.path) for pattern in spec.exclude)]
    n = sum(file.path.lower().endswith(IMAGE_SUFFIXES) and file.path not in matched.claimed for file in known)
    return (f"{n} image files are taken by no pattern; `exclude` says which are not wanted",) if n else ()


def _with_data_files(case: Case, tree: Tree, sizes: Mapping[str, int]) -> Case:
    """Note the newest time of a case's files, and count the bytes of those that its headers point to.

    Raises:
        CaseRejected: a data file is not there, or lies outside the folder of its header.
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


def archive_rejects(collection: str, broken: Iterable[tuple[str, Reason, str]]) -> list[Reject]:
    """Make a reject of each archive of which nothing is used; its name stays out, since it could name a person."""
    return [
        Reject(collection, f"archive-{i}", "ingest", reason, detail, (path,))
        for i, (path, reason, detail) in enumerate(broken)
    ]


def with_rejects(result: Ingested, rejects: Iterable[Reject]) -> Ingested:
    """Add rejects to what an ingest found out."""
    return replace(result, rejects=tuple(sorted((*result.rejects, *rejects), key=lambda r: natural(r.case))))


def _judge(spec: CollectionSpec, candidates: Iterable[Case]) -> Iterable[tuple[Case, Reject | None]]:
    """Judge each case by its headers alone."""
    headers: dict[str, Header | CaseRejected | None] = {}
    for case in candidates:
        try:
            _judge_headers(spec, case, headers)
            yield sized(case, headers), None
        except CaseRejected as error:
            yield case, Reject(spec.name, case.case, "ingest", error.reason, error.detail, (*case.image, *case.label))


def _judge_headers(spec: CollectionSpec, case: Case, headers: dict[str, Header | CaseRejected | None]) -> None:
    if case.reader != "volume":
        if case.reader == "dicom_png" and case.label and len(case.label) != len(case.image):
            detail = f"{len(case.image)} slices but {len(case.label)} masks; wanted one mask a slice"
            raise CaseRejected(Reason.SLICE_COUNT, detail)
        return
    image = _header(case.root, case.image[0], spec.spacing_from, headers)
    if image and case.channel >= image.n_channels:
        raise CaseRejected(
            Reason.DIMENSIONS, f"the image has {image.n_channels} channels; wanted number {case.channel + 1}"
        )
    if image and case.channel < 0 and image.n_channels > 1:
        raise CaseRejected(Reason.DIMENSIONS, f"the image has {image.n_channels} channels; the collection names none")
    for path in case.label:
        label = _header(case.root, path, "affine", headers)
        if label and label.n_channels > 1 and case.channel >= label.n_channels:
            detail = f"the label has {label.n_channels} channels; wanted number {case.channel + 1}"
            raise CaseRejected(Reason.DIMENSIONS, detail)
        if image and label and spec.label_grid == "image":
            check_same_shape(image.shape, label.shape)


def _header(root: str, path: str, spacing_from: str, headers: dict[str, Header | CaseRejected | None]) -> Header | None:
    """Read a header once, however many channels or sequences share the file."""
    if path not in headers:
        try:
            headers[path] = read_volume_header(root, path, spacing_from)
        except CaseRejected as error:
            headers[path] = error
    header = headers[path]
    if isinstance(header, CaseRejected):
        raise CaseRejected(header.reason, header.detail)
    return header


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
    return f"Nothing here looks like {spec.name}. Looked for {wanted}; the folder holds {there}. `medvar-data describe {spec.name}` tells the layout."
