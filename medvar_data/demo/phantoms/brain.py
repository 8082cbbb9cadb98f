"""The brain with a glioma, skull stripped: folded cortex, ventricles, deep nuclei, cerebellum, tumour with oedema.

In: a `Space`, label ids, a generator. Out: layers in painting order and the brain's outline, outside which a
skull-stripped scan is exactly 0. z = 0 lies a little above the thalami; x to the Right, y Anterior.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from medvar_data.demo.phantoms.scanner import Layer, layer
from medvar_data.demo.phantoms.shapes import Array, Real, Space, ellipsoid, field, join, moved, spread, tube
from medvar_data.demo.phantoms.torso import ragged


@dataclass(frozen=True)
class Tumour:
    """A glioma: middle, radius of the enhancing rim, share of necrosis, reach of the oedema, all in mm."""

    centre: np.ndarray
    radius: float
    rim: float
    oedema: float


@dataclass(frozen=True)
class Brain:
    """Layers of a brain and the distance to its outline."""

    layers: Iterator[Layer]
    outline: Array


def brain(at: Space, labels: Mapping[str, int], growth: Real, rng: np.random.Generator) -> Brain:
    """Build a brain; `growth` scales the tumour, so that a second visit of a patient differs from the first."""
    tumour = _tumour(growth, rng)
    pushed = _push(at, tumour, rng)
    outlines = _outlines(pushed, rng)
    _, cerebrum, below = outlines
    return Brain(_layers(at, pushed, outlines, tumour, labels, rng), np.minimum(cerebrum, below))


def _tumour(growth: Real, rng: np.random.Generator) -> Tumour:
    side = 1 if rng.random() < 0.5 else -1
    centre = np.array([side * rng.uniform(22, 44), rng.uniform(-48, 46), rng.uniform(-14, 34)])
    radius = rng.uniform(9, 21) * growth
    return Tumour(centre, radius, rng.uniform(3.5, 6.5), rng.uniform(7, 20) * growth**0.5)


def _push(at: Space, tumour: Tumour, rng: np.random.Generator) -> Space:
    """Move the coordinates towards the tumour, which makes the anatomy give way to it."""
    dx, dy, dz = (a - np.float32(c) for a, c in zip((at.x, at.y, at.z), tumour.centre, strict=True))
    far = np.sqrt(dx * dx + dy * dy + dz * dz)
    strength = np.float32(0.32 * tumour.radius * rng.uniform(0.5, 1.0)) * np.exp(
        -((far / np.float32(2.3 * tumour.radius)) ** 2)
    )
    scale = strength / (far + 4)
    return Space(at.grid, at.box, at.x - dx * scale, at.y - dy * scale, at.z - dz * scale)


def _outlines(at: Space, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    wide, long, high = spread(rng, 67, 0.04), spread(rng, 85, 0.04), spread(rng, 62, 0.04)
    vault = ellipsoid(at, (0, 0, 10), (wide, long, high), power=2.5)
    dome = np.maximum(vault, -at.z - np.float32(20) + np.float32(0.08) * at.y)  # flat base of the frontal lobes
    for side in (-1, 1):
        temporal = ellipsoid(at, (side * 41, 8, -19), (22, 38, 19), angles=(10, 0, side * 8))
        dome = join(dome, temporal, 8)
    occipital = ellipsoid(at, (0, -50, -8), (52, 34, 24))
    dome = join(dome, occipital, 10)
    below = ellipsoid(at, (0, -48, -38), (51, 31, 24), power=2.5)
    stem = tube(at, [(0, -14, -8), (0, -22, -34), (0, -32, -72)], [17, 15, 8.5])
    full = np.full(at.x.shape, np.float32(1e3))
    full[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(stem[0].box, at.box, strict=True))] = stem[1]
    return vault, dome, join(below, full, 4)


def _layers(
    at: Space,
    pushed: Space,
    outlines: tuple[Array, Array, Array],
    tumour: Tumour,
    labels: Mapping[str, int],
    rng: np.random.Generator,
) -> Iterator[Layer]:
    vault, cerebrum, below = outlines
    fold = field(at.grid, rng, 27) + np.float32(0.35) * field(at.grid, rng, 13)
    wave = np.abs(np.sin(np.float32(np.pi * rng.uniform(1.15, 1.45)) * fold))  # 0 along every sulcus
    near_fold = np.exp(-((wave / np.float32(0.20)) ** 2))
    depth = np.maximum(-vault, -cerebrum)  # folds dip in from the vault, not from the flat base
    fissure = np.abs(pushed.x + np.float32(1.5) * field(at.grid, rng, 45)) - np.clip(
        (pushed.z - 20) / 25 + 0.6, 0.3, 1.4
    )
    fissure = np.maximum(fissure, np.float32(30) - pushed.z - np.float32(0.011) * pushed.y**2)
    depth_mid = np.minimum(depth, np.abs(pushed.x) + np.maximum(0, 34 - pushed.z - np.float32(0.012) * pushed.y**2))
    sylvian = _sylvian(pushed)
    depth_mid = np.minimum(depth_mid, np.maximum(sylvian, 0) + 1.5)
    yield layer("csf", at, cerebrum)
    atrophy = rng.uniform(0.4, 1.6)
    yield layer("grey", at, np.float32(atrophy) + np.float32(6.5 + 3 * atrophy) * near_fold - depth_mid)
    white = np.float32(4.4) + np.float32(12.5) * np.exp(-((wave / np.float32(0.62)) ** 2)) - depth_mid
    white = np.maximum(white, cerebrum + 3)
    yield layer("white", at, white)
    yield from _deep(at, pushed, rng)
    yield layer("csf", at, fissure.astype(np.float32))
    yield layer("csf", at, sylvian)
    yield from _hindbrain(at, pushed, below, rng)
    yield from _ventricles(at, pushed, rng)
    sinus = tube(at, [(0, 80, 12), (0, 62, 56), (0, 5, 74), (0, -60, 54), (0, -86, 4)], 2.6)
    yield layer("vessel", *sinus)
    yield from _vessels(at, cerebrum, rng)
    yield from _glioma(at, white, cerebrum, tumour, labels, rng)


def _sylvian(at: Space) -> Array:
    """Distance to the clefts between frontal and temporal lobes."""
    side = np.abs(at.x)
    line = np.abs(at.z - (np.float32(-6) + np.float32(0.16) * (20 - at.y))) - 1.6
    return np.maximum.reduce([line, 36 - side, np.abs(at.y - 6) - 26]).astype(np.float32)


def _deep(at: Space, pushed: Space, rng: np.random.Generator) -> Iterator[Layer]:
    for side in (-1, 1):
        for centre, radii, turn in (
            ((side * 13, -10, 2), (10, 15, 11), side * 18),  # thalamus
            ((side * 25, 8, 4), (6.5, 19, 12), side * -12),  # putamen
            ((side * 13, 20, 12), (5.5, 11, 10), side * -10),  # head of the caudate nucleus
            ((side * 35, 6, 2), (1.6, 22, 15), side * -8),  # claustrum and insula
        ):
            near = pushed.near(centre, 30)
            yield layer(
                "deep", near, ellipsoid(near, centre, np.asarray(radii) * spread(rng, 1, 0.06), angles=(0, 0, turn))
            )


def _ventricles(at: Space, pushed: Space, rng: np.random.Generator) -> Iterator[Layer]:
    size = spread(rng, 1.0, 0.28)
    for side in (-1, 1):
        body = np.array([[5, 34, 14], [7, 20, 20], [9, -4, 24], [16, -30, 20], [24, -46, 10], [22, -62, 8]])
        body = body * (side, 1, 1) + rng.normal(0, 1.2, (6, 3))
        part, horn = tube(pushed, body, np.array([4, 5.5, 5, 6, 7, 3]) * size)
        yield layer("csf", part, horn)
        yield layer("choroid", *tube(pushed, moved(body[3:5], (0, 0, -2)), 1.8))
        temporal = body[4] + np.array([[0, 0, 0], [side * 8, 18, -22], [side * 8, 34, -26]])
        yield layer("csf", *tube(pushed, temporal, np.array([4.5, 2.6, 2.0]) * size))
    near = pushed.near((0, -6, 2), 26)
    third = ellipsoid(near, (0, -6, 2), (2.0 * size, 15, 12))
    yield layer("csf", near, third)


def _hindbrain(at: Space, pushed: Space, below: Array, rng: np.random.Generator) -> Iterator[Layer]:
    yield layer("csf", at, np.maximum(below - 1.2, pushed.z + np.float32(14)))
    yield layer("grey", at, below + 0.6)
    leaf = np.abs(
        np.sin((pushed.z + np.float32(0.5) * np.abs(pushed.y + 48) + 0.12 * np.abs(pushed.x)) / np.float32(2.1))
    )
    yield layer("csf", at, np.maximum(below + 0.6, np.maximum(leaf * 9 - 1.0, -below - 6)), fade_mm=1.5)
    arbor = np.maximum(below + 6 + 5 * leaf, 4 - np.abs(pushed.x))
    yield layer("white", at, arbor.astype(np.float32), fade_mm=3)
    stem, distance = tube(pushed, [(0, -12, -4), (0, -21, -32), (0, -32, -72)], [15, 14, 7.5])
    yield layer("stem", stem, distance)
    near = pushed.near((0, -36, -34), 16)
    yield layer("csf", near, ellipsoid(near, (0, -36, -34), (6, 4, 9)))


def _vessels(at: Space, cerebrum: Array, rng: np.random.Generator) -> Iterator[Layer]:
    for side in (-1, 1):
        middle = [(side * 6, 8, -16), (side * 24, 10, -14), (side * 38, 8, -8), (side * 46, 0, 2)]
        yield layer("vessel", *tube(at, middle, [1.6, 1.5, 1.3, 1.0]))
    for _ in range(12):
        angle, z = rng.uniform(0, 2 * np.pi), rng.uniform(0, 52)
        edge = np.sqrt(max(1 - ((z - 10) / 62) ** 2, 0.05))
        start = np.array([64 * np.cos(angle) * edge, 82 * np.sin(angle) * edge, z])
        way = rng.normal(0, 9, 3)
        yield layer("vessel", *tube(at, [start, start * 0.9 + way], [1.5, 0.9]))


def _glioma(
    at: Space, white: Array, cerebrum: Array, tumour: Tumour, labels: Mapping[str, int], rng: np.random.Generator
) -> Iterator[Layer]:
    near = at.near(tumour.centre, tumour.radius + tumour.oedema * 1.8 + 6)
    rough = ragged(near, 0 * near.x, rng, scale_mm=max(9.0, 0.7 * tumour.radius), depth_mm=0.16 * tumour.radius)
    stretch = rng.uniform(0.8, 1.25, 3)
    core = ellipsoid(near, tumour.centre, tumour.radius * stretch, angles=rng.uniform(-40, 40, 3)) + rough
    inside = near.piece(at, cerebrum) + 2.5
    # Oedema runs along white matter and stops at the cortex.
    fingers = core - np.float32(tumour.oedema) + np.clip(near.piece(at, white) + 2, 0, 30) * np.float32(2.0)
    fingers = fingers + ragged(near, 0 * near.x, rng, scale_mm=14, depth_mm=3.2)
    yield layer("oedema", near, np.maximum(fingers, inside), labels.get("edema", 0), fade_mm=3)
    yield layer("enhancing", near, np.maximum(core, inside), labels.get("enhancing tumour", 0), fade_mm=1)
    hole = core + np.float32(tumour.rim) + np.float32(1.4) * field(at.grid, rng, 9)[near.box]
    yield layer("necrosis", near, np.maximum(hole, inside), labels.get("necrotic core", 0), fade_mm=1)
