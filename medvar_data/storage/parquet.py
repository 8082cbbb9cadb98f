"""Write Parquet tables, all the same way (zstd, 65,536-row groups, no time stamps).

Equal rows give equal bytes under one pyarrow version.
"""

from collections.abc import Iterable, Iterator, Mapping
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


def gathered(tables: Iterable[pa.Table], rows: int = ROW_GROUP) -> Iterator[pa.Table]:
    """Cut the rows of tables anew: all tables that come out have `rows` rows, but for the last.

    >>> [t.num_rows for t in gathered([pa.table({"a": [1, 2]}), pa.table({"a": [3, 4, 5]})], 2)]
    [2, 2, 1]
    """
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        if held >= rows:
            joined = pa.concat_tables(waiting)
            whole = held - held % rows
            yield from (joined.slice(start, rows).combine_chunks() for start in range(0, whole, rows))
            waiting, held = [joined.slice(whole).combine_chunks()], held - whole
    if held:
        yield pa.concat_tables(waiting).combine_chunks()


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, str]) -> None:
    """Write tables of one schema below each other as one, atomically; one row group of them is held at a time."""
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(partial, schema.with_metadata(metadata), compression="zstd") as writer,
    ):
        for table in gathered(tables):
            writer.write_table(table.replace_schema_metadata(metadata), row_group_size=ROW_GROUP)


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write a table atomically, with nothing but `metadata` in its metadata."""
    with atomic_path(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd", row_group_size=ROW_GROUP)
