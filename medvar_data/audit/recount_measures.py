"""Check what cases.parquet says of a case's voxels and pixels: against its grid, its slices, and itself.

In: rows of slices and cases. Out: a sentence for each contradiction. What only the source can tell (which bin a voxel is in) is for
`audit.remake`; what the pictures tell is for `audit.members`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from medvar_data.geometry import SlicePlan, finished_pixel_mm2
from medvar_data.shardset.dataset import Dataset
from medvar_data.shardset.histograms import MR_FROM, MR_STEP
from medvar_data.shardset.schema import CASE_KEY

CASES_AT_ONCE = 4096
MEASURES = (
    "modality", "source_shape", "source_rows", "source_columns", "n_not_selected", "n_kept", "has_label", "body_fraction", "foreground_fraction",
    "body_mm2_median", "foreground_mm2_median", "clipped_low", "clipped_high", "label_mm3", "histogram_source",
    "histogram_source_foreground", "histogram_slices", "histogram_slices_foreground",
)  # fmt: skip
Row = Mapping[str, Any]


def check_measures(
    slices: pa.Table,
    cases: pa.Table,
    owners: Int64[np.ndarray, " slices"],
    plans: Sequence[SlicePlan | None],
    dataset: Dataset,
) -> Iterator[str]:
    """Check every case's measures.

    Args:
        slices: rows of slices.parquet.
        cases: rows of cases.parquet.
        owners: row number of each slice's case; -1 where there is none.
        plans: how each case's slices were cut; None where its row names no grid.
        dataset: as read.
    """
    pixels = {name: _by_case(slices[f"{name}_pixels"], owners, cases.num_rows) for name in ("body", "foreground")}
    number = 0
    for batch in cases.select([*CASE_KEY, *MEASURES]).to_batches(CASES_AT_ONCE):
        for row in batch.to_pylist():
            name = f"{row['collection']}/{row['case']}"
            mine = {layer: found[number] for layer, found in pixels.items()}
            if plan := plans[number]:
                yield from (f"{name}: {finding}" for finding in _check_source(row, plan))
                yield from (f"{name}: {finding}" for finding in _check_slices(row, mine, plan, dataset))
            number += 1


def _by_case(
    column: pa.ChunkedArray, owners: Int64[np.ndarray, " slices"], n_cases: int
) -> list[Int64[np.ndarray, " _"]]:
    """The values of each case's slices."""
    order = np.argsort(owners, kind="stable")
    values, starts = np.asarray(column).astype(np.int64)[order], np.searchsorted(owners[order], np.arange(n_cases + 1))
    return [values[start:end] for start, end in pairwise(starts.tolist())]


def _check_source(row: Row, plan: SlicePlan) -> Iterator[str]:
    """The source's histograms count its voxels, the foreground no more than all, and agree with what was clipped."""
    across, down = (plan.stored_axes[axis] for axis in range(3) if axis != plan.axis)
    if (row["source_rows"], row["source_columns"]) != (row["source_shape"][down], row["source_shape"][across]):
        yield "its source_rows and source_columns are not those of its source_shape"
    every, inside = (np.array(row[name]) for name in ("histogram_source", "histogram_source_foreground"))
    n_voxels = math.prod(row["source_shape"])
    if every.sum() != n_voxels:
        yield f"its histogram_source counts {every.sum():,} voxels, its source_shape {n_voxels:,}"
    if np.any(inside < 0) or np.any(inside > every):
        yield "its histogram_source_foreground counts more voxels than there are"
    annotated = math.fsum(mm3 for _, mm3 in row["label_mm3"]) / float(np.prod(plan.spacing_mm))
    if not math.isclose(inside.sum(), annotated, rel_tol=1e-6, abs_tol=0.5):
        yield f"its histogram_source_foreground counts {inside.sum():,} voxels, its label_mm3 {annotated:,.0f}"
    if (
        row["modality"] == "MR"
    ):  # `low` is an edge of these bins, and so is `high`, up to the voxels that have its value
        low, high = (1 + round((share - MR_FROM) / MR_STEP) for share in (0.0, 1.0))
        below, above = every[:low].sum() / n_voxels, every[high:].sum() / n_voxels
        if (
            not math.isclose(row["clipped_low"], below, rel_tol=1e-9, abs_tol=1e-12)
            or row["clipped_high"] > above + 1e-9
        ):
            yield "its clipped_low or clipped_high is not what histogram_source gives"
    if not (
        row["clipped_low"] >= 0 and row["clipped_high"] >= 0 and row["clipped_low"] + row["clipped_high"] <= 1 + 1e-9
    ):
        yield "its clipped_low and clipped_high are no shares of one whole"


def _check_slices(
    row: Row, pixels: Mapping[str, Int64[np.ndarray, " _"]], plan: SlicePlan, dataset: Dataset
) -> Iterator[str]:
    """Shares and areas are those of the slices, where the set holds all of them; and so are the sums of the histograms."""
    every, inside = (np.array(row[name]) for name in ("histogram_slices", "histogram_slices_foreground"))
    n_finished = row["n_kept"] + row["n_not_selected"]
    if every.sum() != n_finished * dataset.image_side**2:
        yield f"its histogram_slices counts {every.sum():,} pixels, {n_finished} slices have {n_finished * dataset.image_side**2:,}"
    if np.any(inside < 0) or np.any(inside > every):
        yield "its histogram_slices_foreground counts more pixels than there are"
    if row["n_not_selected"] or not len(pixels["body"]):
        return
    steps_mm, padded = plan.spacing_mm[:2], dataset.recipe.get("aspect") == "pad"
    shape = row["source_rows"], row["source_columns"]
    pixel_mm2 = finished_pixel_mm2(shape, steps_mm, dataset.image_side, padded=padded)
    for layer, found in pixels.items():
        wanted = {
            f"{layer}_fraction": found.sum() / every.sum() if every.sum() else 0.0,
            f"{layer}_mm2_median": float(np.median(found)) * pixel_mm2,
        }
        for name, value in wanted.items():
            if not math.isclose(row[name], value, rel_tol=1e-9, abs_tol=1e-12):
                yield f"its {name} is {row[name]}, its slices give {value}"
