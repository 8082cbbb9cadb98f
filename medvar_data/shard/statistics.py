"""Per-dataset statistics: one row for each collection x modality x region x sequence x split, from the tables alone."""

import pandas as pd
import pyarrow as pa

from medvar_data.shardset.schema import STATS_SCHEMA

CASE_INPUTS = [
    "collection", "modality", "region", "sequence", "split", "patient", "has_label", "spacing_row_mm", "through_plane_mm", "low",
    "high", "removed_body_mm3", "license", "license_confirmed",
]  # fmt: skip
BY = ["collection", "modality", "region", "sequence", "split"]


def statistics(slices: pa.Table, cases: pa.Table, side: int) -> pa.Table:
    """Summarise a shard set.

    Args:
        slices: rows of slices.parquet.
        cases: rows of cases.parquet.
        side: pixels of a slice's side; turns pixel counts into fractions.
    """
    by_case = cases.select(CASE_INPUTS).to_pandas()
    by_case["removed_label_mm3"] = [sum(mm3 for _, mm3 in row or ()) for row in cases["removed_label_mm3"].to_pylist()]
    by_case["vanished"] = [len(row) for row in cases["vanished_labels"].to_pylist()]
    by_slice = slices.select([*BY, "has_label", "foreground_pixels", "body_pixels"]).to_pandas()
    slices_of = dict(iter(by_slice.groupby(BY)))
    rows = [
        {**dict(zip(BY, values, strict=True)), **_summary(part, slices_of[values], side)}
        for values, part in by_case.groupby(BY, sort=True)
    ]
    frame = pd.DataFrame(rows, columns=STATS_SCHEMA.names)
    return pa.Table.from_pandas(frame, schema=STATS_SCHEMA, preserve_index=False).replace_schema_metadata()


def _summary(cases: pd.DataFrame, slices: pd.DataFrame, side: int) -> dict[str, object]:
    """Summarise one group: its cases and their slices."""
    return {
        "patients": cases["patient"].nunique(),
        "cases": len(cases),
        "labelled_cases": int(cases["has_label"].sum()),
        "slices": len(slices),
        "labelled_slices": int(slices["has_label"].sum()),
        "in_plane_mm_median": cases["spacing_row_mm"].median(),
        "through_plane_mm_median": cases["through_plane_mm"].median(),
        "foreground_fraction_mean": slices["foreground_pixels"].mean() / side**2,
        "body_fraction_mean": slices["body_pixels"].mean() / side**2,
        "low_median": cases["low"].median(),
        "high_median": cases["high"].median(),
        "removed_label_mm3_sum": cases["removed_label_mm3"].sum(),
        "removed_body_mm3_median": cases["removed_body_mm3"].median(),
        "vanished_structures": int(cases["vanished"].sum()),
        "license": cases["license"].iloc[0],
        "license_confirmed": bool(cases["license_confirmed"].iloc[0]),
    }
