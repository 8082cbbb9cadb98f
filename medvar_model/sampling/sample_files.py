"""Draw images with a trained run and write them down, with what they were drawn from.

In: a `SampleFiles`. Out: a folder of PNGs, `grid.png` with all of them, and `samples.json` with a row for each. The same
call again writes the same bytes; what an earlier call left there is removed.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from medvar_model.checkpoints.checkpoint import (
    Contents,
    build_tokenizer,
    build_transformer,
    find_checkpoint,
    read_checkpoint,
    read_run,
)
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnknownCondition, UnusableFolder
from medvar_model.machine.folders import check_writable
from medvar_model.machine.memory import told_when_memory_ends
from medvar_model.mosaic import labelled_grid
from medvar_model.sampling.sample import PAPER, SampleSettings, image_seeds, sample

NO_CONDITION = "none"
GRID = "grid.png"
ROWS = "samples.json"
LITTLE = 0.5  # share of a run below which people are told how much of it its weights have seen


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
    """

    run: str
    out: str
    conditions: tuple[str, ...] = (NO_CONDITION,)
    count: int = 8
    settings: SampleSettings = PAPER
    batch_size: int = 16
    tokenizer: str = ""

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


@dataclass(frozen=True, eq=False)
class _Opened:
    """Networks as kept on disk, and the transformer's row of each wanted condition."""

    kept: Contents
    frozen: Contents
    frozen_folder: Path
    rows: list[int]


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
    transformer = build_transformer(opened.kept, spec.run).to(device)
    tokenizer = build_tokenizer(opened.frozen, str(opened.frozen_folder)).to(device)
    out, files = Path(spec.out), _names(spec)
    said: dict[str, Any] = {
        "run": spec.run,
        "transformer_digest": opened.kept.digest,
        "tokenizer_digest": opened.frozen.digest,
        "settings": asdict(spec.settings),
        "trained": opened.kept.run.get("progress"),
        "finished": False,
        "images": files,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in _earlier(out):
        (out / name).unlink(missing_ok=True)
    _write_rows(out, said)  # names what is about to be written, so that a stopped call leaves nothing unknown
    drawn_rows = []
    too_many = told_when_memory_ends(f"Drawing {spec.batch_size} images at a time", "Give a smaller --batch-size.")
    with too_many:
        for place, (name, row) in enumerate(zip(spec.conditions, opened.rows, strict=True)):
            stacks = []
            for first in range(0, spec.count, spec.batch_size):
                number = min(spec.batch_size, spec.count - first)
                seeds = image_seeds(spec.settings.seed, first, number)
                drawn = sample(transformer, tokenizer, torch.full((number,), row), spec.settings, seeds)
                stacks.append(drawn.images.cpu().numpy())
                for n, image in enumerate(stacks[-1]):
                    file = out / str(files[place * spec.count + first + n]["file"])
                    file.write_bytes(cv2.imencode(".png", image)[1].tobytes())
                report(place * spec.count + first + number, len(opened.rows) * spec.count)
            drawn_rows.append((name, np.concatenate(stacks)))
    (out / GRID).write_bytes(labelled_grid(drawn_rows))
    _write_rows(out, said | {"finished": True})
    return [out / str(file["file"]) for file in files]


def check_samples(spec: SampleFiles) -> _Opened:
    """Check what `write_samples` checks before it draws, and write nothing.

    Raises:
        ModelError: what stands in its way; see `write_samples`.
    """
    out = Path(spec.out)
    check_writable(out)
    kept = read_checkpoint(Path(spec.run), "transformer")
    frozen_folder = Path(spec.tokenizer) if spec.tokenizer else own_tokenizer(Path(spec.run))
    frozen = read_checkpoint(frozen_folder, "tokenizer")
    wanted = kept.run.get("tokenizer", {}).get("digest", frozen.digest)
    if frozen.digest != wanted:
        raise ConfigMismatch(
            f"{spec.run} was trained with a tokenizer of digest {wanted[:12]}, {frozen_folder} has "
            f"{frozen.digest[:12]}; its tokens mean other things. Leave out --tokenizer to take the copy in the "
            "run's folder."
        )
    rows = [_row(name, kept.conditions) for name in spec.conditions]
    ours = {*_earlier(out), GRID, *(str(file["file"]) for file in _names(spec))}
    others = [path.name for path in out.glob("*.png") if path.name not in ours]
    if others:
        raise UnusableFolder(
            f"{out} holds {len(others)} PNGs that `medvar-model sample` did not write; they would look like samples. Name "
            "another folder with -o."
        )
    return _Opened(kept, frozen, frozen_folder, rows)


def training_note(run: Path) -> str:
    """Say how much of its training a run's weights have seen, where that is little; else nothing.

    Args:
        run: a checkpoint's or a run's folder.
    """
    folder = find_checkpoint(run)
    seen = read_run(folder).get("progress")
    if not seen or seen["step"] >= LITTLE * seen["steps"]:
        return ""
    total = seen["samples"] * seen["steps"] // max(1, seen["step"])
    of = f" of the {total:,} images of their run" if seen["step"] else " images: they are random"
    return (
        f"The weights in {folder} had seen {seen['samples']:,}{of} ({100 * seen['step'] / seen['steps']:.0f} % of its steps) "
        "when they were kept: take what they draw as unfinished."
    )


def own_tokenizer(run: Path) -> Path:
    """Find the copy of the tokenizer that a transformer's run or checkpoint has beside it.

    Raises:
        MissingCheckpoint: there is none.
    """
    folder = find_checkpoint(run)
    for candidate in (run / "tokenizer", folder.parent / "tokenizer"):
        if candidate.is_dir():
            return candidate
    raise MissingCheckpoint(f"There is no tokenizer beside {run}; name the one it was trained with (--tokenizer).")


def _names(spec: SampleFiles) -> list[dict[str, Any]]:
    """Return a row for each image, in the order of drawing."""
    seeds = image_seeds(spec.settings.seed, 0, spec.count)
    return [
        {"file": f"{name}-{n:04d}.png", "condition": name, "seed": seeds[n]}
        for name in spec.conditions
        for n in range(spec.count)
    ]


def _earlier(out: Path) -> list[str]:
    """Name the files that an earlier call left or began to write."""
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        names = [str(image["file"]) for image in json.loads((out / ROWS).read_text())["images"]]
        names = [name for name in names if Path(name).name == name and name.endswith(".png")]
        names += [GRID, ROWS]
    return names


def _write_rows(out: Path, said: Mapping[str, Any]) -> None:
    partial = out / f"{ROWS}.partial"
    partial.write_text(json.dumps(said, indent=2) + "\n")
    partial.replace(out / ROWS)


def _row(name: str, conditions: Mapping[str, int]) -> int:
    if name != NO_CONDITION and name not in conditions:
        raise UnknownCondition(
            f"The run knows no condition {name!r}; it was trained with {', '.join(conditions)}. Name one of them, or "
            f"{NO_CONDITION} for no condition."
        )
    return conditions.get(name, -1)
