"""The networks behind the variants of RadFID: forward passes spelled out again, published layouts and inputs, names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from support.feature_weights import inception_layers, resnet50_layers

from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.evaluation.extractors import extractor, radimagenet
from medvar_model.evaluation.extractors.inception import Inception, fid_input
from medvar_model.evaluation.extractors.radimagenet import (
    INCEPTION_KERAS,
    INCEPTION_PT,
    METRICS,
    PUBLISHED,
    RESNET50,
    ResNet50,
    inception_keras_input,
    inception_pt_input,
    inception_pt_layers,
    resnet50_input,
)
from medvar_model.evaluation.extractors.weights import fill

CPU, W = torch.device("cpu"), Path("w.pth")

# The children of torchvision's inception_v3 without the auxiliary classifier, in order: what stands behind `backbone.<place>`.
CHILDREN = [
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2", "Mixed_5b",
    "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c",
]  # fmt: skip


def patterns(side, n=2):
    return np.random.default_rng(side).integers(0, 256, (n, side, side)).astype(np.uint8)


def as_authors_save_it(layers):
    return {f"backbone.{CHILDREN.index(name.split('.')[0])}.{name.split('.', 1)[1]}": v for name, v in layers.items()}


def spelled_out(layers, x):
    """Keras' ResNet-50 from torchvision's names: biases, norms of epsilon 1.001e-5, the stride in the first convolution of a block."""

    def conv(x, name, norm, stride=1, padding=0):
        y = F.conv2d(x, layers[f"{name}.weight"], layers[f"{name}.bias"], stride, padding)
        mean, var, gain, shift = (
            layers[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1.001e-5).sqrt() * gain + shift

    x = conv(x, "conv1", "bn1", 2, 3).clamp(min=0)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = conv(x, f"{name}.conv1", f"{name}.bn1", stride).clamp(min=0)
            y = conv(y, f"{name}.conv2", f"{name}.bn2", 1, 1).clamp(min=0)
            y = conv(y, f"{name}.conv3", f"{name}.bn3")
            rest = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if i == 0 else x
            x = (y + rest).clamp(min=0)
    return x.flatten(2).mean(2)


class TestResNet50:
    def test_it_gives_what_the_network_gives_that_is_spelled_out(self, tmp_path):
        layers = resnet50_layers()
        torch.save(layers, tmp_path / PUBLISHED[RESNET50].files[0])
        found = extractor(RESNET50, CPU, str(tmp_path))
        images = patterns(70)
        x = torch.from_numpy(images).float()[:, None].repeat(1, 3, 1, 1) / 255
        x -= torch.tensor([0.406, 0.456, 0.485])[:, None, None]
        torch.testing.assert_close(resnet50_input(torch.from_numpy(images)), x)
        np.testing.assert_allclose(found.of(images), spelled_out(layers, x), rtol=1e-3, atol=1e-3)
        assert (found.name, found.metrics["fd"], found.metrics["kid"]) == (
            "radimagenet_resnet50", "radfid_resnet50", "kid_radimagenet_resnet50",
        )  # fmt: skip

    def test_it_has_keras_size(self):
        """23 587 712 parameters, as Keras counts them without the classifier: 53 120 of them are the norms' means and variances."""
        with torch.device("meta"):
            network = ResNet50()
        assert sum(p.numel() for p in network.parameters()) == 23_587_712 - 53_120
        assert {name: value.shape for name, value in network.state_dict().items()} == {
            name: value.shape for name, value in resnet50_layers().items()
        }

    def test_a_resnet_of_torchvision_is_refused(self):
        """Its convolutions have no bias."""
        without = {
            n: v
            for n, v in resnet50_layers().items()
            if not n.endswith(("conv1.bias", "conv2.bias", "conv3.bias", "0.bias"))
        }
        with torch.device("meta"):
            network = ResNet50()
        with pytest.raises(MissingCheckpoint, match=r"lacks 53 of the 318 layers of radimagenet_resnet50: conv1\.bias"):
            fill(network, without, W, PUBLISHED[RESNET50])


class TestInceptionOfPyTorch:
    def test_the_authors_layout_is_read_into_torchvisions_pooling(self, tmp_path):
        layers = inception_layers(1)
        torch.save(as_authors_save_it(layers), tmp_path / "InceptionV3.pt")
        found = extractor(INCEPTION_PT, CPU, str(tmp_path / "InceptionV3.pt"))
        plain = Inception("torchvision").eval()
        fill(plain, layers, W, PUBLISHED[INCEPTION_PT])
        images = patterns(256, 1)
        np.testing.assert_allclose(
            found.of(images), plain(fid_input(torch.from_numpy(images))).detach(), rtol=1e-4, atol=1e-5
        )
        assert (found.metrics["fd"], found.least_side) == ("radfid_inception_pt", 1)

    def test_unknown_places_are_refused(self):
        content = {"backbone.3.conv.weight": torch.zeros(1)}  # a pooling, which has no weights
        assert list(inception_pt_layers(content)) == ["backbone.3.conv.weight"]
        with torch.device("meta"):
            network = Inception("torchvision")
        with pytest.raises(MissingCheckpoint, match=r"instead it holds backbone\.3\.conv\.weight"):
            fill(network, inception_pt_layers(content), W, PUBLISHED[INCEPTION_PT])

    def test_the_input_is_pillows_256_then_fids_299(self):
        images = patterns(70)
        colour = [
            Image.fromarray(np.stack([image] * 3, 2)).resize((256, 256), Image.Resampling.BILINEAR) for image in images
        ]
        wanted = torch.from_numpy(np.stack([np.asarray(image)[:, :, 0] for image in colour]))
        torch.testing.assert_close(inception_pt_input(torch.from_numpy(images)), fid_input(wanted))
        same = torch.from_numpy(patterns(256))
        torch.testing.assert_close(inception_pt_input(same), fid_input(same))


class TestInceptionOfKeras:
    def test_missing_gains_are_one(self, tmp_path):
        layers = inception_layers(2, gains=False)
        save_file(layers, tmp_path / PUBLISHED[INCEPTION_KERAS].files[0])
        found = extractor(INCEPTION_KERAS, CPU, str(tmp_path))
        gains = {
            n.replace("bn.bias", "bn.weight"): torch.ones_like(v) for n, v in layers.items() if n.endswith("bn.bias")
        }
        network = Inception("keras").eval()
        fill(network, layers | gains, W, PUBLISHED[INCEPTION_KERAS])
        images = patterns(80, 1)
        x = torch.from_numpy(images).float()[:, None].repeat(1, 3, 1, 1)
        x = (x - torch.tensor([103.939, 116.779, 123.68])[:, None, None]) / 255
        torch.testing.assert_close(inception_keras_input(torch.from_numpy(images)), x)
        np.testing.assert_allclose(found.of(images), network(x).detach(), rtol=1e-4, atol=1e-5)
        assert found.metrics["fd_inf"] == "radfid_inf_inception_keras"
        assert found.least_side == 75
        with pytest.raises(ConfigMismatch, match="at least 75 pixels"):
            found.of(patterns(64, 1))


def test_no_variant_is_called_fid_or_radfid_alone():
    names = [name for metrics in METRICS.values() for name in metrics.values()]
    assert len(set(names)) == len(names) == 21
    assert not {"fid", "radfid"} & set(names)


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_file_it_says_where_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingCheckpoint) as error:
        extractor(name, CPU)
    for part in (PUBLISHED[name].files[0], "https://github.com/", str(tmp_path), f"--feature-weights {name}=PATH"):
        assert part in str(error.value)


def test_a_file_of_another_digest_than_its_name_says_is_refused(tmp_path, monkeypatch):
    file = "resnet50-0123abcd.pth"
    torch.save({}, tmp_path / file)
    monkeypatch.setitem(radimagenet.PUBLISHED, RESNET50, replace(PUBLISHED[RESNET50], files=(file,)))
    with pytest.raises(MissingCheckpoint, match="does not begin with 0123abcd"):
        extractor(RESNET50, CPU, str(tmp_path))
