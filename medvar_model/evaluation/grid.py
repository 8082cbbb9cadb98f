"""Try settings of sampling side by side: guidance x top-k x top-p, each scored on the same held-out slices.

In: a `Grid`. Out: a folder with `grid.json`, `grid.parquet`, `grid.tex`, `grid.png` (distance over time) and the samples of every
setting in a sub-folder. Settings that are drawn already are not drawn again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from medvar_data.storage.store import write_bytes
from medvar_model.checkpoints.checkpoint import read_checkpoint
from medvar_model.evaluation.comparison import ALL, FLOOR
from medvar_model.evaluation.extractors import Extractor, opened_extractors, remembering
from medvar_model.evaluation.inputs import read_drawn
from medvar_model.evaluation.metrics.classify import condition_features, fit_classifier
from medvar_model.evaluation.metrics.efficiency import efficiency
from medvar_model.evaluation.outputs import latex_table
from medvar_model.evaluation.plots import plot_times
from medvar_model.evaluation.reference import Reference
from medvar_model.evaluation.scores import Labelled
from medvar_model.loader import DataSpec
from medvar_model.sampling.sample import SampleSettings
from medvar_model.sampling.sample_files import SampleFiles, own_tokenizer, write_samples


@dataclass(frozen=True)
class Grid:
    """What to try.

    Args:
        out: folder for tables and samples.
        data: the shard set; its held-out slices are the reference.
        run: a transformer's run or checkpoint.
        guidance, top_k, top_p: values of each; every combination is drawn.
        count: images of each condition and setting.
        seed: the same for all settings.
        batch_size: images drawn at a time.
        held_out: at most so many slices of each held-out split; 0 takes all.
        features: what the distances stand on; empty is the default.
        weights: name of features → weight file, as in `evaluate.Evaluate`.
    """

    out: str
    data: DataSpec
    run: str
    guidance: tuple[float, ...] = (1.0, 4.0)
    top_k: tuple[int, ...] = (0, 900)
    top_p: tuple[float, ...] = (0.0, 0.95)
    count: int = 32
    seed: int = 42
    batch_size: int = 16
    held_out: int = 2048
    features: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> list[SampleSettings]:
        """Every combination."""
        return [SampleSettings(*values, self.seed) for values in product(self.guidance, self.top_k, self.top_p)]


def try_settings(
    spec: Grid, device: torch.device, report: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Draw and score every combination; give a row each, in the order of the grid, and last the row of fresh real slices.

    A row holds the settings, seconds an image (as measured when they were drawn), the share of samples that show their
    condition, every metric, and `efficiency`: the Frechet distance (fid, where features are Inception's) weighed with the seconds.

    Raises:
        ModelError: the run or the set cannot be used; see `evaluate.evaluate`.
    """
    kept = read_checkpoint(Path(spec.run), "transformer")
    side = read_checkpoint(own_tokenizer(Path(spec.run)), "tokenizer").config.image_side  # type: ignore[union-attr]
    reference = Reference(spec.data, device, side, spec.held_out)
    features = remembering(opened_extractors([spec.features], device, spec.weights, side)[0])
    held, _ = reference.held
    classifier = fit_classifier(condition_features(held.images), held.conditions)
    fresh = reference.fresh(spec.count)
    rows: list[dict[str, Any]] = []
    for settings in spec.settings():
        folder = Path(spec.out) / "samples" / f"g{settings.guidance:g}-k{settings.top_k}-p{settings.top_p:g}"
        report(f"guidance {settings.guidance:g}, top-k {settings.top_k}, top-p {settings.top_p:g}")
        drawing = SampleFiles(spec.run, str(folder), tuple(kept.conditions), spec.count, settings, spec.batch_size)
        samples, seconds = _drawn(drawing, kept.digest, device, side)
        named = classifier.names_of(condition_features(samples.images))
        obeyed = float(np.mean([a == b for a, b in zip(named, samples.conditions, strict=True)]))
        scores = reference.compared({"samples": samples}, fresh, [features], 0)["scores"]
        rows.append(
            {**asdict(settings), "seconds": seconds, "obeyed": obeyed, **_numbers(scores, "samples", features, seconds)}
        )
    real = dict.fromkeys([*asdict(SampleSettings()), "seconds", "obeyed"])
    rows.append({**real, **_numbers(scores, FLOOR, features, None)})
    inputs = {"transformer": kept.digest, "shard_set": reference.train.digest, "features": features.provenance}
    _write(Path(spec.out), rows, spec, features, inputs)
    return rows


def _drawn(drawing: SampleFiles, digest: str, device: torch.device, side: int) -> tuple[Labelled, float]:
    """Draw, or read what the same call drew before; give the images and the seconds of each."""
    folder = Path(drawing.out)
    done = folder / "seconds.json"
    known = json.loads(done.read_text()) if done.is_file() else {}
    wanted = {"digest": digest, "count": drawing.count, "settings": asdict(drawing.settings)}
    if {name: known.get(name) for name in wanted} != wanted:
        before = time.monotonic()
        files = write_samples(drawing, device)
        seconds = (time.monotonic() - before) / len(files)
        write_bytes(done, json.dumps({**wanted, "seconds": seconds}).encode())
    else:
        seconds = float(known["seconds"])
    drawn, _ = read_drawn(folder)
    assert drawn.images.shape[1] == side
    return drawn, seconds


def _numbers(
    scores: Sequence[dict[str, Any]], candidate: str, features: Extractor, seconds: float | None
) -> dict[str, Any]:
    """Take one set's numbers over all cells, and weigh its Frechet distance by the time."""
    mine = {s["metric"]: s["value"] for s in scores if s["cell"] == ALL and s["candidate"] == candidate}
    distance = mine.get(features.metrics.get("fd", ""))
    weighed = efficiency(distance, seconds) if distance is not None and seconds is not None else None
    return {**mine, "efficiency": weighed}


def _write(out: Path, rows: list[dict[str, Any]], spec: Grid, features: Extractor, inputs: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    said = {"inputs": {**inputs, "run": spec.run, "count": spec.count, "batch_size": spec.batch_size}, "rows": rows}
    write_bytes(out / "grid.json", (json.dumps(said, indent=2) + "\n").encode())
    pq.write_table(pa.Table.from_pylist(rows), out / "grid.parquet")
    write_bytes(out / "grid.tex", latex_table(rows).encode())
    distances = [name for kind, name in features.metrics.items() if kind in ("fd", "fd_inf", "kid", "cmmd")]
    metric = next((name for name in distances if rows[0].get(name) is not None), distances[0])
    points = [
        (f"g {row['guidance']:g}, k {row['top_k']}, p {row['top_p']:g}", float(row["seconds"]), float(row[metric]))
        for row in rows[:-1]
        if row.get(metric) is not None
    ]
    plot_times(out / "grid.png", metric, points, rows[-1].get(metric))
