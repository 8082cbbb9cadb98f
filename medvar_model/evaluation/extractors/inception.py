"""Inception-v3 as FID uses it, and the two other ways its pooling is published; 2048 numbers an image.

In: 8-bit grey slices. Out: the mean of the last feature maps. Szegedy et al. 2016 (arXiv 1512.00567). Layers have the names of
torchvision's `inception_v3`, under which all PyTorch files of it are published.

    fid            the graph of TensorFlow's inception-2015-12-05.tgz, which FID (Heusel et al. 2017, arXiv 1706.08500) is defined on:
                   the averages of 3 x 3 leave out the border, and the last block takes a maximum instead of an average
    keras          Keras' application: averages leave out the border, also in the last block
    torchvision    torchvision's: averages count the border as zeros

Only features of the first, with the published weights and pytorch-fid's input, give a distance that is called FID.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from medvar_data.storage.store import file_digest
from medvar_model.errors import ConfigMismatch
from medvar_model.evaluation.extractors.base import Extractor, Grey, Inputs, described_by, metric_names
from medvar_model.evaluation.extractors.weights import Published, fill, find_weights, read_published, torch_cache

NAME = "inception"
METRICS = metric_names(NAME, fd="fid", fd_inf="fid_inf")
FEATURES = 2048
SIDE = 299  # pixels that images are brought to
LEAST_SIDE = 75  # below it, the last maps would have no pixel
EPSILON = 1e-3  # of the batch norms
POOLINGS = ("fid", "keras", "torchvision")
PUBLISHED = Published(
    NAME,
    ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),  # equal bytes; torch-fidelity's name
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth (96 MB)",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)  # fmt: skip

Step = tuple[str, int, tuple[int, int], int]  # name, channels, kernel (height, width), stride
Branch = tuple[Step, ...]
Maps = Float[Tensor, "b _ _ _"]

POOL: Step = ("pool", 0, (3, 3), 1)  # 3 x 3, as the block is told


def _step(name: str, channels: int, height: int = 1, width: int = 0, stride: int = 1) -> Step:
    return name, channels, (height, width or height), stride


def _fine(pooled: int) -> tuple[Branch, ...]:
    return (
        (_step("branch1x1", 64),),
        (_step("branch5x5_1", 48), _step("branch5x5_2", 64, 5)),
        (_step("branch3x3dbl_1", 64), _step("branch3x3dbl_2", 96, 3), _step("branch3x3dbl_3", 96, 3)),
        (POOL, _step("branch_pool", pooled)),
    )


def _middle(narrow: int) -> tuple[Branch, ...]:
    double = [(narrow, 7, 1), (narrow, 1, 7), (narrow, 7, 1), (192, 1, 7)]
    return (
        (_step("branch1x1", 192),),
        (_step("branch7x7_1", narrow), _step("branch7x7_2", narrow, 1, 7), _step("branch7x7_3", 192, 7, 1)),
        (_step("branch7x7dbl_1", narrow), *(_step(f"branch7x7dbl_{i}", *step) for i, step in enumerate(double, 2))),
        (POOL, _step("branch_pool", 192)),
    )


def _coarse() -> tuple[Branch, ...]:
    single, double = _step("branch3x3_1", 384), (_step("branch3x3dbl_1", 448), _step("branch3x3dbl_2", 384, 3))
    return (
        (_step("branch1x1", 320),),
        (single, _step("branch3x3_2a", 384, 1, 3)),
        (single, _step("branch3x3_2b", 384, 3, 1)),
        (*double, _step("branch3x3dbl_3a", 384, 1, 3)),
        (*double, _step("branch3x3dbl_3b", 384, 3, 1)),
        (POOL, _step("branch_pool", 192)),
    )


HALVE_35: tuple[Branch, ...] = (
    (_step("branch3x3", 384, 3, stride=2),),
    (_step("branch3x3dbl_1", 64), _step("branch3x3dbl_2", 96, 3), _step("branch3x3dbl_3", 96, 3, stride=2)),
    (POOL,),
)
HALVE_17: tuple[Branch, ...] = (
    (_step("branch3x3_1", 192), _step("branch3x3_2", 320, 3, stride=2)),
    (
        _step("branch7x7x3_1", 192),
        _step("branch7x7x3_2", 192, 1, 7),
        _step("branch7x7x3_3", 192, 7, 1),
        _step("branch7x7x3_4", 192, 3, stride=2),
    ),
    (POOL,),
)
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _fine(32), "Mixed_5c": _fine(64), "Mixed_5d": _fine(64),
    "Mixed_6a": HALVE_35,
    "Mixed_6b": _middle(128), "Mixed_6c": _middle(160), "Mixed_6d": _middle(160), "Mixed_6e": _middle(192),
    "Mixed_7a": HALVE_17,
    "Mixed_7b": _coarse(), "Mixed_7c": _coarse(),
}  # fmt: skip


class Normed(nn.Module):
    """A convolution without bias, its batch norm, a ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: tuple[int, int], stride: int, same: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=EPSILON)

    def forward(self, x: Maps) -> Maps:
        """Compute the three."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches over the same maps, joined by channels; branches that begin alike share their beginning.

    Args:
        channels_in: of the maps.
        branches: see `BLOCKS`. A convolution of stride 1 keeps the side, one of stride 2 has no border.
        pool: what `POOL` stands for; holds no weights.
    """

    def __init__(self, channels_in: int, branches: tuple[Branch, ...], pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.routes = tuple(tuple(step[0] for step in branch) for branch in branches)
        self.channels = 0
        for branch in branches:
            width = channels_in
            for name, channels, kernel, stride in branch:
                if name == POOL[0]:
                    continue
                if not hasattr(self, name):
                    self.add_module(name, Normed(width, channels, kernel, stride, stride == 1))
                width = channels
            self.channels += width

    def forward(self, x: Maps) -> Maps:
        """Compute every branch."""
        maps: dict[tuple[str, ...], Tensor] = {(): x}
        for route in self.routes:
            for n in range(1, len(route) + 1):
                if route[:n] not in maps:
                    maps[route[:n]] = getattr(self, route[n - 1])(maps[route[: n - 1]])
        return torch.cat([maps[route] for route in self.routes], 1)


class Inception(nn.Module):
    """The trunk of Inception-v3, without classifiers.

    Args:
        pooling: one of `POOLINGS`; see the head of the file.
    """

    def __init__(self, pooling: str) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigMismatch(f"Inception has no pooling {pooling!r}; wanted one of {', '.join(POOLINGS)}.")
        self.Conv2d_1a_3x3 = Normed(3, 32, (3, 3), 2, False)
        self.Conv2d_2a_3x3 = Normed(32, 32, (3, 3), 1, False)
        self.Conv2d_2b_3x3 = Normed(32, 64, (3, 3), 1, True)
        self.Conv2d_3b_1x1 = Normed(64, 80, (1, 1), 1, False)
        self.Conv2d_4a_3x3 = Normed(80, 192, (3, 3), 1, False)
        channels = 192
        for name, branches in BLOCKS.items():
            block = Mixed(channels, branches, _pool(name, branches, pooling))
            self.add_module(name, block)
            channels = block.channels
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU

    def forward(self, images: Float32[Tensor, "b 3 height width"]) -> Float32[Tensor, "b 2048"]:
        """Give the mean over positions of the last feature maps.

        Args:
            images: normalised as the weights were trained, at least 75 pixels a side.

        Raises:
            ConfigMismatch: the images are smaller.
        """
        if min(images.shape[-2:]) < LEAST_SIDE:
            raise ConfigMismatch(
                f"Inception needs images of at least {LEAST_SIDE} pixels a side; these have {min(images.shape[-2:])}. Choose features "
                "that enlarge images, such as inception."
            )
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


def open_inception(device: torch.device, given: str = "") -> Extractor:
    """Give FID's features, with pytorch-fid's input.

    Args:
        device: where they are computed.
        given: the weight file, or the folder it lies in; empty looks in torch.hub's cache.

    Raises:
        MissingCheckpoint: the published weights are not there.
    """
    path = find_weights(PUBLISHED, given, torch_cache())
    network = Inception("fid")
    fill(network, trunk_of(read_published(PUBLISHED, path)), path, PUBLISHED)
    says = {
        "weights": path.name,
        "sha256": file_digest(path),
        "licence": "Apache-2.0",
        "input": f"pytorch-fid's: {SIDE} x {SIDE} pixels, bilinear between pixel centres without smoothing; grey / 127.5 - 1, three "
        "equal channels",
    }
    return Extractor(NAME, FEATURES, described_by(network, fid_input, FEATURES, device), False, True, says, METRICS)


def fid_input(images: Grey) -> Inputs:
    """Bring images to 299 x 299 as pytorch-fid 0.3 does: bilinear, pixel centres aligned, no smoothing; [0, 255] becomes [-1, 1]."""
    grey = F.interpolate(images[:, None].float() / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (2 * grey - 1).expand(-1, 3, -1, -1)


def trunk_of(content: Mapping[str, object]) -> dict[str, Any]:
    """Leave the classifiers (`fc`, `AuxLogits`) out of torchvision's names."""
    return {name: value for name, value in content.items() if not name.startswith(("fc.", "AuxLogits."))}


def _pool(name: str, branches: tuple[Branch, ...], pooling: str) -> nn.Module:
    if branches[-1] == (POOL,):
        return nn.MaxPool2d(3, 2)
    if pooling == "fid" and name == "Mixed_7c":
        return nn.MaxPool2d(3, 1, 1)
    return nn.AvgPool2d(3, 1, 1, count_include_pad=pooling == "torchvision")
