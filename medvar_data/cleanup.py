"""Take away what is not the patient (table, cushions, wires) and dust in the labels, in 3D and then slice by slice.

Each of the four steps says what it removed, in mm³. A component goes only when it is below the voxel threshold *and*
below the millimetre threshold, so that neither thick slices nor fine grids make a step harsher. Annotated voxels are
never taken from the image.
"""

from dataclasses import dataclass, field
from typing import Literal

import cc3d
import cv2
import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from skimage.filters import threshold_li

from medvar_data.catalog import Recipe

LI_SAMPLE = 200_000  # voxels that the MR threshold is fitted on


@dataclass(frozen=True)
class BodyParams:
    """What counts as foreground of the image: voxels above `threshold`; what goes gets the value `fill`."""

    threshold: float
    fill: float


@dataclass(frozen=True)
class Body:
    """The patient in the image.

    Attributes:
        hull: [z, row, column]; outside it, foreground is spurious.
        mask: [z, row, column]; the body with its cavities filled.
        removed_mm3: spurious foreground outside the hull.
        n_components: kept.
    """

    hull: Bool[np.ndarray, "z h w"]
    mask: Bool[np.ndarray, "z h w"]
    removed_mm3: float
    n_components: int


@dataclass(frozen=True)
class CleanLabels:
    """Labels without dust, and the dust removed per label id, mm³."""

    voxels: UInt8[np.ndarray, "z h w"]
    removed_mm3: dict[int, float] = field(default_factory=dict)


def fit_body(stack: Shaped[np.ndarray, "z h w"], modality: str, recipe: Recipe) -> BodyParams:
    """Choose the foreground threshold: fixed HU for CT, a fraction of Li's minimum cross-entropy threshold for MR.

    Li's threshold parts bright from dark tissue; the recipe's fraction of it parts tissue from air. Where noise still
    passes, it joins everything into one component and the step removes nothing: it errs on the side of keeping.

    Li CH, Lee CK. Minimum cross entropy thresholding. Pattern Recognition 26(4):617-625, 1993.
    """
    if modality == "CT":
        return BodyParams(threshold=recipe.body_threshold_hu, fill=-1024.0)
    values = stack.reshape(-1)
    values = values[:: max(1, values.size // LI_SAMPLE)]
    values = values[values != 0].astype(np.float64)
    fill = float(min(0.0, values.min())) if values.size else 0.0
    if values.size < 2 or values.min() == values.max():
        return BodyParams(threshold=fill, fill=fill)
    return BodyParams(threshold=recipe.body_mr_threshold_fraction * float(threshold_li(values)), fill=fill)


def find_body(
    stack: Shaped[np.ndarray, "z h w"],
    params: BodyParams,
    spacing_mm: tuple[float, float, float],
    modality: str,
    recipe: Recipe,
) -> Body:
    """Find the patient: foreground, opened in plane so that a table lets go, in components above the thresholds.

    Args:
        stack: slices of one volume, HU for CT.
        params: from `fit_body`.
        spacing_mm: row, column and through-plane step.
        modality: "CT" or "MR"; MR is not opened and keeps every component above the size thresholds.
        recipe: thresholds.
    """
    foreground = stack > params.threshold
    solid = _opened(foreground, spacing_mm, recipe.body_opening_mm) if modality == "CT" else foreground
    components, n_voxels = _components(solid, 26)
    voxel_mm3 = float(np.prod(spacing_mm))
    keep = (n_voxels >= recipe.body_min_voxels) | (n_voxels * voxel_mm3 >= recipe.body_min_mm3)
    if modality == "CT":
        keep &= n_voxels >= recipe.body_min_fraction * n_voxels[1:].max(initial=0)
    keep[0] = False
    if not keep.any():
        everything = np.ones(stack.shape, dtype=bool)
        return Body(hull=everything, mask=foreground, removed_mm3=0.0, n_components=0)
    body = keep[components]
    hull, mask = np.zeros_like(body), np.zeros_like(body)
    radius = _radius_pixels(spacing_mm, recipe.body_opening_mm) if modality == "CT" else (0, 0)
    for z in range(len(body)):
        hull[z], mask[z] = _outline(body[z], radius, spacing_mm, recipe)
    removed = int(np.count_nonzero(foreground & ~hull)) * voxel_mm3
    return Body(hull=hull, mask=mask, removed_mm3=removed, n_components=int(keep.sum()))


def apply_body(
    image: Shaped[np.ndarray, "h w"],
    hull: Bool[np.ndarray, "h w"],
    label: UInt8[np.ndarray, "h w"],
    params: BodyParams,
) -> Shaped[np.ndarray, "h w"]:
    """Replace foreground outside the hull by the fill value, except where the image is annotated."""
    spurious = (image > params.threshold) & ~hull & (label == 0)
    return np.where(spurious, image.dtype.type(params.fill), image)


def removed_mm3(
    stack: Shaped[np.ndarray, "z h w"],
    body: Body,
    labels: UInt8[np.ndarray, "z h w"],
    params: BodyParams,
    spacing_mm: tuple[float, float, float],
) -> float:
    """Volume that `apply_body` takes from a stack: spurious foreground, less what is annotated."""
    kept = (labels > 0) & ~body.hull
    n_kept = int(np.count_nonzero(stack[kept] > params.threshold))
    return body.removed_mm3 - n_kept * float(np.prod(spacing_mm))


def remove_label_dust(
    labels: UInt8[np.ndarray, "z h w"], spacing_mm: tuple[float, float, float], recipe: Recipe
) -> CleanLabels:
    """Remove small 3D components (26 neighbours) of each label; the largest of a label stays whatever its size."""
    return _dust(
        labels,
        float(np.prod(spacing_mm)),
        recipe.label_min_voxels,
        recipe.label_min_mm3,
        26,
        recipe.label_keep_largest,
    )


def remove_slice_dust(
    mask: UInt8[np.ndarray, "h w"], spacing_mm: tuple[float, float, float], recipe: Recipe
) -> CleanLabels:
    """Remove small 2D components (8 neighbours) of each label in one slice; returns mm³ of that slice."""
    area = spacing_mm[0] * spacing_mm[1]
    clean = _dust(mask[None], area, recipe.label_slice_min_pixels, recipe.label_slice_min_mm2, 26, keep_largest=False)
    removed = {label: mm2 * spacing_mm[2] for label, mm2 in clean.removed_mm3.items()}
    return CleanLabels(clean.voxels, removed)


def _dust(
    labels: UInt8[np.ndarray, "z h w"],
    size_mm: float,
    min_count: int,
    min_mm: float,
    neighbours: Literal[8, 26],
    keep_largest: bool,
) -> CleanLabels:
    box = _bounding_box(labels)
    if box is None:
        return CleanLabels(labels)
    crop = np.ascontiguousarray(labels[box])
    components, count = _components(crop, neighbours)
    value = np.zeros(len(count), dtype=np.uint8)
    value[components.reshape(-1)] = crop.reshape(-1)
    small = (count < min_count) & (count * size_mm < min_mm)
    small[0] = False
    if keep_largest:
        order = np.lexsort((np.arange(len(count)), -count))
        _, first = np.unique(value[order], return_index=True)
        small[order[first]] = False
    if not small.any():
        return CleanLabels(labels)
    cleaned = labels.copy()
    cleaned[box] = np.where(small[components], np.uint8(0), crop)
    lost = np.bincount(value[small], weights=count[small] * size_mm, minlength=256)
    return CleanLabels(cleaned, {int(v): float(lost[v]) for v in np.flatnonzero(lost)})


def _components(
    mask: Shaped[np.ndarray, "z h w"], neighbours: Literal[8, 26]
) -> tuple[Shaped[np.ndarray, "z h w"], np.ndarray]:
    components = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=neighbours)
    return components, np.bincount(components.reshape(-1))


def _bounding_box(labels: Shaped[np.ndarray, "z h w"]) -> tuple[slice, ...] | None:
    box = []
    for axis in range(3):
        used = np.flatnonzero(labels.any(axis=tuple(a for a in range(3) if a != axis)))
        if used.size == 0:
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _radius_pixels(spacing_mm: tuple[float, float, float], radius_mm: float) -> tuple[int, int]:
    return round(radius_mm / spacing_mm[0]), round(radius_mm / spacing_mm[1])


def _opened(
    mask: Bool[np.ndarray, "z h w"], spacing_mm: tuple[float, float, float], radius_mm: float
) -> Bool[np.ndarray, "z h w"]:
    rows, columns = _radius_pixels(spacing_mm, radius_mm)
    if rows < 1 or columns < 1:
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * columns + 1, 2 * rows + 1))
    opened = np.empty_like(mask)
    for z, picture in enumerate(mask):
        opened[z] = cv2.morphologyEx(np.ascontiguousarray(picture).view(np.uint8), cv2.MORPH_OPEN, kernel)
    return opened


def _outline(
    body: Bool[np.ndarray, "h w"],
    radius: tuple[int, int],
    spacing_mm: tuple[float, float, float],
    recipe: Recipe,
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Convex hull and filled outline of the body in one slice; parts below the slice thresholds do not count."""
    contours, _ = cv2.findContours(np.ascontiguousarray(body).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(body.shape, dtype=np.uint8)
    hull = np.zeros(body.shape, dtype=np.uint8)
    large = []
    for contour in contours:
        part = np.zeros(body.shape, dtype=np.uint8)
        cv2.drawContours(part, [contour], -1, 1, cv2.FILLED)
        area = int(part.sum())
        if area >= recipe.body_slice_min_pixels or area * spacing_mm[0] * spacing_mm[1] >= recipe.body_slice_min_mm2:
            filled |= part
            large.append(contour)
    if large:
        cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(large)), 1)
        rows, columns = radius
        if rows or columns:  # the opening rounded the skin's corners off; give the hull its radius back
            hull[...] = cv2.dilate(hull, np.ones((2 * rows + 1, 2 * columns + 1), dtype=np.uint8))
    return hull.astype(bool), filled.astype(bool)
