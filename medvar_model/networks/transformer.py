"""Predict the next token map from all coarser ones: the transformer (VAR, section 3.2 and appendix A).

In: conditions and, for every scale after the first, what the tokenizer's pyramid shows of the coarser ones.
Out: logits over the codes for every position of every scale; the positions of a scale are predicted at once.

Shapes: B batch, L positions, D width, H heads, E head width, V codes, C latent channels, N conditions,
R rows of a cache (images times branches of the guidance), U distinct conditions among them.
"""

import math
from collections.abc import Iterator
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


@dataclass
class Cache:
    """What sampling keeps between scales: an open resource, made by `Transformer.start`.

    Attributes:
        modulations: per block, the condition's gates, scales and shifts (R, 6, D), used at every scale.
        head_modulation: the same for the head (R, 2, D).
        places: position and level embedding of every position.
        memories: per block, room for the keys and values of all positions (2, R, H, L, E).
        length: positions filled so far.
    """

    modulations: list[Tensor]
    head_modulation: Tensor
    places: Tensor
    memories: list[Tensor]
    length: int = 0

    @property
    def rows(self) -> int:
        """Rows sampled together, R."""
        return self.head_modulation.shape[0]

    def spread(self, row_of_R: Tensor, length: int) -> "Cache":
        """Copy row `row_of_R[r]` of this cache to row r of a new one with room for `length` positions."""
        memories = []
        for memory in self.memories:
            _, _, heads, _, head_width = memory.shape
            roomy = memory.new_empty((2, len(row_of_R), heads, length, head_width))
            roomy[:, :, :, : self.length] = memory[:, row_of_R, :, : self.length]
            memories.append(roomy)
        modulations = [modulation[row_of_R] for modulation in self.modulations]
        return Cache(modulations, self.head_modulation[row_of_R], self.places, memories, self.length)


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
        keeps = self._drop_paths(draws_BU, x_BLD.device)
        for block, keep_2B in zip(self._blocks(), keeps, strict=True):
            x_BLD = block(x_BLD, block.modulate(condition_BD), visible_LL, keep_2B=keep_2B)
        return self._logits(x_BLD, self.head_modulation(F.silu(condition_BD)).unflatten(1, (2, -1)))

    @torch.no_grad()
    def start(self, condition_R: Int64[Tensor, " rows"]) -> tuple[Cache, Float32[Tensor, "rows one vocabulary"]]:
        """Open a cache and give the logits of the first scale.

        The first token depends on the condition alone, and so do all modulations: both are computed once for
        each distinct condition and then copied to the rows that have it.

        Args:
            condition_R: condition rows, [0, N]; for guidance, first those of the images, then as many N.

        Raises:
            UnknownCondition: a row is outside [0, N].
        """
        distinct_U, row_of_R = torch.unique(condition_R, return_inverse=True)
        if distinct_U[0] < 0 or distinct_U[-1] > self.config.n_conditions:
            raise UnknownCondition(
                f"Condition rows {distinct_U.tolist()} were asked for; wanted rows in [0, "
                f"{self.config.n_conditions}], the last of which means no condition."
            )
        condition_UD = self.condition_embedding(distinct_U)
        room = condition_UD.new_empty(
            (2, len(distinct_U), self.config.heads, 1, self.config.head_width),
            dtype=self._compute_dtype(condition_UD),
        )
        cache = Cache(
            modulations=[block.modulate(condition_UD) for block in self._blocks()],
            head_modulation=self.head_modulation(F.silu(condition_UD)).unflatten(1, (2, -1)),
            places=self._places(),
            memories=[torch.empty_like(room) for _ in self.blocks],
        )
        logits_U1V = self._advance(self._start(condition_UD), cache)
        return cache.spread(row_of_R, self.schedule.total), logits_U1V[row_of_R]

    @torch.no_grad()
    def step(
        self, scale: int, features_BLC: Float[Tensor, "batch positions channels"], cache: Cache
    ) -> Float32[Tensor, "rows positions vocabulary"]:
        """Give the logits of a later scale and remember its positions.

        Args:
            scale: index of the scale, 1 after `start`, then one more each call.
            features_BLC: `pyramid.input(scale, total)` of the images; shown alike to every branch when the
                cache has more rows.
            cache: from `start`; changed in place.
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
        """Give the first token: the condition's embedding serves as start of sequence, too."""
        return (condition_BD + self.start_embedding)[:, None]

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
        state = zip(self._blocks(), cache.modulations, cache.memories, strict=True)
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
