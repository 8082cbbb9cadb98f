"""The upper abdomen: liver, spleen, kidneys, stomach, bowel, pancreas, vessels, backbone, lung bases.

In: a `Space`, the ids of labelled organs, a generator. Out: layers in painting order. One anatomy serves KiTS23 and CHAOS
(CT) and AMOS (MR): they differ in the scanner and in which organs carry a label. z = 0 is the level of the renal hila.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from medvar_data.demo.phantoms.kidney import kidney
from medvar_data.demo.phantoms.scanner import KEEP, Layer, couch, layer
from medvar_data.demo.phantoms.shapes import (
    Array,
    Space,
    column,
    cut,
    disc,
    ellipsoid,
    join,
    moved,
    shell,
    spread,
    tube,
)
from medvar_data.demo.phantoms.torso import (
    Build,
    backbone,
    build,
    cavity,
    loops,
    mesentery,
    ragged,
    ribs,
    skin,
    trunk,
    vessels_within,
    within_reach,
)

Labels = Mapping[str, int]


def abdomen(at: Space, labels: Labels, rng: np.random.Generator, *, table: bool, masses: bool) -> Iterator[Layer]:
    """Paint an abdomen.

    Args:
        at: patient coordinates.
        labels: organ name -> id; organs that are not named are painted and left unlabelled.
        rng: draws the patient.
        table: lay the patient on a couch (CT).
        masses: give a kidney a tumour and often a cyst.
    """
    body = build(rng, half_width=158, half_depth=116, fat=(9, 30))
    if table:
        yield from couch(at, body.back_mm * 0.93, rng)
    at = within_reach(at, body)
    surface = skin(at, body)
    yield from trunk(at, body, surface)
    yield from _front_muscles(at, body)
    yield from ribs(at, body, surface, rng, reach_y=rng.uniform(20, 55))
    inner = cavity(at, body, surface)
    yield layer("fat", at, inner)
    shift = rng.normal(0, 1, 3) * (3, 3, 7)  # the organs' height against the stack
    yield from mesentery(at, inner, rng, 26)
    yield from _bowel(at, inner, rng)
    yield from _stomach(at, inner, shift, labels, rng)
    yield from backbone(at, body, surface, rng)
    yield from psoas(at, body, rng)
    yield from great_vessels(at, body, labels, rng)
    yield from _pancreas(at, shift, labels, rng)
    liver = _liver(at, inner, body, shift, rng)
    yield layer("liver", at, liver, labels.get("liver", 0))
    yield from _liver_vessels(at, liver, shift, rng)
    yield from _gallbladder(at, shift, labels, rng)
    yield from _spleen(at, inner, body, shift, labels, rng)
    for side in (1, -1):
        yield from kidney(at, side, body, shift, labels, rng, masses=masses and (side == 1) == (rng.random() < 0.5))
        yield from _adrenal(at, side, body, shift, labels, rng)
    yield from _lung_bases(at, inner, shift, rng)


def _front_muscles(at: Space, body: Build) -> Iterator[Layer]:
    y = body.half_depth - body.fat - 6
    for side in (-1, 1):
        near = at.between((-70, y - 20, -1e4), (70, y + 15, 1e4))
        yield layer("muscle", near, disc(near, (side * 30, y - 2), (27, 6.5), angle=-side * 8, power=2.5))


def psoas(at: Space, body: Build, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint the psoas muscles, which thicken downwards, and the quadratus lumborum behind them."""
    thick = spread(rng, 1.0, 0.15)
    for side in (-1, 1):
        near = at.between((side * 44 - 34, body.spine_y - 36, -1e4), (side * 44 + 34, body.spine_y + 30, 1e4))
        radius = np.interp(near.z, (-90, -30, 30, 55), (22, 19, 11, 5)).astype(np.float32) * np.float32(thick)
        middle = np.interp(near.z, (-90, 50), (43, 33)).astype(np.float32) * side
        away = np.hypot(near.x - middle, (near.y - np.float32(body.spine_y - 2)) * np.float32(0.85))
        yield layer("muscle", near, away - radius)
        quadratus = disc(near, (side * 60, body.spine_y - 22), (15, 8), angle=side * 25)
        yield layer("muscle", near, quadratus)


def great_vessels(at: Space, body: Build, labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint aorta and vena cava with their branches to kidneys and bowel, and the end of the gullet."""
    y = body.spine_y + body.vertebra * 0.78
    heights = (-150.0, -60.0, 0.0, 60.0, 150.0)
    sway = rng.normal(0, 2.5, (2, 5))
    cava_y = np.array([y + 9, y + 9, y + 11, y + 20, y + 26]) + sway[1]
    part, cava = column(
        at, heights, np.array([20, 20, 21, 22, 24]) + sway[0], cava_y, spread(rng, 10.5, 0.12) * np.ones(5)
    )
    yield layer("vein", part, cava, labels.get("inferior vena cava", 0))
    wide = spread(rng, 10.0, 0.14)
    aorta_x = np.array([-6, -8, -9, -10, -14]) + 0.6 * sway[1]
    part, aorta = column(
        at, heights, aorta_x, np.array([11, 11, 12, 12, 8]) + y, wide * np.array([0.85, 0.9, 1, 1.1, 1.15])
    )
    wall = shell(aorta - 1.2, 1.4)
    yield layer("aorta", part, aorta, labels.get("aorta", 0))
    if rng.random() < 0.45:  # calcified wall, in pieces
        where = ragged(part, wall, rng, scale_mm=16, depth_mm=3.0)
        yield layer("calcium", part, np.maximum(where + 2.5, wall), labels.get("aorta", 0))
    for side, z in ((1, -2.0), (-1, 2.0)):
        ends = [(-8, y + 10, z), (side * 28, y + 2, z - 2), (side * 54, body.spine_y + 6, z - 4)]
        yield layer("aorta", *tube(at, ends, [3.4, 2.9, 2.4]))
        veins = [(20, y + 14, z - 8), (side * 30, y + 10, z - 8), (side * 54, body.spine_y + 10, z - 8)]
        yield layer("vein", *tube(at, veins, [5.0, 4.6, 4.0]))
    mesenteric = [(-8, y + 14, 18), (-6, y + 30, 6), (-4, y + 36, -40), (4, y + 40, -90)]
    yield layer("aorta", *tube(at, mesenteric, [4.0, 3.8, 3.4, 2.8]))
    yield layer("vein", *tube(at, np.add(mesenteric[1:], (13, 2, 0)), [5.5, 5.2, 4.5]))
    part, gullet = column(at, (48.0, 100.0, 170.0), (-18.0, -6.0, -4.0), (y + 24, y + 16, y + 14), (9.0, 9.0, 9.0))
    yield layer("bowel", part, gullet, labels.get("esophagus", 0))


def _liver(at: Space, inner: Array, body: Build, shift: Array, rng: np.random.Generator) -> Array:
    size = spread(rng, 1.0, 0.09)
    low = rng.uniform(-62, -30)  # where the right lobe ends
    wide = body.half_width / 158
    right = ellipsoid(
        at,
        np.array([82 * wide, -6, 32]) + shift,
        (72 * wide * size, 88 * size, (32 - low) * size),
        angles=(rng.normal(0, 4), 12, 8),
        power=2.5,
    )
    tip = np.array([-22, 46, 48]) + shift + rng.normal(0, 1, 3) * (10, 4, 6)
    left = ellipsoid(at, tip, (76 * size, 36, 34), angles=(0, 10, -14), power=2.5)
    shape = join(right, left, 22)
    hilum = ellipsoid(at, np.array([14, 4, 2]) + shift, (48, 34, 40), angles=(0, 0, 20))
    shape = cut(shape, hilum)
    groove = disc(at, (26 + shift[0], 72 + shift[1]), (3.0, 26), angle=-12)
    shape = cut(shape, np.maximum(groove, at.z - np.float32(45 + shift[2])))
    caudate = ellipsoid(at, np.array([24, -16, 42]) + shift, (20, 18, 26))
    shape = join(shape, caudate, 8)
    return np.maximum(ragged(at, shape, rng, scale_mm=30, depth_mm=1.2), inner + 3)


def _liver_vessels(at: Space, liver: Array, shift: Array, rng: np.random.Generator) -> Iterator[Layer]:
    gate = np.array([32, 2, 14]) + shift
    portal = np.array([[96, 30, 20], [100, -40, 10], [110, -10, 55], [-30, 52, 46]]) + shift
    yield from vessels_within(at, liver, gate, portal + rng.normal(0, 9, (4, 3)), rng, radius_mm=5.0, tissue="vein")
    crown = np.array([26, -8, 84]) + shift
    hepatic = np.array([[110, -20, 48], [70, 50, 46], [-10, 50, 52]]) + shift
    yield from vessels_within(
        at, liver, crown, hepatic + rng.normal(0, 9, (3, 3)), rng, radius_mm=4.6, tissue="vein", generations=1
    )
    for _ in range(int(rng.integers(0, 3))):  # simple cysts or haemangiomas
        where = np.array([80, 0, 35]) + shift + rng.uniform(-1, 1, 3) * (45, 50, 40)
        near = at.near(where, 14)
        spot = ellipsoid(near, where, rng.uniform(3, 10, 3))
        yield layer("cyst", near, np.maximum(spot, near.piece(at, liver) + 2), KEEP)


def _gallbladder(at: Space, shift: Array, labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    centre = np.array([50, 46, -4]) + shift + rng.normal(0, 4, 3)
    near = at.near(centre, 36)
    radii = rng.uniform((11, 13, 18), (16, 20, 28))
    shape = ellipsoid(near, centre, radii, angles=(rng.uniform(-40, -10), rng.uniform(-20, 20), 0))
    yield layer("wall", near, shape - 1.0, labels.get("gallbladder", 0))
    yield layer("bile", near, shape + 0.8, KEEP)


def _spleen(
    at: Space, inner: Array, body: Build, shift: Array, labels: Labels, rng: np.random.Generator
) -> Iterator[Layer]:
    centre = np.array([-0.70 * body.half_width, -0.36 * body.half_depth, 34]) + shift + rng.normal(0, 3, 3)
    size = spread(rng, 1.0, 0.13)
    near = at.near(centre, 80)
    outer = ellipsoid(near, centre, (36 * size, 56 * size, 54 * size), angles=(0, -12, -28), power=2.5)
    stomach_side = ellipsoid(near, moved(centre, (46, 20, 0)), (34, 44, 60), angles=(0, 0, -25))
    shape = np.maximum(cut(outer, stomach_side), near.piece(at, inner) + 3)
    yield layer("spleen", near, shape, labels.get("spleen", 0))
    hilum = moved(centre, (14, 10, -6))
    for _ in range(3):
        end = moved(hilum, (28, 22, -8)) + rng.normal(0, 6, 3)
        yield layer("vein", *tube(at, [hilum, (hilum + end) / 2 + rng.normal(0, 4, 3), end], [2.5, 3, 3.5]))


def _adrenal(
    at: Space, side: int, body: Build, shift: Array, labels: Labels, rng: np.random.Generator
) -> Iterator[Layer]:
    top = np.array([side * 38, body.spine_y + 18, 48]) + shift + rng.normal(0, 2, 3)
    limbs = [
        [top, moved(top, (side * 9, -13, -6)), moved(top, (side * 12, -22, -16))],
        [top, moved(top, (-side * 3, -14, -8))],
    ]
    name = "right adrenal gland" if side == 1 else "left adrenal gland"
    for limb in limbs:
        yield layer("gland", *tube(at, limb, 3.0), labels.get(name, 0))


def _pancreas(at: Space, shift: Array, labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    path = np.array([[36, 4, -22], [32, 12, -4], [10, 22, 8], [-18, 18, 16], [-48, 0, 24], [-74, -16, 30]]) + shift
    path = path + rng.normal(0, 3, path.shape)
    part, distance = tube(at, path, [10, 13, 9.5, 9, 9, 7])
    shape = ragged(part, distance, rng, scale_mm=11, depth_mm=1.8)
    vein = moved(path[1:], (0, -12, 2))
    yield layer("vein", *tube(at, vein, 4.5))
    yield layer("pancreas", part, shape, labels.get("pancreas", 0))
    yield layer("bile", *tube(at, [path[0] + (3, -3, 0), path[2]], [2.4, 1.6]), KEEP)
    ring = [
        path[1] + (4, 14, 18),
        path[1] + (20, 4, 6),
        path[0] + (19, -2, -14),
        path[0] + (-6, -6, -30),
        path[0] + (-46, -6, -30),
    ]
    part, distance = tube(at, ring, 11)
    yield layer("bowel", part, distance, labels.get("duodenum", 0))
    yield layer("chyme", part, distance + 4, KEEP)


def _stomach(at: Space, inner: Array, shift: Array, labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    size = spread(rng, 1.0, 0.16)
    path = (
        np.array([[-58, 4, 74], [-70, 18, 50], [-52, 42, 26], [-14, 52, 10], [22, 40, 10]])
        + shift
        + rng.normal(0, 3, (5, 3))
    )
    part, distance = tube(at, path, np.array([26, 31, 26, 19, 12]) * size)
    shape = np.maximum(distance, part.piece(at, inner) + 3)
    yield layer("wall", part, shape, labels.get("stomach", 0))
    yield layer("chyme", part, shape + 4.5, KEEP)
    level = np.float32(path[2, 1] + rng.uniform(-8, 22))
    yield layer("gas", part, np.maximum(shape + 5, level - part.y), KEEP)


def _bowel(at: Space, inner: Array, rng: np.random.Generator) -> Iterator[Layer]:
    yield from loops(at, inner, rng, centre=(-30, 40, -45), size=(60, 22, 40), count=11, radius=(9, 13))
    wide = float(-inner.min()) if inner.size else 60.0
    flank = 78 + 0.16 * wide
    ascending = [(flank + 6, 8, -110), (flank, 4, -70), (flank - 8, 14, -42), (flank - 26, 46, -34)]
    across = [(66, 56, -34), (30, 64, -46), (-16, 66, -42), (-56, 58, -20), (-88, 24, 14)]
    descending = [(-92, 6, 16), (-98, -14, -10), (-98, -12, -60), (-94, -4, -110)]
    for path, radius in ((ascending, 22), (across, 18), (descending, 14)):
        route = np.asarray(path) + rng.normal(0, 4, (len(path), 3))
        part, distance = tube(at, route, [radius * rng.uniform(0.8, 1.15) for _ in route])
        if distance.size == 0:
            continue
        haustra = np.float32(1.8) * np.sin((part.x + 1.3 * part.z) / np.float32(5.5))
        shape = np.maximum(distance + haustra, part.piece(at, inner) + 2)
        yield layer("bowel", part, shape)
        yield layer("faeces", part, shape + 3.0)
        if rng.random() < 0.75:
            yield layer("gas", part, np.maximum(shape + 3.5, np.float32(route[1][1] + rng.uniform(-4, 9)) - part.y))


def _lung_bases(at: Space, inner: Array, shift: Array, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint what reaches into the highest slices: the lungs' recesses around the domes, and the bottom of the heart."""
    base = rng.uniform(74, 92) + shift[2]
    whole, at = at, at.between((-1e4, -1e4, 24 + shift[2]), (1e4, 1e4, 1e4))
    inner = at.piece(whole, inner)
    middle = np.float32(44) - np.hypot(at.x + 8, (at.y - 22) * np.float32(1.1))
    spine = np.float32(34) - np.hypot(at.x, at.y + 44)
    for side, lift in ((1, 0.0), (-1, -6.0)):
        crown = ellipsoid(at, (side * 62, 4, base - 95 + lift), (78, 98, 95), power=2.5)
        recess = np.maximum.reduce(
            [inner + 2, 1 - crown, 6 - side * at.x, middle, spine, np.float32(22 + shift[2]) - at.z]
        )
        yield layer("lung", at, recess)
    heart = ellipsoid(at, (-14, 26, base + 26), (48, 40, 40), power=2.5)
    yield layer("muscle", at, np.maximum(heart, inner + 4))
