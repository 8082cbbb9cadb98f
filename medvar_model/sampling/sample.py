"""Draw new images with two networks, once: settings, seeds, and the call that `sampler.Sampler` answers.

In: a transformer, a tokenizer, conditions, one seed an image. Out: 8-bit images and their tokens.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from medvar_model.errors import ConfigMismatch, UnknownCondition
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.images import to_uint8
from medvar_model.sampling.sampler import Sampler, Samples
from medvar_model.sampling.settings import PAPER, SAMPLINGS, SampleSettings

__all__ = ["PAPER", "SAMPLINGS", "SampleSettings", "Samples", "condition_rows", "image_seeds", "sample", "to_uint8"]


def image_seeds(seed: int, first: int, count: int) -> list[int]:
    """Give the seeds of a run's images from `first` on; they do not depend on how the run is batched."""
    return [int(np.random.SeedSequence((seed, first + n)).generate_state(1, np.uint64)[0] >> 1) for n in range(count)]


def sample(
    transformer: Transformer,
    tokenizer: Tokenizer,
    condition_B: Int64[Tensor, " batch"] | None,
    settings: SampleSettings,
    seeds: Sequence[int],
) -> Samples:
    """Draw one image for each seed. For several calls, `Sampler` keeps what they have in common.

    On a GPU the networks run in bfloat16, on a CPU in float32; the pyramid always runs in float32.

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
    sampler = Sampler(transformer, tokenizer)
    return sampler.draw(condition_rows(condition_B, len(seeds), sampler.n_conditions), settings, seeds)


def condition_rows(condition_B: Tensor | None, batch: int, n_conditions: int) -> list[int]:
    """Replace "no condition" (-1, or None for all) by its row; refuse what the model does not know."""
    if condition_B is None:
        return [n_conditions] * batch
    rows = condition_B.tolist()
    if len(rows) != batch:
        raise ConfigMismatch(f"There are {len(rows)} conditions for {batch} seeds. Give one of each for every image.")
    if not all(-1 <= row < n_conditions for row in rows):
        raise UnknownCondition(
            f"Condition rows {sorted(set(rows))} were asked for, but the model knows 0 to "
            f"{n_conditions - 1}, and -1 for none."
        )
    return [n_conditions if row < 0 else row for row in rows]
