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
from medvar_data.audit.report.plots import Curves, distribution, histogram
from medvar_data.audit.report.source import CaseName, Rows, Subject
from medvar_data.audit.report.table import Table, table
from medvar_data.audit.report.thumbnails import Chosen, Thumbnail, choose_cases, colour_of
from medvar_data.shardset.histograms import source_edges
from medvar_data.storage.html import number

CT_UNIT = "HU"
MR_UNIT = "share of the way from `low` to `high`"


@dataclass(frozen=True)
class Plot:
    """A drawing and what stands below it."""

    title: str
    svg: str
    note: str


@dataclass(frozen=True)
class Group:
    """The cases of one modality and sequence of a collection."""

    anchor: str
    modality: str
    sequence: str
    facts: tuple[tuple[str, str], ...]
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
        facts=_facts(rows, mine),
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
    return f"{100 * shares.mean():.2g} % of voxels, at most {100 * shares.max():.2g} %" if len(shares) else "–"


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
        np.arange(257, dtype=np.float64) - 0.5, _added(rows, "histogram_slices"), _added(rows, "histogram_slices_foreground"), None,
        "grey level",
    )  # fmt: skip
    every = max(1, int(source.sum()))
    beyond = f"{100 * source[0] / every:.2g} % of voxels lie below the scale, {100 * source[-1] / every:.2g} % above"
    shaded = (
        f"window {low:,.0f} to {high:,.0f} HU".replace("-", "−")
        if ct
        else "from `low` to `high`, which each scan has of its own"
    )
    return (
        Plot(
            "Before: voxels of the sources",
            histogram(f"{anchor}-before", f"Histogram of source voxels, {modality}", before),
            f"Shaded: {shaded}. {beyond}.",
        ),
        Plot(
            "After: pixels of the slices",
            histogram(f"{anchor}-after", "Histogram of grey levels of the finished slices", after),
            "All kept slices, background included.",
        ),
    )


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
    return tuple(
        Plot(title, distribution(f"{anchor}-grid{n}", f"{title}: {_range(values, unit)}", values, whole=whole), _range(values, unit))
        for n, (title, values, unit, whole) in enumerate(measures)
    )  # fmt: skip


def _range(values: np.ndarray, unit: str) -> str:
    low, middle, high = (number(float(value)) for value in (values.min(), np.median(values), values.max()))
    return (
        f"{low} {unit} in all".replace("  ", " ")
        if low == high
        else f"{low} to {high} {unit}, median {middle}".replace(" ,", ",")
    )
