"""The table of cases that ingest writes: its columns, and the way between rows and frozen dataclasses.

Every file that holds a table is written the same way (zstd, 65,536-row groups, no time stamps), so equal rows give equal
bytes under one pyarrow version.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from medvar_data.errors import WorkspaceError
from medvar_data.naming import is_name
from medvar_data.records import Case
from medvar_data.shardset.columns import Column, schema_of
from medvar_data.storage.documents import table_of
from medvar_data.storage.parquet import table_from_rows, write_table

_text, _texts, _i32, _i64 = pa.string(), pa.list_(pa.string()), pa.int32(), pa.int64()

CASE_TABLE = (
    Column("collection", _text, "name of the collection that the scan belongs to"),
    Column("case", _text, "key of the scan within its collection"),
    Column("group", _text, "the patient as the publisher names them, unsalted; of DICOM cohorts a salted hash"),
    Column("modality", _text, "CT or MR"),
    Column("region", _text, "part of the body that the collection shows"),
    Column("sequence", _text, "MR sequence or CT phase as the publisher names it; empty where it names none"),
    Column("official_split", _text, "the publisher's own split: train, validation or test; empty where there is none"),
    Column("condition", _text, "what the model is told of the case: collection and modality, or finer"),
    Column("layout", _text, "the collection's layout whose patterns matched the files"),
    Column("reader", _text, "what opens the files: volume, dicom or dicom_png"),
    Column("root", _text, "folder or archive that was named at ingest"),
    Column("image", _texts, "paths of the image's files below the root, in the order of slices"),
    Column("label", _texts, "paths of the label's files below the root; none where there is no label"),
    Column("channel", _i32, "index in the fourth dimension, or number of the volume in a DICOM file of several; else -1"),
    Column("n_bytes", _i64, "size of all files together, as stored", "bytes"),
    Column("modified_ns", _i64, "newest modification time of the files", "ns since 1970"),
    Column("n_voxels", _i64, "voxels of the image by its header, one channel; 0 where no header tells", "voxels"),
    Column("inflated_bytes", _i64, "image and label uncompressed, all channels; 0 where no header tells", "bytes"),
)  # fmt: skip
CASE_SCHEMA = schema_of(CASE_TABLE, described=False)  # names and types alone, as in workspaces that exist


def write_cases(path: Path, cases: Iterable[Case], metadata: Mapping[str, str]) -> None:
    """Write the cases that ingest found."""
    write_table(path, table_from_rows((dataclasses.asdict(c) for c in cases), CASE_SCHEMA), metadata)


def read_cases(data: bytes, where: str, collection: str) -> list[Case]:
    """Read what `write_cases` wrote.

    Args:
        data: of the file.
        where: the file, as messages name it.
        collection: whose cases they are.

    Raises:
        WorkspaceError: it is damaged, or names what leads elsewhere.
    """
    again = "Run `medvar-data ingest` of this collection again."
    rows = table_of(data, CASE_SCHEMA, where, WorkspaceError, again).to_pylist()
    for row in rows:
        if row["collection"] != collection or not is_name(row["case"]) or not is_name(row["condition"]):
            raise WorkspaceError(f"{where} is damaged (a row's collection, case or condition is none). {again}")
    return [_build(Case, row) for row in rows]


T = TypeVar("T")


def _build(cls: type[T], row: Mapping[str, Any]) -> T:
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
