"""Code each patch of an image by a linear map, beside the convolutions: what of an image needs little learning.

In: images (B, channels, S, S). Out: what is added to their latent maps (B, latent_channels, S / D, S / D), where D is the tokenizer's
downsampling; and the reverse. Both maps begin as the lowest frequencies of the cosine transform, and learn from there, so that a
tokenizer draws recognisable images from its first step on.
"""

import math
from itertools import product

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from medvar_model.config import TokenizerConfig


class LinearPath(nn.Module):
    """A linear map of each patch of D x D pixels to a latent vector, and one back.

    At first, the latent channels are the patch's lowest frequencies (DCT-II; of several image channels, in turns), scaled so that an
    error of the latent map has the mean square of the error that it makes in the pixels. Back is the inverse, so that both
    together leave of an image what these frequencies hold of it.

    Args:
        config: of the tokenizer.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        side, channels, latent = config.downsampling, config.image_channels, config.latent_channels
        self.analysis = nn.Conv2d(channels, latent, side, stride=side, bias=False)
        self.synthesis = nn.ConvTranspose2d(latent, channels, side, stride=side, bias=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Set both maps to the lowest frequencies."""
        if self.analysis.weight.is_meta:
            return
        latent, channels, side = self.analysis.weight.shape[:3]
        basis_FDD = low_frequencies(side, -(-latent // channels)).to(self.analysis.weight)
        rows = torch.zeros_like(self.analysis.weight)
        for k in range(min(latent, channels * len(basis_FDD))):
            rows[k, k % channels] = basis_FDD[k // channels]
        scale = math.sqrt(latent / channels) / side
        self.analysis.weight.copy_(rows * scale)
        self.synthesis.weight.copy_(rows / scale)


def low_frequencies(side: int, count: int) -> Float64[Tensor, "frequencies side side"]:
    """Give the lowest `count` basis images of the orthonormal two-dimensional DCT-II of a patch, or all that there are, by u^2 + v^2."""
    order = torch.arange(side, dtype=torch.float64)
    wave = torch.cos(torch.outer(order, order + 0.5) * math.pi / side) * math.sqrt(2 / side)
    wave[0] /= math.sqrt(2)
    pairs = sorted(product(range(side), repeat=2), key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))[:count]
    return torch.stack([torch.outer(wave[u], wave[v]) for u, v in pairs])
