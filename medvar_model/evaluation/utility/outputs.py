"""Write what was measured: result, tables, plot, pictures and page.

In: a result and what the networks said. Out: the files at the head of `run`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64

from medvar_data.storage.store import write_bytes
from medvar_model.evaluation.plots import plot_shares
from medvar_model.evaluation.utility.arms import SYNTHETIC, Arm, Slices
from medvar_model.evaluation.utility.page import write_page
from medvar_model.mosaic import labelled_grid

RESULT = "utility.json"
PLOT = "utility.png"
SHOWN = 8  # images of each class and source on the picture


@dataclass(frozen=True, eq=False)
class Trained:
    """What an arm's networks say of the held-out slices.

    Attributes:
        arm: which.
        chances: of each seed, the logarithm of each class's probability.
        patients, images: of each seed, how many it was trained on.
        fit: of each seed, the share of its own training images that it names right, [0, 1].
    """

    arm: Arm
    chances: tuple[Float64[np.ndarray, "n classes"], ...]
    patients: tuple[int, ...]
    images: tuple[int, ...]
    fit: tuple[float, ...]


def write_results(
    out: Path, result: Mapping[str, Any], trained: Sequence[Trained], sets: tuple[Slices, Slices, Slices]
) -> dict[str, Any]:
    """Write everything, the result last and whole or not at all. Return it as it will be read.

    Args:
        out: the folder.
        result: as utility.json holds it.
        trained: the arms' networks.
        sets: training slices, synthetic images, held-out slices.
    """
    real, synthetic, test = sets
    classes = result["task"]["classes"]
    _write_scores(out / "utility.parquet", result)
    pq.write_table(pa.concat_tables([_named(one, test, classes) for one in trained]), out / "named.parquet")
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    rows = [
        (f"{name}: {kind}", part.part.images[np.flatnonzero(part.part.target == number)[:SHOWN]])
        for number, name in enumerate(classes)
        for kind, part in (("real", real), ("synthetic", synthetic))
    ]
    write_bytes(out / "pictures" / "shown.png", labelled_grid(rows))
    _plot(out / PLOT, result)
    write_page(out, result, PLOT, "pictures")
    text = json.dumps(result, indent=2)
    write_bytes(out / RESULT, (text + "\n").encode())
    return dict(json.loads(text))


def _write_scores(path: Path, result: Mapping[str, Any]) -> None:
    """Write a row a score; differences are rows with `minus` = real."""
    rows = [
        {"arm": arm["name"], "share": arm["share"], "minus": "", "metric": metric, **score}
        for arm in result["arms"]
        for metric, score in arm["scores"].items()
    ]
    rows += [{**row, "minus": "real"} for row in result["differences"]]
    number = pa.float64()
    kinds = {
        "arm": pa.string(),
        "share": number,
        "minus": pa.string(),
        "metric": pa.string(),
        "by_seed": pa.list_(number),
    }
    names = ("arm", "share", "minus", "metric", "value", "low", "high", "spread", "by_seed")
    schema = pa.schema([(name, kinds.get(name, number)) for name in names])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def _named(one: Trained, test: Slices, classes: Sequence[str]) -> pa.Table:
    names, n = np.array(classes, dtype=object), len(test)
    called = np.concatenate([names[rows.argmax(1)] for rows in one.chances])
    seeds = len(one.chances)
    columns = {
        "arm": pa.array([one.arm.name] * (n * seeds)),
        "share": pa.array(np.full(n * seeds, one.arm.share)),
        "seed": pa.array(np.repeat(np.arange(seeds), n)),
        "key": pa.array(list(test.keys) * seeds),
        "class": pa.array(np.tile(names[test.part.target], seeds), pa.string()),
        "named": pa.array(called, pa.string()),
    }
    return pa.table(columns)


def _plot(path: Path, result: Mapping[str, Any]) -> None:
    scores = [(arm["name"], arm["share"], arm["scores"]["balanced_accuracy"]) for arm in result["arms"]]
    curves = {
        name: [(share, score) for arm, share, score in scores if arm == name]
        for name in dict.fromkeys(name for name, _, _ in scores)
    }
    alone = curves.pop(SYNTHETIC)[0][1]
    levels = {
        "synthetic alone": alone,
        "16 × 16 pixels, linear": result["floors"]["thumbnails"]["balanced_accuracy"],
        "chance": {"value": result["floors"]["chance"]["balanced_accuracy"], "low": None, "high": None},
    }
    plot_shares(path, curves, levels, "balanced accuracy on held-out patients")
