"""Count whole voxel values, and read exact statistics off the counts, in one pass and in whatever order memory lies.

In: uint8, int16 or uint16 voxels. Out: `Histogram`, from which minimum, maximum, mean, standard deviation and percentiles
follow without sorting.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Int64, Shaped, UInt8

COUNTABLE = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))
CHUNK = 1 << 24  # cv2 counts in float32, which is exact up to here


@dataclass(frozen=True)
class Histogram:
    """How often each value occurs: `n[i]` voxels hold the value `first + i`."""

    n: Int64[np.ndarray, " values"]
    first: int

    @property
    def total(self) -> int:
        """Voxels counted."""
        return int(self.n.sum())

    def plus(self, other: "Histogram") -> "Histogram":
        """The counts of both, of voxels of one type."""
        return Histogram(self.n + other.n, self.first)

    def without(self, value: int) -> "Histogram":
        """The same counts, less every voxel that holds `value`."""
        n = self.n.copy()
        if 0 <= value - self.first < n.size:
            n[value - self.first] = 0
        return Histogram(n, self.first)

    def replaced(self, voxels: Shaped[np.ndarray, "..."], value: int) -> "Histogram":
        """The same counts after `voxels`, of the type that was counted, took another value."""
        n = self.n - count(voxels).n
        n[value - self.first] += voxels.size
        return Histogram(n, self.first)


@dataclass(frozen=True)
class Moments:
    """Extremes, mean and standard deviation (of the population, not of a sample)."""

    minimum: float
    maximum: float
    mean: float
    std: float


def is_countable(dtype: np.dtype) -> bool:
    """Tell whether `count` takes this type."""
    return dtype in COUNTABLE


def count(voxels: Shaped[np.ndarray, "..."]) -> Histogram:
    """Count the values of uint8, int16 or uint16 voxels. Values lie in 0..255, -32768..32767 or 0..65535."""
    n_values = 256 if voxels.dtype == np.uint8 else 65536
    flat = voxels.ravel(order="K")
    if flat.dtype == np.int16:
        flat = flat.view(np.uint16)
    n = np.zeros(n_values, dtype=np.int64)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        n += cv2.calcHist([part[None]], [0], None, [n_values], [0, n_values]).reshape(-1).astype(np.int64)
    return Histogram(np.roll(n, 32768), -32768) if voxels.dtype == np.int16 else Histogram(n, 0)


def count_picture(
    picture: UInt8[np.ndarray, "h w"], inside: UInt8[np.ndarray, "h w"] | None = None
) -> Int64[np.ndarray, "256"]:
    """Count the values of one picture; what lies around its content is 0 and is not looked at.

    Args:
        picture: image or mask.
        inside: count only where it is above 0.
    """
    left, top, width, height = cv2.boundingRect(picture if inside is None else inside)
    box = slice(top, top + height), slice(left, left + width)
    counts = np.zeros(256, dtype=np.int64)
    if width:
        mask = None if inside is None else inside[box]
        counts += cv2.calcHist([picture[box]], [0], mask, [256], [0, 256]).reshape(-1).astype(np.int64)
    if inside is None:
        counts[0] += picture.size - width * height
    return counts


def moments(counts: Histogram) -> Moments:
    """Extremes, mean and standard deviation; integer sums, rounded once."""
    at = np.flatnonzero(counts.n)
    values = [int(v) + counts.first for v in at]
    n = [int(v) for v in counts.n[at]]
    total = sum(n)
    first = sum(v * k for v, k in zip(values, n, strict=True))
    second = sum(v * v * k for v, k in zip(values, n, strict=True))
    variance = (total * second - first * first) / (total * total)
    return Moments(float(values[0]), float(values[-1]), first / total, math.sqrt(variance))


def li_threshold(counts: Histogram) -> float:
    """Li's minimum cross-entropy threshold of at least two different values, by the fixed-point iteration of 1998.

    With m0 and m1 the means of the values up to and above the threshold t, less the smallest value: t = (m1 - m0) /
    (log m1 - log m0). The sums are of whole numbers and exact, so that the result is that of
    `skimage.filters.threshold_li` on the values themselves.

    Li CH, Tam PKS. An iterative algorithm for minimum cross entropy thresholding. Pattern Recognition Letters
    19(8):771-776, 1998.
    """
    at = np.flatnonzero(counts.n)
    levels = (at - at[0]).astype(np.float64)
    n_until, sum_until = np.cumsum(counts.n[at]), np.cumsum(levels * counts.n[at])
    tolerance = np.diff(levels).min() / 2
    threshold, following = -2 * tolerance, sum_until[-1] / n_until[-1]
    while abs(following - threshold) > tolerance:
        threshold = following
        last = np.searchsorted(levels, threshold, side="right") - 1
        below = sum_until[last] / n_until[last]
        above = (sum_until[-1] - sum_until[last]) / (n_until[-1] - n_until[last])
        if below == 0.0:
            break
        following = (below - above) / (np.log(below) - np.log(above))
    return float(following + (int(at[0]) + counts.first))


def percentiles(values: Histogram | Shaped[np.ndarray, "..."], percent: Sequence[float]) -> list[float]:
    """Percentiles of counted values, or of voxels of any type: the value at rank (n - 1) p / 100, linear between ranks.

    The formula is `numpy.percentile`'s, from whichever end is nearer, so that results are equal to the last bit.

    Args:
        values: at least one.
        percent: 0 to 100.
    """
    if not isinstance(values, Histogram):
        return [float(v) for v in np.percentile(values.ravel(order="K"), list(percent))]
    until = np.cumsum(values.n)
    found = []
    for p in percent:
        rank = (int(until[-1]) - 1) * (p / 100)
        low = math.floor(rank)
        part = rank - low
        ranks = np.array([low, min(low + 1, int(until[-1]) - 1)])
        a, b = (int(v) + values.first for v in np.searchsorted(until, ranks, side="right"))
        found.append(float(a + (b - a) * part if part < 0.5 else b - (b - a) * (1 - part)))
    return found
