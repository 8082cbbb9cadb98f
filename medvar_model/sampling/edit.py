"""Draw anew a part of real slices: finer scales from their own coarse ones, or what lies under a mask (VAR's zero-shot editing).

In: an `Edit`. Out: a folder with `<key>-<number>.png`, `grid.png` (each slice, through the tokenizer, as far as it is kept, and as drawn)
and `edits.json`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from medvar_model.errors import ConfigMismatch, UnusableFolder
from medvar_model.loader import DataSpec, Examples, Loader
from medvar_model.machine.folders import check_writable
from medvar_model.machine.processes import Process
from medvar_model.mosaic import labelled_grid
from medvar_model.networks.scales import ScaleSchedule, TokenMaps
from medvar_model.sampling.images import to_uint8
from medvar_model.sampling.opened import OpenedRun, condition_row, open_run
from medvar_model.sampling.sample import image_seeds
from medvar_model.sampling.sampler import Kept, Sampler
from medvar_model.sampling.settings import PAPER, SampleSettings

ROWS, GRID = "edits.json", "grid.png"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Edit:
    """What to draw anew.

    Args:
        data: a shard set and which of its slices.
        run: a transformer's run or checkpoint.
        out: folder for the images.
        coarse: scales that are kept whole; the finer ones are drawn. 0 keeps none for its own sake.
        box: top, left, bottom and right of what is drawn anew, as shares of the image; None: everything.
        mask: a PNG of what is drawn anew, where it is brighter than half; stretched to the image. Empty: see `box`.
        split: of the slices.
        count: slices, evenly spread over those that fit.
        variants: images of each slice.
        condition: to draw by, in place of each slice's own; empty: its own.
        settings: guidance, filters, seed.
        tokenizer: a tokenizer's run or checkpoint; empty takes the copy in the transformer's run.
    """

    data: DataSpec
    run: str
    out: str
    coarse: int = 0
    box: Box | None = None
    mask: str = ""
    split: str = "test"
    count: int = 4
    variants: int = 4
    condition: str = ""
    settings: SampleSettings = PAPER
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.count < 1 or self.variants < 1 or self.coarse < 0:
            raise ConfigMismatch("wanted at least 1 slice and 1 image of each, and 0 or more scales that are kept.")
        if self.box is not None:
            top, left, bottom, right = self.box
            if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
                raise ConfigMismatch(
                    f"--box is {', '.join(map(str, self.box))}; wanted top, left, bottom, right as shares of the image, such as "
                    "0.25, 0.25, 0.75, 0.75."
                )


def write_edits(spec: Edit, device: torch.device) -> list[Path]:
    """Draw and write.

    Raises:
        UnknownCondition: the run knows no such condition, or not that of a slice.
        MissingCheckpoint: the run or its tokenizer is not there.
        ConfigMismatch: tokenizer, scales or mask do not fit.
        UnusableFolder: the folder holds something else.
    """
    opened = check_edit(spec)
    transformer, tokenizer = opened.networks(device)
    sampler, out = Sampler(transformer, tokenizer), Path(spec.out)
    side, schedule = tokenizer.config.image_side, sampler.schedule
    area = _area(spec, side).to(device)
    where = keep_where(area, schedule, spec.coarse)
    out.mkdir(parents=True, exist_ok=True)
    rows, grid, files = [], [], []
    for key, condition, image in _slices(spec, opened, side, device):
        tokens = tokenizer.encode(image)
        row = condition_row(condition, opened.kept.conditions, sampler.n_conditions)
        drawn = _variants(sampler, tokens, where, row, spec)
        shown = np.concatenate([_shown(sampler, image, tokens, spec.coarse, area), drawn])
        grid.append((f"{key}: real, tokenizer, kept, drawn", shown))
        for n, picture in enumerate(drawn):
            files.append(out / f"{key}-{n:04d}.png")
            files[-1].write_bytes(cv2.imencode(".png", picture)[1].tobytes())
            rows.append({"file": files[-1].name, "key": key, "condition": condition})
    (out / GRID).write_bytes(labelled_grid(grid))
    said: dict[str, Any] = {
        "run": spec.run,
        "transformer_digest": opened.kept.digest,
        "tokenizer_digest": opened.frozen.digest,
    }
    said |= {"settings": asdict(spec.settings), "coarse": spec.coarse, "box": spec.box, "images": rows}
    (out / ROWS).write_text(json.dumps(said, indent=2) + "\n")
    return files


def check_edit(spec: Edit) -> OpenedRun:
    """Check what `write_edits` checks before it draws, and write nothing.

    Raises:
        ModelError: what stands in its way; see `write_edits`.
    """
    out = Path(spec.out)
    check_writable(out)
    if any(out.glob("*.png")) and not (out / ROWS).exists():
        raise UnusableFolder(f"{out} holds PNGs that this command did not write. Name another folder with -o.")
    opened = open_run(spec.run, spec.tokenizer, [spec.condition] if spec.condition else [])
    n = len(opened.frozen.config.scale_sides)
    if spec.coarse >= n:
        raise ConfigMismatch(f"{spec.coarse} scales are to be kept of {n}; wanted fewer, or nothing is drawn.")
    _area(spec, opened.frozen.config.image_side)  # type: ignore[union-attr]
    return opened


def keep_where(area: Bool[Tensor, "side side"], schedule: ScaleSchedule, coarse: int) -> list[Bool[Tensor, "one _"]]:
    """Say which tokens of each scale are kept: all of the coarse scales, and of the others those of which at most half lies in the area.

    Args:
        area: true where something is drawn anew.
        schedule: sides of the scales.
        coarse: scales that are kept whole.
    """
    share = area.float()[None, None]
    kept = [(F.adaptive_avg_pool2d(share, side) <= 0.5).flatten(1) for side in schedule.sides]
    return [torch.ones_like(where) if k < coarse else where for k, where in enumerate(kept)]


def _variants(
    sampler: Sampler, tokens: TokenMaps, where: list[Tensor], row: int, spec: Edit
) -> UInt8[np.ndarray, "variants side side"]:
    n = spec.variants
    kept = Kept([ids.expand(n, -1) for ids in tokens], [place.expand(n, -1) for place in where])
    drawn = sampler.draw([row] * n, spec.settings, image_seeds(spec.settings.seed, 0, n), kept)
    return drawn.images.cpu().numpy()


def _shown(
    sampler: Sampler, image: Tensor, tokens: TokenMaps, coarse: int, area: Tensor
) -> UInt8[np.ndarray, "three side side"]:
    """The slice, the slice through the tokenizer, and what is kept of it."""
    totals = list(sampler.pyramid.grow(tokens))
    whole = to_uint8(sampler.decoder(totals[-1]))
    kept = to_uint8(sampler.decoder(totals[coarse - 1])) if coarse else torch.where(area, 128, whole)
    return torch.cat([to_uint8(image), whole, kept.to(torch.uint8)]).cpu().numpy()


def _slices(
    spec: Edit, opened: OpenedRun, side: int, device: torch.device
) -> Iterator[tuple[str, str, Float32[Tensor, "one channel side side"]]]:
    """Give key, condition and image of each slice."""
    loader = Loader(spec.data, spec.split, side, spec.count, 0, Process(1, 0, device))
    names = {row: name for name, row in loader.conditions.items()}
    examples: Examples
    for examples in loader.passes(spec.count, spec.count):
        for n, key in enumerate(examples.keys):
            yield key, spec.condition or names[int(examples.conditions[n])], examples.images[n : n + 1]


def _area(spec: Edit, side: int) -> Bool[Tensor, "side side"]:
    """Mark what is drawn anew."""
    if spec.mask:
        pixels = cv2.imread(spec.mask, cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            raise ConfigMismatch(f"{spec.mask} is no picture that can be read (--mask); wanted a PNG.")
        return torch.from_numpy(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA) > 127)
    top, left, bottom, right = (round(share * side) for share in spec.box or (0.0, 0.0, 1.0, 1.0))
    area = torch.zeros(side, side, dtype=torch.bool)
    area[top:bottom, left:right] = True
    return area
