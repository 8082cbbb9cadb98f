"""Per-dataset statistics: one row for each collection x modality x region x sequence x split, from the tables alone."""

import pandas as pd
import pyarrow as pa

from medvar_data.shardset.schema import STATS_SCHEMA

BY = ["collection", "modality", "region", "sequence", "split"]


def statistics(slices: pa.Table, cases: pa.Table, side: int) -> pa.Table:
    """Summarise a shard set.

    Args:
        slices: rows of slices.parquet.
        cases: rows of cases.parquet.
        side: pixels of a slice's side; turns pixel counts into fractions.
    """
    case_columns = [
        *BY,
        "patient",
        "has_label",
        "spacing_row_mm",
        "through_plane_mm",
        "low",
        "high",
        "removed_body_mm3",
        "license",
        "license_confirmed",
    ]
    by_case = cases.select(case_columns).to_pandas()
    by_case["removed_label_mm3"] = [sum(mm3 for _, mm3 in row or ()) for row in cases["removed_label_mm3"].to_pylist()]
    by_case["vanished"] = [len(row) for row in cases["vanished_labels"].to_pylist()]
    by_slice = slices.select([*BY, "has_label", "foreground_pixels", "body_pixels"]).to_pandas()
    slices_of = dict(iter(by_slice.groupby(BY)))
    rows = []
    for values, part in by_case.groupby(BY, sort=True):
        mine = slices_of[values]
        rows.append(
            {
                **dict(zip(BY, values, strict=True)),
                "patients": part["patient"].nunique(),
                "cases": len(part),
                "labelled_cases": int(part["has_label"].sum()),
                "slices": len(mine),
                "labelled_slices": int(mine["has_label"].sum()),
                "in_plane_mm_median": part["spacing_row_mm"].median(),
                "through_plane_mm_median": part["through_plane_mm"].median(),
                "foreground_fraction_mean": mine["foreground_pixels"].mean() / side**2,
                "body_fraction_mean": mine["body_pixels"].mean() / side**2,
                "low_median": part["low"].median(),
                "high_median": part["high"].median(),
                "removed_label_mm3_sum": part["removed_label_mm3"].sum(),
                "removed_body_mm3_median": part["removed_body_mm3"].median(),
                "vanished_structures": int(part["vanished"].sum()),
                "license": part["license"].iloc[0],
                "license_confirmed": bool(part["license_confirmed"].iloc[0]),
            }
        )
    frame = pd.DataFrame(rows, columns=STATS_SCHEMA.names)
    return pa.Table.from_pandas(frame, schema=STATS_SCHEMA, preserve_index=False).replace_schema_metadata()
