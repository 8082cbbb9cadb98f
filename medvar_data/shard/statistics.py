"""Per-dataset statistics: one row for each collection x modality x region x sequence x split, from a tally alone.

Sums of fractions are rounded once (`math.fsum`) and medians taken of sorted values, so that neither the order of the cases nor the
parts that they came in change a digit.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from statistics import median
from typing import Any

import pyarrow as pa

from medvar_data.shard.tally import BY, CaseName, GroupTally, Tally
from medvar_data.shardset.schema import STATS_SCHEMA
from medvar_data.storage.parquet import table_from_rows

Row = Mapping[str, Any]
LabelNames = Mapping[str, Mapping[int, str]]  # by collection and label id
SPREADS: dict[str, Callable[[Row], float]] = {
    "in_plane_mm": lambda case: case["spacing_row_mm"],
    "through_plane_mm": lambda case: case["through_plane_mm"],
    "source_rows": lambda case: case["source_rows"],
    "source_columns": lambda case: case["source_columns"],
    "source_slices": lambda case: case["n_slices"],
    "fov_rows_mm": lambda case: case["source_rows"] * case["spacing_row_mm"],
    "fov_columns_mm": lambda case: case["source_columns"] * case["spacing_col_mm"],
    "fov_through_mm": lambda case: case["n_slices"] * case["through_plane_mm"],
}
"""Values of a case of which least, median and greatest are told."""


def names_of_labels(collections: pa.Table) -> LabelNames:
    """The names of label ids that collections.parquet gives, by collection."""
    rows = collections.select(["collection", "labels"]).to_pylist()
    return {row["collection"]: dict(row["labels"]) for row in rows}


def statistics(found: Tally, names: LabelNames, side: int) -> pa.Table:
    """Summarise a shard set, or a workspace whose splits are not known yet.

    Args:
        found: its cases and slices.
        names: of label ids; of `names_of_labels`.
        side: pixels of a slice's side; turns pixel counts into fractions.

    Returns:
        Rows of stats.parquet, sorted by their groups.
    """
    rows = [
        {**dict(zip(BY, group, strict=True)), **_summary(found[group], names.get(group[0], {}), side)}
        for group in sorted(found)
    ]
    return table_from_rows(rows, STATS_SCHEMA)


def _summary(group: GroupTally, names: Mapping[int, str], side: int) -> dict[str, object]:
    """Summarise one group: its cases and their slices."""
    named = sorted(group.cases.items())
    cases = [case for _, case in named]
    return {
        **_counts(cases, group),
        **_shares(cases, group, side),
        **_spreads(cases),
        **{name: list(numbers) for name, numbers in group.histograms.items()},
        "labels": _labels(cases, group, names),
        "cases_sha256": _digest(named),
        "license": cases[0]["license"],
        "license_confirmed": cases[0]["license_confirmed"],
    }


def _counts(cases: Sequence[Row], group: GroupTally) -> dict[str, int]:
    return {
        "patients": len({case["patient"] for case in cases}),
        "volumes": len({case["volume"] for case in cases}),
        "cases": len(cases),
        "labelled_cases": sum(case["has_label"] for case in cases),
        "slices": group.slices.slices,
        "labelled_slices": group.slices.labelled,
        "slices_without_foreground": sum(case["n_without_foreground"] for case in cases),
        "slices_emptied_by_cleanup": sum(case["n_emptied_by_cleanup"] for case in cases),
        "slices_not_selected": sum(case["n_not_selected"] for case in cases),
        "vanished_structures": sum(len(case["vanished_labels"]) for case in cases),
        "source_bytes": sum(case["n_bytes"] for case in cases),
        "slice_bytes": group.slices.n_bytes,
    }


def _shares(cases: Sequence[Row], group: GroupTally, side: int) -> dict[str, float]:
    pixels = group.slices.slices * side**2
    return {
        "foreground_fraction_mean": group.slices.foreground_pixels / pixels,
        "body_fraction_mean": group.slices.body_pixels / pixels,
        "clipped_low_mean": math.fsum(case["clipped_low"] for case in cases) / len(cases),
        "clipped_high_mean": math.fsum(case["clipped_high"] for case in cases) / len(cases),
        "removed_label_mm3_sum": math.fsum(mm3 for case in cases for _, mm3 in case["removed_label_mm3"]),
    }


def _spreads(cases: Sequence[Row]) -> dict[str, float]:
    annotated = [case["foreground_mm2_median"] for case in cases if case["has_label"]]
    found: dict[str, float] = {
        "low_median": median(case["low"] for case in cases),
        "high_median": median(case["high"] for case in cases),
        "removed_body_mm3_median": median(case["removed_body_mm3"] for case in cases),
        "body_mm2_median": median(case["body_mm2_median"] for case in cases),
        "foreground_mm2_median": median(annotated or [0.0]),
    }
    for name, value in SPREADS.items():
        values = [float(value(case)) for case in cases]
        found |= {f"{name}_min": min(values), f"{name}_median": median(values), f"{name}_max": max(values)}
    return found


def _labels(cases: Sequence[Row], group: GroupTally, names: Mapping[int, str]) -> list[dict[str, object]]:
    """What became of each label: its id, its name, and sums over cases and slices."""
    published, lost = (_by_label(case[name] for case in cases) for name in ("label_mm3", "removed_label_mm3"))
    ids = sorted({*published, *lost, *group.slices.label_slices})
    return [
        {
            "id": label,
            "name": names.get(label, ""),
            "cases": len(published.get(label, ())),
            "slices": group.slices.label_slices[label],
            "pixels": group.slices.label_pixels[label],
            "mm3": math.fsum(published.get(label, ())),
            "lost_mm3": math.fsum(lost.get(label, ())),
            "vanished_cases": sum(label in case["vanished_labels"] for case in cases),
        }
        for label in ids
    ]


def _by_label(rows: Iterable[Sequence[tuple[int, float]]]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for row in rows:
        for label, mm3 in row:
            found.setdefault(label, []).append(mm3)
    return found


def _digest(named: Iterable[tuple[CaseName, Row]]) -> str:
    digest = sha256()
    for (collection, case), row in named:
        digest.update(f"{collection}/{case} {row['source_sha256']} {row['label_sha256']}\n".encode())
    return digest.hexdigest()
