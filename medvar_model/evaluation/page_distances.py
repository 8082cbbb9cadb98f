"""Show on a page how far sets of images are from held-out slices.

In: the distribution part of a report. Out: HTML.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from medvar_data.storage.html import folded, number, picture, table
from medvar_model.evaluation.comparison import ALL

TITLES = {
    "samples": "samples",
    "images": "images",
    "fresh": "fresh real slices",
    "fresh_through_tokenizer": "those through the tokenizer",
}
HAND = "64 hand-computed numbers of layout, brightness, edges and texture (no network)"
RADIOMICS = "76 radiomic numbers of our own (frd_style; no network)"


def distances_html(part: Mapping[str, Any], pictures: str) -> str:
    """Write the section: what the numbers stand on, the table of all cells together, and that of each cell."""
    sizes = part["n"]
    sets = [name for name in sizes if name != "held_out"]
    exception = " (but for fid, on as many images of the same slices)" if "fid" in part["metrics"] else ""
    said = (
        f"Against {sizes['held_out']} held-out slices of other patients than in training, all sets cut to the same mix of "
        "conditions. Fresh real slices (training, in the same numbers) show what a perfect sampler would get: the floor. In "
        f"brackets the 95 % interval over patients. Comparable between runs on this set only, never with published FID{exception}."
    )
    rows = [
        (name, *(_scored(score, candidate, sizes) for candidate in sets), score["better"], score["says"])
        for name, score in part["metrics"].items()
    ]
    columns = ("metric", *(TITLES.get(name, name) for name in sets), "better", "tells")
    html = f"<p>{escape(said)}</p><p>Features: {escape('; '.join(_features(f) for f in part['features']))}.</p>"
    html += table(columns, rows)
    cells = [score for score in part["scores"] if score["cell"] != ALL]
    drawn = [s["metric"] for s in cells if s["value"] is not None and s["metric"].startswith(("kid_", "cmmd"))]
    if drawn:
        shown = picture(pictures, f"cells-{drawn[0]}", f"{drawn[0]} by anatomy and modality")
        html += (
            f"<figure>{shown}<figcaption>{drawn[0]} by anatomy and modality, with 95 % intervals</figcaption></figure>"
        )
    return html + (folded("Each anatomy and modality", _cells(cells, sets)) if cells else "")


def reconstructions_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the table of distances between held-out slices and their own reconstructions; nothing where there are none."""
    if not rows:
        return ""
    said = (
        "Distance between the set of held-out slices and the set of their own reconstructions: what coding alone costs. The name "
        "is that of the distance with an r before it."
    )
    shown = [(row["metric"], _cell_value(row), row["better"], row["n"], row["patients"]) for row in rows]
    return f"<p>{escape(said)}</p>" + table(("metric", "value", "better", "slices", "patients"), shown)


def _features(features: Mapping[str, Any]) -> str:
    """Say what stands behind a name of features."""
    if not features["learned"]:
        return RADIOMICS if features["name"] == "radiomics" else HAND
    return (
        f"{features['width']} numbers of {features['name']}, weights {features['weights']} ({features['licence']}, sha256 "
        f"{features['sha256'][:12]})"
    )


def _scored(score: Mapping[str, Any], candidate: str, sizes: Mapping[str, int]) -> str:
    """Give a metric's value with its interval, or why it has none."""
    value, ends = score.get(candidate), score["intervals"].get(candidate)
    if value is None:
        return f"needs {score['minimum']} images, has {min(sizes['held_out'], sizes[candidate])}"
    return number(value) + (f" [{number(ends[0])}, {number(ends[1])}]" if ends else "")


def _cells(scores: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> str:
    rows = []
    for cell, metric in dict.fromkeys((score["cell"], score["metric"]) for score in scores):
        mine = {s["candidate"]: s for s in scores if (s["cell"], s["metric"]) == (cell, metric)}
        some = next(iter(mine.values()))
        values = [_cell_value(mine[name]) for name in sets]
        rows.append((cell, metric, *values, some["better"], some["n_reference"], some["patients"]))
    return table(("cell", "metric", *(TITLES.get(n, n) for n in sets), "better", "real images", "patients"), rows)


def _cell_value(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return score["warning"]
    return number(score["value"]) + (
        f" [{number(score['low'])}, {number(score['high'])}]" if score["low"] is not None else ""
    )
