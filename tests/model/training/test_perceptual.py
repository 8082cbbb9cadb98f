"""The perceptual distances: formulas, weights in every published layout, equality with the shift-tolerant package's own."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.training import perceptual
from medvar_model.training.perceptual import (
    ST_ALEX_INDICES,
    ST_VGG_INDICES,
    VGG_INDICES,
    VGG_STAGES,
    load_perceptual_distance,
    load_shift_tolerant,
    perceptual_source,
    shift_tolerant_file,
)

GOLDEN = Path(__file__).parents[2] / "golden"
needs_package = pytest.mark.skipif(find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


ALEX = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))


def alex_state() -> dict[str, torch.Tensor]:
    """Random weights under the package's names, blur filters and all."""
    generator, state = seeded(3), {"net.slice1.1.filt": torch.ones(64, 1, 3, 3)}
    for stage, (index, (c_out, c_in, side)) in enumerate(zip(ST_ALEX_INDICES, ALEX, strict=True)):
        name, spread = f"net.slice{stage + 1}.{index[0]}", (2 / (side**2 * c_in)) ** 0.5
        state[f"{name}.weight"] = spread * torch.randn(c_out, c_in, side, side, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(c_out, generator=generator)
        state[f"lin{stage}.model.1.weight"] = torch.rand(1, c_out, 1, 1, generator=generator)
    return state


def st_vgg_state() -> dict[str, torch.Tensor]:
    place = {(s, i): j for s, row in enumerate(VGG_INDICES) for i, j in zip(row, ST_VGG_INDICES[s], strict=True)}
    convs = vgg_state(lambda stage, i: f"net.slice{stage + 1}.{place[stage, i]}")
    return convs | linear_state(lambda t: f"lin{t}.model.1.weight")


@pytest.fixture(scope="module")
def st_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("st")
    torch.save(st_vgg_state(), folder / "vgg.pth")
    torch.save(alex_state(), folder / "alex.pth")
    return {"st-lpips": folder / "vgg.pth", "st-lpips-alex": folder / "alex.pth"}


def half(x: torch.Tensor) -> torch.Tensor:
    """The binomial blur at every second position, written out."""
    x = F.pad(x, (2, 2, 2, 2), mode="reflect")
    rows = (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4
    return ((rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4)[..., ::2, ::2]


def st_taps(kind: str, state: dict[str, torch.Tensor], image: torch.Tensor):
    """The trunks of Ghildyal and Liu, layer by layer."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    x = (image.expand(-1, 3, -1, -1) - shift) / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    alex = kind.endswith("alex")
    for stage, indices in enumerate(ST_ALEX_INDICES if alex else ST_VGG_INDICES):
        if stage and not (alex and stage > 2):
            x = half(F.max_pool2d(x, 3 if alex else 2, 1))
        for i in indices:
            weight, bias = (state[f"net.slice{stage + 1}.{i}.{part}"] for part in ("weight", "bias"))
            padding = 2 if weight.shape[-1] > 3 else 1
            x = F.conv2d(x, weight, bias, padding=padding)
            x = half(x).relu() if alex and stage == 0 else x.relu()
        yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


@pytest.mark.parametrize("kind", ["st-lpips", "st-lpips-alex"])
def test_the_shift_tolerant_distance_is_its_layers_one_by_one(st_files, kind):
    state = torch.load(st_files[kind], weights_only=True)
    x, y = pictures(1), pictures(2)
    expected = sum(
        F.conv2d((a - b).square(), state[f"lin{t}.model.1.weight"]).mean((1, 2, 3))
        for t, (a, b) in enumerate(zip(st_taps(kind, state, x), st_taps(kind, state, y), strict=True))
    )
    distance = load_shift_tolerant(kind, st_files[kind])
    torch.testing.assert_close(distance.each(x, y), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distance(x, y), expected.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["st-lpips", "st-lpips-alex"])
def test_the_shift_tolerant_distance_teaches_the_image(st_files, kind):
    x = pictures(1).requires_grad_()
    load_shift_tolerant(kind, st_files[kind])(x, pictures(2)).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_images_too_small_for_the_trunk_are_refused(st_files):
    small = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ConfigMismatch, match="at least 32 pixels a side; these have 16"):
        load_shift_tolerant("st-lpips", st_files["st-lpips"])(small, small)


def test_weights_of_the_other_trunk_are_refused(st_files):
    with pytest.raises(MissingCheckpoint, match=r"layers of LPIPS are in none of alex\.pth"):
        load_shift_tolerant("st-lpips", st_files["st-lpips-alex"])


def test_without_the_package_the_way_to_install_it_is_told(monkeypatch):
    monkeypatch.setattr(perceptual, "ST_PACKAGE", "no_such_package_anywhere")
    monkeypatch.setattr(perceptual, "ST_DISTRIBUTION", "no-such-package-anywhere")
    with pytest.raises(MissingCheckpoint, match=r"is not installed\. Run pip install 'medvar\[perceptual\]'"):
        shift_tolerant_file("st-lpips")


@needs_package
@pytest.mark.parametrize("kind", ["st-lpips", "st-lpips-alex"])
def test_the_shift_tolerant_distance_is_the_packages(kind):
    said = json.loads((GOLDEN / "perceptual.json").read_text())
    source = perceptual_source(kind, ())
    assert (source.digest, source.licence) == (said["digests"][kind], "BSD 2-Clause License")
    distance = load_shift_tolerant(kind)
    for side, value in said["distances"][kind].items():
        generator = seeded(int(side))
        x, y = (torch.rand(1, 3, int(side), int(side), generator=generator) * 2 - 1 for _ in range(2))
        assert float(distance(x, y)) == pytest.approx(value, abs=1e-6), side


@needs_package
@pytest.mark.slow
def test_the_golden_distances_are_what_the_package_gives_today():
    made = subprocess.run(
        [sys.executable, str(GOLDEN / "rewrite_perceptual.py"), "--print"], capture_output=True, text=True, check=True
    )
    now, said = json.loads(made.stdout.splitlines()[-1]), json.loads((GOLDEN / "perceptual.json").read_text())
    assert now["digests"] == said["digests"]
    for kind, distances in said["distances"].items():
        assert now["distances"][kind] == pytest.approx(distances, abs=1e-5)


def test_no_code_of_the_package_is_imported():
    code = (
        "import sys; from medvar_model.training.perceptual import load_shift_tolerant as load\n"
        "try: load('st-lpips-alex')\n"
        "except Exception as error: print(type(error).__name__)\n"
        "assert not [name for name in sys.modules if name.startswith('stlpips')]"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
