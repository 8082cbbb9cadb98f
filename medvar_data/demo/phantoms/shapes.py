"""Build bodies from signed distances: smooth implicit shapes on a voxel grid, warped a little differently in every patient.

In: a `Grid` (shape and affine). Out: distance arrays in millimetres, negative inside, float32, [i, j, k] = R A S.

Everything is a function of millimetres in the patient (x to the Right, y Anterior, z Superior), never of voxels, so
the same patient on a finer grid is the same patient. Shapes are evaluated on the box of voxels they can reach, which
keeps a torso of a hundred structures within about a tenth of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped

Array = Float[np.ndarray, "..."]
Real = float | int
Point = Sequence[Real] | Shaped[np.ndarray, "..."]  # three coordinates, or two in the axial plane
Box = tuple[slice, slice, slice]

WARP_MARGIN_MM = 9.0  # how far warps may move a surface beyond the box of its plain shape


@dataclass(frozen=True)
class Grid:
    """A voxel grid: `affine` takes index (i, j, k) to millimetres, RAS+."""

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]

    @property
    def spacing_mm(self) -> Float64[np.ndarray, "3"]:
        """Distances between neighbouring voxels along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def inverse(self) -> Float64[np.ndarray, "4 4"]:
        """Millimetres to index."""
        return np.linalg.inv(self.affine)

    @cached_property
    def edge_mm(self) -> float:
        """The width over which a surface fades: the mean of the two finer spacings."""
        return float(np.sort(self.spacing_mm)[:2].mean())


@dataclass(frozen=True)
class Space:
    """Patient coordinates in millimetres of the voxels of one box of a grid."""

    grid: Grid
    box: Box
    x: Float32[np.ndarray, "i j k"]
    y: Float32[np.ndarray, "i j k"]
    z: Float32[np.ndarray, "i j k"]

    def near(self, centre: Point, reach_mm: Real | Point) -> "Space":
        """Cut to the voxels within `reach_mm` of `centre` along each patient axis (obliquity and warps allowed for)."""
        return self.between(np.asarray(centre) - reach_mm, np.asarray(centre) + reach_mm)

    def between(self, low: Point, high: Point) -> "Space":
        """Cut to the voxels that lie between two corners in patient millimetres (obliquity and warps allowed for)."""
        low_mm, high_mm = np.asarray(low, float) - WARP_MARGIN_MM, np.asarray(high, float) + WARP_MARGIN_MM
        turn, shift = self.grid.inverse[:3, :3], self.grid.inverse[:3, 3]
        middle = turn @ ((low_mm + high_mm) / 2) + shift
        half = np.abs(turn) @ ((high_mm - low_mm) / 2) + 1
        outer, inner = [], []
        for whole, at, reach in zip(self.box, middle.tolist(), half.tolist(), strict=True):
            first = min(max(floor(at - reach), whole.start), whole.stop)
            last = min(max(ceil(at + reach) + 1, first), whole.stop)
            outer.append(slice(first, last))
            inner.append(slice(first - whole.start, last - whole.start))
        cut = (inner[0], inner[1], inner[2])
        return Space(self.grid, (outer[0], outer[1], outer[2]), self.x[cut], self.y[cut], self.z[cut])

    def piece(self, outer: "Space", array: Array) -> Array:
        """Take from an array evaluated on `outer` what this smaller box covers."""
        cut = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(self.box, outer.box, strict=True))
        return array[cut]


def space(grid: Grid, rng: np.random.Generator, *, warp_mm: Real = 0.0, warp_scale_mm: Real = 60.0) -> Space:
    """Lay patient coordinates over a grid and bend them: a smooth displacement of about `warp_mm` (one sigma)."""
    axes = [
        np.arange(n, dtype=np.float32).reshape([-1 if a == b else 1 for b in range(3)])
        for a, n in enumerate(grid.shape)
    ]
    affine = grid.affine.astype(np.float32)
    full: Box = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    coordinates = []
    for row in affine[:3]:
        value = row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2] + row[3]
        if warp_mm:
            value = value + np.clip(warp_mm * field(grid, rng, warp_scale_mm), -WARP_MARGIN_MM, WARP_MARGIN_MM)
        coordinates.append(np.ascontiguousarray(np.broadcast_to(value, grid.shape), dtype=np.float32))
    return Space(grid, full, *coordinates)


def field(grid: Grid, rng: np.random.Generator, scale_mm: Real | Point) -> Float32[np.ndarray, "i j k"]:
    """Draw a smooth random field of mean 0 and standard deviation about 1: cubic B-splines, knots `scale_mm` apart.

    The knots are counted in millimetres of the grid's extent, so a finer grid over the same box sees the same field.
    Sums are written out tap by tap: a matrix product may add in another order on another number of threads.
    """
    scales = np.broadcast_to(np.asarray(scale_mm, float), 3)
    extents = [n * mm / scale for n, mm, scale in zip(grid.shape, grid.spacing_mm, scales, strict=True)]
    values = rng.standard_normal([int(np.ceil(e - 1e-9)) + 3 for e in extents], dtype=np.float32)
    for axis in (2, 1, 0):  # the first axis last: there the pieces are contiguous
        values = _expand(values, axis, grid.shape[axis], extents[axis])
    values *= np.float32(0.479**-1.5)  # 0.479 is the mean sum of squares of the weights
    return values


def _expand(values: Array, axis: int, n: int, extent: Real) -> Array:
    """Evaluate the uniform cubic B-spline along an axis at the centres of n voxels that span `extent` knots."""
    u = (np.arange(n) + 0.5) * extent / n
    cell = np.floor(u).astype(int)
    t = u - cell
    pieces = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    shape = [n if a == axis else 1 for a in range(3)]
    result = np.float32(0)
    for offset, piece in enumerate(pieces):
        result = result + np.take(values, cell + offset, axis) * (piece / 6).astype(np.float32).reshape(shape)
    return np.asarray(result, dtype=np.float32)


def ellipsoid(at: Space, centre: Point, radii: Point, *, angles: Point = (0.0, 0.0, 0.0), power: Real = 2.0) -> Array:
    """Distance to a rotated superellipsoid, to first order: (r - 1) / |grad r| with r = (sum |u/a|^p)^(1/p).

    Args:
        at: where to evaluate.
        centre: its middle.
        radii: half axes before rotation.
        angles: degrees about x, then y, then z.
        power: 2 is an ellipsoid, 2.5 fuller, 4 nearly a box; 3 lies between. Only these, since they need no general power.
    """
    offsets = [at.x - np.float32(centre[0]), at.y - np.float32(centre[1]), at.z - np.float32(centre[2])]
    if any(angles):
        matrix = rotation(angles).T.astype(np.float32)
        offsets = [row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2] for row in matrix]
    total = np.zeros_like(at.x)  # sum of (u/a)^p
    pull = np.zeros_like(at.x)  # sum of ((u/a)^(p - 1) / a)^2: the gradient's square but for r
    for q, radius in zip(offsets, radii, strict=True):
        if not np.isfinite(radius):
            continue
        weight = np.float32(1 / radius)
        q *= weight
        np.abs(q, out=q)
        if power == 2:
            steep = q * weight
            q *= q
        else:
            steep = _raise(q, power - 1)
            q *= steep
            steep *= weight
        total += q
        steep *= steep
        pull += steep
    r = np.sqrt(total) if power == 2 else total ** np.float32(1 / power)
    np.sqrt(pull, out=pull)
    pull += np.float32(1e-9)
    reach = _raise(r, power - 1) / pull
    r -= 1
    r *= reach
    return r


def _raise(q: Array, power: Real) -> Array:
    """Raise to 1, 1.5, 2 or 3 by products and square roots, ten times faster than a general power."""
    if power == 1:
        return q
    return {1.5: lambda: q * np.sqrt(q), 2.0: lambda: q * q, 3.0: lambda: q * q * q}[power]()


def rotation(angles: Point) -> Float64[np.ndarray, "3 3"]:
    """Rotate by degrees about x, then y, then z."""
    a, b, c = np.deg2rad(np.asarray(angles, float))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def disc(at: Space, centre: Point, radii: Point, *, angle: Real = 0.0, power: Real = 2.0) -> Array:
    """Distance to an endless elliptic cylinder along z."""
    angles = (0.0, 0.0, angle)
    return ellipsoid(at, (*centre, 0.0), (*radii, np.inf), angles=angles, power=power)


def column(at: Space, z_mm: Point, x_mm: Point, y_mm: Point, radius_mm: Point) -> tuple[Space, Array]:
    """Distance to a vessel that runs up or down: centre and radius are interpolated over the increasing heights `z_mm`."""
    reach = float(np.max(radius_mm)) + 2
    low = (np.min(x_mm) - reach, np.min(y_mm) - reach, z_mm[0] - 2)
    part = at.between(low, (np.max(x_mm) + reach, np.max(y_mm) + reach, z_mm[-1] + 2))
    across = part.x - np.interp(part.z, z_mm, x_mm).astype(np.float32)
    along = part.y - np.interp(part.z, z_mm, y_mm).astype(np.float32)
    side = np.hypot(across, along) - np.interp(part.z, z_mm, radius_mm).astype(np.float32)
    return part, np.maximum(side, np.maximum(np.float32(z_mm[0]) - part.z, part.z - np.float32(z_mm[-1])))


def tube(at: Space, points: Sequence[Point] | Shaped[np.ndarray, "n 3"], radii: Real | Point) -> tuple[Space, Array]:
    """Distance to a chain of round cones through `points`, on the box that holds them."""
    path = np.asarray(points, dtype=np.float32)
    widths = np.broadcast_to(np.asarray(radii, dtype=np.float32), len(path))
    reach = float(widths.max()) + 2
    part = at.between(path.min(axis=0) - reach, path.max(axis=0) + reach)
    distance = np.full(part.x.shape, np.float32(1e3))
    for a, b, wide, narrow in zip(path[:-1], path[1:], widths[:-1], widths[1:], strict=True):
        way = b - a
        offsets = (part.x - a[0], part.y - a[1], part.z - a[2])
        t = offsets[0] * way[0]
        t += offsets[1] * way[1]
        t += offsets[2] * way[2]
        t /= np.float32(max(float(way @ way), 1e-6))
        np.clip(t, 0, 1, out=t)
        gap = np.zeros_like(t)
        for offset, step in zip(offsets, way, strict=True):
            offset -= t * step
            offset *= offset
            gap += offset
        np.sqrt(gap, out=gap)
        t *= wide - narrow
        gap += t
        gap -= wide
        np.minimum(distance, gap, out=distance)
    return part, distance


def join(a: Array, b: Array, blend_mm: Real = 0.0) -> Array:
    """Unite two shapes; `blend_mm` fills the crease between them (polynomial smooth minimum)."""
    if not blend_mm:
        return np.minimum(a, b)
    k = np.float32(blend_mm)
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.asarray(np.minimum(a, b) - h * h * k * np.float32(0.25), dtype=np.float32)


def cut(a: Array, b: Array, gap_mm: Real = 0.0) -> Array:
    """Take shape b away from shape a, leaving a gap."""
    return np.maximum(a, np.float32(gap_mm) - b)


def shell(a: Array, thickness_mm: Real) -> Array:
    """Keep the skin of a shape: from its surface `thickness_mm` inwards."""
    return np.maximum(a, -a - np.float32(thickness_mm))


def moved(point: Point, by: Point) -> Float64[np.ndarray, "..."]:
    """Move a point, or each of several, by millimetres to the Right, Anterior, Superior."""
    return np.asarray(point, float) + np.asarray(by, float)


def spread(rng: np.random.Generator, value: Real, fraction: Real) -> float:
    """Vary a length or an intensity by a normal factor, cut at two sigma."""
    return float(value * (1 + fraction * np.clip(rng.standard_normal(), -2, 2)))
