"""Draw images faster with the same decoder: its weights laid out anew, its enlarging convolutions cut to what they read.

In: a tokenizer. Out: a copy of what turns latent maps into images. In float32 it gives the tokenizer's own images up to rounding.
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from medvar_model.networks.conv import DecoderLevel, Enlarge, Maps
from medvar_model.networks.tokenizer import Tokenizer


class FastDecoder(nn.Module):
    """The decoding half of a tokenizer, for drawing alone.

    Channels stand next to each other in memory, as matrix units want them.

    Args:
        tokenizer: whose weights are copied.
        dtype: of weights and maps; float32 or bfloat16.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.patch, self.dtype = tokenizer.config.patch, dtype
        self.from_latent, self.decoder = copy.deepcopy(tokenizer.from_latent), copy.deepcopy(tokenizer.decoder)
        for level in self.decoder.levels:
            if isinstance(level, DecoderLevel) and isinstance(level.upsample, Enlarge):
                level.upsample = FoldedEnlarge(level.upsample)
        self.to(dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)

    def forward(self, total: Float[Tensor, "batch code side side"]) -> Float[Tensor, "batch channels height width"]:
        """Draw the images of latent maps; not clamped. See `Tokenizer.render`."""
        with torch.autocast(total.device.type, enabled=False):
            maps = total.to(dtype=self.dtype, memory_format=torch.channels_last)
            return F.pixel_shuffle(self.decoder(self.from_latent(maps)), self.patch)


class FoldedEnlarge(nn.Module):
    """`Enlarge` in four ninths of its multiplications.

    Of the nine positions that a 3 x 3 convolution reads in a map whose positions were doubled, only four differ. So each of the four
    positions that come of one is a 2 x 2 convolution of the map before doubling, with the weights of equal positions added up.

    Args:
        enlarge: whose weights are taken, from a 3 x 3 convolution padded by 1.
    """

    def __init__(self, enlarge: Enlarge):
        super().__init__()
        assert enlarge.bias is not None
        self.bias = nn.Parameter(enlarge.bias.detach().clone())
        weights = [_folded(_folded(enlarge.weight.detach(), 2, i), 3, j) for i in (0, 1) for j in (0, 1)]
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Maps) -> Maps:
        """Double the side, keep the channels."""
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        out = torch.empty(
            (len(x), len(self.bias), 2 * height, 2 * width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        for place, weight in enumerate(self.weights):
            i, j = divmod(place, 2)
            window = padded[:, :, i : i + height + 1, j : j + width + 1]
            out[:, :, i::2, j::2] = F.conv2d(window, weight, self.bias)
        return out


def _folded(weight: Tensor, dimension: int, parity: int) -> Tensor:
    """Add the weights along one axis that read the same position: the last two for the first of a pair, the first two for the second."""
    first, middle, last = weight.unbind(dimension)
    return torch.stack([first, middle + last] if parity == 0 else [first + middle, last], dimension)
