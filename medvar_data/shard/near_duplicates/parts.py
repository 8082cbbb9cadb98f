"""Sample boxes of a scan's thumbnail on coarse grids: the whole of it, and its parts along each axis."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64

COARSE = 12  # cells a side
LENGTHS = (0.9, 0.8, 0.7, 0.6, 0.5)  # parts of an axis that may be all of the other scan's
Grid = Float32[np.ndarray, "_ _ _"]
Box = Float64[np.ndarray, "3 2"]  # start and stop along each axis: 0 is its beginning, 1 its end
WHOLE: Box = np.array([[0.0, 1.0]] * 3)


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
    return unit(np.concatenate(found).reshape(sum(map(len, found)), -1))


def sample_whole_axes(volume: Grid, frame: Box) -> Float32[np.ndarray, "3 n"]:
    """The volume by a frame, but the whole of the first, the second, the third axis; otherwise as `coarse_parts`."""
    boxes = [np.where(np.arange(3)[:, None] == axis, WHOLE, frame) for axis in range(3)]
    return unit(np.stack([sample(volume, (COARSE,) * 3, box).ravel() for box in boxes]))


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


def unit(rows: Float32[np.ndarray, "*rows n"]) -> Float32[np.ndarray, "*rows n"]:
    """Rows of mean 0 and length 1; of one value, of length 0."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-3)
