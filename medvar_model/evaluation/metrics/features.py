"""Describe an image by 64 fixed numbers that need no trained network: what the distances between sets stand on.

In: 8-bit images of any side, brought to 64 x 64. Out: float64, n x 64:

    0-15   mean grey of each of 4 x 4 cells                              where is tissue
    16-31  standard deviation of grey in each of 4 x 4 cells             where is structure
    32-39  square roots of an 8-bin histogram of grey                    how bright
    40-55  mean gradient in 4 directions, in each of 2 x 2 quarters      which way edges run
    56-63  root mean square of 8 rings of the cosine transform           how fine is the texture

Grey is in [0, 1]. The numbers see layout, brightness, edges and sharpness. They do not see meaning: an organ that is
missing, or a tumour in an impossible place, hardly moves them; and at 64 x 64 they are blind to finer detail. Distances
on them are good for comparing runs on the same set, and not comparable with published FID.
"""

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

SIDE = 64
N_FEATURES = 64
CELLS, BINS, QUARTERS, DIRECTIONS = 4, 8, 2, 4
RING_EDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 91.0)  # distance from the constant term; the last ends all

Images = UInt8[np.ndarray, "n side side"]


def features(images: Images) -> Float64[np.ndarray, "n 64"]:
    """Compute the numbers; see the head of the file."""
    parts = [_features(shrunk(images[start : start + 256], SIDE)) for start in range(0, len(images), 256)]
    return np.concatenate(parts) if parts else np.zeros((0, N_FEATURES))


def shrunk(images: Images, side: int) -> UInt8[np.ndarray, "n small small"]:
    """Average images to a smaller side (or enlarge them), rounding to 8 bits."""
    if images.shape[1] == side:
        return images
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.array(small, dtype=np.uint8).reshape(len(images), side, side)


def _features(images: np.ndarray) -> np.ndarray:
    grey = images.astype(np.float64) / 255
    cells = _cells(grey, CELLS)
    return np.hstack([cells.mean(2), cells.std(2), _histogram(images), _edges(grey), _rings(grey)])


def _cells(maps: np.ndarray, count: int) -> np.ndarray:
    """Cut maps into count x count cells: n, count^2, pixels of a cell."""
    n, side, _ = maps.shape
    step = side // count
    return maps.reshape(n, count, step, count, step).transpose(0, 1, 3, 2, 4).reshape(n, count * count, -1)


def _histogram(images: np.ndarray) -> np.ndarray:
    bins = (images >> 5).reshape(len(images), -1)
    return np.sqrt(np.stack([(bins == value).mean(1) for value in range(BINS)], axis=1))


def _edges(grey: np.ndarray) -> np.ndarray:
    """Sum central differences by direction (modulo half a turn, the first bin centred on vertical edges)."""
    down, right = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, right)
    turn = np.arctan2(down, right) / np.pi * DIRECTIONS  # (-4, 4]
    direction = np.rint(turn).astype(np.int64) % DIRECTIONS
    each = [_cells(np.where(direction == d, strength, 0), QUARTERS).mean(2) for d in range(DIRECTIONS)]
    return np.stack(each, axis=2).reshape(len(grey), -1)


def _rings(grey: np.ndarray) -> np.ndarray:
    order = np.arange(SIDE)
    basis = np.sqrt(2 / SIDE) * np.cos(np.pi / SIDE * (order[None] + 0.5) * order[:, None])
    basis[0] /= np.sqrt(2)
    energy = (basis @ grey @ basis.T) ** 2
    ring = np.digitize(np.hypot(order[:, None], order[None]), RING_EDGES)  # 0 is the constant term
    means = [energy[:, ring == number].mean(1) for number in range(1, len(RING_EDGES))]
    return np.sqrt(np.stack(means, axis=1))
