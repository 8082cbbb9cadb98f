"""Write what an evaluation found: report, rows, tables for papers.

In: a report and rows. Out, in one folder:

    report.json        everything, with the digests of what it came from
    samples.parquet    a row a drawn image
    held_out.parquet   a row a held-out slice
    metrics.parquet    a row a metric, cell and set, with interval and counts
    metrics.tex        the same as LaTeX tables: one of all cells together, and one a cell
    pictures/cells-<metric>.png    the distances of each cell with their intervals
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.storage.documents import read_json
from medvar_data.storage.store import write_bytes
from medvar_model.errors import MissingCheckpoint
from medvar_model.evaluation.comparison import ALL, RECONSTRUCTIONS, Score, all_scores
from medvar_model.evaluation.passes import Neighbours
from medvar_model.evaluation.plots import plot_cells

REPORT = "report.json"
DISTANCES = ("kid_", "fd_", "fid", "radfid_", "cmmd")  # beginnings of the metrics that are plotted
ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
SPECIAL = {character: f"\\{character}" for character in "_%&#$"}


def finished_report(file: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the report that the same call left before, by its `inputs`; None if it did not, or if it is damaged."""
    if not file.is_file():
        return None
    try:
        before: dict[str, Any] = read_json(file, dict[str, Any], MissingCheckpoint, "")
    except MissingCheckpoint:
        return None
    return before if before.get("inputs") == inputs else None


def write_report(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write the report, whole or not at all, and its tables. Return it as it will be read."""
    scores = all_scores(report)
    write_metrics(out, scores)
    for metric in dict.fromkeys(score["metric"] for score in scores if score["metric"].startswith(DISTANCES)):
        plot_cells(out / "pictures" / f"cells-{metric}.png", scores, metric)
    text = json.dumps(report, indent=2)
    write_bytes(out / REPORT, (text + "\n").encode())
    return dict(json.loads(text))


def write_metrics(out: Path, scores: Sequence[Mapping[str, Any]]) -> None:
    """Write the scores of all metrics as Parquet and LaTeX."""
    text, count, value = pa.string(), pa.int64(), pa.float64()
    kinds = {"value": value, "low": value, "high": value, "n_reference": count, "n_candidate": count, "patients": count}
    schema = pa.schema([(name.name, kinds.get(name.name, text)) for name in fields(Score)])
    pq.write_table(pa.Table.from_pylist([dict(score) for score in scores], schema), out / "metrics.parquet")
    write_bytes(out / "metrics.tex", latex(scores).encode())


def write_rows(out: Path, drawn: Mapping[str, Any], slices: Mapping[str, Any], near: Neighbours) -> None:
    """Write one row a sample and one a held-out slice, each with its nearest training slice.

    Args:
        out: the evaluation's folder.
        drawn: columns of the samples.
        slices: columns of the held-out slices.
        near: nearest training slices, of the samples first.
    """
    n = len(drawn["file"])
    for name, columns, part in (("samples", drawn, slice(None, n)), ("held_out", slices, slice(n, None))):
        nearest = {"nearest_key": list(near.keys[part]), "nearest_distance": near.nearest.distance[part]}
        pq.write_table(pa.table({**columns, **nearest}), out / f"{name}.parquet")


def latex(scores: Sequence[Mapping[str, Any]]) -> str:
    """Set the scores as tables, a row a set and a column a metric: all cells together first, each cell, and last reconstructions."""
    sets = [score for score in scores if score["candidate"] != RECONSTRUCTIONS]
    parts = [[score for score in sets if score["cell"] == cell] for cell in dict.fromkeys(s["cell"] for s in sets)]
    parts.append([score for score in scores if score["candidate"] == RECONSTRUCTIONS])
    return "\n".join(_tabular(part) for part in parts if part) + "\n"


def latex_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Set rows of equal columns as one table."""
    columns = list(rows[0])
    lines = [
        rf"\begin{{tabular}}{{{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(map(_escaped, columns)) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [
            "--" if row[c] is None else f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tabular(scores: Sequence[Mapping[str, Any]]) -> str:
    cell = scores[0]["cell"]
    metrics = list(dict.fromkeys(score["metric"] for score in scores))
    found = {(score["candidate"], score["metric"]): score for score in scores}
    better = {score["metric"]: ARROWS[score["better"]] for score in scores}
    head = " & ".join(["images", "n", *(f"{_escaped(name)} {better[name]}" for name in metrics)])
    lines = [f"% {cell}: against held-out slices", rf"\begin{{tabular}}{{l{'r' * (len(metrics) + 1)}}}", r"\toprule"]
    lines += [rf"{head} \\", r"\midrule"]
    for candidate in dict.fromkeys(score["candidate"] for score in scores):
        mine = [found.get((candidate, name)) for name in metrics]
        n = next(score["n_candidate"] for score in mine if score)
        lines.append(" & ".join([_escaped(candidate), str(n), *(_number(score) for score in mine)]) + r" \\")
    title = "all conditions" if cell == ALL else cell
    return "\n".join([*lines, r"\bottomrule", rf"\end{{tabular}} % {title}"])


def _number(score: Mapping[str, Any] | None) -> str:
    """Give a value and, smaller, its interval."""
    if score is None or score["value"] is None:
        return "--"
    ends = "" if score["low"] is None else rf" {{\scriptsize [{score['low']:.3g}, {score['high']:.3g}]}}"
    return f"{score['value']:.4g}{ends}"


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)
