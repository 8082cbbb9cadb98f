"""Open a shard set's tables: the index of one split as plain arrays.

In: the folder or URL of a shard set. Out: a `ShardSet`, which knows where each slice's bytes lie and opens no
image.
"""

from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Bool, Int32, Int64

from medvar_data.errors import ShardSetError
from medvar_data.shardset.dataset import SplitEntry, read_dataset, read_table
from medvar_data.shardset.schema import SPLITS
from medvar_data.storage.store import Store

_COLUMNS = (
    "key", "split", "shard", "image_offset", "image_size", "mask_offset", "mask_size",
    "collection", "condition", "condition_id", "has_label",
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
        condition_ids: name → global id of every condition of the set, all splits.
        split: the split that the arrays below describe.
        shards: file names of the split's shards.
        shard_bytes, shard_sha256: expected length and digest of each.
        keys: one a slice, in the order of `slices.parquet`.
        shard: number of the slice's shard in `shards`.
        image_offset, image_size: bytes of the image member in its shard; likewise for the mask.
        condition_id: global id.
        collection, has_label: for filters.
    """

    url: str
    filesystem: fsspec.AbstractFileSystem
    root: str
    digest: str
    image_side: int
    condition_ids: dict[str, int]
    split: str
    shards: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    shard_sha256: tuple[str, ...]
    keys: pa.ChunkedArray
    shard: Int64[np.ndarray, " rows"]
    image_offset: Int64[np.ndarray, " rows"]
    image_size: Int64[np.ndarray, " rows"]
    mask_offset: Int64[np.ndarray, " rows"]
    mask_size: Int64[np.ndarray, " rows"]
    condition_id: Int32[np.ndarray, " rows"]
    collection: np.ndarray
    has_label: Bool[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def is_local(self) -> bool:
        """Whether the shards can be read in place."""
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, shard: int) -> str:
        """Return the path of a shard on the set's file system."""
        return f"{self.root}/{self.shards[shard]}"

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
    entry = dataset.splits.get(split, SplitEntry(0, 0, 0, ()))
    table = _read_slices(store, split)
    if table.num_rows != entry.slices:
        raise ShardSetError(
            f"{url}: slices.parquet has {table.num_rows} {split} slices, dataset.json says "
            f"{entry.slices}; run `medvar-data verify` to see which table is damaged."
        )
    names = tuple(shard.name for shard in entry.shards)
    shard = table["shard"].combine_chunks().dictionary_encode()
    unknown = sorted(set(shard.dictionary.to_pylist()) - set(names))
    if unknown:
        raise ShardSetError(
            f"{url}: slices.parquet names {unknown[0]}, which dataset.json does not list; run `medvar-data verify`."
        )
    number = np.array([names.index(name) for name in shard.dictionary.to_pylist()], dtype=np.int64)
    return ShardSet(
        url=url,
        filesystem=filesystem,
        root=root,
        digest=dataset.digest,
        image_side=dataset.image_side,
        condition_ids=dataset.conditions,
        split=split,
        shards=names,
        shard_bytes=tuple(shard.bytes for shard in entry.shards),
        shard_sha256=tuple(shard.sha256 for shard in entry.shards),
        keys=table["key"],
        shard=number[shard.indices.to_numpy(zero_copy_only=False).astype(np.int64)] if len(number) else _empty(),
        **{name: _integers(table, name) for name in ("image_offset", "image_size", "mask_offset", "mask_size")},
        condition_id=table["condition_id"].to_numpy().astype(np.int32),
        collection=np.asarray(table["collection"].to_pylist(), dtype=np.str_),
        has_label=table["has_label"].to_numpy().astype(np.bool_),
    )


def _empty() -> Int64[np.ndarray, " rows"]:
    return np.empty(0, dtype=np.int64)


def _integers(table: pa.Table, name: str) -> Int64[np.ndarray, " rows"]:
    return table[name].to_numpy().astype(np.int64)


def _read_slices(store: Store, split: str) -> pa.Table:
    if split not in SPLITS:
        raise ShardSetError(f"{store.url} has no split {split!r}; wanted one of {', '.join(SPLITS)}.")
    return read_table(store, "slices.parquet", columns=list(_COLUMNS), filters=[("split", "=", split)])
