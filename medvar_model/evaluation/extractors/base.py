"""What an extractor of features is, and how a network becomes one.

In: a network and how images enter it. Out: an `Extractor`: a function of images, the names of the metrics on its features,
and what must be known of it to repeat a number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from PIL import Image
from torch import Tensor, nn

from medvar_data.storage.codec import pixel_digest

Images = UInt8[np.ndarray, "n side side"]
Rows = Float64[np.ndarray, "n features"]
Grey = UInt8[Tensor, "n side side"]
Inputs = Float32[Tensor, "n 3 height width"]

USUAL = ("fd", "fd_inf", "kid", "precision", "recall", "density", "coverage")  # set metrics of most features


def metric_names(features: str, **published: str) -> dict[str, str]:
    """Name the usual set metrics on some features.

    Args:
        features: their name: `fd` on `effnetlite0` is `fd_effnetlite0`.
        published: kind → the name that a metric has in the literature where it stands on exactly these features.

    Example:
        >>> metric_names("inception", fd="fid")["fd"], metric_names("hand64")["fd"]
        ('fid', 'fd_hand64')
    """
    return {kind: published.get(kind, f"{kind}_{features}") for kind in USUAL}


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
        metrics: kind of set metric (`metrics.SETS`) → its name on these features; empty is all usual ones.
        least_side: of an image, in pixels.
    """

    name: str
    width: int
    of: Callable[[Images], Rows]
    standardised: bool
    learned: bool
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    least_side: int = 1

    def __post_init__(self) -> None:
        if not self.metrics:
            object.__setattr__(self, "metrics", metric_names(self.name))


def described_by(
    network: nn.Module, prepare: Callable[[Grey], Inputs], width: int, device: torch.device, batch_size: int = 16
) -> Callable[[Images], Rows]:
    """Give the function that describes images by a network.

    Args:
        network: takes what `prepare` gives, float32 n x 3 x height x width, and gives float32 n x width.
        prepare: takes uint8 n x side x side on `device`.
        width: numbers an image.
        device: where both compute.
        batch_size: images at a time; changes nothing but speed and memory.
    """
    network = network.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def of(images: Images) -> Rows:
        parts = [
            network(prepare(torch.from_numpy(images[start : start + batch_size]).to(device))).double().cpu().numpy()
            for start in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, width))

    return of


def resized(images: Grey, side: int, kind: Image.Resampling) -> UInt8[Tensor, "n high wide"]:
    """Bring images to another side with Pillow, which smooths where it makes them smaller, and rounds to 8 bits."""
    pixels = images.cpu().numpy()
    small = [np.asarray(Image.fromarray(image).resize((side, side), kind)) for image in pixels]
    return torch.from_numpy(np.stack(small)).to(images.device)


def remembering(wanted: Extractor) -> Extractor:
    """Describe each image once, however often it is asked for: held-out slices belong to several comparisons."""
    known: dict[str, Any] = {}

    def of(images: Images) -> Rows:
        digests = [pixel_digest(image) for image in images]
        new = {digest: place for place, digest in enumerate(digests) if digest not in known}
        if new:
            rows = wanted.of(images[list(new.values())])
            known.update(zip(new, rows, strict=True))
        return np.stack([known[digest] for digest in digests]) if digests else np.zeros((0, wanted.width))

    return replace(wanted, of=of)
