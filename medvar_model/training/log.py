"""Write down a run's numbers: one JSON line each time, the same as TensorBoard scalars and, where wanted, in Weights & Biases.

In: step, samples, numbers. Out: `log.jsonl` and `tensorboard/` in the run's folder. A resumed run first drops
what was logged after its checkpoint, so the file reads as if it had never stopped.
"""

import importlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from medvar_model.config import to_dict
from medvar_model.errors import ConfigMismatch
from medvar_model.training.reports import Job

SKIPPED = "skipped.jsonl"


class RunLog:
    """An open log.

    Args:
        job: the run's folder, and what it is made of.
        step: steps already done; later lines of an interrupted run are dropped.
        wandb: project in Weights & Biases; empty for none.
    """

    def __init__(self, job: Job, step: int, wandb: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and only training needs it

        out = job.out
        out.mkdir(parents=True, exist_ok=True)
        path = out / "log.jsonl"
        kept = [line for line in read_log(path) if line["step"] <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self._wandb = _begin_wandb(wandb, job) if wandb else None

    def write(
        self, step: int, samples: int, numbers: Mapping[str, float], validation: Mapping[str, float] | None
    ) -> None:
        """Add one line; TensorBoard's horizontal axis is the step."""
        line: dict[str, Any] = {"step": step, "samples": samples, **_finite(numbers)}
        named = {f"train/{name}": value for name, value in numbers.items()}
        if validation:
            line["validation"] = _finite(validation)
            named |= {f"val/{name}": value for name, value in validation.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in named.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({**named, "samples": samples}, step=step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_wandb() -> Any:
    """Import Weights & Biases.

    Raises:
        ConfigMismatch: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise ConfigMismatch(
            "--wandb needs the package wandb, which is not installed. Run: pip install 'medvar[wandb]', or leave the option out."
        ) from None


def _begin_wandb(project: str, job: Job) -> Any:
    """Open the run's page, the same one when the run goes on. It is told the network's and the loop's numbers, and no path."""
    numbers = {"network": to_dict(job.config), "loop": job.run["settings"]["loop"]}
    name = json.dumps([job.out.name, numbers, job.run["shard_set"]["digest"]], sort_keys=True)
    page = sha256(name.encode()).hexdigest()[:16]
    return check_wandb().init(
        project=project, name=job.out.name, id=page, resume="allow", dir=str(job.out), config=numbers
    )


class StepClock:
    """Measures a step's speed and how long it waited for images.

    Args:
        share_of_peak: of the devices' peak that training on one image a second uses.
    """

    def __init__(self, share_of_peak: float = 0.0) -> None:
        self._share_of_peak = share_of_peak
        self._marked = time.perf_counter()
        self._waiting_s = 0.0
        self._all_s, self._all_waiting_s = 0.0, 0.0

    @property
    def share(self) -> float:
        """Share of all steps' time that went into waiting for images."""
        return self._all_waiting_s / self._all_s if self._all_s else 0.0

    def mark(self) -> None:
        """Begin a step."""
        self._marked = time.perf_counter()

    def waited(self) -> None:
        """Note that the images are here."""
        self._waiting_s = time.perf_counter() - self._marked

    def numbers(self, images: int) -> dict[str, float]:
        """Return the speed of the step, the share of its time that went into waiting, and the share of the peak that it used."""
        elapsed_s = time.perf_counter() - self._marked
        self._all_s += elapsed_s
        self._all_waiting_s += self._waiting_s
        rate = images / elapsed_s
        return {"images_per_second": rate, "waiting": self._waiting_s / elapsed_s, "mfu": rate * self._share_of_peak}


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON knows them: what is not finite is null."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log; a last line that a killed process left half-written is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def note_skipped(out: Path, step: int, process: int, keys: Sequence[str]) -> None:
    """Keep which images a step had whose loss was not finite: a line of `skipped.jsonl` for each process."""
    with (out / SKIPPED).open("a") as file:
        file.write(json.dumps({"step": step, "process": process, "keys": list(keys)}) + "\n")
