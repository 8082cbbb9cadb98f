"""Draw images with a trained run and write them down, with what they were drawn from.

In: a `SampleFiles`. Out: a folder of PNGs and `samples.json`. The same call again writes the same bytes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import torch

from medvar_model.checkpoint import build_tokenizer, build_transformer, find_checkpoint, read_checkpoint
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnknownCondition
from medvar_model.sampling import PAPER, SampleSettings, image_seeds, sample

NO_CONDITION = "none"


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

    Example:
        >>> spec = SampleFiles("runs/d4", "drawn", conditions=("acdc-mr",), count=4)
        >>> write_samples(spec, torch.device("cpu"))        # doctest: +SKIP
    """
    kept = read_checkpoint(Path(spec.run), "transformer")
    frozen_folder = Path(spec.tokenizer) if spec.tokenizer else _own_tokenizer(Path(spec.run))
    frozen = read_checkpoint(frozen_folder, "tokenizer")
    wanted = kept.run.get("tokenizer", {}).get("digest", frozen.digest)
    if frozen.digest != wanted:
        raise ConfigMismatch(
            f"{spec.run} was trained with a tokenizer of digest {wanted[:12]}, {frozen_folder} has "
            f"{frozen.digest[:12]}; its tokens mean other things. Leave out --tokenizer to take the copy in the "
            "run's folder."
        )
    rows = [_row(name, kept.conditions) for name in spec.conditions]
    transformer = build_transformer(kept, spec.run).to(device)
    tokenizer = build_tokenizer(frozen, str(frozen_folder)).to(device)
    out, files = Path(spec.out), []
    out.mkdir(parents=True, exist_ok=True)
    for place, (name, row) in enumerate(zip(spec.conditions, rows, strict=True)):
        for first in range(0, spec.count, spec.batch_size):
            number = min(spec.batch_size, spec.count - first)
            seeds = image_seeds(spec.settings.seed, first, number)
            drawn = sample(transformer, tokenizer, torch.full((number,), row), spec.settings, seeds)
            for n, image in enumerate(drawn.images.cpu().numpy()):
                file = out / f"{name}-{first + n:04d}.png"
                file.write_bytes(cv2.imencode(".png", image)[1].tobytes())
                files.append({"file": file.name, "condition": name, "seed": seeds[n]})
            report(place * spec.count + first + number, len(rows) * spec.count)
    said = {
        "run": spec.run,
        "transformer_digest": kept.digest,
        "tokenizer_digest": frozen.digest,
        "settings": asdict(spec.settings),
        "images": files,
    }
    (out / "samples.json").write_text(json.dumps(said, indent=2) + "\n")
    return [out / str(file["file"]) for file in files]


def _own_tokenizer(run: Path) -> Path:
    folder = find_checkpoint(run)
    for candidate in (run / "tokenizer", folder.parent / "tokenizer"):
        if candidate.is_dir():
            return candidate
    raise MissingCheckpoint(f"There is no tokenizer beside {run}; name the one it was trained with (--tokenizer).")


def _row(name: str, conditions: Mapping[str, int]) -> int:
    if name != NO_CONDITION and name not in conditions:
        raise UnknownCondition(
            f"The run knows no condition {name!r}; it was trained with {', '.join(conditions)}. Name one of them, or "
            f"{NO_CONDITION} for no condition."
        )
    return conditions.get(name, -1)
