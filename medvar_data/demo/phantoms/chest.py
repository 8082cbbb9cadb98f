"""The chest: lungs with their vessels and airways, mediastinum, heart with four chambers, cage, backbone.

In: a `Space`, a generator. Out: layers in painting order. `chest` is MSD Lung (a tumour in a lung carries the label);
`heart_ct` is MM-WHS (the contrast-filled heart carries seven). z = 0 is the middle of the heart; the carina is near 55.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from medvar_data.demo.phantoms.heart import Heart, chambers, coronaries, place_heart, plain_heart, vessels
from medvar_data.demo.phantoms.scanner import KEEP, Layer, couch, layer
from medvar_data.demo.phantoms.shapes import (
    Array,
    Space,
    column,
    disc,
    ellipsoid,
    field,
    join,
    moved,
    spread,
    tube,
)
from medvar_data.demo.phantoms.torso import (
    Build,
    backbone,
    build,
    ragged,
    ribs,
    skin,
    trunk,
    wall,
    within_reach,
)

Labels = Mapping[str, int]


def chest(at: Space, labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint a chest CT with one lung tumour; the heart is seen without much contrast."""
    body = build(rng, half_width=172, half_depth=118, fat=(8, 24))
    yield from couch(at, body.back_mm * 0.93, rng)
    at = within_reach(at, body)
    surface = skin(at, body) + np.interp(at.z, (60, 130), (0, 16)).astype(np.float32)
    yield from trunk(at, body, surface)
    yield from _girdle(at, body, surface, rng)
    yield from ribs(at, body, surface, rng, reach_y=body.half_depth * 0.75)
    heart = place_heart(rng, body)
    lungs = _lungs(at, body, surface, heart, rng)
    yield from _mediastinum(at, body, surface, rng)
    yield from _liver_below(at, body, surface, rng)
    for lung in lungs:
        yield layer("lung", at, lung)
    yield from _backbone_and_sternum(at, body, surface, rng)
    yield from _smoke(at, lungs, rng)
    yield from _twigs(at, lungs, rng)
    yield from _tree(at, lungs, heart, rng)
    yield from plain_heart(at, heart, rng)
    yield from vessels(at, body, heart, rng, {})
    yield from _airways(at, body, rng)
    yield from _tumour(at, lungs, labels, rng)


def heart_ct(at: Space, labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    """Paint a cardiac CT angiogram: bright left heart, greyer right heart, seven labelled structures."""
    body = build(rng, half_width=168, half_depth=114, fat=(8, 22))
    surface = skin(at, body)
    yield from trunk(at, body, surface)
    yield from ribs(at, body, surface, rng, reach_y=body.half_depth * 0.75)
    heart = place_heart(rng, body)
    lungs = _lungs(at, body, surface, heart, rng)
    yield from _mediastinum(at, body, surface, rng)
    yield from _liver_below(at, body, surface, rng)
    for lung in lungs:
        yield layer("lung", at, lung)
    yield from _backbone_and_sternum(at, body, surface, rng)
    yield from _twigs(at, lungs, rng)
    yield from _tree(at, lungs, heart, rng)
    yield from _airways(at, body, rng)
    yield from chambers(at, heart, labels, rng)
    yield from vessels(at, body, heart, rng, labels)
    yield from coronaries(at, heart, rng)


def _lungs(at: Space, body: Build, surface: Array, heart: Heart, rng: np.random.Generator) -> list[Array]:
    inner = wall(at, body, surface) + np.float32(body.wall + 3)
    room = np.interp(at.z, (-60, 20, 70, 130), (1.0, 1.0, 0.92, 0.55)).astype(np.float32)
    inner = inner + (1 - room) * np.float32(0.6 * body.half_width)  # narrower towards the apex
    x0 = np.interp(at.z, (30, 80), (heart.centre[0] - 4, -2)).astype(np.float32)
    y0 = np.interp(at.z, (30, 80), (heart.centre[1], -4)).astype(np.float32)
    slope = np.interp(at.z, (-70, 0, 30, 75, 130), (70, 66, 52, 31, 24)).astype(np.float32) * np.float32(heart.size)
    bulge = np.sqrt((at.x - x0) ** 2 + ((at.y - y0) * np.float32(1.12)) ** 2)
    spine_gap = np.float32(body.vertebra + 5) - np.hypot(at.x, at.y - np.float32(body.spine_y - 14)) * np.float32(0.95)
    lungs = []
    for side in (1, -1):
        middle = np.float32(5) - side * at.x + np.float32(4) * np.clip((at.y - 40) / 30, 0, 1)
        height = -30 + rng.normal(0, 8) + (7 if side == 1 else -3)
        floor = height + 26 - np.hypot(at.x - side * 80, (at.y - 25) * np.float32(0.9)) * np.float32(0.7) - at.z
        lungs.append(np.maximum.reduce([inner, slope - bulge, spine_gap, middle, floor]))
    return lungs


def _girdle(at: Space, body: Build, surface: Array, rng: np.random.Generator) -> Iterator[Layer]:
    breast = rng.random() < 0.35
    for side in (-1, 1):
        front = (side * 62, body.half_depth - body.fat - 12)
        near = at.between((front[0] - 62, front[1] - 34, -1e4), (front[0] + 62, front[1] + 34, 1e4))
        chest_wall = disc(near, front, (58, 11), angle=-side * 20, power=2.5)
        yield layer("muscle", near, np.maximum(chest_wall, near.piece(at, surface) + 5))
        if breast:
            centre = (side * 78, body.half_depth - 20, rng.uniform(-20, 5))
            near = at.near(centre, 56)
            yield layer("fat", near, ellipsoid(near, centre, (52, 34, 52), angles=(0, 0, -side * 18)))
            yield layer("gland", near, ellipsoid(near, centre, (22, 12, 24)), KEEP, fade_mm=8)
        centre = (side * 108, -0.62 * body.half_depth, 85)
        near = at.near(centre, (54, 54, 88))
        blade = ellipsoid(near, centre, (42, 4.0, 70), angles=(-6, side * 8, side * (34 + rng.normal(0, 4))))
        yield layer("muscle", near, np.maximum(blade - 13, near.piece(at, surface) + 7))
        yield layer("cortex", near, np.maximum(blade, near.piece(at, surface) + 9))


def _backbone_and_sternum(at: Space, body: Build, surface: Array, rng: np.random.Generator) -> Iterator[Layer]:
    yield from backbone(at, body, surface, rng, pitch_mm=29)
    y = body.half_depth - body.fat - 14
    near = at.near((0, y, 40), (22, 10, 80))
    plate = ellipsoid(near, (0, y, 40), (19, 6, 75), power=4)
    yield layer("cortex", near, plate)
    yield layer("marrow", near, plate + 2.4)
    for level in range(-2, 4):
        for side in (-1, 1):
            start = (side * 20, y, 10 + 22 * level)
            end = (side * (64 + 8 * abs(level)), y - 14, 10 + 22 * level - 16)
            yield layer("cartilage", *tube(at, [start, end], [5.5, 5.0]))


def _liver_below(at: Space, body: Build, surface: Array, rng: np.random.Generator) -> Iterator[Layer]:
    inner = wall(at, body, surface) + np.float32(body.wall)
    low = at.between((-1e4, -1e4, -1e4), (1e4, 1e4, 0))
    if low.x.size == 0:
        return
    top = -34 + rng.normal(0, 4)
    dome = ellipsoid(low, (70, 5, top - 82), (92, 95, 80), power=2.5)
    yield layer("fat", low, np.maximum(low.piece(at, inner), low.z - np.float32(top - 42)))
    left = ellipsoid(low, (-34, 40, top - 70), (62, 40, 58))
    yield layer("liver", low, np.maximum(join(dome, left, 18), low.piece(at, inner) + 2))
    stomach = ellipsoid(low, (-72, 8, top - 64), (40, 48, 50))
    yield layer("wall", low, np.maximum(stomach, low.piece(at, inner) + 3))
    yield layer("chyme", low, stomach + 5)
    yield layer("gas", low, np.maximum(stomach + 5.5, np.float32(rng.uniform(12, 34)) - low.y))
    spleen = ellipsoid(low, (-108, -42, top - 62), (26, 44, 46), angles=(0, 0, -25))
    yield layer("spleen", low, np.maximum(spleen, low.piece(at, inner) + 3))


def _mediastinum(at: Space, body: Build, surface: Array, rng: np.random.Generator) -> Iterator[Layer]:
    inner = wall(at, body, surface) + np.float32(body.wall)
    yield layer(
        "fat",
        at,
        np.maximum.reduce([inner, np.abs(at.x) - 60, np.float32(body.spine_y) - at.y, np.float32(-40) - at.z]),
    )


def _smoke(at: Space, lungs: list[Array], rng: np.random.Generator) -> Iterator[Layer]:
    lung = np.minimum(lungs[0], lungs[1])
    if rng.random() < 0.5:  # dependent density
        yield layer("fissure", at, np.maximum(lung, at.y + np.float32(rng.uniform(55, 75))), fade_mm=30)
    for _ in range(int(rng.integers(0, 3))):
        where = rng.uniform((-120, -70, -20), (120, 30, 90))
        near = at.near(where, 40)
        cloud = ragged(near, ellipsoid(near, where, rng.uniform(9, 22, 3)), rng, scale_mm=11, depth_mm=4)
        yield layer("smoke", near, np.maximum(cloud, near.piece(at, lung) + 2), fade_mm=9)
    for side in (1, -1):  # oblique fissures
        plane = np.abs((at.y + np.float32(0.85) * (at.z - 30)) * np.float32(0.76)) - np.float32(0.5)
        yield layer("fissure", at, np.maximum(plane, lungs[0 if side == 1 else 1] + 2))


def _tree(at: Space, lungs: list[Array], heart: Heart, rng: np.random.Generator) -> Iterator[Layer]:
    """Grow arteries and veins from each hilum: every branch bears two, a little thinner, until they are 1 mm wide."""
    for side, lung in zip((1, -1), lungs, strict=True):
        hilum = moved(np.array([side * 34, -4, 42 if side == 1 else 46]), (heart.centre[0] * 0.3, 0, 0))
        stack = []
        for way in _directions(side, rng):
            stack.append((hilum + rng.normal(0, 5, 3), way, 5.4, 44.0))
        while stack:
            start, way, radius, length = stack.pop()
            end = start + way * length
            bend = (start + end) / 2 + rng.normal(0, 0.07 * length, 3)
            part, distance = tube(at, [start, bend, end], [radius, 0.88 * radius, 0.74 * radius])
            if distance.size:
                yield layer(
                    "vessel", part, np.maximum(distance, part.piece(at, lung) + np.float32(1.5 if radius < 3.2 else -6))
                )
            if radius > 2.8:
                for _ in range(2):
                    turn = way + rng.normal(0, 0.52, 3)
                    stack.append((end, turn / np.linalg.norm(turn), radius * 0.71, length * rng.uniform(0.6, 0.82)))


def _twigs(at: Space, lungs: list[Array], rng: np.random.Generator) -> Iterator[Layer]:
    """Fill the lungs with small vessels: where two random fields cross zero together they trace wandering threads."""
    lung = np.minimum(lungs[0], lungs[1])
    for scale in (24.0, 15.0):
        fields = (field(at.grid, rng, scale)[at.box] for _ in range(2))
        threads = np.hypot(*fields) * np.float32(0.62 * scale)
        yield layer("vessel", at, np.maximum(threads - np.float32(0.075 * scale), lung + 6))


def _directions(side: int, rng: np.random.Generator) -> np.ndarray:
    ways = np.array(
        [
            [0.55, 0.6, 0.5],
            [0.6, -0.5, 0.55],
            [0.9, 0.35, -0.1],
            [0.85, -0.45, -0.1],
            [0.45, 0.45, -0.75],
            [0.5, -0.6, -0.65],
        ]
    )
    ways = ways * (side, 1, 1) + rng.normal(0, 0.16, (6, 3))
    return np.asarray(ways / np.linalg.norm(ways, axis=1, keepdims=True))


def _airways(at: Space, body: Build, rng: np.random.Generator) -> Iterator[Layer]:
    y = body.spine_y + 34
    wide = spread(rng, 8.5, 0.1)
    fork = np.array([2, y, 55]) + rng.normal(0, 2, 3)
    branches: list[tuple[list[Array], list[float | int]]] = [
        ([moved(fork, (2, 4, 90)), moved(fork, (0, 2, 30)), fork], [wide, wide, wide]),
        (
            [fork, moved(fork, (26, -4, -20)), moved(fork, (38, -8, -38)), moved(fork, (50, -20, -66))],
            [6.5, 6, 4.5, 2.6],
        ),
        (
            [fork, moved(fork, (-24, -2, -15)), moved(fork, (-44, -8, -28)), moved(fork, (-56, -22, -58))],
            [6, 5.5, 4.2, 2.4],
        ),
        ([moved(fork, (22, -3, -16)), moved(fork, (46, 2, -2)), moved(fork, (58, 6, 10))], [4, 3, 2]),
        ([moved(fork, (-30, -4, -18)), moved(fork, (-52, 8, -8)), moved(fork, (-62, 16, 2))], [4, 3, 2]),
    ]
    tubes = [tube(at, path, radii) for path, radii in branches]
    for part, distance in tubes:
        yield layer("muscle", part, distance - 2.0)
    for part, distance in tubes:
        yield layer("airway", part, distance)
    gullet = column(
        at, (-60.0, 0.0, 60.0, 150.0), (-16.0, -8.0, -6.0, -4.0), (y - 14, y - 16, y - 15, y - 14), (8, 7.5, 7, 7)
    )
    yield layer("gullet", *gullet)


def _tumour(at: Space, lungs: list[Array], labels: Labels, rng: np.random.Generator) -> Iterator[Layer]:
    """Put one spiculated mass into a lung, at a place where the lung is deep enough for it to show."""
    lung = lungs[int(rng.integers(2))]
    radius = rng.uniform(9, 24)
    depth = np.argwhere(lung < -min(radius, 0.6 * float(-lung.min())))
    corner = depth[int(rng.integers(len(depth)))]
    where = np.array([a[tuple(corner)] for a in (at.x, at.y, at.z)], dtype=float)
    near = at.near(where, 2.0 * radius + 8)
    mass = ellipsoid(near, where, radius * rng.uniform(0.75, 1.2, 3), angles=rng.uniform(-40, 40, 3))
    mass = ragged(near, mass, rng, scale_mm=max(8.0, 0.6 * radius), depth_mm=0.13 * radius + 0.8)
    within = near.piece(at, lung) - 2
    for _ in range(int(rng.integers(5, 13))):
        way = rng.normal(0, 1, 3)
        way *= radius * rng.uniform(1.4, 2.1) / np.linalg.norm(way)
        part, ray = tube(near, [where, where + way], [0.16 * radius + 1, 0.7])
        if ray.size:
            yield layer("nodule", part, np.maximum(ray, part.piece(near, within)), KEEP)
    yield layer("nodule", near, np.maximum(mass, within), labels.get("cancer", 0))
    if radius > 15 and rng.random() < 0.5:
        yield layer("necrosis", near, ellipsoid(near, where, (0.45 * radius,) * 3), KEEP, fade_mm=4)
