"""Figures of what a set holds. The paper's figure of data sets, volumes by region and modality, with its numbers beside ours.

In: rows of cases.parquet. Out: counts, and a picture of them; the same counts give the same bytes under one version of matplotlib.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from medvar_data.catalog.paper_figure import PAPER_CELLS, Cell
from medvar_data.errors import SpecError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("svg", "png", "pdf")
NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
STABLE: Any = {"svg.hashsalt": "medvar", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
INK, FAINT, OURS, THEIRS = "#1f2933", "#c3cad2", "#0b6fb8", "#8a5a00"
ROW_INCHES, WIDTH_INCHES, EDGE_INCHES = 0.34, 9.2, 1.9
COLUMNS = ((1.11, "paper", THEIRS), (1.28, "published", INK), (1.39, "here", OURS))
"""Columns of numbers right of the plot: where, of the plot's width; heading; colour."""


@dataclass(frozen=True)
class CellCount:
    """Volumes of one region and modality.

    Attributes:
        region: part of the body.
        modality: CT or MR.
        names: collections as the paper's figure names them; "" where it has no such cell.
        paper: volumes that the figure prints; 0 where it has no such cell.
        published: volumes that the publishers of the collections count which we read the names as.
        read_as: of the cases at hand, volumes of these collections.
        other: of the cases at hand, volumes of other collections.
    """

    region: str
    modality: str
    names: str
    paper: int
    published: int
    read_as: int
    other: int

    @property
    def here(self) -> int:
        """Volumes at hand, of whatever collection."""
        return self.read_as + self.other


def figure2_counts(cases: pa.Table) -> list[CellCount]:
    """Count the volumes of each region and modality beside those of the paper's figure of data sets.

    Args:
        cases: rows of cases.parquet, of which `collection`, `region`, `modality` and `volume` are read.

    Returns:
        The figure's cells in its order, then further regions and modalities that the cases show.
    """
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for row in cases.select(["collection", "region", "modality", "volume"]).to_pylist():
        found.setdefault((row["region"], row["modality"]), set()).add((row["collection"], row["volume"]))
    cells = {(cell.region, cell.modality): cell for cell in PAPER_CELLS}
    order = [*cells, *sorted(found.keys() - cells.keys(), key=lambda key: (key[1], key[0]))]
    return [_count(key, cells.get(key), found.get(key, set())) for key in order]


def _count(key: tuple[str, str], cell: Cell | None, volumes: set[tuple[str, str]]) -> CellCount:
    named = {part.collection for part in cell.parts} if cell else set()
    read_as = sum(collection in named for collection, _ in volumes)
    published = sum(part.expected() for part in cell.parts) if cell else 0
    names, paper = (cell.names, cell.volumes) if cell else ("", 0)
    return CellCount(*key, names, paper, published, read_as, len(volumes) - read_as)


def figure2(counts: Sequence[CellCount], kind: str = "svg") -> bytes:
    """Draw the volumes of each region and modality: the paper's, the publishers' and those at hand, on one logarithmic scale.

    Args:
        counts: of `figure2_counts`.
        kind: svg, png or pdf.

    Raises:
        SpecError: there is no such kind of picture.
    """
    if kind not in FORMATS:
        raise SpecError(f"A figure cannot be written as {kind!r}; wanted one of {', '.join(FORMATS)}.")
    import matplotlib as mpl  # here, since loading it takes longer than most commands do
    from matplotlib.figure import Figure

    with mpl.rc_context(STABLE):
        height = ROW_INCHES * (len(counts) + 1) + EDGE_INCHES
        figure = Figure(figsize=(WIDTH_INCHES, height), facecolor="white")
        axes = figure.add_axes((0.13, 0.95 / height, 0.56, 1 - EDGE_INCHES / height))
        _draw(axes, counts)
        figure.text(
            0.02, 1 - 0.32 / height, "Volumes by region and modality", color=INK, fontsize=12, fontweight="bold"
        )
        under = "Sequences, channels and frames of one scan are one volume. paper: the MedVAR paper's figure of data sets; published: counted by the"
        more = "publishers of the collections that we read its names as (docs/parity.md); here: in these cases (of which of other collections)."
        figure.text(0.02, 0.16 / height, f"{under}\n{more}", color=INK, fontsize=7.5, linespacing=1.4)
        file = BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata=NO_DATE[kind])
    return file.getvalue()


def _draw(axes: "Axes", counts: Sequence[CellCount]) -> None:
    rows = range(len(counts))
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.set_xlim(-0.15, 10_000)
    axes.set_ylim(len(counts) - 0.5, -0.5)
    axes.set_yticks(list(rows), [f"{count.region} {count.modality}" for count in counts], color=INK)
    axes.set_xticks([0, 1, 10, 100, 1000, 10_000], ["0", "1", "10", "100", "1,000", "10,000"], color=INK)
    axes.minorticks_off()
    axes.set_xlabel("volumes", color=INK)
    axes.tick_params(length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    for row, count in zip(rows, counts, strict=True):
        axes.plot([count.here, count.paper], [row, row], color=FAINT, linewidth=2, zorder=1)
    marks: dict[str, Any] = {"linestyle": "none", "clip_on": False}
    axes.plot([c.paper for c in counts], rows, "o", mfc="white", mec=THEIRS, mew=1.6, ms=8, label="paper", **marks)
    axes.plot([c.published for c in counts], rows, "|", color=INK, mew=1.6, ms=11, label="published", **marks)
    axes.plot([c.here for c in counts], rows, "o", color=OURS, ms=6, label="here", **marks)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, labelcolor=INK, handletextpad=0.2)
    place = axes.get_yaxis_transform()
    for at, heading, colour in COLUMNS:
        axes.text(at, -0.8, heading, transform=place, color=colour, ha="right", fontweight="bold")
        for row, count in zip(rows, counts, strict=True):
            axes.text(at, row, f"{getattr(count, heading):,}", transform=place, color=colour, ha="right", va="center")
    for row, count in zip(rows, counts, strict=True):
        if count.other:
            axes.text(1.40, row, f" ({count.other:,})", transform=place, color=OURS, va="center", fontsize=8)
