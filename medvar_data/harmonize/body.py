"""Find the patient in the image and take away what is not the patient: table, cushions, wires.

In: a stack of slices, and the recipe. Out: `BodyParams` (what counts as foreground), a `Body` (hull and mask), pictures
without spurious foreground. A part goes only when it is below the voxel threshold *and* below the millimetre threshold,
so that neither thick slices nor fine grids make a step harsher. Annotated voxels are never taken.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped, UInt8
from skimage.filters import threshold_li

from medvar_data.catalog.recipe import Recipe
from medvar_data.harmonize.components import bounding_box, label_components
from medvar_data.harmonize.histogram import count, is_countable, li_threshold
from medvar_data.harmonize.scanner_table import without_tables

LI_SAMPLE = 200_000  # voxels that the MR threshold is fitted on
INSIDE_BORDERS = 3  # a picture whose borders the body reaches on so many sides lies inside the body
Contour = Int32[np.ndarray, "_ 1 2"]  # column and row of each pixel


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
        n_spurious: [z] voxels of foreground outside the hull.
        removed_mm3: their volume.
        n_components: kept.
    """

    hull: Bool[np.ndarray, "z h w"]
    mask: Bool[np.ndarray, "z h w"]
    n_spurious: Int64[np.ndarray, " z"]
    removed_mm3: float
    n_components: int


def fit_body(stack: Shaped[np.ndarray, "z h w"], modality: str, recipe: Recipe) -> BodyParams:
    """Choose the foreground threshold: fixed HU for CT, a fraction of Li's minimum cross-entropy threshold for MR.

    Li's threshold parts bright from dark tissue; the recipe's fraction of it parts tissue from air. Where noise still
    passes, it joins everything into one component and the step removes nothing: it errs on the side of keeping.

    Li CH, Lee CK. Minimum cross entropy thresholding. Pattern Recognition 26(4):617-625, 1993.
    """
    if modality == "CT":
        return BodyParams(threshold=recipe.body_threshold_hu, fill=-1024.0)
    values = _sample(stack)
    values = values[values != 0]
    fill = float(min(0.0, values.min())) if values.size else 0.0
    if values.size < 2 or values.min() == values.max():
        return BodyParams(threshold=fill, fill=fill)
    whole = is_countable(values.dtype)
    li = li_threshold(count(values)) if whole else float(threshold_li(values.astype(np.float64)))
    return BodyParams(threshold=recipe.body_mr_threshold_fraction * li, fill=fill)


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
    foreground = _foreground(stack, params)
    solid = _opened(foreground, spacing_mm, recipe.body_opening_mm) if modality == "CT" else foreground
    box = bounding_box(solid)
    if box is None:
        return _everything(foreground)
    parts = label_components(np.ascontiguousarray(solid[box]), 26)
    n_voxels = parts.n_voxels
    voxel_mm3 = float(np.prod(spacing_mm))
    keep = (n_voxels >= recipe.body_min_voxels) | (n_voxels * voxel_mm3 >= recipe.body_min_mm3)
    if modality == "CT":
        keep &= n_voxels >= recipe.body_min_fraction * n_voxels[1:].max(initial=0)
    keep[0] = False
    if modality == "CT" and parts.ids.shape[0] == len(stack):
        keep = without_tables(parts, keep, spacing_mm)
    if not keep.any():
        return _everything(foreground)
    # mask and hull take the places of foreground and opened foreground, slice by slice: a large volume is short of memory
    mask, hull = foreground, solid if solid is not foreground else np.empty_like(solid)
    radius = _radius_pixels(spacing_mm, recipe.body_opening_mm) if modality == "CT" else (0, 0)
    n_spurious = np.zeros(len(stack), dtype=np.int64)
    for z, inside in enumerate(foreground):
        here = box[0].start <= z < box[0].stop
        outlines = _body_outlines(solid[z], parts.ids[z - box[0].start], box, keep) if here else []
        picture, outline = np.zeros_like(inside), np.zeros_like(inside)
        _draw(outlines, picture.view(np.uint8), outline.view(np.uint8), radius, spacing_mm, recipe)
        n_spurious[z] = np.count_nonzero(inside > picture)
        hull[z], mask[z] = picture, outline
    removed = int(n_spurious.sum()) * voxel_mm3
    return Body(hull, mask, n_spurious, removed_mm3=removed, n_components=int(keep.sum()))


def _everything(foreground: Bool[np.ndarray, "z h w"]) -> Body:
    """The body where nothing is large enough to be told from the rest: nothing is spurious."""
    nothing = np.zeros(len(foreground), dtype=np.int64)
    return Body(np.ones_like(foreground), foreground, nothing, removed_mm3=0.0, n_components=0)


def apply_body(
    image: Shaped[np.ndarray, "h w"],
    hull: Bool[np.ndarray, "h w"],
    label: UInt8[np.ndarray, "h w"],
    params: BodyParams,
) -> Shaped[np.ndarray, "h w"]:
    """Replace foreground outside the hull by the fill value, except where the image is annotated."""
    cleaned = image.copy(order="C")
    np.copyto(cleaned, image.dtype.type(params.fill), where=spurious(image, hull, label, params))
    return cleaned


def spurious(
    image: Shaped[np.ndarray, "h w"],
    hull: Bool[np.ndarray, "h w"],
    label: UInt8[np.ndarray, "h w"],
    params: BodyParams,
) -> Bool[np.ndarray, "h w"]:
    """Foreground outside the hull that is not annotated."""
    outside = _foreground(image, params) > hull
    outside &= label == 0
    return outside


def removed_mm3(
    stack: Shaped[np.ndarray, "z h w"],
    body: Body,
    labels: UInt8[np.ndarray, "z h w"],
    params: BodyParams,
    spacing_mm: tuple[float, float, float],
) -> float:
    """Volume that `apply_body` takes from a stack: spurious foreground, less what is annotated."""
    n_kept = 0
    for z in np.flatnonzero(body.n_spurious):
        if labels[z].any():
            n_kept += int(np.count_nonzero(stack[z][(labels[z] > 0) & ~body.hull[z]] > params.threshold))
    return body.removed_mm3 - n_kept * float(np.prod(spacing_mm))


def _sample(stack: Shaped[np.ndarray, "z h w"]) -> Shaped[np.ndarray, " n"]:
    """Every n-th voxel in the order of slices, rows, columns, about `LI_SAMPLE` of them."""
    step = max(1, stack.size // LI_SAMPLE)
    if stack.flags.c_contiguous:
        return stack.reshape(-1)[::step]
    return stack[np.unravel_index(np.arange(0, stack.size, step), stack.shape)]


def _foreground(stack: Shaped[np.ndarray, "*size"], params: BodyParams) -> Bool[np.ndarray, "*size"]:
    whole = stack.dtype.kind in "iu"  # v > t where v > floor(t), in integers four times as fast
    threshold = math.floor(params.threshold) if whole else params.threshold
    return np.greater(stack, threshold, out=np.empty(stack.shape, dtype=bool))


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
    for source, target in zip(mask.view(np.uint8), opened.view(np.uint8), strict=True):
        cv2.morphologyEx(source, cv2.MORPH_OPEN, kernel, dst=target)
    return opened


def _body_outlines(
    solid: Bool[np.ndarray, "h w"],
    ids: Shaped[np.ndarray, "rows columns"],
    box: tuple[slice, slice, slice],
    keep: Bool[np.ndarray, " components"],
) -> list[Contour]:
    """Outer contours of the components to keep, in one slice; `ids` cover the box."""
    _, rows, columns = box
    parts = _contours(solid)
    if all(keep[ids[part[0, 0, 1] - rows.start, part[0, 0, 0] - columns.start]] for part in parts):
        return parts
    body = np.zeros_like(solid)  # a part to keep may lie inside a ring that goes
    body[rows, columns] = keep[ids]
    return _contours(body)


def _contours(mask: Bool[np.ndarray, "h w"]) -> list[Contour]:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return list(contours)


def _draw(
    parts: list[Contour],
    hull: UInt8[np.ndarray, "h w"],
    mask: UInt8[np.ndarray, "h w"],
    radius: tuple[int, int],
    spacing_mm: tuple[float, float, float],
    recipe: Recipe,
) -> None:
    """Draw convex hull and filled outline of the body in one slice; parts below the slice thresholds do not count.

    Where the picture lies inside the body (a field of view cropped to the heart), all of it is hull: vessels in a lung
    that the picture cuts are no spurious foreground.

    Args:
        parts: outer contours.
        hull: zeros; gets 1 inside the hull.
        mask: zeros; gets 1 inside the outlines.
        radius: of the opening, rows and columns; it rounded the skin's corners off, and the hull gets it back.
        spacing_mm: row, column and through-plane step.
        recipe: thresholds.
    """
    area_mm2 = spacing_mm[0] * spacing_mm[1]
    # a contour through pixel centres encloses less than its pixels: large without being drawn is large
    large = [
        part
        for part in parts
        if _is_large(cv2.contourArea(part), area_mm2, recipe) or _is_large(_n_pixels(part), area_mm2, recipe)
    ]
    if not large:
        return
    for part in large:
        cv2.drawContours(mask, [part], -1, 1, cv2.FILLED)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(large)), 1)
    borders = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    if sum(bool(border.any()) for border in borders) >= INSIDE_BORDERS:
        hull[...] = 1
        return
    rows, columns = radius
    if rows or columns:
        cv2.dilate(hull, np.ones((2 * rows + 1, 2 * columns + 1), dtype=np.uint8), dst=hull)


def _is_large(n_pixels: int | float, area_mm2: float, recipe: Recipe) -> bool:
    """Tell whether so many pixels of that area each reach one of the slice thresholds."""
    return n_pixels >= recipe.body_slice_min_pixels or n_pixels * area_mm2 >= recipe.body_slice_min_mm2


def _n_pixels(part: Contour) -> int:
    """Pixels that a filled contour covers."""
    x, y, width, height = cv2.boundingRect(part)
    canvas = np.zeros((height, width), dtype=np.uint8)
    cv2.drawContours(canvas, [part], -1, 1, cv2.FILLED, offset=(-x, -y))
    return int(np.count_nonzero(canvas))
