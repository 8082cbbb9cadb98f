"""Let the tokenizer draw images that a critic takes for real: a hinge loss for the critic, its opinion for the tokenizer.

In: images and drawn ones. Out: scalars with gradients, and the weight of the critic's opinion. Numbers are of the autoencoder trainer that
VAR's authors published (vaex): it begins after a fifth of the training, comes in over 2 %, and weighs 0.4 times the ratio of the lengths of
the gradients that the other terms and the critic send to the decoder's last convolution (Esser et al. 2021, arXiv 2012.09841, equation 7).

The ratio is that of the whole batch of the step before, all processes together, so that it does not depend on how a batch is cut.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor
from torch.func import functional_call

from medvar_model.errors import ConfigMismatch
from medvar_model.machine import processes
from medvar_model.networks.critic import Critic

Images = Float[Tensor, "batch channels height width"]
LEAST_WEIGHT, MOST_WEIGHT = 0.015, 1e4
WEIGHT_DECAY = 0.0005


@dataclass(frozen=True)
class AdversarySettings:
    """When the critic takes part, and how much.

    Args:
        weight: of its opinion, in units of the ratio of gradients; 0 trains without a critic.
        start: share of the samples before it is asked.
        warmup: share of the samples over which its weight rises in a line.
    """

    weight: float = 0.0
    start: float = 0.2
    warmup: float = 0.02

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and 0 <= self.start < 1 and 0 < self.warmup < 1):
            raise ConfigMismatch(
                f"The adversary's weight is {self.weight}, start {self.start}, warm-up {self.warmup}; wanted a weight of at "
                "least 0 and fractions from 0 to 1."
            )

    def share(self, samples_seen: int, samples: int) -> float:
        """Return the part of the weight that holds after so many samples, [0, 1]; 0 before the start."""
        return min(1.0, max(0.0, (samples_seen / samples - self.start) / self.warmup))


ALONE = AdversarySettings()
SHARP = AdversarySettings(weight=0.4)


def critic_loss(critic: Critic, images: Images, drawn: Images) -> Float32[Tensor, ""]:
    """Give mean max(0, 1 - score(real)) / 2 + mean max(0, 1 + score(drawn)) / 2; its gradient stays in the critic."""
    real, fake = critic(images.float()), critic(drawn.detach().float())
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def opinion(critic: Critic, drawn: Images) -> Float32[Tensor, ""]:
    """Give -mean score(drawn); its gradient reaches the images and not the critic."""
    fixed = {name: value.detach() for name, value in critic.named_parameters()}
    return -functional_call(critic, fixed, (drawn.float(),)).mean()


class Balance:
    """The ratio of two losses' gradients at the decoder's last convolution, over all passes of a step.

    Args:
        weight: of that convolution.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.ratio = weight.new_zeros((), dtype=torch.float32)  # of the step before; 0 until there was one
        self._sums = torch.zeros(2, weight.numel(), device=weight.device)

    def see(self, others: Tensor, critic: Tensor, images: int) -> None:
        """Take in a pass: mean losses of so many images."""
        for row, loss in enumerate((others, critic)):
            gradient = torch.autograd.grad(loss, self.weight, retain_graph=True)[0]
            self._sums[row] += gradient.detach().float().flatten() * images

    def settle(self) -> None:
        """End a step: set the ratio anew, all processes together."""
        first, second = processes.total(self._sums).norm(dim=1)
        self.ratio.copy_((first / (second + 1e-6)).clamp(LEAST_WEIGHT, MOST_WEIGHT))
        self.forget()

    def forget(self) -> None:
        """Drop what a step's passes left."""
        self._sums.zero_()
