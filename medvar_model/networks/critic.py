"""Tell real images from drawn ones, patch by patch: the adversary of the tokenizer's training. No checkpoint holds it for use.

In: images, B x channels x S x S. Out: a score of each patch, high for real.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLU
SPREAD = 0.02  # of the initial weights
GROUP = 16  # channels normalised together


class Critic(nn.Module):
    """Convolutions of 4 x 4 that see patches of 70 pixels (Isola et al. 2017, arXiv 1611.07004, section 6.1.2).

    Group normalisation stands for their batch normalisation, so that an image's score does not depend on the images beside it.

    Args:
        image_channels: 1 for CT and MR.
        width: channels after the first convolution; doubled by each of the next three.
        generator: draws the initial weights; None: torch's global generator.
    """

    def __init__(self, image_channels: int, width: int = 64, generator: torch.Generator | None = None) -> None:
        super().__init__()
        widths = (image_channels, width, 2 * width, 4 * width, 8 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2 if n < 3 else 1, padding=1) for n, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(max(1, c // GROUP), c) for c in widths[2:])
        self.score = nn.Conv2d(widths[-1], 1, 4, padding=1)
        with torch.no_grad():
            for conv in (*self.convs, self.score):
                conv.weight.normal_(0, SPREAD, generator=generator)
                conv.bias.zero_()

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 rows columns"]:
        """Score the patches; images have at least 32 pixels a side."""
        x = F.leaky_relu(self.convs[0](images), SLOPE)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), SLOPE)
        return self.score(x)
