"""Look for text burned into a scan's pictures: names, dates and marks that a device painted over the voxels.

In: the voxels as stored. Out: `none found`, `suspected` or `unknown`. Burned-in text is the same at the same place in slice after slice, where
a scan changes everywhere; it is bright, in strokes with a plain ground around them, and its glyphs stand in a row. So each third of the
slices is looked at by itself: pixels that do not change over it and stand out of their surroundings, in at least `MIN_GLYPHS` small
parts side by side. What changes from slice to slice, darkens or is fainter than a quarter of the grey levels is not found.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Integer, Shaped, UInt8

from medvar_data.geometry import SlicePlan, canonical, slices_first

NONE_FOUND, SUSPECTED, UNKNOWN = "none found", "suspected", "unknown"
RUNS, SLICES_A_RUN, MIN_SLICES = 3, 8, 3
PERCENTILES = (0.5, 99.5)
CONSTANT = 0.02  # of the grey levels: how far a pixel of text may change
CONTRAST = 0.25  # of the grey levels: how far it stands out
STRONG = 0.7  # of the brightest mark
STROKE_PIXELS = 9  # strokes are thinner
GLYPH_PIXELS = (5, 64)  # height
MIN_GLYPHS = 4
GAP = 1.5  # between neighbours, in heights
LIKE = 1.6  # ratio of heights of neighbours
OVERLAP = 0.6  # of the lower one's height


def find_burned_in_text(voxels: Shaped[np.ndarray, "i j k"], plan: SlicePlan) -> str:
    """Tell whether text seems to be burned into the pictures of a scan.

    Args:
        voxels: as stored.
        plan: how the pictures lie in them: along the axis of the acquisition, where text is painted.
    """
    stack = slices_first(canonical(voxels, plan), plan.axis)
    if len(stack) < MIN_SLICES:
        return UNKNOWN
    for numbers in _runs(len(stack)):
        run = np.stack([np.ascontiguousarray(stack[z]) for z in numbers]).astype(np.float32)
        if any(_has_row(turned) for marks in _marks(run) for turned in (marks, np.ascontiguousarray(marks.T))):
            return SUSPECTED
    return NONE_FOUND


def _runs(n_slices: int) -> Iterator[list[int]]:
    """Numbers of some slices of each third, the whole where there are few."""
    n_runs = min(RUNS, n_slices // MIN_SLICES)
    for run in np.array_split(np.arange(n_slices), n_runs):
        yield np.unique(np.linspace(run[0], run[-1], min(SLICES_A_RUN, len(run))).astype(int)).tolist()


def _marks(run: Float32[np.ndarray, "z h w"]) -> Iterator[UInt8[np.ndarray, "h w"]]:
    """Pixels that stay as they are over slices and stand out of what surrounds them: all, then the stronger ones, whose glyphs touch less."""
    low, high = (float(v) for v in np.percentile(run[:, ::2, ::2], PERCENTILES))
    lowest, highest = run.min(axis=0), run.max(axis=0)
    levels = high - low
    if not np.isfinite(levels) or levels <= 0:
        return
    ground = cv2.morphologyEx(lowest, cv2.MORPH_OPEN, np.ones((STROKE_PIXELS, STROKE_PIXELS), np.uint8))
    above = np.where(highest - lowest <= CONSTANT * levels, lowest - ground, 0)
    for least in sorted({CONTRAST * levels, STRONG * float(above.max())}):
        if CONTRAST * levels <= least:
            yield (above >= least).astype(np.uint8)


def _has_row(marks: UInt8[np.ndarray, "h w"]) -> bool:
    """Tell whether parts of the size of glyphs stand side by side."""
    _, _, boxes, _ = cv2.connectedComponentsWithStats(marks, connectivity=8)
    glyphs = _glyphs(boxes[1:])
    return len(glyphs) >= MIN_GLYPHS and any(
        _length_of_row(glyphs, first) >= MIN_GLYPHS for first in range(len(glyphs))
    )


def _glyphs(boxes: Integer[np.ndarray, "n 5"]) -> Sequence[tuple[int, int, int, int]]:
    """Left, top, width and height of the parts that could be glyphs, from left to right."""
    low, high = GLYPH_PIXELS
    heights, widths = boxes[:, cv2.CC_STAT_HEIGHT], boxes[:, cv2.CC_STAT_WIDTH]
    fits: Bool[np.ndarray, " n"] = (heights >= low) & (heights <= high) & (widths <= 2 * heights)
    kept = boxes[fits]
    return [tuple(map(int, box[:4])) for box in kept[np.argsort(kept[:, cv2.CC_STAT_LEFT], kind="stable")]]  # type: ignore[misc]


def _length_of_row(glyphs: Sequence[tuple[int, int, int, int]], first: int) -> int:
    """How many glyphs follow each other to the right of one, at one height and of one size."""
    left, top, width, height = glyphs[first]
    length = 1
    for x, y, w, h in glyphs[first + 1 :]:
        gap = x - (left + width)
        alike = max(h, height) <= LIKE * min(h, height)
        beside = min(y + h, top + height) - max(y, top) >= OVERLAP * min(h, height)
        if alike and beside and -1 <= gap <= GAP * height:
            left, top, width, height, length = x, y, w, h, length + 1
    return length
