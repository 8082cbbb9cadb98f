"""What tests of shard sets look at: the files of a folder by their digests, the rows of a table."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq


def quiet(_: object) -> None:
    pass


def bytes_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def rows_of(folder: Path, name: str) -> list[dict]:
    return pq.read_table(folder / name).to_pylist()
