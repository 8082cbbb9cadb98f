"""Pick, among many scans, the few pairs that may show one scan, by nearest neighbours; `proof` then looks at their voxels.

In: thumbnails. Out: pairs. Parts of a scan are described by the absolute values of their low frequencies: flips do not change them,
and the six ways to permute the axes permute them. The whole of each scan, in six ways, is looked up among the parts of all others;
so a scan finds what it is a part of, and a part is found by its scan. Parts are measured along the edges of the scan, and a second
time along those of its content, which padding and a tighter crop leave where they are.
"""

import itertools

import faiss
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from medvar_data.shard.near_duplicates.parts import COARSE, WHOLE, coarse_parts, content_box, sample_whole_axes

WAVES = 4  # frequencies along each axis, constants included
DIMENSIONS = 32  # that are left of their WAVES ** 3
MOST = 4  # candidates that each scan names
NEIGHBOURS = 96  # parts that are looked at for each whole
ALL_COMPARED = 20_000  # parts, up to which no index is made
CELLS_LOOKED_AT = 16  # of the index
FITTED_ON = 20_000  # parts, of which the directions of largest variance are found
BATCH = 500  # scans that are looked up together
Descriptions = Float32[np.ndarray, "parts waves"]


def describe(thumbnail: UInt8[np.ndarray, "a b c"]) -> Descriptions:
    """Describe a scan: the five wholes first (by its edges, by its content, by its content but for one axis), then its parts."""
    volume = thumbnail.astype(np.float32)
    content = content_box(volume)
    by_edges, by_content = coarse_parts(volume, WHOLE), coarse_parts(volume, content)
    but_one = sample_whole_axes(volume, content)
    parts = np.concatenate([by_edges[:1], by_content[:1], but_one, by_edges[1:], by_content[1:]])
    angles = np.pi * np.outer(np.arange(WAVES), (np.arange(COARSE) + 0.5) / COARSE)
    basis = (np.cos(angles) * np.sqrt(2 / COARSE)).astype(np.float32)
    cells = parts.reshape(-1, COARSE, COARSE, COARSE)
    for _ in range(3):  # each takes the first axis of cells, and puts its waves last
        cells = np.tensordot(cells, basis, ((1,), (1,)))
    square = np.arange(WAVES) ** 2
    weights = np.sqrt(square[:, None, None] + square[:, None] + square).astype(np.float32)
    return (np.abs(cells) * weights).reshape(len(parts), -1)


WHOLES = 5


def find_candidates(
    described: Float32[np.ndarray, "scans parts waves"], groups: Int64[np.ndarray, " scans"]
) -> list[tuple[int, int]]:
    """Pairs of scans of different groups, each named by one of the two as among the `MOST` that are most like it.

    Args:
        described: of `describe`, scan by scan.
        groups: a number of each scan; those with the same need no comparison.

    Returns:
        Pairs in rising order, the smaller number first.
    """
    n_scans, n_parts, _ = described.shape
    if n_scans < 2:
        return []
    rows = described.reshape(n_scans * n_parts, -1)
    centre, axes = _directions(rows)
    index = _index(np.ascontiguousarray((rows - centre) @ axes))
    pairs = set()
    for start in range(0, n_scans, BATCH):
        wholes = _permuted(described[start : start + BATCH, :WHOLES])
        queries = np.ascontiguousarray((wholes.reshape(-1, rows.shape[1]) - centre) @ axes)
        distances, found = index.search(queries, min(NEIGHBOURS, len(rows)))
        shape = (len(wholes), -1)
        for scan, (far, part) in enumerate(zip(distances.reshape(shape), found.reshape(shape), strict=True), start):
            owners = part[np.argsort(far, kind="stable")] // n_parts
            others = owners[(owners >= 0) & (groups[owners] != groups[scan])]
            _, first = np.unique(others, return_index=True)
            pairs |= {(min(scan, int(b)), max(scan, int(b))) for b in others[np.sort(first)[:MOST]]}
    return sorted(pairs)


def _directions(rows: Descriptions) -> tuple[Float32[np.ndarray, " waves"], Float32[np.ndarray, "waves d"]]:
    """Mean of descriptions, and the directions in which they vary most."""
    some = rows[:: max(1, len(rows) // FITTED_ON)]
    centre = some.mean(axis=0)
    return centre, np.linalg.svd(some - centre, full_matrices=False)[2][:DIMENSIONS].T


def _index(rows: Float32[np.ndarray, "parts d"]) -> faiss.Index:
    """An index of parts by Euclidean distance; exact where there are few."""
    exact = faiss.IndexFlatL2(rows.shape[1])
    if len(rows) <= ALL_COMPARED:
        exact.add(rows)
        return exact
    index = faiss.IndexIVFFlat(exact, rows.shape[1], int(4 * np.sqrt(len(rows))))
    index.nprobe = CELLS_LOOKED_AT
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = 8, 64, 1
    index.train(rows)
    index.add(rows)
    return index


def _permuted(wholes: Float32[np.ndarray, "n w waves"]) -> Float32[np.ndarray, "n _ waves"]:
    """Each description as it is with the axes permuted in all six ways."""
    waves = wholes.reshape(-1, WAVES, WAVES, WAVES)
    ways = [waves.transpose(0, *(1 + axis for axis in axes)) for axes in itertools.permutations(range(3))]
    return np.stack(ways, axis=1).reshape(len(wholes), -1, wholes.shape[2])
