"""The losses: formulas, the perceptual distance, and reading its weights."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.training.losses import (
    VGG_INDICES,
    VGG_STAGES,
    TokenizerLossWeights,
    load_perceptual_distance,
    next_scale_loss,
    pixel_loss,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixel_loss_is_a_fifth_of_the_absolute_and_all_of_the_squared_error():
    x, y = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    assert float(pixel_loss(x, y)) == pytest.approx(0.2 * 0.25 + 0.125)
    assert float(pixel_loss(x, y, TokenizerLossWeights(absolute=1.0, squared=0.0))) == pytest.approx(0.25)


def test_pixel_loss_is_computed_in_float32():
    x, y = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16), torch.full((1, 1, 64, 64), 1e-3)
    loss = pixel_loss(x, y)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(0.2e-3 + 1e-6, rel=1e-5)


def test_next_scale_loss_is_the_mean_over_all_tokens():
    tokens = [torch.randint(7, (3, n), generator=seeded(n)) for n in (1, 4, 9)]
    logits = torch.randn(3, 14, 7, generator=seeded())
    loss = next_scale_loss(logits, tokens)
    torch.testing.assert_close(loss.mean, F.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, 1).flatten()))
    weighted = (loss.per_scale * torch.tensor([1.0, 4.0, 9.0])).sum() / 14
    torch.testing.assert_close(weighted, loss.mean)


def test_next_scale_loss_of_equal_logits_is_the_logarithm_of_the_vocabulary():
    loss = next_scale_loss(torch.zeros(2, 5, 512), [torch.zeros(2, 1).long(), torch.zeros(2, 4).long()])
    assert float(loss.mean) == pytest.approx(math.log(512))


def test_accuracy_counts_hits_of_each_scale():
    tokens = [torch.tensor([[1]]), torch.tensor([[0, 1, 2, 0]])]
    logits = F.one_hot(torch.tensor([[1, 0, 1, 1, 1]]), 3).float()
    assert next_scale_loss(logits, tokens).accuracy.tolist() == [1.0, 0.5]


def vgg_state(name_of) -> dict[str, torch.Tensor]:
    """Random weights of VGG-16's convolutions; `name_of(stage, index)` names a layer."""
    generator, state, c_in = seeded(1), {}, 3
    for stage, (widths, indices) in enumerate(zip(VGG_STAGES, VGG_INDICES, strict=True)):
        for width, index in zip(widths, indices, strict=True):
            spread = (2 / (9 * c_in)) ** 0.5
            state[f"{name_of(stage, index)}.weight"] = spread * torch.randn(width, c_in, 3, 3, generator=generator)
            state[f"{name_of(stage, index)}.bias"] = 0.1 * torch.randn(width, generator=generator)
            c_in = width
    return state


def linear_state(name_of) -> dict[str, torch.Tensor]:
    generator = seeded(2)
    return {name_of(t): torch.rand(1, w[-1], 1, 1, generator=generator) for t, w in enumerate(VGG_STAGES)}


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory) -> dict[str, list[Path]]:
    """The same random weights in the layouts that are published."""
    folder = tmp_path_factory.mktemp("weights")
    together = vgg_state(lambda stage, i: f"net.slice{stage + 1}.{i}") | linear_state(
        lambda t: f"lin{t}.model.1.weight"
    )
    together |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    torch.save(together, folder / "lpips_with_vgg.pth")
    save_file(together, folder / "lpips.safetensors")
    vgg = vgg_state(lambda _, i: f"features.{i}") | {"classifier.0.weight": torch.zeros(3, 3)}
    torch.save(vgg, folder / "vgg16.pth")
    torch.save(linear_state(lambda t: f"lin{t}.model.1.weight"), folder / "vgg.pth")
    return {
        "one": [folder / "lpips_with_vgg.pth"],
        "safetensors": [folder / "lpips.safetensors"],
        "two": [folder / "vgg16.pth", folder / "vgg.pth"],
    }


@pytest.fixture(scope="module")
def distance(weight_files):
    return load_perceptual_distance(weight_files["one"])


def pictures(seed: int, channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, 32, 32, generator=seeded(seed)) * 2 - 1


def test_all_published_layouts_give_the_same_distance(weight_files, distance):
    expected = distance(pictures(1), pictures(2))
    for layout in ("safetensors", "two"):
        assert torch.equal(load_perceptual_distance(weight_files[layout])(pictures(1), pictures(2)), expected)


def test_the_perceptual_distance_is_a_distance(distance):
    x, y = pictures(1), pictures(2)
    assert float(distance(x, x)) == 0
    assert float(distance(x, y)) > 0
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert float(distance(x, x + 0.01)) < float(distance(x, y))


def test_a_grey_image_is_three_equal_channels(distance):
    x, y = pictures(1), pictures(2)
    torch.testing.assert_close(distance(x, y), distance(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


def test_the_perceptual_distance_is_the_published_formula(distance, weight_files):
    state = torch.load(weight_files["one"][0], weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = ((p.expand(-1, 3, -1, -1) - shift) / scale for p in (pictures(1), pictures(2)))
    expected = torch.zeros(2)
    for stage, indices in enumerate(VGG_INDICES):
        if stage:
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
        for i in indices:
            w, b = (state[f"net.slice{stage + 1}.{i}.{part}"] for part in ("weight", "bias"))
            x, y = F.conv2d(x, w, b, padding=1).relu(), F.conv2d(y, w, b, padding=1).relu()
        a, c = (t / (t.square().sum(1, keepdim=True).sqrt() + 1e-10) for t in (x, y))
        expected += F.conv2d((a - c).square(), state[f"lin{stage}.model.1.weight"]).mean((1, 2, 3))
    torch.testing.assert_close(distance(pictures(1), pictures(2)), expected.mean(), rtol=1e-4, atol=1e-6)


def test_the_perceptual_distance_teaches_the_image_but_not_itself(distance):
    x = pictures(1).requires_grad_()
    distance(x, pictures(2)).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in distance.parameters())


def test_gradients_are_finite_where_all_features_are_zero(weight_files, tmp_path):
    state = torch.load(weight_files["one"][0], weights_only=True)
    silent = {name: -1 + 0 * value if name.endswith("bias") else value for name, value in state.items()}
    torch.save(silent, tmp_path / "silent.pth")
    image = torch.zeros(1, 1, 32, 32, requires_grad=True)
    load_perceptual_distance([tmp_path / "silent.pth"])(image, pictures(1)[:1]).backward()
    assert image.grad.isfinite().all()


def test_no_weights_is_a_clear_refusal():
    with pytest.raises(MissingCheckpoint, match="set the weight of the perceptual loss to 0"):
        load_perceptual_distance([])


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(MissingCheckpoint, match=r"no weight file .*lpips\.pth"):
        load_perceptual_distance([tmp_path / "lpips.pth"])


def test_half_of_the_weights_is_refused(weight_files):
    with pytest.raises(MissingCheckpoint, match="Give both"):
        load_perceptual_distance(weight_files["two"][:1])


class Trap:
    """Runs code when unpickled, if anybody lets it."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a weight file was run')",))


def test_code_in_a_weight_file_is_not_run(tmp_path):
    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(MissingCheckpoint, match="weights only"):
        load_perceptual_distance([tmp_path / "trap.pth"])


def test_images_of_two_channels_are_refused(distance):
    with pytest.raises(ConfigMismatch, match="2 channels; wanted 1 or 3"):
        distance(torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 32, 32))
