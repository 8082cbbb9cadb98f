"""What the report says of one collection: its groups (modality and sequence), their histograms, grids, pictures and repairs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from medvar_data.audit.report.labels import Label, label_table, labels_of
from medvar_data.audit.report.plots import Curves, cut_shares, distribution, histogram
from medvar_data.audit.report.source import CaseName, Rows, Subject
from medvar_data.audit.report.table import Table, table
from medvar_data.audit.report.thumbnails import Chosen, Thumbnail, choose_cases, colour_of
from medvar_data.shardset.histograms import source_edges
from medvar_data.storage.html import number

CT_UNIT = "HU"
GREY_BINS = 64
MR_UNIT = "0 became black, 1 became white"


@dataclass(frozen=True)
class Plot:
    """A drawing and what stands below it.

    Attributes:
        title: what is drawn.
        svg: the drawing; empty where all scans have one value.
        note: a sentence, or that value.
    """

    title: str
    svg: str
    note: str


@dataclass(frozen=True)
class Group:
    """The cases of one modality and sequence of a collection."""

    anchor: str
    modality: str
    sequence: str
    n_cases: int
    facts: tuple[tuple[str, str], ...]
    annotated: bool
    histograms: tuple[Plot, ...]
    grids: tuple[Plot, ...]
    typical: tuple[Chosen, ...]
    outlying: tuple[Chosen, ...]


@dataclass(frozen=True)
class Section:
    """All of one collection."""

    anchor: str
    row: Mapping[str, Any]  # of collections.parquet
    groups: tuple[Group, ...]
    labels: tuple[Label, ...]
    n_labelled: int
    label_table: Table
    layouts: Table
    rejects: Table
    repairs: Table

    def legend(self, pictures: Mapping[CaseName, Thumbnail], group: Group) -> list[tuple[str, str]]:
        """Name and colour of each label that the pictures of a group show."""
        names = {label.id: label.name for label in self.labels}
        cases = [pictures.get((self.row["collection"], one.case)) for one in (*group.typical, *group.outlying)]
        held = sorted({label for picture in cases if picture for label in picture.labels})
        return [(names.get(label, str(label)), colour_of(label)) for label in held]


def sections_of(subject: Subject) -> list[Section]:
    """Make the section of every collection, in order."""
    return [_section(n, row, subject) for n, row in enumerate(subject.collections, start=1)]


def _section(place: int, row: Mapping[str, Any], subject: Subject) -> Section:
    name = row["collection"]
    cases = subject.cases.filter(pc.equal(subject.cases["collection"], name))
    statistics = tuple(part for part in subject.statistics if part["collection"] == name)
    labels = labels_of(row, statistics, cases)
    held = dict.fromkeys((part["modality"], part["sequence"]) for part in statistics)
    return Section(
        anchor=f"c{place}",
        row=row,
        groups=tuple(_group(f"c{place}g{n}", pair, statistics, cases) for n, pair in enumerate(held, start=1)),
        labels=tuple(labels),
        n_labelled=sum(part["labelled_cases"] for part in statistics),
        label_table=label_table(name, labels),
        layouts=_layouts(row),
        rejects=_rejects([reject for reject in subject.rejects if reject["collection"] == name], name),
        repairs=_repairs(cases, name),
    )


def _layouts(row: Mapping[str, Any]) -> Table:
    columns = (
        ("layout", "name"),
        ("found", "count"),
        ("counted by the publisher", "count"),
        ("found without their label", "count"),
    )
    rows = ((part["layout"], part["found"], part["expected"] or None, part["unlabelled"]) for part in row["layouts"])
    return table(f"Found in {row['collection']}, by published layout", columns, rows)


def _rejects(rejects: Sequence[Mapping[str, Any]], name: str) -> Table:
    columns = (("case", "name"), ("stage", "text"), ("reason", "text"), ("what was found", "text"))
    rows = ((row["case"], row["stage"], row["reason"].replace("_", " "), row["detail"]) for row in rejects)
    return table(f"Rejected cases of {name}", columns, rows)


def _repairs(cases: pa.Table, name: str) -> Table:
    counts = Counter(step for steps in cases["steps"].to_pylist() for step in dict.fromkeys(steps))
    every = max(1, cases.num_rows)
    rows = ((step, n, n / every) for step, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return table(f"Repairs and decisions in {name}", (("step", "name"), ("cases", "count"), ("share", "share")), rows)


def _group(anchor: str, pair: tuple[str, str], statistics: Rows, cases: pa.Table) -> Group:
    modality, sequence = pair
    rows = [row for row in statistics if (row["modality"], row["sequence"]) == pair]
    mine = cases.filter(pc.and_(pc.equal(cases["modality"], modality), pc.equal(cases["sequence"], sequence)))
    typical, outlying = choose_cases(mine)
    return Group(
        anchor=anchor,
        modality=modality,
        sequence=sequence,
        n_cases=mine.num_rows,
        facts=_facts(rows, mine),
        annotated=any(row["labelled_cases"] for row in rows),
        histograms=_histograms(anchor, modality, rows, mine),
        grids=_grids(anchor, mine),
        typical=tuple(typical),
        outlying=tuple(outlying),
    )


def _facts(rows: Sequence[Mapping[str, Any]], cases: pa.Table) -> tuple[tuple[str, str], ...]:
    patients = len(pc.unique(cases["patient"]))
    low, high = (np.asarray(cases[name]) for name in ("clipped_low", "clipped_high"))
    return (
        ("patients", f"{patients:,}"),
        ("volumes", f"{sum(row['volumes'] for row in rows):,}"),
        ("cases", f"{cases.num_rows:,}"),
        ("labelled", f"{sum(row['labelled_cases'] for row in rows):,}"),
        ("slices", f"{sum(row['slices'] for row in rows):,}"),
        ("clipped below", _clipped(low)),
        ("clipped above", _clipped(high)),
        ("region", ", ".join(dict.fromkeys(row["region"] for row in rows))),
    )


def _clipped(shares: Float64[np.ndarray, " n"]) -> str:
    mean, most = _percent(shares.mean()), _percent(shares.max())
    return f"{mean} of voxels" + (f", at most {most}" if len(shares) > 1 else "")


def _added(rows: Iterable[Mapping[str, Any]], name: str) -> Int64[np.ndarray, " bins"]:
    return np.asarray(np.sum([row[name] for row in rows], axis=0, dtype=np.int64))


def _histograms(anchor: str, modality: str, rows: Sequence[Mapping[str, Any]], cases: pa.Table) -> tuple[Plot, Plot]:
    source, inside = _added(rows, "histogram_source"), _added(rows, "histogram_source_foreground")
    low, high = (float(np.median(np.asarray(cases[name]))) for name in ("low", "high"))
    edges = source_edges(modality)
    ct = modality == "CT"
    band = (low, high) if ct else (0.0, 1.0)
    before = Curves(edges, source[1:-1], inside[1:-1], band, CT_UNIT if ct else MR_UNIT)
    after = Curves(
        np.linspace(0, 256, GREY_BINS + 1), _greys(rows, "histogram_slices"), _greys(rows, "histogram_slices_foreground"), None, "grey level"
    )  # fmt: skip
    every = max(1, int(source.sum()))
    shaded = (
        f"window {low:,.0f} to {high:,.0f} HU".replace("-", "−")
        if ct
        else "the values that became grey levels, by each scan's own bounds"
    )
    beyond = f"{_percent(source[0] / every)} of the voxels lie below the scale, {_percent(source[-1] / every)} above."
    return (
        Plot(
            "Before: voxels of the sources",
            histogram(f"{anchor}-before", f"Histogram of source voxels, {modality}", before),
            f"Shaded: {shaded}. {beyond if source[0] or source[-1] else ''}{_cut(before, 'HU' if ct else '')}",
        ),
        Plot(
            "After: pixels of the slices",
            histogram(f"{anchor}-after", "Histogram of grey levels of the finished slices", after),
            f"All kept slices, background included.{_cut(after, '')}",
        ),
    )


def _greys(rows: Iterable[Mapping[str, Any]], name: str) -> Int64[np.ndarray, " bins"]:
    """Pixels by grey level, neighbouring levels together: a window of more than 256 HU fills every other level twice."""
    return np.asarray(_added(rows, name).reshape(GREY_BINS, -1).sum(axis=1))


def _cut(curves: Curves, unit: str) -> str:
    """What is said of bars that are higher than the drawing."""
    cut = [f"{_percent(share)} at {number(middle)} {unit}".strip() for middle, share in cut_shares(curves)]
    return f" Cut off: {', '.join(cut)}.".replace("-", "−") if cut else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _grids(anchor: str, cases: pa.Table) -> tuple[Plot, ...]:
    rows, columns = (np.asarray(cases[name]) for name in ("source_rows", "source_columns"))
    fields = np.maximum(rows * np.asarray(cases["spacing_row_mm"]), columns * np.asarray(cases["spacing_col_mm"]))
    measures = (
        ("Pixel spacing", np.asarray(cases["spacing_row_mm"]), "mm", False),
        ("Distance of slices", np.asarray(cases["through_plane_mm"]), "mm", False),
        ("Slices a scan", np.asarray(cases["n_slices"]), "", True),
        ("Longer side of the matrix", np.maximum(rows, columns), "pixels", True),
        ("Field of view, longer side", fields, "mm", False),
    )
    plots = []
    for n, (title, values, unit, whole) in enumerate(measures):
        says = _range(values, unit)
        one = np.ptp(values) <= 1e-6 * abs(values[0])
        svg = "" if one else distribution(f"{anchor}-grid{n}", f"{title}: {says}", values, whole=whole)
        plots.append(Plot(title, svg, says))
    return tuple(plots)  # fmt: skip


def _range(values: np.ndarray, unit: str) -> str:
    low, middle, high = (number(float(value)) for value in (values.min(), np.median(values), values.max()))
    if low == high:
        return f"{low} {unit}".strip()
    return f"{low} to {high} {unit}".strip() + f", median {middle}"
