"""Measure how far a set of feature vectors is from another: Frechet, kernel, density, coverage.

In: two matrices, one row an image. Out: one number. All of it is arithmetic in float64.
"""

import numpy as np
from jaxtyping import Float64

Rows = Float64[np.ndarray, "n features"]
OtherRows = Float64[np.ndarray, "m features"]

NEIGHBOURS = 5  # Naeem et al. 2020


def frechet_distance(real: Rows, fake: OtherRows) -> float:
    """Give |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) of two Gaussians fitted to the rows.

    The last trace is the sum of the singular values of A B^T, where A and B are the centred rows over the square root
    of n - 1: S1 S2 = A^T A B^T B has the squares of those as eigenvalues. So nothing complex arises, and fewer rows
    than features are allowed; but the fewer rows, the more the distance overstates.
    """
    a, b = _root(real), _root(fake)
    shift = float(np.square(real.mean(0) - fake.mean(0)).sum())
    overlap = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return max(0.0, shift + float(np.square(a).sum() + np.square(b).sum()) - 2 * overlap)


def kernel_distance(real: Rows, fake: OtherRows) -> float:
    """Give the unbiased squared maximum mean discrepancy for the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018 (there on Inception's features). Its expectation is 0 for sets of one distribution, whatever
    their size, so single values may be slightly negative.
    """
    n, m, d = len(real), len(fake), real.shape[1]
    within_real = (real @ real.T / d + 1) ** 3
    within_fake = (fake @ fake.T / d + 1) ** 3
    between = (real @ fake.T / d + 1) ** 3
    same = (within_real.sum() - np.trace(within_real)) / (n * (n - 1))
    other = (within_fake.sum() - np.trace(within_fake)) / (m * (m - 1))
    return float(same + other - 2 * between.mean())


def density(real: Rows, fake: OtherRows) -> float:
    """Give how many real neighbourhoods a fake row lies in, over k: about 1 for sets of one distribution.

    Naeem et al. 2020: a real row's neighbourhood reaches to its k-th nearest real row.
    """
    reach_n, apart_nm = _neighbourhoods(real, fake)
    return float((apart_nm < reach_n[:, None]).sum() / (NEIGHBOURS * len(fake)))


def coverage(real: Rows, fake: OtherRows) -> float:
    """Give the share of real neighbourhoods in which a fake row lies: 1 - 2^-k = 0.97 for equal sets of one distribution.

    It falls when the fakes lack variety, which the other distances hardly see.
    """
    reach_n, apart_nm = _neighbourhoods(real, fake)
    return float((apart_nm.min(1) < reach_n).mean())


def squared_distances(first: Rows, second: OtherRows) -> Float64[np.ndarray, "n m"]:
    """Give |x - y|^2 of every pair."""
    product = first @ second.T
    return np.maximum(np.square(first).sum(1)[:, None] - 2 * product + np.square(second).sum(1), 0)


def _root(rows: np.ndarray) -> np.ndarray:
    """Give a matrix R with R^T R = the covariance, of no more rows than needed."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _neighbourhoods(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    within = squared_distances(real, real)
    np.fill_diagonal(within, 0)
    return np.partition(within, NEIGHBOURS, axis=1)[:, NEIGHBOURS], squared_distances(real, fake)
