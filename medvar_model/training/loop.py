"""Train any of the networks: the one loop, with its schedule, its log and its checkpoints.

In: an `Objective` (what is trained and what its loss is) and a `Ready` (settings, folder, loaders). Out: a run's folder.

A run stops and resumes exactly: the data come from (seed, step), so does every random number, and the rest is
in the checkpoint. Time is counted in images seen, so no schedule depends on the batch size.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from medvar_model.checkpoints.checkpoint import find_last
from medvar_model.errors import ModelError
from medvar_model.machine import processes
from medvar_model.machine.processes import Process
from medvar_model.training.checks import Ready
from medvar_model.training.flops import measured_peak, training_flops
from medvar_model.training.keeping import Keeper, Standing
from medvar_model.training.log import SKIPPED, RunLog, StepClock, note_skipped
from medvar_model.training.objective import Batch, Objective
from medvar_model.training.parallel import prepare, together
from medvar_model.training.reports import Callbacks, RunStart, StepLog, TrainResult
from medvar_model.training.stepper import Stepper

MOST_SKIPS_IN_A_ROW = 10


def train(
    objective: Objective,
    parameter_groups: list[dict[str, Any]],
    made: Ready,
    process: Process,
    callbacks: Callbacks,
) -> TrainResult:
    """Train until the samples are seen or `callbacks.stop` says so; go on from the folder's last checkpoint if there is one.

    Args:
        objective: what is trained.
        parameter_groups: of AdamW; see `objective.decay_groups`.
        made: settings, folder and loaders, as `checks.ready` found them fit.
        process: this process.
        callbacks: what is told, and asked, on the way.

    Raises:
        ModelError: ten steps in a row had a loss that is not finite.
        MissingCheckpoint: the checkpoint to go on from is damaged.
    """
    return _Run(objective, parameter_groups, made, process).go(callbacks)


class _Run:
    """An open run: the weights in training and everything around them."""

    def __init__(
        self, objective: Objective, parameter_groups: list[dict[str, Any]], made: Ready, process: Process
    ) -> None:
        self.objective, self.settings, self.job, self.process = objective, made.loop, made.job, process
        self.loader, self.validation = made.loader, made.validation
        prepare(objective.network, self.settings)
        self.stepper = Stepper(objective, parameter_groups, self.settings, process)
        self.keeper = Keeper(self.job, self.settings, self.stepper, process)
        self.standing = Standing()
        last = find_last(self.job.out)
        if last is not None:
            self.standing = self.keeper.restore(last)
        processes.wait_for_all()  # nobody may replace the checkpoint that another is still reading
        if last is None:
            self._save()  # so `best` never lies without `last`, and a full disk is known at once
        self.saved_at = time.monotonic()

    def go(self, callbacks: Callbacks) -> TrainResult:
        """Train; see `train`."""
        settings, standing = self.settings, self.standing
        loss, stopping = math.nan, standing.step >= settings.steps
        if self.process.is_main:
            callbacks.begun(self._start())
        if stopping:
            return self._result(loss)
        batches = self.loader.batches(standing.step)
        log = RunLog(self.job, standing.step, settings.wandb) if self.process.is_main else None
        clock = StepClock(self._share_of_peak())
        try:
            while standing.step < settings.steps and not stopping:
                step = standing.step
                clock.mark()
                examples = next(batches)
                clock.waited()
                numbers, stopping, due = self._step(step, examples, callbacks.stop())
                loss = numbers["loss"]
                standing.step += 1
                numbers |= clock.numbers(settings.batch_size) | {"skipped": float(standing.skipped)}
                checked = self._validate() if self._is_due(settings.validate_every, step) else None
                samples = standing.step * settings.batch_size
                logged = StepLog(standing.step, settings.steps, samples, numbers, checked)
                if checked or self._is_due(settings.log_every, step):
                    logged = replace(logged, numbers={**numbers, **self.objective.numbers()})
                    if log is not None:
                        log.write(logged.step, logged.samples, logged.numbers, checked)
                if stopping or due or self._is_due(settings.checkpoint_every, step):
                    self._save()
                if self.process.is_main:
                    callbacks.report(logged)
        finally:
            batches.close()
            if log is not None:
                log.close()
        return self._result(loss, clock.share)

    def _result(self, loss: float, waiting: float = 0.0) -> TrainResult:
        step, samples = self.standing.step, self.standing.step * self.settings.batch_size
        best, skipped = self.standing.best, self.standing.skipped
        unreadable = len(self.loader.unreadable)
        return TrainResult(self.job.out, step, self.settings.steps, samples, loss, best, skipped, waiting, unreadable)

    def _start(self) -> RunStart:
        return RunStart(
            out=self.job.out,
            device=str(self.process.device),
            processes=self.process.world,
            precision=str(self.stepper.dtype or torch.float32).removeprefix("torch."),
            slices=len(self.loader),
            set_side=self.loader.set_side,
            image_side=self.loader.image_side,
            parameters=sum(parameter.numel() for parameter in self.stepper.parameters),
            step=self.standing.step,
            steps=self.settings.steps,
            batch_size=self.settings.batch_size,
            init_from=str(self.job.run.get("init_from", {}).get("path", "")),
        )

    def _share_of_peak(self) -> float:
        """Return which share of all devices' peak one image a second is; only the first process, which tells it, measures."""
        if not self.process.is_main:
            return 0.0
        peak = 1e12 * self.settings.peak_tflops or measured_peak(self.process.device, self.stepper.dtype)
        return training_flops(self.job.config) / (peak * self.process.world)

    def _is_due(self, every: int, step: int) -> bool:
        return self.settings.is_due(every, step) or (every > 0 and step + 1 == self.settings.steps)

    def _step(self, step: int, examples: Batch, stop: bool) -> tuple[dict[str, float], bool, bool]:
        """Take one step; return its numbers, whether any process wants to stop, and whether a checkpoint's time has come."""
        settings, stepper, standing = self.settings, self.stepper, self.standing
        seen = step * settings.batch_size
        rate = settings.learning_rate(seen)
        self.objective.before_step(seen, self._forget)
        parts = stepper.gradients(step, examples)
        norm = stepper.norm()
        names = list(parts)
        # One exchange a step carries the losses and two wishes; one transfer brings all to the host.
        wishes = norm.new_tensor([float(stop), float(self._is_late())])
        shared = processes.mean(torch.cat([torch.stack([*parts.values()]), wishes]))
        values = torch.cat([shared, norm.detach()[None]]).tolist()
        numbers = dict(zip([*names, "stop", "late", "gradient_norm"], values, strict=True))
        stopping, late = numbers.pop("stop") > 0, numbers.pop("late") > 0
        loss, length = numbers["loss"], numbers["gradient_norm"]
        if math.isfinite(loss) and math.isfinite(length):
            standing.skipped_in_a_row = 0
            stepper.step(length, rate)
            self._average(seen)
            self.objective.after_step(seen + settings.batch_size, examples, self._forget)
        elif not stepper.overflowed(loss, length):
            self._skip(numbers, step, examples)
        stepper.finish()
        return {**numbers, "learning_rate": rate}, stopping, late

    def _is_late(self) -> bool:
        """Say whether the first process finds that the last checkpoint is too old."""
        minutes = self.settings.checkpoint_minutes
        return self.process.is_main and 0 < 60 * minutes <= time.monotonic() - self.saved_at

    def _save(self) -> None:
        self.keeper.save("last", self.standing, with_state=True)
        self.saved_at = time.monotonic()

    def _skip(self, numbers: Mapping[str, float], step: int, examples: Batch) -> None:
        standing = self.standing
        note_skipped(self.job.out, step, self.process.rank, examples.keys)
        standing.skipped += 1
        standing.skipped_in_a_row += 1
        if standing.skipped_in_a_row >= MOST_SKIPS_IN_A_ROW:
            raise ModelError(
                f"The loss was not finite in {MOST_SKIPS_IN_A_ROW} steps in a row (last: loss "
                f"{numbers['loss']}, gradient norm {numbers['gradient_norm']}, step {standing.step}); {SKIPPED} names their images. {self._way_on()}"
            )

    def _way_on(self) -> str:
        """Say how to go on after the loss has diverged."""
        lower = f"a lower --base-learning-rate than {self.settings.base_learning_rate:g}"
        kept = [self.job.out / name for name in ("best", "last") if (self.job.out / name).is_dir()]
        begin = f"--init-from {kept[0]} and {lower}" if kept and self.standing.best is not None else lower
        exact = "Go on from the last checkpoint with --precision float32; or " if self.stepper.dtype else ""
        sentence = f"{exact}begin another run in a new folder (-o) with {begin}."
        return sentence[0].upper() + sentence[1:]

    def _average(self, seen: int) -> None:
        """Move the averages towards the weights; at first quickly, with decay (t + 1) / (t + 10)."""
        averages = self.keeper.averages
        if not averages:
            return
        step = seen // self.settings.batch_size
        decay = min(self.settings.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in self.keeper.weights().items():
                if value.is_floating_point():
                    averages[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def _forget(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Start the optimizer's and the average's memory of some rows of a parameter anew."""
        averages = self.keeper.averages
        for name, value in self.stepper.optimizer.state.get(parameter, {}).items():
            if name != "step":
                value[rows] = 0
        for name, own in self.objective.network.named_parameters():
            if own is parameter and name in averages:
                averages[name][rows] = parameter[rows]

    def _validate(self) -> dict[str, float] | None:
        """Validate the weights that will be kept, and keep them if they are the best so far."""
        if self.validation is None:
            return None
        network, averages, weights = self.objective.network, self.keeper.averages, None
        if averages:
            weights = {name: value.detach().clone() for name, value in self.keeper.weights().items()}
            network.load_state_dict(averages)
        network.eval()
        batch = self.settings.micro_batch or max(1, self.settings.batch_size // self.process.world)
        with torch.no_grad(), together(network), self.stepper.autocast:
            scored = self.objective.validate(self.validation.passes(batch, self.settings.validation_slices))
        network.train()
        if weights is not None:
            network.load_state_dict(weights)
        if self.standing.best is None or scored["loss"] < self.standing.best:
            self.standing.best = scored["loss"]
            self.keeper.save("best", self.standing, with_state=False)
        return scored
