"""Sort the DICOM files of a tree by what their headers say: images by series, annotations, copies, damaged files and the rest.

In: the layouts with the reader `dicom`, and the tree. Out: `SortedFiles`. Identities are compared here and hashed for keys.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hmac import new as hmac
from pathlib import PurePosixPath

from medvar_data.catalog.collection import CollectionSpec, Layout
from medvar_data.catalog.patterns import found_by_any, search
from medvar_data.errors import CaseRejected, Reason
from medvar_data.ingest.names import make_reject
from medvar_data.readers.dicom.headers import Instance, read_instance
from medvar_data.readers.dicom.screening import IMAGES
from medvar_data.readers.dicom.structures import is_annotation
from medvar_data.records import Reject, SourceFile
from medvar_data.sources.tree import Tree

NO_IMAGES = ("RTDOSE",)  # have rows and columns, but hold no image
NAMED_DICOM = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class FileMatch:
    """A file, the layouts that take it as an image (with the groups of the pattern), and those that take it as an annotation."""

    file: SourceFile
    as_image: Mapping[str, Mapping[str, str]]
    as_label: frozenset[str]


@dataclass
class SortedFiles:
    """The files of a tree by what they are; filled once, then only read."""

    matches: dict[str, FileMatch] = field(default_factory=dict)
    series: dict[str, list[Instance]] = field(default_factory=dict)
    annotations: list[Instance] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def sort_files(spec: CollectionSpec, layouts: Sequence[Layout], tree: Tree, salt: bytes) -> SortedFiles:
    """Read the header of every file that a layout takes."""
    found = SortedFiles()
    texts = any(layout.sequences or layout.derived for layout in layouts)
    fullest: dict[tuple[object, ...], Instance] = {}
    for match in _matches(spec, layouts, tree):
        path = match.file.path
        found.matches[path] = match
        try:
            instance = (
                read_instance(tree.root, path, n_bytes=match.file.n_bytes, texts=texts) if match.file.n_bytes else None
            )
            if instance and not instance.frames and instance.sop_class in ("", *IMAGES):
                raise CaseRejected(Reason.TRUNCATED, "a DICOM header ends before it says how large its picture is")
        except CaseRejected as error:
            key = f"file-{hashed(salt, spec, path)}"
            found.rejects.append(make_reject(spec, key, error.reason, error.detail, (path,)))
            continue
        if instance is None:
            _pass_over(spec, match.file, found, salt)
            continue
        what = _identity(instance)
        other = fullest.setdefault(what, instance)
        if other is not instance:
            found.passed_over["files passed over since they are copies of others"] += 1
            if match.file.n_bytes > found.matches[other.path].file.n_bytes:  # a copy cut short does not hide the whole
                fullest[what] = instance
    for instance in fullest.values():
        if is_annotation(instance):
            found.annotations.append(instance)
        elif not instance.frames or instance.modality in NO_IMAGES or not found.matches[instance.path].as_image:
            found.passed_over["DICOM objects passed over since they are no image that a layout takes"] += 1
        else:
            found.series.setdefault(series_key(instance), []).append(instance)
    return found


def _identity(instance: Instance) -> tuple[object, ...]:
    """What two copies of a file have in common, and two images do not, though a careless tool gave them one UID."""
    place = instance.frames[0].position_mm if instance.frames else ()
    number = instance.frames[0].number if instance.frames else 0
    own = instance.sop or instance.path
    return instance.patient, instance.study, instance.series, own, number, place


def series_key(instance: Instance) -> str:
    """Key of a series; the folder stands in for a UID that is missing."""
    return f"{instance.patient}/{instance.study}/{instance.series or PurePosixPath(instance.path).parent}"


def _matches(spec: CollectionSpec, layouts: Sequence[Layout], tree: Tree) -> Iterator[FileMatch]:
    for file in tree.files:
        if found_by_any(spec.exclude, file.path):
            continue
        images = {layout.id: match for layout in layouts if (match := search(layout.image, file.path))}
        labels = (layout.id for layout in layouts if search(layout.label or layout.image, file.path))
        one = FileMatch(
            file,
            {name: {k: v or "" for k, v in found.groupdict().items()} for name, found in images.items()},
            frozenset(labels),
        )
        if one.as_image or one.as_label:
            yield one


def _pass_over(spec: CollectionSpec, file: SourceFile, found: SortedFiles, salt: bytes) -> None:
    """A file that is no DICOM is a reject where its name promises DICOM, else one of those counted."""
    if not file.path.lower().endswith(NAMED_DICOM):
        found.passed_over["files passed over since they are no DICOM"] += 1
        return
    reason, detail = (
        (Reason.NOT_AN_IMAGE, "the content is not DICOM, whatever the name says; export it again")
        if file.n_bytes
        else (Reason.FILE_EMPTY, "the file has 0 bytes; export it again")
    )
    found.rejects.append(make_reject(spec, f"file-{hashed(salt, spec, file.path)}", reason, detail, (file.path,)))


def hashed(salt: bytes, spec: CollectionSpec, text: str) -> str:
    """Name what has no name of its own: 12 digits of a salted hash."""
    return hmac(salt, f"{spec.name}/{text}".encode(), "sha256").hexdigest()[:12]
