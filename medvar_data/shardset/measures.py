"""The columns of cases.parquet and stats.parquet that describe voxels, pixels, labels and bytes; `shard.statistics` makes the latter from the former."""

import pyarrow as pa

from medvar_data.shardset.columns import Column
from medvar_data.shardset.histograms import GREY_LEVELS, SOURCE_NUMBERS

_text, _i32, _i64, _f64 = pa.string(), pa.int32(), pa.int64(), pa.float64()
_per_source_bin, _per_grey_level = pa.list_(_i64, SOURCE_NUMBERS), pa.list_(_i64, GREY_LEVELS)
_SOURCE_BINS = "128 bins of 32 HU from -1024 HU (CT) or of 1/64 of high - low from low - (high - low) / 2 (MR), one for all below in front, one for all above behind"
CASE_MEASURES = (
    Column("volume", _text, "salted hash of the scan as its publisher counts it, the same in all sequences, channels and frames of one"),
    Column("n_bytes", _i64, "files of image and label as stored; a file that several cases share counts in each", "bytes"),
    Column("source_rows", _i32, "rows of the source's pictures", "pixels"),
    Column("source_columns", _i32, "columns of the source's pictures", "pixels"),
    Column("body_fraction", _f64, "share of the finished slices that is body, those left out by the set's condition included", "fraction"),
    Column("foreground_fraction", _f64, "share of the finished slices that is annotated, those left out by the set's condition included", "fraction"),
    Column("body_mm2_median", _f64, "median over the finished slices of the area of the body", "mm²"),
    Column("foreground_mm2_median", _f64, "median over the finished slices of the annotated area", "mm²"),
    Column("clipped_low", _f64, "share of the source's voxels below low", "fraction"),
    Column("clipped_high", _f64, "share of the source's voxels above high", "fraction"),
    Column("histogram_source", _per_source_bin, f"voxels of the source by intensity: {_SOURCE_BINS}", "voxels"),
    Column("histogram_source_foreground", _per_source_bin, "the same of the voxels inside the annotation as published", "voxels"),
    Column("histogram_slices", _per_grey_level, "pixels of the finished slices by grey level, those left out by the set's condition included", "pixels"),
    Column("histogram_slices_foreground", _per_grey_level, "the same of the pixels whose mask is above 0", "pixels"),
)  # fmt: skip
"""What harmonize measures for the statistics (`shard.statistics`)."""


def _spread(name: str, what: str, unit: str, parts: str = "min median max") -> tuple[Column, ...]:
    """Columns of the least, the middle and the greatest value over the row's scans."""
    word = {"min": "least", "median": "median", "max": "greatest"}
    return tuple(Column(f"{name}_{part}", _f64, f"{word[part]} over scans of {what}", unit) for part in parts.split())


_label = pa.struct([
    ("id", pa.int16()), ("name", _text), ("cases", _i32), ("slices", _i32), ("pixels", _i64), ("mm3", _f64), ("lost_mm3", _f64),
    ("vanished_cases", _i32),
])  # fmt: skip
STATS_MEASURES = (
    Column("volumes", _i32, "different scans as their publishers count them: sequences, channels and frames of one are one", "scans"),
    Column("slices_without_foreground", _i32, "slices of these cases left out without annotation, or with too little body where there is no label", "slices"),
    Column("slices_emptied_by_cleanup", _i32, "slices of these cases left out because cleanup or resizing left no annotation", "slices"),
    Column("slices_not_selected", _i32, "slices of these cases left out by the set's condition", "slices"),
    *_spread("in_plane_mm", "the row spacing", "mm", "min max"),
    *_spread("through_plane_mm", "the distance of slices", "mm", "min max"),
    *_spread("source_rows", "the rows of the source's pictures", "pixels"),
    *_spread("source_columns", "the columns of the source's pictures", "pixels"),
    *_spread("source_slices", "the number of source slices", "slices"),
    *_spread("fov_rows_mm", "the field of view from the first row to the last", "mm"),
    *_spread("fov_columns_mm", "the field of view from the first column to the last", "mm"),
    *_spread("fov_through_mm", "the field of view from the first slice to the last", "mm"),
    *_spread("body_mm2", "body_mm2_median", "mm²", "median"),
    *_spread("foreground_mm2", "foreground_mm2_median, annotated scans alone; 0 where there is none", "mm²", "median"),
    Column("clipped_low_mean", _f64, "mean over scans of the share of voxels below low", "fraction"),
    Column("clipped_high_mean", _f64, "mean over scans of the share of voxels above high", "fraction"),
    Column("histogram_source", _per_source_bin, "sum over scans of the column of cases.parquet", "voxels"),
    Column("histogram_source_foreground", _per_source_bin, "sum over scans of the column of cases.parquet", "voxels"),
    Column("histogram_slices", _per_grey_level, "sum over scans of the column of cases.parquet", "pixels"),
    Column("histogram_slices_foreground", _per_grey_level, "sum over scans of the column of cases.parquet", "pixels"),
    Column(
        "labels", pa.list_(_label),
        "each label: id, name, scans that hold it as published, slices and pixels of the set that hold it, its volume as published, what cleanup took of that, "
        "scans of which no finished slice holds it",
        "pixels; mm³",
    ),
    Column("source_bytes", _i64, "sum over scans of n_bytes", "bytes"),
    Column("slice_bytes", _i64, "encoded images and masks of the slices", "bytes"),
    Column("cases_sha256", _text, "sha256 over collection, case, source_sha256 and label_sha256 of these scans, in order"),
)  # fmt: skip
"""What stats.parquet says beyond counts; sums and extremes are exact, whatever the order of the cases."""
