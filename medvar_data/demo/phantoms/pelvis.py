"""The male pelvis around the prostate: zones, bladder, rectum, pelvic floor, hip bones and femoral heads, fat.

In: a `Space`, label ids, a generator. Out: layers in painting order. z = 0 is the middle of the prostate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from medvar_data.demo.phantoms.scanner import KEEP, Layer, layer
from medvar_data.demo.phantoms.shapes import (
    Array,
    Real,
    Space,
    cut,
    disc,
    ellipsoid,
    field,
    join,
    moved,
    shell,
    spread,
    tube,
)
from medvar_data.demo.phantoms.torso import build, mesentery, ragged, skin


@dataclass(frozen=True)
class Prostate:
    """Middle and half axes of a prostate; `gland` is the share that the transition zone takes."""

    centre: np.ndarray
    half_width: Real
    half_depth: Real
    half_height: float
    gland: float


def pelvis(at: Space, labels: Mapping[str, int], rng: np.random.Generator) -> Iterator[Layer]:
    """Paint the pelvis of a man."""
    body = build(rng, half_width=182, half_depth=116, fat=(12, 30))
    surface = skin(at, body)
    yield layer("skin", at, surface)
    yield layer("fat", at, surface + 2.5)
    yield from _buttocks_and_front(at, surface, body.half_depth, rng)
    size = float(1.1 * np.exp(rng.normal(0, 0.15)))
    prostate = Prostate(
        np.array([0, 4, 0]) + rng.normal(0, 2.5, 3),
        24 * size * spread(rng, 1, 0.05), 16.5 * size * spread(rng, 1, 0.07), 21 * size, float(np.clip(0.52 + 0.2 * np.log(size) + rng.normal(0, 0.06), 0.35, 0.72)),
    )  # fmt: skip
    yield from _bones(at, rng)
    yield from _side_muscles(at, rng)
    yield from mesentery(at, surface + 40, rng, 18)
    yield from _below(at, prostate, rng)
    yield from _floor_and_rectum(at, prostate, rng)
    yield from _bladder(at, prostate, rng)
    yield from _prostate(at, prostate, labels, rng)
    yield from _plexus(at, prostate, rng)


def _buttocks_and_front(at: Space, surface: Array, half_depth: Real, rng: np.random.Generator) -> Iterator[Layer]:
    for side in (-1, 1):
        gluteus = ellipsoid(at, (side * 86, -76, -4), (78, 30, 300), angles=(0, 0, side * 20), power=2.5)
        yield layer("muscle", at, np.maximum(gluteus, surface + 14))
        rectus = disc(at, (side * 22, half_depth * 0.74), (24, 8), angle=-side * 6, power=2.5)
        yield layer("muscle", at, rectus)
        cord = (side * 38, half_depth * 0.66)
        yield layer("muscle", at, disc(at, cord, (9, 8)))
        yield layer("vein", at, disc(at, cord, (5, 4)))


def _bones(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    size = spread(rng, 1.0, 0.05)
    for side in (-1, 1):
        head = ellipsoid(at, (side * 92, 14, 6), (25 * size,) * 3)
        neck = tube(at, [(side * 100, 12, 0), (side * 135, -4, -22)], 17.0)
        wing = ellipsoid(at, (side * 75, 14, 24), (17, 40, 36), angles=(0, 0, side * 14), power=2.5)
        socket = cut(wing, ellipsoid(at, (side * 92, 14, 6), (28 * size,) * 3))
        ischium = ellipsoid(at, (side * 66, -36, -14), (13, 19, 34), angles=(0, 0, -side * 20), power=2.5)
        branch = [(side * 8, 54, -12), (side * 34, 58, 2), (side * 66, 38, 16)]
        lower = [(side * 10, 48, -24), (side * 34, 14, -38), (side * 62, -28, -30)]
        hip = np.minimum(socket, ischium)
        yield layer("cortex", at, hip)
        yield layer("marrow", at, hip + 3.0)
        for part, shape in (tube(at, branch, [12, 10, 12]), tube(at, lower, [9, 8, 10]), neck):
            yield layer("cortex", part, shape)
            yield layer("marrow", part, shape + 2.8)
        yield layer("cartilage", at, head - 2.2)
        yield layer("cortex", at, head)
        yield layer("marrow", at, head + 2.2)
    yield layer("cartilage", at, ellipsoid(at, (0, 54, -14), (4, 15, 20)))
    tail = ellipsoid(at, (0, -84, 20), (30, 9, 40), angles=(-20, 0, 0), power=2.5)
    yield layer("cortex", at, tail)
    yield layer("marrow", at, tail + 2.5)


def _side_muscles(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    thick = spread(rng, 1.0, 0.14)
    for side in (-1, 1):
        obturator = ellipsoid(at, (side * 51, -2, -2), (13 * thick, 42, 46), angles=(0, 0, -side * 10), power=2.5)
        yield layer("muscle", at, obturator)
        outer = ellipsoid(at, (side * 60, 44, -26), (34, 17, 24), angles=(0, 0, -side * 25))
        yield layer("muscle", at, outer)
        thigh = disc(at, (side * 84, 64), (26, 16), angle=-side * 22, power=2.5)
        yield layer("muscle", at, thigh)
        vessel_y = 70 + rng.normal(0, 2)
        yield layer("artery", at, disc(at, (side * 58, vessel_y), (6, 6)))
        yield layer("vein", at, disc(at, (side * 48, vessel_y - 6), (7.5, 6)))
        yield layer("muscle", at, ellipsoid(at, (side * 52, -58, 14), (34, 9, 40), angles=(0, 0, side * 30)))


def _below(at: Space, prostate: Prostate, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint what lies under the prostate: the sphincter's muscle, the bulb and the crura of the penis."""
    floor = prostate.centre - np.array([0, 0, prostate.half_height])
    near = at.near(floor, (60, 60, 50))
    yield layer("muscle", near, ellipsoid(near, moved(floor, (0, 2, -6)), (15, 13, 12), power=2.5))
    yield layer("urethra", near, ellipsoid(near, moved(floor, (0, 2, -6)), (4, 4, 12)))
    bulb = ellipsoid(near, moved(floor, (0, 4, -24)), (13, 19, 12))
    yield layer("wall", near, bulb)
    yield layer("vesicle", near, bulb + 2)
    for side in (-1, 1):
        yield layer("muscle", *tube(at, [moved(floor, (side * 8, 24, -16)), moved(floor, (side * 34, -12, -26))], 7.5))
        yield layer("vein", *tube(at, [moved(floor, (side * 8, 24, -16)), moved(floor, (side * 34, -12, -26))], 5.0))
        yield layer(
            "muscle", near, ellipsoid(near, moved(floor, (side * 22, -30, -14)), (24, 4, 6), angles=(0, 0, side * 8))
        )


def _floor_and_rectum(at: Space, prostate: Prostate, rng: np.random.Generator) -> Iterator[Layer]:
    centre = prostate.centre
    back = float(centre[1] - prostate.half_depth)
    for side in (-1, 1):  # levator: a thin sling beside prostate and rectum
        reach = (prostate.half_width + 5.5, prostate.half_depth + 26, 300)
        sling = ellipsoid(at, (side * 1.5, back - 4, -16), reach, power=2.5)
        yield layer(
            "muscle",
            at,
            np.maximum.reduce([shell(sling, 4.5), -side * at.x, np.abs(at.z + 16) - 28, at.y - np.float32(back + 24)]),
        )
    wide = rng.uniform(11, 20)
    heights = (-60.0, -25.0, 0.0, 30.0, 60.0)
    y = np.array([back - 10, back - 13, back - wide - 3, back - wide - 8, back - wide - 18])
    path = [(rng.normal(0, 2), float(b), h) for b, h in zip(y, heights, strict=True)]
    part, rectum = tube(at, path, np.array([9, 11, wide, wide * 1.1, wide * 1.15]))
    yield layer("fat", part, rectum - 4, fade_mm=3)
    yield layer("wall", part, rectum)
    yield layer("bowel", part, rectum + 2.6, fade_mm=1.5)
    filling = "gas" if rng.random() < 0.4 else "faeces"
    yield layer(filling, part, ragged(part, rectum + 5.0, rng, scale_mm=14, depth_mm=1.6))


def _bladder(at: Space, prostate: Prostate, rng: np.random.Generator) -> Iterator[Layer]:
    full = rng.uniform(0.7, 1.25)
    centre = prostate.centre + np.array([0, 12, prostate.half_height + 24 * full - 4])
    shape = ellipsoid(at, centre, np.array([36, 27, 27]) * full, angles=(rng.uniform(-10, 15), 0, 0), power=2.5)
    yield layer("wall", at, shape)
    yield layer("urine", at, shape + rng.uniform(3, 6))
    for side in (-1, 1):
        start = prostate.centre + np.array([side * 5, -prostate.half_depth * 0.7, prostate.half_height * 0.86])
        path = [start, moved(start, (side * 14, -3, 7)), moved(start, (side * 28, -4, 12))]
        part, vesicle = tube(at, path, [4.5, 7, 6])
        yield layer("wall", part, vesicle)
        folds = np.abs(field(at.grid, rng, 7)[part.box]) * 4 - 3.4
        yield layer("vesicle", part, np.maximum(vesicle + 1.2, folds))


def _prostate(at: Space, prostate: Prostate, labels: Mapping[str, int], rng: np.random.Generator) -> Iterator[Layer]:
    c, a, b, h = prostate.centre, prostate.half_width, prostate.half_depth, prostate.half_height
    near = at.near(c, max(a, h) + 8)
    whole = ellipsoid(near, c, (a, b, h), power=2.5)
    whole = ragged(
        near,
        join(whole, ellipsoid(near, moved(c, (0, -0.25 * b, -0.1 * h)), (0.95 * a, 0.78 * b, 0.8 * h)), 3),
        rng,
        scale_mm=15,
        depth_mm=0.8,
    )
    yield layer("fat", near, whole - 4, fade_mm=3)
    yield layer("capsule", near, whole - 1.2)
    yield layer("peripheral", near, whole, labels.get("PZ", 0))
    g = prostate.gland**0.5
    inner = ellipsoid(near, moved(c, (0, 0.30 * b, 0.10 * h)), (0.92 * g * a, 1.02 * g * b, 1.02 * g * h), power=2.5)
    front = near.y - np.float32(c[1] + 0.55 * b)
    gland = np.maximum(np.minimum(inner, np.maximum(-front, whole) + 0), whole + 1.0)
    yield layer("capsule", near, np.abs(gland) - 0.7, KEEP)
    yield layer("transition", near, gland, labels.get("TZ", 0))
    yield layer("stroma", near, np.maximum(gland, np.float32(c[1] + 0.62 * b) - near.y), KEEP, fade_mm=4)
    for _ in range(int(rng.integers(3, 8))):  # nodules of hyperplasia
        spot = c + np.array([0, 0.25 * b, 0.05 * h]) + rng.uniform(-1, 1, 3) * (0.6 * g * a, 0.5 * g * b, 0.65 * g * h)
        radius = rng.uniform(2.5, 7)
        nodule = np.maximum(ellipsoid(near, spot, radius * rng.uniform(0.8, 1.2, 3)), gland + 1)
        yield layer("capsule", near, nodule, KEEP)
        yield layer(str(rng.choice(["stroma", "peripheral", "transition"])), near, nodule + 1.0, KEEP, fade_mm=0.8)
    yield layer(
        "urethra",
        *tube(near, [moved(c, (0, 0.2 * b, h)), moved(c, (0, 0, 0)), moved(c, (0, 0.1 * b, -h))], 2.2),
        KEEP,
    )
    if rng.random() < 0.5:  # a dark lesion
        angle = rng.uniform(-0.15 * np.pi, 1.15 * np.pi)
        spot = c + np.array([0.62 * a * np.cos(angle), -0.62 * b * abs(np.sin(angle)), rng.uniform(-0.4, 0.4) * h])
        lesion = ellipsoid(near, spot, rng.uniform(3.5, 8, 3))
        yield layer("lesion", near, np.maximum(lesion, whole + 0.5), KEEP, fade_mm=1.5)


def _plexus(at: Space, prostate: Prostate, rng: np.random.Generator) -> Iterator[Layer]:
    c, a, b = prostate.centre, prostate.half_width, prostate.half_depth
    for _ in range(22):  # veins around the prostate, nerves and vessels at its back corners
        angle = rng.uniform(-0.2, np.pi + 0.2)
        away = rng.uniform(1.12, 1.4)
        start = c + np.array([a * away * np.cos(angle), b * away * np.sin(angle), rng.uniform(-24, 24)])
        way = rng.normal(0, 1, 3) * (4, 3, 12)
        yield layer("vein", *tube(at, [start, start + way], rng.uniform(0.9, 2.2)))
    for side in (-1, 1):
        bundle = c + np.array([side * 0.82 * a, -1.0 * b, 0])
        yield layer("artery", *tube(at, [moved(bundle, (0, 0, -20)), moved(bundle, (side * 3, -2, 24))], 1.6))
