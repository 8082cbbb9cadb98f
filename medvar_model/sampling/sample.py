"""Draw new images, scale by scale (VAR, section 3.2; guidance and filters as in its released sampler).

In: a transformer, a tokenizer, conditions, one seed an image. Out: 8-bit images and their tokens.

The noise of an image is a row of uniform numbers from that image's own generator on the CPU; a token is the code at
which its number falls in the cumulative distribution. So image n is the same alone, in any batch and on any device,
up to rounding of the logits, which matters only where a number falls on the border of two codes.

Shapes: B images, R rows (images times branches of the guidance), N tokens of a scale, V codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from medvar_model.errors import ConfigMismatch, ModelError, UnknownCondition
from medvar_model.networks.scales import TokenMaps
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        guidance: strength g of classifier-free guidance; scale k of K uses t = g k / (K - 1). 0 is off.
        top_k: codes kept at each position, the likeliest; 0 keeps all. Codes as likely as the last one kept
            stay, too.
        top_p: of those, the likeliest codes whose probabilities reach this sum are kept; 0 keeps all.
        seed: image n of a run is drawn from `image_seeds(seed, ...)`'s n-th.
    """

    guidance: float = 4.0
    top_k: int = 900
    top_p: float = 0.95
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:  # NaN is refused, too
            raise ConfigMismatch(f"--guidance is {self.guidance}; wanted a number from 0 (off) on, such as 4.")
        if self.top_k < 0:
            raise ConfigMismatch(f"--top-k is {self.top_k}; wanted 0 (keep all) or more.")
        if not 0 <= self.top_p <= 1:
            raise ConfigMismatch(f"--top-p is {self.top_p}; wanted a probability from 0 (keep all) to 1.")
        if self.seed < 0:
            raise ConfigMismatch(f"--seed is {self.seed}; wanted 0 or more.")


PAPER = SampleSettings()
SAMPLINGS: dict[str, SampleSettings] = {
    "paper": PAPER,  # sharp and typical; for networks of the paper's size and training
    "demo": SampleSettings(guidance=1.0, top_k=0, top_p=0.98, seed=42),  # more variety; for small or short trainings
}


@dataclass(frozen=True)
class Samples:
    """What was drawn.

    Attributes:
        images: uint8, B x S x S, [0, 255] for [-1, 1] in the model.
        tokens: ids of every scale; `tokenizer.decode` draws the images from them.
    """

    images: UInt8[Tensor, "batch height width"]
    tokens: TokenMaps


def image_seeds(seed: int, first: int, count: int) -> list[int]:
    """Give the seeds of a run's images from `first` on; they do not depend on how the run is batched."""
    return [int(np.random.SeedSequence((seed, first + n)).generate_state(1, np.uint64)[0] >> 1) for n in range(count)]


@torch.no_grad()
def sample(
    transformer: Transformer,
    tokenizer: Tokenizer,
    condition_B: Int64[Tensor, " batch"] | None,
    settings: SampleSettings,
    seeds: Sequence[int],
) -> Samples:
    """Draw one image for each seed.

    On a GPU the networks run in bfloat16 (autocast), on a CPU in float32; the pyramid always runs in float32.

    Args:
        transformer: predicts the token maps.
        tokenizer: the one whose tokens the transformer was trained on.
        condition_B: condition rows, one an image; -1 means no condition. None: no condition for any image.
        settings: guidance, filters.
        seeds: one an image.

    Raises:
        ConfigMismatch: transformer and tokenizer differ in scales, codes or channels, or there are not as
            many conditions as seeds.
        UnknownCondition: a condition row is outside [-1, N).
        ModelError: the transformer's logits are not finite.
    """
    _check_fit(transformer, tokenizer)
    device = transformer.head.weight.device
    condition_B = _condition_rows(condition_B, len(seeds), transformer.config.n_conditions).to(device)
    guided, condition_R = settings.guidance > 0, condition_B
    if guided:
        unconditional_B = torch.full_like(condition_B, transformer.config.n_conditions)
        condition_R = torch.cat([condition_B, unconditional_B])

    schedule, pyramid = transformer.schedule, tokenizer.pyramid
    noise_per_scale = uniforms(seeds, schedule.total).to(device).split(schedule.lengths, dim=1)
    total_BCSS, tokens, finite = pyramid.blank(len(seeds)), [], []
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        cache, logits_RNV = transformer.start(condition_R)
        for k, noise_BN in enumerate(noise_per_scale):
            if k > 0:
                logits_RNV = transformer.step(k, pyramid.input(k, total_BCSS), cache)
            finite.append(logits_RNV.isfinite().all())
            ramp = settings.guidance * k / (schedule.n - 1)
            logits_BNV = guide(logits_RNV, ramp) if guided else logits_RNV
            tokens.append(choose(logits_BNV, noise_BN, settings.top_k, settings.top_p))
            total_BCSS = pyramid.add(k, total_BCSS, tokens[k])
        images_BCSS = tokenizer.render(total_BCSS)
    if not torch.stack(finite).all():  # asked once, at the end: a GPU need not wait for the answer at every scale
        raise ModelError(
            "The transformer gave numbers that are not finite, so nothing can be sampled from it. Its training has "
            "diverged, or its weights are damaged; take an earlier checkpoint."
        )
    return Samples(to_uint8(images_BCSS), tokens)


def uniforms(seeds: Sequence[int], n_tokens: int) -> Float64[Tensor, "batch tokens"]:
    """Draw the noise of images: numbers in [0, 1), one row a seed."""
    rows = [torch.rand(n_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def guide(logits_RNV: Float[Tensor, "rows n vocabulary"], strength: float) -> Float[Tensor, "batch n vocabulary"]:
    """Classifier-free guidance (CFG): (1 + t) c - t u, conditional rows first, unconditional ones second.

    Source: VAR, arXiv 2404.02905, whose strength t grows with the scale.
    """
    conditional, unconditional = logits_RNV.chunk(2)
    return (1 + strength) * conditional - strength * unconditional


def choose(
    logits_BNV: Float[Tensor, "batch n vocabulary"],
    noise_BN: Float64[Tensor, "batch n"],
    top_k: int,
    top_p: float,
) -> Int64[Tensor, "batch n"]:
    """Choose a code at every position: filter by top-k, then by top-p, then let the noise decide.

    Codes are taken in falling order of likelihood. A code stays when its logit is at least the k-th largest
    and the likelier codes sum to less than p, so that the likeliest always stays. The number u chooses the
    first code at which the sum exceeds u times the sum of all that stay.
    """
    logits_BNV = logits_BNV.float()
    if 0 < top_k < logits_BNV.shape[-1]:
        least_BN1 = logits_BNV.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
        logits_BNV = logits_BNV.masked_fill(logits_BNV < least_BN1, -torch.inf)
    falling_BNV, order = logits_BNV.sort(dim=-1, descending=True, stable=True)  # equals: by id, on any device
    chance = falling_BNV.softmax(-1)
    reached = chance.cumsum(-1, dtype=torch.float64)
    stays = (chance > 0) & (reached - chance < (top_p or math.inf))  # the first so many: chances fall
    last = (stays.sum(-1, keepdim=True) - 1).clamp(min=0)
    rank = (reached <= noise_BN[..., None] * reached.gather(-1, last)).sum(-1, keepdim=True)
    rank = torch.minimum(rank, last)  # where rounding reaches the end
    return order.gather(-1, rank)[..., 0]


def to_uint8(
    images_BCSS: Float[Tensor, "batch channels height width"],
) -> UInt8[Tensor, "batch height width"]:
    """Give 8-bit grey images; -1 is 0 and 1 is 255, channels are averaged, what lies outside is clamped."""
    grey = images_BCSS.float().clamp(-1, 1).mean(1)
    return ((grey + 1) * 127.5).round().to(torch.uint8)


def _condition_rows(condition_B: Tensor | None, batch: int, n_conditions: int) -> Tensor:
    """Replace "no condition" by its row; refuse what the model does not know."""
    if condition_B is None:
        return torch.full((batch,), n_conditions)
    if len(condition_B) != batch:
        raise ConfigMismatch(
            f"There are {len(condition_B)} conditions for {batch} seeds. Give one of each for every image."
        )
    if not ((condition_B >= -1) & (condition_B < n_conditions)).all():
        raise UnknownCondition(
            f"Condition rows {condition_B.unique().tolist()} were asked for, but the model knows 0 to "
            f"{n_conditions - 1}, and -1 for none."
        )
    return torch.where(condition_B < 0, n_conditions, condition_B)


def _check_fit(transformer: Transformer, tokenizer: Tokenizer) -> None:
    for name in ("scale_sides", "vocabulary", "latent_channels"):
        ours, theirs = getattr(transformer.config, name), getattr(tokenizer.config, name)
        if ours != theirs:
            raise ConfigMismatch(
                f"The transformer's {name} is {ours}, the tokenizer's {theirs}. Sample with the tokenizer "
                "whose tokens the transformer was trained on."
            )
