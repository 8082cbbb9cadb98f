"""Say how different two images look: LPIPS and its shift-tolerant variants, on trunks trained on photographs.

In: two image batches. Out: one scalar with gradients. The layers are written here; the weights are read from files the user gives, or
from an installed package's, and never fetched.

    lpips             Zhang et al. 2018 (arXiv 1801.03924), equation 1, on VGG-16; files of torchvision and of the LPIPS authors
    st-lpips          Ghildyal & Liu 2022 (arXiv 2207.13686) on VGG-16: pooling that does not alias; package stlpips-pytorch
    st-lpips-alex     the same on AlexNet: several times cheaper

The shift-tolerant trunks pool in two steps: a maximum at every position, then a binomial blur (1 2 1)/4 along both axes at every second
one, over a border of two reflected pixels (Zhang 2019, arXiv 1904.11486). Our forward pass is tested against the package's own.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from medvar_data.storage.store import file_digest
from medvar_model.checkpoints.weight_files import check_named_digest, read_weights
from medvar_model.errors import ConfigMismatch, MissingCheckpoint

Images = Float[Tensor, "batch channels height width"]
Maps = Float[Tensor, "batch _ _ _"]  # channels, height and width, any of which a part may change

VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG_INDICES = (
    (0, 2),
    (5, 7),
    (10, 12, 14),
    (17, 19, 21),
    (24, 26, 28),
)  # torchvision's numbering of the same layers
ST_VGG_INDICES = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))  # each pooling there is two layers
ST_ALEX_INDICES = ((0,), (5,), (9,), (11,), (13,))
IMAGENET_SHIFT = (-0.030, -0.088, -0.188)  # of images in [-1, 1], as LPIPS's authors publish them
IMAGENET_SCALE = (0.458, 0.448, 0.450)
LEAST_ST_SIDE = 32  # the deepest map must be wider than its reflected border

ST_PACKAGE, ST_DISTRIBUTION, ST_VERSION = "stlpips_pytorch", "stlpips-pytorch", "0.0.2"
ST_FILES = {"st-lpips": "vgg_shift_tolerant.pth", "st-lpips-alex": "alex_shift_tolerant.pth"}
KINDS = ("lpips", *ST_FILES, "none")


class BlurPool(nn.Module):
    """Halve the side by a binomial blur (1 2 1)/4 along both axes, over a border of two reflected pixels."""

    def forward(self, x: Maps) -> Maps:
        """Keep the channels; a side of n becomes (n + 1) // 2 + 1."""
        channels, row = x.shape[1], x.new_tensor((0.25, 0.5, 0.25))
        blur = torch.outer(row, row).expand(channels, 1, 3, 3).contiguous(memory_format=torch.channels_last)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), blur, stride=2, groups=channels)


class Stage(nn.Module):
    """What lies between two taps: pooling, then convolutions, each with a ReLU.

    Args:
        widths: channels before the stage and after each convolution.
        pool: comes first.
        side, padding: of the convolutions.
        after: comes between the convolution and its ReLU.
    """

    def __init__(
        self, widths: Sequence[int], pool: nn.Module, side: int = 3, padding: int = 1, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.pool, self.after = pool, after or nn.Identity()
        self.width = widths[-1]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, side, padding=padding) for a, b in pairwise(widths))

    def forward(self, x: Maps) -> Maps:
        """Give the map that is compared, and goes on."""
        x = self.pool(x)
        for conv in self.convs:
            x = F.relu(self.after(conv(x)))
        return x


def vgg_trunk(shift_tolerant: bool) -> list[Stage]:
    """Build the convolutions of VGG-16 in the five stages that LPIPS compares."""
    pool = nn.Sequential(nn.MaxPool2d(2, stride=1), BlurPool()) if shift_tolerant else nn.MaxPool2d(2)
    first = [3, *(widths[-1] for widths in VGG_STAGES)]
    return [
        Stage((c, *widths), pool if n else nn.Identity())
        for n, (c, widths) in enumerate(zip(first[:-1], VGG_STAGES, strict=True))
    ]


def alex_trunk() -> list[Stage]:
    """Build the convolutions of the shift-tolerant AlexNet: the first at every pixel and then blurred, instead of at every fourth."""
    pool = nn.Sequential(nn.MaxPool2d(3, stride=1), BlurPool())
    return [
        Stage((3, 64), nn.Identity(), 11, 2, after=BlurPool()),
        Stage((64, 192), pool, 5, 2),
        Stage((192, 384), pool),
        Stage((384, 256), nn.Identity()),
        Stage((256, 256), nn.Identity()),
    ]


class PerceptualDistance(nn.Module):
    """How different two images look, >= 0. Frozen; `load_perceptual_distance` and `load_shift_tolerant` build it.

    Args:
        stages: of the trunk.
        least_side: of an image, in pixels.
    """

    def __init__(self, stages: Sequence[Stage], least_side: int = 1) -> None:
        super().__init__()
        self.stages, self.least_side = nn.ModuleList(stages), least_side
        self.weights = nn.ParameterList(torch.ones(stage.width) for stage in stages)
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Give the output of each stage, every position's channels scaled to length 1."""
        x, taps = images.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            taps.append(F.normalize(x, dim=1, eps=1e-10))  # its gradient is finite where all channels are 0
        return taps

    def each(self, first: Images, second: Images) -> Float32[Tensor, " batch"]:
        """Give the distance of each pair, in float32.

        Args:
            first: images in [-1, 1], one channel (repeated) or three.
            second: likewise.

        Raises:
            ConfigMismatch: the images have another number of channels, or are too small for the trunk.
        """
        if min(first.shape[-2:]) < self.least_side:
            raise ConfigMismatch(
                f"This perceptual loss needs images of at least {self.least_side} pixels a side; these have "
                f"{min(first.shape[-2:])}. Choose --perceptual none or another preset."
            )
        with torch.autocast(first.device.type, enabled=False):
            ours, theirs = (self.features(_imagenet(images.float())) for images in (first, second))
            stages = [
                torch.einsum("bchw,c->bhw", (a - b).square(), weight).mean((1, 2))
                for a, b, weight in zip(ours, theirs, self.weights, strict=True)
            ]
            return torch.stack(stages).sum(0)

    def forward(self, first: Images, second: Images) -> Float32[Tensor, ""]:
        """Give the mean distance over the batch; see `each`."""
        return self.each(first, second).mean()


@dataclass(frozen=True)
class PerceptualSource:
    """Where the weights of a perceptual loss come from, for run.json.

    Attributes:
        kind: one of `KINDS`.
        path: the files as the user named them, or the package and its version.
        digest: of the files' content, whatever their names and order.
        licence: of the package; empty where the user gave the files.
    """

    kind: str
    path: str
    digest: str
    licence: str = ""


def check_kind(kind: str) -> None:
    """Refuse a kind that there is not.

    Raises:
        ConfigMismatch: it is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ConfigMismatch(f"--perceptual is {kind!r}; wanted one of {', '.join(KINDS)}.")


def check_files(kind: str, files: Sequence[str]) -> None:
    """Refuse weight files for a kind that takes none.

    Raises:
        ConfigMismatch: there are some.
    """
    if files and kind != "lpips":
        raise ConfigMismatch(f"--lpips-weights belong to --perceptual lpips, not to {kind}. Leave them out.")


def perceptual_source(kind: str, files: Sequence[str]) -> PerceptualSource | None:
    """Say what a run's perceptual loss is made from; None for none.

    Args:
        kind: one of `KINDS`.
        files: weight files, of kind lpips alone. Those that are not there are told where they are read.

    Raises:
        MissingCheckpoint: the package is not installed.
    """
    if kind == "none":
        return None
    if kind == "lpips":
        digests = sorted(file_digest(Path(file)) for file in files if Path(file).is_file())
        return PerceptualSource(kind, ", ".join(files), hashlib.sha256(" ".join(digests).encode()).hexdigest())
    file = shift_tolerant_file(kind)
    said = metadata(ST_DISTRIBUTION)["License"] or "not stated"
    path = f"{ST_DISTRIBUTION} {version(ST_DISTRIBUTION)}, {file.name}"
    return PerceptualSource(kind, path, file_digest(file), said.splitlines()[0].strip())


def load_perceptual(kind: str, files: Sequence[str]) -> PerceptualDistance | None:
    """Read the perceptual loss of a kind; None for none.

    Raises:
        MissingCheckpoint: its weights are not there, or are not what they should be.
    """
    if kind == "none":
        return None
    return load_perceptual_distance([Path(name) for name in files]) if kind == "lpips" else load_shift_tolerant(kind)


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
        check_named_digest(path)
        found.update(_known_layers(read_weights(path), VGG_INDICES))
    return _filled(
        PerceptualDistance(vgg_trunk(shift_tolerant=False)), found, paths, "Give both VGG-16's file and LPIPS's."
    )


def load_shift_tolerant(kind: str, path: Path | None = None) -> PerceptualDistance:
    """Read a shift-tolerant LPIPS, weights only.

    Args:
        kind: st-lpips or st-lpips-alex.
        path: its weight file; None takes the installed package's.

    Raises:
        MissingCheckpoint: the package is not installed, or the file is not what it should be.
    """
    file = path or shift_tolerant_file(kind)
    indices, stages = (
        (ST_ALEX_INDICES, alex_trunk()) if kind.endswith("alex") else (ST_VGG_INDICES, vgg_trunk(shift_tolerant=True))
    )
    found = _known_layers(read_weights(file), indices)
    wanted = f"Wanted the file of {ST_DISTRIBUTION} {ST_VERSION}; install that version."
    return _filled(PerceptualDistance(stages, LEAST_ST_SIDE), found, [file], wanted)


def shift_tolerant_file(kind: str) -> Path:
    """Find the weight file in the installed package, of which no code is imported.

    Raises:
        MissingCheckpoint: the package is not installed, or has no such file.
    """
    try:
        spec, found = find_spec(ST_PACKAGE), version(ST_DISTRIBUTION)
    except PackageNotFoundError:
        spec, found = None, ""
    for folder in spec.submodule_search_locations or () if spec else ():
        file = Path(folder) / "weights" / "vST0.0" / ST_FILES[kind]
        if file.is_file():
            return file
    state = f"{ST_DISTRIBUTION} {found} has no such file" if found else f"{ST_DISTRIBUTION} is not installed"
    raise MissingCheckpoint(
        f"The perceptual loss {kind} takes its weights from a package that brings them, and {state}. Run pip install "
        f"'medvar[perceptual]' (or --no-deps {ST_DISTRIBUTION}=={ST_VERSION}); or choose --perceptual none."
    )


def _filled(
    distance: PerceptualDistance, found: Mapping[str, Tensor], paths: Sequence[Path], way_on: str
) -> PerceptualDistance:
    wanted = distance.state_dict()
    missing = [name for name in wanted if name not in found or found[name].numel() != wanted[name].numel()]
    if missing:
        raise MissingCheckpoint(
            f"{len(missing)} of {len(wanted)} layers of LPIPS are in none of "
            f"{', '.join(path.name for path in paths)}, the first of them {missing[0]!r}. {way_on}"
        )
    distance.load_state_dict({name: found[name].float().reshape(old.shape) for name, old in wanted.items()})
    return distance


def _known_layers(content: Mapping[str, object], numbering: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Translate the published names of LPIPS's layers to ours; leave out all others."""
    place = {i: (stage, j) for stage, indices in enumerate(numbering) for j, i in enumerate(indices)}
    layers = {}
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            continue
        if conv := re.search(r"(?:^|\.)(?:features|slice\d)\.(\d+)\.(weight|bias)$", name):
            if int(conv[1]) in place:
                stage, j = place[int(conv[1])]
                layers[f"stages.{stage}.convs.{j}.{conv[2]}"] = tensor
        elif linear := re.search(r"(?:^|\.)lin(\d)(?:\.model)?(?:\.1)?\.weight$", name):
            layers[f"weights.{linear[1]}"] = tensor
    return layers


def _imagenet(images: Tensor) -> Tensor:
    """Normalise images in [-1, 1] as the trunks were trained."""
    if images.shape[1] not in (1, 3):
        raise ConfigMismatch(f"The perceptual loss was given images of {images.shape[1]} channels; wanted 1 or 3.")
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_SHIFT, IMAGENET_SCALE))
    return (images.expand(-1, 3, -1, -1) - shift) / scale
