"""Predict the next token map from all coarser ones: the transformer (VAR, section 3.2 and appendix A).

In: conditions and, for every scale after the first, what the tokenizer's pyramid shows of the coarser ones.
Out: logits over the codes for every position of every scale; the positions of a scale are predicted at once.

Shapes: B batch, L positions, D width, H heads, E head width, V codes, C latent channels, N conditions,
R rows of a cache (images times branches of the guidance), U conditions of a table.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from medvar_model.config import TransformerConfig
from medvar_model.errors import ConfigMismatch, UnknownCondition
from medvar_model.networks.block import LOG_SCALE_INIT, Block, Linear, normalised
from medvar_model.networks.scales import ScaleSchedule


@dataclass(frozen=True, eq=False)
class Told:
    """What the transformer makes of conditions before it sees anything of an image: a table with a row for each of U conditions.

    Attributes:
        modulations: every block's gates, scales and shifts (U, d blocks, 6, D), float32.
        head_modulation: the same for the head (U, 2, D).
        memories: keys and values of the first position (U, d, 2, H, E).
        logits: of the first scale (U, 1, V).
    """

    modulations: Tensor
    head_modulation: Tensor
    memories: Tensor
    logits: Float32[Tensor, "conditions one vocabulary"]

    @staticmethod
    def joined(rows: "Sequence[Told]") -> "Told":
        """Put tables one below the other."""
        return Told(
            torch.cat([told.modulations for told in rows]),
            torch.cat([told.head_modulation for told in rows]),
            torch.cat([told.memories for told in rows]),
            torch.cat([told.logits for told in rows]),
        )


@dataclass
class Cache:
    """What sampling keeps between scales: an open resource, made by `Transformer.open`.

    Attributes:
        modulations: every block's gates, scales and shifts (R, d blocks, 6, D), used at every scale.
        head_modulation: the same for the head (R, 2, D).
        places: position and level embedding of every position.
        memory: room for every block's keys and values of all positions (d, 2, R, H, L, E), written in place.
        length: positions filled so far.
    """

    modulations: Tensor
    head_modulation: Tensor
    places: Tensor
    memory: Tensor
    length: int = 0

    @property
    def rows(self) -> int:
        """Rows sampled together, R."""
        return self.head_modulation.shape[0]

    def first(self, rows: int) -> "Cache":
        """Give a view of the first rows; the others are not needed any more."""
        memory = self.memory[:, :, :rows]
        return Cache(self.modulations[:rows], self.head_modulation[:rows], self.places, memory, self.length)


class Transformer(nn.Module):
    """The next-scale transformer.

    Args:
        config: depth, conditions and the tokenizer's numbers.
        generator: draws the initial weights; None draws from torch's global generator.

    Example:
        >>> from medvar_model.config import TOKENIZERS, transformer_config
        >>> config = transformer_config("d2", TOKENIZERS["tiny"], n_conditions=3)
        >>> model = Transformer(config, torch.Generator().manual_seed(0)).eval()
        >>> model(torch.tensor([0, 2]), torch.zeros(2, config.n_tokens - 1, 8)).shape
        torch.Size([2, 30, 64])
    """

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.schedule = ScaleSchedule(config.scale_sides)
        self.feature_projection = Linear(config.latent_channels, config.width)
        self.condition_embedding = nn.Embedding(config.n_conditions + 1, config.width)  # the last row: no condition
        self.start_embedding = nn.Parameter(torch.empty(config.width))
        self.level_embedding = nn.Embedding(self.schedule.n, config.width)
        self.position_embedding = nn.Parameter(torch.empty(self.schedule.total, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = Linear(config.width, 2 * config.width)
        self.head = Linear(config.width, config.vocabulary)
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights from N(0, 1 / 3D), then shrink some: an untrained model finds all codes alike.

        | weights                                    | factor       | why                          |
        |--------------------------------------------|--------------|------------------------------|
        | head                                       | 0.02         | the loss starts at ln V      |
        | scales and shifts, of blocks and head      | 0.5          |                              |
        | gates of blocks                            | `gamma_init` | blocks start near identity   |
        | last layer of attention and feed-forward   | 1 / sqrt(2d) | bounds the stream's variance |
        | all biases                                 | 0            |                              |
        | temperatures                               | = log 4      | kept as logarithms           |
        """
        width, depth = self.config.width, self.config.depth
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("log_scale"):
                parameter.fill_(LOG_SCALE_INIT)
            else:
                parameter.normal_(0, math.sqrt(1 / (3 * width)), generator=generator)
        self.head.weight.mul_(0.02)
        self.head_modulation.weight.mul_(0.5)
        for block in self._blocks():
            block.modulation.weight[: 2 * width].mul_(self.config.gamma_init)
            block.modulation.weight[2 * width :].mul_(0.5)
            block.attention.output.weight.div_(math.sqrt(2 * depth))
            block.feed_forward.narrow.weight.div_(math.sqrt(2 * depth))

    def forward(
        self,
        condition_B: Int64[Tensor, " batch"],
        inputs_BLC: Float[Tensor, "batch positions channels"],
        *,
        drop_condition_B: Bool[Tensor, " batch"] | None = None,
        draws_BU: Float[Tensor, "batch draws"] | None = None,
    ) -> Float32[Tensor, "batch tokens vocabulary"]:
        """Give the logits of all scales in one masked pass (teacher forcing).

        Args:
            condition_B: condition rows, [0, N]; row N is "no condition".
            inputs_BLC: what the L - 1 positions after the first are shown: `torch.cat(pyramid.inputs(tokens), 1)`.
            drop_condition_B: true where the condition is replaced by "no condition". None: drawn in training
                mode with the configured chance, nowhere in evaluation mode.
            draws_BU: `draws_per_image` numbers in [0, 1) for each image, by which condition and branches are
                dropped. Needed in training mode unless both chances are 0; never used in evaluation mode.

        Returns:
            Logits; position p of scale k predicts position p of token map k (nothing is shifted).
        """
        if inputs_BLC.shape[1] != self.schedule.total - 1:
            raise ConfigMismatch(
                f"The transformer was shown {inputs_BLC.shape[1]} positions, but its scales "
                f"{self.schedule.sides} need {self.schedule.total - 1}. Pass "
                "torch.cat(pyramid.inputs(tokens), 1) of a tokenizer with the same scales."
            )
        if drop_condition_B is None:
            drop_condition_B = self._dropped(draws_BU, 0, self.config.condition_dropout, condition_B.device)
        if drop_condition_B is not None:
            condition_B = torch.where(drop_condition_B, self.config.n_conditions, condition_B)
        condition_BD = self.condition_embedding(condition_B)
        x_BLD = torch.cat([self._start(condition_BD), self._show(inputs_BLC)], dim=1) + self._places()

        visible_LL = self.schedule.visible(x_BLD.device)
        pieces = self.schedule.pieces() if self.training else ()  # evaluation is VAR's to the last bit
        keeps = self._drop_paths(draws_BU, x_BLD.device)
        for block, keep_2B in zip(self._blocks(), keeps, strict=True):
            x_BLD = block(x_BLD, block.modulate(condition_BD), visible_LL, keep_2B=keep_2B, pieces=pieces)
        return self._logits(x_BLD, self.head_modulation(F.silu(condition_BD)).unflatten(1, (2, -1)))

    @torch.no_grad()
    def tell(self, row: int) -> Told:
        """Compute what depends on a condition alone: all modulations, and the whole first scale.

        Conditions are computed one at a time, so that the numbers of one hang on no other.

        Args:
            row: condition row, [0, N]; N is no condition.

        Raises:
            UnknownCondition: the row is outside [0, N].
        """
        if not 0 <= row <= self.config.n_conditions:
            raise UnknownCondition(
                f"Condition row {row} was asked for; wanted rows in [0, {self.config.n_conditions}], the last of which "
                "means no condition."
            )
        condition_1D = self.condition_embedding.weight[row : row + 1]
        with torch.autocast(condition_1D.device.type, enabled=False):
            modulations = torch.stack([block.modulate(condition_1D) for block in self._blocks()], dim=1)
            head_modulation = self.head_modulation(F.silu(condition_1D)).unflatten(1, (2, -1))
        cache = Cache(modulations, head_modulation, self._places(), self.room(1, 1))
        logits_11V = self._advance(self._start(condition_1D), cache)
        return Told(modulations, head_modulation, cache.memory[:, :, :, :, 0].movedim(2, 0), logits_11V)

    def room(self, rows: int, length: int | None = None) -> Tensor:
        """Give unwritten room for keys and values of so many rows, at all positions: (d, 2, R, H, L, E)."""
        like, config = self.position_embedding, self.config
        shape = (config.depth, 2, rows, config.heads, length or self.schedule.total, config.head_width)
        return torch.empty(shape, dtype=self._compute_dtype(like), device=like.device)

    @torch.no_grad()
    def open(self, told: Told, memory: Tensor) -> Cache:
        """Open a cache after the first scale.

        Args:
            told: a row for each row that is sampled; for guidance, first those of the images, then as many of no condition.
            memory: from `room`; changed in place, and free for another use once the last scale is known.
        """
        memory[:, :, :, :, 0] = told.memories.movedim(0, 2)
        return Cache(told.modulations, told.head_modulation, self._places(), memory, length=1)

    @torch.no_grad()
    def start(self, condition_R: Int64[Tensor, " rows"]) -> tuple[Cache, Float32[Tensor, "rows one vocabulary"]]:
        """Open a cache for conditions that were not told before, and give the logits of the first scale.

        Args:
            condition_R: condition rows, [0, N]; for guidance, first those of the images, then as many N.

        Raises:
            UnknownCondition: a row is outside [0, N].
        """
        table = {row: self.tell(row) for row in sorted(set(condition_R.tolist()))}
        told = Told.joined([table[row] for row in condition_R.tolist()])
        return self.open(told, self.room(len(condition_R))), told.logits

    @torch.no_grad()
    def step(
        self, scale: int, features_BLC: Float[Tensor, "batch positions channels"], cache: Cache
    ) -> Float32[Tensor, "rows positions vocabulary"]:
        """Give the logits of a later scale and remember its positions.

        Args:
            scale: index of the scale, 1 after `start`, then one more each call.
            features_BLC: `pyramid.input(scale, total)` of the images; shown alike to every branch when the
                cache has more rows.
            cache: from `open` or `start`; changed in place.
        """
        if cache.length != self.schedule.starts[scale]:
            raise ConfigMismatch(
                f"Scale {scale} starts at {self.schedule.starts[scale]}, but {cache.length} positions are known."
            )
        x_BLD = self._show(features_BLC)
        return self._advance(x_BLD.repeat(cache.rows // len(x_BLD), 1, 1), cache)

    def _blocks(self) -> list[Block]:
        """Give the blocks with their type, which a ModuleList forgets."""
        return cast("list[Block]", list(self.blocks))

    def _start(self, condition_BD: Tensor) -> Tensor:
        """Give the first token: the condition's embedding serves as start of sequence, too, unless configured otherwise."""
        shown_BD = condition_BD if self.config.prefix_token else torch.zeros_like(condition_BD)
        return (shown_BD + self.start_embedding)[:, None]

    def _show(self, inputs_BLC: Tensor) -> Tensor:
        """Project what the pyramid shows, at full precision: it is the only thing known of the image."""
        with torch.autocast(inputs_BLC.device.type, enabled=False):
            return self.feature_projection(inputs_BLC.to(self.feature_projection.weight.dtype))

    def _places(self) -> Tensor:
        """Say where every position of the sequence is: L, D."""
        levels_L = self.schedule.levels(self.position_embedding.device)
        return self.position_embedding + self.level_embedding(levels_L)

    def _advance(self, x_BLD: Tensor, cache: Cache) -> Tensor:
        """Run new positions past all remembered ones; no mask is needed, for nothing finer is known yet."""
        seen, end = cache.length, cache.length + x_BLD.shape[1]
        x_BLD = x_BLD + cache.places[seen:end]
        state = zip(self._blocks(), cache.modulations.unbind(1), cache.memory.unbind(0), strict=True)
        for block, modulation_B6D, memory in state:
            x_BLD = block(x_BLD, modulation_B6D, memory=memory, seen=seen)
        cache.length = end
        return self._logits(x_BLD, cache.head_modulation)

    def _logits(self, x_BLD: Tensor, modulation_B2D: Tensor) -> Tensor:
        """Normalise, scale and shift by the condition, compare with all codes."""
        scale, shift = modulation_B2D[:, :, None].unbind(1)
        return self.head(normalised(x_BLD) * (1 + scale) + shift).float()

    @property
    def draws_per_image(self) -> int:
        """Random numbers that an image takes in training: one for its condition, two for each block's branches."""
        return 1 + 2 * self.config.depth

    def _dropped(
        self, draws_BU: Float[Tensor, "batch draws"] | None, column: int, chance: float, device: torch.device
    ) -> Bool[Tensor, " batch"] | None:
        """Say for each image whether something is dropped; None where nothing can be."""
        if not self.training or chance == 0:
            return None
        if draws_BU is None or draws_BU.shape[1] != self.draws_per_image:
            raise ConfigMismatch(
                "The transformer is in training mode, where conditions and branches are dropped at random, "
                f"but was not given {self.draws_per_image} random numbers for each image. Pass draws_BU=, call eval(), or "
                "set condition_dropout and drop_path to 0."
            )
        return (draws_BU[:, column] < chance).to(device)

    def _drop_paths(
        self, draws_BU: Float[Tensor, "batch draws"] | None, device: torch.device
    ) -> Iterator[Tensor | None]:
        """Give each block's factors for its two branches: 0 where dropped, 1 / (1 - chance) where kept."""
        last = max(1, self.config.depth - 1)
        for index in range(self.config.depth):
            chance = self.config.drop_path_rate * index / last
            pair = [self._dropped(draws_BU, 1 + 2 * index + branch, chance, device) for branch in range(2)]
            dropped = [one for one in pair if one is not None]
            yield ~torch.stack(dropped) / (1 - chance) if dropped else None

    @staticmethod
    def _compute_dtype(like: Tensor) -> torch.dtype:
        """Say in what type linear layers answer: autocast's where it is on."""
        device = like.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
