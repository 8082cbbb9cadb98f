"""Draw the noise of an image from counters: a number for each position and code that hangs on seed, position and code alone.

In: seeds, positions, number of codes. Out: noise that chooses by the Gumbel-max rule: the code with the largest sum of logit and noise
is drawn with the softmax's probability (Gumbel 1954). Rounding of a logit moves a token only where two sums nearly tie, whatever the
other codes do; a number that falls into a cumulative sum moves with every rounding before it.

The generator is Philox4x32-10 (Salmon et al., SC 2011), whose 32-bit words are held in int64: the same integers on every device.

Shapes: B images, N positions, V codes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
ROUNDS = 10
POSITIONS_AT_ONCE = 32  # of all images together: intermediate words stay in a processor's cache

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Turn four words of a counter and two of a key into four random words.

    Args:
        counter: int64 tensors that broadcast with each other, each value in [0, 2^32).
        key: likewise.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        even, odd = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2^64, so both halves are right
        c0 = (odd >> 32).bitwise_and_(WORD).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (even >> 32).bitwise_and_(WORD).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = odd.bitwise_and_(WORD), even.bitwise_and_(WORD)
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def keys(seeds: Sequence[int], device: torch.device | None = None) -> Int64[Tensor, "batch 2"]:
    """Split the seeds of images, each in [0, 2^64), into words that key the generator."""
    return torch.tensor([(seed & WORD, seed >> 32) for seed in seeds], dtype=torch.int64, device=device).view(-1, 2)


def gumbel(
    keys_B2: Int64[Tensor, "batch 2"], first: int, count: int, vocabulary: int
) -> Float32[Tensor, "batch count vocabulary"]:
    """Give noise of the standard Gumbel distribution for positions `first` to `first + count - 1` of a sequence.

    Codes 4 q to 4 q + 3 of position p take the four words of counter (q, p, 0, 0). A word w stands for the number
    (w + 1/2) / 2^32, so that noise reaches from -3.1 to 22.9.

    Args:
        keys_B2: from `keys`.
        first: position of the first, counted over all scales.
        count: positions.
        vocabulary: number of codes, V.
    """
    blocks = torch.arange(-(-vocabulary // 4), device=keys_B2.device)
    parts = []
    step = max(1, POSITIONS_AT_ONCE // len(keys_B2)) if keys_B2.device.type == "cpu" else count
    for start in range(first, first + count, step):
        positions = torch.arange(start, min(start + step, first + count), device=keys_B2.device)
        key = (keys_B2[:, 0, None, None], keys_B2[:, 1, None, None])
        nought = torch.zeros((len(keys_B2), len(positions), len(blocks)), dtype=torch.int64, device=keys_B2.device)
        words = philox((blocks + nought, positions[:, None] + nought, nought, nought), key)
        parts.append(_gumbel_of(torch.stack(words, dim=-1).flatten(2)[..., :vocabulary]))
    return torch.cat(parts, dim=1)


def _gumbel_of(words: Tensor) -> Tensor:
    """-log(-log u), the inner logarithm in float64: close to 1 a float32 has no room."""
    uniform = words.double().add_(0.5).mul_(2.0**-32)
    return uniform.log_().neg_().float().log_().neg_()
