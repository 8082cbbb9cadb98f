"""What is trained: its loss, what is done between steps, and where its randomness comes from.

In: a process's part of a batch. Out: scalars, `loss` among them. `training.loop.train` drives an `Objective`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float64
from torch import Tensor, nn

from medvar_model.loader import CodedExamples, Examples


@dataclass(frozen=True)
class Draw:
    """Where the randomness of a forward pass comes from: numbers that name it, the same however the batch is
    cut.

    Args:
        seed: of the run.
        step: number of the global batch.
        first: place of the pass's first image in the global batch.
    """

    seed: int
    step: int
    first: int

    def uniforms(self, images: int, count: int) -> Float64[np.ndarray, "images count"]:
        """Return numbers in [0, 1) for the images of this pass, `count` for each; they depend on seed, step and the image's place
        in the global batch alone.
        """
        rng = np.random.default_rng((self.seed, self.step))
        return rng.random((self.first + images, count))[self.first :]


Forget = Callable[[nn.Parameter, Tensor], None]
"""Takes a parameter and a mask of its rows that were set anew, whose momentum and average must restart."""


Batch = Examples | CodedExamples  # images, or their tokens
Part = TypeVar("Part", bound=Batch)


class Objective(nn.Module, ABC, Generic[Part]):
    """What is trained, its loss, and what is done between steps.

    `network` is trained and kept; frozen networks may lie beside it. `skips_parameters` says that some of its
    parameters may be left out of a step's loss.
    """

    network: nn.Module
    skips_parameters: bool = False

    @abstractmethod
    def forward(self, examples: Part, draw: Draw) -> dict[str, Tensor]:
        """Return the loss of a process's images as `loss`, and parts of it to log, all scalars."""

    @abstractmethod
    def validate(self, batches: Iterator[Part]) -> dict[str, float]:
        """Validate; the result has `loss`, and is the same on every process."""

    def before_step(self, samples_seen: int, forget: Forget) -> None:
        """Prepare a step."""

    def after_step(self, samples_seen: int, examples: Part, forget: Forget) -> None:
        """Tidy up after a step whose loss was finite."""

    def memory(self) -> dict[str, Tensor]:
        """Return the tensors beside the weights that resuming needs; they are restored in place."""
        return {}

    def numbers(self) -> dict[str, float]:
        """Return further numbers to log."""
        return {}


def decay_groups(network: nn.Module, weight_decay: float, spared: tuple[str, ...]) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not.

    Spared are vectors, biases, and every parameter whose name contains one of the given words.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    spare = {name: p.ndim < 2 or name.endswith("bias") or any(word in name for word in spared) for name, p in named}
    return [
        {"params": [p for name, p in named if not spare[name]], "weight_decay": weight_decay},
        {"params": [p for name, p in named if spare[name]], "weight_decay": 0.0},
    ]
