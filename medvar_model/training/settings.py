"""Name the parts of a training run: its settings, its recipe, its randomness, its reports.

In: numbers. Out: the values that `trainer.train` takes and gives, and the learning rate at any time.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from medvar_model.config import TokenizerConfig, TransformerConfig
from medvar_model.errors import ConfigMismatch
from medvar_model.loader import Examples

BATCH_OF_BASE_RATE = 256  # base_learning_rate is meant for this batch and grows in proportion (VAR)
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class LoopSettings:
    """How long, how fast and how carefully to train.

    Args:
        samples: images to train on, repeats counted.
        batch_size: images of a step, all processes together.
        micro_batch: images of one forward pass of one process; a step adds up as many as it needs. 0: all at
            once.
        base_learning_rate: the peak at a batch of 256; the real peak is in proportion to the batch.
        warmup: share of the samples in which the rate rises in a line from `warmup_start` × peak.
        warmup_start, floor: first and last rate, as fractions of the peak; in between it falls in a half
            cosine.
        betas, weight_decay: of AdamW.
        clip: longest gradient that is let through; longer ones are shortened to it.
        average: decay of the running average of weights, which is then what is validated and kept; 0 keeps
            none.
        seed: of the weights, the order and all dropping.
        precision: of the network's forward pass: float32, bfloat16, or auto (bfloat16 on GPUs).
        checkpoint_every, validate_every, log_every: in samples; `validate_every` 0 never validates.
        validation_slices: how many slices of the val split, evenly spread; 0 takes all.
    """

    samples: int
    batch_size: int
    base_learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    warmup: float = 0.02
    warmup_start: float = 0.005
    floor: float = 0.1
    micro_batch: int = 0
    average: float = 0.0
    seed: int = 0
    precision: str = "auto"
    checkpoint_every: int = 50_000
    validate_every: int = 50_000
    log_every: int = 1_000
    validation_slices: int = 2_048

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "base_learning_rate", "clip", "checkpoint_every", "log_every"):
            if not 0 < getattr(self, name) < math.inf:  # NaN is refused, too
                raise ConfigMismatch(f"{option_of(name)} is {getattr(self, name)}; wanted a number above 0.")
        for name in ("micro_batch", "validate_every", "validation_slices", "seed"):
            if getattr(self, name) < 0:
                raise ConfigMismatch(f"{option_of(name)} is {getattr(self, name)}; wanted 0 or more.")
        for name, most in (("warmup", 1), ("warmup_start", math.inf), ("floor", math.inf), ("average", 1)):
            if not 0 <= getattr(self, name) < most:
                raise ConfigMismatch(f"{option_of(name)} is {getattr(self, name)}; wanted a fraction from 0 to 1.")
        if self.precision not in PRECISIONS:
            raise ConfigMismatch(f"--precision is {self.precision!r}; wanted one of {', '.join(PRECISIONS)}.")
        if self.batch_size > self.samples:
            raise ConfigMismatch(
                f"--samples is {self.samples:,}, less than one step of --batch-size {self.batch_size:,}. Give more "
                "samples, or a smaller batch (the learning rate follows it)."
            )

    @property
    def steps(self) -> int:
        """Steps of the whole run; every step is whole, so up to `batch_size` - 1 images are seen beyond `samples`."""
        return math.ceil(self.samples / self.batch_size)

    def in_bfloat16(self, device: torch.device) -> bool:
        """Say whether a network's forward pass runs in bfloat16 on a device."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")

    @property
    def peak_learning_rate(self) -> float:
        """The highest rate of the run."""
        return self.base_learning_rate * self.batch_size / BATCH_OF_BASE_RATE

    def learning_rate(self, samples_seen: int) -> float:
        """Return the rate of the step that begins after so many samples."""
        rise = self.warmup * self.samples
        if samples_seen < rise:
            share = self.warmup_start + (1 - self.warmup_start) * samples_seen / rise
            return self.peak_learning_rate * share
        done = min(1.0, (samples_seen - rise) / (self.samples - rise))
        return self.peak_learning_rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)

    def is_due(self, every: int, step: int) -> bool:
        """Say whether a step's end is the first to have passed another multiple of `every` samples."""
        return every > 0 and (step + 1) * self.batch_size // every > step * self.batch_size // every


NO_OPTION = ("betas", "weight_decay", "clip", "warmup", "warmup_start", "floor", "log_every", "validation_slices")


def option_of(field: str) -> str:
    """Name what the user changes to change a field of `LoopSettings`: its option, or the field where none sets it."""
    return field if field in NO_OPTION else f"--{field.replace('_', '-')}"


@dataclass(frozen=True)
class Draw:
    """Where the randomness of a forward pass comes from: numbers that name it, the same however the batch is
    cut.

    Args:
        seed: of the run.
        step: number of the global batch.
        first: place of the pass's first image in the global batch.
        batch_size: of the global batch.
    """

    seed: int
    step: int
    first: int
    batch_size: int

    def uniforms(self) -> Float64[np.ndarray, " rest"]:
        """Return a number in [0, 1) for each image of the global batch from this pass's first on."""
        return np.random.default_rng((self.seed, self.step)).random(self.batch_size)[self.first :]

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a fresh generator for this pass."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + self.step * 0xBF58476D1CE4E5B9 + self.first) % 2**63
        return torch.Generator(device=device).manual_seed(mixed)


Forget = Callable[[nn.Parameter, Tensor], None]
"""Takes a parameter and a mask of its rows that were set anew, whose momentum and average must restart."""


class Recipe(nn.Module, ABC):
    """What is trained, its loss, and what is done between steps.

    `network` is trained and kept; frozen networks may lie beside it. `skips_parameters` says that some of its
    parameters may be left out of a step's loss.
    """

    network: nn.Module
    skips_parameters: bool = False

    @abstractmethod
    def forward(self, examples: Examples, draw: Draw) -> dict[str, Tensor]:
        """Return the loss of a process's images as `loss`, and parts of it to log, all scalars."""

    @abstractmethod
    def judge(self, batches: Iterator[Examples]) -> dict[str, float]:
        """Validate; the result has `loss`, and is the same on every process."""

    def before_step(self, samples_seen: int, forget: Forget) -> None:
        """Prepare a step."""

    def after_step(self, samples_seen: int, examples: Examples, forget: Forget) -> None:
        """Tidy up after a step whose loss was finite."""

    def memory(self) -> dict[str, Tensor]:
        """Return the tensors beside the weights that resuming needs; they are restored in place."""
        return {}

    def numbers(self) -> dict[str, float]:
        """Return further numbers to log."""
        return {}


@dataclass(frozen=True)
class RunStart:
    """What is known when the first step of a call begins.

    Args:
        out: the run's folder; its log is `log.jsonl` in it.
        device: what is computed on, such as cpu or cuda:0.
        processes: how many train together.
        precision: float32 or bfloat16.
        slices: of the training split.
        set_side, image_side: pixels a side in the shard set, and as the network takes them.
        parameters: of the network in training.
        step: steps already done; 0 where the run is fresh.
        steps: of the whole run.
        batch_size: images of a step.
        init_from: checkpoint whose weights the run began with; empty for random ones.
    """

    out: Path
    device: str
    processes: int
    precision: str
    slices: int
    set_side: int
    image_side: int
    parameters: int
    step: int
    steps: int
    batch_size: int
    init_from: str = ""


@dataclass(frozen=True)
class StepLog:
    """One step, as reported.

    Args:
        step: steps done.
        steps: of the whole run.
        samples: images seen.
        numbers: loss, its parts, learning_rate, gradient_norm, images_per_second, waiting (share of the time
            spent waiting for images), skipped (steps left out so far because the loss was not finite).
        validation: the numbers of a validation, if one ended this step.
    """

    step: int
    steps: int
    samples: int
    numbers: Mapping[str, float]
    validation: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Job:
    """What a run is called, where it lives, and what its checkpoints say of it.

    Args:
        out: the run's folder.
        config: of the network.
        run: the content of run.json.
        conditions: name → row; empty for a tokenizer.
    """

    out: Path
    config: TokenizerConfig | TransformerConfig
    run: Mapping[str, Any]
    conditions: Mapping[str, int]


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended.

    Args:
        out: the run's folder.
        step, steps: done, and of the whole run.
        samples: images seen.
        loss: of the last step; NaN where nothing was left to do.
        best: lowest validation loss so far; None before the first.
        skipped: steps left out because the loss was not finite.
    """

    out: Path
    step: int
    steps: int
    samples: int
    loss: float
    best: float | None
    skipped: int

    @property
    def is_finished(self) -> bool:
        """Whether the run has seen all its samples."""
        return self.step >= self.steps


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
