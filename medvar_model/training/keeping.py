"""Keep a run on the disk, and take it up again: `last`, `best`, and older checkpoints by policy.

In: the objective, the stepper and where the run stands. Out: folders. Every process calls every function: where weights are split, each
writes and reads its part; otherwise the first one writes and all read. A checkpoint of any number of processes is taken up by any other,
whichever way they share the weights.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvar_model.checkpoints.checkpoint import (
    Contents,
    TrainingState,
    kind_of,
    load_weights,
    partial_of,
    read_checkpoint,
    read_state,
    write_checkpoint,
)
from medvar_model.checkpoints.folder import SHARDS
from medvar_model.checkpoints.sharded import write_shards
from medvar_model.errors import MissingCheckpoint
from medvar_model.machine import processes
from medvar_model.machine.processes import Process
from medvar_model.training.objective import Objective
from medvar_model.training.parallel import is_sharded, like, whole
from medvar_model.training.reports import Job
from medvar_model.training.settings import LoopSettings
from medvar_model.training.stepper import Stepper

KEPT = "kept"


@dataclass
class Standing:
    """Where a run stands; what a checkpoint keeps of it beside tensors."""

    step: int = 0
    best: float | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0


class Keeper:
    """Writes and reads a run's checkpoints.

    Args:
        job: where to and what of.
        settings: of the run.
        stepper: holds the optimizer, and the objective whose network is kept.
        process: this process.

    Attributes:
        averages: name → running average of each weight; empty where none is kept.
    """

    def __init__(self, job: Job, settings: LoopSettings, stepper: Stepper, process: Process) -> None:
        self.job, self.settings, self.stepper, self.process = job, settings, stepper, process
        self.objective: Objective = stepper.objective
        self.averages: dict[str, Tensor] = {}
        if settings.average:
            self.averages = {name: value.detach().clone() for name, value in self.weights().items()}

    def weights(self) -> dict[str, Tensor]:
        """The weights in training, by name."""
        return dict(self.objective.network.state_dict())

    def save(self, name: str, standing: Standing, with_state: bool) -> None:
        """Write the checkpoint `name`, with what resuming needs or without."""
        step, batch = standing.step, self.settings.batch_size
        weights = self._gathered(self.averages or self.weights())
        shards = with_state and is_sharded(self.objective.network)
        folder = self.job.out / name
        if self.process.is_main:
            seen = {"step": step, "steps": self.settings.steps, "samples": step * batch}
            contents = Contents(weights, self.job.config, {**self.job.run, "progress": seen}, self.job.conditions)
            tensors = {} if shards or not with_state else self._tensors()
            state = TrainingState(tensors, vars(standing)) if with_state else None
            write_checkpoint(folder, contents, state, self._write_shards if shards else None)
        elif shards:
            self._write_shards(partial_of(folder) / "state" / SHARDS)
        processes.wait_for_all()
        if with_state and self.process.is_main:
            keep_copy(self.job.out, folder, step * batch, self.settings)

    def restore(self, folder: Path) -> Standing:
        """Take a checkpoint up; every process gets its part.

        Raises:
            MissingCheckpoint: it is damaged, or not this run's.
        """
        contents = read_checkpoint(folder, kind_of(self.job.config))
        try:
            state = read_state(folder, self._made)
            return self._taken_up(folder, contents, state)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise MissingCheckpoint(
                f"{folder / 'state'} does not belong to this run ({error}). Restore it from a copy, or begin another run "
                f"in a new folder with -o and --init-from {folder}."
            ) from None

    def _gathered(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring split weights together in the first process's main memory, one after the other; the others get none."""
        if not is_sharded(self.objective.network):
            return weights
        gathered = {}
        for name, value in weights.items():
            full = whole(value)
            if self.process.is_main:
                gathered[name] = full.cpu()
        return gathered

    def _write_shards(self, folder: Path) -> None:
        processes.wait_for_all()  # the first process has made the folder
        write_shards(folder, self._tensors(), self.process.is_main)

    def _tensors(self) -> dict[str, Tensor]:
        """What resuming needs beside the weights that are kept, by name."""
        tensors = {f"memory/{name}": value for name, value in self.objective.memory().items()}
        for index, parameter in enumerate(self.stepper.parameters):
            for name, value in self.stepper.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = value
        if self.averages:
            tensors |= {f"weights/{name}": value for name, value in self.weights().items()}
        if self.stepper.scaler.is_enabled():
            tensors["scale"] = self.stepper.scale()
        return tensors

    def _made(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Make the tensor that a part of a state is read into: split as the weight that it belongs to."""
        kind, _, rest = name.partition("/")
        if kind == "optimizer" and not rest.endswith("/step"):
            return torch.zeros_like(self.stepper.parameters[int(rest.partition("/")[0])].detach())
        if kind == "weights":
            return torch.zeros_like(self.weights()[rest])
        return torch.zeros(shape, dtype=dtype)

    def _taken_up(self, folder: Path, contents: Contents, state: TrainingState) -> Standing:
        network, optimizer = self.objective.network, self.stepper.optimizer
        own = _under("weights/", state.tensors) if self.averages else contents.weights
        patterns = self.weights()
        fitted = {name: like(value, patterns[name]) if name in patterns else value for name, value in own.items()}
        load_weights(network, fitted, str(folder))
        for name in self.averages:
            self.averages[name].copy_(like(contents.weights[name], self.averages[name]))
        for name, value in self.objective.memory().items():
            value.copy_(state.tensors[f"memory/{name}"])
        for index, parameter in enumerate(self.stepper.parameters):
            kept = _under(f"optimizer/{index}/", state.tensors)
            if kept:
                optimizer.state[parameter] = {
                    name: self._moment(name, value, parameter) for name, value in kept.items()
                }
        if self.stepper.scaler.is_enabled() and "scale" in state.tensors:
            self.stepper.set_scale(state.tensors["scale"])
        return Standing(**state.progress)

    def _moment(self, name: str, value: Tensor, parameter: Tensor) -> Tensor:
        if name == "step":
            step = value.reshape(())
            return step.to(parameter.device) if self.stepper.fused else step
        return like(value, parameter.detach()).to(parameter.device)


def keep_copy(out: Path, last: Path, samples: int, settings: LoopSettings) -> None:
    """Let a checkpoint stay beside later ones, if the settings say so, and remove those that need not stay any longer.

    The copy shares its files with the checkpoint (hard links) where the file system can; nothing ever writes into them.
    """
    if not settings.keep and not settings.keep_every:
        return
    folder = out / KEPT / f"{samples:012d}"
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    if not folder.exists():
        shutil.copytree(last, partial, copy_function=_linked)
        partial.rename(folder)
    there = sorted(int(path.name) for path in (out / KEPT).iterdir() if path.name.isdigit())
    for old in superseded(there, settings.keep, settings.keep_every):
        shutil.rmtree(out / KEPT / f"{old:012d}")


def superseded(there: list[int], keep: int, keep_every: int) -> list[int]:
    """Say which checkpoints need not stay; each is named by the images seen, rising.

    The newest stands in `last` too, so `keep` counts those before it.

    >>> superseded([100, 200, 300, 400, 500], keep=1, keep_every=250)
    [100, 200]
    """
    stay = set(there[-keep - 1 :])
    marks: set[int] = set()
    for samples in there:
        if keep_every and samples // keep_every and samples // keep_every not in marks:
            marks.add(samples // keep_every)
            stay.add(samples)
    return [samples for samples in there if samples not in stay]


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
