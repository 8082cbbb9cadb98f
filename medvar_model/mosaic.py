"""Lay images side by side as one PNG for people to look at.

In: 8-bit grey images. Out: bytes of a PNG.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

GAP = 2  # pixels between images, white
TILE = 128  # shown side of an image
ACROSS = 8  # images in a row of a labelled grid
LABEL = 24  # height of a row of text, in pixels


def mosaic(rows: Sequence[UInt8[np.ndarray, "_ side side"]], tile: int = TILE) -> bytes:
    """Draw a grid, one row after the other; rows may differ in length.

    Args:
        rows: stacks of images of one side.
        tile: side that each image is shown at.
    """
    return bytes(cv2.imencode(".png", _sheet(rows, tile))[1])


def _sheet(rows: Sequence[UInt8[np.ndarray, "_ side side"]], tile: int) -> UInt8[np.ndarray, "height width"]:
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (tile + GAP) - GAP, columns * (tile + GAP) - GAP), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (tile + GAP), j * (tile + GAP)
            way = cv2.INTER_AREA if tile < image.shape[0] else cv2.INTER_CUBIC
            sheet[top : top + tile, left : left + tile] = cv2.resize(image, (tile, tile), interpolation=way)
    return sheet


def labelled_grid(rows: Sequence[tuple[str, UInt8[np.ndarray, "_ side side"]]], across: int = ACROSS) -> bytes:
    """Draw a grid for people to look at: above each stack its name, then its images, so many in a row.

    Args:
        rows: names, each with a stack of images; all of one side.
        across: most images beside each other.
    """
    strips = []
    width = min(across, max(len(stack) for _, stack in rows)) * (TILE + GAP)
    for name, stack in rows:
        strip = np.full((LABEL, width), 255, dtype=np.uint8)
        cv2.putText(strip, name, (2, LABEL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 0, 1, cv2.LINE_AA)
        strips.append(strip)
        lines = [stack[first : first + across] for first in range(0, len(stack), across)]
        drawn = _sheet(lines, TILE)
        sheet = np.full((drawn.shape[0] + GAP, width), 255, dtype=np.uint8)
        sheet[: drawn.shape[0], : drawn.shape[1]] = drawn
        strips.append(sheet)
    return bytes(cv2.imencode(".png", np.concatenate(strips))[1])


def spread_out(count: int, most: int) -> list[int]:
    """Choose at most so many places of a row, evenly spread."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, most)).round()] if count else []
