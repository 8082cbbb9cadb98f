"""Turn images into latent maps and back: the tokenizer's two convolutional halves (VAR's choice of VQGAN's).

In: images (B, channels, S, S). Out: maps (B, latent_channels, S / 2^(levels - 1), ...), and the reverse.
Every level but the last halves the side; attention stands at the coarsest level only.

The names map to those of VAR's weights as follows (`import_var.py` applies it):

| here                                                     | VAR                                           |
|----------------------------------------------------------|-----------------------------------------------|
| encoder.entry, encoder.exit, encoder.norm                | encoder.conv_in, .conv_out, .norm_out         |
| encoder.levels.i.blocks.j, .attentions.j                 | encoder.down.i.block.j, .attn.j               |
| encoder.levels.i.downsample                              | encoder.down.i.downsample.conv                |
| decoder.(the same)                                       | decoder.up (in place of down)                 |
| decoder.levels.i.upsample                                | decoder.up.i.upsample.conv                    |
| middle.before, .attention, .after                        | mid.block_1, .attn_1, .block_2                |
| residual block: norm_1, conv_1, norm_2, conv_2, shortcut | norm1, conv1, norm2, conv2, nin_shortcut      |
| attention: norm, query_key_value, output                 | norm, qkv, proj_out                           |
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from medvar_model.config import TokenizerConfig

NORM_EPSILON = 1e-6

Maps = Float[Tensor, "batch _ _ _"]  # channels, height and width, any of which a part may change


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution on x where the channels change."""

    def __init__(self, c_in: int, c_out: int, groups: int):
        super().__init__()
        self.norm_1 = nn.GroupNorm(groups, c_in, eps=NORM_EPSILON)
        self.conv_1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm_2 = nn.GroupNorm(groups, c_out, eps=NORM_EPSILON)
        self.conv_2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Maps) -> Maps:
        """Keep the side."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = self.conv_2(F.silu(self.norm_2(h)))
        return self.shortcut(x) + h


class MapAttention(nn.Module):
    """x + attention between all positions of a map, with one head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPSILON)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Maps) -> Maps:
        """Keep the side."""
        qkv = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)[:, None]  # B, 1 head, H W, 3 C
        h = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return x + self.output(h[:, 0].transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    """Block, attention, block at the coarsest side."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.before = ResidualBlock(channels, channels, groups)
        self.attention = MapAttention(channels, groups)
        self.after = ResidualBlock(channels, channels, groups)

    def forward(self, x: Maps) -> Maps:
        """Keep the side."""
        return self.after(self.attention(self.before(x)))


class Level(nn.Module):
    """The blocks of one side, with attention after each where wanted."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, attention: bool):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(c_in if j == 0 else c_out, c_out, groups) for j in range(blocks))
        self.attentions = nn.ModuleList(MapAttention(c_out, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Maps) -> Maps:
        """Keep the side."""
        for j, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[j](x)
        return x


class EncoderLevel(Level):
    """A level, then half the side, except at the coarsest level."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, coarsest: bool):
        super().__init__(c_in, c_out, blocks, groups, attention=coarsest)
        self.downsample = None if coarsest else nn.Conv2d(c_out, c_out, 3, stride=2)

    def forward(self, x: Maps) -> Maps:
        """Halve the side; the zeros needed at the border are put right and below only."""
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(F.pad(x, (0, 1, 0, 1)))


class DecoderLevel(Level):
    """A level, then twice the side, except at the finest level."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, coarsest: bool, finest: bool):
        super().__init__(c_in, c_out, blocks, groups, attention=coarsest)
        self.upsample: nn.Module | None = None if finest else Enlarge(c_out, c_out, 3, padding=1)

    def forward(self, x: Maps) -> Maps:
        """Double the side, except at the finest level."""
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)


class Enlarge(nn.Conv2d):
    """Double the side by repeating each position, then smooth by a 3 x 3 convolution."""

    def forward(self, x: Maps) -> Maps:
        """Keep the channels."""
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class Encoder(nn.Module):
    """Images to latent maps."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.level_multipliers]
        last, groups = len(widths) - 1, config.norm_groups
        self.entry = nn.Conv2d(config.folded_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            EncoderLevel(widths[max(0, i - 1)], widths[i], config.blocks_per_level, groups, coarsest=i == last)
            for i in range(len(widths))
        )
        self.middle = Middle(widths[last], groups)
        self.norm = nn.GroupNorm(groups, widths[last], eps=NORM_EPSILON)
        self.exit = nn.Conv2d(widths[last], config.latent_channels, 3, padding=1)

    def forward(self, images: Maps) -> Maps:
        """Go from the finest level to the coarsest."""
        x = self.entry(images)
        for level in self.levels:
            x = level(x)
        return self.exit(F.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """Latent maps to images."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.level_multipliers]
        last, groups, blocks = len(widths) - 1, config.norm_groups, config.blocks_per_level + 1
        self.entry = nn.Conv2d(config.latent_channels, widths[last], 3, padding=1)
        self.middle = Middle(widths[last], groups)
        self.levels = nn.ModuleList(
            DecoderLevel(widths[min(last, i + 1)], widths[i], blocks, groups, coarsest=i == last, finest=i == 0)
            for i in range(len(widths))
        )
        self.norm = nn.GroupNorm(groups, widths[0], eps=NORM_EPSILON)
        self.exit = nn.Conv2d(widths[0], config.folded_channels, 3, padding=1)

    def forward(self, latents: Maps) -> Maps:
        """Go from the coarsest level to the finest; the answer is not clamped."""
        x = self.middle(self.entry(latents))
        for level in reversed(self.levels):
            x = level(x)
        return self.exit(F.silu(self.norm(x)))
