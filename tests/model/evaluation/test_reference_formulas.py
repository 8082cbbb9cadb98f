"""Every distance against another way to compute it: the published implementations' formulas, written down independently."""

import math

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from medvar_model.evaluation.metrics.distances import (
    frechet_distance,
    frechet_infinity,
    gaussian_distance,
    kernel_distance,
    kernel_distance_of_subsets,
)
from medvar_model.evaluation.metrics.efficiency import efficiency
from medvar_model.evaluation.metrics.intervals import interval
from medvar_model.evaluation.metrics.neighbourhoods import coverage, density, precision, recall

# MedVAR's Table 1: seconds an image, efficiency, FID.
TABLE_1 = {
    "StyleGAN-3": (0.01, 59.33, 102.27), "DDPM-S(10)": (0.17, 35.83, 46.84), "DDPM-S(20)": (0.31, 21.72, 26.90),
    "DDPM-S(30)": (0.48, 17.54, 20.94), "DDPM-S(50)": (0.78, 13.27, 15.24), "DDPM-S(100)": (1.55, 10.63, 11.63),
    "DDPM-L(10)": (0.17, 30.40, 39.79), "DDPM-L(20)": (0.32, 18.63, 23.02), "DDPM-L(30)": (0.48, 14.84, 17.70),
    "DDPM-L(50)": (0.78, 11.79, 13.55), "DDPM-L(100)": (1.55, 9.65, 10.56), "DiT-S(10)": (0.16, 68.63, 90.28),
    "DiT-S(20)": (0.29, 44.37, 55.30), "DiT-S(30)": (0.43, 33.49, 40.34), "DiT-S(50)": (0.71, 25.26, 29.23),
    "DiT-S(100)": (1.39, 18.92, 20.85), "DiT-L(10)": (0.27, 56.85, 71.30), "DiT-L(20)": (0.52, 33.02, 39.16),
    "DiT-L(30)": (0.76, 24.41, 28.09), "DiT-L(50)": (1.25, 17.58, 19.51), "DiT-L(100)": (2.43, 12.63, 13.44),
    "MedVAR-d16": (0.09, 11.94, 16.59), "MedVAR-d20": (0.11, 7.85, 10.70), "MedVAR-d24": (0.13, 7.54, 10.11),
    "MedVAR-d30": (0.16, 7.69, 10.11),
}  # fmt: skip


def rows(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng((seed, d))
    return scale * draw.normal(size=(n, d)) @ np.diag(1 / np.sqrt(1 + np.arange(d))) + shift


@pytest.mark.parametrize("name", TABLE_1)
def test_efficiency_gives_every_row_of_the_papers_table(name):
    seconds, printed, fid = TABLE_1[name]
    assert efficiency(fid, seconds) == pytest.approx(printed, abs=0.03)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 400, 40), (500, 450, 128), (64, 90, 100)])
def test_frechet_is_what_pytorch_fid_and_clean_fid_compute(n, m, d):
    """They take the matrix square root of the product of covariances (np.cov), real part; the last case has fewer rows than features."""
    real, fake = rows(n, d, 0), rows(m, d, 1, 1.3, 0.2)
    first, second = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = np.asarray(scipy.linalg.sqrtm(first @ second + 1e-12 * np.eye(d))).real
    wanted = np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(real, fake) == pytest.approx(wanted, rel=1e-3)


def test_frechet_is_what_torch_fidelity_computes():
    """Square roots of the eigenvalues of the product, real parts summed."""
    real, fake = rows(400, 64, 2), rows(300, 64, 3, 0.7, -0.1)
    first, second = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    trace = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    wanted = np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * trace
    assert frechet_distance(real, fake) == pytest.approx(wanted, rel=1e-3)


def test_frechet_of_equal_sets_is_zero_without_rounding_noise():
    real = rows(500, 200, 0)
    assert frechet_distance(real, real.copy()) < 1e-9 * np.trace(np.cov(real, rowvar=False))


def test_frechet_infinity_takes_the_bias_of_small_sets_away():
    """Two sets of one distribution: the truth is 0, the plain distance far above it."""
    plain, extrapolated = [], []
    for seed in range(6):
        real, fake = rows(600, 64, 10 + seed), rows(600, 64, 50 + seed)
        plain.append(frechet_distance(real, fake))
        extrapolated.append(frechet_infinity(real, fake))
    assert min(plain) > 0.05
    assert abs(np.mean(extrapolated)) < 0.15 * np.mean(plain)
    assert math.isnan(frechet_infinity(real[:60], fake))


def kid_pair_by_pair(real: np.ndarray, fake: np.ndarray) -> float:
    """Binkowski's estimate, summed over pairs one at a time."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    n, m = len(real), len(fake)
    same = sum(kernel(real[i], real[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(fake[i], fake[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same + other - 2 * sum(kernel(x, y) for x in real for y in fake) / (n * m)


def test_kid_is_the_published_formula():
    real, fake = rows(25, 6, 0), rows(30, 6, 1, 1.2, 0.1)
    assert kernel_distance(real, fake) == pytest.approx(kid_pair_by_pair(real, fake), abs=1e-5)


def test_kid_of_subsets_follows_torch_fidelitys_protocol():
    """100 subsets from RandomState(2020), real then fake, without replacement; gamma 1 / d, coefficient 1, degree 3."""
    real, fake = rows(80, 10, 0), rows(70, 10, 1, 1.1)
    draw, values = np.random.RandomState(2020), []
    for _ in range(100):
        x = real[draw.choice(80, 40, replace=False)]
        y = fake[draw.choice(70, 40, replace=False)]
        kxx, kyy, kxy = ((a @ b.T / 10 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = (kxx.sum() - np.diagonal(kxx).sum() + kyy.sum() - np.diagonal(kyy).sum()) / (40 * 39)
        values.append(within - 2 * kxy.mean())
    mean, deviation = kernel_distance_of_subsets(real, fake, size=40)
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values)), abs=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cmmd_is_the_published_formula(unbiased):
    """The repository of the paper's authors takes the biased estimate, sigma 10, times 1000, on rows of length 1."""
    real, fake = rows(60, 12, 0), rows(50, 12, 1, 1.0, 0.3)
    real, fake = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (real, fake))
    kxx, kyy, kxy = (np.exp(-cdist(a, b, "sqeuclidean") / 200) for a, b in ((real, real), (fake, fake), (real, fake)))
    if unbiased:
        wanted = (kxx.sum() - 60) / (60 * 59) + (kyy.sum() - 50) / (50 * 49) - 2 * kxy.mean()
    else:
        wanted = kxx.mean() + kyy.mean() - 2 * kxy.mean()
    assert gaussian_distance(real, fake, unbiased=unbiased) == pytest.approx(1000 * wanted, abs=1e-5)
    assert gaussian_distance(real, real.copy()) == pytest.approx(0, abs=1e-9)


def test_neighbourhoods_give_the_numbers_of_prdc():
    """prdc 0.2 printed these for the rows below; it takes a strict comparison in all four."""
    draw = np.random.RandomState(5)
    real = draw.normal(size=(200, 8))
    fake = 1.2 * draw.normal(size=(150, 8)) + 0.3
    assert density(real, fake) == pytest.approx(0.6293333333333333)
    assert coverage(real, fake) == pytest.approx(0.84)
    assert precision(real, fake) == pytest.approx(0.62)
    assert recall(real, fake) == pytest.approx(0.94)


def test_neighbourhoods_do_not_depend_on_the_blocks(monkeypatch):
    real, fake = rows(100, 5, 0), rows(90, 5, 1, 1.2)
    whole = [metric(real, fake) for metric in (density, coverage, precision, recall)]
    monkeypatch.setattr("medvar_model.evaluation.metrics.neighbourhoods.BLOCK", 7)
    assert [metric(real, fake) for metric in (density, coverage, precision, recall)] == pytest.approx(whole)


class TestIntervals:
    def test_they_hold_the_truth_where_slices_come_in_patients(self):
        """40 patients of 8 slices, a patient's slices nearly equal. An interval over slices would miss the truth mostly."""
        held = 0
        for seed in range(30):
            draw = np.random.default_rng(seed)
            patient = np.repeat(draw.normal(size=(40, 3)), 8, axis=0)
            real = patient + 0.1 * draw.normal(size=patient.shape)
            fake = draw.normal(size=(320, 3))
            groups = [str(i // 8) for i in range(320)]
            ends = interval(kernel_distance, (real, groups), (fake, [str(i) for i in range(320)]), 20, seed)
            held += ends[0] <= 0 <= ends[1]
        assert held >= 24  # of 30; 95 % would be 28.5

    def test_few_patients_give_none(self):
        x = rows(50, 3, 0)
        groups = [str(i % 9) for i in range(50)]
        assert interval(kernel_distance, (x, groups), (x, [str(i) for i in range(50)])) is None
        assert interval(kernel_distance, (x, [str(i) for i in range(50)]), (x, [str(i) for i in range(50)]), 0) is None
