"""Prove on voxels that two thumbnails show one scan: lay one over the other, then compare them block by block.

In: two thumbnails of `harmonize.signature`. Out: a similarity, at most 1. No spacing and no orientation is trusted: all 48 ways to
permute and flip the axes are tried, and a part of one scan may be all of the other. The best few fits are refined by least squares
(Gauss-Newton on the six ends of the common box), and the best is judged on the finest grid that both scans have.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8

PROOF_VERSION = 2  # of whatever changes an outcome
COARSE, MIDDLE = 12, 20  # cells a side while poses are looked for, and while they are refined
BLOCK = 8  # cells a side of the blocks that are compared, about
TRIES, TRY_WITHIN = 6, 0.1  # orientations that are refined: so many, of a coarse fit not so much below the best's
MIN_COARSE_FIT, MIN_ROUGH_FIT, MIN_FIT = 0.7, 0.9, 0.9  # correlations of coarse and of middle cells to go on with
MIN_PROMISE = 0.84  # correlation that the first step of a refinement must foresee
MIN_MAPPED_FIT = 0.8  # of all cells, once the intensities are mapped
SURE_FIT = 0.97  # beyond which no further orientation is tried
LENGTHS = (0.9, 0.8, 0.7, 0.6, 0.5)  # parts of an axis that may be all of the other scan's
MIN_CONTENT = 0.05  # of a scan's variance, that a block must have in both to be compared
MIN_BLOCKS = 8  # with content
WEAKEST = 0.05  # quantile of the blocks' correlations
SURE_LOSS, MOST_LOSS, LOSS_RATIO = 0.045, 0.1, 4.0  # of correlation, in the weakest blocks; beside the median's
Grid = Float32[np.ndarray, "_ _ _"]
Box = Float64[np.ndarray, "3 2"]  # start and stop along each axis: 0 is its beginning, 1 its end
WHOLE: Box = np.array([[0.0, 1.0]] * 3)


@dataclass(frozen=True)
class Orientation:
    """One of the 48 ways to lay a volume: axes permuted, then some flipped."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def of(self, volume: Shaped[np.ndarray, "a b c"]) -> Shaped[np.ndarray, "d e f"]:
        """View a volume so (no copy)."""
        return volume.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def undo(self, box: Box) -> tuple["Orientation", Box]:
        """The way back, and where a box of the laid volume is in the volume as it was."""
        axes = tuple(int(axis) for axis in np.argsort(self.axes))
        flips = tuple(self.flips[axis] for axis in axes)
        return Orientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])), np.stack(
            [1 - box[axis][::-1] if self.flips[axis] else box[axis] for axis in axes]
        )


ORIENTATIONS = tuple(
    Orientation((i, j, k), (x, y, z))
    for i, j, k in itertools.permutations((0, 1, 2))
    for x, y, z in itertools.product((False, True), repeat=3)
)


@dataclass(frozen=True)
class Pose:
    """How two scans may lie over each other: the box of the first, how the second is laid, and its box there."""

    first: Box
    lay: Orientation
    second: Box


@dataclass(frozen=True, eq=False)
class Prepared:
    """A thumbnail with what is compared first.

    Attributes:
        volume: as it is.
        small: of at most twice `MIDDLE` - 16 cells a side.
        parts: each of `parts_of_axes` in `COARSE` cells a side, of mean 0 and length 1.
        views: the whole in all orientations, likewise.
    """

    volume: Grid
    small: Grid
    parts: Float32[np.ndarray, "p n"]
    views: Float32[np.ndarray, "48 n"]

    @classmethod
    def of(cls, thumbnail: UInt8[np.ndarray, "a b c"]) -> "Prepared":
        """Prepare a thumbnail."""
        volume = thumbnail.astype(np.float32)
        parts = coarse_parts(volume)
        shape = tuple(min(n, MIDDLE + 4) for n in volume.shape)
        return cls(volume, sample(volume, shape, WHOLE), parts, parts[0][_views()])


@cache
def parts_of_axes() -> Float64[np.ndarray, "p 3 2"]:
    """The whole, and parts of each axis: of half of it to nine tenths, in steps of a tenth."""
    found = [WHOLE]
    for axis in range(3):
        for start, stop in _parts():
            box = WHOLE.copy()
            box[axis] = start, stop
            found.append(box)
    return np.stack(found)


def _parts() -> list[tuple[float, float]]:
    return [(i / 10, i / 10 + length) for length in LENGTHS for i in range(round((1 - length) * 10) + 1)]


@cache
def _part_weights(n: int) -> Float32[np.ndarray, "cells n"]:
    """Weights that sample each part of an axis of n cells, one part's cells after the other's."""
    return np.concatenate([sampling(n, COARSE, *part) for part in _parts()])


@cache
def _views() -> Int64[np.ndarray, "48 n"]:
    numbers = np.arange(COARSE**3).reshape((COARSE,) * 3)
    return np.stack([lay.of(numbers).ravel() for lay in ORIENTATIONS])


def sampling(n_in: int, n_out: int, start: float, stop: float) -> Float32[np.ndarray, "n_out n_in"]:
    """Weights that sample the part from `start` to `stop` of an axis.

    Linear interpolation where the new grid is finer, a hat as wide as two of its steps where it is coarser; beyond the ends, the
    outermost cells.
    """
    step = (stop - start) * n_in / n_out
    centres = np.clip(start * n_in + (np.arange(n_out) + 0.5) * step, 0.5, n_in - 0.5)
    weights = np.clip(1 - np.abs(np.arange(n_in) + 0.5 - centres[:, None]) / max(1.0, step), 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def sample(volume: Grid, shape: Sequence[int], box: Box) -> Grid:
    """Sample a box of a volume on a grid."""
    for axis in np.argsort([n / m for n, m in zip(shape, volume.shape, strict=True)]):  # what shrinks goes first
        weights = sampling(volume.shape[axis], shape[axis], box[axis, 0], box[axis, 1])
        volume = _along(weights, volume, int(axis))
    return volume


def _along(weights: Float32[np.ndarray, "_ _"], volume: Grid, axis: int) -> Grid:
    return np.moveaxis(np.tensordot(weights, volume, (1, axis)), 0, axis)


def coarse_parts(volume: Grid, frame: Box = WHOLE) -> Float32[np.ndarray, "p n"]:
    """The whole and each part of a volume in `COARSE` cells a side, of mean 0 and length 1; as `parts_of_axes` has them.

    Args:
        volume: the scan.
        frame: what counts as the whole of an axis, where it is not the axis of which a part is taken.
    """
    framed = [sampling(n, COARSE, *ends) for n, ends in zip(volume.shape, frame, strict=True)]
    found = [sample(volume, (COARSE,) * 3, frame)[None]]
    for axis in range(3):
        stack = _part_weights(volume.shape[axis])
        rest = volume
        for other in range(3):
            rest = rest if other == axis else _along(framed[other], rest, other)
        laid = np.moveaxis(_along(stack, rest, axis), axis, 0)  # all parts' cells first
        found.append(np.moveaxis(laid.reshape(-1, COARSE, COARSE, COARSE), 1, 1 + axis))
    return _unit(np.concatenate(found).reshape(sum(map(len, found)), -1))


def sample_whole_axes(volume: Grid, frame: Box) -> Float32[np.ndarray, "3 n"]:
    """The volume by a frame, but the whole of the first, the second, the third axis; otherwise as `coarse_parts`."""
    boxes = [np.where(np.arange(3)[:, None] == axis, WHOLE, frame) for axis in range(3)]
    return _unit(np.stack([sample(volume, (COARSE,) * 3, box).ravel() for box in boxes]))


def content_box(volume: Grid) -> Box:
    """Where most of a volume's change lies: along each axis, from the tenth to the ninetieth percentile of its slopes."""
    found = []
    for axis in range(3):
        energy = np.zeros(volume.shape[axis])
        for along in range(3):
            change = np.abs(np.diff(volume, axis=along)).sum(axis=tuple(k for k in range(3) if k != axis))
            energy[: len(change)] += change
        until = np.concatenate([[0.0], np.cumsum(energy)])
        places = np.interp([0.1, 0.9], until / max(until[-1], 1e-6), np.linspace(0, 1, len(until)))
        middle, half = places.mean(), max(float(np.diff(places)[0]), 0.1) / 2 * 1.25
        found.append((middle - half, middle + half))
    return np.array(found)


def _unit(rows: Float32[np.ndarray, "*rows n"]) -> Float32[np.ndarray, "*rows n"]:
    """Rows of mean 0 and length 1; of one value, of length 0."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-3)


def _poses(a: Prepared, b: Prepared) -> list[tuple[float, Pose]]:
    """The most likely ways to lay b over a, of each orientation the likeliest: a part of one is all of the other."""
    boxes = parts_of_axes()
    forward, backward = a.parts @ b.views.T, b.parts @ a.views.T
    found = []
    for lay in np.argsort(-forward.max(axis=0))[:TRIES]:
        part = int(np.argmax(forward[:, lay]))
        found.append((float(forward[part, lay]), Pose(boxes[part], ORIENTATIONS[lay], WHOLE)))
    for lay in np.argsort(-backward.max(axis=0))[:TRIES]:
        part = int(np.argmax(backward[:, lay]))
        back, box = ORIENTATIONS[lay].undo(boxes[part])
        found.append((float(backward[part, lay]), Pose(WHOLE, back, box)))
    return sorted(found, key=lambda entry: -entry[0])[:TRIES]


def _refine(
    a: Grid, b: Grid, box_a: Box, box_b: Box, shape: Sequence[int], rounds: int, promise: float = 0.0
) -> tuple[float, Box]:
    """Move the ends of b's box so that what lies there is most like what lies in a's; gives the correlation and the box.

    It stops at once where the first step foresees a correlation below `promise`.
    """
    fixed = _unit(sample(a, shape, box_a).ravel())
    grids = [(np.arange(n, dtype=np.float32) + 0.5) / n for n in shape]
    best, found, ends = -1.0, box_b, box_b
    for number in range(rounds):
        moving = sample(b, shape, ends)
        centred = moving.ravel() - moving.mean()
        length = max(float(np.linalg.norm(centred)), 1e-3)
        score = float(fixed @ centred) / length
        if score <= best + 1e-4:
            return (score, ends) if score > best else (best, found)
        best, found = score, ends
        columns = [centred / length]
        for axis, grid in enumerate(grids):
            slope = _slope(moving, axis) / np.float32(length * (ends[axis, 1] - ends[axis, 0]))
            along = grid.reshape([-1 if other == axis else 1 for other in range(3)])
            columns += [((1 - along) * slope).ravel(), (along * slope).ravel()]
        design = np.stack(columns)
        design -= design.mean(axis=1, keepdims=True)
        normal, wanted = (design @ design.T).astype(np.float64), (design @ fixed).astype(np.float64)
        normal[np.diag_indices(7)] += 1e-3 * np.trace(normal[1:, 1:]) / 6 + 1e-9
        solved = np.linalg.solve(normal, wanted)
        if number == 0 and solved @ wanted < promise**2:
            break
        gain, *step = solved
        moved = ends + np.clip(np.reshape(step, (3, 2)) / max(gain, 0.3), -0.1, 0.1)
        ends = np.where((moved[:, 1] - moved[:, 0] > 0.3)[:, None], moved, ends)
    return best, found


def _slope(volume: Grid, axis: int) -> Grid:
    """Change along an axis, from its beginning to its end."""
    n = volume.shape[axis]
    return np.gradient(volume, axis=axis) * np.float32(n) if n > 1 else np.zeros_like(volume)


def _refined(a: Prepared, b: Prepared, pose: Pose, rounds: int) -> tuple[float, Pose]:
    """Refine a pose on small grids; gives the correlation and the pose."""
    laid = pose.lay.of(b.small)
    shape = [min(MIDDLE, n, m) for n, m in zip(a.small.shape, laid.shape, strict=True)]
    score, box = _refine(a.small, laid, pose.first, pose.second, shape, rounds, MIN_PROMISE)
    return score, Pose(pose.first, pose.lay, box)


def _common(box_a: Box, box_b: Box, margin: Float64[np.ndarray, "3 1"] | float = 0.0) -> tuple[Box, Box]:
    """Cut both boxes to what lies inside both scans; and, where one ends inside the other, by a margin of b's box more."""
    size_a, size_b = np.diff(box_a), np.diff(box_b)
    start = np.maximum(-box_b[:, :1] / size_b, -box_a[:, :1] / size_a)
    stop = np.minimum((1 - box_b[:, :1]) / size_b, (1 - box_a[:, :1]) / size_a)
    first = np.maximum(start, 0) + margin
    cut = np.concatenate([first, np.minimum(stop, 1) - margin], axis=1)
    return box_a[:, :1] + cut * size_a, box_b[:, :1] + cut * size_b


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
    poses = _poses(a, b)
    if poses[0][0] < MIN_COARSE_FIT:
        return UNLIKE
    tried = []
    for fit, pose in poses:
        if fit < poses[0][0] - TRY_WITHIN:
            break
        tried.append(_refined(a, b, pose, 3))
        if tried[-1][0] > SURE_FIT:
            break
    tried = sorted(tried, key=lambda entry: -entry[0])[:2]
    if tried[0][0] < MIN_ROUGH_FIT:
        return UNLIKE
    score, pose = max((_refined(a, b, pose, 6) for _, pose in tried), key=lambda entry: entry[0])
    if score < MIN_FIT:
        return UNLIKE
    return _judge(a.volume, pose.lay.of(b.volume), pose)


def _judge(a: Grid, b: Grid, pose: Pose) -> Likeness:
    """Compare two laid volumes on the finest grid that both have, the intensities of one mapped to the other's."""
    box_a, box_b = _common(pose.first, pose.second)
    shape = _shared_shape(a, b, box_a, box_b)
    box_a, box_b = _common(box_a, _refine(a, b, box_a, box_b, shape, 4)[1])
    x, y = sample(a, shape, box_a), sample(b, shape, box_b)
    tone_a, tone_b = _tone(x, y), _tone(y, x)
    fit_a, fit_b = _correlation(np.interp(x, *tone_a), y), _correlation(np.interp(y, *tone_b), x)
    if max(fit_a, fit_b) < MIN_MAPPED_FIT:
        return UNLIKE
    if fit_a >= fit_b:
        a = np.interp(a, *tone_a).astype(np.float32)
    else:
        b = np.interp(b, *tone_b).astype(np.float32)
    box = _refine(a, b, box_a, box_b, shape, 4)[1]
    cells = np.array(shape)[:, None]
    box_a, box_b = _common(box_a, box, np.where(cells >= BLOCK, 1.0, 0.0) / cells)
    shape = _shared_shape(a, b, box_a, box_b)
    return _blocks(*_equally_sharp(sample(a, shape, box_a), sample(b, shape, box_b)))


def _shared_shape(a: Grid, b: Grid, box_a: Box, box_b: Box) -> list[int]:
    """Cells along each axis of the coarser of two boxes."""
    sides = zip(a.shape, b.shape, np.diff(box_a)[:, 0], np.diff(box_b)[:, 0], strict=True)
    return [max(1, round(min(n * i, m * j))) for n, m, i, j in sides]


def _correlation(x: Shaped[np.ndarray, "_ _ _"], y: Grid) -> float:
    return float(_unit(x.ravel().astype(np.float32)) @ _unit(y.ravel()))


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
