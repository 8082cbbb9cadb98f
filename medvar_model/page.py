"""Show a trained run to people: an HTML section of curves, pictures and tables.

In: the folders that training and evaluation left. Out: HTML as text; the pictures it points to exist already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from medvar_model.runlog import read_log

WIDTH, HEIGHT = 540, 190  # of a curve, in pixels
LEFT, BOTTOM, TOP, RIGHT = 52, 26, 12, 12  # room for its labels
COLOURS = {"training": "#9db4d6", "validation": "#c2410c"}
MOST_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its name and its points."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def model_section(
    evaluation: Mapping[str, Any], pictures: str, tokenizer: Path | None = None, transformer: Path | None = None
) -> str:
    """Write the section.

    Args:
        evaluation: the content of report.json.
        pictures: where the page finds the evaluation's pictures, relative to itself.
        tokenizer, transformer: the runs' folders, for their curves; None leaves the curves out.
    """
    parts = ["<h2>Model</h2>", _summary(evaluation), "<h3>Samples</h3>", _samples(evaluation, pictures)]
    runs = [(name, run) for name, run in (("Tokenizer", tokenizer), ("Transformer", transformer)) if run]
    if runs:
        parts += ["<h3>Training</h3>", "".join(_run_curves(name, read_log(run / "log.jsonl")) for name, run in runs)]
    parts += ["<h3>Reconstructions of held-out slices</h3>", _reconstructions(evaluation, pictures)]
    parts += ["<h3>Tokens, scale by scale</h3>", _scales(evaluation)]
    parts += ["<h3>Do samples show what was asked for?</h3>", _conditions(evaluation)]
    parts += ["<h3>How far are samples from real slices?</h3>", _distribution(evaluation)]
    parts += ["<h3>Are samples copies?</h3>", _copies(evaluation, pictures)]
    return "\n".join(parts)


def chart(title: str, curves: Sequence[Curve], x_name: str) -> str:
    """Draw lines as an inline SVG."""
    drawn = [curve for curve in (_thinned(curve) for curve in curves) if curve.x]
    if not drawn:
        return ""
    x_low, x_high = _range([x for curve in drawn for x in curve.x])
    y_low, y_high = _range([y for curve in drawn for y in curve.y])

    def at(x: float, y: float) -> str:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP):.1f}"

    lines = []
    for step in range(4):
        y = y_low + (y_high - y_low) * step / 3
        height = float(at(x_low, y).split(",")[1])
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}" stroke="#e8ebf0"/>')
        lines.append(_text(LEFT - 6, height + 4, f"{y:.3g}", "end"))
    for place, curve in enumerate(drawn):
        colour = COLOURS.get(curve.name, "#3f5f8f")
        points = " ".join(at(x, y) for x, y in zip(curve.x, curve.y, strict=True))
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{points}"/>')
        lines.append(_text(WIDTH - RIGHT, TOP + 12 + 15 * place, curve.name, "end", colour))
    lines.append(_text(WIDTH - RIGHT, HEIGHT - 6, f"{x_high:,.0f} {x_name}", "end"))
    lines.append(_text(LEFT, HEIGHT - 6, f"{x_low:,.0f}", "start"))
    body = "".join(lines)
    return (
        f'<figure style="display:inline-block;width:{WIDTH}px;margin-right:12px"><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )
