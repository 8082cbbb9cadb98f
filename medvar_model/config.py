"""Say in numbers what is built: configurations of tokenizer and transformer, named sizes, parameter counts.

In: numbers or a JSON-like mapping. Out: frozen dataclasses whose derived values are properties. No torch here.
A little over 300 lines: the two configurations, their sizes and their counts are read side by side.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from medvar_model.errors import ConfigMismatch

MOST, MOST_LEVELS = 1 << 20, 64  # of any number that counts something, and of levels or scales
PAPER_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # 680 tokens for 256 x 256 pixels


@dataclass(frozen=True)
class TokenizerConfig:
    """A multi-scale residual VQ autoencoder (VAR, section 3.3; the defaults are the paper's).

    Attributes:
        image_side: height and width of the images, in pixels.
        image_channels: 1 for CT and MR; 3 only to compare with weights trained on colour.
        patch: pixels a side that are folded into channels before the first convolution and unfolded after the
            last; 1 is the paper's. 2 costs a laptop a quarter of the work at the finest level.
        width: channels of the finest level.
        level_multipliers: channels of each level, finest first, in units of `width`; each level but the last
            halves the side.
        blocks_per_level: residual blocks of an encoder level; a decoder level has one more.
        latent_channels: length of a code vector.
        vocabulary: number of code vectors, shared by all scales or of each.
        scale_sides: side of each token map, coarsest (always 1) first; the last is the latent side.
        n_smoothers: how many smoothing convolutions the scales share (1 = one for all).
        residual_ratio: weight of the convolution in a smoother; the rest passes unchanged.
        commitment: weight of the term that pulls the encoder to its codes (beta).
        norm_groups: groups of every group normalisation; must divide the width of every level.
        code_layer: code vectors are fixed vectors times one learnt matrix; see `networks.codebook`.
        codes_per_scale: each scale has code vectors of its own.
    """

    image_side: int = 256
    image_channels: int = 1
    patch: int = 1
    width: int = 160
    level_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks_per_level: int = 2
    latent_channels: int = 32
    vocabulary: int = 4096
    scale_sides: tuple[int, ...] = PAPER_SIDES
    n_smoothers: int = 4
    residual_ratio: float = 0.5
    commitment: float = 0.25
    norm_groups: int = 32
    code_layer: bool = False
    codes_per_scale: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, except_for=("residual_ratio", "commitment", "code_layer", "codes_per_scale"))
        check_sides(self.scale_sides)
        if self.image_side % self.downsampling or self.scale_sides[-1] != self.latent_side:
            raise ConfigMismatch(
                f"The last token map is {self.scale_sides[-1]} wide, but an image of {self.image_side} "
                f"pixels is {self.image_side / self.downsampling:g} wide after patches of {self.patch} and "
                f"{len(self.level_multipliers) - 1} halvings. Change image_side, patch, level_multipliers or "
                "the last of scale_sides so that they agree."
            )
        for multiplier in self.level_multipliers:
            if self.width * multiplier % self.norm_groups:
                raise ConfigMismatch(
                    f"A level is {self.width * multiplier} channels wide, which {self.norm_groups} "
                    "normalisation groups do not divide. Choose norm_groups that divides every width."
                )
        if self.n_smoothers > len(self.scale_sides):
            raise ConfigMismatch(
                f"There are {self.n_smoothers} smoothers for {len(self.scale_sides)} scales. Give at most one a scale."
            )
        if not 0 <= self.residual_ratio <= 1 or self.commitment < 0:
            raise ConfigMismatch(
                f"residual_ratio is {self.residual_ratio} and commitment {self.commitment}; wanted a ratio "
                "in [0, 1] and a weight of at least 0."
            )

    @property
    def downsampling(self) -> int:
        """Pixels of the image per position of the latent map, along one side."""
        return int(self.patch * 2 ** (len(self.level_multipliers) - 1))

    @property
    def folded_channels(self) -> int:
        """Channels of an image whose patches are folded."""
        return self.image_channels * self.patch**2

    @property
    def latent_side(self) -> int:
        """Side of the latent map."""
        return self.image_side // self.downsampling

    @property
    def n_tokens(self) -> int:
        """Tokens of an image over all scales."""
        return sum(side * side for side in self.scale_sides)


@dataclass(frozen=True)
class TransformerConfig:
    """A next-scale transformer (VAR, section 3.2): depth decides width, heads and drop-path.

    Attributes:
        depth: number of blocks.
        n_conditions: conditions it is told apart by; row `n_conditions` of the embedding is "no condition".
        vocabulary: code vectors of the tokenizer.
        latent_channels: length of a code vector.
        scale_sides: side of each token map, coarsest first.
        head_width: channels of an attention head.
        mlp_ratio: width of the feed-forward layer, in units of the model's width.
        condition_dropout: chance that a training image's condition is replaced by "no condition".
        drop_path: chance that the last block's branches are skipped for a training image (linear from 0 at
            the first block); None gives the recipe's 0.1 * depth / 24, see `drop_path_rate`.
        gamma_init: factor on the initial gate weights of every block; small values start the blocks near
            identity.
        prefix_token: the sequence's first position shows the condition (VAR); otherwise it is the same for all, and the
            condition acts through gates, scales and shifts alone.
    """

    depth: int
    n_conditions: int
    vocabulary: int = 4096
    latent_channels: int = 32
    scale_sides: tuple[int, ...] = PAPER_SIDES
    head_width: int = 64
    mlp_ratio: int = 4
    condition_dropout: float = 0.1
    drop_path: float | None = None
    gamma_init: float = 1e-3
    prefix_token: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, except_for=("condition_dropout", "drop_path", "gamma_init", "prefix_token"))
        check_sides(self.scale_sides)
        for name, chance in (
            ("condition_dropout", self.condition_dropout),
            ("drop_path", self.drop_path_rate),
        ):
            if not 0 <= chance < 1:
                raise ConfigMismatch(f"{name} is {chance}; wanted a chance in [0, 1).")

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.head_width * self.depth

    @property
    def heads(self) -> int:
        """Attention heads of a block: as many as there are blocks."""
        return self.depth

    @property
    def drop_path_rate(self) -> float:
        """Drop-path chance of the last block."""
        return 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path

    @property
    def n_tokens(self) -> int:
        """Tokens of an image over all scales."""
        return sum(side * side for side in self.scale_sides)


@dataclass(frozen=True)
class TransformerSize:
    """What distinguishes one named transformer from another."""

    depth: int
    gamma_init: float = 1e-3


def transformer_config(
    size: str, tokenizer: TokenizerConfig, n_conditions: int, prefix_token: bool = True
) -> TransformerConfig:
    """Give the transformer of a named size for a tokenizer.

    Args:
        size: a key of `TRANSFORMERS`.
        tokenizer: the tokenizer whose tokens it will predict.
        n_conditions: number of conditions, from the shard set's vocabulary.
        prefix_token: see `TransformerConfig`.

    Example:
        >>> transformer_config("d16", TOKENIZERS["paper"], n_conditions=1000).width
        1024
    """
    if size not in TRANSFORMERS:
        raise ConfigMismatch(f"There is no transformer size {size!r}. Choose one of {', '.join(TRANSFORMERS)}.")
    return TransformerConfig(
        depth=TRANSFORMERS[size].depth,
        n_conditions=n_conditions,
        vocabulary=tokenizer.vocabulary,
        latent_channels=tokenizer.latent_channels,
        scale_sides=tokenizer.scale_sides,
        gamma_init=TRANSFORMERS[size].gamma_init,
        prefix_token=prefix_token,
    )


def transformer_parameters(config: TransformerConfig) -> int:
    """Count a transformer's parameters.

    With the paper's numbers it is d(18 C^2 + 14 C + d) + 2 C^2 + (N + 4823) C + 4096: depth d, width C,
    N conditions.
    """
    width, ratio = config.width, config.mlp_ratio
    block = (10 + 2 * ratio) * width**2 + (10 + ratio) * width + config.heads
    rows = (config.latent_channels + 1) + (config.n_conditions + 1) + 1 + config.n_tokens + len(config.scale_sides)
    return config.depth * block + 2 * width**2 + (rows + 2 + config.vocabulary) * width + config.vocabulary


def tokenizer_parameters(config: TokenizerConfig) -> int:
    """Count a tokenizer's parameters, part by part."""

    def conv(c_in: int, c_out: int, side: int = 3) -> int:
        return c_in * c_out * side * side + c_out

    def residual(c_in: int, c_out: int) -> int:
        shortcut = 0 if c_in == c_out else conv(c_in, c_out, 1)
        return 2 * c_in + conv(c_in, c_out) + 2 * c_out + conv(c_out, c_out) + shortcut

    def attention(c: int) -> int:
        return 2 * c + conv(c, 3 * c, 1) + conv(c, c, 1)

    def levels(widths: list[int], c_in: int, blocks: int, deepest: int) -> int:
        count = 0
        for level, c in enumerate(widths):
            count += residual(c_in, c) + (blocks - 1) * residual(c, c)
            count += blocks * attention(c) if level == deepest else 0
            count += conv(c, c) if level != len(widths) - 1 else 0  # every level but the last changes the side
            c_in = c
        return count

    widths = [config.width * multiplier for multiplier in config.level_multipliers]
    last, latent, blocks = widths[-1], config.latent_channels, config.blocks_per_level
    middle = 2 * residual(last, last) + attention(last)
    encoder = conv(config.folded_channels, widths[0]) + levels(widths, widths[0], blocks, len(widths) - 1)
    encoder += middle + 2 * last + conv(last, latent)
    decoder = conv(latent, last) + middle + levels(widths[::-1], last, blocks + 1, 0)
    decoder += 2 * widths[0] + conv(widths[0], config.folded_channels)
    books = len(config.scale_sides) if config.codes_per_scale else 1
    pyramid = books * config.vocabulary * latent + config.n_smoothers * conv(latent, latent)
    pyramid += latent**2 if config.code_layer else 0
    return encoder + decoder + pyramid + 2 * conv(latent, latent)


Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a frozen configuration into JSON-ready values (tuples become lists).

    Example:
        >>> from_dict(TokenizerConfig, to_dict(TOKENIZERS["demo"])) == TOKENIZERS["demo"]
        True
    """
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration from a mapping such as a JSON object.

    Raises:
        ConfigMismatch: a key is unknown or missing, or a value has the wrong type; the message names the key.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigMismatch(f"{kind.__name__} has no key {name!r}. Its keys are {', '.join(fields)}.")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ConfigMismatch(f"{kind.__name__} needs the key {name!r}, which is missing.")
    return kind(**{name: _converted(kind, name, hints[name], value) for name, value in values.items()})


def check_sides(sides: tuple[int, ...]) -> None:
    """Refuse token-map sides that do not grow from 1.

    Raises:
        ConfigMismatch: fewer than two sides, a first side other than 1, or sides that do not increase.
    """
    growing = all(a < b for a, b in pairwise(sides))
    if len(sides) < 2 or sides[0] != 1 or not growing:
        raise ConfigMismatch(f"scale_sides are {tuple(sides)}; wanted at least two, growing, the first of them 1.")


def _converted(kind: type, name: str, hint: Any, value: Any) -> Any:
    """Convert a JSON value to a field's type: lists to tuples, whole numbers to floats, nothing else."""
    if hint == tuple[int, ...] and isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return tuple(value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint == float | None and (value is None or type(value) in (int, float)):
        return None if value is None else float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigMismatch(f"{kind.__name__}.{name} is {value!r}; wanted {getattr(hint, '__name__', str(hint))}.")


def _require_positive(config: Any, except_for: tuple[str, ...]) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if field.name in except_for:
            continue
        if not numbers or min(numbers) < 1:
            raise ConfigMismatch(f"{type(config).__name__}.{field.name} is {value}; wanted at least 1.")
        if max(numbers) > MOST or len(numbers) > MOST_LEVELS:
            shown = value if isinstance(value, int) else f"a list of {len(numbers)} numbers up to {max(numbers)}"
            raise ConfigMismatch(
                f"{type(config).__name__}.{field.name} is {shown}; wanted at most {MOST:,}, and {MOST_LEVELS} in a list."
            )


# fmt: off
TOKENIZERS: dict[str, TokenizerConfig] = {
    "tiny":  TokenizerConfig(image_side=32,  width=8,  level_multipliers=(1, 1, 2, 2), blocks_per_level=1,
    latent_channels=8,
                             vocabulary=64,  scale_sides=(1, 2, 3, 4), norm_groups=4),
    "demo":  TokenizerConfig(image_side=64,  patch=2, width=16, level_multipliers=(1, 2, 4), blocks_per_level=1,
                             latent_channels=16,
                             vocabulary=512, scale_sides=(1, 2, 3, 4, 6, 8), norm_groups=8),
    "small": TokenizerConfig(image_side=128, width=64, scale_sides=(1, 2, 3, 4, 6, 8), vocabulary=1024),
    "base":  TokenizerConfig(width=96),
    "paper": TokenizerConfig(),
    "sharp": TokenizerConfig(),
}

TRANSFORMERS: dict[str, TransformerSize] = {
    "d2":  TransformerSize(depth=2),
    "d3":  TransformerSize(depth=3),
    "d4":  TransformerSize(depth=4),
    "d6":  TransformerSize(depth=6),
    "d8":  TransformerSize(depth=8),
    "d16": TransformerSize(depth=16),
    "d20": TransformerSize(depth=20),
    "d24": TransformerSize(depth=24, gamma_init=1e-4),
    "d30": TransformerSize(depth=30, gamma_init=1e-5),
}
# fmt: on
