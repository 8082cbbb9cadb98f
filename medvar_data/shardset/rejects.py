"""Write and read the table of rejected cases, which workspace and shard set share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from medvar_data.errors import Reason
from medvar_data.records import Reject
from medvar_data.shardset.schema import (
    REJECTS_SCHEMA,
    VERSION_NOTE,
)
from medvar_data.storage.parquet import table_from_rows, write_table


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Write rejected cases, sorted by collection and case, without their files."""
    ordered = sorted(rejects, key=lambda r: (r.collection, r.case, r.stage, r.reason.value))
    rows = ({**dataclasses.asdict(r), "reason": r.reason.value} for r in ordered)
    write_table(path, table_from_rows(rows, REJECTS_SCHEMA), VERSION_NOTE)


def read_rejects(path: Path) -> list[Reject]:
    """Read what `write_rejects` wrote, but for the files."""
    rows = pq.read_table(path, schema=REJECTS_SCHEMA).to_pylist()
    return [Reject(**{**row, "reason": Reason(row["reason"])}) for row in rows]
