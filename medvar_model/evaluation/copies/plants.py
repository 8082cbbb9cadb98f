"""Make copies of slices as a network might: shifted, flipped, turned, blended, noised, re-windowed. Known truth for the audit.

In: slices and a strength. Out: changed slices. Strengths are pixels, degrees or grey values of the slices themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from medvar_model.evaluation.metrics.quality import FOREGROUND_ABOVE

Images = UInt8[np.ndarray, "n side side"]


@dataclass(frozen=True)
class Plant:
    """A way to change a copy.

    Attributes:
        change: takes slices, strength and a generator.
        strengths: tried, weak ones first.
        unit: of the strength.
        required: the strongest at which copies must still be found; stronger ones are shown only.
    """

    change: Callable[[Images, float, np.random.Generator], Images]
    strengths: tuple[float, ...]
    unit: str
    required: float


def shifted(images: Images, pixels: float, draw: np.random.Generator) -> Images:
    """Move each slice by so many pixels along both axes, the way drawn; what comes in repeats the edge."""
    return np.stack([_moved(image, *(draw.choice((-1, 1), 2) * pixels)) for image in images])


def flipped(images: Images, kind: float, draw: np.random.Generator) -> Images:
    """Mirror: 1 left-right, 2 up-down, 3 both."""
    return np.ascontiguousarray(np.flip(images, {1: (2,), 2: (1,), 3: (1, 2)}[int(kind)]))


def turned(images: Images, degrees: float, draw: np.random.Generator) -> Images:
    """Turn about the middle, clockwise or not as drawn."""
    centre = ((images.shape[2] - 1) / 2, (images.shape[1] - 1) / 2)
    return np.stack(
        [_warped(i, cv2.getRotationMatrix2D(centre, float(draw.choice((-1, 1)) * degrees), 1.0)) for i in images]
    )


def blended(images: Images, share: float, draw: np.random.Generator) -> Images:
    """Mix with another of the slices; `share` percent are the other's."""
    other = np.roll(images, 1 + int(draw.integers(len(images) - 1)) if len(images) > 1 else 0, axis=0)
    return np.rint(images * (1 - share / 100) + other * (share / 100)).astype(np.uint8)


def noised(images: Images, deviation: float, draw: np.random.Generator) -> Images:
    """Add Gaussian noise of so many grey values."""
    return np.clip(np.rint(images + draw.normal(0, deviation, images.shape)), 0, 255).astype(np.uint8)


def rewindowed(images: Images, percent: float, draw: np.random.Generator) -> Images:
    """Stretch a part of the body's own range of grey (1st to 99th percentile), so many percent narrower and placed as drawn, to all of it;
    what lies outside is clipped.
    """
    return np.stack([_stretched(image, percent / 100, float(draw.uniform())) for image in images])


# fmt: off
PLANTS: dict[str, Plant] = {
    "shifted":    Plant(shifted,    (0.0, 1.0, 2.0, 4.0, 8.0, 12.0),    "pixels along both axes", 8.0),
    "flipped":    Plant(flipped,    (1.0, 2.0, 3.0),              "1 left-right, 2 up-down, 3 both", 3.0),
    "turned":     Plant(turned,     (1.0, 2.0, 3.0, 5.0, 8.0),        "degrees", 5.0),
    "blended":    Plant(blended,    (5.0, 10.0, 20.0, 30.0, 40.0),    "% of another slice", 20.0),
    "noised":     Plant(noised,     (4.0, 8.0, 16.0, 32.0),         "grey values", 16.0),
    "rewindowed": Plant(rewindowed, (10.0, 20.0, 30.0, 50.0),       "% narrower", 30.0),
}
# fmt: on


def _stretched(image: np.ndarray, narrower: float, place: float) -> np.ndarray:
    body = image[image > FOREGROUND_ABOVE]
    low, high = np.percentile(body, (1, 99)) if body.size else (0.0, 255.0)
    width = max(1.0, (high - low) * (1 - narrower))
    start = low + place * (high - low) * narrower
    return np.clip(np.rint((image - start) * (255 / width)), 0, 255).astype(np.uint8)


def _moved(image: np.ndarray, across: float, down: float) -> np.ndarray:
    return _warped(image, np.array([[1, 0, across], [0, 1, down]], dtype=np.float64))


def _warped(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    size = (image.shape[1], image.shape[0])
    return cv2.warpAffine(image, by, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
