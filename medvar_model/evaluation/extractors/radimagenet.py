"""Networks trained on RadImageNet (Mei et al. 2022), on which distances called RadFID stand; 2048 numbers an image.

In: 8-bit grey slices. Out: the mean of the last feature maps. "RadFID" names several distances that differ by network, input and
pooling and must not be mixed, so every name here carries the variant:

    radimagenet_resnet50           radfid_resnet50         the converted ResNet-50 that MONAI's tutorials use: slices at their own side,
                                                           grey / 255 less (0.406, 0.456, 0.485)
    radimagenet_inception_pt       radfid_inception_pt     InceptionV3.pt of RadImageNet's authors, as in the evaluation of FRD (arXiv
                                                           2412.01496): 256 and then 299 pixels, grey in [-1, 1], torchvision's pooling
    radimagenet_inception_keras    radfid_inception_keras  RadImageNet-InceptionV3_notop.h5 (Woodland et al. 2024, arXiv 2311.13717),
                                                           converted to torchvision's names: slices at their own side, (grey - (103.939,
                                                           116.779, 123.68)) / 255, Keras' pooling

ResNet-50 is Keras': convolutions with bias, the stride in the first convolution of a block. HDF5 files are not read.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn

from medvar_data.storage.store import file_digest
from medvar_model.evaluation.extractors.base import Extractor, Grey, Inputs, described_by, metric_names, resized
from medvar_model.evaluation.extractors.inception import BLOCKS, FEATURES, LEAST_SIDE, Inception, fid_input, trunk_of
from medvar_model.evaluation.extractors.weights import Published, fill, find_weights, read_published, torch_cache

RESNET50, INCEPTION_PT, INCEPTION_KERAS = (
    f"radimagenet_{kind}" for kind in ("resnet50", "inception_pt", "inception_keras")
)
METRICS = {
    name: metric_names(name, fd=name.replace("radimagenet", "radfid"), fd_inf=name.replace("radimagenet", "radfid_inf"))
    for name in (RESNET50, INCEPTION_PT, INCEPTION_KERAS)
}
AUTHORS = "https://github.com/BMEII-AI/RadImageNet"
PUBLISHED = {
    RESNET50: Published(
        RESNET50,
        ("RadImageNet-ResNet50_notop.pth",),
        "https://github.com/Warvito/radimagenet-models (torch.hub, 94 MB)",
    ),
    INCEPTION_PT: Published(INCEPTION_PT, ("InceptionV3.pt",), f"{AUTHORS} (the PyTorch models, 88 MB)"),
    INCEPTION_KERAS: Published(
        INCEPTION_KERAS,
        ("RadImageNet-InceptionV3_notop.safetensors", "RadImageNet-InceptionV3_notop.pth"),
        f"{AUTHORS} as RadImageNet-InceptionV3_notop.h5, which must be converted to torchvision's names (docs/evaluation.md)",
    ),
}
LEAST_SIDES = {INCEPTION_KERAS: LEAST_SIDE}  # the others take any side, or bring images to their own
LICENCE = "RadImageNet's terms"
FIRST_SIDE = 256  # pixels, before those of Inception
RESNET_EPSILON = 1.001e-5  # Keras' own
RESNET_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride
BGR_MEAN = (0.406, 0.456, 0.485)  # of ImageNet, blue first
CAFFE_MEAN = (103.939, 116.779, 123.68)  # the same in grey levels, to Keras' digits

# Places of torchvision's layers in the backbone that RadImageNet's authors saved; those between hold no weights.
STEM_PLACES = {0: "Conv2d_1a_3x3", 1: "Conv2d_2a_3x3", 2: "Conv2d_2b_3x3", 4: "Conv2d_3b_1x1", 5: "Conv2d_4a_3x3"}
PLACES = STEM_PLACES | dict(enumerate(BLOCKS, start=7))

Maps = Float[Tensor, "b _ _ _"]


class Bottleneck(nn.Module):
    """Three convolutions with batch norms, added to the input; Keras' ResNet takes the stride in the first."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        wide = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels_in, width, 1, stride), _norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), _norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, wide, 1), _norm(wide)
        changes = stride != 1 or channels_in != wide
        self.downsample = nn.Sequential(nn.Conv2d(channels_in, wide, 1, stride), _norm(wide)) if changes else None

    def forward(self, x: Maps) -> Maps:
        """Compute the block."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet50(nn.Module):
    """Keras' ResNet-50 without classifier, under torchvision's names (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3), _norm(64)
        channels = 64
        for number, (width, blocks, stride) in enumerate(RESNET_STAGES, start=1):
            stage = [Bottleneck(channels, width, stride)]
            channels = 4 * width
            stage += [Bottleneck(channels, width, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU

    def forward(self, images: Float32[Tensor, "b 3 height width"]) -> Float32[Tensor, "b 2048"]:
        """Give the mean over positions of the last feature maps, of normalised images of any side."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, len(RESNET_STAGES) + 1):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))


def open_resnet50(device: torch.device, given: str = "") -> Extractor:
    """Give the features of the converted ResNet-50.

    Args:
        device: where they are computed.
        given: the weight file, or the folder it lies in; empty looks in torch.hub's cache.

    Raises:
        MissingCheckpoint: the weights are not there, or are another network's.
    """
    says = "slices at their own side; grey / 255 less (0.406, 0.456, 0.485), three equal channels before"
    return _opened(RESNET50, ResNet50(), resnet50_input, says, device, given)


def open_inception_pt(device: torch.device, given: str = "") -> Extractor:
    """Give the features of the authors' PyTorch Inception-v3; arguments and errors as of `open_resnet50`."""
    says = "256 pixels a side (Pillow's bilinear), then 299 as pytorch-fid; grey / 127.5 - 1, three equal channels; torchvision's pooling"
    return _opened(INCEPTION_PT, Inception("torchvision"), inception_pt_input, says, device, given)


def open_inception_keras(device: torch.device, given: str = "") -> Extractor:
    """Give the features of the authors' Keras Inception-v3, from a converted file; arguments and errors as of `open_resnet50`."""
    says = "slices at their own side; (grey - (103.939, 116.779, 123.68)) / 255, three equal channels before; Keras' pooling"
    return _opened(INCEPTION_KERAS, Inception("keras"), inception_keras_input, says, device, given)


def resnet50_input(images: Grey) -> Inputs:
    """Take ImageNet's mean colour, blue first, from grey in [0, 1]."""
    return (images[:, None].float() / 255).expand(-1, 3, -1, -1) - _colour(BGR_MEAN, images.device)


def inception_keras_input(images: Grey) -> Inputs:
    """Take ImageNet's mean colour, blue first, from grey in [0, 255]; then divide by 255."""
    return (images[:, None].float().expand(-1, 3, -1, -1) - _colour(CAFFE_MEAN, images.device)) / 255


def inception_pt_input(images: Grey) -> Inputs:
    """Bring images to 256 pixels a side in 8 bits, then to 299 as for FID; [0, 255] becomes [-1, 1]."""
    if images.shape[1] != FIRST_SIDE:
        images = resized(images, FIRST_SIDE, Image.Resampling.BILINEAR)
    return fid_input(images)


def resnet50_layers(content: Mapping[str, object]) -> dict[str, Any]:
    """Take the layers as they are: the converted file has torchvision's names."""
    return dict(content)


def inception_pt_layers(content: Mapping[str, object]) -> dict[str, Any]:
    """Translate `backbone.7.branch1x1.conv.weight` to `Mixed_5b.branch1x1.conv.weight`; other names stay."""
    layers = {}
    for name, value in content.items():
        found = re.match(r"backbone\.(\d+)\.", name)
        known = PLACES.get(int(found[1])) if found else None
        layers[f"{known}.{name[found.end() :]}" if found and known else name] = value
    return trunk_of(layers)


def inception_keras_layers(content: Mapping[str, object]) -> dict[str, Any]:
    """Add the gains of the batch norms where they are missing: Keras' Inception-v3 has none, which is gains of 1."""
    layers = trunk_of(content)
    for name, value in list(layers.items()):
        if name.endswith(".bn.bias") and isinstance(value, Tensor):
            layers.setdefault(name.replace(".bn.bias", ".bn.weight"), torch.ones_like(value))
    return layers


LAYERS = {RESNET50: resnet50_layers, INCEPTION_PT: inception_pt_layers, INCEPTION_KERAS: inception_keras_layers}


def _opened(name: str, network: nn.Module, prepare: Any, says: str, device: torch.device, given: str) -> Extractor:
    published = PUBLISHED[name]
    path = find_weights(published, given, torch_cache())
    fill(network, LAYERS[name](read_published(published, path)), path, published)
    provenance = {"weights": path.name, "sha256": file_digest(path), "licence": LICENCE, "input": says}
    of = described_by(network, prepare, FEATURES, device)
    return Extractor(name, FEATURES, of, False, True, provenance, METRICS[name], LEAST_SIDES.get(name, 1))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=RESNET_EPSILON)


def _colour(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]
