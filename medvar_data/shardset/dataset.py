"""Open a shard set: `dataset.json`, the tables, the pictures.

`audit.verify` alone reads the bytes itself, since it trusts nothing.

In: a `Store`. Out: a typed `Dataset`, Arrow tables, pixels; or a `ShardSetError` that names the file and the way on.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from isal import isal_zlib
from jaxtyping import UInt8

from medvar_data.errors import ShardSetError
from medvar_data.naming import SHARD, Count, Digest, Name, ShardName, printable
from medvar_data.shardset.schema import SCHEMA_VERSION, SCHEMAS, SPLITS, TABLES
from medvar_data.storage.codec import CODECS, Codec
from medvar_data.storage.documents import decode_json, table_of
from medvar_data.storage.store import Store

DATASET_FILE = "dataset.json"
MOST_CONDITIONS = 1 << 20
MOST_PICTURE_BYTES = 1 << 28  # of one member
PAIR_COLUMNS = (
    "key", "shard", "image_offset", "image_size", "image_crc32", "mask_offset", "mask_size", "mask_crc32",
)  # fmt: skip
"""What `read_pair` needs of a row."""
WAY_ON = "Run `medvar-data shard` again, or fetch the set again."


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a set: its file name, its sha256, its length in bytes and its number of slices."""

    name: ShardName
    sha256: Digest
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
        codec: of images and masks; a key of `storage.codec.CODECS`.
        conditions: name -> id of every condition in the set.
        splits: train, val and test.
        recipe: every value of the harmonization recipe.
        split: how patients were split.
        seed: of the order of slices.
        salt_sha256: names the workspace's salt without telling it.
        versions: of pipeline, encoder and libraries.
        tables: name -> sha256 of each Parquet table.
        documents: name -> sha256 of each file for people: data card and citations.
        where: the condition in SQL that its slices fulfil; "" where none was set.
        made_from: digest of the set that it was made from by `reshard`; "" where it came from a workspace.
        drop_duplicates: whether all exact copies but the first were left out.
    """

    schema_version: int
    digest: str
    image_side: Annotated[int, msgspec.Meta(ge=1, le=1 << 15)]
    codec: str
    conditions: dict[Name, Annotated[int, msgspec.Meta(ge=0, lt=MOST_CONDITIONS)]]
    splits: dict[str, SplitEntry]
    recipe: dict[str, Any]
    split: dict[str, Any]
    seed: Count
    salt_sha256: str
    versions: dict[str, Any]
    tables: dict[str, Digest]
    documents: dict[str, Digest] = field(default_factory=dict)
    where: str = ""
    made_from: str = ""
    drop_duplicates: bool = False

    def problem(self) -> str:
        """What contradicts itself in it; empty where nothing does."""
        names = [shard.name for split in self.splits.values() for shard in split.shards]
        if set(self.splits) != set(SPLITS):
            return f"its splits are not {', '.join(SPLITS)}"
        if any(not shard.name.startswith(f"{split}-") for split in SPLITS for shard in self.splits[split].shards):
            return "a shard stands in another split than its name says"
        if len(set(names)) != len(names):
            return "a shard is listed twice"
        if self.codec not in CODECS:
            return f"its codec is none of {', '.join(CODECS)}"
        if set(self.tables) != set(TABLES):
            return f"its tables are not {', '.join(TABLES)}"
        if len(set(self.conditions.values())) != len(self.conditions):
            return "two conditions have one id"
        return ""


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
    where = f"{store.url}: dataset.json"
    version = decode_json(text, _Version, where, ShardSetError, WAY_ON).schema_version
    if version != SCHEMA_VERSION:
        raise ShardSetError(
            f"{store.url} has schema version {version}; this medvar reads {SCHEMA_VERSION}, so rebuild the set with "
            "`medvar-data shard` or install the medvar that wrote it."
        )
    dataset = decode_json(text, Dataset, where, ShardSetError, WAY_ON)
    if problem := dataset.problem():
        raise ShardSetError(f"{where} is damaged ({problem}). {WAY_ON}")
    return dataset


@dataclass(frozen=True)
class _Version:
    schema_version: int


def is_shard_set(store: Store) -> bool:
    """Tell whether a finished shard set lies in a store."""
    return store.size(DATASET_FILE) is not None and store.size("slices.parquet") is not None


def read_table(store: Store, name: str, dataset: Dataset | None = None, **options: Any) -> pa.Table:
    """Read one of a set's tables, after its digest was compared with what dataset.json says.

    Args:
        store: where the set lies.
        name: key of `schema.TABLES`.
        dataset: as read, where it was.
        options: `columns` and `equal` of `storage.documents.table_of`.

    Raises:
        ShardSetError: it is missing, damaged, or another one than was published.
    """
    assert name in TABLES, name
    dataset = dataset or read_dataset(store)
    where = f"{store.url}: {name}"
    try:
        data = store.read(name)
    except OSError:
        raise ShardSetError(f"{where} is missing, or cannot be read. {WAY_ON}") from None
    if sha256(data).hexdigest() != dataset.tables[name]:
        raise ShardSetError(
            f"{where} is not the one that dataset.json was published with (its sha256 differs). `medvar-data verify` tells more; "
            "fetch the set again."
        )
    return table_of(data, SCHEMAS[name], where, ShardSetError, WAY_ON, **options)


def crc32(data: bytes) -> int:
    """CRC-32 of an encoded picture, as `slices.parquet` has it: enough to notice damage and swaps, at a thousandth of a decode."""
    return int(isal_zlib.crc32(data))


def codec_of(store: Store) -> Codec:
    """The codec of a set's pictures."""
    return CODECS[read_dataset(store).codec]


def read_pair(
    store: Store, row: dict[str, Any], codec: Codec, checked: bool = True
) -> tuple[UInt8[np.ndarray, "s s"], UInt8[np.ndarray, "s s"]]:
    """Read image and mask of one row of slices.parquet.

    Args:
        store: where the set lies.
        row: of slices.parquet, with `PAIR_COLUMNS`.
        codec: of the set.
        checked: refuse pictures that are not the published ones; else they are given as they are.

    Raises:
        ShardSetError: a picture is missing, another one than was published, or cannot be decoded.
    """
    image, mask = read_encoded(store, row, checked)
    return codec.decode(image), codec.decode(mask)


def read_encoded(store: Store, row: dict[str, Any], checked: bool = True) -> tuple[bytes, bytes]:
    """Read image and mask of one row of slices.parquet as they are stored, each by one request.

    Args:
        store: where the set lies.
        row: of slices.parquet, with `PAIR_COLUMNS`.
        checked: refuse pictures that are not the published ones.

    Raises:
        ShardSetError: a picture is missing, or another one than was published.
    """
    if not re.fullmatch(SHARD, row["shard"]):
        raise ShardSetError(
            f"{store.url}: slices.parquet names the shard {printable(row['shard'], 40)!r}, which is none. {WAY_ON}"
        )
    pair = []
    try:
        for member in ("image", "mask"):
            start, size = row[f"{member}_offset"], row[f"{member}_size"]
            if not (0 < size <= MOST_PICTURE_BYTES and start >= 0):
                raise ShardSetError(
                    f"{row['shard']}: the {member} of {printable(row['key'])} cannot have {size:,} bytes. {WAY_ON}"
                )
            data = store.read_range(row["shard"], start, size)
            if checked and crc32(data) != row[f"{member}_crc32"]:
                raise ShardSetError(
                    f"{row['shard']}: the {member} of {printable(row['key'])} is not the one that was published. `medvar-data verify` lists "
                    "all damage; fetch or rebuild that shard."
                )
            pair.append(data)
    except OSError:
        raise ShardSetError(f"{store.url} lacks {row['shard']}, or it cannot be read. {WAY_ON}") from None
    return pair[0], pair[1]


def read_statistics(store: Store) -> list[dict[str, Any]]:
    """Rows of a shard set's stats.parquet."""
    return list(read_table(store, "stats.parquet").to_pylist())


def read_reject_counts(store: Store) -> list[tuple[str, str, int]]:
    """Rejected cases of a shard set: (collection, reason, cases)."""
    rows = read_table(store, "rejects.parquet", columns=["collection", "reason"]).to_pylist()
    counts = Counter((row["collection"], row["reason"]) for row in rows)
    return [(*pair, n) for pair, n in sorted(counts.items())]
