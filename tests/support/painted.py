"""Paint what a phantom holds: a body in air, and a block for each label value at a place and of a brightness of its own.

In: how a collection stores its scans (`styles.StorageStyle`). Out: arrays whose axes run Right, Anterior, Superior. A flip, an
exchanged axis, value, channel, frame or sequence puts a block where it does not belong, or gives it another's brightness.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from support.storage_styles import StorageStyle

ACROSS, DOWN = 56, 48  # voxels in the acquired plane
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # -> the canonical axis that runs through the plane
FEW, MANY = (2, 2), (4, 3)  # blocks across and down in one layer, for up to 12 values and for up to 36
LAYERS = 3
MOST_VALUES = LAYERS * MANY[0] * MANY[1]


def shape_of(style: StorageStyle) -> tuple[int, ...]:
    """Voxels along R, A, S."""
    shape = [ACROSS, DOWN]
    shape.insert(PLANES[style.plane], style.n_slices)
    return tuple(shape)


def spacing_of(style: StorageStyle) -> tuple[float, ...]:
    """Steps along R, A, S that the file tells."""
    steps = list(style.spacing_mm[:2])
    steps.insert(PLANES[style.plane], style.spacing_mm[2])
    return (1.0, 1.0, 1.0) if style.identity else tuple(float(step) for step in steps)


def cut_plane(style: StorageStyle) -> str:
    """The plane in which slices have to be cut."""
    return style.plane if style.native else "axial"


def paint_label(style: StorageStyle, values: Sequence[int], turn: int) -> np.ndarray:
    """Blocks that touch, in rows across and down the plane, then in layers of slices; `turn` rotates who is where."""
    label = np.zeros(shape_of(style), dtype=np.uint16)
    view = np.moveaxis(label, PLANES[cut_plane(style)], 2)
    across, down, depth = view.shape
    columns, rows = FEW if len(values) <= LAYERS * FEW[0] * FEW[1] else MANY
    width, height = max(1, int(0.7 * across) // columns), max(1, int(0.66 * down) // rows)
    thick, first = max(1, (depth - 2) // LAYERS), 1 if depth > LAYERS else 0
    for place in range(len(values)):
        layer, rest = divmod(place, columns * rows)
        row, column = divmod(rest, columns)
        i, j, k = round(0.15 * across) + column * width, round(0.17 * down) + row * height, first + layer * thick
        view[i : i + width, j : j + height, k : k + thick] = values[(place + turn) % len(values)]
    return label


def paint_image(style: StorageStyle, label: np.ndarray, name: str) -> np.ndarray:
    """A body with a little noise in air, in HU or the scanner's unit; `name` decides how bright each value is."""
    rng = np.random.default_rng(crc32(name.encode()))
    through = PLANES[cut_plane(style)]
    places = np.indices(label.shape)
    far = sum(((places[a] - (label.shape[a] - 1) / 2) / (0.46 * label.shape[a])) ** 2 for a in range(3) if a != through)
    values = np.unique(label[label > 0])
    looks = rng.permutation(len(values))
    noise = rng.integers(-3, 4, size=label.shape)
    air, tissue, low, span = (-1000, 30, -120, 320) if style.modality == "CT" else (6, 200, 260, 640)
    image = np.where(far <= 1, tissue + noise, air + abs(noise)).astype(np.float64)
    if style.modality == "CT":
        image[far > 2.1] = style.padding  # outside the circle of reconstruction
    elif style.padding == 0:
        image[far > 1] = 0  # skull-stripped
    for value, look in zip(values, looks, strict=True):
        image[label == value] = low + span * (look + 0.5) // len(values)
    return image * (1 if style.modality == "CT" else style.brightness)
