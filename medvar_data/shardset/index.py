"""Open a shard set's tables: the index of one split as plain arrays.

In: the folder or URL of a shard set. Out: a `ShardSet`, which knows where each slice's bytes lie and opens no
image.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Bool, Int32, Int64, UInt32

from medvar_data.errors import ShardSetError, SpecError
from medvar_data.naming import KEY, printable
from medvar_data.shardset.dataset import MOST_PICTURE_BYTES, WAY_ON, Dataset, SplitEntry, read_dataset, read_table
from medvar_data.shardset.schema import SCHEMAS, SPLITS
from medvar_data.shardset.select import JOINED, rows_where
from medvar_data.storage.codec import CODECS, Codec
from medvar_data.storage.store import Store

_COLUMNS = (
    "key", "split", "shard", "image_offset", "image_size", "image_crc32", "mask_offset", "mask_size", "mask_crc32",
    "condition", "condition_id",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ShardSet:
    """One split of a shard set: what it says of itself and, per slice, where its bytes lie.

    Args:
        url: as the user wrote it.
        filesystem: of that URL.
        root: the set's folder on that file system.
        digest: names the content of the whole set.
        image_side: rows and columns of every image.
        codec: of images and masks.
        condition_ids: name → global id of every condition of the set, all splits.
        split: the split that the arrays below describe.
        shards: file names of the split's shards.
        shard_bytes, shard_sha256: expected length and digest of each.
        keys: one a slice, in the order of `slices.parquet`.
        shard: number of the slice's shard in `shards`.
        image_offset, image_size, image_crc32: bytes of the image member in its shard, and their CRC-32; likewise for the mask.
        condition_id: global id.
    """

    url: str
    filesystem: fsspec.AbstractFileSystem
    root: str
    digest: str
    image_side: int
    codec: Codec
    condition_ids: dict[str, int]
    split: str
    shards: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    shard_sha256: tuple[str, ...]
    keys: pa.ChunkedArray
    shard: Int64[np.ndarray, " rows"]
    image_offset: Int64[np.ndarray, " rows"]
    image_size: Int64[np.ndarray, " rows"]
    image_crc32: UInt32[np.ndarray, " rows"]
    mask_offset: Int64[np.ndarray, " rows"]
    mask_size: Int64[np.ndarray, " rows"]
    mask_crc32: UInt32[np.ndarray, " rows"]
    condition_id: Int32[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def is_local(self) -> bool:
        """Whether the shards can be read in place."""
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, shard: int) -> str:
        """Return the path of a shard on the set's file system."""
        return f"{self.root}/{self.shards[shard]}"

    def column(self, name: str) -> pa.ChunkedArray:
        """Read a further column of the split's rows.

        Raises:
            SpecError: slices.parquet has no such column.
            ShardSetError: the table cannot be read.
        """
        if name not in SCHEMAS["slices.parquet"].names:
            raise SpecError(
                f"slices.parquet has no column {name!r}; it has {', '.join(SCHEMAS['slices.parquet'].names)}."
            )
        return self._table([name])[name]

    def where(self, condition: str) -> Bool[np.ndarray, " rows"]:
        """Tell which rows fulfil a condition in SQL over slices, cases and collections; see `shardset.select`.

        Raises:
            SpecError: it is no condition.
            ShardSetError: a table cannot be read.
        """
        store, own = Store(self.url), SCHEMAS["slices.parquet"].names
        dataset = read_dataset(store)
        known = {name for table in ("slices.parquet", *JOINED.values()) for name in SCHEMAS[table].names}
        named = set(re.findall(r"\w+", condition))
        others = {
            keys: read_table(store, table, dataset)
            for keys, table in JOINED.items()
            if named & (set(SCHEMAS[table].names) - set(own))
        }
        columns = [name for name in own if name in named or any(name in keys for keys in others)]
        return rows_where(condition, self._table(columns, dataset), others, known)

    def _table(self, columns: Sequence[str], dataset: Dataset | None = None) -> pa.Table:
        options = {"columns": [*columns, "split"], "equal": {"split": self.split}}
        return read_table(Store(self.url), "slices.parquet", dataset, **options)

    def names(self, rows: Int64[np.ndarray, " rows"]) -> tuple[str, ...]:
        """Return the keys of the given rows."""
        return tuple(self.keys.take(pa.array(rows)).to_pylist())


def open_shard_set(url: str, split: str) -> ShardSet:
    """Read `dataset.json` and the split's part of `slices.parquet`.

    Args:
        url: a folder or any fsspec URL.
        split: train, val or test.

    Raises:
        ShardSetError: no shard set lies there, it has another schema, or its two tables disagree.
    """
    store = Store(url)
    filesystem, root = store.location
    dataset = read_dataset(store)
    if split not in SPLITS:
        raise ShardSetError(f"{url} has no split {split!r}; wanted one of {', '.join(SPLITS)}.")
    entry = dataset.splits[split]
    table = read_table(store, "slices.parquet", dataset, columns=_COLUMNS, equal={"split": split})
    if table.num_rows != entry.slices:
        raise ShardSetError(
            f"{url}: slices.parquet has {table.num_rows} {split} slices, dataset.json says "
            f"{entry.slices}; run `medvar-data verify` to see which table is damaged."
        )
    names = tuple(shard.name for shard in entry.shards)
    shards = _shard_numbers(url, table, names)
    _check_rows(url, table, entry, shards, dataset.conditions)
    return ShardSet(
        url=url,
        filesystem=filesystem,
        root=root,
        digest=dataset.digest,
        image_side=dataset.image_side,
        codec=CODECS[dataset.codec],
        condition_ids=dataset.conditions,
        split=split,
        shards=names,
        shard_bytes=tuple(shard.bytes for shard in entry.shards),
        shard_sha256=tuple(shard.sha256 for shard in entry.shards),
        keys=table["key"],
        shard=shards,
        **{name: _integers(table, name) for name in ("image_offset", "image_size", "mask_offset", "mask_size")},
        image_crc32=table["image_crc32"].to_numpy().astype(np.uint32),
        mask_crc32=table["mask_crc32"].to_numpy().astype(np.uint32),
        condition_id=table["condition_id"].to_numpy().astype(np.int32),
    )


def _empty() -> Int64[np.ndarray, " rows"]:
    return np.empty(0, dtype=np.int64)


def _integers(table: pa.Table, name: str) -> Int64[np.ndarray, " rows"]:
    return table[name].to_numpy().astype(np.int64)


def _shard_numbers(url: str, table: pa.Table, names: Sequence[str]) -> Int64[np.ndarray, " rows"]:
    """The number in `names` of the shard of each row."""
    shard = table["shard"].combine_chunks().dictionary_encode()
    index, found = {name: number for number, name in enumerate(names)}, shard.dictionary.to_pylist()
    unknown = sorted(set(found) - index.keys())
    if unknown:
        raise ShardSetError(
            f"{url}: slices.parquet names {printable(unknown[0])}, which dataset.json does not list; run `medvar-data verify`."
        )
    numbers = np.array([index[name] for name in found], dtype=np.int64)
    return numbers[shard.indices.to_numpy(zero_copy_only=False).astype(np.int64)] if len(numbers) else _empty()


def _check_rows(
    url: str, table: pa.Table, entry: SplitEntry, shards: Int64[np.ndarray, " rows"], conditions: Mapping[str, int]
) -> None:
    """Refuse rows that point out of their shard, have keys that are none, or conditions that dataset.json numbers otherwise.

    Raises:
        ShardSetError: names the first.
    """
    lengths = np.array([shard.bytes for shard in entry.shards], dtype=np.int64)
    for member in ("image", "mask"):
        start, size = _integers(table, f"{member}_offset"), _integers(table, f"{member}_size")
        wrong = (start < 0) | (size <= 0) | (size > MOST_PICTURE_BYTES) | (start > lengths[shards] - size)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ShardSetError(
                f"{url}: slices.parquet says that the {member} of {printable(table['key'][row].as_py())} has {size[row]:,} bytes from "
                f"byte {start[row]:,}, but its shard has {lengths[shards[row]]:,}. {WAY_ON}"
            )
    odd_keys = table["key"].filter(pa.compute.invert(pa.compute.match_substring_regex(table["key"], rf"^{KEY}\z")))
    if len(odd_keys):
        odd = odd_keys[0].as_py()
        raise ShardSetError(f"{url}: slices.parquet has the key {printable(odd)!r}, which is none. {WAY_ON}")
    pairs = table.group_by(["condition", "condition_id"]).aggregate([]).to_pylist()
    for pair in pairs:
        if conditions.get(pair["condition"]) != pair["condition_id"]:
            raise ShardSetError(
                f"{url}: slices.parquet gives the condition {printable(pair['condition'])} the id {pair['condition_id']}, dataset.json "
                f"{conditions.get(pair['condition'], 'none')}. {WAY_ON}"
            )
