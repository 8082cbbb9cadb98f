"""Laws of the metrics: zero on equal sets, closed forms, direction, audits that fire on copies and only then."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvar_model.evaluation.extractors import hand64
from medvar_model.evaluation.metrics import PAIRED, SETS, standardised
from medvar_model.evaluation.metrics.classify import condition_features, confusion, cross_validated, fit_classifier
from medvar_model.evaluation.metrics.distances import frechet_distance, kernel_distance
from medvar_model.evaluation.metrics.features import N_FEATURES, features, shrunk
from medvar_model.evaluation.metrics.nearest import Search, copy_audit, nearest, thumbnails, weighted_quantile
from medvar_model.evaluation.metrics.neighbourhoods import coverage, density
from medvar_model.evaluation.metrics.proportion import proportion
from medvar_model.evaluation.metrics.quality import MOST_DB, foreground_psnr, psnr, ssim

rng = np.random.default_rng


def blobs(n: int, kind: int, seed: int, side: int = 64) -> np.ndarray:
    """Pictures of one of three kinds: an ellipse whose place and size depend on the kind, with some noise."""
    draw = rng((seed, kind))
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    out = []
    for _ in range(n):
        y, x = draw.normal((0.2 * (kind - 1), 0), 0.04)
        inside = ((rows - y) / (0.15 + 0.05 * kind)) ** 2 + ((columns - x) / 0.2) ** 2 < 1
        out.append(np.clip(40 + 120 * inside + draw.normal(0, 8, inside.shape), 0, 255))
    return np.array(out).astype(np.uint8)


def noise(images: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    return np.clip(images + rng(seed).normal(0, strength, images.shape), 0, 255).astype(np.uint8)


def on_hand64(name: str, real: np.ndarray, fake: np.ndarray) -> float:
    return SETS[name].score(*standardised(hand64().of(real), hand64().of(fake)))


class TestEveryMetric:
    @pytest.mark.parametrize("name", PAIRED)
    def test_a_paired_one_prefers_the_image_itself_to_a_noisy_one(self, name):
        real = blobs(10, 1, seed=0)
        assert (PAIRED[name].score(real, real) > PAIRED[name].score(real, noise(real, 60))).all()

    @pytest.mark.parametrize("name", SETS)
    def test_one_of_sets_prefers_the_real_set_to_a_noisy_one(self, name):
        real, other = blobs(210, 1, seed=0), blobs(210, 1, seed=1)
        near, far = on_hand64(name, real, other), on_hand64(name, real, noise(other, 60))
        assert (near > far) if SETS[name].better == "higher" else (near < far)

    @pytest.mark.parametrize("name", [name for name in SETS if name != "fd_inf"])  # which draws subsets
    def test_one_of_sets_does_not_depend_on_the_order(self, name):
        real, fake = blobs(40, 1, 0), blobs(50, 1, 1)
        shuffled = fake[rng(3).permutation(len(fake))]
        assert on_hand64(name, real, fake) == pytest.approx(on_hand64(name, real, shuffled), rel=1e-9, abs=1e-9)


class TestFrechet:
    def test_equal_sets_are_at_distance_zero_with_more_and_with_fewer_rows_than_features(self):
        for n in (10, 200):
            rows = rng(0).normal(size=(n, 30))
            assert frechet_distance(rows, rows.copy()) < 1e-12 * 30

    @given(seed=st.integers(0, 1000))
    @settings(max_examples=10, deadline=None)
    def test_it_matches_the_closed_form_of_gaussians_with_axes_in_common(self, seed):
        """|m1 - m2|^2 + sum (s1 - s2)^2, on rows made to have exactly those means and deviations."""
        draw = rng(seed)
        whitened, _ = np.linalg.qr(draw.normal(size=(50, 5)) - 0)
        whitened = whitened - whitened.mean(0)
        basis, _ = np.linalg.qr(whitened)
        unit = basis * np.sqrt(49)  # mean 0, covariance the identity
        s1, s2, shift = draw.uniform(0.5, 3, 5), draw.uniform(0.5, 3, 5), draw.normal(size=5)
        turn, _ = np.linalg.qr(draw.normal(size=(5, 5)))
        wanted = np.square(shift).sum() + np.square(s1 - s2).sum()
        first, second = (unit * s1) @ turn, (unit[::-1] * s2 + shift) @ turn
        assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-9)

    def test_it_is_symmetric(self):
        a, b = rng(0).normal(size=(20, 8)), rng(1).normal(size=(33, 8)) * 2
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


class TestOtherDistances:
    def test_the_kernel_distance_is_unbiased(self):
        """Its mean over small sets of one distribution is 0; the biased estimate's would be above 1."""
        values = [
            kernel_distance(rng((i, 0)).normal(size=(20, 4)), rng((i, 1)).normal(size=(20, 4))) for i in range(300)
        ]
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))

    def test_the_kernel_distance_by_hand(self):
        real, fake = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0]])
        within_real, within_fake = (0 * 1 + 1) ** 3, (2 * 0 + 1) ** 3
        between = np.mean([(x * y + 1) ** 3 for x in (0, 1) for y in (2, 0)])
        assert kernel_distance(real, fake) == pytest.approx(within_real + within_fake - 2 * between)

    def test_coverage_and_density_of_one_distribution(self):
        real, fake = rng(0).normal(size=(2000, 4)), rng(1).normal(size=(2000, 4))
        assert coverage(real, fake) == pytest.approx(1 - 2**-5, abs=0.02)
        assert density(real, fake) == pytest.approx(1, abs=0.05)

    def test_coverage_falls_when_samples_repeat_one_image_and_density_does_not(self):
        real = rng(0).normal(size=(200, 4))
        one = np.repeat(real[:1] * 0, 200, axis=0) + 1e-6 * rng(1).normal(size=(200, 4))
        assert coverage(real, one) < 0.2
        assert density(real, one) > 0.9


class TestFeatures:
    def test_their_number_and_that_they_see_each_thing_they_name(self):
        flat = np.full((1, 64, 64), 128, np.uint8)
        half = flat.copy()
        half[:, :32] = 0
        stripes = flat.copy()
        stripes[:, :, ::2] = 0
        base, top, fine = (features(x)[0] for x in (flat, half, stripes))
        assert base.shape == (N_FEATURES,)
        np.testing.assert_allclose(base[:16], 128 / 255)
        np.testing.assert_allclose(top[:16], [0] * 8 + [128 / 255] * 8)
        np.testing.assert_allclose(base[16:32], 0)
        np.testing.assert_allclose(fine[16:32], 64 / 255)
        np.testing.assert_allclose(base[32:40] ** 2, [0, 0, 0, 0, 1, 0, 0, 0])
        np.testing.assert_allclose((top[32:40] ** 2)[[0, 4]], 0.5)
        assert top[40:56].reshape(4, 4).sum(0).argmax() == 2  # a horizontal edge: the gradient runs down
        assert (fine - base)[56:].argmax() >= 6  # stripes of two pixels are fine texture

    def test_the_side_hardly_matters(self):
        small = blobs(4, 1, 0, side=64)
        large = np.repeat(np.repeat(small, 4, axis=1), 4, axis=2)
        np.testing.assert_allclose(features(large), features(small), atol=1e-9)

    def test_averaging_to_a_smaller_side(self):
        image = np.array([[[0, 2], [4, 6]]], np.uint8)
        assert shrunk(image, 1).item() == 3


class TestQuality:
    def test_psnr_of_a_known_error(self):
        real = np.full((2, 16, 16), 100, np.uint8)
        fake = real + np.array([1, 10], np.uint8)[:, None, None]
        np.testing.assert_allclose(psnr(real, fake), [10 * np.log10(255**2), 10 * np.log10(255**2 / 100)])

    def test_equal_images(self):
        image = blobs(2, 1, 0)
        assert list(psnr(image, image)) == [MOST_DB] * 2
        np.testing.assert_allclose(ssim(image, image), 1)

    def test_the_foreground_alone_counts(self):
        real = np.zeros((1, 16, 16), np.uint8)
        real[:, :4] = 200
        wrong_air, wrong_tissue = real.copy(), real.copy()
        wrong_air[:, 8:] = 10
        wrong_tissue[:, :4] = 190
        assert foreground_psnr(real, wrong_air)[0] == MOST_DB
        assert foreground_psnr(real, wrong_tissue)[0] == pytest.approx(10 * np.log10(255**2 / 100))
        assert np.isnan(foreground_psnr(np.zeros_like(real), real)[0])


class TestCopies:
    def test_the_search_in_parts_equals_the_search_at_once_and_brute_force(self):
        queries, training = thumbnails(blobs(7, 1, 0)), thumbnails(blobs(50, 1, 1))
        apart = np.sqrt(((queries[:, None].astype(float) - training[None]) ** 2).mean((2, 3)))
        at_once = nearest(queries, training)
        parts = Search(queries)
        for start in range(0, 50, 8):
            parts.see(training[start : start + 8])
        np.testing.assert_array_equal(at_once.index, apart.argmin(1))
        np.testing.assert_allclose(at_once.distance, apart.min(1))
        np.testing.assert_array_equal(parts.nearest.index, at_once.index)

    def test_copies_are_found_and_fresh_images_are_not_accused(self):
        training, held_out = thumbnails(blobs(300, 1, 0)), thumbnails(blobs(300, 1, 1))
        fresh, copies = thumbnails(blobs(300, 1, 2)), thumbnails(noise(blobs(300, 1, 0), 2))
        kind = ["a"] * 300
        theirs = nearest(held_out, training).distance
        honest = copy_audit(nearest(fresh, training).distance, kind, theirs, kind)
        guilty = copy_audit(nearest(copies, training).distance, kind, theirs, kind)
        assert honest.closer.low <= 0.01
        assert honest.closer.share < 0.04
        assert guilty.closer.share > 0.95

    def test_by_construction_a_share_alpha_of_the_held_out_lies_below(self):
        theirs = rng(0).permutation(np.arange(1000.0))
        audit = copy_audit(theirs, ["a"] * 1000, theirs, ["a"] * 1000, alpha=0.05)
        assert audit.closer.share == pytest.approx(0.05, abs=0.0011)

    def test_conditions_weigh_as_among_the_samples(self):
        """Dark slices are close to everything; having more of them among the samples is not copying."""
        theirs, kinds = np.concatenate([np.arange(10.0) + 1, np.arange(990.0) + 100]), ["dark"] * 10 + ["bright"] * 990
        audit = copy_audit(np.arange(10.0) + 1, ["dark"] * 10, theirs, kinds, alpha=0.1)
        assert audit.closer.hits == 0
        assert audit.threshold == 1

    def test_conditions_without_held_out_slices_are_counted_apart(self):
        audit = copy_audit(np.array([1.0, 2.0]), ["a", "b"], np.array([5.0]), ["a"])
        assert (audit.closer.n, audit.unscored) == (1, 1)
        assert copy_audit(np.array([1.0]), ["b"], np.array([5.0]), ["a"]).closer.n == 0

    def test_a_weighted_quantile_is_that_of_repeated_values(self):
        values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 5.0])
        repeated = np.repeat(values, weights.astype(int))
        for q in (0.01, 0.25, 0.26, 0.5, 0.9, 1.0):
            assert weighted_quantile(values, weights, q) == np.quantile(repeated, q, method="inverted_cdf")


class TestConditions:
    def test_it_names_what_it_was_shown_and_says_so_beforehand(self):
        names = ["low", "middle", "high"]
        images = np.concatenate([blobs(20, kind, 0) for kind in range(3)])
        truth = [name for name in names for _ in range(20)]
        rows = condition_features(images)
        crossed = cross_validated(rows, truth, [f"{name}-{i // 4}" for i, name in enumerate(truth)])
        drawn = condition_features(np.concatenate([blobs(10, kind, 5) for kind in range(3)]))
        named = fit_classifier(rows, truth).names_of(drawn)
        assert np.mean(np.array(crossed) == truth) > 0.9
        assert np.mean(np.array(named) == np.repeat(names, 10)) > 0.9

    def test_it_learns_nothing_from_names_without_meaning(self):
        rows = condition_features(blobs(60, 1, 0))
        truth = [f"{i % 2}" for i in range(60)]
        crossed = cross_validated(rows, truth, [str(i) for i in range(60)])
        assert 0.25 < np.mean(np.array(crossed) == truth) < 0.75

    def test_no_group_is_on_both_sides(self):
        """Groups that can be recognised by a number of their own tell nothing of other groups."""
        groups = [f"g{i // 10}" for i in range(100)]
        rows = np.eye(10)[[i // 10 for i in range(100)]]
        truth = [f"{(i // 10) % 2}" for i in range(100)]
        crossed = cross_validated(rows, truth, groups)
        assert np.mean(np.array(crossed) == truth) < 0.7

    def test_one_condition_alone_and_one_scan_alone(self):
        rows = condition_features(blobs(6, 1, 0))
        assert fit_classifier(rows, ["a"] * 6).names_of(rows) == ["a"] * 6
        assert cross_validated(rows, ["a"] * 6, ["scan"] * 6) == [""] * 6

    def test_confusion_counts(self):
        table = confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
        assert table.tolist() == [[1, 1], [0, 1]]


def test_wilson_interval_against_published_values():
    """Brown, Cai and DasGupta 2001 and hand calculation: 0 of 10 and 5 of 10 at 95 %."""
    assert proportion(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert (proportion(5, 10).low, proportion(5, 10).high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert proportion(0, 0).n == 0
