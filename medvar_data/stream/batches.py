"""Stream training batches from a shard set, in an order that only the seed and the step decide.

In: a `StreamSpec`. Out: equal `Batch`es for every rank, from any step on. The order is an endless row of
epoch permutations cut into global batches; each slice comes exactly once an epoch, and one batch may span two
epochs.

    >>> spec = StreamSpec("shards", batch_size=64, seed=7)                     # doctest: +SKIP
    >>> for batch in open_stream(spec).batches(start_step=1000, workers=4):    # doctest: +SKIP
    ...     train(batch.images, batch.condition_ids)
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from medvar_data.errors import SpecError
from medvar_data.shardset.index import ShardSet, open_shard_set
from medvar_data.stream.order import Order, Pool, mixture_schedule
from medvar_data.stream.read import ShardReader

Item = TypeVar("Item")


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides what a stream yields.

    Args:
        shards: folder or URL of the shard set.
        split: train, val or test.
        batch_size: slices of a global batch, all ranks together; a multiple of `world`.
        seed: of the epoch permutations.
        world, rank: how many processes share a global batch, and which of them this is.
        mixture: pairs of condition and weight. Conditions that are not named are left out; a condition is
            walked through in epochs of its own. Empty: every slice once an epoch.
        conditions, collections: keep only slices of these; empty keeps all.
        has_label: keep only annotated (True) or only unannotated slices (False).
        window_shards: mix only that many shards at a time, so that a remote set may be larger than the cache;
            0 mixes all.
        cache: local folder for the shards of a remote set.
        cache_bytes: bound of that folder.
    """

    shards: str
    split: str = "train"
    batch_size: int = 64
    seed: int = 0
    world: int = 1
    rank: int = 0
    mixture: tuple[tuple[str, float], ...] = ()
    conditions: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    has_label: bool | None = None
    window_shards: int = 0
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
        if self.mixture and self.window_shards:
            raise SpecError(
                "mixture and window_shards exclude each other, since a mixture reads from all shards at "
                "once; leave one out."
            )


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a global batch.

    Args:
        step: number of the global batch, from 0.
        rows: row of each slice in the split's part of `slices.parquet`.
        keys: key of each slice.
        images: uint8, batch × rows × columns, [0, 255].
        condition_ids: global id of each slice's condition.
    """

    step: int
    rows: Int64[np.ndarray, " batch"]
    keys: tuple[str, ...]
    images: UInt8[np.ndarray, "batch side side"]
    condition_ids: Int32[np.ndarray, " batch"]


class Stream:
    """An opened shard set with an order; the position is the step that `batches` is given.

    Args:
        spec: what to yield.
        shard_set: the split's tables.

    Raises:
        SpecError: the filters leave nothing, or the spec names something the set lacks.
    """

    def __init__(self, spec: StreamSpec, shard_set: ShardSet) -> None:
        self.spec = spec
        self.shard_set = shard_set
        self.selected = _select(spec, shard_set)
        self._order = _order(spec, shard_set, self.selected)
        self._reader: ShardReader | None = None

    def rows(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the rows of this rank's part of a global batch."""
        part = self.spec.batch_size // self.spec.world
        start = step * self.spec.batch_size + self.spec.rank * part
        return self._order.rows(start, start + part)

    def batches(self, start_step: int = 0, steps: int | None = None, workers: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches from a step on, without end or for a number of steps.

        Args:
            start_step: the position; a resumed run passes the number of steps it has done.
            steps: how many batches; None never ends.
            workers: threads that read and decode ahead (both let go of the interpreter's lock); 0 reads in
                the caller's. The batches are the same for any number.
        """
        numbers = iter(range(start_step, start_step + steps)) if steps is not None else _count(start_step)
        return ahead((partial(self.batch, step, self.rows(step)) for step in numbers), workers)

    def pass_rows(self, batch_size: int, most: int = 0) -> list[tuple[int, Int64[np.ndarray, " batch"]]]:
        """List this rank's part of one pass over the selected rows in their own order, for evaluation.

        Every row comes once over all ranks, so ranks may get unequal batches and the last one may be short.
        With `most`, that many rows are taken at even distances.

        Returns:
            Number and rows of each batch; `batch` reads them.
        """
        rows = self.selected
        if 0 < most < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
        starts = range(0, len(rows), batch_size)
        mine = list(enumerate(starts))[self.spec.rank :: self.spec.world]
        return [(number, rows[start : start + batch_size]) for number, start in mine]

    def batch(self, step: int, rows: Int64[np.ndarray, " batch"]) -> Batch:
        """Read the given rows."""
        return Batch(
            step=step,
            rows=rows,
            keys=self.shard_set.names(rows),
            images=self._stack(rows, self.reader.image),
            condition_ids=self.shard_set.condition_id[rows],
        )

    def masks(self, rows: Int64[np.ndarray, " batch"]) -> UInt8[np.ndarray, "batch side side"]:
        """Read the label maps of a batch's rows; all zero where a slice has no annotation."""
        return self._stack(rows, self.reader.mask)

    @property
    def reader(self) -> ShardReader:
        """The shards; opened on first use, since a plan reads none."""
        if self._reader is None:
            _check_cache(self.spec, self.shard_set)
            self._reader = ShardReader(self.shard_set, self.spec.cache, self.spec.cache_bytes)
        return self._reader

    def _stack(self, rows: np.ndarray, read: Callable[[int], np.ndarray]) -> np.ndarray:
        side = self.shard_set.image_side
        images = np.empty((len(rows), side, side), dtype=np.uint8)
        for place in np.argsort(rows):  # in the order of the bytes on disk
            images[place] = read(int(rows[place]))
        return images


def open_stream(spec: StreamSpec) -> Stream:
    """Open the shard set that a spec names.

    Raises:
        ShardSetError: no readable shard set lies there.
        SpecError: the spec does not fit the set.
    """
    return Stream(spec, open_shard_set(spec.shards, spec.split))


def plan(spec: StreamSpec, steps: int, start_step: int = 0) -> Iterator[tuple[str, ...]]:
    """Yield the keys that this rank would be given at each step, without opening a shard."""
    stream = open_stream(spec)
    for step in range(start_step, start_step + steps):
        yield stream.shard_set.names(stream.rows(step))


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def ahead(tasks: Iterator[Callable[[], Item]], workers: int) -> Generator[Item]:
    """Run tasks in order, up to `workers` + 1 of them ahead of the reader; with 0 workers, in the reader's
    own thread.

    A task's error comes out where its result would have.
    """
    if workers <= 0:
        for task in tasks:
            yield task()
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="medvar-stream") as pool:
        running: deque[Future[Item]] = deque()
        try:
            for task in tasks:
                running.append(pool.submit(task))
                if len(running) > workers + 1:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _select(spec: StreamSpec, shard_set: ShardSet) -> Int64[np.ndarray, " rows"]:
    """Apply the filters of a spec."""
    keep = np.ones(len(shard_set), dtype=np.bool_)
    named = spec.conditions or tuple(name for name, _ in spec.mixture)
    if named:
        _known("condition", [*named, *(name for name, _ in spec.mixture)], shard_set.condition_ids, spec)
        keep &= np.isin(shard_set.condition_id, [shard_set.condition_ids[name] for name in named])
    if spec.collections:
        _known("collection", spec.collections, np.unique(shard_set.collection).tolist(), spec)
        keep &= np.isin(shard_set.collection, spec.collections)
    if spec.has_label is not None:
        keep &= shard_set.has_label == spec.has_label
    selected = np.flatnonzero(keep).astype(np.int64)
    if not len(selected):
        raise SpecError(
            f"{spec.shards} has no {spec.split} slice that passes the filters ({len(shard_set)} before "
            "them); loosen the conditions, collections or has_label, or choose another split."
        )
    return selected


def _known(what: str, names: Sequence[str], known: Collection[str], spec: StreamSpec) -> None:
    for name in names:
        if name not in known:
            raise SpecError(f"{spec.shards} has no {what} {name!r} in {spec.split}; it has {', '.join(sorted(known))}.")


def _order(spec: StreamSpec, shard_set: ShardSet, selected: Int64[np.ndarray, " rows"]) -> Order:
    if not spec.mixture:
        return Order(spec.seed, (Pool(selected, (), shard_set.shard[selected], spec.window_shards),))
    pools = []
    for place, (name, _) in enumerate(spec.mixture):
        if name in dict(spec.mixture[:place]):
            raise SpecError(f"the mixture names {name} twice; give each condition one weight.")
        number = shard_set.condition_ids[name]
        rows = selected[shard_set.condition_id[selected] == number]
        if not len(rows):
            raise SpecError(
                f"the mixture gives {name} a weight, but {spec.shards} has no such {spec.split} slice; leave it out."
            )
        pools.append(Pool(rows, (number,)))
    return Order(spec.seed, tuple(pools), mixture_schedule([weight for _, weight in spec.mixture]))


def _check_cache(spec: StreamSpec, shard_set: ShardSet) -> None:
    """Refuse an order that would fetch a remote set's shards over and over."""
    if shard_set.is_local or sum(shard_set.shard_bytes) <= spec.cache_bytes:
        return
    fits = spec.cache_bytes // (2 * max(shard_set.shard_bytes))  # two windows are in use where one ends
    if not 0 < spec.window_shards <= fits:
        raise SpecError(
            f"{spec.shards} has {sum(shard_set.shard_bytes) / 1e9:.2f} GB of {spec.split} shards and the "
            f"cache holds {spec.cache_bytes / 1e9:.2f} GB; raise cache_bytes, or mix at most {fits} shards "
            "at a time (window_shards)."
        )
