"""Lay images side by side as one PNG for people to look at.

In: 8-bit grey images. Out: bytes of a PNG.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

GAP = 2  # pixels between images, white
TILE = 128  # shown side of an image


def mosaic(rows: Sequence[UInt8[np.ndarray, "n side side"]], tile: int = TILE) -> bytes:
    """Draw a grid, one row after the other; rows may differ in length.

    Args:
        rows: stacks of images of one side.
        tile: side that each image is shown at.
    """
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (tile + GAP) - GAP, columns * (tile + GAP) - GAP), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (tile + GAP), j * (tile + GAP)
            way = cv2.INTER_AREA if tile < image.shape[0] else cv2.INTER_CUBIC
            sheet[top : top + tile, left : left + tile] = cv2.resize(image, (tile, tile), interpolation=way)
    return bytes(cv2.imencode(".png", sheet)[1])


def spread_out(count: int, most: int) -> list[int]:
    """Choose at most so many places of a row, evenly spread."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, most)).round()] if count else []
