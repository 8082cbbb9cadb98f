"""Choose codes: guidance, the two filters, and the draw (VAR's released sampler, whose filters these are).

In: logits and noise. Out: ids.

Shapes: B images, N positions of a scale, V codes.
"""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor


def guide(logits_RNV: Float[Tensor, "rows n vocabulary"], strength: float) -> Float[Tensor, "batch n vocabulary"]:
    """Classifier-free guidance (CFG): (1 + t) c - t u, conditional rows first, unconditional ones second.

    Source: VAR, arXiv 2404.02905, whose strength t grows with the scale.
    """
    conditional, unconditional = logits_RNV.chunk(2)
    return (1 + strength) * conditional - strength * unconditional


def choose(
    logits_BNV: Float[Tensor, "batch n vocabulary"],
    noise_BNV: Float32[Tensor, "batch n vocabulary"],
    top_k: int,
    top_p: float,
) -> Int64[Tensor, "batch n"]:
    """Choose a code at every position: of those that pass top-k, then top-p, the one with the largest logit plus noise.

    With noise of the Gumbel distribution a code is chosen with the probability that the filters leave it.
    """
    logits_BNV = logits_BNV.float()
    least_BN1 = least_kept(logits_BNV, top_k, top_p)
    sums_BNV = logits_BNV + noise_BNV
    if least_BN1 is not None:
        sums_BNV.masked_fill_(logits_BNV < least_BN1, -torch.inf)
    return sums_BNV.argmax(-1)


def least_kept(
    logits_BNV: Float32[Tensor, "batch n vocabulary"], top_k: int, top_p: float
) -> Float32[Tensor, "batch n 1"] | None:
    """Give the smallest logit that passes both filters at each position; None where all pass.

    A code passes when its logit is at least the k-th largest and the likelier codes (of those that pass so far) have less than p
    of the probability; codes as likely as the last one pass, too. Only the k largest logits are sorted, and only where top-p needs
    their order.
    """
    vocabulary = logits_BNV.shape[-1]
    kept = min(top_k or vocabulary, vocabulary)
    if not 0 < top_p < 1:
        return None if kept == vocabulary else logits_BNV.topk(kept, sorted=False).values.amin(-1, keepdim=True)
    falling_BNK = logits_BNV.topk(kept, sorted=True).values
    highest_BN1, last_BN1 = falling_BNK[..., :1], falling_BNK[..., -1:]
    total_BN1 = (
        (logits_BNV - highest_BN1).exp_().masked_fill_(logits_BNV < last_BN1, 0).sum(-1, True, dtype=torch.float64)
    )
    chance_BNK = (falling_BNK - highest_BN1).exp_()
    likelier_BNK = chance_BNK.cumsum(-1, dtype=torch.float64) - chance_BNK
    rank_BN1 = (likelier_BNK < top_p * total_BN1).sum(-1, keepdim=True) - 1
    return falling_BNK.gather(-1, rank_BN1.clamp(min=0))
