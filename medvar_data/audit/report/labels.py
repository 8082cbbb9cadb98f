"""Labels by name: how often each occurs, what the cleanup took of it, and which ones somebody should look at."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from medvar_data.audit.report.source import Rows
from medvar_data.audit.report.table import Bar, Table, table

TINY_SHARE = 0.01
"""A structure is tiny where a case holds less than this share of what half of its collection's cases hold."""
MUCH_LOST = 0.1


@dataclass
class Label:
    """One structure over the cases of a collection; volumes are in mm³."""

    id: int
    name: str
    cases: int = 0
    slices: int = 0
    mm3: float = 0.0
    lost_mm3: float = 0.0
    vanished: int = 0
    tiny: list[tuple[float, str]] = field(default_factory=list)  # volume and case

    @property
    def mean_mm3(self) -> float:
        """Mean volume over the cases that hold it."""
        return self.mm3 / self.cases if self.cases else 0.0

    @property
    def lost(self) -> float:
        """Share of its volume that the cleanup took off as dust."""
        return self.lost_mm3 / self.mm3 if self.mm3 else 0.0


def labels_of(collection: Mapping[str, Any], statistics: Rows, cases: pa.Table) -> list[Label]:
    """Sum up the structures of a collection, those that no case holds included.

    Args:
        collection: its row of collections.parquet.
        statistics: its rows of stats.parquet.
        cases: its rows of cases.parquet.
    """
    labels = {number: Label(number, name) for number, name in collection["labels"]}
    for row in statistics:
        for found in row["labels"]:
            label = labels.setdefault(found["id"], Label(found["id"], found["name"]))
            label.cases += found["cases"]
            label.slices += found["slices"]
            label.mm3 += found["mm3"]
            label.lost_mm3 += found["lost_mm3"]
            label.vanished += found["vanished_cases"]
    for number, (volumes, rows) in _volumes(cases["label_mm3"]).items():
        small = np.flatnonzero(volumes < TINY_SHARE * np.median(volumes))
        if number in labels:
            labels[number].tiny = sorted((float(volumes[n]), cases["case"][int(rows[n])].as_py()) for n in small)
    return [labels[number] for number in sorted(labels)]


def _volumes(column: pa.ChunkedArray) -> dict[int, tuple[Float64[np.ndarray, " n"], np.ndarray]]:
    """By label id, the volume in each case that holds it, and the number of that case."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    offsets = np.asarray(array.offsets)
    held = slice(int(offsets[0]), int(offsets[-1]))
    rows = np.repeat(np.arange(len(array)), np.diff(offsets))
    numbers, volumes = np.asarray(array.keys)[held], np.asarray(array.items)[held]
    there = volumes > 0
    return {int(n): (volumes[there & (numbers == n)], rows[there & (numbers == n)]) for n in np.unique(numbers[there])}


def label_table(name: str, labels: Iterable[Label]) -> Table:
    """A row a structure, with a bar for its volume."""
    labels = list(labels)
    longest = max((label.mean_mm3 for label in labels), default=0.0) or 1.0
    columns = (
        ("structure", "text"), ("id", "count"), ("cases", "count"), ("slices", "count"), ("mean volume", "millilitres"), ("", "bar"),
        ("taken off", "share"), ("vanished in", "count"),
    )  # fmt: skip
    rows = (
        (
            label.name, label.id, label.cases, label.slices, label.mean_mm3 / 1000 if label.cases else None,
            _bar(label, longest), label.lost if label.cases else None, label.vanished,
        )
        for label in labels
    )  # fmt: skip
    return table(f"Structures of {name}", columns, rows)


def _bar(label: Label, longest: float) -> Bar | None:
    share = label.mean_mm3 / longest
    return Bar(share * (1 - label.lost), share * label.lost) if label.cases else None


CONCERNS = (
    ("collection", "name"), ("structure", "text"), ("cases that hold it", "count"), ("labelled cases without it", "count"),
    ("cases where it is tiny", "count"), ("smallest", "text"), ("cases where it vanished", "count"), ("taken off", "share"),
)  # fmt: skip


def concerns(collection: str, n_labelled: int, labels: Iterable[Label]) -> list[tuple[Any, ...]]:
    """Rows, by `CONCERNS`, for the structures that some cases hold and that are absent, tiny, vanished or much reduced in others."""
    rows = []
    for label in labels:
        without = n_labelled - label.cases
        if label.cases and (without or label.tiny or label.vanished or label.lost > MUCH_LOST):
            smallest = f"{label.tiny[0][1]}: {label.tiny[0][0] / 1000:.3g} mL" if label.tiny else None
            rows.append((
                collection, label.name, label.cases, without, len(label.tiny), smallest, label.vanished, label.lost if label.cases else None,
            ))  # fmt: skip
    return rows


def never_held(collection: str, n_labelled: int, labels: Iterable[Label]) -> list[tuple[str, str]]:
    """The structures that a collection defines and no labelled case holds, as one row; none where there are none."""
    names = [label.name for label in labels if not label.cases]
    return [(collection, ", ".join(names))] if names and n_labelled else []
