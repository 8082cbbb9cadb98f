"""Draw images from two networks, scale by scale (VAR, section 3.2): an open resource that keeps what images have in common.

In: conditions and seeds. Out: 8-bit images and their tokens. Kept between calls, each computed once: what the transformer makes of a
condition (`Transformer.tell`), weights in the precision of the pass, the decoder's weights in a faster layout, room for keys and values.

An image hangs on checkpoint, condition, seed and settings: its noise comes from counters (`noise`), and no row of a batch sees another.
What differs between batch sizes, devices and precisions is rounding; the Gumbel-max rule lets it move few tokens.

Shapes: B images, R rows (images times branches of the guidance), N tokens of a scale, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from medvar_model.errors import ConfigMismatch, ModelError
from medvar_model.networks.fast_decoder import FastDecoder
from medvar_model.networks.scales import TokenMaps
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Told, Transformer
from medvar_model.sampling.choose import choose, guide
from medvar_model.sampling.graphs import Recorded
from medvar_model.sampling.images import to_uint8
from medvar_model.sampling.noise import gumbel, keys
from medvar_model.sampling.settings import SampleSettings

PRECISIONS = ("auto", "float32", "bfloat16")
IN_FLOAT32 = (
    "modulation",
    "embedding",
    "feature_projection",
    "log_scale",
)  # parts of names of weights that are never cast


@dataclass(frozen=True, eq=False)
class Samples:
    """What was drawn.

    Attributes:
        images: uint8, B x S x S, [0, 255] for [-1, 1] in the model.
        tokens: ids of every scale; `tokenizer.decode` draws the images from them.
    """

    images: UInt8[Tensor, "batch height width"]
    tokens: TokenMaps


@dataclass(frozen=True, eq=False)
class Kept:
    """Tokens that are kept as they are while others are drawn.

    Attributes:
        tokens: ids of every scale.
        where: true where they are kept; a scale that is kept whole costs no choice.
    """

    tokens: TokenMaps
    where: list[Bool[Tensor, "batch _"]]

    def to(self, device: torch.device) -> "Kept":
        """Give the same on a device."""
        return Kept([ids.to(device) for ids in self.tokens], [where.to(device) for where in self.where])


class Sampler:
    """Draws images with a transformer and its tokenizer, whose weights must not change meanwhile.

    Args:
        transformer: predicts the token maps.
        tokenizer: the one whose tokens the transformer was trained on.
        precision: float32; bfloat16 (keys, values, linear layers of the transformer and the decoder; the pyramid, norms, modulations and
            choices stay in float32); auto is bfloat16 on a GPU, else float32.
        graphs: on a GPU, record each batch size and setting as one CUDA graph and replay it.

    Raises:
        ConfigMismatch: transformer and tokenizer differ in scales, codes or channels, or there is no such precision.

    Example:
        >>> sampler = Sampler(transformer, tokenizer)                                   # doctest: +SKIP
        >>> sampler.draw([3, 3], SampleSettings(guidance=2.0), seeds=[0, 1]).images     # doctest: +SKIP
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, precision: str = "auto", graphs: bool = False):
        check_fit(transformer, tokenizer)
        if precision not in PRECISIONS:
            raise ConfigMismatch(f"--precision is {precision!r}; wanted one of {', '.join(PRECISIONS)}.")
        self.device = transformer.head.weight.device
        self.half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        self.schedule, self.pyramid = transformer.schedule, tokenizer.pyramid
        self.transformer = in_bfloat16(transformer) if self.half else transformer
        self.decoder = FastDecoder(tokenizer, torch.bfloat16 if self.half else torch.float32)
        self.n_conditions = transformer.config.n_conditions
        self._graphs = graphs and self.device.type == "cuda"
        self._table: dict[int, Told] = {}
        self._rooms: dict[int, Tensor] = {}
        self._recorded: dict[tuple[int, SampleSettings], Recorded] = {}

    @torch.no_grad()
    def draw(
        self, rows: Sequence[int], settings: SampleSettings, seeds: Sequence[int], kept: Kept | None = None
    ) -> Samples:
        """Draw one image for each seed.

        Args:
            rows: condition rows, one an image, [0, N]; N means no condition.
            settings: guidance, filters.
            seeds: one an image, in [0, 2^64).
            kept: tokens that are not drawn.

        Raises:
            UnknownCondition: a condition row is outside [0, N].
            ModelError: the transformer's logits are not finite.
        """
        told_rows = [*rows, *([self.n_conditions] * len(rows) if settings.guidance > 0 else [])]
        told = Told.joined([self._told(row) for row in told_rows])
        keys_B2 = keys(seeds, self.device)
        if kept is not None or not self._graphs:
            images, finite, *tokens = self._pass(told, keys_B2, settings, kept)
        else:
            images, finite, *tokens = self._replay(told, keys_B2, settings)
        if not finite:  # asked once, at the end: a GPU need not wait for the answer at every scale
            raise ModelError(
                "The transformer gave numbers that are not finite, so nothing can be sampled from it. Its training has "
                "diverged, or its weights are damaged; take an earlier checkpoint."
            )
        return Samples(images, tokens)

    def _pass(self, told: Told, keys_B2: Tensor, settings: SampleSettings, kept: Kept | None = None) -> list[Tensor]:
        """Draw all scales and the images; nothing here asks a device for an answer, so that it can be recorded."""
        schedule, batch, rows = self.schedule, len(keys_B2), len(told.logits)
        total_BCSS, tokens, finite = self.pyramid.blank(batch), [], []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False):
            cache, logits_RNV = self.transformer.open(told, self._room(rows)), told.logits
            for k, start in enumerate(schedule.starts):
                if k == schedule.n - settings.unguided_scales:
                    cache = cache.first(batch)
                if k > 0:
                    logits_RNV = self.transformer.step(k, self.pyramid.input(k, total_BCSS), cache)
                finite.append(logits_RNV.isfinite().all())
                if kept is not None and bool(kept.where[k].all()):
                    ids_BN = kept.tokens[k]
                else:
                    strength = settings.guidance * k / (schedule.n - 1)
                    logits_BNV = guide(logits_RNV, strength) if len(logits_RNV) > batch else logits_RNV
                    noise_BNV = gumbel(keys_B2, start, schedule.lengths[k], logits_BNV.shape[-1])
                    ids_BN = choose(logits_BNV, noise_BNV, settings.top_k, settings.top_p)
                    ids_BN = ids_BN if kept is None else torch.where(kept.where[k], kept.tokens[k], ids_BN)
                tokens.append(ids_BN)
                total_BCSS = self.pyramid.add(k, total_BCSS, ids_BN)
        return [to_uint8(self.decoder(total_BCSS)), torch.stack(finite).all(), *tokens]

    def _replay(self, told: Told, keys_B2: Tensor, settings: SampleSettings) -> list[Tensor]:
        """Replay the pass as one CUDA graph; the first of its batch size and settings records it."""
        inputs = (told.modulations, told.head_modulation, told.memories, told.logits, keys_B2)
        key = (len(keys_B2), replace(settings, seed=0))
        if key not in self._recorded:
            self._recorded[key] = Recorded(lambda *given: self._pass(Told(*given[:4]), given[4], settings), inputs)
        return self._recorded[key](inputs)

    def _told(self, row: int) -> Told:
        if row not in self._table:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                self._table[row] = self.transformer.tell(row)
        return self._table[row]

    def _room(self, rows: int) -> Tensor:
        """Give room for keys and values, one for each number of rows, used again by every call."""
        if rows not in self._rooms:
            if not self._graphs:  # a recorded graph goes on writing to its own
                self._rooms.clear()
            self._rooms[rows] = self.transformer.room(rows)
        return self._rooms[rows]


def in_bfloat16(transformer: Transformer) -> Transformer:
    """Give a transformer whose linear layers hold bfloat16, so that autocast need not cast them at every call.

    Embeddings, what a condition says of the blocks, and the projection of features stay in float32 and are shared.
    """
    with torch.device("meta"):
        half = Transformer(transformer.config)
    weights = {
        name: weight if any(part in name for part in IN_FLOAT32) else weight.to(torch.bfloat16)
        for name, weight in transformer.state_dict().items()
    }
    half.load_state_dict(weights, assign=True)
    return half.eval().requires_grad_(False)


def check_fit(transformer: Transformer, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that cannot be the transformer's.

    Raises:
        ConfigMismatch: they differ in scales, codes or channels.
    """
    for name in ("scale_sides", "vocabulary", "latent_channels"):
        ours, theirs = getattr(transformer.config, name), getattr(tokenizer.config, name)
        if ours != theirs:
            raise ConfigMismatch(
                f"The transformer's {name} is {ours}, the tokenizer's {theirs}. Sample with the tokenizer "
                "whose tokens the transformer was trained on."
            )
