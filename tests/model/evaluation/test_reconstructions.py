"""How well slices come back: perceptual distances one by one, distances between the sets on pairs of the same patients."""

import numpy as np
import pytest
import torch

from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.evaluation.extractors import Extractor, clip, hand64, inception, radiomic
from medvar_model.evaluation.metrics import standardised
from medvar_model.evaluation.metrics.distances import frechet_distance, gaussian_distance
from medvar_model.evaluation.page_distances import reconstructions_html
from medvar_model.evaluation.reconstructions import (
    open_perceptual,
    perceptual_distances,
    reconstruction_distances,
    reconstruction_scores,
)
from medvar_model.loader import to_network
from medvar_model.training.perceptual import PerceptualDistance, vgg_trunk

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs():
    """Slices of 30 patients, five each, and what a coder that rounds to 32 levels and smooths would make of them."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (150, 16, 16)).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    drawn = (images // 8 * 8 // 2 + np.roll(images, 1, 2) // 2).astype(np.uint8)
    return images, drawn, [f"p{i // 5}" for i in range(150)]


def test_the_distance_is_the_set_metric_between_slices_and_their_own_reconstructions(pairs):
    images, drawn, patients = pairs
    (row,) = reconstruction_distances(images, drawn, patients, [hand64(), radiomic()], 6)
    wanted = frechet_distance(*standardised(hand64().of(images), hand64().of(drawn)))
    assert row["metric"] == "rfd_hand64"
    assert row["value"] == pytest.approx(wanted)
    assert row["low"] < row["value"] < row["high"]
    assert (row["n"], row["patients"], row["better"], row["warning"]) == (150, 30, "lower", "")
    html = reconstructions_html([row])
    assert "rfd_hand64" in html
    assert '<td class="number">30</td>' in html


def test_means_over_slices_have_intervals_over_patients(pairs):
    *_, patients = pairs
    values = np.repeat(np.random.default_rng(1).normal(30, 3, 30), 5)  # slices of one patient are alike
    scores = reconstruction_scores({"psnr": values, "lpips": values / 100}, patients, [], 40)
    assert [(s.metric, s.better, s.patients) for s in scores] == [("psnr", "higher", 30), ("lpips", "lower", 30)]
    assert scores[0].value == pytest.approx(values.mean())
    half = (scores[0].high - scores[0].low) / 2
    assert half == pytest.approx(1.96 * values[::5].std(ddof=1) / np.sqrt(30), rel=0.35)
    (none,) = reconstruction_scores({"psnr": np.full(150, np.inf)}, patients, [], 4)
    assert (none.value, none.low) == (None, None)
    assert "without any error" in none.warning


def test_names_follow_the_features(pairs):
    images, drawn, patients = pairs

    def of(images):
        return images[:, ::8, 0].astype(np.float64) / 255

    width = of(images).shape[1]
    named = [
        Extractor(n, width, of, False, True, {}, m)
        for n, m in (("inception", inception.METRICS), ("clip", clip.METRICS))
    ]
    rows = {row["metric"]: row["value"] for row in reconstruction_distances(images, drawn, patients, named, 0)}
    assert rows == pytest.approx(
        {"rfid": frechet_distance(of(images), of(drawn)), "rcmmd": gaussian_distance(of(images), of(drawn))}, abs=1e-9
    )


def test_an_interval_leaves_the_same_patients_out_of_both_sets(pairs):
    """Reconstructions without any loss are at distance 0 whoever is left out, though patients differ."""
    images, _, patients = pairs
    (row,) = reconstruction_distances(images, images, patients, [hand64()], 6)
    assert row["value"] == pytest.approx(0, abs=1e-6)
    assert row["high"] - row["low"] < 1e-6


def test_an_interval_is_over_patients_not_over_slices(pairs):
    """Slices of a patient that are alike say little more than one: five equal ones give a wider interval than five strangers."""
    images, drawn, patients = pairs
    alike, lossy = images[::5].repeat(5, 0), drawn[::5].repeat(5, 0)
    (over_patients,) = reconstruction_distances(alike, lossy, patients, [hand64()], 20)
    (over_slices,) = reconstruction_distances(alike, lossy, [str(i) for i in range(150)], [hand64()], 20)
    assert over_patients["value"] == over_slices["value"]
    assert over_patients["high"] - over_patients["low"] > 1.3 * (over_slices["high"] - over_slices["low"])


def test_too_few_slices_and_patients_are_said(pairs):
    images, drawn, patients = pairs
    (row,) = reconstruction_distances(images[:20], drawn[:20], patients[:20], [hand64()], 6)
    assert (row["value"], row["warning"]) == (None, "needs 130 images, has 20")
    assert "needs 130 images" in reconstructions_html([row])
    (row,) = reconstruction_distances(images, drawn, ["one"] * 150, [hand64()], 6)
    assert row["low"] is None
    assert row["warning"] == "no interval: 1 patients, wanted 10"
    assert reconstructions_html([]) == ""


def test_the_perceptual_distance_is_that_of_each_pair(pairs):
    images, drawn, _ = pairs
    torch.manual_seed(0)
    lpips = PerceptualDistance(vgg_trunk(shift_tolerant=False))
    found = perceptual_distances(lpips, "st-lpips", images[:18], drawn[:18], CPU)  # more than one batch
    assert list(found) == ["st_lpips"]
    each = [
        lpips(to_network(torch.from_numpy(a[None])), to_network(torch.from_numpy(b[None]))).item()
        for a, b in zip(images[:18], drawn[:18], strict=True)
    ]
    np.testing.assert_allclose(found["st_lpips"], each, rtol=1e-4)
    assert (found["st_lpips"] > 0).all()
    assert perceptual_distances(lpips, "lpips", images[:2], images[:2], CPU)["lpips"] == pytest.approx([0, 0], abs=1e-9)
    assert perceptual_distances(None, "none", images, drawn, CPU) == {}


@pytest.mark.parametrize(
    ("kind", "files", "error", "said"),
    [
        ("ssim", (), ConfigMismatch, "--perceptual is 'ssim'; wanted one of lpips, st-lpips"),
        ("none", ("a.pth",), ConfigMismatch, "belong to --perceptual lpips, not to none"),
        ("lpips", (), MissingCheckpoint, "vgg16-397923af.pth .528 MB. and vgg.pth of https://github.com/richzhang"),
        ("lpips", ("nothing.pth",), MissingCheckpoint, "no weight file nothing.pth"),
    ],
)
def test_a_perceptual_distance_that_cannot_be_had_is_refused(kind, files, error, said):
    with pytest.raises(error, match=said):
        open_perceptual(kind, files)
