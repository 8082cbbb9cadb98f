"""Weight files of feature networks with random numbers, in the layouts that are published.

The layouts are written down from the publishers' files, apart from the package's own tables: a layer a line or entry, channels out
and in, kernel height and width.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

INCEPTION_STEM = """
Conv2d_1a_3x3 32 3 3 3; Conv2d_2a_3x3 32 32 3 3; Conv2d_2b_3x3 64 32 3 3; Conv2d_3b_1x1 80 64 1 1; Conv2d_4a_3x3 192 80 3 3
"""
INCEPTION_BLOCKS = {
    "6a": "branch3x3 384 288 3 3; branch3x3dbl_1 64 288 1 1; branch3x3dbl_2 96 64 3 3; branch3x3dbl_3 96 96 3 3",
    "7a": "branch3x3_1 192 768 1 1; branch3x3_2 320 192 3 3; branch7x7x3_1 192 768 1 1; branch7x7x3_2 192 192 1 7; "
    "branch7x7x3_3 192 192 7 1; branch7x7x3_4 192 192 3 3",
}
for name, channels, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
    INCEPTION_BLOCKS[name] = (
        f"branch1x1 64 {channels} 1 1; branch5x5_1 48 {channels} 1 1; branch5x5_2 64 48 5 5; branch3x3dbl_1 64 {channels} 1 1; "
        f"branch3x3dbl_2 96 64 3 3; branch3x3dbl_3 96 96 3 3; branch_pool {pool} {channels} 1 1"
    )
for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
    INCEPTION_BLOCKS[name] = (
        f"branch1x1 192 768 1 1; branch7x7_1 {c} 768 1 1; branch7x7_2 {c} {c} 1 7; branch7x7_3 192 {c} 7 1; "
        f"branch7x7dbl_1 {c} 768 1 1; branch7x7dbl_2 {c} {c} 7 1; branch7x7dbl_3 {c} {c} 1 7; branch7x7dbl_4 {c} {c} 7 1; "
        f"branch7x7dbl_5 192 {c} 1 7; branch_pool 192 768 1 1"
    )
for name, channels in (("7b", 1280), ("7c", 2048)):
    INCEPTION_BLOCKS[name] = (
        f"branch1x1 320 {channels} 1 1; branch3x3_1 384 {channels} 1 1; branch3x3_2a 384 384 1 3; branch3x3_2b 384 384 3 1; "
        f"branch3x3dbl_1 448 {channels} 1 1; branch3x3dbl_2 384 448 3 3; branch3x3dbl_3a 384 384 1 3; branch3x3dbl_3b 384 384 3 1; "
        f"branch_pool 192 {channels} 1 1"
    )


def inception_convolutions() -> dict[str, tuple[int, int, int, int]]:
    """Name → shape of every convolution."""
    lines = INCEPTION_STEM.strip().split("; ")
    lines += [f"Mixed_{block}.{line}" for block, text in INCEPTION_BLOCKS.items() for line in text.split("; ")]
    return {name: tuple(map(int, shape)) for name, *shape in map(str.split, lines)}


def inception_layers(seed: int = 0, gains: bool = True) -> dict[str, torch.Tensor]:
    """Weights under torchvision's names: `NAME.conv.weight`, `NAME.bn.…`; `gains` False leaves out the norms' weights, as Keras has none."""
    draw, layers = torch.Generator().manual_seed(seed), {}
    for name, shape in inception_convolutions().items():
        spread = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        layers[f"{name}.conv.weight"] = spread * torch.randn(shape, generator=draw)
        layers |= _norm(f"{name}.bn", shape[0], draw)
        if not gains:
            del layers[f"{name}.bn.weight"]
    return layers


def resnet50_layers(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of Keras' ResNet-50, biases included, under torchvision's names."""
    shapes, channels = {"conv1": (64, 3, 7, 7)}, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for i in range(blocks):
            block = f"layer{stage}.{i}"
            shapes[f"{block}.conv1"] = (width, channels, 1, 1)
            shapes[f"{block}.conv2"] = (width, width, 3, 3)
            shapes[f"{block}.conv3"] = (4 * width, width, 1, 1)
            if i == 0:
                shapes[f"{block}.downsample.0"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    draw, layers = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        layers[f"{name}.weight"] = (1 / (shape[1] * shape[2] * shape[3])) ** 0.5 * torch.randn(shape, generator=draw)
        layers[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=draw)
        norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
        layers |= _norm(norm, shape[0], draw)
    return layers


def clip_layers(side: int, patch: int, width: int, depth: int, hidden: int, features: int) -> dict[str, torch.Tensor]:
    """Weights of CLIP as its checkpoint holds them, with some of the text side, which is not read."""
    draw = torch.Generator().manual_seed(4)

    def some(*shape: int, spread: float = 0.3) -> torch.Tensor:
        return spread * torch.randn(shape, generator=draw)

    layers = {
        "logit_scale": torch.tensor(4.6),
        "text_projection.weight": some(features, 5),
        "text_model.embeddings.token_embedding.weight": some(7, 5),
        "visual_projection.weight": some(features, width),
        "vision_model.embeddings.class_embedding": some(width),
        "vision_model.embeddings.patch_embedding.weight": some(width, 3, patch, patch, spread=0.1),
        "vision_model.embeddings.position_embedding.weight": some((side // patch) ** 2 + 1, width),
        "vision_model.embeddings.position_ids": torch.arange((side // patch) ** 2 + 1)[None],
    }
    norms = ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for i in range(depth):
        block = f"vision_model.encoder.layers.{i}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        linear = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        for name, shape in (linear | {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}).items():
            layers[f"{block}.{name}.weight"] = some(*shape)
            layers[f"{block}.{name}.bias"] = some(shape[0])
    for name in norms:
        layers[f"{name}.weight"], layers[f"{name}.bias"] = 1 + some(width), some(width)
    return layers


def saved_as_published(monkeypatch, module, path: Path, layers: dict[str, torch.Tensor]) -> Path:
    """Save layers, and let a module with one `PUBLISHED` file take their digest for the published one."""
    torch.save(layers, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "PUBLISHED", replace(module.PUBLISHED, files=(path.name,), sha256=digest))
    return path


def _norm(name: str, channels: int, draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": torch.rand(channels, generator=draw) + 0.5,
        f"{name}.bias": torch.randn(channels, generator=draw) / 4,
        f"{name}.running_mean": torch.randn(channels, generator=draw) / 4,
        f"{name}.running_var": torch.rand(channels, generator=draw) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }
