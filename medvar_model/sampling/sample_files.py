"""Draw images with a trained run and write them down, with what they were drawn from.

In: a `SampleFiles`. Out: a folder of PNGs, `grid.png` with all of them, and `samples.json` with a row for each. The same
call again writes the same bytes; what an earlier call left there is removed.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from medvar_model.errors import ConfigMismatch, UnusableFolder
from medvar_model.machine.folders import check_writable
from medvar_model.machine.memory import told_when_memory_ends
from medvar_model.mosaic import labelled_grid
from medvar_model.sampling.opened import NO_CONDITION, OpenedRun, open_run, own_tokenizer, training_note
from medvar_model.sampling.outputs import SHARDS, Drawn, write_dicom, write_shards
from medvar_model.sampling.sample import image_seeds
from medvar_model.sampling.sampler import Sampler
from medvar_model.sampling.settings import PAPER, SampleSettings
from medvar_model.sampling.strips import strip

__all__ = ["NO_CONDITION", "SampleFiles", "check_samples", "own_tokenizer", "training_note", "write_samples"]

GRID = "grid.png"
ROWS = "samples.json"
STRIPS_FILE = "strips.png"
STRIPS = 4  # images of each condition that are shown coming up


@dataclass(frozen=True)
class SampleFiles:
    """What to draw.

    Args:
        run: a transformer's run or checkpoint.
        out: folder for the images.
        conditions: names; `none` means no condition.
        count: images of each.
        settings: guidance, filters, seed.
        batch_size: images drawn together; changes nothing but speed and memory.
        tokenizer: a tokenizer's run or checkpoint; empty takes the copy in the transformer's run.
        precision: see `Sampler`.
        strips: write `strips.png`, too: the first images of each condition after each scale, coarse to fine.
        dicom: write each image as DICOM, too, marked as synthetic.
        shards: write the images as a shard set in `shards/`, too.
    """

    run: str
    out: str
    conditions: tuple[str, ...] = (NO_CONDITION,)
    count: int = 8
    settings: SampleSettings = PAPER
    batch_size: int = 16
    tokenizer: str = ""
    precision: str = "auto"
    strips: bool = False
    dicom: bool = False
    shards: bool = False

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.conditions if self.conditions.count(name) > 1})
        if twice:
            raise ConfigMismatch(
                f"--condition {twice[0]} is given twice; wanted each once, and --count for more images of each."
            )
        if self.count < 1 or self.batch_size < 1 or not self.conditions:
            raise ConfigMismatch(
                f"--count is {self.count}, --batch-size {self.batch_size}, and {len(self.conditions)} conditions are "
                "named; wanted at least 1 of each."
            )


def write_samples(
    spec: SampleFiles, device: torch.device, report: Callable[[int, int], None] = lambda done, total: None
) -> list[Path]:
    """Draw images and write them as `<condition>-<number>.png`.

    Args:
        spec: what to draw.
        device: where to.
        report: told how many images of how many are done.

    Raises:
        UnknownCondition: the run knows no such condition.
        MissingCheckpoint: the run or its tokenizer is not there.
        ConfigMismatch: the tokenizer is not the one the transformer was trained with.
        UnusableFolder: the folder is a file, may not be written, or holds other PNGs.
        OutOfMemory: so many images at a time do not fit.

    Example:
        >>> spec = SampleFiles("runs/d4", "drawn", conditions=("acdc-mr",), count=4)
        >>> write_samples(spec, torch.device("cpu"))        # doctest: +SKIP
    """
    opened = check_samples(spec)
    sampler = opened.sampler(device, spec.precision)
    out, files = Path(spec.out), _names(spec)
    said: dict[str, Any] = {
        "run": spec.run,
        "transformer_digest": opened.kept.digest,
        "tokenizer_digest": opened.frozen.digest,
        "settings": asdict(spec.settings),
        "precision": "bfloat16" if sampler.half else "float32",
        "trained": opened.kept.run.get("progress"),
        "finished": False,
        "images": files,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in _earlier(out):
        (out / name).unlink(missing_ok=True)
    _write_rows(out, said)  # names what is about to be written, so that a stopped call leaves nothing unknown
    drawn, strips = _draw(spec, sampler, opened.rows, report)
    (out / GRID).write_bytes(labelled_grid([(part.condition, part.images) for part in drawn]))
    if strips:
        (out / STRIPS_FILE).write_bytes(labelled_grid(strips, across=sampler.schedule.n))
    if spec.dicom:
        write_dicom(out, drawn, opened.kept.digest, asdict(spec.settings))
    if spec.shards:
        versions = {name: said[name] for name in ("transformer_digest", "tokenizer_digest", "settings", "precision")}
        shutil.rmtree(out / SHARDS, ignore_errors=True)
        write_shards(out / SHARDS, drawn, versions)
    _write_rows(out, said | {"finished": True})
    return [out / str(file["file"]) for file in files]


def _draw(
    spec: SampleFiles, sampler: Sampler, rows: Sequence[int], report: Callable[[int, int], None]
) -> tuple[list[Drawn], list[tuple[str, np.ndarray]]]:
    """Draw every condition's images and write them as PNGs as they come; with `strips`, show the first coming up."""
    drawn: list[Drawn] = []
    strips: list[tuple[str, np.ndarray]] = []
    with told_when_memory_ends(f"Drawing {spec.batch_size} images at a time", "Give a smaller --batch-size."):
        for place, (name, row) in enumerate(zip(spec.conditions, rows, strict=True)):
            stacks = []
            for first in range(0, spec.count, spec.batch_size):
                number = min(spec.batch_size, spec.count - first)
                seeds = image_seeds(spec.settings.seed, first, number)
                samples = sampler.draw([row] * number, spec.settings, seeds)
                if spec.strips and first == 0:
                    stages = strip(sampler, [ids[:STRIPS] for ids in samples.tokens])
                    strips += [(f"{name} {n}: coarse to fine", stack) for n, stack in enumerate(stages)]
                stacks.append(samples.images.cpu().numpy())
                for n, image in enumerate(stacks[-1], start=first):
                    (Path(spec.out) / _file(name, n)).write_bytes(cv2.imencode(".png", image)[1].tobytes())
                report(place * spec.count + first + number, len(rows) * spec.count)
            drawn.append(Drawn(name, row, np.concatenate(stacks)))
    return drawn, strips


def check_samples(spec: SampleFiles) -> OpenedRun:
    """Check what `write_samples` checks before it draws, and write nothing.

    Raises:
        ModelError: what stands in its way; see `write_samples`.
    """
    out = Path(spec.out)
    check_writable(out)
    opened = open_run(spec.run, spec.tokenizer, spec.conditions)
    ours = {*_earlier(out), GRID, STRIPS_FILE, *(str(file["file"]) for file in _names(spec))}
    others = [path.name for path in out.glob("*.png") if path.name not in ours]
    if others:
        raise UnusableFolder(
            f"{out} holds {len(others)} PNGs that `medvar-model sample` did not write; they would look like samples. Name "
            "another folder with -o."
        )
    return opened


def _names(spec: SampleFiles) -> list[dict[str, Any]]:
    """Return a row for each image, in the order of drawing."""
    seeds = image_seeds(spec.settings.seed, 0, spec.count)
    return [
        {"file": _file(name, n), "condition": name, "seed": seeds[n]}
        for name in spec.conditions
        for n in range(spec.count)
    ]


def _file(condition: str, number: int) -> str:
    return f"{condition}-{number:04d}.png"


def _earlier(out: Path) -> list[str]:
    """Name the files that an earlier call left or began to write."""
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        names = [str(image["file"]) for image in json.loads((out / ROWS).read_text())["images"]]
        names = [name for name in names if Path(name).name == name and name.endswith(".png")]
        names += [name.removesuffix(".png") + ".dcm" for name in names]
        names += [GRID, ROWS, STRIPS_FILE]
    return names


def _write_rows(out: Path, said: Mapping[str, Any]) -> None:
    partial = out / f"{ROWS}.partial"
    partial.write_text(json.dumps(said, indent=2) + "\n")
    partial.replace(out / ROWS)
