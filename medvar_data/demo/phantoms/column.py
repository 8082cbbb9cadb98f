"""The backbone's geometry: how high each segment stands, how the column curves, which numbers its vertebrae carry.

In: a generator and the heights in view. Out: a `Column`, and a `Frame` of coordinates along it for every voxel.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from medvar_data.demo.phantoms.shapes import (
    Array,
    Real,
    Space,
    spread,
)
from medvar_data.demo.phantoms.torso import (
    Build,
)

SACRAL = 3  # sacral segments below the lowest lumbar vertebra: painted, never labelled


@dataclass(frozen=True)
class Column:
    """A patient's backbone.

    Attributes:
        edges_mm: heights of the lower end plates, from the lowest segment up; one more than there are segments.
        disc_mm: thickness of the disc on top of each segment.
        curve: coefficients of y(z), highest power first.
        sway: coefficients of x(z).
        half_width: of a body.
        ids: label of each segment, 0 where it is not annotated.
        disc_ids: label of the disc on top of each segment, 0 where discs are not annotated.
        degenerated: which discs have dried out.
    """

    edges_mm: Float32[np.ndarray, " edges"]
    disc_mm: Float32[np.ndarray, " segments"]
    curve: tuple[float, ...]
    sway: tuple[float, ...]
    half_width: Real
    ids: Int64[np.ndarray, " segments"]
    disc_ids: Int64[np.ndarray, " segments"]
    degenerated: tuple[bool, ...]


@dataclass(frozen=True)
class Frame:
    """Coordinates along a column: sideways and forward from its middle, and up from the middle of each body, in mm."""

    x: Array
    y: Array
    up: Array
    half_height: Array
    segment: np.ndarray


def height_range(at: Space) -> tuple[Real, Real]:
    """Give the lowest and the highest height that a stack shows at its middle."""
    corners = at.grid.affine[:3, :3] @ (np.asarray(at.grid.shape) - 1) * 0.5
    middle = at.grid.affine[2, 3] + corners[2]
    return float(middle - abs(corners[2])), float(middle + abs(corners[2]))


def draw_column(
    rng: np.random.Generator, low: Real, high: Real, *, start: Real, body: Build, lowest: int, rising: bool
) -> Column:
    """Draw a patient's backbone.

    Args:
        rng: draws it.
        low: lowest height in view.
        high: highest height in view.
        start: lower edge of the lowest segment.
        body: the patient's build, which says where the bodies lie and how wide they are.
        lowest: VerSe's number of the lowest vertebra, 24 for L5; below that one lies the sacrum.
        rising: count as SPIDER does, 1 for L5 and up, and number the discs too.
    """
    count = 16
    sacral = SACRAL if lowest == 24 else 0
    real = lowest + sacral - np.arange(count)  # VerSe's number of each segment; above 24 is sacrum
    heights = np.interp(real, (8, 14, 19, 24, 25, 27), (23.0, 26.5, 31.5, 37.5, 31, 27)) * spread(rng, 1.0, 0.05)
    heights = heights * (1 + 0.03 * rng.standard_normal(count))
    if rng.random() < 0.3:  # a compression fracture
        heights[int(rng.integers(sacral, sacral + 5))] *= rng.uniform(0.68, 0.88)
    degenerated = tuple(bool(b) for b in rng.random(count) < np.interp(real, (18, 22, 24), (0.1, 0.3, 0.5)))
    share = np.interp(real, (8, 19, 24, 24.5, 25), (0.17, 0.21, 0.26, 0.26, 0.08))
    disc_mm = heights * share * np.where(degenerated, 0.72, 1.0)
    edges = start + np.concatenate([[0.0], np.cumsum(heights)])
    lordosis = spread(rng, 1.0, 0.2)
    if sacral:
        z = np.array([-120, -95, -70, -35, 0, 35, 70, 105, 140]) + start + 142
        y = np.array([-33, -19, -6, 4, 6, 2, -4, -10, -15]) * lordosis
        curve = np.polyfit(z, y + body.spine_y + 2 + rng.normal(0, 1.5, 9), 4)
    else:
        z = np.linspace(low, high, 7)
        y = -0.0022 * (z - (low + high) / 2) ** 2 * (-1 if lowest < 20 else 1) * lordosis
        curve = np.polyfit(z, y + body.spine_y + rng.normal(0, 1.2, 7), 2)
    sway = np.array([rng.normal(0, 4e-4), rng.normal(0, 0.03), rng.normal(0, 2)])
    whole = (edges[:-1] > low + 2) & (edges[1:] - disc_mm < high - 2) & (real <= 24) & (real >= 8)
    numbers = 25 - real if rising else real
    disc_seen = (edges[1:] - disc_mm > low + 1) & (edges[1:] < high - 1) & (real <= 25)
    return Column(
        edges_mm=edges.astype(np.float32),
        disc_mm=disc_mm.astype(np.float32),
        curve=tuple(curve),
        sway=tuple(sway),
        half_width=body.vertebra * (1.0 if lowest >= 20 else 0.84),
        ids=np.where(whole, numbers, 0).astype(np.int64),
        disc_ids=np.where(disc_seen & rising, 226 - real, 0).astype(np.int64),
        degenerated=degenerated,
    )


def frame_of(at: Space, column: Column) -> Frame:
    """Straighten the column: coordinates sideways, forward and along its curve."""
    y = at.y - np.polyval(np.asarray(column.curve, dtype=np.float32), at.z)
    slope = np.clip(np.polyval(np.polyder(np.asarray(column.curve)).astype(np.float32), at.z), -0.9, 0.9)
    along = (at.z + slope * np.clip(y, -45, 30)).astype(np.float32)
    y = y * np.cos(np.arctan(slope))
    segment = np.clip(np.searchsorted(column.edges_mm, along) - 1, 0, len(column.disc_mm) - 1)
    bodies = (np.diff(column.edges_mm) - column.disc_mm).astype(np.float32)
    half = (bodies / 2)[segment]
    return Frame(
        x=(at.x - np.polyval(np.asarray(column.sway, dtype=np.float32), at.z)).astype(np.float32),
        y=y.astype(np.float32),
        up=along - column.edges_mm[segment] - half,
        half_height=half,
        segment=segment,
    )


def oval(x: Array, y: Array, centre: Real, wide: Real, deep: Real) -> Array:
    """Distance to a rounded oval in the plane of a vertebra."""
    u, v = np.abs(x) / np.float32(wide), np.abs(y - np.float32(centre)) / np.float32(deep)
    r = (u * u * np.sqrt(u) + v * v * np.sqrt(v)) ** np.float32(0.4)
    return np.asarray((r - 1) * np.float32(0.5 * (wide + deep)), dtype=np.float32)


def canal_shape(frame: Frame, column: Column) -> Array:
    """Distance to the spinal canal."""
    b = 0.76 * column.half_width
    return oval(frame.x, frame.y, -b - 7.0, 11.0, 8.2)
