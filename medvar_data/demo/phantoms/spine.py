"""The backbone along its curve: bodies, discs, arches, canal with cord and roots, each vertebra with its own number.

In: a `Space`, how vertebrae and discs are numbered, a generator. Out: layers in painting order. `spine_ct` is VerSe (a crop
around the column, seen in axial slices), `spine_mr` is SPIDER (sagittal stacks of the lumbar column down to the sacrum).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from medvar_data.demo.phantoms.abdomen import great_vessels, psoas
from medvar_data.demo.phantoms.column import Column, Frame, canal_shape, draw_column, frame_of, height_range, oval
from medvar_data.demo.phantoms.kidney import kidney
from medvar_data.demo.phantoms.scanner import KEEP, Layer, layer
from medvar_data.demo.phantoms.shapes import (
    Array,
    Space,
    cut,
    disc,
    ellipsoid,
    field,
    join,
    tube,
)
from medvar_data.demo.phantoms.torso import (
    Build,
    build,
    cavity,
    loops,
    ribs,
    skin,
    trunk,
    wall,
)


def spine_ct(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint a CT crop around the column; vertebrae that are wholly in view carry VerSe's ids (8-19 thoracic, 20-24 lumbar)."""
    lowest = int(rng.choice([24, 23, 22, 21, 19, 17, 15]))
    body = build(rng, half_width=158, half_depth=114, fat=(9, 28))
    low, high = height_range(at)
    start = low - (rng.uniform(35, 75) if lowest == 24 else rng.uniform(2, 26))
    column = draw_column(rng, low, high, start=start, body=body, lowest=lowest, rising=False)
    thoracic = lowest < 20
    surface = skin(at, body)
    yield from trunk(at, body, surface)
    yield from ribs(at, body, surface, rng, reach_y=0.0)
    inner = cavity(at, body, surface)
    yield layer("fat", at, inner)
    frame = frame_of(at, column)
    yield layer("fat", at, _in_front(at, body, surface, frame))
    yield from _back_muscles(at, frame, surface)
    if thoracic:
        yield from _chest_side(at, body, inner, frame, rng)
    else:
        yield from loops(at, inner, rng, centre=(0, 40, 0), size=(70, 20, 70), count=9, radius=(9, 13))
        yield from psoas(at, body, rng)
        yield from great_vessels(at, body, {}, rng)
        for side in (-1, 1):
            yield from kidney(at, side, body, rng.normal(0, 1, 3) * (3, 3, 25), {}, rng, masses=False)
    yield from _bones(at, frame, column, surface, rng, ct=True)


def spine_mr(at: Space, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint a lumbar spine for sagittal MR; ids as SPIDER's: vertebrae 1, 2, ... from L5 up, canal 100, discs 201, ... up."""
    body = build(rng, half_width=158, half_depth=112, fat=(10, 30))
    low, high = height_range(at)
    column = draw_column(rng, low, high, start=-142 + rng.normal(0, 7), body=body, lowest=24, rising=True)
    seat = np.interp(at.z, (-140, -50), (26, 0)).astype(np.float32) * (at.y < 0)  # the buttocks stand out behind
    surface = skin(replace(at, y=at.y + seat), body)
    yield from trunk(at, body, surface)
    inner = cavity(at, body, surface)
    frame = frame_of(at, column)
    front = np.minimum(inner, _in_front(at, body, surface, frame))
    yield layer("fat", at, front)
    yield from loops(at, front, rng, centre=(0, 46, 0), size=(45, 30, 125), count=42, radius=(9, 17))
    yield from psoas(at, body, rng)
    yield from _front_vessels(at, column, rng)
    yield from _back_muscles(at, frame, surface)
    behind = np.maximum.reduce([np.abs(frame.x) - 3, frame.y + 40, -frame.y - 74])
    yield layer("fat", at, np.maximum(behind, surface + 8), fade_mm=3)
    yield from _canal(at, frame, column, rng)
    yield from _bones(at, frame, column, surface, rng, ct=False)
    yield from _discs(at, frame, column)
    yield from _veins(at, frame)


def _in_front(at: Space, body: Build, surface: Array, frame: Frame) -> Array:
    """Distance to the space before the column and between the hips, which follows the column's curve."""
    inner = wall(at, body, surface) + np.float32(body.wall)
    return np.maximum.reduce([inner, 8 - frame.y, np.abs(frame.x) - 48])


def _bones(
    at: Space, frame: Frame, column: Column, surface: Array, rng: np.random.Generator, *, ct: bool
) -> Iterator[Layer]:
    """Paint vertebrae; for CT also discs and canal, which MR shows in more detail elsewhere."""
    a = column.half_width
    b = 0.76 * a
    x, y, up, half = frame.x, frame.y, frame.up, frame.half_height
    ids = column.ids[frame.segment]
    outline = oval(x, y, 0.0, a, b)
    outline = np.maximum(outline, np.float32(-b * 0.86) - y)  # flat back wall
    waist = np.float32(1.8) * np.clip(1 - (up / half) ** 2, 0, 1)
    plate = np.float32(1.4) * np.clip(1 - (np.hypot(x / np.float32(a), y / np.float32(b))) ** 2, 0, 1)
    bone = np.maximum(outline + waist, np.abs(up) - half + plate)
    if ct:
        disc_region = np.maximum(outline + 1.0, half - 1 - np.abs(up))
        yield layer("disc", at, disc_region)
        yield layer("canal", at, canal_shape(frame, column))
    arch = _arch(frame, column, surface)
    rough = np.float32(0.5) * field(at.grid, rng, 11)
    yield layer("cortex", at, np.minimum(bone, arch) + rough, ids)
    yield layer("marrow", at, np.minimum(bone + 2.0, arch + 2.3) + rough, KEEP)


def _arch(frame: Frame, column: Column, surface: Array) -> Array:
    """Distance to the arches behind the canal: pedicles, rings, spinous and transverse processes, facets."""
    a = column.half_width
    b = 0.76 * a
    x, y, up, half = frame.x, frame.y, frame.up, frame.half_height
    hole = canal_shape(frame, column)
    back = -b - 9.0
    side = np.abs(x)
    pedicle = np.maximum.reduce(
        [
            np.abs(side - np.float32(0.62 * a)) - 4.2,
            np.abs(y - np.float32(-b - 4)) - 10,
            np.abs(up - 0.28 * half) - 0.46 * half,
        ]
    )
    ring = np.maximum(np.abs(hole - 3.0) - 3.0, np.abs(up + 0.15 * half) - 0.62 * half)
    ring = np.maximum(ring, y - np.float32(back + 3))
    drop = up + np.float32(0.42) * np.clip(np.float32(back - 8) - y, 0, 60) + 3
    spinous = np.maximum.reduce(
        [side - 3.6, y - np.float32(back - 6), np.float32(back - 28) - y, np.abs(drop) - np.float32(0.58) * half]
    )
    reach = np.float32(1.72 * a)
    sweep = np.float32(back + 1) - np.float32(0.25) * side
    transverse = np.maximum.reduce(
        [side - reach, np.float32(0.5 * a) - side, np.abs(y - sweep) - 3.6, np.abs(up - 2) - 5.0]
    )
    facet = np.hypot(side - np.float32(0.74 * a), (y - np.float32(back - 5)) * np.float32(1.2)) - 7.4
    joint = np.abs(np.float32(0.8) * (side - np.float32(0.74 * a)) + np.float32(0.6) * (y - np.float32(back - 5))) - 0.7
    facet = np.maximum(facet, -joint)
    arch = np.minimum.reduce([pedicle, join(ring, spinous, 3.0), transverse, facet])
    return np.maximum(cut(arch.astype(np.float32), hole), surface + 7)


def _canal(at: Space, frame: Frame, column: Column, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint fat, dura, fluid, the end of the cord and the roots of the cauda equina."""
    hole = canal_shape(frame, column)
    b = 0.76 * column.half_width
    below = np.float32(-118) - at.z
    yield layer("fat", at, np.maximum(hole - 1.5, below))
    sac_y = np.float32(-b - 5.8)
    sac = np.hypot(frame.x, (frame.y - sac_y) * np.float32(1.15)) - np.interp(
        at.z, (-120, -85, 150), (2, 7.6, 8.2)
    ).astype(np.float32)
    sac = np.maximum(sac, np.float32(-112) - at.z)
    yield layer("csf", at, sac, 100)
    tip = 52 + rng.normal(0, 9)
    cord = np.hypot(frame.x, (frame.y - sac_y + 0.5) * np.float32(1.2))
    cord = cord - np.interp(at.z, (tip - 22, tip, tip + 30), (0.0, 3.6, 5.2)).astype(np.float32)
    yield layer("cord", at, np.maximum(cord, np.float32(tip - 22) - at.z), KEEP)
    strands = np.abs(np.sin(frame.y * np.float32(1.5) + np.float32(0.05) * at.z + frame.x * np.float32(0.7))) * 2 - 0.6
    roots = np.maximum.reduce([strands, sac + 1.5, frame.y - sac_y + 0.5, at.z - np.float32(tip)])
    yield layer("cauda", at, roots.astype(np.float32), KEEP, fade_mm=0.6)


def _discs(at: Space, frame: Frame, column: Column) -> Iterator[Layer]:
    """Paint discs: a dark ring, a bright nucleus where the disc has not dried out; some bulge into the canal."""
    a = column.half_width
    b = 0.76 * a
    above = frame.up > 0
    segment = np.where(above, frame.segment, frame.segment - 1).clip(0)
    thick = column.disc_mm[segment]
    # Height over the middle of the disc, from either side of the segment's border.
    over = np.where(above, frame.up - frame.half_height - thick / 2, frame.up + frame.half_height + thick / 2)
    dry = np.asarray(column.degenerated)[segment]
    bulge = np.where(dry, np.float32(2.2), np.float32(0.2))
    outline = oval(frame.x, frame.y, 0.0, a + 0.5, b + 0.8) - bulge * (frame.y < 0)
    shape = np.maximum(outline, np.abs(over) - thick / 2 - 0.2).astype(np.float32)
    ids = column.disc_ids[segment]
    yield layer("disc", at, shape, np.where(ids > 0, ids, 0))
    core = np.sqrt(
        (frame.x / np.float32(0.62 * a)) ** 2
        + ((frame.y + 2) / np.float32(0.58 * b)) ** 2
        + (over / (0.42 * thick)) ** 2
    )
    core = (core - 1) * (0.45 * thick)
    yield layer("nucleus", at, np.where(dry, np.float32(5), core).astype(np.float32), KEEP, fade_mm=1.0)


def _veins(at: Space, frame: Frame) -> Iterator[Layer]:
    notch = np.sqrt(frame.x**2 * np.float32(0.2) + frame.up**2) - 1.4
    yield layer("fat", at, np.maximum.reduce([notch, frame.y + 9, -frame.y - 22]).astype(np.float32), KEEP, fade_mm=1)


def _front_vessels(at: Space, column: Column, rng: np.random.Generator) -> Iterator[Layer]:
    heights = np.linspace(-150, 150, 9)
    front = np.polyval(column.curve, heights) + 0.76 * column.half_width
    for x, radius, gap, tissue in ((-10.0, 9.5, 11.0, "aorta"), (17.0, 10.5, 10.0, "vein")):
        split = np.interp(heights, (-80, -40), (26, 0)) * np.sign(x)
        points = np.stack([x + split + rng.normal(0, 1.5, 9), front + gap, heights], axis=1)
        part, vessel = tube(at, points, np.interp(heights, (-80, -30, 150), (5, radius, radius)))
        yield layer("wall", part, vessel - 1)
        yield layer(tissue, part, vessel)


def _back_muscles(at: Space, frame: Frame, surface: Array) -> Iterator[Layer]:
    for side in (-1, 1):
        near = oval(frame.x - side * 29, frame.y, -52.0, 28.0, 24.0)
        yield layer("muscle", at, np.maximum(near, surface + 8))
        cleft = np.maximum(np.abs(frame.x - side * 20 - np.float32(side * 0.25) * (frame.y + 45)) - 0.5, near + 2)
        yield layer("fat", at, cleft, fade_mm=1.2)


def _chest_side(at: Space, body: Build, inner: Array, frame: Frame, rng: np.random.Generator) -> Iterator[Layer]:
    a = np.float32(body.vertebra + 4)
    gap = a - np.hypot(frame.x, frame.y + 4) * np.float32(0.95)
    for side in (-1, 1):
        lung = np.maximum.reduce([inner, gap, 7 - side * at.x, 12 - side * at.x + 0.25 * at.y])
        yield layer("lung", at, lung)
        for scale in (22.0, 15.0):
            threads = np.hypot(field(at.grid, rng, scale), field(at.grid, rng, scale)) * np.float32(0.62 * scale)
            yield layer("vessel", at, np.maximum(threads - np.float32(0.075 * scale), lung + 5))
    heart = ellipsoid(at, (-12, 36, -20), (52, 44, 300), power=2.5)
    yield layer("fat", at, heart - 3)
    yield layer("blood", at, heart)
    yield layer("aorta", at, disc(at, (-20, body.spine_y + 22), (12.5, 12.5)))
    yield layer("gullet", at, disc(at, (-2, body.spine_y + 33), (9, 7)))
