"""Write down a run's numbers: one JSON line each time, and the same as TensorBoard scalars.

In: step, samples, numbers. Out: `log.jsonl` and `tensorboard/` in the run's folder. A resumed run first drops
what was logged after its checkpoint, so the file reads as if it had never stopped.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SKIPPED = "skipped.jsonl"


class RunLog:
    """An open log.

    Args:
        out: the run's folder.
        step: steps already done; later lines of an interrupted run are dropped.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and only training needs it

        out.mkdir(parents=True, exist_ok=True)
        path = out / "log.jsonl"
        kept = [line for line in read_log(path) if line["step"] <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

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

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        self._board.close()


class StepClock:
    """Measures a step's speed and how long it waited for images."""

    def __init__(self) -> None:
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
        """Return the speed of the step, and the share of its time that went into waiting."""
        elapsed_s = time.perf_counter() - self._marked
        self._all_s += elapsed_s
        self._all_waiting_s += self._waiting_s
        return {"images_per_second": images / elapsed_s, "waiting": self._waiting_s / elapsed_s}


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
