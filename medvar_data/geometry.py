"""Turn stored voxels into canonical slices and slices into squares; everything here acts on image and label alike.

Reorientation is by the affine and only permutes and flips axes. Resizing works in physical values, per axis: area
averaging to shrink, linear interpolation to enlarge, exact-centre nearest for masks.
"""

from dataclasses import dataclass

import cv2
import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped

from medvar_data.errors import CaseRejected, Reason
from medvar_data.records import Geometry

SHEAR_LIMIT = 0.05  # largest |cosine| between two voxel axes; ITK refuses from about 5e-4, permuting tolerates more
SPACING_LIMITS_MM = (0.01, 100.0)
SPACING_TOLERANCE_MM = 0.01  # between affine and pixdim


@dataclass(frozen=True)
class SlicePlan:
    """How slices are cut from a stored volume.

    Attributes:
        axis: slice axis in the canonical (R, A, S) frame: 0 sagittal, 1 coronal, 2 axial.
        stored_axes: for each canonical axis, the stored axis it comes from.
        flips: for each canonical axis, whether the stored direction is reversed.
        affine: of the canonical volume, RAS+ mm.
        orientation: axis codes as stored, such as "LPS".
        n_slices: along `axis`.
    """

    axis: int
    stored_axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    affine: Float64[np.ndarray, "4 4"]
    orientation: str
    n_slices: int

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Row step, column step and through-plane step of a slice, mm."""
        across, down = (a for a in range(3) if a != self.axis)
        steps = voxel_sizes(self.affine)
        return steps[down], steps[across], steps[self.axis]

    def source_index(self, z: int) -> int:
        """Index along the stored slice axis of canonical slice `z`."""
        return self.n_slices - 1 - z if self.flips[self.axis] else z


def voxel_sizes(affine: Float64[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """Step along each voxel axis, mm."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def check_affine(affine: Float64[np.ndarray, "4 4"]) -> None:
    """Reject an affine that names no usable grid.

    Raises:
        CaseRejected: `spacing_implausible` or `nonorthonormal`.
    """
    steps = check_spacing(affine)
    directions = affine[:3, :3] / steps
    shear = np.abs(directions.T @ directions - np.eye(3)).max()
    if shear > SHEAR_LIMIT:
        raise CaseRejected(
            Reason.NONORTHONORMAL, f"the axes are sheared (cosine {shear:.3f}); wanted at most {SHEAR_LIMIT}"
        )


def check_spacing(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3"]:
    """Reject steps between voxels that no scanner makes; gives the steps, mm.

    Raises:
        CaseRejected: `spacing_implausible`.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_LIMITS_MM
    if not np.all(np.isfinite(affine)) or steps.min() < low or steps.max() > high:
        found = " x ".join(f"{s:.4g}" for s in steps)
        raise CaseRejected(Reason.SPACING_IMPLAUSIBLE, f"spacing is {found} mm; wanted {low} to {high} mm")
    return steps


def resolve_spacing(
    affine: Float64[np.ndarray, "4 4"], pixdim_mm: tuple[float, float, float], spacing_from: str
) -> tuple[Float64[np.ndarray, "4 4"], tuple[str, ...]]:
    """Settle a contradiction between affine and pixdim as the collection's quirk says.

    Returns the affine to use and the steps taken (`spacing_from_pixdim`, `spacing_from_affine` or nothing).

    Raises:
        CaseRejected: `spacing_disagrees` where no quirk says which holds.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    stated = np.asarray(pixdim_mm, dtype=np.float64)
    if np.allclose(steps, stated, atol=SPACING_TOLERANCE_MM, rtol=1e-3):
        return affine, ()
    if spacing_from == "pixdim" and np.all(stated > 0):
        scaled = affine.copy()
        scaled[:3, :3] = affine[:3, :3] / np.where(steps > 0, steps, 1.0) * stated
        return scaled, ("spacing_from_pixdim",)
    if spacing_from == "affine":
        return affine, ("spacing_from_affine",)
    found = " x ".join(f"{s:.4g}" for s in steps)
    named = " x ".join(f"{s:.4g}" for s in stated)
    raise CaseRejected(
        Reason.SPACING_DISAGREES,
        f"the affine says {found} mm, pixdim {named} mm; set spacing_from in the collection's TOML to say which holds",
    )


def plan_slices(geometry: Geometry, slice_axis: str) -> SlicePlan:
    """Decide the canonical axes and the slice axis of a volume.

    `axial` slices along the axis closest to superior; `native` along the stored axis with the largest spacing (the
    last one where they tie within 1 %).
    """
    stored = plan_along(geometry, 0).stored_axes
    return plan_along(geometry, 2 if slice_axis == "axial" else stored.index(_through_plane_axis(geometry)))


def plan_along(geometry: Geometry, axis: int) -> SlicePlan:
    """Decide the canonical axes of a volume that is sliced along a given one: 0 sagittal, 1 coronal, 2 axial."""
    ornt = nib.orientations.io_orientation(geometry.affine)
    stored = [0, 0, 0]
    flips = [False, False, False]
    for stored_axis, (canonical_axis, direction) in enumerate(ornt):
        stored[int(canonical_axis)] = stored_axis
        flips[int(canonical_axis)] = bool(direction < 0)
    affine = geometry.affine @ nib.orientations.inv_ornt_aff(ornt, geometry.shape)
    return SlicePlan(
        axis=axis,
        stored_axes=(stored[0], stored[1], stored[2]),
        flips=(flips[0], flips[1], flips[2]),
        affine=affine,
        orientation="".join(nib.orientations.ornt2axcodes(ornt)),
        n_slices=geometry.shape[stored[axis]],
    )


def canonical(voxels: Shaped[np.ndarray, "i j k"], plan: SlicePlan) -> Shaped[np.ndarray, "r a s"]:
    """View stored voxels with axes running Right, Anterior, Superior (no copy)."""
    view = voxels.transpose(plan.stored_axes)
    return view[tuple(slice(None, None, -1) if flip else slice(None) for flip in plan.flips)]


def slices_first(voxels: Shaped[np.ndarray, "r a s"], axis: int) -> Shaped[np.ndarray, "z row column"]:
    """View a canonical volume as a stack of pictures in the radiological convention.

    Rows run from superior (sagittal, coronal) or anterior (axial) downwards; columns from the patient's right (axial,
    coronal) or front (sagittal) to the right of the picture.
    """
    across, down = (a for a in range(3) if a != axis)
    stack = voxels.transpose(axis, down, across)
    return stack[:, ::-1, ::-1]


def as_stored(stack: Shaped[np.ndarray, "z row column"], plan: SlicePlan) -> Shaped[np.ndarray, "i j k"]:
    """Turn a stack of pictures back into the stored volume: the inverse of `canonical` and `slices_first` (no copy)."""
    across, down = (a for a in range(3) if a != plan.axis)
    oriented = stack[:, ::-1, ::-1].transpose(np.argsort((plan.axis, down, across)))
    unflipped = oriented[tuple(slice(None, None, -1) if flip else slice(None) for flip in plan.flips)]
    return unflipped.transpose(np.argsort(plan.stored_axes))


def picture_stack(voxels: Shaped[np.ndarray, "i j k"], plan: SlicePlan) -> Shaped[np.ndarray, "z row column"]:
    """View stored voxels as canonical pictures, slice by slice; copied only where slices interleave in memory."""
    stack = slices_first(canonical(voxels, plan), plan.axis)
    strides = [abs(step) for step in stack.strides]
    return stack if strides[0] >= max(strides) else np.ascontiguousarray(stack)


def resize_image(image: Shaped[np.ndarray, "h w"], side: int) -> Shaped[np.ndarray, "s s"]:
    """Resample one slice to side x side (`resample_image`)."""
    return resample_image(image, side, side)


def resample_image(image: Shaped[np.ndarray, "h w"], rows: int, columns: int) -> Shaped[np.ndarray, "r c"]:
    """Resample one slice in physical values: area averages to shrink an axis, linear to enlarge it.

    An axis that shrinks goes first, so that mixed ratios do not alias. Keeps the dtype (int16 rounds to 1 HU).
    """
    height, width = image.shape
    picture = np.ascontiguousarray(image)
    shrunk = (min(width, columns), min(height, rows))
    if shrunk != (width, height):
        picture = cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (columns, rows):
        picture = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return picture


def resize_mask(mask: Shaped[np.ndarray, "h w"], side: int) -> Shaped[np.ndarray, "s s"]:
    """Resample labels to side x side (`resample_mask`)."""
    return resample_mask(mask, side, side)


def resample_mask(mask: Shaped[np.ndarray, "h w"], rows: int, columns: int) -> Shaped[np.ndarray, "r c"]:
    """Resample labels by exact-centre nearest: output pixel n of S takes source pixel floor((2n + 1) N / 2S) of N."""
    at = [((2 * np.arange(side) + 1) * n) // (2 * side) for n, side in zip(mask.shape, (rows, columns), strict=True)]
    return mask.take(at[0], axis=0).take(at[1], axis=1)


def square_margins(shape: tuple[int, int], steps_mm: tuple[float, float]) -> tuple[int, int, int, int]:
    """Pixels to add at top, bottom, left and right so that a slice covers a square of millimetres, to half a pixel.

    Args:
        shape: rows and columns of the slice.
        steps_mm: row and column step.
    """
    extent_mm = max(n * step for n, step in zip(shape, steps_mm, strict=True))
    down, across = (round(extent_mm / step) - n for n, step in zip(shape, steps_mm, strict=True))
    return down // 2, down - down // 2, across // 2, across - across // 2


def pad_to_square(
    picture: Shaped[np.ndarray, "h w"], steps_mm: tuple[float, float], fill: float
) -> Shaped[np.ndarray, "p q"]:
    """Centre a slice in a square of millimetres, so that making it a square of pixels scales both axes alike."""
    top, bottom, left, right = square_margins((picture.shape[0], picture.shape[1]), steps_mm)
    if picture.dtype.kind in "iu":
        limits = np.iinfo(picture.dtype)
        fill = min(max(fill, limits.min), limits.max)
    return np.pad(picture, ((top, bottom), (left, right)), constant_values=picture.dtype.type(fill))


def finished_pixel_mm2(shape: tuple[int, int], steps_mm: tuple[float, float], side: int, *, padded: bool) -> float:
    """Area that a pixel of a finished slice stands for, mm².

    Args:
        shape: rows and columns of the source's picture.
        steps_mm: row and column step.
        side: pixels of the finished slice's side.
        padded: whether the picture was padded to a square of millimetres before.
    """
    top, bottom, left, right = square_margins(shape, steps_mm) if padded else (0, 0, 0, 0)
    return (shape[0] + top + bottom) * steps_mm[0] * (shape[1] + left + right) * steps_mm[1] / side**2


def _through_plane_axis(geometry: Geometry) -> int:
    steps = np.asarray(voxel_sizes(geometry.affine))
    return int(np.flatnonzero(steps >= steps.max() * 0.99)[-1])
