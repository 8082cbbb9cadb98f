"""Map physical values to 8 bit by fixed bounds: decide once a volume (fit), then apply to every slice.

A slice's own minimum and maximum never matter. The parameters go into the manifest row, so every pixel can be explained
and mapped back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from medvar_data.catalog import Recipe
from medvar_data.counts import count, is_countable, percentiles, percentiles_of
from medvar_data.errors import CaseRejected, Reason


@dataclass(frozen=True)
class IntensityParams:
    """The bounds of the 8-bit scale: `low` maps to 0, `high` to 255; HU for CT, the scanner's own unit for MR."""

    normalizer: str
    low: float
    high: float


def fit_window(voxels: Shaped[np.ndarray, "..."], recipe: Recipe) -> IntensityParams:
    """Bounds of a fixed CT window: level ± width / 2, in HU, whatever the scan holds."""
    half = recipe.ct_width_hu / 2
    return IntensityParams("window", recipe.ct_level_hu - half, recipe.ct_level_hu + half)


def fit_percentiles(voxels: Shaped[np.ndarray, "..."], recipe: Recipe) -> IntensityParams:
    """Percentiles of the volume's non-zero voxels, linearly interpolated.

    Raises:
        CaseRejected: `constant_image` where the two percentiles coincide.
    """
    wanted = (recipe.mr_low_percentile, recipe.mr_high_percentile)
    if is_countable(voxels.dtype):
        counts = count(voxels).without(0)
        n_nonzero = counts.total
        low, high = percentiles(counts, wanted) if n_nonzero else (0.0, 0.0)
    else:
        nonzero = voxels[voxels != 0]
        n_nonzero = nonzero.size
        low, high = percentiles_of(nonzero, wanted) if n_nonzero else (0.0, 0.0)
    if not n_nonzero:
        raise CaseRejected(Reason.CONSTANT_IMAGE, "every voxel is zero; wanted an image")
    if not high > low:
        raise CaseRejected(
            Reason.CONSTANT_IMAGE,
            f"percentiles {recipe.mr_low_percentile} and {recipe.mr_high_percentile} of the non-zero voxels are equal",
        )
    return IntensityParams("percentiles", float(low), float(high))


def apply_intensity(image: Shaped[np.ndarray, "h w"], params: IntensityParams) -> UInt8[np.ndarray, "h w"]:
    """Clip to [low, high] and spread over 0..255, rounding half to even."""
    scale = np.float32(255.0 / (params.high - params.low))
    scaled = (image.astype(np.float32) - np.float32(params.low)) * scale
    return np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)


def invert_intensity(image: UInt8[np.ndarray, "h w"], params: IntensityParams) -> Float32[np.ndarray, "h w"]:
    """Map 8 bit back to physical values; exact to half a grey level inside [low, high]."""
    return image.astype(np.float32) * np.float32((params.high - params.low) / 255.0) + np.float32(params.low)


NORMALIZERS: dict[str, Callable[[Shaped[np.ndarray, "..."], Recipe], IntensityParams]] = {
    "window": fit_window,
    "percentiles": fit_percentiles,
}
FIXED_BOUNDS = frozenset({"window"})  # normalizers that never look at a voxel
