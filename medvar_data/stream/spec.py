"""What a stream yields, as one value, and the rows and the order that follow from it."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Int64

from medvar_data.errors import SpecError
from medvar_data.shardset.index import ShardSet
from medvar_data.stream.order import Order, Pool
from medvar_data.stream.schedule import Schedule

MOST_POOLS = 10_000


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides what a stream yields.

    Args:
        shards: folder or URL of the shard set.
        split: train, val or test.
        batch_size: slices of a global batch, all ranks together; a multiple of `world`.
        seed: of the epoch permutations.
        world, rank: how many processes share a global batch, and which of them this is.
        where: a condition in SQL over the columns of slices, cases and collections, such as "modality = 'MR' AND has_label"; empty
            takes every slice.
        mixture: pairs of value and weight, any positive numbers. Values that are not named are left out; the slices of a value are
            walked through in epochs of their own. Empty, without `temperature`: every slice once an epoch.
        mix_by: the column of slices.parquet that the mixture's values stand in.
        temperature: mixes all values of `mix_by`, each weighing the number of its slices to this power: 1 as they are, 0 all alike.
        window_shards: mix only that many shards at a time, so that a remote set may be larger than the cache;
            0 mixes all.
        masks: read the label maps too.
        skip_bad: put another slice of the batch in the place of one that cannot be read, and count it, instead of ending.
        cache: local folder for the shards of a remote set.
        cache_bytes: bound of that folder.
    """

    shards: str
    split: str = "train"
    batch_size: int = 64
    seed: int = 0
    world: int = 1
    rank: int = 0
    where: str = ""
    mixture: tuple[tuple[str, float], ...] = ()
    mix_by: str = "condition"
    temperature: float | None = None
    window_shards: int = 0
    masks: bool = False
    skip_bad: bool = False
    cache: str = ""
    cache_bytes: int = 20_000_000_000

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world < 1 or self.batch_size % self.world:
            raise SpecError(
                f"batch_size is {self.batch_size} on {self.world} processes; wanted a positive multiple, "
                "since every process takes an equal part of the global batch."
            )
        if not 0 <= self.rank < self.world:
            raise SpecError(f"rank is {self.rank} of {self.world} processes; wanted 0 to {self.world - 1}.")
        if self.seed < 0:
            raise SpecError(f"seed is {self.seed}; wanted 0 or more.")
        if self.temperature is not None and (self.mixture or not abs(self.temperature) <= 10):
            raise SpecError(f"temperature is {self.temperature}; wanted -10 to 10, and no mixture beside it.")


def drawn_from(spec: StreamSpec, shard_set: ShardSet) -> tuple[Int64[np.ndarray, " rows"], Order]:
    """The rows that fulfil the spec's condition and have a value that its mixture names, rising, and their order.

    Raises:
        SpecError: there are none, or the spec names something that the set lacks.
    """
    keep = shard_set.where(spec.where) if spec.where else np.ones(len(shard_set), dtype=np.bool_)
    if not spec.mixture and spec.temperature is None:
        selected = _some(np.flatnonzero(keep), spec, shard_set)
        return selected, Order(spec.seed, (_pool(selected, (), spec, shard_set),))
    names, value = _values(spec, shard_set)
    number = {name: place for place, name in enumerate(names)}
    weights: dict[str, float] = {}
    for name, weight in spec.mixture:
        if name not in number:
            raise SpecError(
                f"{spec.shards} has no {spec.mix_by} {name!r} in {spec.split}; it has {', '.join(sorted(names))}."
            )
        if name in weights:
            raise SpecError(f"the mixture names {name} twice; give each value one weight.")
        weights[name] = weight
    if spec.mixture:
        keep = keep & np.isin(value, [number[name] for name in weights])
    selected = _some(np.flatnonzero(keep), spec, shard_set)
    mine = value[selected]
    if spec.temperature is not None:
        counts = np.bincount(mine, minlength=len(names)).tolist()
        weights = {name: float(n) ** spec.temperature for name, n in zip(names, counts, strict=True) if n}
    if len(weights) > MOST_POOLS:
        raise SpecError(f"{spec.mix_by} has {len(weights):,} values; a mixture takes at most {MOST_POOLS:,}.")
    pools = []
    for name in weights:
        rows = selected[mine == number[name]]
        if not len(rows):
            raise SpecError(
                f"the mixture gives {name} a weight, but no {spec.split} slice of it is left; leave it out."
            )
        pools.append(_pool(rows, _salt(spec, shard_set, name), spec, shard_set))
    return selected, Order(spec.seed, tuple(pools), Schedule(list(weights.values())))


def _some(rows: np.ndarray, spec: StreamSpec, shard_set: ShardSet) -> Int64[np.ndarray, " rows"]:
    """The rows, of which there must be one."""
    if not len(rows):
        raise SpecError(
            f"{spec.shards} has no {spec.split} slice that is asked for ({len(shard_set)} in all); loosen the condition or "
            "the mixture, or choose another split."
        )
    return rows.astype(np.int64)


def _pool(rows: Int64[np.ndarray, " rows"], salt: tuple[int, ...], spec: StreamSpec, shard_set: ShardSet) -> Pool:
    return Pool(rows, salt, shard_set.shard[rows] if spec.window_shards else None, spec.window_shards)


def _salt(spec: StreamSpec, shard_set: ShardSet, name: str) -> tuple[int, ...]:
    if spec.mix_by == "condition":
        return (shard_set.condition_ids[name],)
    return (int.from_bytes(sha256(f"{spec.mix_by}={name}".encode()).digest()[:8], "big"),)


def _values(spec: StreamSpec, shard_set: ShardSet) -> tuple[list[str], Int64[np.ndarray, " rows"]]:
    """The values of the mixture's column, in a fixed order, and the number among them of each row's."""
    if spec.mix_by == "condition":
        ids = sorted(shard_set.condition_ids, key=lambda name: shard_set.condition_ids[name])
        return ids, np.searchsorted([shard_set.condition_ids[name] for name in ids], shard_set.condition_id).astype(
            np.int64
        )
    column = shard_set.column(spec.mix_by)
    if pa.types.is_nested(column.type):
        raise SpecError(f"mix_by is {spec.mix_by}, a column of lists; wanted one with a single value a slice.")
    coded = pa.compute.cast(column, pa.string()).combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.argsort(np.array(names, dtype=object))] = np.arange(len(names))
    return sorted(names), rank[coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
