"""Say how alike two slices are, whatever shift, flip, small turn or window lies between them.

In: thumbnails of 64 x 64 pixels. Out: a score up to 1 for each pair: the largest correlation over all circular shifts (by Fourier
transforms), the flip that is given, and turns of -5 to 5 degrees. Grey enters through a band-pass, so that brightness, windows and
noise matter little, and that two patients' anatomy is less alike than their outlines.
"""

from functools import cache

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

SIDE = 64
FINE, COARSE = 1.0, 6.0  # sigma of both Gaussians whose difference is compared, pixels
TURNS = (0.0, -5.0, -2.5, 2.5, 5.0)  # degrees
FLIPS = ((), (2,), (1,), (1, 2))  # axes: none, left-right, up-down, both
EMPTY = 1e-6
EDGE = 12  # pixels over which a slice fades out, so that what a shift brings in at its edge matters little
LEAST_SPREAD = 4.0  # grey values; a slice that varies less holds nothing to compare, and matches little

Thumbnails = UInt8[np.ndarray, "n 64 64"]


def spectra(thumbnails: Thumbnails) -> Tensor:
    """Give the Fourier transforms of band-passed slices of length 1: complex64, n x 64 x 33."""
    return torch.fft.rfft2(_normal(_banded(torch.from_numpy(thumbnails.astype(np.float32)))))


def turned_spectra(thumbnails: Thumbnails) -> Tensor:
    """Give the same for every flip and turn, conjugated: n x flips x turns x 64 x 33."""
    parts = []
    for axes in FLIPS:
        flipped = np.flip(thumbnails, axes) if axes else thumbnails
        turned = np.stack([[_turned(image, turn) for turn in TURNS] for image in flipped]).astype(np.float32)
        shape = turned.shape
        banded = _normal(_banded(torch.from_numpy(turned.reshape(-1, SIDE, SIDE))))
        parts.append(torch.fft.rfft2(banded).conj().reshape(*shape[:2], SIDE, SIDE // 2 + 1))
    return torch.stack(parts, 1)


def best_scores(
    queries: Tensor, candidates: Tensor, flip: Int64[np.ndarray, " candidates"]
) -> Float32[np.ndarray, " candidates"]:
    """Score one query against its candidates.

    Args:
        queries: of one image, from `turned_spectra`: flips x turns x 64 x 33.
        candidates: from `spectra`.
        flip: the query's flip under which each candidate was found.
    """
    product = queries[torch.from_numpy(flip)] * candidates[:, None]
    return torch.fft.irfft2(product, s=(SIDE, SIDE)).amax((1, 2, 3)).numpy()


def _normal(maps: Tensor) -> Tensor:
    maps = maps * _fade()
    length = maps.flatten(1).norm(dim=1).clamp(min=EMPTY + LEAST_SPREAD * SIDE)
    return maps / length[:, None, None]


def _banded(grey: Tensor) -> Tensor:
    """Subtract a coarse Gaussian from a fine one, in the Fourier domain (circular, as the shifts)."""
    return torch.fft.irfft2(torch.fft.rfft2(grey) * _band(), s=(SIDE, SIDE))


@cache
def _band() -> Tensor:
    """The filter: the difference of two Gaussians' transforms; the mean is removed."""
    square = torch.fft.fftfreq(SIDE)[:, None] ** 2 + torch.fft.rfftfreq(SIDE)[None] ** 2
    fine, coarse = (torch.exp(-2 * np.pi**2 * sigma**2 * square) for sigma in (FINE, COARSE))
    return fine - coarse


@cache
def _fade() -> Tensor:
    """A window that is 1 inside and falls to 0 at the edge, as a raised cosine."""
    from_edge = torch.minimum(torch.arange(SIDE) + 0.5, SIDE - torch.arange(SIDE) - 0.5).clamp(max=EDGE)
    line = (1 - torch.cos(torch.pi * from_edge / EDGE)) / 2
    return line[:, None] * line[None]


def _turned(image: np.ndarray, degrees: float) -> np.ndarray:
    if not degrees:
        return image
    around = cv2.getRotationMatrix2D(((SIDE - 1) / 2, (SIDE - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(np.ascontiguousarray(image), around, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
