"""The settings of a training run: sizes, rates, seeds, and when to write what.

In: numbers. Out: the values that `loop.train` takes and gives, and the learning rate at any time.
"""

import math
from dataclasses import dataclass

import torch

from medvar_model.errors import ConfigMismatch

BATCH_OF_BASE_RATE = 256  # base_learning_rate is meant for this batch and grows in proportion (VAR)
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
PARALLELS = ("ddp", "fsdp")


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
        precision: of the network's forward pass: float32, bfloat16, float16 (whose losses are scaled), or auto
            (bfloat16 on GPUs).
        parallel: how several processes share the work: ddp (each holds all weights) or fsdp (each holds a part; transformers).
        recompute: keep only the input of each block for the backward pass and compute the rest again.
        compile: compile each block.
        checkpoint_every, validate_every, log_every: in samples; `validate_every` 0 never validates.
        checkpoint_minutes: the longest time between two checkpoints; 0 counts samples alone.
        peak_tflops: operations a second that a device can do at most, in 10^12, of which a run tells the share it uses (mfu);
            0 measures it.
        wandb: project in Weights & Biases that the numbers are sent to as well; empty sends nothing.
        keep: how many older checkpoints stay beside the last one.
        keep_every: samples; the first checkpoint after each multiple stays, however many there are. 0 keeps none so.
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
    parallel: str = "ddp"
    recompute: bool = False
    compile: bool = False
    checkpoint_every: int = 50_000
    checkpoint_minutes: float = 30.0
    keep: int = 0
    keep_every: int = 0
    peak_tflops: float = 0.0
    wandb: str = ""
    validate_every: int = 50_000
    log_every: int = 1_000
    validation_slices: int = 2_048

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "base_learning_rate", "clip", "checkpoint_every", "log_every"):
            if not 0 < getattr(self, name) < math.inf:  # NaN is refused, too
                raise ConfigMismatch(f"{option_of(name)} is {getattr(self, name)}; wanted a number above 0.")
        for name in (
            "micro_batch",
            "validate_every",
            "validation_slices",
            "seed",
            "checkpoint_minutes",
            "keep",
            "keep_every",
            "peak_tflops",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigMismatch(f"{option_of(name)} is {getattr(self, name)}; wanted 0 or more.")
        for name, most in (("warmup", 1), ("warmup_start", math.inf), ("floor", math.inf), ("average", 1)):
            if not 0 <= getattr(self, name) < most:
                raise ConfigMismatch(f"{option_of(name)} is {getattr(self, name)}; wanted a fraction from 0 to 1.")
        for name, known in (("precision", PRECISIONS), ("parallel", PARALLELS)):
            if getattr(self, name) not in known:
                raise ConfigMismatch(f"{option_of(name)} is {getattr(self, name)!r}; wanted one of {', '.join(known)}.")
        if self.parallel == "fsdp" and self.precision == "float16":
            raise ConfigMismatch(
                "--parallel fsdp does not scale float16's losses. Choose --precision bfloat16, which needs no scale."
            )
        if self.batch_size > self.samples:
            raise ConfigMismatch(
                f"--samples is {self.samples:,}, less than one step of --batch-size {self.batch_size:,}. Give more "
                "samples, or a smaller batch (the learning rate follows it)."
            )

    @property
    def steps(self) -> int:
        """Steps of the whole run; every step is whole, so up to `batch_size` - 1 images are seen beyond `samples`."""
        return math.ceil(self.samples / self.batch_size)

    def compute_type(self, device: torch.device) -> torch.dtype | None:
        """Say in what type a network's forward pass computes on a device; None for float32."""
        if self.precision == "auto":
            return torch.bfloat16 if device.type == "cuda" else None
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.precision]

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
