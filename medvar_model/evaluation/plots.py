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


def plot_shares(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    levels: Mapping[str, Mapping[str, Any]],
    y: str,
) -> Path:
    """Plot a score over the share of real patients, with intervals, beside scores that do not depend on it.

    Args:
        path: the PNG to write.
        curves: name → share, and score with `value`, `low` and `high` (None where there is no interval).
        levels: name → such a score, drawn as a line across; the first with its interval as a band.
        y: name of the score.
    """
    figure, axes = _axes(7.6, 4.2)
    shares = sorted({share for points in curves.values() for share, _ in points})
    for place, (name, points) in enumerate(curves.items()):
        at = [shares.index(share) + 0.08 * (place - (len(curves) - 1) / 2) for share, _ in points]
        scores = [score for _, score in points]
        spread = [
            [0.0 if s["low"] is None else max(0.0, s["value"] - s["low"]) for s in scores],
            [0.0 if s["low"] is None else max(0.0, s["high"] - s["value"]) for s in scores],
        ]
        values = [s["value"] for s in scores]
        axes.errorbar(at, values, yerr=spread, fmt="o-", capsize=3, markersize=5, color=COLOURS[place], label=name)
    for place, (name, score) in enumerate(levels.items()):
        colour, style = (COLOURS[3], COLOURS[2], "#8a93a3")[place], ("-", "--", ":")[place]
        axes.axhline(score["value"], color=colour, linestyle=style, linewidth=1.2, label=name)
        if place == 0 and score["low"] is not None:
            axes.axhspan(score["low"], score["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_xlabel("real training patients")
    axes.set_ylabel(y)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: labels[place] not in curves)  # curves first, then lines
    axes.legend(
        [handles[n] for n in order],
        [labels[n] for n in order],
        frameon=False,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )
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
