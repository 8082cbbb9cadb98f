"""Pair annotations with the DICOM volumes that they were drawn on: segmentations, structure sets and series of mask pictures.

In: the volumes found and the sorted files. Out: the label files of each case; every annotation is one of them, a reject with its
cause, or counted in a note. A series of mask pictures (Secondary Capture, or derived) is an annotation where its layout says
`derived = true` and its description is a name that a `[[label]]`'s `roi` means.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medvar_data.catalog.collection import CollectionSpec, Layout, labels_of
from medvar_data.catalog.patterns import fullmatch
from medvar_data.errors import Reason
from medvar_data.ingest.dicom_files import SortedFiles, hashed
from medvar_data.ingest.names import make_reject
from medvar_data.readers.dicom.headers import Frame, Instance
from medvar_data.readers.dicom.screening import is_derived
from medvar_data.records import Case, Reject

SAME_PLACE_MM = 0.1  # between a mask picture and its slice


@dataclass(frozen=True)
class DicomVolume:
    """A case and what pairs annotations with it."""

    case: Case
    layout: Layout
    series: str
    study: str
    frame_of_reference: str
    sops: frozenset[str]
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class _Annotation:
    """A segmentation, a structure set, or the pictures of one series of masks."""

    paths: tuple[str, ...]
    key: str  # to be hashed
    series: frozenset[str]  # referenced
    images: frozenset[str]  # referenced
    frame_of_reference: str
    study: str
    pictures: tuple[Frame, ...] = ()  # of a series of masks


def take_mask_series(
    spec: CollectionSpec, layouts: Mapping[str, Layout], found: SortedFiles
) -> dict[str, list[Instance]]:
    """Take the series of masks out of the series found.

    Args:
        spec: of the collection.
        layouts: by the key of a series.
        found: loses the series that are masks.
    """
    keys = [key for key, instances in sorted(found.series.items()) if _is_mask_series(spec, layouts[key], instances)]
    return {key: found.series.pop(key) for key in keys}


def pair_annotations(
    spec: CollectionSpec,
    layouts: Sequence[Layout],
    volumes: Sequence[DicomVolume],
    found: SortedFiles,
    masks: Mapping[str, Sequence[Instance]],
    salt: bytes,
) -> tuple[dict[str, list[str]], list[tuple[str, Reject]]]:
    """Give each annotation to the volumes that it was drawn on. One of which no volume came is a reject, or counted.

    Returns:
        Label files by case, and rejects with the id of their layout.
    """
    labels: dict[str, list[str]] = {}
    lone: list[tuple[str, Reject]] = []
    asking = {layout.id for layout in layouts if layout.labelled and any(row.roi for row in labels_of(spec, layout.id))}
    for annotation in _annotations(found, masks):
        takers = {layout.id for layout in layouts if layout.id in found.matches[annotation.paths[0]].as_label}
        mine = _drawn_on(annotation, [volume for volume in volumes if volume.layout.id in takers])
        wanted = [volume for volume in mine if volume.layout.id in asking]
        for volume in wanted:
            labels.setdefault(volume.case.case, []).extend(annotation.paths)
        if wanted:
            continue
        if mine or not takers & asking:
            found.passed_over["segmentations and structure sets passed over since no `roi` asks for them"] += 1
            continue
        key = f"label-{hashed(salt, spec, annotation.key)}"
        owner = next(layout.id for layout in layouts if layout.id in takers & asking)
        why = _why_unpaired(annotation, volumes, found)
        lone.append((owner, make_reject(spec, key, Reason.LABEL_WITHOUT_IMAGE, why, annotation.paths)))
    return labels, lone


def _is_mask_series(spec: CollectionSpec, layout: Layout, instances: Sequence[Instance]) -> bool:
    rows = [row.roi for row in labels_of(spec, layout.id) if row.roi] if layout.derived and layout.labelled else []
    first = instances[0]
    named = any(fullmatch(roi, text, ignore_case=True) for roi in rows for text in first.texts)
    return named and all(is_derived(one) for one in instances)


def _annotations(found: SortedFiles, masks: Mapping[str, Sequence[Instance]]) -> Iterator[_Annotation]:
    for one in found.annotations:
        key = one.sop or one.path
        yield _Annotation(
            (one.path,), key, one.series_referenced, one.instances_referenced, one.frame_of_reference, one.study
        )
    for key, pictures in masks.items():
        yield _Annotation(
            tuple(sorted(one.path for one in pictures)),
            key,
            frozenset().union(*(one.series_referenced for one in pictures)),
            frozenset().union(*(one.instances_referenced for one in pictures)),
            pictures[0].frame_of_reference,
            pictures[0].study,
            tuple(frame for one in pictures for frame in one.frames),
        )


def _drawn_on(annotation: _Annotation, volumes: Sequence[DicomVolume]) -> list[DicomVolume]:
    """Volumes by the images that an annotation names, else by the series, else by a place that one series alone has."""
    if annotation.images:
        series = annotation.series
        return [one for one in volumes if one.sops & annotation.images and (not series or one.series in series)]
    if annotation.series:
        return [one for one in volumes if one.series in annotation.series]
    there = [one for one in volumes if _lies_there(annotation, one)]
    alone = len({one.series for one in there}) == 1 if annotation.pictures else len(there) == 1
    return there if alone else []


def _lies_there(annotation: _Annotation, volume: DicomVolume) -> bool:
    """Tell whether an annotation that names no images lies in a volume's frame of reference, mask pictures on its slices."""
    if annotation.frame_of_reference != volume.frame_of_reference or not annotation.frame_of_reference:
        return False
    if not annotation.pictures:
        return True
    if annotation.study != volume.study or not all(frame.position_mm for frame in annotation.pictures):
        return False
    places = np.asarray([frame.position_mm for frame in volume.frames])
    masks = np.asarray([frame.position_mm for frame in annotation.pictures])
    return bool((np.linalg.norm(masks[:, None] - places[None], axis=2).min(axis=1) <= SAME_PLACE_MM).all())


def _why_unpaired(annotation: _Annotation, volumes: Sequence[DicomVolume], found: SortedFiles) -> str:
    """Why an annotation has no volume: it names none, or what it names is not here, or is here but no case."""
    what = "a series of masks" if annotation.pictures else "a segmentation or structure set"
    if not annotation.series and not annotation.images:
        n = sum(_lies_there(annotation, volume) for volume in volumes)
        return f"{what} names neither series nor images, and {n or 'no'} volumes lie where it lies; wanted one"
    here = [one for instances in found.series.values() for one in instances]
    if any((one.sop in annotation.images if annotation.images else one.series in annotation.series) for one in here):
        return f"the images that {what} was drawn on are here, but no case came of them; the other rejects tell why"
    if any(one.series in annotation.series for one in here):
        return f"{what} was drawn on images of a series that is here, but not on any of those that are here"
    return f"the images that {what} was drawn on are not here"
