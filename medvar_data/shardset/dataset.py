"""Open a shard set: `dataset.json`, the tables, the pictures.

`audit.verify` alone reads the bytes itself, since it trusts nothing.

In: a `Store`. Out: a typed `Dataset`, Arrow tables, pixels; or a `ShardSetError` that names the file and the way on.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from medvar_data.errors import ShardSetError
from medvar_data.shardset.schema import SCHEMA_VERSION, TABLES
from medvar_data.storage.codec import decode_png
from medvar_data.storage.store import Store

DATASET_FILE = "dataset.json"
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a set: its file name, its sha256, its length in bytes and its number of slices."""

    name: str
    sha256: str
    bytes: Count
    slices: Count


@dataclass(frozen=True)
class SplitEntry:
    """One split of a set: its counts and its shards, in order."""

    slices: Count
    cases: Count
    patients: Count
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class Dataset:
    """The content of `dataset.json`, which is written last and says that a set is complete.

    Attributes:
        digest: of the content; see `schema.content_digest`.
        image_side: rows and columns of every picture.
        image_suffix: of the image members, which names their codec.
        conditions: name -> id of every condition in the set.
        splits: train, val and test.
        recipe: every value of the harmonization recipe.
        split: how patients were split.
        seed: of the order of slices.
        salt_sha256: names the workspace's salt without telling it.
        versions: of pipeline, encoder and libraries.
        tables: name -> sha256 of each Parquet table.
    """

    schema_version: int
    digest: str
    image_side: Annotated[int, msgspec.Meta(ge=1, le=1 << 15)]
    image_suffix: str
    conditions: dict[str, Count]
    splits: dict[str, SplitEntry]
    recipe: dict[str, Any]
    split: dict[str, Any]
    seed: Count
    salt_sha256: str
    versions: dict[str, Any]
    tables: dict[str, str]


def read_dataset(store: Store) -> Dataset:
    """Read a set's dataset.json.

    Raises:
        ShardSetError: it is missing, damaged, or of another schema version.
    """
    try:
        text = store.read(DATASET_FILE)
    except FileNotFoundError:
        raise ShardSetError(
            f"{store.url} holds no dataset.json: not a shard set, or one whose writing was cut short. Run `medvar-data shard` again."
        ) from None
    damaged = f"{store.url}: dataset.json is damaged%s. Run `medvar-data shard` again, or fetch the set again."
    try:
        version = msgspec.json.decode(text, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise ShardSetError(
                f"{store.url} has schema version {version}; this medvar reads {SCHEMA_VERSION}, so rebuild the set with "
                "`medvar-data shard` or install the medvar that wrote it."
            )
        return msgspec.json.decode(text, type=Dataset)
    except msgspec.ValidationError as error:
        raise ShardSetError(damaged % f" ({error})") from None
    except (ValueError, RecursionError):
        raise ShardSetError(damaged % "") from None


@dataclass(frozen=True)
class _Version:
    schema_version: int


def is_shard_set(store: Store) -> bool:
    """Tell whether a finished shard set lies in a store."""
    return store.size(DATASET_FILE) is not None and store.size("slices.parquet") is not None


def read_table(store: Store, name: str, **options: Any) -> pa.Table:
    """Read one of a set's tables.

    Args:
        store: where the set lies.
        name: key of `schema.TABLES`.
        options: those of `pyarrow.parquet.read_table`.

    Raises:
        ShardSetError: it is missing or damaged.
    """
    assert name in TABLES, name
    folder = store.folder
    try:
        # Arrow reads a path or bytes by itself; through a Python file handle its threads may outlive the interpreter.
        source = str(folder / name) if folder else pa.BufferReader(store.read(name))
        return pq.read_table(source, **options)
    except (OSError, pa.ArrowException) as error:
        raise ShardSetError(
            f"{store.url} holds no sound {name}: not a shard set, or a damaged one. `medvar-data verify` tells more."
        ) from error


def read_pair(store: Store, row: dict[str, Any]) -> tuple[UInt8[np.ndarray, "s s"], UInt8[np.ndarray, "s s"]]:
    """Read image and mask of one row of slices.parquet.

    Raises:
        ShardSetError: a picture cannot be decoded.
    """
    with store.open(row["shard"]) as stream:
        stream.seek(row["image_offset"])
        image = stream.read(row["image_size"])
        stream.seek(row["mask_offset"])
        mask = stream.read(row["mask_size"])
    return decode_png(image), decode_png(mask)


def read_statistics(store: Store) -> list[dict[str, Any]]:
    """Rows of a shard set's stats.parquet."""
    read_dataset(store)
    return list(read_table(store, "stats.parquet").to_pylist())


def read_reject_counts(store: Store) -> list[tuple[str, str, int]]:
    """Rejected cases of a shard set: (collection, reason, cases)."""
    rows = read_table(store, "rejects.parquet", columns=["collection", "reason"]).to_pylist()
    counts = Counter((row["collection"], row["reason"]) for row in rows)
    return [(*pair, n) for pair, n in sorted(counts.items())]
