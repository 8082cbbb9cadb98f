"""Measure a case for the statistics: its voxels by intensity, how many were clipped, its pixels by grey level. Exact counts.

In: voxels, or how often each value occurs among them, which costs next to nothing; finished slices. Out: whole numbers, so that
histograms of cases add up to those of collections, whatever the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

from medvar_data.harmonize.histogram import Histogram, count, count_picture, is_countable
from medvar_data.harmonize.intensity import Values
from medvar_data.records import HarmonizedSlice
from medvar_data.shardset.histograms import GREY_LEVELS

BLOCK = 1 << 22  # voxels that are selected from at once
CHUNK = 1 << 14  # voxels at once: what they need stays in the processor's cache
MARGIN = 1e-3  # of a bin, by which a guessed bin is too low rather than too high


@dataclass(frozen=True)
class SliceHistograms:
    """Pixels of finished slices by grey level, and those of them whose mask is above 0."""

    every: Int64[np.ndarray, "256"]
    foreground: Int64[np.ndarray, "256"]


def values_inside(voxels: Shaped[np.ndarray, "z h w"], label: Shaped[np.ndarray, "z h w"]) -> Values:
    """The voxels whose label is not 0: counted where their type can be, else the values themselves."""
    if not is_countable(voxels.dtype):
        return voxels[label != 0]
    total = count(voxels[:0])
    step = max(1, BLOCK // max(1, voxels[0].size))
    for z in range(0, len(voxels), step):
        total = total.plus(count(voxels[z : z + step][label[z : z + step] != 0]))
    return total


def bin_counts(values: Values, edges: Float64[np.ndarray, " edges"]) -> Int64[np.ndarray, " bins"]:
    """Count values between edges; n edges give n + 1 numbers, the first of what is below all, the last of what is not below the last.

    A value on an edge belongs above it, and edges count as the float64 numbers that they are, so that counted and uncounted voxels
    give the same.

    Args:
        values: voxels of any type, or how often each value occurs.
        edges: rising, equally spaced up to rounding.
    """
    counts = np.zeros(edges.size + 1, dtype=np.int64)
    if isinstance(values, Histogram):
        at = np.flatnonzero(values.n)
        np.add.at(counts, np.searchsorted(edges, at + values.first, side="right"), values.n[at])
        return counts
    flat = values.ravel(order="K")
    scale = (edges.size - 1) / (edges[-1] - edges[0])
    following = np.append(least_from(edges, flat.dtype), np.inf)  # the edge after each bin
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        place = part.astype(np.float64)
        place -= edges[0]
        place *= scale
        place += 1 - MARGIN
        bins = np.clip(place, 0, edges.size, out=place).astype(np.intp)
        bins += part >= following[bins]
        counts += np.bincount(bins, minlength=counts.size)
    return counts


def least_from(edges: Float64[np.ndarray, " edges"], dtype: np.dtype) -> Float[np.ndarray, " edges"]:
    """The least number of a type that is not below each edge: voxels of the type compare with it as with the edge itself."""
    if dtype != np.float32:
        return edges
    near = edges.astype(np.float32)
    return np.where(near < edges, np.nextafter(near, np.float32(np.inf)), near)


def clipped_shares(values: Values, low: float, high: float) -> tuple[float, float]:
    """Shares of the values that lie below `low` and above `high`.

    Args:
        values: at least one.
        low: intensity that becomes 0.
        high: intensity that becomes 255.
    """
    bounds = np.array([low, np.nextafter(high, np.inf)])
    if isinstance(values, Histogram):
        levels = np.arange(values.n.size) + values.first
        below, above = int(values.n[levels < low].sum()), int(values.n[levels > high].sum())
        return below / values.total, above / values.total
    least = least_from(bounds, values.dtype)
    below, above = int(np.count_nonzero(values < least[0])), int(np.count_nonzero(values >= least[1]))
    return below / values.size, above / values.size


def slice_histograms(slices: Sequence[HarmonizedSlice]) -> SliceHistograms:
    """Count the pixels of finished slices by grey level."""
    every, inside = (np.zeros(GREY_LEVELS, dtype=np.int64) for _ in range(2))
    for finished in slices:
        every += count_picture(finished.image)
        if finished.foreground_pixels:
            inside += count_picture(finished.image, finished.mask)
    return SliceHistograms(every, inside)
