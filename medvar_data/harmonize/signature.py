"""Make the thumbnail of a whole scan by which the same scan is found again under another name (`shard.near_duplicates`).

In: a scan on its slice stack, as read, with the window of no recipe. Out: [z, row, column] uint8 of at most `CELLS` cells. An axis
keeps the scan's own grid where that is coarse and is averaged where it is fine. Values are ranks: what share of the scan's voxels is
darker, 0 to 255. So neither a shift of HU, nor a slope, nor any other rising map of the intensities changes them.
"""

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8, UInt16

from medvar_data.harmonize.histogram import Histogram, count

CELLS = 64_000
MOST_AT_END = 0.05
FINE = 65_535  # levels to which other types than those that are counted are brought first


def make_thumbnail(stack: Shaped[np.ndarray, "z h w"], counts: Histogram | None) -> UInt8[np.ndarray, "a b c"]:
    """Average the ranks of a scan's voxels over the cells of a coarse grid.

    Args:
        stack: the scan, cropped nowhere.
        counts: of its values, where its type can be counted.
    """
    shape = thumbnail_shape(stack.shape)
    if counts is None:
        low, high = float(stack.min()), float(stack.max())
        scale = FINE / (high - low) if high > low else 0.0
        stack = ((stack.astype(np.float32) - np.float32(low)) * np.float32(scale)).astype(np.uint16)
        counts = count(stack)
    table = _ranks(counts)
    if stack.dtype == np.int16:
        stack = stack.view(np.uint16)
    planes = np.empty((len(stack), *shape[1:]), dtype=np.float32)
    for plane, picture in zip(planes, stack, strict=True):
        plane[:] = cv2.resize(table.take(picture), (shape[2], shape[1]), interpolation=cv2.INTER_AREA)
    flat = cv2.resize(planes.reshape(len(planes), -1), (shape[1] * shape[2], shape[0]), interpolation=cv2.INTER_AREA)
    return np.rint(flat / 256).astype(np.uint8).reshape(shape)


def thumbnail_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Cells along each axis: as many as the scan has where these are few, the same number on all others, `CELLS` in all."""
    a, b = np.sort(shape)[:2]
    most = CELLS ** (1 / 3)
    if a < most:
        most = (CELLS / a) ** 0.5
        if b < most:
            most = CELLS / (a * b)
    z, row, column = (max(1, min(n, int(most))) for n in shape)
    return z, row, column


def _ranks(counts: Histogram) -> UInt16[np.ndarray, " values"]:
    """The share of voxels below each value and half of those that have it, 0 to 65,280, by the value's bits as uint16."""
    n = counts.n.astype(np.float64)
    ends = np.flatnonzero(n)[[0, -1]]
    rest = n.sum() - n[np.unique(ends)].sum()
    n[ends] = np.minimum(n[ends], max(1.0, MOST_AT_END * rest))
    until = np.cumsum(n)
    ranks = np.rint((until - n / 2) / until[-1] * 65_280).astype(np.uint16)
    return np.roll(ranks, counts.first)
