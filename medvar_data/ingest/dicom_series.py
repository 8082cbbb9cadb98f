"""Find the volumes in a tree of DICOM files: by headers, since names of files and folders do not say what belongs together.

In: a collection whose layouts have the reader `dicom`, and the tree. Out: one `Case` a volume, one `Reject` a volume (or, where
a whole series is none, a series) that cannot be used. No pixel is read. UIDs and patient IDs are compared and hashed here and
go no further.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hmac import new as hmac
from pathlib import Path

from medvar_data.catalog.collection import CollectionSpec, Layout
from medvar_data.catalog.patterns import search
from medvar_data.errors import CaseRejected, Reason
from medvar_data.ingest.dicom_files import SortedFiles, hashed, series_key, sort_files
from medvar_data.ingest.dicom_labels import DicomVolume, pair_annotations, take_mask_series
from medvar_data.ingest.names import (
    MAX_CASE_KEY,
    CaseFiles,
    case_key,
    make_case,
    make_reject,
    patients_of,
    skip_reason,
    slug,
    with_hash,
)
from medvar_data.readers.dicom.headers import Frame, Instance
from medvar_data.readers.dicom.regions import FROM_HEADER, UNKNOWN, region_of_volume
from medvar_data.readers.dicom.screening import why_unfit
from medvar_data.readers.dicom.volumes import MIN_SLICES, Part, n_places, split_series, stack_frames
from medvar_data.records import Case, LayoutCount, Reject
from medvar_data.sources.tree import Tree


@dataclass(frozen=True)
class Volumes:
    """What the headers of a tree tell."""

    candidates: tuple[Case, ...] = ()
    rejects: tuple[Reject, ...] = ()
    counts: tuple[LayoutCount, ...] = ()
    notes: tuple[str, ...] = ()


def find_volumes(spec: CollectionSpec, tree: Tree, salt: bytes) -> Volumes:
    """Group the DICOM files that the layouts with the reader `dicom` take into volumes, and pair them with annotations."""
    layouts = [layout for layout in spec.layouts if layout.reader == "dicom"]
    if not layouts:
        return Volumes()
    found = sort_files(spec, layouts, tree, salt)
    volumes: list[DicomVolume] = []
    rejects: list[tuple[str, Reject]] = [(layouts[0].id, reject) for reject in found.rejects]
    owners = {key: _layout_of(instances, spec, layouts, found) for key, instances in found.series.items()}
    masks = take_mask_series(spec, owners, found)
    for key, instances in sorted(found.series.items()):
        layout = owners[key]
        for one in _check_series(spec, layout, instances, found, Path(tree.root), salt):
            if isinstance(one, Reject):
                rejects.append((layout.id, one))
            else:
                volumes.append(one)
    labels, lone = pair_annotations(spec, layouts, volumes, found, masks, salt)
    rejects += lone
    cases = [_with_labels(volume, labels.get(volume.case.case, []), found) for volume in volumes]
    return Volumes(
        tuple(cases),
        tuple(reject for _, reject in rejects),
        tuple(_count(layout, volumes, cases, [owner for owner, _ in rejects]) for layout in layouts),
        (*(f"{what}: {n}" for what, n in sorted(found.passed_over.items())), *_region_notes(cases)),
    )


def _region_notes(cases: Sequence[Case]) -> tuple[str, ...]:
    """Ask for what no header tells."""
    n = sum(case.region == UNKNOWN for case in cases)
    asked = "volumes whose headers name no region that is known here; say it by `region` in a description of your own"
    return (f"{asked}: {n}",) if n else ()


def _layout_of(
    instances: Sequence[Instance], spec: CollectionSpec, layouts: Sequence[Layout], found: SortedFiles
) -> Layout:
    """The first layout that takes the series' files and its modality; else the first that takes its files."""
    taking = [layout for layout in layouts if layout.id in found.matches[instances[0].path].as_image]
    every = [layout for layout in taking if all(layout.id in found.matches[one.path].as_image for one in instances)]
    taking = every or taking
    fitting = [layout for layout in taking if (layout.modality or spec.modality) == instances[0].modality]
    return (fitting or taking)[0]


def _check_series(
    spec: CollectionSpec, layout: Layout, instances: Sequence[Instance], found: SortedFiles, root: Path, salt: bytes
) -> Iterator[DicomVolume | Reject]:
    """Leave out the images that are none, split the rest into volumes and check the geometry of each."""
    modality = layout.modality or spec.modality
    base = _base_key(spec, layout, instances[0], found, salt)
    asked = [one for one in spec.layouts if one.id in found.matches[instances[0].path].as_image]
    wanted = {one.modality or spec.modality for one in asked}
    unfit: dict[Reason, tuple[str, list[str]]] = {}
    frames: list[Frame] = []
    owners: dict[str, Instance] = {}
    for instance in instances:
        why = why_unfit(instance, modality, layout.derived, wanted)
        if why:
            unfit.setdefault(why[0], (why[1], []))[1].append(instance.path)
        else:
            frames += instance.frames
            owners[instance.path] = instance
    for reason, (detail, files) in unfit.items():
        key = _cut(f"{base}-{slug(reason.value)}")
        yield make_reject(spec, key, reason, f"{_counted(len(files), 'image')} {detail}", files)
    for part in split_series(frames) if frames else ():
        key = _cut("-".join([base, *(slug(word) for word in part.words)]))
        skipped = skip_reason(spec, key)
        try:
            if skipped:
                raise CaseRejected(Reason.KNOWN_BAD, skipped)
            paths, channel = _files(part, frames)
            first = next((owners[path] for path in paths if layout.id in found.matches[path].as_image), instances[0])
            regions = {owners[path].region for path in paths}
            yield DicomVolume(
                _case(spec, layout, part, (paths, channel), (first, found, root), regions=regions, key=key, salt=salt),
                layout,
                first.series,
                first.study,
                first.frame_of_reference,
                frozenset(owners[path].sop for path in paths),
                part.frames,
            )
        except CaseRejected as error:
            own = dict.fromkeys(frame.path for frame in part.frames)
            yield make_reject(spec, key, error.reason, error.detail, own)


def _files(part: Part, frames: Sequence[Frame]) -> tuple[list[str], int]:
    """Paths of a volume in the order of its slices, and its number among the volumes that these files hold (-1: the only one).

    Raises:
        CaseRejected: its frames make no volume.
    """
    if not all(frame.position_mm for frame in part.frames):
        raise CaseRejected(
            Reason.MIXED_SERIES, "an image says nothing of where it lies; wanted position, orientation, spacing"
        )
    n = n_places(part.frames)
    if n < MIN_SLICES:
        images = f"{_counted(len(part.frames), 'image')} at {_counted(n, 'place')}"
        if part.n_orientations > 1:
            raise CaseRejected(
                Reason.LOCALIZER, f"{images}, in one of {part.n_orientations} orientations of the series: to plan by"
            )
        raise CaseRejected(Reason.TOO_FEW_SLICES, f"{images}; wanted slices at {MIN_SLICES} places or more")
    paths = list(dict.fromkeys(frame.path for frame in stack_frames(part.frames).frames))
    inside = set(paths)
    there = [frame for frame in frames if frame.path in inside]
    if len(there) == len(part.frames):
        return paths, -1
    own = {(frame.path, frame.index) for frame in part.frames}
    for number, other in enumerate(split_series(there)):
        if {(frame.path, frame.index) for frame in other.frames} == own:
            return paths, number
    raise CaseRejected(Reason.MIXED_SERIES, "its files hold parts of several volumes; export one volume a file")


def _case(
    spec: CollectionSpec,
    layout: Layout,
    part: Part,
    files: tuple[list[str], int],
    source: tuple[Instance, SortedFiles, Path],
    *,
    regions: set[str],
    key: str,
    salt: bytes,
) -> Case:
    (paths, channel), (first, found, root) = files, source
    groups = found.matches[first.path].as_image[layout.id]
    n_bytes = sum(found.matches[path].file.n_bytes for path in paths)
    region = layout.region or spec.region
    if region == FROM_HEADER:
        region = region_of_volume(regions)
    return make_case(
        spec,
        layout,
        groups,
        key=key,
        patient=layout.group.format_map(groups) if layout.group else _patient(patients_of(spec, layout), first, salt),
        sequence=_sequence(layout, groups, first, part),
        files=CaseFiles(str(root), tuple(paths), (), channel, n_bytes),
        region=region,
    )


def _sequence(layout: Layout, groups: Mapping[str, str], first: Instance, part: Part) -> str:
    """Name the sequence in the user's own words, then by what sets the volume apart in its series."""
    named = (name for pattern, name in layout.sequences.items() if _matches_any(pattern, first.texts))
    return " ".join(word for word in (next(named, layout.sequence.format_map(groups)), *part.words) if word)


def _matches_any(pattern: str, texts: Iterable[str]) -> bool:
    return any(search(pattern, text, ignore_case=True) for text in texts)


def _with_labels(volume: DicomVolume, paths: list[str], found: SortedFiles) -> Case:
    n_bytes = volume.case.n_bytes + sum(found.matches[path].file.n_bytes for path in paths)
    return replace(volume.case, label=tuple(sorted(paths)), n_bytes=n_bytes)


def _count(
    layout: Layout, volumes: Sequence[DicomVolume], cases: Sequence[Case], rejected: Sequence[str]
) -> LayoutCount:
    mine = [case for case, volume in zip(cases, volumes, strict=True) if volume.layout is layout]
    unlabelled = sum(layout.labelled and not case.label for case in mine)
    return LayoutCount(layout.id, len(mine) + rejected.count(layout.id), layout.expected, unlabelled)


def _base_key(spec: CollectionSpec, layout: Layout, first: Instance, found: SortedFiles, salt: bytes) -> str:
    """Name a series: by a salted hash, after the layout's own words where it has any."""
    series = hashed(salt, spec, series_key(first))
    if not layout.case:
        return series
    return f"{case_key(layout.case.format_map(found.matches[first.path].as_image[layout.id]), spec, salt)}-{series[:6]}"


def _cut(key: str) -> str:
    return key if len(key) <= MAX_CASE_KEY else with_hash(key, key)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _patient(owner: str, first: Instance, salt: bytes) -> str:
    """The patient as a salted hash of PatientID; of the study, else the series, where a file names none."""
    return hmac(salt, f"{owner}/{first.patient or first.study or first.series}".encode(), "sha256").hexdigest()[:16]
