"""Measures of reconstructed and drawn images.

A newcomer's metric is one function in a file of this folder and one line in `METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from medvar_model.evaluation.metrics import distances
from medvar_model.evaluation.metrics.features import features
from medvar_model.evaluation.metrics.quality import foreground_psnr, psnr, ssim

Images = UInt8[np.ndarray, "n side side"]
OtherImages = UInt8[np.ndarray, "m side side"]


@dataclass(frozen=True)
class Metric:
    """How a metric is computed and read.

    Attributes:
        score: takes real images, then fake ones (uint8, n x side x side), and gives one number.
        better: "higher" or "lower".
        minimum: fewest images on either side for which the number means something.
        paired: whether image n of one side belongs to image n of the other.
        says: what it tells, in a few words.
    """

    score: Callable[[Images, OtherImages], float]
    better: str
    minimum: int
    paired: bool
    says: str


def on_features(
    distance: Callable[[Float64[np.ndarray, "n d"], Float64[np.ndarray, "m d"]], float],
) -> Callable[[Images, OtherImages], float]:
    """Turn a distance of feature rows into one of images: features are standardised by the real set's."""

    def score(real: Images, fake: OtherImages) -> float:
        a, b = features(real), features(fake)
        spread = a.std(0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        return distance((a - a.mean(0)) / spread, (b - a.mean(0)) / spread)

    return score


def _mean(each: Callable[[Images, Images], Float64[np.ndarray, " n"]]) -> Callable[[Images, Images], float]:
    def score(real: Images, fake: Images) -> float:
        return float(np.nanmean(each(real, fake)))

    return score


# fmt: off
METRICS: dict[str, Metric] = {
    "psnr":            Metric(_mean(psnr),                              "higher",   1, True,  "error of a pixel, dB"),
    "foreground_psnr": Metric(_mean(foreground_psnr),                   "higher",   1, True,  "the same, without air"),
    "ssim":            Metric(_mean(ssim),                              "higher",   1, True,  "likeness of structure"),
    "frechet_64":      Metric(on_features(distances.frechet_distance),  "lower",  130, False, "mean and spread of features"),
    "kernel_64":       Metric(on_features(distances.kernel_distance),   "lower",   30, False, "features, unbiased"),
    "density_64":      Metric(on_features(distances.density),           "higher",  30, False, "are samples like real ones"),
    "coverage_64":     Metric(on_features(distances.coverage),          "higher",  30, False, "are all real ones met"),
}
# fmt: on
