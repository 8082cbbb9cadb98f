"""Measure likeness and variety of a set of feature vectors by neighbourhoods: precision, recall, density, coverage.

In: two matrices, one row an image. Out: one number. A row's neighbourhood is the ball to its k-th nearest row of its own
set. Distances are computed a block of rows at a time, so that memory stays bounded.
"""

import numpy as np
from jaxtyping import Float64

from medvar_model.evaluation.metrics.distances import squared_distances

Rows = Float64[np.ndarray, "n features"]
OtherRows = Float64[np.ndarray, "m features"]

NEIGHBOURS = 5  # Naeem et al. 2020
MANIFOLD_NEIGHBOURS = 3  # Kynkaanniemi et al. 2019
BLOCK = 1024


def precision(real: Rows, fake: OtherRows) -> float:
    """Give the share of fake rows that lie in any real neighbourhood (k = 3): are samples like real images?

    Kynkaanniemi et al. 2019 (arXiv 1904.06991). In many dimensions even two sets of one distribution get about one half,
    so read it beside what real images get.
    """
    reach = _reach(real, MANIFOLD_NEIGHBOURS)
    inside = [(squared_distances(fake[i : i + BLOCK], real) <= reach).any(1) for i in range(0, len(fake), BLOCK)]
    return float(np.concatenate(inside).mean())


def recall(real: Rows, fake: OtherRows) -> float:
    """Give the share of real rows that lie in any fake neighbourhood (k = 3): are all real images met?"""
    return precision(fake, real)


def density(real: Rows, fake: OtherRows) -> float:
    """Give how many real neighbourhoods a fake row lies in, over k = 5: about 1 for sets of one distribution.

    Naeem et al. 2020 (arXiv 2002.09797): a real row's neighbourhood reaches to its k-th nearest real row.
    """
    reach = _reach(real, NEIGHBOURS)
    counts = [(squared_distances(fake[i : i + BLOCK], real) < reach).sum() for i in range(0, len(fake), BLOCK)]
    return float(sum(counts) / (NEIGHBOURS * len(fake)))


def coverage(real: Rows, fake: OtherRows) -> float:
    """Give the share of real neighbourhoods in which a fake row lies: 1 - 2^-k = 0.97 for equal sets of one distribution.

    It falls when the fakes lack variety, which the other distances hardly see.
    """
    reach = _reach(real, NEIGHBOURS)
    closest = [squared_distances(real[i : i + BLOCK], fake).min(1) for i in range(0, len(real), BLOCK)]
    return float((np.concatenate(closest) < reach).mean())


def _reach(rows: np.ndarray, k: int) -> np.ndarray:
    """Give each row's squared distance to its k-th nearest other row."""
    parts = []
    for start in range(0, len(rows), BLOCK):
        apart = squared_distances(rows[start : start + BLOCK], rows)
        apart[np.arange(len(apart)), start + np.arange(len(apart))] = 0  # itself comes first, whatever the rounding
        parts.append(np.partition(apart, k, axis=1)[:, k])
    return np.concatenate(parts)
