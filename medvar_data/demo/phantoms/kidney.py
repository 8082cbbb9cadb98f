"""A kidney: cortex, pyramids, fat of the sinus, pelvis; a tumour and a cyst where they are asked for.

In: a `Space`, the side, the patient's build, label ids, a generator. Out: layers in painting order.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from medvar_data.demo.phantoms.scanner import KEEP, Layer, layer
from medvar_data.demo.phantoms.shapes import (
    Array,
    Real,
    Space,
    cut,
    ellipsoid,
    join,
    moved,
    spread,
)
from medvar_data.demo.phantoms.torso import (
    Build,
    ragged,
)

Labels = Mapping[str, int]


def kidney(
    at: Space, side: int, body: Build, shift: Array, labels: Labels, rng: np.random.Generator, *, masses: bool
) -> Iterator[Layer]:
    """Paint a kidney: cortex, pyramids, sinus fat and pelvis; with `masses` a tumour and sometimes a cyst."""
    size = spread(rng, 1.0, 0.09)
    centre = np.array([side * 65, body.spine_y + 3, -6 - side * 7]) + shift * (0.5, 0.5, 1) + rng.normal(0, 3, 3)
    near = at.near(centre, (46, 46, 68))
    angles = (rng.normal(0, 4) + 8, -side * (10 + rng.normal(0, 3)), side * (28 + rng.normal(0, 7)))
    outer = ellipsoid(near, centre, (24 * size, 30 * size, 54 * size), angles=angles, power=2.5)
    inward = np.array([-side * 0.86, 0.5, 0])
    gate = ellipsoid(near, centre + 22 * inward, (14, 15, 21), angles=angles)
    bean = ragged(near, cut(outer, gate), rng, scale_mm=24, depth_mm=0.8)
    name = "right kidney" if side == 1 else "left kidney"
    label = labels.get(name, labels.get("kidney", 0))
    yield layer("kidney", near, bean, label)
    yield from _pyramids(near, centre, bean, rng)
    sinus = ellipsoid(near, centre + 9 * inward, (11 * size, 14 * size, 27 * size), angles=angles)
    yield layer("fat", near, np.maximum(sinus, bean + 6), 0)
    pelvis = join(
        ellipsoid(near, centre + 12 * inward, (7, 5, 14), angles=angles),
        ellipsoid(near, centre + 22 * inward, (9, 5, 8)),
        4,
    )
    yield layer("urine", near, pelvis, 0)
    if masses:
        yield from _mass(
            near, centre, size, labels, rng, tissue="tumour", label=labels.get("tumor", 0), radius=(11, 27)
        )
    if masses and rng.random() < 0.55:
        yield from _mass(at, centre, size, labels, rng, tissue="cyst", label=labels.get("cyst", 0), radius=(6, 15))


def _pyramids(near: Space, centre: Array, bean: Array, rng: np.random.Generator) -> Iterator[Layer]:
    around = rng.uniform(0, 2 * np.pi)
    for row, z in enumerate((-30, -15, 0, 15, 30)):
        for turn in range(4):
            angle = around + (turn + 0.5 * (row % 2)) * np.pi / 2 + rng.normal(0, 0.15)
            where = moved(centre, (13.5 * np.cos(angle), 16 * np.sin(angle), z))
            small = near.near(where, 7)
            shape = ellipsoid(small, where, rng.uniform(4.5, 6.5, 3))
            yield layer("medulla", small, np.maximum(shape, small.piece(near, bean) + 5), KEEP)


def _mass(
    at: Space,
    centre: Array,
    size: float,
    labels: Labels,
    rng: np.random.Generator,
    *,
    tissue: str,
    label: int,
    radius: tuple[Real, Real],
) -> Iterator[Layer]:
    wide = rng.uniform(*radius)
    turn = rng.uniform(0, 2 * np.pi)
    where = centre + np.array([27 * np.cos(turn), 30 * np.sin(turn), rng.uniform(-28, 28)]) * size
    near = at.near(where, 1.3 * wide + 3)
    shape = ellipsoid(near, where, wide * rng.uniform(0.85, 1.15, 3), angles=rng.uniform(-30, 30, 3))
    if tissue == "cyst":
        yield layer("cyst", near, shape, label)
        return
    shape = ragged(near, shape, rng, scale_mm=15, depth_mm=1.6)
    yield layer("tumour", near, shape, label)
    core = ragged(near, ellipsoid(near, where, (0.6 * wide,) * 3), rng, scale_mm=9, depth_mm=3.0)
    yield layer("necrosis", near, core, KEEP, fade_mm=3.0)
