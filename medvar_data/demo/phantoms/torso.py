"""Shapes that every trunk scan shares: skin, wall muscles, ribs, backbone, great vessels of the back.

In: a `Space` and a generator. Out: layers in painting order, and the cavity that the organs lie in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medvar_data.demo.phantoms.scanner import KEEP, Layer, layer
from medvar_data.demo.phantoms.shapes import (
    Array,
    Point,
    Real,
    Space,
    cut,
    disc,
    ellipsoid,
    field,
    join,
    shell,
    spread,
    tube,
)


@dataclass(frozen=True)
class Build:
    """How a patient is built, in millimetres from the middle of the trunk.

    Attributes:
        half_width: of the trunk at its skin.
        half_depth: of the trunk at its skin.
        fat: thickness of the fat below the skin, in front and at the sides.
        wall: thickness of the muscles.
        spine_y: middle of the vertebral bodies.
        vertebra: half width of a vertebral body.
    """

    half_width: Real
    half_depth: Real
    fat: float
    wall: float
    spine_y: float
    vertebra: float

    @property
    def back_mm(self) -> float:
        """Where the skin of the back lies."""
        return -self.half_depth


def build(rng: np.random.Generator, *, half_width: Real, half_depth: Real, fat: tuple[Real, Real]) -> Build:
    """Draw a build: wide patients are also deep and mostly have more fat."""
    size = float(np.clip(rng.standard_normal(), -1.8, 1.8))
    thick = fat[0] + (fat[1] - fat[0]) * float(np.clip(0.5 + 0.3 * size + 0.2 * rng.standard_normal(), 0, 1))
    depth = half_depth * (1 + 0.07 * size + 0.03 * float(rng.uniform(-1, 1)))
    return Build(
        half_width=half_width * (1 + 0.055 * size + 0.03 * float(rng.uniform(-1, 1))),
        half_depth=depth,
        fat=thick,
        wall=spread(rng, 11, 0.15),
        spine_y=-0.37 * depth,
        vertebra=spread(rng, 23, 0.07),
    )


def within_reach(at: Space, body: Build) -> Space:
    """Cut to what the trunk can reach; the rest of a slice is air, and costs as much to compute."""
    low = (-body.half_width - 6, -body.half_depth - 6, -1e4)
    return at.between(low, (body.half_width + 6, body.half_depth + 24, 1e4))


def skin(at: Space, body: Build) -> Array:
    """Distance to the skin: a flattened back, a rounder belly."""
    outline = disc(at, (0, 0), (body.half_width, body.half_depth), power=2.5)
    return np.maximum(outline, np.float32(-body.half_depth * 0.93) - at.y - 3 * np.exp(-((at.x / 14) ** 2)))


def trunk(at: Space, body: Build, surface: Array) -> Iterator[Layer]:
    """Paint skin, fat and the muscles of the wall; the cavity comes after."""
    yield layer("skin", at, surface)
    yield layer("fat", at, surface + 2.5)
    yield layer("muscle", at, wall(at, body, surface))


def wall(at: Space, body: Build, surface: Array) -> Array:
    """Distance to the outside of the muscular wall; less fat lies over the back than over the belly."""
    behind = np.clip(-at.y / body.half_depth, 0, 1)
    return surface + np.float32(body.fat) * (1 - np.float32(0.45) * behind)


def cavity(at: Space, body: Build, surface: Array) -> Array:
    """Distance to what the wall encloses: a bay on each side of the backbone."""
    inner = wall(at, body, surface) + np.float32(body.wall)
    front = np.float32(body.spine_y - 4) - at.y  # nothing behind the vertebral bodies in the middle
    flank = np.clip((np.abs(at.x) - 38) / 40, 0, 1)
    return np.maximum(inner, front - 36 * flank)


def ribs(at: Space, body: Build, surface: Array, rng: np.random.Generator, *, reach_y: Real) -> Iterator[Layer]:
    """Paint the cage: bands of a shell inside the wall that fall towards the front, up to `reach_y` forward."""
    pitch, steep, phase = rng.uniform(27, 31), rng.uniform(0.45, 0.6), rng.uniform(0, 30)
    height = (at.z + np.float32(steep) * at.y + np.float32(phase)) / np.float32(pitch)
    across = np.abs(height - np.rint(height)) * np.float32(pitch) - 5.5
    middle = wall(at, body, surface) + np.float32(0.62 * body.wall)
    band = np.maximum(np.abs(middle) - 3.6, across)
    band = np.maximum(band, at.y - np.float32(reach_y))
    band = np.maximum(band, 26 - np.abs(at.x))
    yield layer("cortex", at, band)
    yield layer("marrow", at, band + 2.6)


def backbone(
    at: Space, body: Build, surface: Array, rng: np.random.Generator, *, pitch_mm: Real = 34.0, centre_x: Real = 0.0
) -> Iterator[Layer]:
    """Paint vertebrae and discs with canal, arch, spinous and transverse processes, and the long back muscles."""
    y0, a = body.spine_y, body.vertebra
    b = a * 0.78
    near = at.between((centre_x - 48, body.back_mm, -1e4), (centre_x + 48, y0 + b + 6, 1e4))
    phase = rng.uniform(0, pitch_mm)
    step = (near.z + np.float32(phase)) / np.float32(pitch_mm)
    level = np.abs(step - np.rint(step)) * np.float32(pitch_mm)  # 0 in the middle of a body
    disc_at = pitch_mm / 2 - 4.5
    for side in (-1, 1):
        middle = (centre_x + side * 31, y0 - 47)
        beside = at.between((middle[0] - 29, middle[1] - 22, -1e4), (middle[0] + 29, middle[1] + 22, 1e4))
        long_back = disc(beside, middle, (27, 19), angle=-side * 12, power=2.5)
        yield layer("muscle", beside, np.maximum(long_back, beside.piece(at, surface) + 6))
    waist = np.float32(1.5) * np.cos(np.pi * np.clip(level / disc_at, 0, 1))
    outline = disc(near, (centre_x, y0), (a, b), power=2.5)
    canal = disc(near, (centre_x, y0 - b - 8.5), (10.5, 8.0))
    hollow = disc(near, (centre_x, y0 - b - 1.0), (11, 4.0))
    solid = cut(outline + waist, hollow)
    yield layer("disc", near, np.maximum(outline + 1.5, np.float32(disc_at - 3) - level))
    bone = np.maximum(solid, level - np.float32(disc_at))
    arch = np.maximum(cut(canal - 5.0, canal), np.abs(level - 4) - 11)
    lamina = ellipsoid(near, (centre_x, y0 - b - 22, 0), (14, 6, np.inf), power=2.5)
    arch = join(arch, np.maximum(cut(lamina, canal), np.abs(level - 6) - 8), 3)
    spinous = disc(near, (centre_x, y0 - b - 31), (3.4, 15), power=2.5)
    arch = join(arch, np.maximum(spinous, level - 11), 4)
    reach = rng.uniform(34, 42)
    drop = y0 - b - 12 - np.float32(0.18) * np.abs(near.x - np.float32(centre_x))
    transverse = np.maximum.reduce(
        [np.abs(near.y - drop) - 3.4, np.abs(near.x - np.float32(centre_x)) - np.float32(reach), level - 5.5]
    )
    arch = cut(join(arch, transverse, 4), canal)
    yield layer("cortex", near, join(bone, arch))
    yield layer("marrow", near, join(bone + 2.6, arch + 2.6))
    yield layer("canal", near, canal)
    yield layer("cord", near, disc(near, (centre_x, y0 - b - 8.5), (5.5, 4.2)))


def loops(
    at: Space,
    within: Array,
    rng: np.random.Generator,
    *,
    centre: tuple[Real, Real, Real],
    size: tuple[Real, Real, Real],
    count: int,
    radius: tuple[Real, Real],
    tissue: str = "bowel",
    content: str = "chyme",
    gas_fraction: float = 0.25,
    label: int = 0,
) -> Iterator[Layer]:
    """Paint curled bowel: short chains of tubes with a wall, what they carry, and now and then gas on top."""
    for _ in range(count):
        start = np.asarray(centre) + rng.uniform(-1, 1, 3) * size
        turns = np.cumsum(rng.normal(0, 1, (3, 3)) * (17, 13, 13), axis=0)
        part, distance = tube(at, [start, *(start + turns)], rng.uniform(*radius))
        if distance.size == 0:
            continue
        inside = np.maximum(distance, part.piece(at, within) + 2)
        yield layer(tissue, part, inside, label)
        yield layer(content, part, inside + 3.0, KEEP)
        if rng.random() < gas_fraction:
            bubble = np.maximum(inside + 3.5, np.float32(start[1] + turns[0, 1] * 0.5 + 1) - part.y)
            yield layer("gas", part, bubble, KEEP)


def vessels_within(
    at: Space,
    organ: Array,
    root: Point,
    targets: np.ndarray,
    rng: np.random.Generator,
    *,
    radius_mm: Real,
    tissue: str,
    generations: int = 2,
    inset_mm: Real = 4.0,
) -> Iterator[Layer]:
    """Paint a branching tree inside an organ: from a root to each target, with side branches that halve."""
    stack = [(np.asarray(root, float), np.asarray(t, float), radius_mm, generations) for t in targets]
    while stack:
        a, b, radius, left = stack.pop()
        middle = (a + b) / 2 + rng.normal(0, 0.08, 3) * np.linalg.norm(b - a)
        part, distance = tube(at, [a, middle, b], [radius, 0.8 * radius, 0.45 * radius])
        if distance.size:
            yield layer(tissue, part, np.maximum(distance, part.piece(at, organ) + np.float32(inset_mm)), KEEP)
        if left:
            for _ in range(2):
                fork = a + (b - a) * rng.uniform(0.35, 0.8)
                way = (b - a) * rng.uniform(0.45, 0.7)
                turn = rng.normal(0, 1, 3)
                turn *= np.linalg.norm(way) * 0.75 / np.linalg.norm(turn)
                stack.append((fork, fork + way * 0.6 + turn, radius * 0.6, left - 1))


def mesentery(at: Space, within: Array, rng: np.random.Generator, count: int) -> Iterator[Layer]:
    """Paint the small vessels that cross abdominal fat as dots and threads."""
    for _ in range(count):
        start = np.array([rng.uniform(-85, 85), rng.uniform(-25, 60), rng.uniform(-80, 60)])
        way = rng.normal(0, 1, 3) * (22, 16, 16)
        part, distance = tube(at, [start, start + way, start + way * 1.6 + rng.normal(0, 8, 3)], [2.6, 1.8, 1.1])
        if distance.size:
            yield layer("vein", part, np.maximum(distance, part.piece(at, within) + 4))


def ragged(at: Space, distance: Array, rng: np.random.Generator, *, scale_mm: Real, depth_mm: Real) -> Array:
    """Roughen a surface: add a smooth random field to its distance (full grid only)."""
    return distance + np.float32(depth_mm) * field(at.grid, rng, scale_mm)[at.box]


__all__ = [
    "Build",
    "backbone",
    "build",
    "cavity",
    "loops",
    "mesentery",
    "ragged",
    "ribs",
    "shell",
    "skin",
    "trunk",
    "vessels_within",
    "wall",
]
