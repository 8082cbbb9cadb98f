"""The nine kinds of scan: which anatomy, which scanner, which grid; and `synthesize`, which makes one patient.

In: the name of a cell, a patient's number, a seed. Out: a `Phantom`, the same for the same three on every call: volumes by
sequence and labels in R, A, S order, the affine, and the truth (volume and middle of every labelled structure).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, UInt16

from medvar_data.demo.phantoms import abdomen, brain, chest, cine, pelvis, spine
from medvar_data.demo.phantoms.scanner import Layer, ct_scan, mr_scan, paint
from medvar_data.demo.phantoms.shapes import Array, Grid, Real, Space, rotation, space, spread
from medvar_data.demo.phantoms.tissues import ct_table, mr_table


@dataclass(frozen=True)
class Phantom:
    """One synthetic scan with its truth.

    Attributes:
        cell: name of the kind of scan.
        patient: number of the patient.
        volumes: by sequence; float32 [i, j, k] = R A S, HU for CT, arbitrary units of at least 0 for MR.
        label: uint16 [i, j, k], values as in the cell's `labels`.
        affine: index to millimetres, RAS+; may be a few degrees oblique.
        truth: volume of every structure in view, in mm3.
        centres_mm: middle of every structure in view, RAS+ millimetres.
        notes: facts that a collection publishes beside the images (diagnostic group, kind of sequence, plane).
    """

    cell: str
    patient: int
    volumes: Mapping[str, Float32[np.ndarray, "i j k"]]
    label: UInt16[np.ndarray, "i j k"]
    affine: Float64[np.ndarray, "4 4"]
    truth: Mapping[str, float]
    centres_mm: Mapping[str, tuple[Real, Real, Real]]
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Scene:
    """What an anatomy hands to the scanner: layers to paint, and where signal survives skull stripping."""

    layers: Iterator[Layer]
    outline: Array | None = None


@dataclass(frozen=True)
class Cell:
    """One kind of scan: an anatomy in a modality.

    Attributes:
        region: part of the body.
        modality: "CT" or "MR".
        labels: structure -> value in `Phantom.label`.
        sequences: published name of the sequence -> signal table; CT has the one sequence "ct".
        shape: voxels along R, A, S before variation.
        spacing_mm: their distances.
        centre_mm: what lies in the middle of the stack.
        scene: paints the anatomy.
        tilt: largest obliquity of the grid in degrees, which the affine tells.
        pose: how the patient lies, degrees about x, y, z (one sigma), which no header tells.
        warp_mm: strength of the deformation that tells patients apart.
        noise: HU for CT, a fraction of the brightest tissue for MR.
        bias: strength of the receive field (MR).
        circle: CT values outside the circle of reconstruction are -1024.
        one_of: draw one of the sequences for each patient instead of measuring all.
    """

    region: str
    modality: str
    labels: Mapping[str, int]
    sequences: Mapping[str, str]
    shape: tuple[int, int, int]
    spacing_mm: tuple[Real, Real, Real]
    centre_mm: tuple[Real, Real, Real]
    scene: Callable[[Space, "Cell", float, Mapping[str, str], np.random.Generator], Scene]
    tilt: Real = 0.0
    warp_mm: Real = 2.5
    noise: Real = 0.02
    bias: Real = 0.2
    pose: tuple[Real, Real, Real] = (1.5, 1.0, 2.5)
    circle: bool = False
    one_of: bool = False
    notes: Callable[[int, np.random.Generator], dict[str, str]] = field(default=lambda patient, rng: {})


def synthesize(cell: str, patient: int, seed: int, *, moment: Real = 0.0) -> Phantom:
    """Make one patient's scan.

    Args:
        cell: key of `CELLS`.
        patient: any number of at least 0; another number is another patient.
        seed: another seed is another population.
        moment: 0 to 1. The heart's phase from end diastole to end systole in "heart-mr"; a later visit with a grown
            tumour in "brain-mr"; other cells do not change.

    >>> synthesize("heart-mr", 0, 0).label.max()
    np.uint16(3)
    """
    kind = CELLS[cell]
    start = [seed, list(CELLS).index(cell), patient]
    rng = np.random.default_rng(start)
    notes = kind.notes(patient, rng)
    scanner = _grid(kind, notes, rng)
    grid = _posed(scanner, kind, rng)
    at = space(grid, rng, warp_mm=kind.warp_mm, warp_scale_mm=65.0)
    scene = kind.scene(at, kind, moment, notes, rng)
    chosen = dict(kind.sequences)
    if kind.one_of:
        name = str(rng.choice(list(chosen)))
        chosen = {name: chosen[name]}
    looks = np.random.default_rng([*start, 1])
    if kind.modality == "CT":
        painting = paint(scene.layers, grid, {"ct": ct_table(looks)}, rng, multiply=False)
        noise = np.random.default_rng([*start, 2, round(1000 * moment)])
        level = spread(looks, kind.noise, 0.3)
        volumes = {"ct": ct_scan(painting, grid, noise, noise_hu=level, circle=kind.circle)}
    else:
        tables = {name: mr_table(table, looks) for name, table in chosen.items()}
        painting = paint(scene.layers, grid, tables, rng, multiply=True)
        noise = np.random.default_rng([*start, 2, round(1000 * moment)])
        volumes = {}
        for name, signal in painting.signal.items():
            volume = mr_scan(
                signal, grid, noise, noise=spread(looks, kind.noise, 0.35), bias=kind.bias, scale=_scale(cell, looks)
            )
            if scene.outline is not None:
                volume = np.where(scene.outline < 0, np.maximum(volume, 1), 0).astype(np.float32)
            volumes[name] = volume
    truth, centres = _truth(painting.label, scanner, kind.labels)
    notes["sequence"] = ",".join(volumes)
    return Phantom(cell, patient, volumes, painting.label, scanner.affine, truth, centres, notes)


def _grid(kind: Cell, notes: Mapping[str, str], rng: np.random.Generator) -> Grid:
    """Draw a grid: spacing and matrix differ a little between patients, the stack may be tilted or coronal."""
    spacing = np.asarray(kind.spacing_mm) * (1 + 0.07 * rng.uniform(-1, 1, 2))[[0, 0, 1]]
    if kind.region == "spine" and kind.modality == "MR":
        spacing = spacing[[2, 0, 0]] * np.asarray(kind.spacing_mm) / np.asarray(kind.spacing_mm)[[2, 0, 0]]
    shape = np.asarray(kind.shape)
    if notes.get("plane") == "coronal":
        shape, spacing = shape[[0, 2, 1]], spacing[[0, 2, 1]]
        shape[1], shape[2] = 46, 64
    turn = rotation(rng.uniform(-1, 1, 3) * kind.tilt)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = np.asarray(kind.centre_mm) - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _posed(scanner: Grid, kind: Cell, rng: np.random.Generator) -> Grid:
    """Give the grid in the patient's own frame: the patient lies turned and shifted in the scanner."""
    motion = np.eye(4)
    motion[:3, :3] = rotation(np.clip(rng.standard_normal(3), -2, 2) * kind.pose)
    motion[:3, 3] = np.clip(rng.standard_normal(3), -2, 2) * (5, 4, 4)
    return Grid(scanner.shape, motion @ scanner.affine)


def _scale(cell: str, rng: np.random.Generator) -> float:
    """Draw what 1 becomes: scanners agree on nothing, and AMOS spans four orders of magnitude."""
    low, high = (2.3, 5.6) if cell == "abdomen-mr" else (2.4, 3.3)
    return float(10 ** rng.uniform(low, high))


def _truth(
    label: UInt16[np.ndarray, "i j k"], grid: Grid, labels: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, tuple[Real, Real, Real]]]:
    voxel_mm3 = float(abs(np.linalg.det(grid.affine[:3, :3])))
    names = {value: name for name, value in labels.items()}
    where = np.nonzero(label)
    values = label[where]
    truth: dict[str, float] = {}
    centres: dict[str, tuple[Real, Real, Real]] = {}
    for value in np.unique(values):
        chosen = values == value
        middle = grid.affine[:3, :3] @ [axis[chosen].mean() for axis in where] + grid.affine[:3, 3]
        truth[names[int(value)]] = float(chosen.sum()) * voxel_mm3
        centres[names[int(value)]] = (float(middle[0]), float(middle[1]), float(middle[2]))
    return truth, centres


def _brain(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    made = brain.brain(at, cell.labels, 1.0 + 0.35 * moment, rng)
    return Scene(made.layers, made.outline)


def _cine(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(cine.short_axis(at, cell.labels, moment, notes["group"], rng))


def _cine_notes(patient: int, rng: np.random.Generator) -> dict[str, str]:
    return {
        "group": cine.GROUPS[patient % len(cine.GROUPS)],
        "height": f"{rng.normal(171, 9):.1f}",
        "weight": f"{rng.normal(76, 13):.1f}",
    }


def _abdomen_ct(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(abdomen.abdomen(at, cell.labels, rng, table=True, masses=True))


def _abdomen_mr(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(abdomen.abdomen(at, cell.labels, rng, table=False, masses=False))


def _abdomen_mr_notes(patient: int, rng: np.random.Generator) -> dict[str, str]:
    return {"plane": "coronal" if patient % 8 == 2 else "axial"}


def _chest(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(chest.chest(at, cell.labels, rng))


def _heart_ct(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(chest.heart_ct(at, cell.labels, rng))


def _spine_ct(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(spine.spine_ct(at, rng))


def _spine_mr(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(spine.spine_mr(at, rng))


def _pelvis(at: Space, cell: Cell, moment: Real, notes: Mapping[str, str], rng: np.random.Generator) -> Scene:
    return Scene(pelvis.pelvis(at, cell.labels, rng))


_AMOS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "inferior vena cava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip
_VERSE = [f"{part}{n}" for part, count in (("C", 7), ("T", 12), ("L", 6)) for n in range(1, count + 1)]

CELLS: Mapping[str, Cell] = {
    "brain-mr": Cell(
        "brain", "MR", {"necrotic core": 1, "edema": 2, "enhancing tumour": 3},
        {"t1n": "t1n", "t1c": "t1c", "t2w": "t2w", "t2f": "t2f"},
        (112, 112, 26), (1.9, 1.9, 5.0), (0, -3, -2), _brain, warp_mm=2.0, bias=0.1, pose=(2.5, 1.5, 2.5),
    ),
    "heart-mr": Cell(
        "heart", "MR", {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}, {"cine": "cine"},
        (144, 152, 9), (1.55, 1.55, 9.0), (10, -8, 0), _cine, bias=0.25, pose=(0, 0, 11), notes=_cine_notes,
    ),
    "abdomen-ct": Cell(
        "abdomen", "CT", {"kidney": 1, "tumor": 2, "cyst": 3, "liver": 4}, {"ct": "ct"},
        (144, 144, 24), (2.6, 2.6, 5.0), (0, 0, 12), _abdomen_ct, noise=13, circle=True,
    ),
    "abdomen-mr": Cell(
        "abdomen", "MR", {name: value for value, name in enumerate(_AMOS, 1)},
        {"t1": "abdomen-t1", "t1-portal": "abdomen-t1-portal", "t2": "abdomen-t2"},
        (144, 120, 24), (2.6, 2.6, 5.0), (0, 0, 14), _abdomen_mr, tilt=4, bias=0.22, one_of=True, notes=_abdomen_mr_notes,
    ),
    "chest-ct": Cell(
        "chest", "CT", {"cancer": 1}, {"ct": "ct"},
        (144, 144, 26), (2.75, 2.75, 6.0), (0, 0, 30), _chest, noise=14, circle=True,
    ),
    "heart-ct": Cell(
        "heart", "CT",
        {
            "left ventricular myocardium": 205, "left atrium": 420, "left ventricle": 500, "right atrium": 550,
            "right ventricle": 600, "ascending aorta": 820, "pulmonary artery": 850,
        },
        {"ct": "ct"}, (128, 128, 30), (1.65, 1.65, 4.2), (-12, 8, 10), _heart_ct, tilt=5, noise=18,
    ),
    "spine-ct": Cell(
        "spine", "CT", {name: value for value, name in enumerate(_VERSE, 1)}, {"ct": "ct"},
        (112, 112, 40), (1.5, 1.5, 3.5), (0, -44, 0), _spine_ct, tilt=5, warp_mm=1.5, noise=18,
    ),
    "spine-mr": Cell(
        "spine", "MR",
        {f"vertebra {n}": n for n in range(1, 26)} | {"canal": 100} | {f"disc {n}": 200 + n for n in range(1, 26)},
        {"t1": "spine-t1", "t2": "spine-t2"},
        (15, 136, 168), (4.2, 1.5, 1.5), (0, -30, -6), _spine_mr, tilt=3, warp_mm=1.5,
    ),
    "prostate-mr": Cell(
        "prostate", "MR", {"PZ": 1, "TZ": 2}, {"t2": "pelvis-t2", "adc": "pelvis-adc"},
        (136, 136, 18), (1.2, 1.2, 3.6), (0, 0, 2), _pelvis, tilt=6, warp_mm=2.8, noise=0.025,
    ),
}  # fmt: skip
