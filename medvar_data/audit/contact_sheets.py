"""Lay slices out as contact sheets: one PNG a collection, masks as coloured outlines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from medvar_data.shardset.dataset import PAIR_COLUMNS, codec_of, read_pair, read_table
from medvar_data.storage.store import Store, write_bytes

COLUMNS = 8
GAP = 4
MIN_TILE = 128  # smaller slices are enlarged without smoothing
PALETTE = (
    (80, 200, 255),
    (90, 230, 120),
    (255, 140, 80),
    (220, 120, 255),
    (80, 120, 255),
    (255, 220, 90),
    (150, 255, 230),
    (255, 140, 180),
    (160, 200, 0),
    (70, 70, 255),
    (120, 160, 200),
)
READ = [*PAIR_COLUMNS, "collection", "case", "sequence", "z"]


@dataclass(frozen=True)
class Sheet:
    """A finished contact sheet."""

    collection: str
    path: Path
    n_slices: int


def contact_sheets(store: Store, folder: Path, tiles: int = 24) -> list[Sheet]:
    """Write one sheet a collection: slices of different cases and sequences first, evenly through the body."""
    codec, rows = codec_of(store), read_table(store, "slices.parquet", columns=READ).to_pylist()
    by_collection: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_collection.setdefault(row["collection"], []).append(row)
    sheets = []
    for name, members in sorted(by_collection.items()):
        chosen = choose(members, tiles)
        pictures = [outlined(*read_pair(store, row, codec)) for row in chosen]
        path = folder / f"{name}.png"
        write_bytes(path, encode_colour(grid(pictures)))
        sheets.append(Sheet(name, path, len(chosen)))
    return sheets


def choose(rows: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Pick `n` slices that show a collection: different scans first, then other heights of the same scans.

    The first round takes the middle slice of evenly chosen scans; later rounds go up and down from there.
    """
    scans: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["case"], r["z"])):
        scans.setdefault((row["case"], row["sequence"]), []).append(row)
    members = [scans[name] for name in sorted(scans)]
    members = [members[round(i)] for i in np.linspace(0, len(members) - 1, min(n, len(members)))]
    rounds = -(-n // len(members))
    heights = [0.5 + 0.7 * ((i + 1) // 2) * (-1) ** i / rounds for i in range(rounds)]
    picked = [scan[min(len(scan) - 1, int(height * len(scan)))] for height in heights for scan in members]
    return list({row["key"]: row for row in picked}.values())[:n]


def outlined(image: UInt8[np.ndarray, "s s"], mask: UInt8[np.ndarray, "s s"]) -> UInt8[np.ndarray, "t t 3"]:
    """Draw the borders of the mask's labels over the image, in colour (BGR)."""
    scale = max(1, -(-MIN_TILE // image.shape[0]))
    picture = cv2.cvtColor(np.kron(image, np.ones((scale, scale), dtype=np.uint8)), cv2.COLOR_GRAY2BGR)
    large = np.kron(mask, np.ones((scale, scale), dtype=np.uint8))
    for value in np.unique(large[large > 0]):
        contours, _ = cv2.findContours((large == value).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, PALETTE[int(value) % len(PALETTE)], 1)
    return picture


def grid(pictures: Sequence[UInt8[np.ndarray, "t t 3"]], columns: int = COLUMNS) -> UInt8[np.ndarray, "h w 3"]:
    """Lay equal pictures out in rows, dark gaps between them."""
    side = pictures[0].shape[0]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (side + GAP) + GAP, columns * (side + GAP) + GAP, 3), 24, dtype=np.uint8)
    for n, picture in enumerate(pictures):
        top, left = (GAP + (n // columns) * (side + GAP), GAP + (n % columns) * (side + GAP))
        sheet[top : top + side, left : left + side] = picture
    return sheet


def encode_colour(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode a BGR picture as PNG."""
    ok, data = cv2.imencode(".png", picture)
    assert ok, "cv2 refused a colour picture"
    return data.tobytes()
