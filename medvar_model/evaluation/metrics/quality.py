"""Say how like its original each image is: PSNR and SSIM, through scikit-image.

In: two equal stacks of 8-bit images. Out: one number an image; average those, never the errors behind them.
"""

import numpy as np
from jaxtyping import Float64, UInt8
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Images = UInt8[np.ndarray, "n side side"]

FULL_RANGE = 255
MOST_DB = 100.0  # given to an image without any error, whose PSNR is infinite
FOREGROUND_ABOVE = 12  # grey value, 5 % of the range; below lies air, which is easy and fills half of most slices


def psnr(real: Images, fake: Images) -> Float64[np.ndarray, " n"]:
    """Give 10 log10(255^2 / mean squared error) of each image, in dB, at most 100."""
    pairs = zip(real, fake, strict=True)
    return np.array([_psnr(a, b) for a, b in pairs], dtype=np.float64)


def foreground_psnr(real: Images, fake: Images) -> Float64[np.ndarray, " n"]:
    """Give the PSNR over the pixels that are brighter than air in the real image; NaN where there are none."""
    each = [_psnr(a[a > FOREGROUND_ABOVE], b[a > FOREGROUND_ABOVE]) for a, b in zip(real, fake, strict=True)]
    return np.array(each, dtype=np.float64)


def ssim(real: Images, fake: Images) -> Float64[np.ndarray, " n"]:
    """Give the mean structural similarity of each image, [-1, 1].

    Wang et al. 2004: a Gaussian window of sigma 1.5 (11 x 11), K1 = 0.01, K2 = 0.03, population covariance.
    """
    each = [
        structural_similarity(
            a, b, data_range=FULL_RANGE, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(real, fake, strict=True)
    ]
    return np.array(each, dtype=np.float64)


def _psnr(real: np.ndarray, fake: np.ndarray) -> float:
    if not real.size:
        return float("nan")
    if np.array_equal(real, fake):
        return MOST_DB
    return min(MOST_DB, float(peak_signal_noise_ratio(real, fake, data_range=FULL_RANGE)))
