"""Turn images into token maps and back: the tokenizer (VAR, section 3.3).

In: images in [-1, 1], float32, B x channels x S x S. Out: token maps, coarsest first; and images again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from medvar_model.config import TokenizerConfig
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.codebook import count_codes
from medvar_model.networks.conv import Decoder, Encoder
from medvar_model.networks.pyramid import Latents, Pyramid
from medvar_model.networks.scales import TokenMaps

CONV_GAIN = 0.5

Images = Float32[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Reconstruction:
    """The outcome of a training pass.

    Attributes:
        images: what came back, about [-1, 1] but not clamped, so that gradients reach every pixel; in the
            precision around.
        tokens: ids of every scale; the same as `encode` gives.
        vq_loss: codebook and commitment loss, mean over scales.
        counts: how often each scale chose each code in this batch.
    """

    images: Float[Tensor, "batch channels height width"]
    tokens: TokenMaps
    vq_loss: Float32[Tensor, ""]
    counts: Int64[Tensor, "scales vocabulary"]


class Tokenizer(nn.Module):
    """Encoder, pyramid, decoder.

    Args:
        config: the numbers.
        generator: draws the initial weights; None draws from torch's global generator.

    Example:
        >>> from medvar_model.config import TOKENIZERS
        >>> tokenizer = Tokenizer(TOKENIZERS["tiny"], torch.Generator().manual_seed(0))
        >>> tokens = tokenizer.encode(torch.zeros(2, 1, 32, 32))
        >>> [ids.shape[1] for ids in tokens], tokenizer.decode(tokens).shape
        ([1, 4, 9, 16], torch.Size([2, 1, 32, 32]))
    """

    def __init__(self, config: TokenizerConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_latent = nn.Conv2d(config.latent_channels, config.latent_channels, 3, padding=1)
        self.pyramid = Pyramid(config)
        self.from_latent = nn.Conv2d(config.latent_channels, config.latent_channels, 3, padding=1)
        self.decoder = Decoder(config)
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw convolutions from Xavier's normal distribution with gain 0.5, biases 0; and the codes."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.xavier_normal_(module.weight, CONV_GAIN, generator=generator)
                module.bias.zero_()  # type: ignore[union-attr]  # all have one
        self.pyramid.codebook.initialise(generator)

    def latents(self, images: Images) -> Latents:
        """Give the maps that the pyramid codes.

        Raises:
            ConfigMismatch: the images have another number of channels or another side than configured.
        """
        wanted = (self.config.image_channels, self.config.image_side, self.config.image_side)
        if images.shape[1:] != wanted:
            raise ConfigMismatch(
                f"The tokenizer was given images of {tuple(images.shape[1:])} (channels, height, width); "
                f"wanted {wanted}. Resize them, or use a tokenizer for that size."
            )
        return self.to_latent(self.encoder(F.pixel_unshuffle(images, self.config.patch))).float()

    def render(self, total: Latents) -> Float[Tensor, "batch channels height width"]:
        """Draw the images of latent maps; not clamped."""
        return F.pixel_shuffle(self.decoder(self.from_latent(total)), self.config.patch)

    @torch.no_grad()
    def encode(self, images: Images) -> TokenMaps:
        """Give the ids of every scale."""
        return self.pyramid.encode(self.latents(images))

    @torch.no_grad()
    def decode(self, tokens: TokenMaps) -> Images:
        """Give the images of token maps, in [-1, 1]."""
        return self.render(self.pyramid.decode(tokens)).float().clamp(-1, 1)

    @torch.no_grad()
    def progressive(self, tokens: TokenMaps) -> Iterator[Images]:
        """Give the images after each scale, in [-1, 1]; the last is `decode`'s."""
        for total in self.pyramid.grow(tokens):
            yield self.render(total).float().clamp(-1, 1)

    def forward(
        self, images: Images, kept_B: Int64[Tensor, " batch"] | None = None, rotate: bool = False
    ) -> Reconstruction:
        """Code and draw the images, with gradients (the training pass); see `Pyramid.forward`."""
        quantized = self.pyramid(self.latents(images), kept_B, rotate)
        counts = count_codes(quantized.tokens, self.config.vocabulary)
        return Reconstruction(self.render(quantized.total), quantized.tokens, quantized.loss, counts)


def channels_last(tokenizer: Tokenizer) -> Tokenizer:
    """Lay a frozen tokenizer's weights out with channels innermost, in place: convolutions then take a tenth less time on a CPU."""
    tokenizer.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not declare it
    return tokenizer
