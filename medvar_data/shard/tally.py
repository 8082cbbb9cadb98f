"""Gather what statistics are made of, group by group, so that parts of a set may be gathered apart and put together.

A group is a collection x modality x region x sequence x split. In: rows of slices.parquet and cases.parquet. Out: a `Tally`: whole
numbers summed over slices and histograms, and the values of each case, since a median cannot be made of medians.

The law: tallies of cases that are apart, merged in any order, equal the tally of all of them, to the last digit.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from medvar_data.errors import ShardSetError
from medvar_data.shardset.schema import CASE_KEY

BY = ("collection", "modality", "region", "sequence", "split")
CASE_VALUES = (
    "patient", "volume", "has_label", "n_bytes", "n_without_foreground", "n_emptied_by_cleanup", "n_not_selected",
    "source_rows", "source_columns", "n_slices", "spacing_row_mm", "spacing_col_mm", "through_plane_mm", "low", "high",
    "removed_body_mm3", "removed_label_mm3", "label_mm3", "vanished_labels", "body_mm2_median", "foreground_mm2_median",
    "clipped_low", "clipped_high", "source_sha256", "label_sha256", "license", "license_confirmed",
)  # fmt: skip
"""What is kept of each case."""
HISTOGRAMS = ("histogram_source", "histogram_source_foreground", "histogram_slices", "histogram_slices_foreground")
SLICE_VALUES = (*BY, "has_label", "foreground_pixels", "body_pixels", "label_pixels", "image_size", "mask_size")
"""What is read of each slice."""
Group = tuple[str, ...]
CaseName = tuple[str, str]  # collection and case


@dataclass(frozen=True)
class SliceSums:
    """Sums over the slices of one group; `label_slices` and `label_pixels` by label id."""

    slices: int = 0
    labelled: int = 0
    foreground_pixels: int = 0
    body_pixels: int = 0
    n_bytes: int = 0
    label_slices: Counter[int] = field(default_factory=Counter)
    label_pixels: Counter[int] = field(default_factory=Counter)

    def plus(self, other: "SliceSums") -> "SliceSums":
        """The sums over both."""
        mine, theirs = vars(self), vars(other)
        return SliceSums(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class GroupTally:
    """What is known of one group.

    Attributes:
        cases: `CASE_VALUES` of each case, by collection and case.
        histograms: summed over cases, by the names in `HISTOGRAMS`.
        slices: summed over slices.
    """

    cases: Mapping[CaseName, Mapping[str, Any]]
    histograms: Mapping[str, tuple[int, ...]]
    slices: SliceSums

    def plus(self, other: "GroupTally") -> "GroupTally":
        """What is known of both.

        Raises:
            ShardSetError: they share a case.
        """
        if shared := sorted(self.cases.keys() & other.cases.keys()):
            raise ShardSetError(
                f"{'/'.join(shared[0])} is in two of the parts whose statistics are to be merged; wanted parts without a common case."
            )
        summed = {
            name: tuple(a + b for a, b in zip(numbers, other.histograms[name], strict=True))
            for name, numbers in self.histograms.items()
        }
        return GroupTally({**self.cases, **other.cases}, summed, self.slices.plus(other.slices))


Tally = Mapping[Group, GroupTally]


class SliceCounts:
    """Sums over slices by collection, modality, region, sequence and split, taken shard by shard."""

    def __init__(self) -> None:
        self.sums: dict[Group, SliceSums] = {}

    def add(self, slices: pa.Table) -> None:
        """Take in further rows: of slices.parquet, or others with the columns `SLICE_VALUES`."""
        found = slices.group_by(list(BY), use_threads=False).aggregate([
            ([], "count_all"), ("has_label", "sum"), ("foreground_pixels", "sum"), ("body_pixels", "sum"), ("image_size", "sum"),
            ("mask_size", "sum"),
        ])  # fmt: skip
        for row in found.to_pylist():
            n_bytes = row["image_size_sum"] + row["mask_size_sum"]
            counted = (row["count_all"], row["has_label_sum"], row["foreground_pixels_sum"], row["body_pixels_sum"])
            self._put(row, SliceSums(*counted, n_bytes))
        labels = _labels_of(slices).group_by([*BY, "label"], use_threads=False)
        for row in labels.aggregate([([], "count_all"), ("pixels", "sum")]).to_pylist():
            label = row["label"]
            held = Counter({label: row["count_all"]}), Counter({label: row["pixels_sum"]})
            self._put(row, SliceSums(label_slices=held[0], label_pixels=held[1]))

    def _put(self, row: Mapping[str, Any], more: SliceSums) -> None:
        group = tuple(row[name] for name in BY)
        self.sums[group] = self.sums.get(group, SliceSums()).plus(more)


def _labels_of(slices: pa.Table) -> pa.Table:
    """One row a label that a slice holds: the slice's group, the label's id and its pixels."""
    pairs = slices["label_pixels"].combine_chunks()
    offsets = np.asarray(pairs.offsets)
    owners = pa.array(np.repeat(np.arange(len(pairs)), np.diff(offsets)))
    held = slice(int(offsets[0]), int(offsets[-1])) if len(offsets) else slice(0, 0)
    labels = slices.select(list(BY)).take(owners).append_column("label", pairs.keys[held])
    return labels.append_column("pixels", pairs.items[held])


def tally(sums: Mapping[Group, SliceSums], cases: pa.Table) -> Tally:
    """Gather the cases of each group beside its slices.

    Args:
        sums: of `SliceCounts`, over the slices of these cases.
        cases: rows of cases.parquet.
    """
    members: dict[Group, list[int]] = {}
    for number, row in enumerate(cases.select(BY).to_pylist()):
        members.setdefault(tuple(row[name] for name in BY), []).append(number)
    rows = cases.select([*CASE_KEY, *CASE_VALUES]).to_pylist()
    columns = {name: _matrix(cases[name]) for name in HISTOGRAMS}
    return {
        group: GroupTally(
            {(rows[n]["collection"], rows[n]["case"]): {name: rows[n][name] for name in CASE_VALUES} for n in numbers},
            {name: tuple(column[numbers].sum(axis=0).tolist()) for name, column in columns.items()},
            sums.get(group, SliceSums()),
        )
        for group, numbers in members.items()
    }


def _matrix(column: pa.ChunkedArray) -> Int64[np.ndarray, "cases bins"]:
    """A column of lists of one length, as rows of an array."""
    lists = column.combine_chunks()
    return np.asarray(lists.flatten()).reshape(len(lists), column.type.list_size)


def merged(parts: Iterable[Tally]) -> Tally:
    """Put tallies of cases that are apart together; the order of the parts is nothing.

    Raises:
        ShardSetError: two parts share a case.
    """
    whole: dict[Group, GroupTally] = {}
    for part in parts:
        for group, found in part.items():
            whole[group] = whole[group].plus(found) if group in whole else found
    return whole
