"""Read a stack of single-slice DICOM files, with masks as one PNG a slice (CHAOS CT).

Slices are sorted by position, never by number or name; masks pair with slices by rank in file-name order and travel with
them. Only the attributes in `ATTRIBUTES` are ever parsed, none of which names a person.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pydicom
from highdicom.spatial import create_affine_matrix_from_attributes, get_volume_positions
from jaxtyping import Shaped, UInt16
from pydicom.errors import InvalidDicomError

from medvar_data.catalog import CollectionSpec
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import check_affine
from medvar_data.readers.scan import Scan, compact, label_values
from medvar_data.records import Case, Geometry, LabelVolume, Volume
from medvar_data.tree import read_bytes

ATTRIBUTES = (
    "TransferSyntaxUID", "SOPClassUID", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "PixelData",
)  # fmt: skip
POSITION_RTOL = 0.02  # slices may lie this fraction of a step off the regular grid
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """One DICOM slice: [row, column] values in HU (or the modality's unit) and where it lies (LPS, mm)."""

    values: Shaped[np.ndarray, "row column"]
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_mm: tuple[float, ...]


def read_dicom_png(case: Case, spec: CollectionSpec) -> Scan:
    """Read a DICOM stack and, where there is one, its stack of PNG masks."""
    root = Path(case.root)
    if case.label and len(case.label) != len(case.image):
        raise CaseRejected(
            Reason.SLICE_COUNT,
            f"{len(case.image)} slices but {len(case.label)} masks; wanted one mask a slice",
        )
    files = [read_bytes(root, path) for path in case.image]
    planes = [read_plane(data) for data in files]
    order, affine = stack_planes(planes)
    voxels = np.stack([planes[i].values for i in order], axis=-1).swapaxes(0, 1)
    geometry = Geometry(voxels.shape, affine)
    image = Volume(compact(voxels), geometry, _digest(files))
    if not case.label:
        return Scan(image, None)
    files = [read_bytes(root, path) for path in case.label]
    masks = [_read_mask(data, planes[0].values.shape) for data in files]
    label = np.stack([masks[i] for i in order], axis=-1).swapaxes(0, 1)
    return Scan(image, LabelVolume(label_values(label), geometry, _digest(files), ("masks_paired_by_name",)))


def read_plane(data: bytes) -> Plane:
    """Parse one single-frame DICOM file.

    Raises:
        CaseRejected: not DICOM, cut short, a colour or multi-frame image, or without a position.
    """
    try:
        dataset = pydicom.dcmread(BytesIO(data), specific_tags=list(ATTRIBUTES))
        n_frames, n_samples = (int(dataset.get(name) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
        position, orientation, pixel = (
            tuple(float(v) for v in dataset.get(name) or ())
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
        slope = float(dataset.get("RescaleSlope", 1) or 1)
        intercept = float(dataset.get("RescaleIntercept", 0) or 0)
    except InvalidDicomError as error:
        raise CaseRejected(Reason.NOT_AN_IMAGE, "a slice is not DICOM, whatever the name says") from error
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a slice's DICOM header is cut short or damaged") from error
    if n_frames != 1 or n_samples != 1:
        raise CaseRejected(Reason.DIMENSIONS, "a slice has several frames or colours; wanted one grey picture a file")
    if (len(position), len(orientation), len(pixel)) != (3, 6, 2):
        raise CaseRejected(
            Reason.MIXED_SERIES,
            "a slice says nothing of where it lies; wanted position, orientation, spacing",
        )
    try:
        stored = dataset.pixel_array
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, f"a slice's pixels cannot be decoded ({type(error).__name__})") from error
    return Plane(_rescaled(stored, slope, intercept), position, orientation, pixel)


def stack_planes(planes: Sequence[Plane]) -> tuple[list[int], np.ndarray]:
    """Sort slices along their normal and make the affine of the stack.

    Returns the order and the affine from (column, row, slice) to RAS+ mm.

    Raises:
        CaseRejected: `mixed_series`, `missing_slice`, `duplicate_position` or `uneven_spacing`.
    """
    first = planes[0]
    for plane in planes:
        same = plane.values.shape == first.values.shape and np.allclose(plane.orientation, first.orientation, atol=1e-3)
        if not same or not np.allclose(plane.pixel_mm, first.pixel_mm, atol=1e-4):
            raise CaseRejected(Reason.MIXED_SERIES, "slices differ in size, spacing or orientation; wanted one stack")
    positions = [plane.position_mm for plane in planes]
    step, index = get_volume_positions(positions, first.orientation, rtol=POSITION_RTOL)
    if step is None or index is None:
        raise _why_no_volume(positions, first.orientation)
    order = [int(i) for i in np.argsort(index)]
    affine = create_affine_matrix_from_attributes(
        image_position=planes[order[0]].position_mm,
        image_orientation=first.orientation,
        pixel_spacing=first.pixel_mm,
        spacing_between_slices=step,
        index_convention=("R", "D"),
    )
    if len(planes) > 1:  # the third column from the positions themselves: tilt and direction come out right
        travel = np.subtract(planes[order[-1]].position_mm, planes[order[0]].position_mm)
        affine[:3, 2] = travel / (len(planes) - 1)
    affine = LPS_TO_RAS @ affine
    check_affine(affine)
    return order, affine


def _why_no_volume(positions: list[tuple[float, ...]], orientation: tuple[float, ...]) -> CaseRejected:
    normal = np.cross(orientation[:3], orientation[3:])
    heights = np.sort(np.asarray(positions) @ normal)
    gaps = np.diff(heights)
    if gaps.min() < 1e-3:
        return CaseRejected(Reason.DUPLICATE_POSITION, "two slices lie at one position; wanted one slice a position")
    spread = f"slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart"
    step, _ = get_volume_positions(positions, orientation, rtol=POSITION_RTOL, allow_missing_positions=True)
    if step is not None:
        missing = round((heights[-1] - heights[0]) / step) + 1 - len(heights)
        return CaseRejected(Reason.MISSING_SLICE, f"{spread}: {missing} missing; wanted a full stack, export it again")
    return CaseRejected(Reason.UNEVEN_SPACING, f"{spread}; wanted one distance")


def _rescaled(
    stored: Shaped[np.ndarray, "row column"], slope: float, intercept: float
) -> Shaped[np.ndarray, "row column"]:
    if slope == 1.0 and intercept.is_integer():
        return stored.astype(np.int32) + np.int32(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _read_mask(data: bytes, shape: tuple[int, ...]) -> UInt16[np.ndarray, "row column"]:
    mask = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2:
        raise CaseRejected(Reason.NOT_AN_IMAGE, "a mask is not a grey picture")
    if mask.shape != shape:
        raise CaseRejected(
            Reason.LABEL_SHAPE,
            f"a mask is {mask.shape[0]} x {mask.shape[1]} pixels, its slice {shape[0]} x {shape[1]}",
        )
    return mask.astype(np.uint16)


def _digest(files: Sequence[bytes]) -> str:
    """Digest of a stack: sha256 over the members' sorted sha256, so that file order and packing do not matter."""
    return sha256("".join(sorted(sha256(data).hexdigest() for data in files)).encode()).hexdigest()
