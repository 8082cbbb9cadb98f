"""Per-dataset statistics: one row for each collection x modality x region x sequence x split, from the tables alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from medvar_data.shardset.schema import STATS_SCHEMA

CASE_INPUTS = [
    "collection", "modality", "region", "sequence", "split", "patient", "has_label", "spacing_row_mm", "through_plane_mm", "low",
    "high", "removed_body_mm3", "license", "license_confirmed",
]  # fmt: skip
BY = ["collection", "modality", "region", "sequence", "split"]


@dataclass(frozen=True)
class SliceSums:
    """Sums over the slices of one group."""

    slices: int = 0
    labelled: int = 0
    foreground_pixels: int = 0
    body_pixels: int = 0


class SliceCounts:
    """Sums over slices by collection, modality, region, sequence and split, taken shard by shard."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], SliceSums] = {}

    def add(self, slices: pa.Table) -> None:
        """Take in further rows of slices.parquet."""
        found = slices.group_by(BY).aggregate([
            ([], "count_all"), ("has_label", "sum"), ("foreground_pixels", "sum"), ("body_pixels", "sum"),
        ])  # fmt: skip
        for row in found.to_pylist():
            group = tuple(row[name] for name in BY)
            before = self.sums.get(group, SliceSums())
            self.sums[group] = SliceSums(
                before.slices + row["count_all"],
                before.labelled + row["has_label_sum"],
                before.foreground_pixels + row["foreground_pixels_sum"],
                before.body_pixels + row["body_pixels_sum"],
            )


def statistics(slices: Mapping[tuple[str, ...], SliceSums], cases: pa.Table, side: int) -> pa.Table:
    """Summarise a shard set.

    Args:
        slices: sums of `SliceCounts`.
        cases: rows of cases.parquet.
        side: pixels of a slice's side; turns pixel counts into fractions.
    """
    by_case = cases.select(CASE_INPUTS).to_pandas()
    by_case["removed_label_mm3"] = [sum(mm3 for _, mm3 in row or ()) for row in cases["removed_label_mm3"].to_pylist()]
    by_case["vanished"] = [len(row) for row in cases["vanished_labels"].to_pylist()]
    rows = [
        {**dict(zip(BY, values, strict=True)), **_summary(part, slices[values], side)}
        for values, part in by_case.groupby(BY, sort=True)
    ]
    frame = pd.DataFrame(rows, columns=STATS_SCHEMA.names)
    return pa.Table.from_pandas(frame, schema=STATS_SCHEMA, preserve_index=False).replace_schema_metadata()


def _summary(cases: pd.DataFrame, slices: SliceSums, side: int) -> dict[str, object]:
    """Summarise one group: its cases and their slices."""
    return {
        "patients": cases["patient"].nunique(),
        "cases": len(cases),
        "labelled_cases": int(cases["has_label"].sum()),
        "slices": slices.slices,
        "labelled_slices": slices.labelled,
        "in_plane_mm_median": cases["spacing_row_mm"].median(),
        "through_plane_mm_median": cases["through_plane_mm"].median(),
        "foreground_fraction_mean": slices.foreground_pixels / slices.slices / side**2,
        "body_fraction_mean": slices.body_pixels / slices.slices / side**2,
        "low_median": cases["low"].median(),
        "high_median": cases["high"].median(),
        "removed_label_mm3_sum": cases["removed_label_mm3"].sum(),
        "removed_body_mm3_median": cases["removed_body_mm3"].median(),
        "vanished_structures": int(cases["vanished"].sum()),
        "license": cases["license"].iloc[0],
        "license_confirmed": bool(cases["license_confirmed"].iloc[0]),
    }
