"""Describe a slice by radiomic numbers: first order, texture, gradients, scales. What `frd_style` stands on.

In: 8-bit images of any side, brought to 128 x 128. Out: float64, n x 76:

    0-13   first order of the body's grey: mean, deviation, skewness, kurtosis, energy, entropy, range between percentiles,
           mean absolute deviation, percentiles 10 25 50 75 90, share of body
    14-53  Haralick's co-occurrence in 32 grey levels, at distances 1 and 3 in four directions: contrast, dissimilarity,
           homogeneity, energy, correlation (each in four directions)
    54-65  gradient magnitude of 3 Gaussian scales: mean, deviation, percentile 90, entropy
    66-75  Laplacian of Gaussian of 5 scales: deviation and mean absolute value

The idea is the Frechet radiomics distance (Konz et al. 2025); the features are our own choice and not pyradiomics', so
numbers are not comparable with published ones. No network, no weights: distances on these run anywhere, and each number
can be named.
"""

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from skimage.feature import graycomatrix, graycoprops

from medvar_model.evaluation.metrics.features import shrunk
from medvar_model.evaluation.metrics.quality import FOREGROUND_ABOVE

SIDE = 128
LEVELS = 32
DISTANCES = (1, 3)
DIRECTIONS = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")
GRADIENT_SCALES, LAPLACE_SCALES = (1.0, 2.0, 4.0), (1.0, 2.0, 3.0, 4.0, 5.0)
N_RADIOMICS = (
    14 + len(DISTANCES) * len(DIRECTIONS) * len(PROPERTIES) + 4 * len(GRADIENT_SCALES) + 2 * len(LAPLACE_SCALES)
)


def radiomics(images: UInt8[np.ndarray, "n side side"]) -> Float64[np.ndarray, "n 76"]:
    """Compute the numbers; see the head of the file."""
    rows = [np.concatenate([_first_order(i), _texture(i), _gradients(i), _laplace(i)]) for i in shrunk(images, SIDE)]
    return np.array(rows).reshape(len(images), N_RADIOMICS)


def _first_order(image: np.ndarray) -> np.ndarray:
    body = image > FOREGROUND_ABOVE
    grey = image[body].astype(np.float64) / 255
    if grey.size < 2:
        return np.zeros(14)
    centred, spread = grey - grey.mean(), grey.std()
    scaled = centred / spread if spread > 1e-9 else centred
    low, quarter, middle, three, high = np.percentile(grey, (10, 25, 50, 75, 90))
    moments = [(scaled**3).mean(), (scaled**4).mean(), np.square(grey).mean(), _entropy(grey)]
    return np.array([
        grey.mean(), spread, *moments, three - quarter, np.abs(centred).mean(), low, quarter, middle, three, high, body.mean()
    ])  # fmt: skip


def _texture(image: np.ndarray) -> np.ndarray:
    table = graycomatrix(image // (256 // LEVELS), DISTANCES, DIRECTIONS, LEVELS, symmetric=True, normed=True)
    return np.concatenate([graycoprops(table, name).ravel() for name in PROPERTIES])


def _gradients(image: np.ndarray) -> np.ndarray:
    parts: list[float] = []
    for sigma in GRADIENT_SCALES:
        down, right = np.gradient(cv2.GaussianBlur(image.astype(np.float64) / 255, (0, 0), sigma))
        steep = np.hypot(down, right)
        parts += [steep.mean(), steep.std(), float(np.percentile(steep, 90)), _entropy(np.minimum(steep * 4, 1))]
    return np.array(parts)


def _laplace(image: np.ndarray) -> np.ndarray:
    parts: list[float] = []
    for sigma in LAPLACE_SCALES:
        smooth = cv2.GaussianBlur(image.astype(np.float64) / 255, (0, 0), sigma)
        answer = sigma**2 * cv2.Laplacian(smooth, cv2.CV_64F)
        parts += [answer.std(), np.abs(answer).mean()]
    return np.array(parts)


def _entropy(values: np.ndarray) -> float:
    """Give the entropy of a 32-bin histogram over [0, 1], in bits."""
    share = np.histogram(values, bins=LEVELS, range=(0, 1))[0] / max(values.size, 1)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())
