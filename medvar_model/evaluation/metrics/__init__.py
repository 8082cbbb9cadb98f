"""Measures of reconstructed and drawn images.

A newcomer's metric is one function in a file of this folder and one line in `PAIRED` (image by image) or in
`SETS` (rows of features of two sets).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, UInt8

from medvar_model.evaluation.metrics import distances, neighbourhoods
from medvar_model.evaluation.metrics.quality import foreground_psnr, psnr, ssim

Images = UInt8[np.ndarray, "n side side"]
Rows = Float64[np.ndarray, "n features"]
OtherRows = Float64[np.ndarray, "m features"]


@dataclass(frozen=True)
class PairedMetric:
    """A metric of an image and its counterpart.

    Attributes:
        score: takes real images, then fake ones (uint8, n x side x side), and gives a number an image.
        says: what it tells, in a few words. Higher is better in all.
    """

    score: Callable[[Images, Images], Float64[np.ndarray, " n"]]
    says: str


@dataclass(frozen=True)
class SetMetric:
    """A metric of two sets of feature rows.

    Attributes:
        score: takes rows of the real set, then of the fake one, and gives one number.
        better: "higher" or "lower".
        minimum: fewest images on either side for which the number means something.
        says: what it tells, in a few words.
    """

    score: Callable[[Rows, OtherRows], float]
    better: str
    minimum: int
    says: str


# fmt: off
PAIRED: dict[str, PairedMetric] = {
    "psnr":            PairedMetric(psnr,            "error of a pixel, dB"),
    "foreground_psnr": PairedMetric(foreground_psnr, "the same, without air"),
    "ssim":            PairedMetric(ssim,            "likeness of structure"),
}

# The name of the features follows: fd_effnetlite0. An extractor may name some otherwise (`fid`), and says which it is used for.
SETS: dict[str, SetMetric] = {
    "fd":        SetMetric(distances.frechet_distance,  "lower",  130, "mean and spread of features; overstates for few images"),
    "fd_inf":    SetMetric(distances.frechet_infinity,  "lower",  200, "the same, extrapolated to sets without end"),
    "kid":       SetMetric(distances.kernel_distance,   "lower",   30, "features, unbiased"),
    "cmmd":      SetMetric(distances.gaussian_distance, "lower",   30, "mean of CLIP's features, as published; overstates for few images"),
    "cmmd_u":    SetMetric(partial(distances.gaussian_distance, unbiased=True), "lower", 30, "the same, unbiased"),
    "precision": SetMetric(neighbourhoods.precision,    "higher",  30, "are samples like real ones"),
    "recall":    SetMetric(neighbourhoods.recall,       "higher",  30, "are all real ones met"),
    "density":   SetMetric(neighbourhoods.density,      "higher",  30, "precision, robust to outliers"),
    "coverage":  SetMetric(neighbourhoods.coverage,     "higher",  30, "recall, robust to outliers"),
}
# fmt: on


def standardised(real: Rows, fake: OtherRows) -> tuple[Rows, OtherRows]:
    """Divide both sets' rows by the real set's standard deviations, for features of different units."""
    spread = real.std(0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    return (real - real.mean(0)) / spread, (fake - real.mean(0)) / spread
