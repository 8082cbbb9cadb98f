"""Say what training minimises: pixels and perception for the tokenizer, cross-entropy for the transformer.

In: images or logits, and what they should be. Out: scalars with gradients. (The codes' loss is the pyramid's.)

MedVAR names the tokenizer's three terms (pixels, commitment, LPIPS) without weights; those here are of the
autoencoder trainer that VAR's authors published. LPIPS is Zhang et al. 2018 (arXiv 1801.03924), equation 1, on
VGG-16. Its layers are written here; its weights are read from files the user gives, and never fetched.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from medvar_data.storage.store import file_digest
from medvar_model.checkpoints.weight_files import read_weights
from medvar_model.errors import ConfigMismatch, MissingCheckpoint

Images = Float[Tensor, "batch channels height width"]

VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG_INDICES = (
    (0, 2),
    (5, 7),
    (10, 12, 14),
    (17, 19, 21),
    (24, 26, 28),
)  # torchvision's numbering of the same layers
IMAGENET_SHIFT = (-0.030, -0.088, -0.188)  # of images in [-1, 1], as LPIPS's authors publish them
IMAGENET_SCALE = (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class TokenizerLossWeights:
    """Weights of the tokenizer's loss; the commitment's own weight (beta) is in `TokenizerConfig`."""

    absolute: float = 0.2
    squared: float = 1.0
    perceptual: float = 1.0
    codes: float = 1.0


def pixel_loss(
    reconstruction: Images, images: Images, weights: TokenizerLossWeights = TokenizerLossWeights()
) -> Float32[Tensor, ""]:
    """Give 0.2 mean |x - y| + 1.0 mean (x - y)^2, in float32."""
    difference = reconstruction.float() - images.float()
    return weights.absolute * difference.abs().mean() + weights.squared * difference.square().mean()


@dataclass(frozen=True)
class NextScaleLoss:
    """The transformer's loss.

    Attributes:
        mean: mean cross-entropy over all tokens of all images, in nats: what is minimised.
        per_scale: mean cross-entropy of each scale, coarsest first, without gradient.
        accuracy: fraction of tokens that were the likeliest code, of each scale.
    """

    mean: Float32[Tensor, ""]
    per_scale: Float32[Tensor, " scales"]
    accuracy: Float32[Tensor, " scales"]


def next_scale_loss(
    logits_BLV: Float[Tensor, "batch tokens vocabulary"], tokens: Sequence[Int64[Tensor, "batch _"]]
) -> NextScaleLoss:
    """Compare logits with the token maps they predict; every token weighs the same, so finer scales more."""
    target_BL = torch.cat(list(tokens), 1)
    each_N = F.cross_entropy(logits_BLV.float().flatten(0, 1), target_BL.flatten(), reduction="none")
    each_BL = each_N.view_as(target_BL)  # codes lie side by side in memory, which a softmax over them needs
    hit_BL = (logits_BLV.argmax(-1) == target_BL).float()
    lengths = [ids.shape[1] for ids in tokens]
    return NextScaleLoss(
        mean=each_BL.mean(),
        per_scale=torch.stack([part.mean() for part in each_BL.detach().split(lengths, 1)]),
        accuracy=torch.stack([part.mean() for part in hit_BL.split(lengths, 1)]),
    )


class PerceptualDistance(nn.Module):
    """LPIPS on VGG-16: how different two images look, >= 0. Frozen; `load_perceptual_distance` builds it."""

    def __init__(self) -> None:
        super().__init__()
        c_in = 3
        self.stages = nn.ModuleList()
        for widths in VGG_STAGES:
            pairs = pairwise((c_in, *widths))
            self.stages.append(nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)))
            c_in = widths[-1]
        self.weights = nn.ParameterList(torch.ones(widths[-1]) for widths in VGG_STAGES)
        self.requires_grad_(False)
        self.eval()

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Give the output of each stage, every position's channels scaled to length 1."""
        x, taps = images, []
        for index, stage in enumerate(self.stages):
            x = x if index == 0 else F.max_pool2d(x, 2)
            for conv in stage.children():
                x = F.relu(conv(x))
            taps.append(F.normalize(x, dim=1, eps=1e-10))  # its gradient is finite where all channels are 0
        return taps

    def forward(self, first: Images, second: Images) -> Float32[Tensor, ""]:
        """Give the mean distance, in float32, over the batch.

        Args:
            first: images in [-1, 1], one channel (repeated) or three.
            second: likewise.
        """
        with torch.autocast(first.device.type, enabled=False):
            ours, theirs = (self.features(_imagenet(images.float())) for images in (first, second))
            stages = [
                torch.einsum("bchw,c->bhw", (a - b).square(), weight).mean()
                for a, b, weight in zip(ours, theirs, self.weights, strict=True)
            ]
            return torch.stack(stages).sum()


def load_perceptual_distance(paths: Sequence[Path]) -> PerceptualDistance:
    """Read LPIPS from weight files, `.safetensors` or `.pth` (weights only), in any of the published layouts.

    Known layouts: one file with `net.sliceS.I.weight` and `linT.model.1.weight`; or two files, VGG-16's own
    (`features.I.weight`) and LPIPS's linear layers (`linT.model.1.weight`).

    Raises:
        MissingCheckpoint: no file is given, a file is absent, unsafe or not the one that its name says, or a layer is not
            in any of them.
    """
    if not paths:
        raise MissingCheckpoint(
            "The perceptual loss needs the weights of LPIPS (VGG-16), and none were given. Pass the file or "
            "files with them, or set the weight of the perceptual loss to 0."
        )
    found: dict[str, Tensor] = {}
    for path in paths:
        _check_named_digest(path)
        found.update(_known_layers(read_weights(path)))
    distance = PerceptualDistance()
    missing = [name for name in distance.state_dict() if name not in found]
    if missing:
        raise MissingCheckpoint(
            f"{len(missing)} of {len(distance.state_dict())} layers of LPIPS are in none of "
            f"{', '.join(path.name for path in paths)}, the first of them {missing[0]!r}. Give both "
            "VGG-16's file and LPIPS's."
        )
    distance.load_state_dict(
        {name: found[name].float().reshape(old.shape) for name, old in distance.state_dict().items()}
    )
    return distance


def _check_named_digest(path: Path) -> None:
    """Compare a file with the start of the sha256 that its name ends in, as torchvision names its files (`vgg16-397923af.pth`)."""
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if named and path.is_file() and not file_digest(path).startswith(named[1]):
        raise MissingCheckpoint(
            f"{path} is not the file that its name says: its sha256 does not begin with {named[1]}. Download it again."
        )


def _known_layers(content: Mapping[str, object]) -> dict[str, Tensor]:
    """Translate the published names of LPIPS's layers to ours; leave out all others."""
    place = {i: (stage, j) for stage, indices in enumerate(VGG_INDICES) for j, i in enumerate(indices)}
    layers = {}
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            continue
        if conv := re.search(r"(?:^|\.)(?:features|slice\d)\.(\d+)\.(weight|bias)$", name):
            if int(conv[1]) in place:
                stage, j = place[int(conv[1])]
                layers[f"stages.{stage}.{j}.{conv[2]}"] = tensor
        elif linear := re.search(r"(?:^|\.)lin(\d)(?:\.model)?(?:\.1)?\.weight$", name):
            layers[f"weights.{linear[1]}"] = tensor
    return layers


def _imagenet(images: Tensor) -> Tensor:
    """Normalise images in [-1, 1] as VGG-16 was trained."""
    if images.shape[1] not in (1, 3):
        raise ConfigMismatch(f"The perceptual loss was given images of {images.shape[1]} channels; wanted 1 or 3.")
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_SHIFT, IMAGENET_SCALE))
    return (images.expand(-1, 3, -1, -1) - shift) / scale
