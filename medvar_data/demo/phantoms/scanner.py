"""Turn anatomy into scans: paint layers with partial volume, then add what a CT or an MR scanner adds.

In: layers (a tissue name and a signed distance each) in painting order, and what each tissue measures. Out: float32
volumes [i, j, k] = R A S, one per sequence, and the uint16 label. CT is in HU, air -1000 and -1024 outside the
reconstruction circle; MR is in arbitrary units of at least 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt16

from medvar_data.demo.phantoms.shapes import Array, Box, Grid, Real, Space, field

KEEP = -1  # a layer with this label lies inside a labelled structure and belongs to it


@dataclass(frozen=True)
class Layer:
    """One structure: everything nearer than 0 to its inside becomes `tissue`.

    Attributes:
        tissue: key of the scanner's tissue table.
        box: the voxels that `distance` covers.
        distance: millimetres, negative inside.
        label: id painted where more than half a voxel is inside; 0 erases; KEEP leaves what is below. May be an array.
        fade_mm: width of the soft edge on top of the voxel's own (oedema and smoke have no sharp border).
    """

    tissue: str
    box: Box
    distance: Array
    label: int | np.ndarray = 0
    fade_mm: Real = 0.0


@dataclass(frozen=True)
class Tissue:
    """What one tissue measures: HU or signal, and how much its texture varies (HU for CT, a fraction for MR)."""

    value: Real
    texture: Real = 0.0


@dataclass(frozen=True)
class Painting:
    """Noise-free signal of every sequence, with the label."""

    signal: Mapping[str, Float32[np.ndarray, "i j k"]]
    label: UInt16[np.ndarray, "i j k"]


def layer(tissue: str, at: Space, distance: Array, label: int | np.ndarray = 0, fade_mm: Real = 0.0) -> Layer:
    """Make a layer of a distance that was evaluated on `at`."""
    return Layer(tissue, at.box, distance.astype(np.float32, copy=False), label, fade_mm)


def paint(
    layers: Iterable[Layer],
    grid: Grid,
    tables: Mapping[str, Mapping[str, Tissue]],
    rng: np.random.Generator,
    *,
    multiply: bool,
) -> Painting:
    """Paint layers one over the other: a voxel holds each tissue in proportion to the part of it that is inside.

    Args:
        layers: in painting order, the outermost first.
        grid: where to paint.
        tables: for each sequence what each tissue measures; `background` is the canvas.
        rng: draws the texture, one for all sequences since it is anatomy.
        multiply: texture scales the signal (MR) instead of being added to it (CT).
    """
    sequences = list(tables)
    first = tables[sequences[0]]
    signal = {s: np.full(grid.shape, np.float32(tables[s]["background"].value)) for s in sequences}
    amplitude = np.full(grid.shape, np.float32(first["background"].texture))
    label = np.zeros(grid.shape, dtype=np.uint16)
    edge_mm = grid.edge_mm
    for item in layers:
        if item.distance.size == 0:
            continue
        width = np.float32(1 / (edge_mm + item.fade_mm))
        alpha = item.distance * -width
        alpha += np.float32(0.5)
        np.clip(alpha, 0, 1, out=alpha)
        _mix(amplitude[item.box], alpha, first[item.tissue].texture)
        for s in sequences:
            _mix(signal[s][item.box], alpha, tables[s][item.tissue].value)
        if isinstance(item.label, np.ndarray):
            np.copyto(label[item.box], item.label.astype(np.uint16), where=alpha > 0.5)
        elif item.label != KEEP:
            label[item.box][alpha > 0.5] = item.label
    fine = max(4.0, 1.6 * edge_mm)
    texture = amplitude * (np.float32(0.75) * field(grid, rng, fine) + np.float32(0.66) * field(grid, rng, 3 * fine))
    for s in sequences:
        signal[s] = np.asarray(signal[s] * (1 + texture) if multiply else signal[s] + texture, dtype=np.float32)
    return Painting(signal, label)


def _mix(below: Array, alpha: Array, value: Real) -> None:
    change = np.float32(value) - below
    change *= alpha
    below += change


def ct_scan(
    painting: Painting, grid: Grid, rng: np.random.Generator, *, noise_hu: Real, circle: bool
) -> Float32[np.ndarray, "i j k"]:
    """Measure HU: in-plane correlated noise, whole numbers from -1024 to 3071, -1024 outside the circle of reconstruction."""
    hu = painting.signal["ct"] + noise_hu * _correlated_noise(grid, rng)
    np.clip(np.rint(hu), -1024, 3071, out=hu)
    if circle:
        half = [(n - 1) / 2 for n in grid.shape[:2]]
        away = [(np.arange(n, dtype=np.float32) - h) / (h + 1) for n, h in zip(grid.shape[:2], half, strict=True)]
        hu[np.add.outer(away[0] ** 2, away[1] ** 2) > 1.0] = -1024
    return hu


def _correlated_noise(grid: Grid, rng: np.random.Generator) -> Float32[np.ndarray, "i j k"]:
    """Draw noise of standard deviation 1 whose neighbours in the slice are alike, as a reconstruction filter leaves it."""
    nx, ny, nz = grid.shape
    white = rng.standard_normal((nx + 2, ny + 2, nz), dtype=np.float32)
    rows = white[:-2] + np.float32(1.6) * white[1:-1] + white[2:]
    both = rows[:, :-2] + np.float32(1.6) * rows[:, 1:-1] + rows[:, 2:]
    return np.asarray(both / np.float32(4.56), dtype=np.float32)  # 4.56 = 1 + 1.6^2 + 1, the norm of both passes


def mr_scan(
    signal: Float32[np.ndarray, "i j k"],
    grid: Grid,
    rng: np.random.Generator,
    *,
    noise: Real,
    bias: Real,
    scale: Real,
) -> Float32[np.ndarray, "i j k"]:
    """Measure magnitude: a smooth receive field of about `bias`, then Rician noise of sigma `noise`; 1 becomes `scale`."""
    received = np.maximum(signal, 0) * np.exp(np.float32(bias) * field(grid, rng, 110.0))
    real = received + np.float32(noise) * rng.standard_normal(grid.shape, dtype=np.float32)
    imaginary = np.float32(noise) * rng.standard_normal(grid.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary) * np.float32(scale), dtype=np.float32)


def couch(at: Space, back_mm: Real, rng: np.random.Generator) -> list[Layer]:
    """Lay the patient on a scanner table: foam cushion, then a curved carbon shell, without streaks."""
    curve = np.float32(rng.uniform(0.0004, 0.0011))
    at = at.between((-1e4, -1e4, -1e4), (1e4, back_mm + 40, 1e4))
    surface = (at.y - np.float32(back_mm - 9)) - curve * at.x * at.x  # positive above the table top
    wide = np.abs(at.x) - np.float32(rng.uniform(185, 215))
    cushion = np.maximum.reduce([surface - 8, -surface, np.abs(at.x) - 120])
    return [
        layer("cushion", at, cushion),
        layer("foam", at, np.maximum.reduce([surface, -surface - 24, wide])),
        layer("table", at, np.maximum(np.abs(surface + 2) - 2.4, wide)),
        layer("table", at, np.maximum(np.abs(surface + 24) - 2.0, wide)),
    ]
