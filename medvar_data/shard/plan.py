"""Plan a shard set: which slice lies in which shard, and where.

A pure function of the slices' keys and splits, the seed and the size. A slice is a number here, its row in the plan's file
(`shard.plan_files`); of each there is a split, a hash of its key and, once it is planned, its number in an array.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int8, Int32, UInt64

from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import SpecError
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.schema import SPLITS
from medvar_data.storage.codec import CODECS

NONE_YET: Mapping[str, int] = MappingProxyType(dict.fromkeys(SPLITS, 0))


def check_codec(name: str) -> None:
    """Refuse a codec that is none.

    Raises:
        SpecError: names those that are.
    """
    if name not in CODECS:
        raise SpecError(f"codec is {name!r}; wanted one of {', '.join(CODECS)}.")


@dataclass(frozen=True)
class ShardSpec:
    """What a shard set is made of."""

    recipe: Recipe
    split: SplitSpec = field(default_factory=SplitSpec)
    seed: int = 0  # of the order of slices
    slices_per_shard: int = 1024
    codec: str = "png"  # of the pictures in the shards
    where: str = ""  # condition in SQL that the slices fulfil; all where empty
    drop_duplicates: bool = False  # of exact copies, leave out all but the first

    def __post_init__(self) -> None:
        check_codec(self.codec)


@dataclass(frozen=True, eq=False)
class ShardTask:
    """One shard to write: the numbers of its slices in order, where they come from, and where it and its rows go."""

    name: str
    rows: Int32[np.ndarray, " slices"]  # of the plan's slices
    plan: str  # folder of the plan's files; what is half-written lies there too
    source: str  # the workspace's folder, or the set that a set is made from
    codec: str
    url: str
    notes: str  # folder or URL where the finished shard's rows go; the done-mark
    digest: str  # of the plan

    @property
    def split(self) -> str:
        """Train, val or test."""
        return self.name.partition("-")[0]

    @property
    def note(self) -> str:
        """Name of the finished shard's rows, in `notes`."""
        return f"{self.name}.parquet"


def order_keys(keys: Iterable[str], seed: int) -> UInt64[np.ndarray, "slices 2"]:
    """Where each slice stands in the order: the first 16 bytes of a seeded hash of its key, as two numbers."""
    heads = b"".join(sha256(f"{seed}/{key}".encode()).digest()[:16] for key in keys)
    return np.frombuffer(heads, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def cut_shards(
    splits: Int8[np.ndarray, " slices"],
    order: UInt64[np.ndarray, "slices 2"],
    chosen: Bool[np.ndarray, " slices"],
    slices_per_shard: int,
    first: Mapping[str, int] = NONE_YET,
) -> list[tuple[str, Int32[np.ndarray, " _"]]]:
    """Order each split's slices by their hashes and cut shards of nearly equal size.

    Args:
        splits: place in `SPLITS` of each slice.
        order: of `order_keys`.
        chosen: which slices the set takes.
        slices_per_shard: upper bound.
        first: number of the first shard of each split.

    Returns:
        Name and slices of each shard.
    """
    plan = []
    for number, split in enumerate(SPLITS):
        members = np.flatnonzero((splits == number) & chosen).astype(np.int32)
        members = members[np.lexsort((order[members, 1], order[members, 0]))]
        n_shards = -(-len(members) // slices_per_shard)
        bounds = [round(i * len(members) / max(1, n_shards)) for i in range(n_shards + 1)]
        names = [f"{split}-{first[split] + i:06d}.tar" for i in range(n_shards)]
        plan += [(name, members[a:b]) for name, (a, b) in zip(names, pairwise(bounds), strict=True)]
    return plan


def plan_digest(shards: Sequence[tuple[str, Int32[np.ndarray, " _"]]], codec: str, contents: Iterable[bytes]) -> str:
    """Name everything that the shards and their rows will hold; whatever changes it makes them be written again.

    Args:
        shards: of `cut_shards`.
        codec: of the pictures.
        contents: what the slices' numbers stand for.
    """
    digest = sha256(CODECS[codec].version.encode())
    for content in contents:
        digest.update(sha256(content).digest())
    for name, rows in shards:
        digest.update(name.encode() + rows.astype("<i4").tobytes())
    return digest.hexdigest()
