"""Show images coming up: the picture after each scale, coarse to fine.

In: token maps. Out: 8-bit images.
"""

import numpy as np
import torch
from jaxtyping import UInt8

from medvar_model.networks.scales import TokenMaps
from medvar_model.sampling.images import to_uint8
from medvar_model.sampling.sampler import Sampler


@torch.no_grad()
def strip(sampler: Sampler, tokens: TokenMaps) -> UInt8[np.ndarray, "batch scales height width"]:
    """Draw the images after each scale; the last are the images themselves."""
    totals = sampler.pyramid.grow(tokens)
    return np.stack([to_uint8(sampler.decoder(total)).cpu().numpy() for total in totals], axis=1)
