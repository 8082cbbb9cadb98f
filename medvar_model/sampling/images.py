"""Turn what a network draws into 8-bit images."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_uint8(
    images_BCSS: Float[Tensor, "batch channels height width"],
) -> UInt8[Tensor, "batch height width"]:
    """Give 8-bit grey images; -1 is 0 and 1 is 255, channels are averaged, what lies outside is clamped."""
    grey = images_BCSS.float().clamp(-1, 1).mean(1)
    return ((grey + 1) * 127.5).round().to(torch.uint8)
