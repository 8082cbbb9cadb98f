"""What every reader returns, and the checks and repairs that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16

from medvar_data.errors import CaseRejected, Reason
from medvar_data.records import LabelVolume, Volume

INT16 = np.iinfo(np.int16)
FLOAT32_MAX = float(np.finfo(np.float32).max)
SHOWN_RANGE = (0.5, 99.5)  # percentiles of what is no background
GREY_STEPS = 2550  # a tenth of a grey level
LABEL_TOLERANCE = 1e-3  # how far a stored label may lie from an integer


@dataclass(frozen=True)
class Header:
    """What a file's header says before any voxel is read."""

    shape: tuple[int, int, int]
    n_channels: int
    spacing_mm: tuple[float, float, float]
    voxel_bytes: int = 0  # of one voxel of one channel as stored; 0 where unknown


@dataclass(frozen=True)
class Scan:
    """An image and, where there is one, its label on the same grid."""

    image: Volume
    label: LabelVolume | None


def compact(voxels: Shaped[np.ndarray, "i j k"]) -> Shaped[np.ndarray, "i j k"]:
    """Store voxels as int16 where that is exact, else as float32.

    Raises:
        CaseRejected: `nan_voxels`, `constant_image`, `value_range`, or `dimensions` where a voxel is not one real number.
    """
    check_real(voxels.dtype)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        n_bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        raise CaseRejected(Reason.NAN_VOXELS, f"{n_bad} of {voxels.size} voxels are NaN or infinite; wanted numbers")
    low, high = voxels.min(), voxels.max()
    if low == high:
        raise CaseRejected(Reason.CONSTANT_IMAGE, f"all {voxels.size} voxels have one value; wanted an image")
    if voxels.dtype == np.int16:
        return voxels
    whole = voxels.dtype.kind in "iub" or bool((voxels == np.rint(voxels)).all())
    if whole and low >= INT16.min and high <= INT16.max:
        return voxels.astype(np.int16)
    if max(abs(float(low)), abs(float(high))) > FLOAT32_MAX:
        raise CaseRejected(Reason.NAN_VOXELS, "the image holds values beyond 32-bit floats; wanted numbers")
    return voxels.astype(np.float32) if voxels.dtype.itemsize <= 2 else _narrowed(voxels)


def _narrowed(voxels: Shaped[np.ndarray, "i j k"]) -> Shaped[np.ndarray, "i j k"]:
    """Store wide numbers as float32, as long as no grey level can depend on what that rounds away."""
    narrow = voxels.astype(np.float32)
    if voxels.dtype == np.float32:
        return narrow
    planes = zip(np.moveaxis(voxels, 2, 0), np.moveaxis(narrow, 2, 0), strict=True)  # a plane at a time, to save memory
    lost = max(float(np.abs(wide.astype(np.float64) - short).max()) for wide, short in planes)
    if lost:
        inside = narrow[narrow != 0]
        low, high = np.percentile(inside, SHOWN_RANGE) if inside.size else (0.0, 0.0)
        if lost > (high - low) / GREY_STEPS:
            raise CaseRejected(
                Reason.VALUE_RANGE,
                f"values lie {high - low:.4g} apart around {high:.6g}, which 32-bit floats hold to {lost:.2g} alone; subtract the offset",
            )
    return narrow


def check_real(dtype: np.dtype) -> None:
    """Reject voxels that are not one real number each.

    Raises:
        CaseRejected: `dimensions`.
    """
    if dtype.kind not in "iufb":
        raise CaseRejected(Reason.DIMENSIONS, "a voxel holds a colour or a complex number; wanted one real number")


def label_values(
    voxels: Shaped[np.ndarray, "i j k"],
) -> UInt8[np.ndarray, "i j k"] | UInt16[np.ndarray, "i j k"]:
    """Read stored label voxels as whole numbers, uint8 where they fit (uint8 as stored is not copied), else uint16.

    Raises:
        CaseRejected: `label_values` (not whole, negative, above 65535), `empty_label`, or `dimensions`.
    """
    check_real(voxels.dtype)
    if voxels.dtype.kind == "f":
        if not np.isfinite(voxels).all():
            raise CaseRejected(Reason.LABEL_VALUES, "the label holds NaN or infinity; wanted whole numbers")
        rounded = np.rint(voxels)
        if np.abs(voxels - rounded).max() > LABEL_TOLERANCE:
            raise CaseRejected(Reason.LABEL_VALUES, "the label holds fractions; wanted whole numbers")
        voxels = rounded
    low, high = voxels.min(), voxels.max()
    if low < 0 or high > 65535:
        raise CaseRejected(Reason.LABEL_VALUES, f"the label holds values from {low} to {high}; wanted 0 to 65535")
    if high == 0:
        raise CaseRejected(Reason.EMPTY_LABEL, "the label is zero everywhere; wanted at least one annotated voxel")
    return voxels.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


def digest_of_files(digests: Sequence[str]) -> str:
    """Name what several files hold together: sha256 over their digests in order, hex; of one file its own."""
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def check_same_shape(image: tuple[int, ...], label: tuple[int, ...]) -> None:
    """Reject a label whose shape is not its image's."""
    if image != label:
        found = " x ".join(map(str, label))
        wanted = " x ".join(map(str, image))
        raise CaseRejected(Reason.LABEL_SHAPE, f"the label is {found} voxels, its image {wanted}; wanted one shape")
