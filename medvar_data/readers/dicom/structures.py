"""Paint segmentations (SEG, PS3.3 A.51) and structure sets (RTSTRUCT, A.19) onto the grid of the image they were drawn on.

A structure is known by its name: a collection's `[[label]]` rows say by a pattern which names they mean and which value
their voxels take. Rows paint in their order, later ones over earlier ones. Names that no row means are never shown.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float64, UInt16
from pydicom.dataset import Dataset
from skimage.draw import polygon

from medvar_data.catalog.collection import LabelSpec
from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.dicom.headers import Instance, quiet
from medvar_data.readers.dicom.pixels import decode_frames
from medvar_data.readers.dicom.volumes import LPS_TO_RAS
from medvar_data.records import Geometry

SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
OFF_GRID = 0.25  # a segmentation's voxels may lie this fraction of a voxel beside the image's
OFF_PLANE = 0.5  # a contour may lie this fraction of a slice beside the image's slice, and so much out of plane


def is_annotation(instance: Instance) -> bool:
    """Tell segmentations and structure sets from images."""
    return instance.sop_class in (*SEGMENTATION, STRUCTURE_SET)


def paint(
    files: Iterable[tuple[Instance, Dataset]], labels: Sequence[LabelSpec], geometry: Geometry
) -> UInt16[np.ndarray, "i j k"]:
    """Paint every structure that a label row means; a row's voxels take its value `low`.

    Args:
        files: parsed with pixels and structures.
        labels: rows in the order of painting; those without `roi` mean nothing here.
        geometry: of the image.

    Raises:
        CaseRejected: `label_values` where no row means any of the names; `label_geometry`; `truncated`.
    """
    pairs = list(files)
    voxels = np.zeros(geometry.shape, dtype=np.uint16)
    n_named = n_meant = 0
    for row in labels:
        for instance, dataset in pairs if row.roi else ():
            names = _names(instance, dataset)
            numbers = [n for n, known in names.items() if any(re.fullmatch(row.roi, k, re.IGNORECASE) for k in known)]
            n_named, n_meant = n_named + len(names), n_meant + len(numbers)
            masks = _segments if instance.sop_class in SEGMENTATION else _contours
            for i, j, k in masks(instance, dataset, numbers, geometry) if numbers else ():
                voxels[i, j, k] = row.low
    if not n_meant:
        raise CaseRejected(
            Reason.LABEL_VALUES, f"none of {n_named} structures is one that the collection's roi patterns mean"
        )
    return voxels


def _names(instance: Instance, dataset: Dataset) -> dict[int, tuple[str, ...]]:
    """What each numbered structure is called."""
    try:
        with quiet():
            if instance.sop_class == STRUCTURE_SET:
                rois = dataset.get("StructureSetROISequence") or ()
                return {int(roi.ROINumber): (str(roi.get("ROIName") or "").strip(),) for roi in rois}
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
    """Voxels of some segments, frame by frame."""
    kind = str(dataset.get("SegmentationType") or "")
    wanted = [f for f in instance.frames if kind == "LABELMAP" or f.segment in numbers]
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
    if np.abs(np.abs(steps).sum(axis=0) - 1).max() > 0.01 or (at.size and np.abs(at - whole).max() > OFF_GRID):
        raise CaseRejected(
            Reason.LABEL_GEOMETRY, "a segmentation lies on another grid than its image; wanted one voxel for one voxel"
        )
    i, j, k = whole.astype(int)
    inside = np.all((whole >= 0) & (whole < np.asarray(geometry.shape)[:, None]), axis=0)
    return i[inside], j[inside], k[inside]


def _contours(instance: Instance, dataset: Dataset, numbers: Sequence[int], geometry: Geometry) -> Iterator[Voxels]:
    """Voxels whose centres lie within the contours of some regions.

    Contours of one region in one plane are combined by exclusive or, so that one within another is a hole; a contour that
    is drawn twice counts once. A keyhole, which runs into a hole and back, has its hole by itself.
    """
    to_index = np.linalg.inv(geometry.affine) @ LPS_TO_RAS
    for number in numbers:
        n_outside = 0
        planes: dict[float, Bool[np.ndarray, "i j"]] = {}
        for points in dict.fromkeys(_closed_contours(dataset, number)):
            corners = np.asarray(points, dtype=np.float64).reshape(-1, 3)
            i, j, k = (to_index @ np.column_stack([corners, np.ones(len(corners))]).T)[:3]
            height = round(float(np.median(k)), 2)
            if np.abs(k - height).max() > OFF_PLANE:
                raise CaseRejected(Reason.LABEL_GEOMETRY, "a contour does not lie in the plane of the image's slices")
            if not 0 <= round(height) < geometry.shape[2]:
                n_outside += 1
                continue
            inside = polygon(i, j, geometry.shape[:2])
            planes.setdefault(height, np.zeros(geometry.shape[:2], dtype=bool))[inside] ^= True
        if n_outside and not planes:
            raise CaseRejected(
                Reason.LABEL_GEOMETRY, "all contours lie outside the image; wanted those of its own series"
            )
        for height, mask in planes.items():
            i, j = np.nonzero(mask)
            yield i, j, np.full_like(i, round(height))


def _closed_contours(dataset: Dataset, number: int) -> Iterator[tuple[float, ...]]:
    """Points of the closed planar contours of one region (LPS, mm), three numbers a point."""
    try:
        with quiet():
            for region in dataset.get("ROIContourSequence") or ():
                if int(region.get("ReferencedROINumber") or 0) != number:
                    continue
                for contour in region.get("ContourSequence") or ():
                    if str(contour.get("ContourGeometricType") or "").startswith("CLOSED_PLANAR"):
                        points = tuple(float(v) for v in contour.get("ContourData") or ())
                        if len(points) >= 9 and len(points) % 3 == 0:
                            yield points
    except MemoryError:
        raise
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a structure set is cut short or damaged") from error
