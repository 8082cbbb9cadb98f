"""Label connected voxels and count them.

In: a mask or label ids. Out: `Components`, the one pass over the voxels that every cleanup step needs.
"""

from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt


@dataclass(frozen=True)
class Components:
    """Connected voxels of one value.

    Attributes:
        ids: [z, row, column]; 0 is background, components run from 1.
        n_voxels: of each id.
        run_starts: flat index where each run of equal ids begins.
        run_ids: id of each run.
    """

    ids: UInt[np.ndarray, "z h w"]
    n_voxels: Int64[np.ndarray, " components"]
    run_starts: Int64[np.ndarray, " runs"]
    run_ids: UInt[np.ndarray, " runs"]

    def one_voxel(self) -> Int64[np.ndarray, " components"]:
        """Flat index of a voxel of each id."""
        found = np.zeros(len(self.n_voxels), dtype=np.int64)
        found[self.run_ids] = self.run_starts
        return found

    def voxels_of(self, chosen: Bool[np.ndarray, " components"]) -> Int64[np.ndarray, " voxels"]:
        """Flat indices of every voxel of the chosen ids."""
        runs = np.flatnonzero(chosen[self.run_ids])
        lengths = np.diff(self.run_starts, append=self.ids.size)[runs]
        before = np.cumsum(lengths) - lengths
        return np.repeat(self.run_starts[runs] - before, lengths) + np.arange(int(lengths.sum()))


def label_components(mask: Shaped[np.ndarray, "z h w"], neighbours: Literal[6, 26]) -> Components:
    """Label the connected voxels of one value.

    They are counted by their runs in memory, of which there are far fewer than voxels.
    """
    if sorted(mask.shape)[1] == 1:  # cc3d 4.1 raises where one line of a boolean mask holds several components
        line = np.stack([mask.reshape(-1), np.zeros(mask.size, dtype=mask.dtype)])[None]
        ids = np.ascontiguousarray(cc3d.connected_components(line, connectivity=neighbours)[0, 0]).reshape(mask.shape)
    else:
        ids = cc3d.connected_components(mask, connectivity=neighbours)
    flat = ids.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    run_ids = flat[starts]
    n_voxels = np.bincount(run_ids, weights=np.diff(starts, append=flat.size)).astype(np.int64)
    return Components(ids, n_voxels, starts, run_ids)


def bounding_box(labels: Shaped[np.ndarray, "z h w"]) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds every voxel above 0; None where there is none."""
    used = np.flatnonzero(labels.max(axis=(1, 2)))
    if used.size == 0:
        return None
    z = slice(int(used[0]), int(used[-1]) + 1)
    shadow = labels[z].max(axis=0)
    rows, columns = np.flatnonzero(shadow.max(axis=1)), np.flatnonzero(shadow.max(axis=0))
    return z, slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
