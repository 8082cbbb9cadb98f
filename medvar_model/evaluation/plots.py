"""Plot an evaluation's numbers as PNG files, for papers and pages.

In: numbers. Out: files. matplotlib draws without a screen, and is imported only here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvar_model.evaluation.comparison import ALL, FLOOR

COLOURS = ("#3f5f8f", "#c2410c", "#5b8c5a", "#8b6fb0")
DPI = 150


def plot_times(path: Path, metric: str, points: Sequence[tuple[str, float, float]], floor: float | None) -> Path:
    """Plot a distance over the seconds an image takes (logarithmic), a point a model or setting.

    Args:
        path: the PNG to write.
        metric: name of the distance.
        points: name, seconds an image, distance.
        floor: what real slices get, a dashed line; None draws none.
    """
    figure, axes = _axes(6.0, 4.2)
    for name, seconds, value in points:
        axes.plot([seconds], [value], "o", color=COLOURS[0], markersize=7)
        axes.annotate(name, (seconds, value), textcoords="offset points", xytext=(6, 4), fontsize=7)
    if floor is not None:
        axes.axhline(floor, color=COLOURS[2], linestyle="--", linewidth=1, label="fresh real slices")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("seconds an image")
    axes.set_ylabel(metric)
    axes.margins(0.15)
    return _saved(figure, path)


def plot_cells(path: Path, scores: Sequence[Mapping[str, Any]], metric: str) -> Path | None:
    """Plot a metric of every cell with its interval, a bar a set of images; None where no cell has a number.

    Args:
        path: the PNG to write.
        scores: rows of `comparison.Score`.
        metric: which of them.
    """
    mine = [score for score in scores if score["metric"] == metric and score["value"] is not None]
    cells = sorted({score["cell"] for score in mine}, key=lambda cell: (cell != ALL, cell))
    names = list(dict.fromkeys(score["candidate"] for score in mine))
    if not mine:
        return None
    figure, axes = _axes(max(4.5, 1.3 * len(cells) + 1.5), 4.0)
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        found = {score["cell"]: score for score in mine if score["candidate"] == name}
        at = [i + (place - (len(names) - 1) / 2) * width for i, cell in enumerate(cells) if cell in found]
        drawn = [found[cell] for cell in cells if cell in found]
        spread = [
            [s["value"] - s["low"] if s["low"] is not None else 0.0 for s in drawn],
            [s["high"] - s["value"] if s["high"] is not None else 0.0 for s in drawn],
        ]
        label = "fresh real slices" if name == FLOOR else name.replace("_", " ")
        colour = COLOURS[2] if name == FLOOR else COLOURS[place % 2]
        axes.bar(at, [s["value"] for s in drawn], width, yerr=spread, capsize=2, color=colour, label=label)
    axes.set_xticks(range(len(cells)), cells, rotation=20, ha="right")
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize=8)
    return _saved(figure, path)


def plot_curves(path: Path, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> Path:
    """Plot lines over a common axis, with points where they were measured."""
    figure, axes = _axes(6.0, 4.0)
    styles = ("o-", "s--", "^-.", "d:")
    for place, (name, (xs, ys)) in enumerate(curves.items()):
        axes.plot(
            xs,
            ys,
            styles[place // len(COLOURS) % len(styles)],
            color=COLOURS[place % len(COLOURS)],
            label=name,
            markersize=4,
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=8)
    return _saved(figure, path)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # takes half a second to import; no pyplot, so no screen is looked for

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e8ebf0", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
