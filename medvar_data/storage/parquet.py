"""Write Parquet tables, all the same way (zstd, 65,536-row groups, no time stamps).

Equal rows give equal bytes under one pyarrow version.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.storage.store import atomic_path

ROW_GROUP = 1 << 16


def table_from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Make a table with exactly the schema's columns; a missing key is an error of ours."""
    rows = list(rows)
    return pa.table({f.name: pa.array([row[f.name] for row in rows], type=f.type) for f in schema}, schema=schema)


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write a table atomically, with nothing but `metadata` in its metadata."""
    with atomic_path(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd", row_group_size=ROW_GROUP)
