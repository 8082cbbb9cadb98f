"""Prove on voxels that two thumbnails show one scan: lay one over the other, then compare them block by block.

In: two thumbnails of `harmonize.signature`. Out: a similarity, at most 1. No spacing and no orientation is trusted. The best of the
poses of `fit` is judged on the finest grid that both scans have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped

from medvar_data.shard.near_duplicates.fit import Pose, Prepared, cut_to_common, likeliest_poses, refine, refine_pose
from medvar_data.shard.near_duplicates.parts import Box, Grid, sample, unit

PROOF_VERSION = 2  # of whatever changes an outcome
BLOCK = 8  # cells a side of the blocks that are compared, about
TRY_WITHIN = 0.1  # of the best's coarse fit: orientations that are refined
MIN_COARSE_FIT, MIN_ROUGH_FIT, MIN_FIT = 0.7, 0.9, 0.9  # correlations of coarse and of middle cells to go on with
MIN_MAPPED_FIT = 0.8  # of all cells, once the intensities are mapped
SURE_FIT = 0.97  # beyond which no further orientation is tried
MIN_CONTENT = 0.05  # of a scan's variance, that a block must have in both to be compared
MIN_BLOCKS = 8  # with content
WEAKEST = 0.05  # quantile of the blocks' correlations
SURE_LOSS, MOST_LOSS, LOSS_RATIO = 0.045, 0.1, 4.0  # of correlation, in the weakest blocks; beside the median's


@dataclass(frozen=True)
class Likeness:
    """How alike two scans are where they lie over each other best, block by block.

    Attributes:
        similarity: correlation within blocks, of all blocks with content together.
        weakest: the correlation that one block in twenty does not reach.
        middle: median of the blocks' correlations.
    """

    similarity: float
    weakest: float
    middle: float

    @property
    def is_one_scan(self) -> bool:
        """Whether no block differs by more than a copy's blocks do: by little, or by not much more than all do.

        Where a scan was only resampled or stored anew, all blocks lose alike; where something has moved, some lose much more.
        """
        loss, usual = 1 - self.weakest, 1 - self.middle
        return loss <= SURE_LOSS or loss <= min(MOST_LOSS, LOSS_RATIO * (usual + 0.004))


UNLIKE = Likeness(0.0, 0.0, 0.0)


def can_be_proved(shape: Sequence[int]) -> bool:
    """Whether a thumbnail of this shape has as many blocks as a proof needs."""
    return math.prod(_n_blocks(n) for n in shape) >= MIN_BLOCKS


def _n_blocks(n: int) -> int:
    return max(1, round(n / BLOCK))


def compare(a: Prepared, b: Prepared) -> Likeness:
    """Lay b over a as well as can be, and compare them."""
    poses = likeliest_poses(a, b)
    if poses[0][0] < MIN_COARSE_FIT:
        return UNLIKE
    tried = []
    for fit, pose in poses:
        if fit < poses[0][0] - TRY_WITHIN:
            break
        tried.append(refine_pose(a, b, pose, 3))
        if tried[-1][0] > SURE_FIT:
            break
    tried = sorted(tried, key=lambda entry: -entry[0])[:2]
    if tried[0][0] < MIN_ROUGH_FIT:
        return UNLIKE
    score, pose = max((refine_pose(a, b, pose, 6) for _, pose in tried), key=lambda entry: entry[0])
    if score < MIN_FIT:
        return UNLIKE
    return _judge(a.volume, pose.lay.of(b.volume), pose)


def _judge(a: Grid, b: Grid, pose: Pose) -> Likeness:
    """Compare two laid volumes on the finest grid that both have, the intensities of one mapped to the other's."""
    box_a, box_b = cut_to_common(pose.first, pose.second)
    shape = _shared_shape(a, b, box_a, box_b)
    box_a, box_b = cut_to_common(box_a, refine(a, b, box_a, box_b, shape, 4)[1])
    x, y = sample(a, shape, box_a), sample(b, shape, box_b)
    tone_a, tone_b = _tone(x, y), _tone(y, x)
    fit_a, fit_b = _correlation(np.interp(x, *tone_a), y), _correlation(np.interp(y, *tone_b), x)
    if max(fit_a, fit_b) < MIN_MAPPED_FIT:
        return UNLIKE
    if fit_a >= fit_b:
        a = np.interp(a, *tone_a).astype(np.float32)
    else:
        b = np.interp(b, *tone_b).astype(np.float32)
    box = refine(a, b, box_a, box_b, shape, 4)[1]
    cells = np.array(shape)[:, None]
    box_a, box_b = cut_to_common(box_a, box, np.where(cells >= BLOCK, 1.0, 0.0) / cells)
    shape = _shared_shape(a, b, box_a, box_b)
    return _blocks(*_equally_sharp(sample(a, shape, box_a), sample(b, shape, box_b)))


def _shared_shape(a: Grid, b: Grid, box_a: Box, box_b: Box) -> list[int]:
    """Cells along each axis of the coarser of two boxes."""
    sides = zip(a.shape, b.shape, np.diff(box_a)[:, 0], np.diff(box_b)[:, 0], strict=True)
    return [max(1, round(min(n * i, m * j))) for n, m, i, j in sides]


def _correlation(x: Shaped[np.ndarray, "_ _ _"], y: Grid) -> float:
    return float(unit(x.ravel().astype(np.float32)) @ unit(y.ravel()))


def _tone(x: Grid, y: Grid) -> tuple[Float64[np.ndarray, " nodes"], Float64[np.ndarray, " nodes"]]:
    """Nodes of a rising map that makes intensities x like y: means of y by level of x, halfway between the rising maps around them."""
    level = np.clip(x / 4, 0, 63).astype(np.int64).ravel()
    n = np.bincount(level, minlength=64)
    at = n > 0
    nodes, means = (np.bincount(level, v.ravel(), 64)[at] / n[at] for v in (x, y))
    return nodes, (np.maximum.accumulate(means) + np.minimum.accumulate(means[::-1])[::-1]) / 2


def _equally_sharp(x: Grid, y: Grid) -> tuple[Grid, Grid]:
    """Blur or sharpen one of two grids, by its second differences along each axis, so that it is as like the other as can be."""
    from_x, from_y = _sharpened(x, y), _sharpened(y, x)
    return (from_x, y) if _correlation(from_x, y) >= _correlation(from_y, x) else (x, from_y)


def _sharpened(x: Grid, y: Grid) -> Grid:
    columns = [x, *(_second_differences(x, axis) for axis in range(3) if x.shape[axis] > 1)]
    design = np.stack([(column - column.mean()).ravel() for column in columns])
    normal = (design @ design.T).astype(np.float64)
    normal[np.diag_indices(len(normal))] = normal.diagonal() * (1 + 1e-4) + 1e-6
    weights = np.linalg.solve(normal, (design @ (y - y.mean()).ravel()).astype(np.float64))
    return (weights.astype(np.float32) @ design).reshape(x.shape)


def _second_differences(x: Grid, axis: int) -> Grid:
    padded = np.pad(x, [(1, 1) if k == axis else (0, 0) for k in range(3)], mode="edge")
    before, after = (padded.take(range(start, start + x.shape[axis]), axis=axis) for start in (0, 2))
    return before + after - 2 * x


def _blocks(x: Grid, y: Grid) -> Likeness:
    """Correlate two grids block by block."""
    edges = [np.linspace(0, n, _n_blocks(n) + 1).round().astype(np.int64)[:-1] for n in x.shape]
    x, y = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (x, y))

    def mean(values: Float64[np.ndarray, "_ _ _"]) -> Float64[np.ndarray, "_ _ _"]:
        for axis in range(3):
            values = np.add.reduceat(values, edges[axis], axis=axis)
        return values

    n = mean(np.ones(x.shape))
    mean_x, mean_y = mean(x) / n, mean(y) / n
    var_x, var_y = mean(x * x) / n - mean_x**2, mean(y * y) / n - mean_y**2
    both = mean(x * y) / n - mean_x * mean_y
    told = np.minimum(var_x / (x.var() + 1e-6), var_y / (y.var() + 1e-6)) > MIN_CONTENT
    if np.count_nonzero(told) < MIN_BLOCKS:
        return UNLIKE
    var_x, var_y, both = var_x[told], var_y[told], both[told]
    weakest, middle = np.quantile(both / np.sqrt(var_x * var_y), [WEAKEST, 0.5])
    return Likeness(float(both.sum() / np.sqrt(var_x.sum() * var_y.sum())), float(weakest), float(middle))
