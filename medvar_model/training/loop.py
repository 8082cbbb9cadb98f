"""Train any of the networks: the one loop, with its schedule, its log and its checkpoints.

In: an `Objective` (what is trained and what its loss is) and a `Ready` (settings, folder, loaders). Out: a run's folder.

A little over 300 lines: the loop, what it restores and what it keeps are read side by side.

A run stops and resumes exactly: the data come from (seed, step), so does every random number, and the rest is
in the checkpoint. Time is counted in images seen, so no schedule depends on the batch size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medvar_model.checkpoints.checkpoint import (
    Contents,
    TrainingState,
    find_last,
    kind_of,
    load_weights,
    read_checkpoint,
    read_state,
    write_checkpoint,
)
from medvar_model.errors import MissingCheckpoint, ModelError
from medvar_model.machine import processes
from medvar_model.machine.processes import Process
from medvar_model.training.checks import Ready
from medvar_model.training.log import SKIPPED, RunLog, StepClock, note_skipped
from medvar_model.training.objective import Batch, Draw, Objective
from medvar_model.training.reports import Callbacks, RunStart, StepLog, TrainResult

MOST_SKIPS_IN_A_ROW = 10


@dataclass
class _Progress:
    """Where a run stands; what a checkpoint keeps of it beside tensors."""

    step: int = 0
    best: float | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0


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
        settings, job = self.settings, self.job
        self.parameters = [parameter for group in parameter_groups for parameter in group["params"]]
        # One kernel for all parameters: 3 to 5 times faster than torch's default on a CPU (58 to 203 tensors).
        self.fused = process.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(parameter_groups, lr=0.0, betas=settings.betas, eps=1e-8, fused=self.fused)
        self.averages: dict[str, Tensor] = {}
        if settings.average:
            self.averages = {name: value.detach().clone() for name, value in objective.network.state_dict().items()}
        self.progress = _Progress()
        self.bfloat16 = settings.in_bfloat16(process.device)
        self.autocast = torch.autocast(process.device.type, torch.bfloat16, enabled=self.bfloat16)
        last = find_last(job.out)
        if last is not None:
            self._restore(last)
        processes.wait_for_all()  # nobody may replace the checkpoint that another is still reading
        if last is None:
            self._save("last", with_state=True)  # so `best` never lies without `last`, and a full disk is known at once
        self.replica = self._replica()

    def go(self, callbacks: Callbacks) -> TrainResult:
        """Train; see `train`."""
        settings, progress = self.settings, self.progress
        loss, stopping = math.nan, progress.step >= settings.steps
        if self.process.is_main:
            callbacks.begun(self._start())
        if stopping:
            return self._result(loss)
        batches = self.loader.batches(progress.step)
        log = RunLog(self.job.out, progress.step) if self.process.is_main else None
        clock = StepClock()
        try:
            while progress.step < settings.steps and not stopping:
                step = progress.step
                clock.mark()
                examples = next(batches)
                clock.waited()
                numbers, stopping = self._step(step, examples, callbacks.stop())
                loss = numbers["loss"]
                progress.step += 1
                numbers |= clock.numbers(settings.batch_size) | {"skipped": float(progress.skipped)}
                checked = self._validate() if self._is_due(settings.validate_every, step) else None
                samples = progress.step * settings.batch_size
                logged = StepLog(progress.step, settings.steps, samples, numbers, checked)
                if checked or self._is_due(settings.log_every, step):
                    logged = replace(logged, numbers={**numbers, **self.objective.numbers()})
                    if log is not None:
                        log.write(logged.step, logged.samples, logged.numbers, checked)
                if stopping or self._is_due(settings.checkpoint_every, step):
                    self._save("last", with_state=True)
                if self.process.is_main:
                    callbacks.report(logged)
        finally:
            batches.close()
            if log is not None:
                log.close()
        return self._result(loss, clock.share)

    def _result(self, loss: float, waiting: float = 0.0) -> TrainResult:
        step, samples = self.progress.step, self.progress.step * self.settings.batch_size
        best, skipped = self.progress.best, self.progress.skipped
        unreadable = len(self.loader.unreadable)
        return TrainResult(self.job.out, step, self.settings.steps, samples, loss, best, skipped, waiting, unreadable)

    def _start(self) -> RunStart:
        return RunStart(
            out=self.job.out,
            device=str(self.process.device),
            processes=self.process.world,
            precision="bfloat16" if self.bfloat16 else "float32",
            slices=len(self.loader),
            set_side=self.loader.set_side,
            image_side=self.loader.image_side,
            parameters=sum(parameter.numel() for parameter in self.parameters),
            step=self.progress.step,
            steps=self.settings.steps,
            batch_size=self.settings.batch_size,
            init_from=str(self.job.run.get("init_from", {}).get("path", "")),
        )

    def _is_due(self, every: int, step: int) -> bool:
        return self.settings.is_due(every, step) or (every > 0 and step + 1 == self.settings.steps)

    def _step(self, step: int, examples: Batch, stop: bool) -> tuple[dict[str, float], bool]:
        """Take one step; return its numbers and whether any process wants to stop."""
        settings, progress = self.settings, self.progress
        seen = step * settings.batch_size
        rate = settings.learning_rate(seen)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.before_step(seen, self._forget)
        parts = self._gradients(step, examples)
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        names = list(parts)
        # One exchange a step carries the losses and the wish to stop; one transfer brings all to the host.
        shared = processes.mean(torch.stack([*parts.values(), norm.new_tensor(float(stop))]))
        values = torch.cat([shared, norm.detach()[None]]).tolist()
        numbers = dict(zip([*names, "stop", "gradient_norm"], values, strict=True))
        stopping = numbers.pop("stop") > 0
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"]):
            progress.skipped_in_a_row = 0
            self.optimizer.step()
            self._average(seen)
            self.objective.after_step(seen + settings.batch_size, examples, self._forget)
        else:
            self._skip(numbers, step, examples)
        self.optimizer.zero_grad()
        return {**numbers, "learning_rate": rate}, stopping

    def _gradients(self, step: int, examples: Batch) -> dict[str, Tensor]:
        """Add up the gradients of this process's images, pass by pass; return the mean loss and its parts."""
        settings, count = self.settings, len(examples)
        size = settings.micro_batch or count
        sums: dict[str, Tensor] = {}
        for start in range(0, count, size):
            part = examples.part(start, min(start + size, count))
            draw = Draw(settings.seed, step, self.process.rank * count + start)
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

    def _replica(self) -> Callable[[Batch, Draw], dict[str, Tensor]]:
        if not processes.is_joined():
            return self.objective
        devices = [self.process.device] if self.process.device.type == "cuda" else None
        return DistributedDataParallel(
            self.objective, devices, broadcast_buffers=False, find_unused_parameters=self.objective.skips_parameters
        )

    def _skip(self, numbers: Mapping[str, float], step: int, examples: Batch) -> None:
        progress = self.progress
        note_skipped(self.job.out, step, self.process.rank, examples.keys)
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= MOST_SKIPS_IN_A_ROW:
            raise ModelError(
                f"The loss was not finite in {MOST_SKIPS_IN_A_ROW} steps in a row (last: loss "
                f"{numbers['loss']}, gradient norm {numbers['gradient_norm']}, step {progress.step}); {SKIPPED} names their images. {self._way_on()}"
            )

    def _way_on(self) -> str:
        """Say how to go on after the loss has diverged."""
        lower = f"a lower --base-learning-rate than {self.settings.base_learning_rate:g}"
        kept = [self.job.out / name for name in ("best", "last") if (self.job.out / name).is_dir()]
        begin = f"--init-from {kept[0]} and {lower}" if kept and self.progress.best is not None else lower
        exact = "Go on from the last checkpoint with --precision float32; or " if self.bfloat16 else ""
        sentence = f"{exact}begin another run in a new folder (-o) with {begin}."
        return sentence[0].upper() + sentence[1:]

    def _average(self, seen: int) -> None:
        """Move the averages towards the weights; at first quickly, with decay (t + 1) / (t + 10)."""
        if not self.averages:
            return
        step = seen // self.settings.batch_size
        decay = min(self.settings.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in self.objective.network.state_dict().items():
                if value.is_floating_point():
                    self.averages[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def _forget(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Start the optimizer's and the average's memory of some rows of a parameter anew."""
        for name, value in self.optimizer.state.get(parameter, {}).items():
            if name != "step":
                value[rows] = 0
        for name, own in self.objective.network.named_parameters():
            if own is parameter and name in self.averages:
                self.averages[name][rows] = parameter[rows]

    def _validate(self) -> dict[str, float] | None:
        """Validate the weights that will be kept, and keep them if they are the best so far."""
        if self.validation is None:
            return None
        network, weights = self.objective.network, None
        if self.averages:
            weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
            network.load_state_dict(self.averages)
        network.eval()
        batch = self.settings.micro_batch or max(1, self.settings.batch_size // self.process.world)
        with torch.no_grad(), self.autocast:
            scored = self.objective.validate(self.validation.passes(batch, self.settings.validation_slices))
        network.train()
        if weights is not None:
            network.load_state_dict(weights)
        if self.progress.best is None or scored["loss"] < self.progress.best:
            self.progress.best = scored["loss"]
            self._save("best", with_state=False)
        return scored

    def _save(self, name: str, with_state: bool) -> None:
        if self.process.is_main:
            weights = self.averages or self.objective.network.state_dict()
            step, batch = self.progress.step, self.settings.batch_size
            seen = {"step": step, "steps": self.settings.steps, "samples": step * batch}
            contents = Contents(weights, self.job.config, {**self.job.run, "progress": seen}, self.job.conditions)
            write_checkpoint(self.job.out / name, contents, self._state() if with_state else None)
        processes.wait_for_all()

    def _state(self) -> TrainingState:
        tensors = {f"memory/{name}": value for name, value in self.objective.memory().items()}
        for index, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = value
        if self.averages:
            tensors |= {f"weights/{name}": value for name, value in self.objective.network.state_dict().items()}
        return TrainingState(tensors, vars(self.progress))

    def _restore(self, folder: Path) -> None:
        contents, state = read_checkpoint(folder, kind_of(self.job.config)), read_state(folder)
        try:
            self._take_up(folder, contents, state)
        except (KeyError, TypeError, RuntimeError) as error:
            raise MissingCheckpoint(
                f"{folder / 'state'} does not belong to this run ({error}). Restore it from a copy, or begin another run "
                f"in a new folder with -o and --init-from {folder}."
            ) from None

    def _take_up(self, folder: Path, contents: Contents, state: TrainingState) -> None:
        weights = _under("weights/", state.tensors) if self.averages else contents.weights
        load_weights(self.objective.network, weights, str(folder))
        for name in self.averages:
            self.averages[name].copy_(contents.weights[name])
        for name, value in self.objective.memory().items():
            value.copy_(state.tensors[f"memory/{name}"])
        for index, parameter in enumerate(self.parameters):
            kept = _under(f"optimizer/{index}/", state.tensors)
            if kept:
                self.optimizer.state[parameter] = {
                    name: value if name == "step" and not self.fused else value.to(parameter.device)
                    for name, value in kept.items()
                }
        self.progress = _Progress(**state.progress)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
