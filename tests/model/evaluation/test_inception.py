"""FID's Inception-v3 against the same network written a second time, with its published names, sizes and input."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.feature_weights import inception_convolutions, inception_layers, saved_as_published

from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.evaluation.extractors import extractor, inception
from medvar_model.evaluation.extractors.inception import PUBLISHED, Inception, fid_input
from medvar_model.evaluation.extractors.weights import fill, find_weights

CPU, W = torch.device("cpu"), Path("w.pth")


@pytest.fixture(scope="module")
def layers():
    return inception_layers()


def filled(layers, pooling):
    network = Inception(pooling).eval()
    fill(network, layers, W, PUBLISHED)
    return network


def spelled_out(layers, x, average, last):
    """Inception-v3 from its published names: one line a branch. `average` pools in the blocks, `last` in Mixed_7c."""

    def conv(x, name, stride=1, padding=0):
        y = F.conv2d(x, layers[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, var, gain, shift = (
            layers[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((y - mean) / (var + 1e-3).sqrt() * gain + shift).clamp(min=0)

    wide, high = (0, 3), (3, 0)
    x = conv(x, "Conv2d_1a_3x3", 2)
    x = conv(conv(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", 1, 1)
    x = conv(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1")
    x = F.max_pool2d(conv(x, "Conv2d_4a_3x3"), 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = conv(conv(x, f"{b}.branch5x5_1"), f"{b}.branch5x5_2", 1, 2)
        three = conv(conv(conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", 1, 1), f"{b}.branch3x3dbl_3", 1, 1)
        x = torch.cat([conv(x, f"{b}.branch1x1"), five, three, conv(average(x), f"{b}.branch_pool")], 1)
    b = "Mixed_6a"
    three = conv(conv(conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", 1, 1), f"{b}.branch3x3dbl_3", 2)
    x = torch.cat([conv(x, f"{b}.branch3x3", 2), three, F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven = conv(conv(conv(x, f"{b}.branch7x7_1"), f"{b}.branch7x7_2", 1, wide), f"{b}.branch7x7_3", 1, high)
        double = conv(x, f"{b}.branch7x7dbl_1")
        for i, padding in ((2, high), (3, wide), (4, high), (5, wide)):
            double = conv(double, f"{b}.branch7x7dbl_{i}", 1, padding)
        x = torch.cat([conv(x, f"{b}.branch1x1"), seven, double, conv(average(x), f"{b}.branch_pool")], 1)
    b = "Mixed_7a"
    three = conv(conv(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", 2)
    seven = conv(conv(conv(x, f"{b}.branch7x7x3_1"), f"{b}.branch7x7x3_2", 1, wide), f"{b}.branch7x7x3_3", 1, high)
    x = torch.cat([three, conv(seven, f"{b}.branch7x7x3_4", 2), F.max_pool2d(x, 3, 2)], 1)
    for b, pool in (("Mixed_7b", average), ("Mixed_7c", last)):
        one = conv(x, f"{b}.branch3x3_1")
        two = conv(conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", 1, 1)
        parts = [
            conv(x, f"{b}.branch1x1"),
            conv(one, f"{b}.branch3x3_2a", 1, (0, 1)),
            conv(one, f"{b}.branch3x3_2b", 1, (1, 0)),
        ]
        parts += [conv(two, f"{b}.branch3x3dbl_3a", 1, (0, 1)), conv(two, f"{b}.branch3x3dbl_3b", 1, (1, 0))]
        x = torch.cat([*parts, conv(pool(x), f"{b}.branch_pool")], 1)
    return x.flatten(2).mean(2)


def with_border(x):
    """The mean of nine, with zeros outside."""
    return F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).sum((4, 5)) / 9


def without_border(x):
    """The mean of those of the nine that lie inside."""
    return with_border(x) / with_border(torch.ones_like(x))


def highest(x):
    return F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))


POOLS = {
    "fid": (without_border, highest),
    "keras": (without_border, without_border),
    "torchvision": (with_border, with_border),
}


def test_every_pooling_gives_what_the_network_gives_that_is_spelled_out(layers):
    x = torch.randn(1, 3, 139, 107, generator=torch.Generator().manual_seed(1))
    found = {}
    for pooling, (average, last) in POOLS.items():
        found[pooling] = filled(layers, pooling)(x)
        torch.testing.assert_close(found[pooling], spelled_out(layers, x, average, last), rtol=1e-4, atol=1e-5)
    scale = found["fid"].abs().mean()
    assert (found["fid"] - found["keras"]).abs().mean() > 0.01 * scale
    assert (found["keras"] - found["torchvision"]).abs().mean() > 0.01 * scale


def test_it_has_the_published_layers_and_size():
    """21 785 568 is torchvision's 27 161 264 without the classifier (2 049 000) and the auxiliary one (3 326 696)."""
    with torch.device("meta"):
        network = Inception("fid")
    wanted = {f"{name}.conv.weight": torch.Size(shape) for name, shape in inception_convolutions().items()}
    for name, shape in inception_convolutions().items():
        wanted |= {
            f"{name}.bn.{part}": torch.Size(shape[:1]) for part in ("weight", "bias", "running_mean", "running_var")
        }
        wanted[f"{name}.bn.num_batches_tracked"] = torch.Size()
    assert {name: value.shape for name, value in network.state_dict().items()} == wanted
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 2_049_000 - 3_326_696


@pytest.mark.parametrize("side", [64, 256, 299, 400])
def test_the_input_is_bilinear_between_pixel_centres_without_smoothing(side):
    """Written as a matrix: pixel i lies at (i + 0.5) side / 299 - 0.5, kept inside."""
    image = np.random.default_rng(side).integers(0, 256, (side, side)).astype(np.uint8)
    place = np.clip((np.arange(299) + 0.5) * side / 299 - 0.5, 0, side - 1)
    low = np.floor(place).astype(int)
    matrix = np.zeros((299, side))
    np.add.at(matrix, (range(299), low), 1 - (place - low))
    np.add.at(matrix, (range(299), np.minimum(low + 1, side - 1)), place - low)
    wanted = (matrix @ image.astype(np.float64) @ matrix.T - 127.5) / 127.5
    found = fid_input(torch.from_numpy(image)[None])
    assert found.shape == (1, 3, 299, 299)
    for channel in found[0]:
        np.testing.assert_allclose(channel.numpy(), wanted, atol=2e-4)


def test_the_published_file_gives_the_features_that_fid_is_named_for(layers, tmp_path, monkeypatch):
    """With the classifier of 1008 rows that the file holds; from a path, from its folder and from torch.hub's cache."""
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    path = saved_as_published(monkeypatch, inception, tmp_path / "hub" / "checkpoints" / "fid.pth", layers | classifier)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_weights(inception.PUBLISHED, "", tmp_path / "hub" / "checkpoints") == path
    assert find_weights(inception.PUBLISHED, str(path.parent), tmp_path) == path
    found = extractor("inception", CPU)
    assert (found.name, found.width, found.learned, found.standardised) == ("inception", 2048, True, False)
    assert found.metrics["fd"] == "fid"
    assert found.metrics["kid"] == "kid_inception"
    assert found.provenance["sha256"] == inception.PUBLISHED.sha256
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64)).astype(np.uint8)
    rows = found.of(images)
    assert rows.dtype == np.float64
    np.testing.assert_allclose(
        rows, spelled_out(layers, fid_input(torch.from_numpy(images)), *POOLS["fid"]), rtol=1e-3, atol=1e-4
    )
    assert found.of(images[:0]).shape == (0, 2048)


class TestWhatIsRefused:
    def test_no_file(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(MissingCheckpoint) as error:
            extractor("inception", CPU)
        for part in (
            "pt_inception-2015-12-05-6726825d.pth",
            "https://github.com/mseitzer",
            str(tmp_path),
            "--feature-weights inception=PATH",
        ):
            assert part in str(error.value)
        with pytest.raises(MissingCheckpoint, match="is no file and no folder with one"):
            extractor("inception", CPU, str(tmp_path / "nothing.pth"))

    def test_another_file(self, tmp_path):
        """By its content, whatever its name; by its name, where that says a digest."""
        torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pth")
        with pytest.raises(MissingCheckpoint, match=r"has the sha256 [0-9a-f]{12}…; wanted 6726825d0af5…"):
            extractor("inception", CPU, str(tmp_path / "weights.pth"))
        (tmp_path / "weights.pth").rename(tmp_path / PUBLISHED.files[0])
        with pytest.raises(MissingCheckpoint, match="does not begin with 6726825d"):
            extractor("inception", CPU, str(tmp_path))

    def test_missing_strange_and_misshapen_layers(self, layers):
        with torch.device("meta"):
            network = Inception("fid")
        lacking = {name: value for name, value in layers.items() if name != "Mixed_6a.branch3x3.conv.weight"}
        with pytest.raises(
            MissingCheckpoint,
            match=r"lacks 1 of the 470 layers of inception: Mixed_6a\.branch3x3\.conv\.weight\. Wanted",
        ):
            fill(network, lacking, W, PUBLISHED)
        with pytest.raises(MissingCheckpoint, match=r"lacks 470 .*, …; instead it holds conv1\.weight\."):
            fill(network, {"conv1.weight": torch.zeros(1)}, W, PUBLISHED)
        with pytest.raises(MissingCheckpoint, match=r"holds 1 layers that inception does not have: extra\.weight"):
            fill(network, layers | {"extra.weight": torch.zeros(1)}, W, PUBLISHED)
        with pytest.raises(
            MissingCheckpoint, match=r"Conv2d_1a_3x3\.bn\.bias has the shape \(31,\); inception has \(32,\)"
        ):
            fill(network, layers | {"Conv2d_1a_3x3.bn.bias": torch.zeros(31)}, W, PUBLISHED)

    def test_small_images_and_unknown_poolings(self):
        with pytest.raises(ConfigMismatch, match="at least 75 pixels a side; these have 74"):
            Inception("fid")(torch.zeros(1, 3, 80, 74))
        with pytest.raises(ConfigMismatch, match="no pooling 'max'"):
            Inception("max")


@pytest.mark.slow
def test_batches_of_full_size_change_nothing(layers):
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (5, 256, 256)).astype(np.uint8))
    network = filled(layers, "fid")
    with torch.inference_mode():
        whole = network(fid_input(images))
        assert whole.shape == (5, 2048)
        each = torch.cat([network(fid_input(image[None])) for image in images])
    torch.testing.assert_close(whole, each, rtol=1e-4, atol=1e-5)
