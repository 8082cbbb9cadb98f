"""Map physical values to 8 bit by fixed bounds: decide once a volume (fit), then apply to every slice.

A slice's own minimum and maximum never matter. The parameters go into the manifest row, so every pixel can be explained
and mapped back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import CaseRejected, Reason
from medvar_data.harmonize.histogram import Histogram, count, is_countable, percentiles

Values = Shaped[np.ndarray, "..."] | Histogram  # the voxels of a volume, or how often each value occurs among them


@dataclass(frozen=True)
class IntensityParams:
    """The bounds of the 8-bit scale: `low` maps to 0, `high` to 255; HU for CT, the scanner's own unit for MR."""

    normalizer: str
    low: float
    high: float


def fit_window(values: Values, recipe: Recipe) -> IntensityParams:
    """Bounds of a fixed CT window: level ± width / 2, in HU, whatever the scan holds.

    The window of the case's region is in the recipe already (`dependencies.recipe_for`).
    """
    half = recipe.ct_width_hu / 2
    return IntensityParams("window", recipe.ct_level_hu - half, recipe.ct_level_hu + half)


def fit_percentiles(values: Values, recipe: Recipe) -> IntensityParams:
    """Percentiles of the volume's non-zero voxels, linearly interpolated.

    Raises:
        CaseRejected: `constant_image` where the two percentiles coincide.
    """
    if not isinstance(values, Histogram) and is_countable(values.dtype):
        values = count(values)
    nonzero = values.without(0) if isinstance(values, Histogram) else values[values != 0]
    if not (nonzero.total if isinstance(nonzero, Histogram) else nonzero.size):
        raise CaseRejected(Reason.CONSTANT_IMAGE, "every voxel is zero; wanted an image")
    low, high = percentiles(nonzero, (recipe.mr_low_percentile, recipe.mr_high_percentile))
    if not high > low:
        raise CaseRejected(
            Reason.CONSTANT_IMAGE,
            f"percentiles {recipe.mr_low_percentile} and {recipe.mr_high_percentile} of the non-zero voxels "
            f"are both {low:g}; wanted two values",
        )
    return IntensityParams("percentiles", low, high)


def apply_intensity(image: Shaped[np.ndarray, "h w"], params: IntensityParams) -> UInt8[np.ndarray, "h w"]:
    """Clip to [low, high] and spread over 0..255, rounding half to even."""
    scale = np.float32(255.0 / (params.high - params.low))
    scaled = (image.astype(np.float32) - np.float32(params.low)) * scale
    return np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)


def invert_intensity(image: UInt8[np.ndarray, "h w"], params: IntensityParams) -> Float32[np.ndarray, "h w"]:
    """Map 8 bit back to physical values; exact to half a grey level inside [low, high]."""
    return image.astype(np.float32) * np.float32((params.high - params.low) / 255.0) + np.float32(params.low)


NORMALIZERS: dict[str, Callable[[Values, Recipe], IntensityParams]] = {
    "window": fit_window,
    "percentiles": fit_percentiles,
}
FIXED_BOUNDS = frozenset({"window"})  # normalizers that never look at a voxel
