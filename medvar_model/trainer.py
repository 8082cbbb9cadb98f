"""Train any of the networks: the one loop, with its schedule, its log and its checkpoints.

In: a `Recipe` (what is trained and what its loss is), a loader, `LoopSettings`. Out: a run's folder.

A run stops and resumes exactly: the data come from (seed, step), so does every random number, and the rest is in the
checkpoint. Time is counted in images seen, so no schedule hangs on the batch size.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medvar_model import dist
from medvar_model.checkpoint import Contents, TrainingState, find_last, load_weights, read_checkpoint, read_state
from medvar_model.checkpoint import write_checkpoint
from medvar_model.config import TokenizerConfig, TransformerConfig
from medvar_model.dist import Place
from medvar_model.errors import ConfigMismatch, ModelError
from medvar_model.loader import Examples, Loader
from medvar_model.runlog import RunLog

BATCH_OF_BASE_RATE = 256  # base_learning_rate is meant for this batch and grows in proportion (VAR)
MOST_SKIPS_IN_A_ROW = 10
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class LoopSettings:
    """How long, how fast and how carefully to train.

    Args:
        samples: images to train on, repeats counted.
        batch_size: images of a step, all processes together.
        micro_batch: images of one forward pass of one process; a step adds up as many as it needs. 0: all at once.
        base_learning_rate: the peak at a batch of 256; the real peak is in proportion to the batch.
        warmup: share of the samples in which the rate rises in a line from `warmup_start` × peak.
        warmup_start, floor: first and last rate, as fractions of the peak; in between it falls in a half cosine.
        betas, weight_decay: of AdamW.
        clip: longest gradient that is let through; longer ones are shortened to it.
        average: decay of the running average of weights, which is then what is validated and kept; 0 keeps none.
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
        positive = (self.samples, self.batch_size, self.base_learning_rate, self.clip, self.checkpoint_every, self.log_every)
        if min(positive) <= 0:
            raise ConfigMismatch(
                "samples, batch_size, base_learning_rate, clip, checkpoint_every and log_every are "
                f"{', '.join(map(str, positive))}; wanted all of them above 0."
            )
        if not (0 <= self.warmup < 1 and 0 <= self.warmup_start <= 1 and 0 <= self.floor <= 1 and 0 <= self.average < 1):
            raise ConfigMismatch(
                f"warmup {self.warmup}, warmup_start {self.warmup_start}, floor {self.floor} and average {self.average} "
                "are fractions; wanted them from 0 to 1."
            )
        if self.precision not in PRECISIONS:
            raise ConfigMismatch(f"precision is {self.precision!r}; wanted one of {', '.join(PRECISIONS)}.")

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return math.ceil(self.samples / self.batch_size)

    @property
    def peak_learning_rate(self) -> float:
        """The highest rate of the run."""
        return self.base_learning_rate * self.batch_size / BATCH_OF_BASE_RATE

    def learning_rate(self, samples_seen: int) -> float:
        """Return the rate of the step that begins after so many samples."""
        rise = self.warmup * self.samples
        if samples_seen < rise:
            return self.peak_learning_rate * (self.warmup_start + (1 - self.warmup_start) * samples_seen / rise)
        done = min(1.0, (samples_seen - rise) / (self.samples - rise))
        return self.peak_learning_rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)

    def is_due(self, every: int, step: int) -> bool:
        """Say whether a step's end is the first to have passed another multiple of `every` samples."""
        return every > 0 and (step + 1) * self.batch_size // every > step * self.batch_size // every


@dataclass(frozen=True)
class Draw:
    """Where the randomness of a forward pass comes from: numbers that name it, the same however the batch is cut.

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

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a fresh generator for this pass."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + self.step * 0xBF58476D1CE4E5B9 + self.first) % 2**63
        return torch.Generator(device=device).manual_seed(mixed)


Forget = Callable[[nn.Parameter, Tensor], None]
"""Called with a parameter and a mask of its rows: they were set anew, so forget their momentum and average."""


class Recipe(Protocol):
    """What is trained, its loss, and what is done between steps."""

    network: nn.Module
    skips_parameters: bool

    def __call__(self, examples: Examples, draw: Draw) -> dict[str, Tensor]:
        """Return the loss as `loss`, and parts of it to log, all scalars; run by every process on its own images."""

    def before_step(self, samples_seen: int, forget: Forget) -> None:
        """Prepare a step."""

    def after_step(self, samples_seen: int, examples: Examples, forget: Forget) -> None:
        """Tidy up after a step of a finite loss."""

    def judge(self, batches: Iterator[Examples]) -> dict[str, float]:
        """Validate; the result has `loss`, and is the same on every process."""

    def memory(self) -> dict[str, Tensor]:
        """Return the tensors beside the weights that resuming needs; they are restored in place."""

    def numbers(self) -> dict[str, float]:
        """Return further numbers to log."""


@dataclass(frozen=True)
class StepLog:
    """One step, as reported.

    Args:
        step: steps done.
        steps: of the whole run.
        samples: images seen.
        numbers: loss, its parts, learning_rate, gradient_norm, images_per_second, waiting (share of the time spent waiting
            for images), skipped (steps left out so far because the loss was not finite).
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
        best: lowest validation loss so far; infinity before the first.
        skipped: steps left out because the loss was not finite.
    """

    out: Path
    step: int
    steps: int
    samples: int
    loss: float
    best: float
    skipped: int

    @property
    def is_finished(self) -> bool:
        """Whether the run has seen all its samples."""
        return self.step >= self.steps


@dataclass
class _Progress:
    step: int = 0
    best: float = math.inf
    skipped: int = 0
    skipped_in_a_row: int = 0


def train(
    recipe: Recipe,
    parameter_groups: list[dict[str, Any]],
    settings: LoopSettings,
    job: Job,
    place: Place,
    loader: Loader,
    validation: Loader | None,
    report: Callable[[StepLog], None] = lambda log: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train until the samples are seen or `stop` says so; go on from the folder's last checkpoint if it has one.

    Args:
        recipe: what is trained.
        parameter_groups: of AdamW; see `decay_groups`.
        settings: how.
        job: where to and what of.
        place: this process.
        loader: of the training split.
        validation: of the val split; None never validates.
        report: told of every step; only the first process calls it.
        stop: asked after every step, on every process; one yes ends the run at a checkpoint.

    Raises:
        ModelError: ten steps in a row had a loss that is not finite.
    """
    return _Run(recipe, parameter_groups, settings, job, place, loader, validation).go(report, stop)


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


class _Run:
    """An open run: the weights in training and everything around them."""

    def __init__(
        self,
        recipe: Recipe,
        parameter_groups: list[dict[str, Any]],
        settings: LoopSettings,
        job: Job,
        place: Place,
        loader: Loader,
        validation: Loader | None,
    ) -> None:
        self.recipe, self.settings, self.job, self.place = recipe, settings, job, place
        self.loader, self.validation = loader, validation
        self.parameters = [parameter for group in parameter_groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(parameter_groups, lr=0.0, betas=settings.betas, eps=1e-8)
        self.averages: dict[str, Tensor] = {}
        if settings.average:
            self.averages = {name: value.detach().clone() for name, value in recipe.network.state_dict().items()}
        self.progress = _Progress()
        bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and place.device.type == "cuda")
        self.autocast = torch.autocast(place.device.type, torch.bfloat16, enabled=bfloat16)
        last = find_last(job.out)
        if last is not None:
            self._restore(last)
        dist.wait_for_all()  # nobody may replace the checkpoint that another is still reading
        self.replica = self._replica()

    def go(self, report: Callable[[StepLog], None], stop: Callable[[], bool]) -> TrainResult:
        """Train; see `train`."""
        settings, progress = self.settings, self.progress
        batches = self.loader.batches(progress.step)
        loss, stopping = math.nan, False
        log = RunLog(self.job.out, progress.step) if self.place.is_main else None
        clock = _Clock()
        try:
            while progress.step < settings.steps and not stopping:
                step = progress.step
                clock.mark()
                examples = next(batches)
                clock.waited()
                numbers, stopping = self._step(step, examples, stop())
                loss = numbers["loss"]
                progress.step += 1
                numbers |= clock.numbers(settings.batch_size) | {"skipped": float(progress.skipped)}
                checked = self._validate() if self._is_due(settings.validate_every, step) else None
                logged = StepLog(progress.step, settings.steps, progress.step * settings.batch_size, numbers, checked)
                if checked or self._is_due(settings.log_every, step):
                    logged = replace(logged, numbers={**numbers, **self.recipe.numbers()})
                    if log is not None:
                        log.write(logged.step, logged.samples, logged.numbers, checked)
                if stopping or self._is_due(settings.checkpoint_every, step):
                    self._save("last", with_state=True)
                if self.place.is_main:
                    report(logged)
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
            if log is not None:
                log.close()
        samples = progress.step * settings.batch_size
        return TrainResult(
            self.job.out, progress.step, settings.steps, samples, loss, progress.best, progress.skipped
        )

    def _is_due(self, every: int, step: int) -> bool:
        return self.settings.is_due(every, step) or (every > 0 and step + 1 == self.settings.steps)

    def _step(self, step: int, examples: Examples, stop: bool) -> tuple[dict[str, float], bool]:
        """Take one step; return its numbers and whether any process wants to stop."""
        settings, progress = self.settings, self.progress
        seen = step * settings.batch_size
        rate = settings.learning_rate(seen)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.recipe.before_step(seen, self._forget)
        parts = self._gradients(step, examples)
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        names = list(parts)
        # One exchange a step carries the losses and the wish to stop; one transfer brings all to the host.
        shared = dist.mean(torch.stack([*parts.values(), norm.new_tensor(float(stop))]))
        values = torch.cat([shared, norm.detach()[None]]).tolist()
        numbers = dict(zip([*names, "stop", "gradient_norm"], values, strict=True))
        stopping = numbers.pop("stop") > 0
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"]):
            progress.skipped_in_a_row = 0
            self.optimizer.step()
            self._average(seen)
            self.recipe.after_step(seen + settings.batch_size, examples, self._forget)
        else:
            self._skip(numbers)
        self.optimizer.zero_grad()
        return {**numbers, "learning_rate": rate}, stopping

    def _gradients(self, step: int, examples: Examples) -> dict[str, Tensor]:
        """Add up the gradients of this process's images, in passes of `micro_batch`; return the mean loss and parts."""
        settings, count = self.settings, len(examples)
        size = settings.micro_batch or count
        sums: dict[str, Tensor] = {}
        for start in range(0, count, size):
            part = examples.part(start, min(start + size, count))
            draw = Draw(settings.seed, step, self.place.rank * count + start, settings.batch_size)
            self._exchange_gradients(start + size >= count)
            with self.autocast:
                losses = self.replica(part, draw)
            share = len(part) / count
            (losses["loss"] * share).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() * share
        return sums

    def _exchange_gradients(self, wanted: bool) -> None:
        """Let gradients travel between processes only in the last pass of a step."""
        if isinstance(self.replica, DistributedDataParallel):
            self.replica.require_backward_grad_sync = wanted

    def _replica(self) -> Callable[[Examples, Draw], dict[str, Tensor]]:
        if not dist.is_joined():
            return self.recipe
        assert isinstance(self.recipe, nn.Module)
        devices = [self.place.device] if self.place.device.type == "cuda" else None
        return DistributedDataParallel(
            self.recipe, devices, broadcast_buffers=False, find_unused_parameters=self.recipe.skips_parameters
        )

    def _skip(self, numbers: Mapping[str, float]) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= MOST_SKIPS_IN_A_ROW:
            raise ModelError(
                f"The loss was not finite in {MOST_SKIPS_IN_A_ROW} steps in a row (last: loss {numbers['loss']}, gradient "
                f"norm {numbers['gradient_norm']}, step {progress.step}). Start again from {self.job.out}/best with a "
                "lower base_learning_rate, or with precision float32."
            )

    def _average(self, seen: int) -> None:
        """Move the averages towards the weights: quickly at first (decay (t + 1) / (t + 10)), then at the set decay."""
        if not self.averages:
            return
        step = seen // self.settings.batch_size
        decay = min(self.settings.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in self.recipe.network.state_dict().items():
                if value.is_floating_point():
                    self.averages[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def _forget(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Start the optimizer's and the average's memory of some rows of a parameter anew."""
        for name, value in self.optimizer.state.get(parameter, {}).items():
            if name != "step":
                value[rows] = 0
        for name, own in self.recipe.network.named_parameters():
            if own is parameter and name in self.averages:
                self.averages[name][rows] = parameter[rows]

    def _validate(self) -> dict[str, float] | None:
        """Judge the weights that will be kept, and keep them if they are the best so far."""
        if self.validation is None:
            return None
        network, weights = self.recipe.network, None
        if self.averages:
            weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
            network.load_state_dict(self.averages)
        network.eval()
        batch = self.settings.micro_batch or max(1, self.settings.batch_size // self.place.world)
        with torch.no_grad(), self.autocast:
            judged = self.recipe.judge(self.validation.passes(batch, self.settings.validation_slices))
        network.train()
        if weights is not None:
            network.load_state_dict(weights)
        if judged["loss"] < self.progress.best:
            self.progress.best = judged["loss"]
            self._save("best", with_state=False)
        return judged

    def _save(self, name: str, with_state: bool) -> None:
        if self.place.is_main:
            weights = self.averages or self.recipe.network.state_dict()
            contents = Contents(weights, self.job.config, self.job.run, self.job.conditions)
            write_checkpoint(self.job.out / name, contents, self._state() if with_state else None)
        dist.wait_for_all()

    def _state(self) -> TrainingState:
        tensors = {f"memory/{name}": value for name, value in self.recipe.memory().items()}
        for index, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = value
        if self.averages:
            tensors |= {f"weights/{name}": value for name, value in self.recipe.network.state_dict().items()}
        return TrainingState(tensors, vars(self.progress))

    def _restore(self, folder: Path) -> None:
        contents, state = read_checkpoint(folder, _kind(self.job.config)), read_state(folder)
        weights = _under("weights/", state.tensors) if self.averages else contents.weights
        load_weights(self.recipe.network, weights, str(folder))
        for name in self.averages:
            self.averages[name].copy_(contents.weights[name])
        for name, value in self.recipe.memory().items():
            value.copy_(state.tensors[f"memory/{name}"])
        for index, parameter in enumerate(self.parameters):
            kept = _under(f"optimizer/{index}/", state.tensors)
            if kept:
                self.optimizer.state[parameter] = {
                    name: value if name == "step" else value.to(parameter.device) for name, value in kept.items()
                }
        self.progress = _Progress(**state.progress)


class _Clock:
    """Measures speed over the steps since the last reading, and how much of the time went into waiting for images."""

    def __init__(self) -> None:
        self._start = self._marked = self._end = time.perf_counter()
        self._waiting_s = 0.0

    def mark(self) -> None:
        self._marked = time.perf_counter()

    def waited(self) -> None:
        self._waiting_s = time.perf_counter() - self._marked

    def numbers(self, images: int) -> dict[str, float]:
        elapsed_s = time.perf_counter() - self._marked
        return {"images_per_second": images / elapsed_s, "waiting": self._waiting_s / elapsed_s}


def _kind(config: TokenizerConfig | TransformerConfig) -> str:
    return "tokenizer" if isinstance(config, TokenizerConfig) else "transformer"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
