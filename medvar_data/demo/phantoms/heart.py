"""The heart in the chest: four chambers, left wall, great vessels, coronaries; and the plain heart of an unenhanced scan.

In: a `Space`, where the heart lies, label ids, a generator. Out: layers in painting order. The long axis points left,
forward and down.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from medvar_data.demo.phantoms.scanner import KEEP, Layer, layer
from medvar_data.demo.phantoms.shapes import (
    Space,
    column,
    ellipsoid,
    join,
    moved,
    shell,
    spread,
    tube,
)
from medvar_data.demo.phantoms.torso import (
    Build,
    ragged,
)

Labels = Mapping[str, int]


@dataclass(frozen=True)
class Heart:
    """Where a heart lies: its middle, its size against an average one, and how its apex is turned."""

    centre: np.ndarray
    size: float
    turn: float  # degrees about z; larger points the apex further forward
    thick: float  # of the left wall, mm


def place_heart(rng: np.random.Generator, body: Build) -> Heart:
    """Draw where a heart lies and how large it is."""
    middle = np.array([-14, 0.16 * body.half_depth, 0]) + rng.normal(0, 1, 3) * (4, 3, 6)
    return Heart(middle, spread(rng, 1.0, 0.08), float(rng.normal(0, 8)), spread(rng, 10.0, 0.2))


def plain_heart(at: Space, heart: Heart, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint a heart as an unenhanced scan shows it: one soft shape with a rim of fat, chambers barely told apart."""
    size, centre = heart.size, heart.centre
    near = at.near(centre, 95)
    shape = ellipsoid(
        near, moved(centre, (-8, 0, 2)), (66 * size, 48 * size, 52 * size), angles=(0, 22, -30 + heart.turn), power=2.5
    )
    shape = join(shape, ellipsoid(near, moved(centre, (36, 0, 6)), (28 * size, 32 * size, 40 * size)), 12)
    yield layer("fat", near, shape - 3)
    yield layer("muscle", near, shape)
    bright = "aorta" if rng.random() < 0.5 else "blood"
    chamber = "vein" if bright == "aorta" else "blood"
    yield layer(
        chamber, near, ellipsoid(near, moved(centre, (-24, -4, -10)), (32, 19, 26), angles=(0, 22, -28)), fade_mm=3
    )
    yield layer(
        chamber, near, ellipsoid(near, moved(centre, (4, 26, -12)), (36, 15, 28), angles=(0, 15, -30)), fade_mm=3
    )
    yield layer(chamber, near, ellipsoid(near, moved(centre, (36, 0, 4)), (20, 24, 30)), fade_mm=3)
    yield layer(chamber, near, ellipsoid(near, moved(centre, (2, -32, 16)), (30, 15, 18)), fade_mm=3)


def chambers(at: Space, heart: Heart, labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint the four chambers and the left wall. The long axis points left, forward and down."""
    c, s = heart.centre, heart.size
    angles = (0.0, 30 + rng.normal(0, 4), -38 + heart.turn)
    axis = np.array([-0.68, 0.55, -0.48])
    near = at.near(c, 100)
    left = c + np.array([-16, -2, -8]) * s
    outer_radii = np.array([52, 29 + 0.5 * heart.thick, 31 + 0.5 * heart.thick]) * s
    outer = ellipsoid(near, left, outer_radii, angles=angles, power=2.5)
    inner = ellipsoid(near, left - 5 * axis, (44 * s, 20 * s, 22 * s), angles=angles, power=2.5)
    base = -((near.x - left[0]) * axis[0] + (near.y - left[1]) * axis[1] + (near.z - left[2]) * axis[2]) - np.float32(
        34 * s
    )
    base = base.astype(np.float32)
    right_c = c + np.array([10, 26, -12]) * s
    right = ellipsoid(near, right_c, (50 * s, 24 * s, 38 * s), angles=(0, angles[1] - 6, angles[2] + 4), power=2.5)
    atrium_r = ellipsoid(near, c + np.array([44, -6, 2]) * s, (25 * s, 27 * s, 34 * s), angles=(0, 0, 15))
    ear_r = ellipsoid(near, c + np.array([34, 20, 22]) * s, (14, 18, 16))
    atrium_l = ellipsoid(near, c + np.array([10, -38, 16]) * s, (35 * s, 19 * s, 25 * s), angles=(0, 0, -8), power=2.5)
    ear_l = ellipsoid(near, c + np.array([-34, -10, 30]) * s, (10, 16, 12), angles=(0, 0, 30))
    hull = join(join(join(outer, right, 10), atrium_r, 12), atrium_l, 12)
    yield layer("fat", near, hull - 5)
    yield layer("pericardium", near, shell(hull - 6, 1.2), KEEP)
    yield layer("myocardium", near, join(right - 3, atrium_r - 2, 4))
    yield layer("right_heart", near, join(atrium_r, ear_r, 6), labels.get("right atrium", 0))
    outflow = [c + np.array([4, 34, 8]) * s, c + np.array([-8, 32, 34]) * s]
    part, cone = tube(at, outflow, [15 * s, 13 * s])
    yield layer("right_heart", part, cone, labels.get("right ventricle", 0))
    rough = ragged(near, right, rng, scale_mm=9, depth_mm=1.0)
    yield layer("right_heart", near, rough, labels.get("right ventricle", 0))
    yield layer("myocardium", near, atrium_l - 2)
    yield layer("left_heart", near, join(atrium_l, ear_l, 6), labels.get("left atrium", 0))
    for side, height in ((1, 22), (1, 4), (-1, 24), (-1, 8)):
        root = c + np.array([10 + side * 26, -40, height]) * s
        yield layer("left_heart", *tube(at, [root, moved(root, (side * 28, -10, 4))], [7, 5.5]))
    yield layer("myocardium", near, np.maximum(outer, base), labels.get("left ventricular myocardium", 0))
    cavity = np.maximum(inner, base - 1)
    yield layer("left_heart", near, cavity, labels.get("left ventricle", 0))
    for turn in (-0.7, 0.8):  # papillary muscles
        foot = left + 16 * axis * s + np.array([8 * np.sin(turn), 8 * turn, -13 * np.cos(turn)]) * s
        yield layer("myocardium", *tube(at, [foot, foot - 22 * axis * s], [4.5, 2.5]), KEEP)


def vessels(at: Space, body: Build, heart: Heart, rng: np.random.Generator, labels: Labels) -> Iterator[Layer]:
    """Paint aorta, pulmonary arteries and venae cavae, bright as in an angiogram where `labels` are given."""
    c, s = heart.centre, heart.size
    bright = "left_heart" if labels else "aorta"
    grey = "right_heart" if labels else "vein"
    wide = spread(rng, 14.5, 0.1)
    y = body.spine_y + 14
    root = c + np.array([8, 6, 20]) * s
    ascending = [root, moved(root, (8, 8, 22)), moved(root, (10, 8, 46))]
    arch = [ascending[-1], moved(root, (4, -2, 64)), moved(root, (-12, -30, 68)), np.array([-24, y + 6, root[2] + 56])]
    trunk_p = c + np.array([-8, 32, 32]) * s
    fork = [trunk_p, moved(trunk_p, (-4, -12, 20)), moved(trunk_p, (-6, -30, 26))]
    lung_arteries = [
        [fork[-1], moved(fork[-1], (24, -14, -4)), moved(fork[-1], (50, -18, -8))],
        [fork[-1], moved(fork[-1], (-20, -16, 0)), moved(fork[-1], (-34, -26, -10))],
    ]
    cava = ([c[0] + 36, c[0] + 34, c[0] + 36], [c[1] - 6, c[1], c[1] - 2], [9.5, 9.0, 9.5])
    yield layer(grey, *column(at, (c[2] + 22, c[2] + 60, c[2] + 150), *cava))
    lower = ([c[0] + 40, c[0] + 38], [c[1] - 22, c[1] - 18], [12.0, 12.0])
    yield layer("vein", *column(at, (c[2] - 110, c[2] - 24), *lower))
    for path in lung_arteries:
        yield layer(grey, *tube(at, path, [11 * s, 9.5 * s, 7 * s]), labels.get("pulmonary artery", 0))
    yield layer(grey, *tube(at, fork, [13.5 * s, 13.5 * s, 12 * s]), labels.get("pulmonary artery", 0))
    part, distance = tube(at, arch, [wide, wide * 0.95, wide * 0.9, wide * 0.85])
    yield layer("wall", part, distance - 1.6)
    yield layer(bright, part, distance)
    part, distance = tube(at, ascending, [wide * 1.08, wide * 1.05, wide])
    yield layer("wall", part, distance - 1.6)
    yield layer(bright, part, distance, labels.get("ascending aorta", 0))
    heights = (-140.0, -40.0, 20.0, float(root[2] + 58))
    descending = column(
        at, heights, (-8.0, -16.0, -24.0, -24.0), (y + 4, y, y, y + 6), wide * np.array([0.7, 0.74, 0.8, 0.85])
    )
    yield layer("wall", descending[0], descending[1] - 1.6)
    yield layer(bright, *descending)
    for x in (-20, -6, 12):
        start = moved(root, (x - 4, -12, 66))
        yield layer(bright, *tube(at, [start, moved(start, (x * 0.6, 2, 60))], 5.0))


def coronaries(at: Space, heart: Heart, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint the coronary arteries on the heart."""
    c, s = heart.centre, heart.size
    left = [(-2, 10, 22), (-24, 26, 14), (-38, 36, -10), (-48, 40, -36)]
    right = [(20, 22, 18), (34, 30, 4), (40, 22, -20), (30, 4, -38)]
    around = [(-8, 6, 22), (-34, -6, 14), (-46, -18, -4)]
    for path, radius in ((left, 2.0), (right, 2.2), (around, 1.8)):
        points = c + (np.asarray(path) + rng.normal(0, 1.5, (len(path), 3))) * s
        yield layer("left_heart", *tube(at, points, radius), KEEP)
