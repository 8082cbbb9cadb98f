"""Write and read the table of rejected cases, which workspace and shard set share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from medvar_data.errors import MedvarError, Reason
from medvar_data.records import Reject
from medvar_data.shardset.schema import (
    REJECTS_SCHEMA,
    VERSION_NOTE,
)
from medvar_data.storage.documents import table_of
from medvar_data.storage.parquet import table_from_rows, write_table


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Write rejected cases, sorted by collection and case, without their files."""
    ordered = sorted(rejects, key=lambda r: (r.collection, r.case, r.stage, r.reason.value))
    rows = ({**dataclasses.asdict(r), "reason": r.reason.value} for r in ordered)
    write_table(path, table_from_rows(rows, REJECTS_SCHEMA), VERSION_NOTE)


def read_rejects(data: bytes, where: str, error: type[MedvarError], way_on: str) -> list[Reject]:
    """Read what `write_rejects` wrote, but for the files.

    Args:
        data: of the file.
        where: the file, as messages name it.
        error: what to raise.
        way_on: what the user does next.
    """
    return rejects_of(table_of(data, REJECTS_SCHEMA, where, error, way_on), where, error, way_on)


def rejects_of(table: pa.Table, where: str, error: type[MedvarError], way_on: str) -> list[Reject]:
    """Read the rows of a table of rejected cases; as `read_rejects`."""
    rows = table.to_pylist()
    if any(row["reason"] not in set(Reason) for row in rows):
        raise error(f"{where} is damaged (it names a reason that is none). {way_on}")
    return [Reject(**{**row, "reason": Reason(row["reason"])}) for row in rows]
