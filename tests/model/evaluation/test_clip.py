"""CLIP's image side against the same network written a second time, the published layout and sizes, CMMD's input and names."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from support.feature_weights import clip_layers

from medvar_model.errors import MissingCheckpoint
from medvar_model.evaluation.comparison import Grouped, compare, summary
from medvar_model.evaluation.extractors import clip, extractor
from medvar_model.evaluation.extractors.base import Extractor
from medvar_model.evaluation.extractors.clip import PUBLISHED_SIZE, REPOSITORY, Clip, ClipSize, clip_input, load_clip
from medvar_model.evaluation.extractors.weights import hugging_face_cache
from medvar_model.evaluation.metrics.distances import gaussian_distance
from medvar_model.evaluation.scores import Labelled

CPU = torch.device("cpu")
SMALL = ClipSize(side=28, patch=7, width=24, layers=2, heads=3, hidden=40, features=10)


@pytest.fixture(scope="module")
def layers():
    return clip_layers(side=28, patch=7, width=24, depth=2, hidden=40, features=10)


def spelled_out(layers, images, heads):
    """The tower in numpy-like steps: one patch, one head, one token at a time where that is the plainest way."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * layers[f"{name}.weight"] + layers[f"{name}.bias"]

    def linear(x, name):
        return x @ layers[f"{name}.weight"].T + layers[f"{name}.bias"]

    kernel = layers["vision_model.embeddings.patch_embedding.weight"]
    patch, n = kernel.shape[2], images.shape[2] // kernel.shape[2]
    tokens = [layers["vision_model.embeddings.class_embedding"].expand(len(images), -1)]
    for row in range(n):
        for column in range(n):
            piece = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(torch.einsum("bcyx,dcyx->bd", piece, kernel))
    x = torch.stack(tokens, 1) + layers["vision_model.embeddings.position_embedding.weight"]
    x = norm(x, "vision_model.pre_layrnorm")
    for i in range(2):
        block = f"vision_model.encoder.layers.{i}"
        y, parts = norm(x, f"{block}.layer_norm1"), []
        query, key, value = (linear(y, f"{block}.self_attn.{name}_proj") for name in "qkv")
        width = query.shape[2] // heads
        for head in range(heads):
            mine = slice(head * width, (head + 1) * width)
            weights = (query[..., mine] @ key[..., mine].transpose(1, 2) / width**0.5).softmax(2)
            parts.append(weights @ value[..., mine])
        x = x + linear(torch.cat(parts, 2), f"{block}.self_attn.out_proj")
        y = linear(norm(x, f"{block}.layer_norm2"), f"{block}.mlp.fc1")
        x = x + linear(y / (1 + (-1.702 * y).exp()), f"{block}.mlp.fc2")
    out = norm(x[:, 0], "vision_model.post_layernorm") @ layers["visual_projection.weight"].T
    return out / out.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_it_gives_what_the_network_gives_that_is_spelled_out(layers, tmp_path, file):
    (save_file if file.endswith("safetensors") else torch.save)(layers, tmp_path / file)
    images = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = load_clip(tmp_path / file, SMALL)(images)
    torch.testing.assert_close(found, spelled_out(layers, images, SMALL.heads), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.square().sum(1), torch.ones(3))


def test_it_has_the_published_layers_and_size():
    """Radford et al., table 20: width 1024, 24 layers, 16 heads, 768 numbers; 577 tokens at 336 pixels."""
    with torch.device("meta"):
        network = Clip(PUBLISHED_SIZE)
    assert asdict(PUBLISHED_SIZE) == {
        "side": 336, "patch": 14, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "features": 768,
    }  # fmt: skip
    assert PUBLISHED_SIZE.tokens == 577
    block = 4 * (1024**2 + 1024) + (1024 * 4096 + 4096) + (4096 * 1024 + 1024) + 4 * 1024
    embedding = 1024 + 3 * 14 * 14 * 1024 + 577 * 1024
    assert sum(p.numel() for p in network.parameters()) == embedding + 24 * block + 4 * 1024 + 1024 * 768 == 304_293_888
    small = {
        name for name in clip_layers(28, 7, 24, 24, 40, 10) if name.startswith("vis") and not name.endswith("_ids")
    }
    assert set(network.state_dict()) == small


def test_the_input_is_pillows_bicubic_and_clips_normalisation():
    image = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    colour = Image.fromarray(np.stack([image] * 3, 2)).resize((336, 336), Image.Resampling.BICUBIC)
    wanted = (np.asarray(colour) / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    found = clip_input(torch.from_numpy(image)[None])
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)


class TestFiles:
    def test_the_newest_snapshot_in_the_cache_is_taken(self, layers, tmp_path, monkeypatch):
        monkeypatch.setattr(clip, "PUBLISHED_SIZE", SMALL)
        monkeypatch.setattr(clip, "load_clip", lambda path: load_clip(path, SMALL))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        folder = tmp_path / "models--openai--clip-vit-large-patch14-336"
        for revision in ("aaa", "bbb"):
            (folder / "snapshots" / revision).mkdir(parents=True)
        assert hugging_face_cache(REPOSITORY) == folder / "snapshots" / "bbb"
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("aaa\n")
        save_file(layers, folder / "snapshots" / "aaa" / "model.safetensors")
        found = extractor("clip", CPU)
        assert (found.name, found.width, dict(found.metrics)) == ("clip", 10, {"cmmd": "cmmd", "cmmd_u": "cmmd_u"})
        images = np.random.default_rng(1).integers(0, 256, (2, 40, 40)).astype(np.uint8)
        wanted = spelled_out(layers, clip_input(torch.from_numpy(images)), SMALL.heads)
        np.testing.assert_allclose(found.of(images), wanted, rtol=1e-3, atol=1e-4)

    def test_the_cache_is_where_the_libraries_have_it(self, monkeypatch):
        for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        assert hugging_face_cache("a/b").is_relative_to(Path("~/.cache/huggingface/hub/models--a--b").expanduser())
        monkeypatch.setenv("HF_HOME", "/some/home")
        assert hugging_face_cache("a/b").is_relative_to("/some/home/hub/models--a--b")

    def test_no_file(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(MissingCheckpoint) as error:
            extractor("clip", CPU)
        for part in (
            "model.safetensors",
            f"https://huggingface.co/{REPOSITORY}",
            f"hf download {REPOSITORY}",
            "--feature-weights clip=PATH",
        ):
            assert part in str(error.value)

    def test_another_clip(self, layers, tmp_path):
        save_file(layers, tmp_path / "model.safetensors")
        with pytest.raises(
            MissingCheckpoint, match=r"lacks 352 of the 392 layers of clip: vision_model\.encoder\.layers\.2\."
        ):
            extractor("clip", CPU, str(tmp_path))
        wide = ClipSize(side=35, patch=7, width=24, layers=2, heads=3, hidden=40, features=10)
        with pytest.raises(
            MissingCheckpoint, match=r"position_embedding\.weight has the shape \(17, 24\); clip has \(26, 24\)"
        ):
            load_clip(tmp_path / "model.safetensors", wide)


def test_cmmd_is_given_as_published_and_unbiased():
    draw = np.random.default_rng(2)
    images = draw.integers(0, 256, (120, 8, 8)).astype(np.uint8)

    def of(images):
        rows = images.reshape(len(images), -1)[:, :12].astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    unit = Extractor("clip", 12, of, False, True, {}, clip.METRICS)
    reference = Grouped(Labelled(images[:60], ("c",) * 60), tuple(str(i // 3) for i in range(60)))
    sets = {"samples": Grouped.drawn(Labelled(images[60:] // 2 + 60, ("c",) * 60))}
    scores = {score.metric: score for score in compare(reference, sets, [unit], {"c": "chest ct"}, 4)}
    assert set(scores) == {"cmmd", "cmmd_u"}
    real, fake = of(images[:60]), of(images[60:] // 2 + 60)
    assert scores["cmmd"].value == pytest.approx(gaussian_distance(real, fake), abs=1e-9)
    assert scores["cmmd_u"].value == pytest.approx(gaussian_distance(real, fake, unbiased=True), abs=1e-9)
    assert "overstate" in scores["cmmd"].warning
    assert scores["cmmd_u"].warning == ""
    assert scores["cmmd"].low < scores["cmmd"].value < scores["cmmd"].high
    said = summary(list(scores.values()), [unit], reference, sets)["metrics"]
    assert "as published" in said["cmmd"]["says"]
    assert "unbiased" in said["cmmd_u"]["says"]


@pytest.mark.slow
def test_the_published_size_computes():
    network = Clip(PUBLISHED_SIZE)
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256)).astype(np.uint8)
    with torch.inference_mode():
        rows = network(clip_input(torch.from_numpy(images)))
    assert rows.shape == (2, 768)
    torch.testing.assert_close(rows.square().sum(1), torch.ones(2))
    assert F.cosine_similarity(rows[:1], rows[1:]).item() < 1
