"""Paint annotations onto the grid of the image that they were drawn on: segmentations (SEG, PS3.3 A.51), structure sets
(RTSTRUCT, A.19) and mask pictures, whose voxels above zero count.

A structure is known by its name, a mask picture by its series' description: a collection's `[[label]]` rows say by a pattern which names they mean and which value
their voxels take. Where structures overlap, and where a name fits several rows, the first row wins. Names that no row means are
never shown.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float64, UInt16
from pydicom.dataset import Dataset

from medvar_data.catalog.collection import LabelSpec
from medvar_data.catalog.patterns import fullmatch
from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.dicom.contours import read_region
from medvar_data.readers.dicom.headers import Instance, quiet
from medvar_data.readers.dicom.pixels import decode_frames
from medvar_data.readers.dicom.volumes import LPS_TO_RAS
from medvar_data.records import Geometry

SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
MASK = 1  # number of the only structure of a mask picture
OFF_SCALE = 0.01  # of a voxel's edge
OFF_GRID = 0.25  # a segmentation's voxels may lie this fraction of a voxel beside the image's


def is_annotation(instance: Instance) -> bool:
    """Tell segmentations and structure sets from images."""
    return instance.sop_class in (*SEGMENTATION, STRUCTURE_SET)


def paint(
    files: Iterable[tuple[Instance, Dataset]], labels: Sequence[LabelSpec], geometry: Geometry
) -> tuple[UInt16[np.ndarray, "i j k"], tuple[str, ...]]:
    """Paint every structure that a label row means; a row's voxels take its value `low`.

    Args:
        files: parsed with pixels and structures.
        labels: rows, the first of which wins where structures overlap; those without `roi` mean nothing here.
        geometry: of the image.

    Returns:
        The voxels, and steps that count what was left out or filled, such as `contours_outside=2`.

    Raises:
        CaseRejected: `label_values` where no row means any of the names; `label_geometry`; `truncated`.
    """
    pairs = list(files)
    voxels = np.zeros(geometry.shape, dtype=np.uint16)
    steps: Counter[str] = Counter()
    names = [_names(instance, dataset) for instance, dataset in pairs]
    meant: list[set[int]] = [set() for _ in pairs]
    for row in reversed(labels):
        for (instance, dataset), named, used in zip(pairs, names, meant, strict=True) if row.roi else ():
            numbers = [n for n, known in named.items() if any(fullmatch(row.roi, k, ignore_case=True) for k in known)]
            used.update(numbers)
            if not numbers:
                continue
            if instance.sop_class == STRUCTURE_SET:
                found = _regions(instance, dataset, numbers, geometry, steps)
            else:
                found = _segments(instance, dataset, numbers, geometry)
            for i, j, k in found:
                voxels[i, j, k] = row.low
    n_named = sum(map(len, names))
    if not any(meant):
        raise CaseRejected(
            Reason.LABEL_VALUES, f"none of {n_named} structures is one that the collection's roi patterns mean"
        )
    steps["structures_not_meant"] = n_named - sum(map(len, meant))
    return voxels, tuple(f"{name}={n}" for name, n in sorted(steps.items()) if n)


def _names(instance: Instance, dataset: Dataset) -> dict[int, tuple[str, ...]]:
    """What each numbered structure is called."""
    try:
        with quiet():
            if instance.sop_class == STRUCTURE_SET:
                rois = dataset.get("StructureSetROISequence") or ()
                return {int(roi.ROINumber): (str(roi.get("ROIName") or "").strip(),) for roi in rois}
            if instance.sop_class not in SEGMENTATION:  # mask pictures: the series has the name
                return {MASK: instance.texts}
            found = {}
            for segment in dataset.get("SegmentSequence") or ():
                kinds = segment.get("SegmentedPropertyTypeCodeSequence") or ()
                texts = [segment.get("SegmentLabel"), *(kind.get("CodeMeaning") for kind in kinds)]
                found[int(segment.SegmentNumber)] = tuple(str(text).strip() for text in texts if text)
            return found
    except MemoryError:
        raise
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a segmentation or structure set is cut short or damaged") from error


Voxels = tuple[np.ndarray, np.ndarray, np.ndarray]


def _segments(instance: Instance, dataset: Dataset, numbers: Sequence[int], geometry: Geometry) -> Iterator[Voxels]:
    """Voxels of some segments, or of mask pictures, frame by frame."""
    kind = str(dataset.get("SegmentationType") or "")
    is_mask = instance.sop_class not in SEGMENTATION
    wanted = [f for f in instance.frames if is_mask or kind == "LABELMAP" or f.segment in numbers]
    pictures = decode_frames(dataset, [f.index for f in wanted])
    half = float(dataset.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0
    to_index = np.linalg.inv(geometry.affine) @ LPS_TO_RAS
    for frame, picture in zip(wanted, pictures, strict=True):
        mask = np.isin(picture, numbers) if kind == "LABELMAP" else picture > half
        if not (frame.position_mm and frame.orientation and frame.pixel_mm):
            raise CaseRejected(Reason.LABEL_GEOMETRY, "a segmentation says nothing of where it lies")
        yield _on_grid(mask, _plane_affine(frame.position_mm, frame.orientation, frame.pixel_mm), to_index, geometry)


def _plane_affine(
    position: Sequence[float], orientation: Sequence[float], pixel_mm: Sequence[float]
) -> Float64[np.ndarray, "4 3"]:
    """From (row, column, 1) of a picture to LPS mm (PS3.3 C.7.6.2.1.1)."""
    affine = np.zeros((4, 3))
    affine[:3, 0] = np.multiply(orientation[3:], pixel_mm[0])
    affine[:3, 1] = np.multiply(orientation[:3], pixel_mm[1])
    affine[:, 2] = [*position, 1.0]
    return affine


def _on_grid(
    mask: Bool[np.ndarray, "row column"],
    plane: Float64[np.ndarray, "4 3"],
    to_index: Float64[np.ndarray, "4 4"],
    geometry: Geometry,
) -> Voxels:
    """Voxel indices of the set pixels of a picture, which must lie on the image's grid, turned or flipped as it may be."""
    rows, columns = np.nonzero(mask)
    index = (to_index @ plane)[:3]
    steps = index[:, :2]
    at = index @ np.stack([rows, columns, np.ones_like(rows)])
    whole = np.rint(at)
    scale = np.abs(steps).sum(axis=0)
    off = float(np.abs(at - whole).max()) if at.size else 0.0
    if np.abs(scale - 1).max() > OFF_SCALE or off > OFF_GRID:
        raise CaseRejected(
            Reason.LABEL_GEOMETRY,
            f"a segmentation lies on another grid than its image: its pixels are {scale[1]:.4g} x {scale[0]:.4g} of the image's "
            f"and lie {off:.2g} of one beside; wanted 1 x 1, and at most {OFF_GRID} beside",
        )
    i, j, k = whole.astype(int)
    inside = np.all((whole >= 0) & (whole < np.asarray(geometry.shape)[:, None]), axis=0)
    return i[inside], j[inside], k[inside]


def _regions(
    instance: Instance, dataset: Dataset, numbers: Sequence[int], geometry: Geometry, steps: Counter[str]
) -> Iterator[Voxels]:
    """Voxels whose centres lie within the contours of some regions, slice by slice."""
    to_index = np.linalg.inv(geometry.affine) @ LPS_TO_RAS
    for number in numbers:
        region = read_region(dataset, number, to_index, geometry.shape)
        steps.update(region.steps)
        for k, mask in region.slices.items():
            i, j = np.nonzero(mask)
            yield i, j, np.full_like(i, k)
