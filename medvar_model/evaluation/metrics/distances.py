"""Measure how far a set of feature vectors is from another: Frechet distance and kernel distances.

In: two matrices, one row an image. Out: one number. All of it is arithmetic in float64.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

Rows = Float64[np.ndarray, "n features"]
OtherRows = Float64[np.ndarray, "m features"]

KID_SUBSETS, KID_SIZE, KID_SEED = 100, 1000, 2020  # as torch-fidelity publishes KID
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al. 2024
SIZES = 10  # of subsets, when a distance is extrapolated
SMALLEST = 50  # rows of the smallest subset


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


def frechet_infinity(real: Rows, fake: OtherRows, seed: int = 0) -> float:
    """Extrapolate the Frechet distance to sets without end, so that sets of different sizes may be compared.

    Chong and Forsyth 2020 (arXiv 1911.07023): the distance of n rows overstates by about c / n. Both sets are cut to ten
    sizes, 1 / n evenly spread from all rows to a tenth of them (at least 50), without replacement; the line through the
    distances over 1 / n is read at 0. It may be slightly negative. NaN where there are fewer than 100 rows.
    """
    n = min(len(real), len(fake))
    if n < 2 * SMALLEST:
        return float("nan")
    draw = np.random.default_rng(seed)
    inverse = np.linspace(1 / n, 1 / max(SMALLEST, n // 10), SIZES)
    sizes = np.rint(1 / inverse).astype(np.int64)
    values = [frechet_distance(_some(real, size, draw), _some(fake, size, draw)) for size in sizes.tolist()]
    return float(np.polyfit(1 / sizes, values, 1)[1])


def kernel_distance(real: Rows, fake: OtherRows) -> float:
    """Give the unbiased squared maximum mean discrepancy for the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018 (there on Inception's features). Its expectation is 0 for sets of one distribution, whatever
    their size, so single values may be slightly negative.
    """
    return _discrepancy(_cubic, real, fake, unbiased=True)


def kernel_distance_of_subsets(
    real: Rows, fake: OtherRows, subsets: int = KID_SUBSETS, size: int = KID_SIZE, seed: int = KID_SEED
) -> tuple[float, float]:
    """Give mean and standard deviation of `kernel_distance` over random subsets, as torch-fidelity publishes KID.

    A subset is `size` rows of either set without replacement, or as many as the smaller set has. The deviation is the subsets', no
    standard error.
    """
    draw, size = np.random.RandomState(seed), min(size, len(real), len(fake))
    values = []
    for _ in range(subsets):
        first = real[draw.choice(len(real), size, replace=False)]
        values.append(kernel_distance(first, fake[draw.choice(len(fake), size, replace=False)]))
    return float(np.mean(values)), float(np.std(values))


def gaussian_distance(
    real: Rows, fake: OtherRows, sigma: float = CMMD_SIGMA, scale: float = CMMD_SCALE, unbiased: bool = False
) -> float:
    """Give the squared maximum mean discrepancy for exp(-|x - y|^2 / (2 sigma^2)), times `scale`: CMMD on CLIP's features.

    Jayasumana et al. 2024 (arXiv 2401.09603): rows of length 1, sigma 10, scale 1000, and the biased estimate, whose
    value for two sets of one distribution falls as 1 / n; the unbiased one is 0 on average.
    """

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-squared_distances(x, y) / (2 * sigma**2))

    return scale * _discrepancy(kernel, real, fake, unbiased)


def squared_distances(first: Rows, second: OtherRows) -> Float64[np.ndarray, "n m"]:
    """Give |x - y|^2 of every pair."""
    product = first @ second.T
    return np.maximum(np.square(first).sum(1)[:, None] - 2 * product + np.square(second).sum(1), 0)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _discrepancy(
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], real: np.ndarray, fake: np.ndarray, unbiased: bool
) -> float:
    """Give mean k(x, x') + mean k(y, y') - 2 mean k(x, y); unbiased leaves out pairs of a row with itself."""
    within = []
    for rows in (real, fake):
        values = kernel(rows, rows)
        n = len(rows)
        within.append((values.sum() - np.trace(values)) / (n * (n - 1)) if unbiased else values.mean())
    return float(sum(within) - 2 * kernel(real, fake).mean())


def _some(rows: np.ndarray, size: int, draw: np.random.Generator) -> np.ndarray:
    return rows[draw.choice(len(rows), min(size, len(rows)), replace=False)]


def _root(rows: np.ndarray) -> np.ndarray:
    """Give a matrix R with R^T R = the covariance, of no more rows than needed."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
