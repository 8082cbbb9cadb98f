"""Say what training minimises: pixels for the tokenizer, cross-entropy for the transformer.

In: images or logits, and what they should be. Out: scalars with gradients. (The codes' loss is the pyramid's, the perceptual one
stands in `perceptual`, the adversary's in `adversary`.)

MedVAR names the tokenizer's three terms (pixels, commitment, LPIPS) without weights; those here are of the
autoencoder trainer that VAR's authors published.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

Images = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class TokenizerLossWeights:
    """Weights of the tokenizer's loss; the commitment's own weight (beta) is in `TokenizerConfig`."""

    absolute: float = 0.2
    squared: float = 1.0
    perceptual: float = 1.0
    codes: float = 1.0


def pixel_loss(
    reconstruction: Images, images: Images, weights: TokenizerLossWeights = TokenizerLossWeights()
) -> Float32[Tensor, ""]:
    """Give 0.2 mean |x - y| + 1.0 mean (x - y)^2, in float32."""
    difference = reconstruction.float() - images.float()
    return weights.absolute * difference.abs().mean() + weights.squared * difference.square().mean()


@dataclass(frozen=True)
class NextScaleLoss:
    """The transformer's loss.

    Attributes:
        mean: mean cross-entropy over all tokens of all images, in nats.
        weighted: the same with the weights of the scales: what is minimised.
        per_scale: mean cross-entropy of each scale, coarsest first, without gradient.
        accuracy: fraction of tokens that were the likeliest code, of each scale.
    """

    mean: Float32[Tensor, ""]
    weighted: Float32[Tensor, ""]
    per_scale: Float32[Tensor, " scales"]
    accuracy: Float32[Tensor, " scales"]


def next_scale_loss(
    logits_BLV: Float[Tensor, "batch tokens vocabulary"],
    tokens: Sequence[Int64[Tensor, "batch _"]],
    scale_power: float = 1.0,
) -> NextScaleLoss:
    """Compare logits with the token maps they predict.

    Args:
        logits_BLV: logits of all positions.
        tokens: token maps, coarsest first.
        scale_power: a scale of L tokens weighs in proportion to L^scale_power: at 1 (VAR's) every token weighs the same, so finer scales
            more; at 0 every scale weighs the same.
    """
    target_BL = torch.cat(list(tokens), 1)
    each_N = F.cross_entropy(logits_BLV.float().flatten(0, 1), target_BL.flatten(), reduction="none")
    each_BL = each_N.view_as(target_BL)  # codes lie side by side in memory, which a softmax over them needs
    hit_BL = (logits_BLV.argmax(-1) == target_BL).float()
    lengths = [ids.shape[1] for ids in tokens]
    per_scale_K = torch.stack([part.mean() for part in each_BL.split(lengths, 1)])
    mean = weighted = each_BL.mean()
    if scale_power != 1:
        weight_K = per_scale_K.new_tensor(lengths) ** scale_power
        weighted = (weight_K * per_scale_K).sum() / weight_K.sum()
    return NextScaleLoss(
        mean=mean,
        weighted=weighted,
        per_scale=per_scale_K.detach(),
        accuracy=torch.stack([part.mean() for part in hit_BL.split(lengths, 1)]),
    )
