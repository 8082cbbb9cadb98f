"""Draw plots as inline SVG that takes its colours from the page, so that it follows the page's light or dark scheme.

In: counts. Out: an `<svg>` element, the same bytes for the same counts. Texts stay texts. Each drawing's ids begin with the
drawing's own name, so that many may stand on one page.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64, Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {
    "ink": "#010203", "muted": "#010204", "line": "#010205", "all": "#010206", "annotated": "#010207", "band": "#010208",
}  # fmt: skip
"""Stand-ins, each of which becomes the page's custom property `--plot-NAME`."""
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "medvar", "figure.facecolor": "none", "axes.facecolor": "none", "text.parse_math": False, "font.size": 9.0,
    "axes.edgecolor": COLOURS["line"], "axes.labelcolor": COLOURS["muted"], "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "xtick.major.width": 0.8, "xtick.major.size": 3.0,
}  # fmt: skip
NO_NOTES = dict.fromkeys(
    ("Creator", "Date", "Format", "Type")
)  # matplotlib's version and the time would stand in the file
BARS = 24
TOWERS, CUT = 2.5, 1.5  # times the next bin: what towers above the others, and what is left of it
WIDE, SMALL = (4.6, 1.75), (2.3, 1.15)  # inches; the page scales them


@dataclass(frozen=True, eq=False)
class Curves:
    """Voxels or pixels by value: of everything, and inside the annotation.

    Attributes:
        edges: of the bins, one more than there are bins.
        whole: counts of all.
        annotated: counts inside the annotation; all zero where there is none.
        band: the values between which grey levels are spread, None where that is everything.
        unit: of the values.
    """

    edges: Float64[np.ndarray, " edges"]
    whole: Num[np.ndarray, " bins"]
    annotated: Num[np.ndarray, " bins"]
    band: tuple[float, float] | None
    unit: str


def histogram(name: str, says: str, curves: Curves) -> str:
    """Draw the share of voxels or pixels by value, all of them as an area and the annotated ones as a line.

    Heights grow as the square root of the share, so that what is rare can be seen beside air.

    Args:
        name: of the drawing, once on a page.
        says: what is seen, for those who do not see it.
        curves: what is drawn.
    """

    def draw(axes: Axes) -> None:
        low, high = _shown_range(curves)
        if curves.band:
            axes.axvspan(max(low, curves.band[0]), min(high, curves.band[1]), color=COLOURS["band"], lw=0)
        axes.stairs(_heights(curves.whole), curves.edges, fill=True, color=COLOURS["all"], lw=0)
        if curves.annotated.any():
            axes.stairs(_heights(curves.annotated), curves.edges, color=COLOURS["annotated"], lw=1.6)
        axes.set_xlim(low, high)
        axes.set_ylim(0, top_of(curves))
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.set_xlabel(curves.unit)

    return _svg(name, says, WIDE, draw)


def top_of(curves: Curves) -> float:
    """The height at which a histogram ends: that of its highest bin, or less where one bin alone, such as air, towers above all others."""
    heights = np.sort(np.stack([_heights(curves.whole), _heights(curves.annotated)]), axis=1)[:, ::-1]
    highest, others = float(heights[:, 0].max()), float(heights[:, 1:].max())
    return 1.05 * (highest if highest < TOWERS * others or not others else CUT * others)


def cut_shares(curves: Curves) -> list[tuple[float, float]]:
    """Middle of each bin of all voxels that is higher than the drawing, and its share."""
    heights, middles = _heights(curves.whole), (curves.edges[1:] + curves.edges[:-1]) / 2
    return [(float(middles[n]), float(heights[n] ** 2)) for n in np.flatnonzero(heights > top_of(curves))]


def distribution(name: str, says: str, values: Num[np.ndarray, " n"], *, whole: bool = False) -> str:
    """Draw how many scans have which value, as bars.

    Args:
        name: of the drawing, once on a page.
        says: what is seen.
        values: one a scan, at least two different ones.
        whole: whether values are whole numbers, which bars then do not cut.
    """
    low, high = float(values.min()), float(values.max())
    step = max(1, int(np.ceil((high - low + 1) / BARS)))
    edges = np.arange(low - 0.5, high + step + 0.5, step) if whole else np.linspace(low, high, BARS + 1)
    counts, _ = np.histogram(values, edges)

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=COLOURS["all"], lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
        axes.margins(x=0.02)

    return _svg(name, says, SMALL, draw)


def _shown_range(curves: Curves) -> tuple[float, float]:
    """The range of values that holds all but a two-thousandth of the voxels at either end, and the band."""
    low, high = float(curves.edges[0]), float(curves.edges[-1])
    if curves.band is None or not curves.whole.any():
        return low, high
    filled = np.flatnonzero(_heights(curves.whole) ** 2 > 5e-4)
    annotated = np.flatnonzero(_heights(curves.annotated) ** 2 > 5e-4)
    bins = np.concatenate([filled, annotated])
    width = curves.band[1] - curves.band[0]
    first, last = curves.edges[bins.min()], curves.edges[bins.max() + 1]
    return max(low, min(first, curves.band[0] - 0.1 * width)), min(high, max(last, curves.band[1] + 0.1 * width))


def _heights(counts: Num[np.ndarray, " bins"]) -> Float64[np.ndarray, " bins"]:
    return np.sqrt(counts / max(1, counts.sum()))


def _svg(name: str, says: str, inches: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    with _style():
        drawing = Figure(inches)
        below = (0.22 if inches is SMALL else 0.4) / inches[1]
        axes = drawing.add_axes((0.01, below, 0.98, 0.98 - below))
        axes.set_yticks([])
        draw(axes)
        file = io.BytesIO()
        FigureCanvasSVG(drawing).print_svg(file, metadata=NO_NOTES)
    return recoloured(file.getvalue().decode(), name, says, {c: f"--plot-{n}" for n, c in COLOURS.items()})


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's settings for a drawing; names in scripts that its fonts lack are no matter, since the page has its own."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def recoloured(svg: str, name: str, says: str, colours: Mapping[str, str]) -> str:
    """Turn a drawing of matplotlib's into an `<svg>` element that may stand in a page and takes its colours from there.

    Args:
        svg: the drawing.
        name: what its ids begin with, once on a page.
        says: what is seen, for those who do not see it.
        colours: colour in the drawing (`#rrggbb`) -> the page's custom property in its place.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, stand_in in colours.items():
        text = text.replace(colour, f"var({stand_in})")
    text = re.sub(r"font-family: [^;\"]*|font: (\d+px) [^;\"]*", _own_font, text)
    size = re.search(r'viewBox="[^"]*"', text)
    assert size, "matplotlib wrote no viewBox"
    head = f'<svg role="img" aria-label="{escape(says)}" {size[0]}>'
    return head + re.sub(r"\s+", " ", text[text.index(">") + 1 :]).strip()


def _own_font(found: re.Match[str]) -> str:
    return f"font-size: {found[1]}" if found[1] else "font-family: inherit"
