"""The Parquet tables: one explicit schema each, and the way between rows and frozen dataclasses.

Every file that holds a table is written the same way (zstd, 65,536-row groups, no time stamps), so equal rows give equal
bytes under one pyarrow version.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.records import Case
from medvar_data.storage.parquet import table_from_rows, write_table

_s, _i32, _i64, _f64, _b = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()

CASE_SCHEMA = pa.schema(
    [
        ("collection", _s), ("case", _s), ("group", _s), ("modality", _s), ("region", _s), ("sequence", _s),
        ("official_split", _s), ("condition", _s), ("layout", _s), ("reader", _s), ("root", _s),
        ("image", pa.list_(_s)), ("label", pa.list_(_s)), ("channel", _i32), ("n_bytes", _i64), ("modified_ns", _i64),
        ("n_voxels", _i64), ("inflated_bytes", _i64),
    ]
)  # fmt: skip


def write_cases(path: Path, cases: Iterable[Case], metadata: Mapping[str, str]) -> None:
    """Write the cases that ingest found."""
    write_table(path, table_from_rows((dataclasses.asdict(c) for c in cases), CASE_SCHEMA), metadata)


def read_cases(path: Path) -> list[Case]:
    """Read what `write_cases` wrote."""
    return [_build(Case, row) for row in pq.read_table(path, schema=CASE_SCHEMA).to_pylist()]


T = TypeVar("T")


def _build(cls: type[T], row: Mapping[str, Any]) -> T:
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
