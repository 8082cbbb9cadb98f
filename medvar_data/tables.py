"""The Parquet tables: one explicit schema each, and the way between rows and frozen dataclasses.

Every file that holds a table is written the same way (zstd, 65,536-row groups, no time stamps), so equal rows give equal
bytes under one pyarrow version.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.errors import Reason, ShardSetError
from medvar_data.records import Case, Reject
from medvar_data.store import Store, atomic_path

SCHEMA_VERSION = 1
ROW_GROUP = 1 << 16

_s, _i32, _i64, _f64, _b = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
_millimetres = pa.map_(pa.int16(), pa.float64())

CASE_SCHEMA = pa.schema(
    [
        ("collection", _s), ("case", _s), ("group", _s), ("modality", _s), ("region", _s), ("sequence", _s),
        ("official_split", _s), ("condition", _s), ("layout", _s), ("reader", _s), ("root", _s),
        ("image", pa.list_(_s)), ("label", pa.list_(_s)), ("channel", _i32), ("n_bytes", _i64), ("modified_ns", _i64),
        ("n_voxels", _i64), ("inflated_bytes", _i64),
    ]
)  # fmt: skip

REJECTS_SCHEMA = pa.schema([("collection", _s), ("case", _s), ("stage", _s), ("reason", _s), ("detail", _s)])

SLICES_SCHEMA = pa.schema(
    [
        ("key", _s), ("split", _s), ("shard", _s),
        ("image_offset", _i64), ("image_size", _i64), ("mask_offset", _i64), ("mask_size", _i64),
        ("json_offset", _i64), ("json_size", _i64),
        ("collection", _s), ("condition", _s), ("condition_id", _i32), ("has_label", _b), ("region", _s),
        ("modality", _s), ("sequence", _s), ("case", _s), ("patient", _s), ("plane", _s),
        ("z", _i32), ("slice_index", _i32), ("n_slices", _i32),
        ("source_shape", pa.list_(_i32, 3)), ("source_affine", pa.list_(_f64, 16)), ("orientation", _s),
        ("spacing_row_mm", _f64), ("spacing_col_mm", _f64), ("through_plane_mm", _f64),
        ("normalizer", _s), ("low", _f64), ("high", _f64),
        ("body_pixels", _i32), ("foreground_pixels", _i32), ("label_pixels", pa.map_(pa.int16(), _i32)),
        ("image_sha256", _s), ("mask_sha256", _s), ("source_sha256", _s), ("label_sha256", _s),
        ("license", _s), ("license_confirmed", _b), ("recipe", _s), ("pipeline_version", _i32),
    ]
)  # fmt: skip

CASES_SCHEMA = pa.schema(
    [
        ("collection", _s), ("case", _s), ("patient", _s), ("split", _s), ("official_split", _s), ("condition", _s),
        ("condition_id", _i32), ("region", _s), ("modality", _s), ("sequence", _s), ("has_label", _b), ("plane", _s),
        ("source_shape", pa.list_(_i32, 3)), ("source_affine", pa.list_(_f64, 16)), ("orientation", _s),
        ("spacing_row_mm", _f64), ("spacing_col_mm", _f64), ("through_plane_mm", _f64),
        ("n_slices", _i32), ("n_kept", _i32), ("n_without_foreground", _i32), ("n_emptied_by_cleanup", _i32),
        ("normalizer", _s), ("low", _f64), ("high", _f64), ("body_threshold", _f64), ("body_fill", _f64),
        ("removed_body_mm3", _f64), ("removed_label_mm3", _millimetres), ("label_mm3", _millimetres),
        ("vanished_labels", pa.list_(pa.int16())), ("steps", pa.list_(_s)),
        ("minimum", _f64), ("maximum", _f64), ("mean", _f64), ("std", _f64), ("p0_5", _f64), ("p50", _f64), ("p99_5", _f64),
        ("source_sha256", _s), ("label_sha256", _s), ("license", _s),
        ("license_confirmed", _b), ("recipe", _s), ("recipe_sha256", _s),
        ("collection_sha256", _s), ("pipeline_version", _i32),
    ]
)  # fmt: skip

STATS_SCHEMA = pa.schema(
    [
        ("collection", _s), ("modality", _s), ("region", _s), ("sequence", _s), ("split", _s),
        ("patients", _i32), ("cases", _i32), ("labelled_cases", _i32), ("slices", _i32), ("labelled_slices", _i32),
        ("in_plane_mm_median", _f64), ("through_plane_mm_median", _f64), ("foreground_fraction_mean", _f64),
        ("body_fraction_mean", _f64), ("low_median", _f64), ("high_median", _f64),
        ("removed_label_mm3_sum", _f64), ("removed_body_mm3_median", _f64), ("vanished_structures", _i32), ("license", _s),
        ("license_confirmed", _b),
    ]
)  # fmt: skip


def table_from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Make a table with exactly the schema's columns; a missing key is an error of ours."""
    rows = list(rows)
    return pa.table({f.name: pa.array([row[f.name] for row in rows], type=f.type) for f in schema}, schema=schema)


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    """Write a table atomically, with the schema version in its metadata."""
    notes = {"medvar.schema_version": str(SCHEMA_VERSION), **(metadata or {})}
    with atomic_path(path) as partial:
        pq.write_table(table.replace_schema_metadata(notes), partial, compression="zstd", row_group_size=ROW_GROUP)


def write_cases(path: Path, cases: Iterable[Case], metadata: Mapping[str, str]) -> None:
    """Write the cases that ingest found."""
    write_table(path, table_from_rows((dataclasses.asdict(c) for c in cases), CASE_SCHEMA), metadata)


def read_cases(path: Path) -> list[Case]:
    """Read what `write_cases` wrote."""
    return [_build(Case, row) for row in pq.read_table(path, schema=CASE_SCHEMA).to_pylist()]


def write_rejects(path: Path, rejects: Sequence[Reject], metadata: Mapping[str, str] | None = None) -> None:
    """Write rejected cases, sorted by collection and case, without their files."""
    ordered = sorted(rejects, key=lambda r: (r.collection, r.case, r.stage, r.reason.value))
    rows = ({**dataclasses.asdict(r), "reason": r.reason.value} for r in ordered)
    write_table(path, table_from_rows(rows, REJECTS_SCHEMA), metadata)


def read_rejects(path: Path) -> list[Reject]:
    """Read what `write_rejects` wrote, but for the files."""
    rows = pq.read_table(path, schema=REJECTS_SCHEMA).to_pylist()
    return [Reject(**{**row, "reason": Reason(row["reason"])}) for row in rows]


def read_manifest(store: Store, name: str, **options: Any) -> pa.Table:
    """Read one of a set's tables; `options` are those of `pyarrow.parquet.read_table`.

    Raises:
        ShardSetError: it is missing or damaged.
    """
    try:
        with store.open(name) as stream:
            return pq.read_table(stream, **options)
    except (OSError, pa.ArrowException) as error:
        raise ShardSetError(
            f"{store.url} holds no sound {name}: not a shard set, or a damaged one. `medvar-data verify` tells more."
        ) from error


T = TypeVar("T")


def _build(cls: type[T], row: Mapping[str, Any]) -> T:
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
