"""Lay one scan over another as well as can be: all 48 ways to permute and flip the axes, and a part of one as all of the other.

The best few fits of coarse grids are refined by least squares (Gauss-Newton on the six ends of the common box).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8

from medvar_data.shard.near_duplicates.parts import COARSE, WHOLE, Box, Grid, coarse_parts, parts_of_axes, sample, unit

MIDDLE = 20  # cells a side while poses are refined
TRIES = 6  # orientations that are refined
MIN_PROMISE = 0.84  # correlation that the first step of a refinement must foresee


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
def _views() -> Int64[np.ndarray, "48 n"]:
    numbers = np.arange(COARSE**3).reshape((COARSE,) * 3)
    return np.stack([lay.of(numbers).ravel() for lay in ORIENTATIONS])


def likeliest_poses(a: Prepared, b: Prepared) -> list[tuple[float, Pose]]:
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


def refine(
    a: Grid, b: Grid, box_a: Box, box_b: Box, shape: Sequence[int], rounds: int, promise: float = 0.0
) -> tuple[float, Box]:
    """Move the ends of b's box so that what lies there is most like what lies in a's; gives the correlation and the box.

    It stops at once where the first step foresees a correlation below `promise`.
    """
    fixed = unit(sample(a, shape, box_a).ravel())
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


def refine_pose(a: Prepared, b: Prepared, pose: Pose, rounds: int) -> tuple[float, Pose]:
    """Refine a pose on small grids; gives the correlation and the pose."""
    laid = pose.lay.of(b.small)
    shape = [min(MIDDLE, n, m) for n, m in zip(a.small.shape, laid.shape, strict=True)]
    score, box = refine(a.small, laid, pose.first, pose.second, shape, rounds, MIN_PROMISE)
    return score, Pose(pose.first, pose.lay, box)


def cut_to_common(box_a: Box, box_b: Box, margin: Float64[np.ndarray, "3 1"] | float = 0.0) -> tuple[Box, Box]:
    """Cut both boxes to what lies inside both scans; and, where one ends inside the other, by a margin of b's box more."""
    size_a, size_b = np.diff(box_a), np.diff(box_b)
    start = np.maximum(-box_b[:, :1] / size_b, -box_a[:, :1] / size_a)
    stop = np.minimum((1 - box_b[:, :1]) / size_b, (1 - box_a[:, :1]) / size_a)
    first = np.maximum(start, 0) + margin
    cut = np.concatenate([first, np.minimum(stop, 1) - margin], axis=1)
    return box_a[:, :1] + cut * size_a, box_b[:, :1] + cut * size_b
