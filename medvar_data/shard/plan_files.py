"""The files of a plan: a row a slice and a row a case, which every process that writes shards reads where they lie.

In: tables in pieces. Out: Arrow files in a private folder; rows by their numbers, of which only those asked for enter memory.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from medvar_data.storage.parquet import ROW_GROUP, gathered
from medvar_data.storage.store import atomic_path, file_digest

SLICES, CASES = "slices.arrow", "cases.arrow"


def write_rows(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables of one schema below each other; one batch of them is held at a time."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for table in gathered(tables, ROW_GROUP):
            writer.write_table(table)


def settle(path: Path, target: Path) -> None:
    """Move a finished file to its place, unless the same one lies there: another job may be reading it."""
    if target.exists() and target.stat().st_size == path.stat().st_size and file_digest(target) == file_digest(path):
        return
    with atomic_path(target) as partial:
        path.replace(partial)


def mapped(path: Path) -> pa.Table:
    """All rows of a file, left on the disk until they are looked at."""
    return _reader(str(path), path.stat().st_mtime_ns).read_all()


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in batches."""
    reader = _reader(str(path), path.stat().st_mtime_ns)
    yield from (reader.get_batch(n) for n in range(reader.num_record_batches))


def take_rows(path: Path, rows: Int32[np.ndarray, " rows"]) -> list[dict[str, Any]]:
    """Rows of a file by their numbers, in the order asked for."""
    reader = _reader(str(path), path.stat().st_mtime_ns)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    parts = []
    for number in np.unique(ordered // ROW_GROUP):
        inside = ordered[ordered // ROW_GROUP == number] - number * ROW_GROUP
        parts.append(reader.get_batch(int(number)).take(pa.array(inside)))
    if not parts:
        return []
    found = pa.Table.from_batches(parts).to_pylist()
    return [found[place] for place in np.argsort(order, kind="stable")]


@lru_cache(maxsize=4)
def _reader(path: str, modified_ns: int) -> pa.ipc.RecordBatchFileReader:
    """A file as it was at a time; it stays open, since a process looks into it for every shard."""
    return pa.ipc.open_file(pa.memory_map(path))
