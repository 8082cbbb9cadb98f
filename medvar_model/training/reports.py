"""What a run says of itself: how it is called, how it began, each step, how it ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvar_model.config import TokenizerConfig, TransformerConfig


@dataclass(frozen=True)
class RunStart:
    """What is known when the first step of a call begins.

    Args:
        out: the run's folder; its log is `log.jsonl` in it.
        device: what is computed on, such as cpu or cuda:0.
        processes: how many train together.
        precision: float32, bfloat16 or float16.
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
            spent waiting for images), mfu (share of the devices' peak), skipped (steps left out so far because the loss was not finite).
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
        waiting: share of this call's time that went into waiting for images.
        unreadable: slices that could not be read and were replaced (`DataSpec.skip_bad`), in this process.
    """

    out: Path
    step: int
    steps: int
    samples: int
    loss: float
    best: float | None
    skipped: int
    waiting: float = 0.0
    unreadable: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether the run has seen all its samples."""
        return self.step >= self.steps


@dataclass(frozen=True)
class Callbacks:
    """What a run tells its caller, and asks.

    Args:
        report: told of every step; only the first process calls it.
        stop: asked after every step, on every process; one yes ends the run at a checkpoint.
        begun: told once, before the first step; only the first process calls it.
    """

    report: Callable[[StepLog], None] = lambda log: None
    stop: Callable[[], bool] = lambda: False
    begun: Callable[[RunStart], None] = lambda start: None
