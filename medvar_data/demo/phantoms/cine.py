"""The heart in short axis, as cine MR shows it: left ventricle a ring, right ventricle a crescent, lungs dark, liver below.

In: a `Space` in the heart's own frame (z from base to apex, x towards the right ventricle, y up the chest), a phase, a
generator. Out: layers in painting order. The same generator state gives the same patient at every phase of the beat.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from medvar_data.demo.phantoms.scanner import KEEP, Layer, layer
from medvar_data.demo.phantoms.shapes import Array, Real, Space, cut, disc, ellipsoid, field, join, moved, spread, tube

GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
#                    cavity mm, wall mm, shortening, right ventricle
_GROUP_SHAPES = {
    "NOR": (25.0, 8.5, 0.34, 1.0), "DCM": (33.0, 8.0, 0.13, 1.05), "HCM": (22.0, 15.0, 0.42, 0.9),
    "MINF": (28.0, 8.0, 0.19, 1.0), "RV": (23.0, 8.5, 0.30, 1.35),
}  # fmt: skip


@dataclass(frozen=True)
class Ventricle:
    """Left ventricle in one phase: radius of cavity and wall at the base, length, angle to the right ventricle."""

    cavity: float
    wall: float
    length: float
    right: float
    angle: float  # degrees from +x towards +y
    eccentric: float


def short_axis(
    at: Space, labels: Mapping[str, int], phase: Real, group: str, rng: np.random.Generator
) -> Iterator[Layer]:
    """Paint a short-axis stack; phase 0 is end diastole, 1 end systole."""
    yield from _chest_wall(at, rng)
    yield from _lung(at, rng)
    yield from _below(at, rng)
    left = _ventricle(group, phase, rng)
    yield from _back(at, rng)
    yield from _heart(at, left, labels, phase, rng)


def _ventricle(group: str, phase: Real, rng: np.random.Generator) -> Ventricle:
    cavity, wall, shortening, right = _GROUP_SHAPES[group]
    size = spread(rng, 1.0, 0.07)
    cavity, wall = cavity * size * spread(rng, 1.0, 0.05), wall * spread(rng, 1.0, 0.1)
    shortening = spread(rng, shortening, 0.12)
    length = spread(rng, 88, 0.07) * size
    systolic = cavity * (1 - shortening)
    # The wall keeps its area while the cavity shrinks: (c + w)^2 - c^2 is the same in both phases.
    area = (cavity + wall) ** 2 - cavity**2
    now = cavity + (systolic - cavity) * phase
    return Ventricle(
        cavity=now,
        wall=float(np.sqrt(now**2 + 0.94 * area) - now) if phase else wall,
        length=length * (1 - 0.12 * phase),
        right=right * spread(rng, 1.0, 0.07) * (1 - 0.24 * phase * (0.5 if group == "RV" else 1.0)),
        angle=float(rng.normal(-8, 22)),
        eccentric=float(rng.uniform(0.92, 1.08)),
    )


def _chest_wall(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    wide, high = rng.uniform(122, 150), rng.uniform(92, 116)
    centre = (rng.normal(14, 8), rng.normal(-10, 6))
    fat = rng.uniform(8, 26)
    surface = disc(at, centre, (wide, high), angle=rng.normal(-12, 8), power=2.5)
    yield layer("skin", at, surface)
    yield layer("fat", at, surface + 2)
    yield layer("muscle", at, surface + np.float32(fat))
    cage = surface + np.float32(fat + 8)
    turn = np.arctan2(at.y - np.float32(centre[1]), at.x - np.float32(centre[0])) + np.float32(0.02) * at.z
    bars = np.abs(np.sin(turn * np.float32(7) + np.float32(rng.uniform(0, 3)))) * 14 - np.float32(7)
    yield layer("marrow", at, np.maximum(np.abs(cage - 2) - 3.2, -bars))
    yield layer("fat", at, np.maximum(np.abs(cage - 2) - 2.0, bars + 2), fade_mm=1)
    yield layer("fat", at, cage + 6)


def _lung(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    reach = rng.uniform(-10, 12)
    left = ellipsoid(
        at, (-72 + rng.normal(0, 7), 20 + rng.normal(0, 7), reach), (78, rng.uniform(60, 80), 105), power=2.5
    )
    right = ellipsoid(
        at,
        (92 + rng.normal(0, 8), 36 + rng.normal(0, 8), -24 + reach),
        (56, rng.uniform(48, 68), 92),
        angles=(0, 0, 15),
        power=2.5,
    )
    air = join(left, right)
    yield layer("lung", at, air)
    for scale in (26.0, 17.0):
        threads = np.hypot(field(at.grid, rng, scale), field(at.grid, rng, scale)) * np.float32(0.62 * scale)
        yield layer("vessel", at, np.maximum(threads - np.float32(0.075 * scale), air + 7))


def _below(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint what lies under the diaphragm: liver below the right ventricle, stomach and spleen below the left."""
    top = rng.uniform(-62, -46)
    liver = ellipsoid(at, (62, top - 62, 30), (96, 74, 110), angles=(0, 0, rng.uniform(-6, 14)), power=2.5)
    yield layer("fat", at, liver - 4)
    yield layer("liver", at, liver)
    for _ in range(7):
        start = np.array([rng.uniform(10, 110), top - rng.uniform(6, 60), rng.uniform(-40, 60)])
        part, vein = tube(at, [start, start + rng.normal(0, 22, 3)], [3.6, 2.2])
        if vein.size:
            yield layer("vein", part, np.maximum(vein, part.piece(at, liver) + 4))
    if rng.random() < 0.8:
        centre = (-62, top - 40, 40)
        pouch = ellipsoid(at, centre, rng.uniform((30, 26, 50), (44, 36, 70)), angles=(0, 0, rng.uniform(-30, 10)))
        yield layer("wall", at, pouch)
        yield layer("chyme", at, pouch + 4)
        yield layer("gas", at, np.maximum(pouch + 4.5, np.float32(top - 40 + rng.uniform(-10, 16)) - at.y))
    spleen = ellipsoid(at, (-104, top - 34, 20), (26, 38, 60), angles=(0, 0, -15))
    yield layer("spleen", at, spleen)


def _back(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    centre = np.array([rng.normal(-30, 8), rng.normal(-70, 6)])
    near = at.between((*(centre - 60), -1e4), (*(centre + 60), 1e4))
    bone = disc(near, centre - (4, 30), (22, 19), power=2.5)
    yield layer("fat", near, bone - 6, fade_mm=3)
    yield layer("cortex", near, bone)
    yield layer("marrow", near, bone + 2)
    yield layer("canal", near, disc(near, centre - (-2, 62), (9, 8)))
    yield layer("wall", near, disc(near, centre, (12.5, 12.5)))
    yield layer("aorta", near, disc(near, centre, (11.3, 11.3)))
    yield layer("gullet", near, disc(near, moved(centre, (17, 5)), (6, 5)))


def _heart(
    at: Space, left: Ventricle, labels: Mapping[str, int], phase: Real, rng: np.random.Generator
) -> Iterator[Layer]:
    along = np.clip((at.z + np.float32(0.45 * left.length)) / np.float32(left.length), -0.5, 1.2)  # 0 base, 1 apex
    taper = np.sqrt(np.clip(1 - np.clip(along, 0, 1) ** 2.6, 0, 1)).astype(np.float32)
    swell = np.float32(1) - np.float32(0.10) * np.clip(-along + 0.12, 0, 1)
    near = np.hypot(at.x * np.float32(left.eccentric), at.y / np.float32(left.eccentric))
    wobble = field(at.grid, rng, 26)
    slices = at.grid.affine[2, 2] * np.arange(at.grid.shape[2]) + at.grid.affine[2, 3]  # whole slices, unwarped
    height = np.broadcast_to(slices.astype(np.float32), at.grid.shape)
    past_base = -(height + np.float32(0.47 * left.length))
    past_tip = height - np.float32(0.52 * left.length)
    outer = near - np.float32(left.cavity + left.wall) * taper * swell + np.float32(0.5) * wobble
    inner = near - (np.float32(left.cavity) * np.sqrt(np.clip(1 - np.clip(along * 1.13, 0, 1) ** 2.6, 0, 1))) * swell
    inner = (inner + np.float32(0.9) * wobble).astype(np.float32)
    outer = np.maximum.reduce([outer.astype(np.float32), past_base, past_tip])
    inner = np.maximum(inner, np.maximum(past_base, past_tip + np.float32(left.wall)))

    turn = np.deg2rad(left.angle)
    way = np.array([np.cos(turn), np.sin(turn)])
    right = _right_ventricle(at, left, along, way, wobble)
    right = np.maximum(right.astype(np.float32), np.maximum(past_base, past_tip + 14))
    epicardial = join(outer, right - 3, 10)
    yield layer("fat", at, epicardial - np.float32(rng.uniform(2.5, 6)), fade_mm=2)
    yield layer("pericardium", at, np.abs(epicardial - 2.0) - 0.5)
    yield layer("myocardium", at, right - 3.0)
    body = cut(right, outer)
    yield layer("right_heart", at, body, labels.get("right ventricle", 0))
    strands = np.abs(field(at.grid, rng, 15)) * 8 - 0.5
    yield layer("myocardium", at, np.maximum(strands, np.maximum(body + 1, -body - 8)), KEEP, fade_mm=3)
    yield layer("myocardium", at, outer, labels.get("myocardium", 0))
    yield layer("left_heart", at, inner, labels.get("left ventricle", 0))
    for part, muscle in _papillary_muscles(at, left, phase, rng):
        yield layer("myocardium", part, np.maximum(muscle, part.piece(at, inner)), KEEP)
    yield from _atria(at, left, way, past_base, rng)


def _right_ventricle(at: Space, left: Ventricle, along: Array, way: np.ndarray, wobble: Array) -> Array:
    """Distance to the right ventricle's cavity and wall, without the planes that end it."""
    reach = left.cavity + left.wall
    # The right ventricle holds on to the septum: its middle follows the left wall as that moves.
    middle = way * (0.72 * reach + 15 * left.right)
    shrink = np.sqrt(np.clip(1 - np.clip((along - 0.05) * 1.18, 0, 1) ** 2.0, 0, 1)).astype(np.float32)
    across = (at.x - np.float32(middle[0])) * np.float32(way[0]) + (at.y - np.float32(middle[1])) * np.float32(way[1])
    beside = (at.y - np.float32(middle[1])) * np.float32(way[0]) - (at.x - np.float32(middle[0])) * np.float32(way[1])
    wide, high = 27 * left.right, 41 * np.sqrt(left.right)
    r = np.sqrt((across / np.float32(wide)) ** 2 + (beside / np.float32(high)) ** 2)
    return (r - shrink) * np.float32(0.5 * (wide + high) * 0.85) + np.float32(0.8) * wobble


def _papillary_muscles(
    at: Space, left: Ventricle, phase: Real, rng: np.random.Generator
) -> Iterator[tuple[Space, Array]]:
    """Give both muscles: the part of space that each lies in, and the distance to it there."""
    turn = np.deg2rad(left.angle)
    for spot in (0.75, -2.1):
        angle = turn + np.pi + spot * 0.75
        foot = 0.62 * left.cavity * np.array([np.cos(angle), np.sin(angle)])
        thick = (3.4 + 2.4 * phase) * spread(rng, 1.0, 0.15)
        yield tube(at, [(*foot, -8.0), (*(1.1 * foot), 0.4 * left.length)], [0.5 * thick, thick])


def _atria(at: Space, left: Ventricle, way: np.ndarray, past_base: Array, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint what the slices above the valves show: atria, root of the aorta, pulmonary trunk."""
    above = -past_base  # positive below the base: only what is above it is painted
    for where, radii, tissue in (
        ((0.0, -6.0), (26, 22), "left_heart"),
        (way * 52 + (0, -8), (26, 28), "right_heart"),
        ((14.0, 22.0), (15, 15), "aorta"),
        ((26.0, 50.0), (13, 12), "right_heart"),
    ):
        shape = np.maximum(disc(at, where, radii), above + np.float32(rng.uniform(0, 4)))
        yield layer("wall", at, shape - 1.5)
        yield layer(tissue, at, shape)
