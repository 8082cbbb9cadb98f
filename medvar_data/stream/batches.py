"""Stream training batches from a shard set, in an order that only the seed and the position decide.

In: a `StreamSpec`. Out: equal `Batch`es for every rank, from any position on. The order is an endless row of
epoch permutations cut into global batches; each slice comes exactly once an epoch, and one batch may span two
epochs.

    >>> spec = StreamSpec("shards", batch_size=64, seed=7)                     # doctest: +SKIP
    >>> for batch in open_stream(spec).batches(start_step=1000, workers=4):    # doctest: +SKIP
    ...     train(batch.images, batch.condition_ids)
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from medvar_data.errors import SpecError
from medvar_data.shardset.index import ShardSet, open_shard_set
from medvar_data.stream.cache import Coming
from medvar_data.stream.read import Pictures, ShardReader
from medvar_data.stream.spec import StreamSpec, drawn_from

Item = TypeVar("Item")
MOST_BATCHES_AHEAD = 4096  # that are looked through for shards to fetch


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a global batch.

    Args:
        step: number of the global batch, from 0.
        stop: samples of the sequence up to the end of the global batch, over all ranks; where a resumed stream goes on.
        rows: row of each slice in the split's part of `slices.parquet`.
        keys: key of each slice.
        images: uint8, batch × rows × columns, [0, 255].
        condition_ids: global id of each slice's condition.
        masks: uint8 label maps, as the images, where the spec asks for them; all zero where a slice has no annotation.
    """

    step: int
    stop: int
    rows: Int64[np.ndarray, " batch"]
    keys: tuple[str, ...]
    images: UInt8[np.ndarray, "batch side side"]
    condition_ids: Int32[np.ndarray, " batch"]
    masks: UInt8[np.ndarray, "batch side side"] | None = None


class Stream:
    """An opened shard set with an order.

    `batches` takes the position as an argument and keeps none; iterating the stream itself goes on from `position`, which
    `state_dict` and `load_state_dict` carry over to another process, number of ranks or batch size. A pickled stream holds its spec and
    its position, and opens the set anew.

    Args:
        spec: what to yield.
        shard_set: the split's tables.
        workers: threads that read ahead where the stream itself is iterated.

    Attributes:
        selected: rows that the stream draws from, rising.
        position: samples of the sequence, over all ranks, that iterating has yielded.
        skipped: with `spec.skip_bad`, why each slice that could not be read was left out, by key.

    Raises:
        SpecError: nothing is selected, or the spec names something the set lacks.
    """

    def __init__(self, spec: StreamSpec, shard_set: ShardSet, workers: int = 0) -> None:
        self.spec, self.shard_set, self.workers = spec, shard_set, workers
        self.selected, self._order = drawn_from(spec, shard_set)
        self.position = 0
        self.skipped: dict[str, str] = {}
        self._reader: ShardReader | None = None
        self._reader_process = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.spec, self.workers, self.position)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches(workers=self.workers, start_sample=self.position):
            self.position = batch.stop
            yield batch

    def __getitem__(self, position: int) -> Batch:
        """Read the slice at a position of the endless sequence, as a batch of one."""
        if position < 0:
            raise IndexError(f"position is {position}; wanted 0 or more.")
        rows = self._order.rows(position, position + 1)
        return replace(self.batch(position // self.spec.batch_size, rows), stop=position + 1)

    def state_dict(self, samples: int | None = None) -> dict[str, Any]:
        """The position, or another one, as a few integers: samples drawn, and in a mixture how many from each value."""
        samples = self.position if samples is None else samples
        schedule = self._order.schedule
        return {"samples": samples, "drawn": list(schedule.counts(samples)) if schedule else []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the samples that another stream of the same set, selection, mixture and seed has yielded.

        Raises:
            SpecError: the state is not one of this order.
        """
        samples, drawn = state.get("samples"), state.get("drawn", [])
        if not isinstance(samples, int) or samples < 0 or not isinstance(drawn, list):
            raise SpecError(f"a stream's state is {dict(state)}; wanted samples, and drawn, as state_dict gave them.")
        if self._order.schedule and drawn:
            self._order.schedule.know(samples, drawn)
        self.position = samples

    def rows(self, step: int, start_sample: int = 0) -> Int64[np.ndarray, " batch"]:
        """Return the rows of this rank's part of a global batch, counted from a sample of the sequence on."""
        part = self.spec.batch_size // self.spec.world
        start = start_sample + step * self.spec.batch_size + self.spec.rank * part
        return self._order.rows(start, start + part)

    def batches(
        self, start_step: int = 0, steps: int | None = None, workers: int = 0, start_sample: int = 0
    ) -> Generator[Batch]:
        """Yield this rank's batches from a step on, without end or for a number of steps.

        Args:
            start_step: the position; a resumed run passes the number of steps it has done.
            steps: how many batches; None never ends.
            workers: threads that read and decode ahead (both let go of the interpreter's lock); 0 reads in
                the caller's. The batches are the same for any number.
            start_sample: where step 0 begins, for a run that goes on with another batch size.
        """
        return ahead(self.tasks(start_step, steps, start_sample), workers)

    def tasks(
        self, start_step: int = 0, steps: int | None = None, start_sample: int = 0
    ) -> Iterator[Callable[[], Batch]]:
        """Yield what reads each of this rank's batches, for `ahead`; arguments as those of `batches`."""
        numbers = count(start_step) if steps is None else iter(range(start_step, start_step + steps))
        tasks = (partial(self.batch, step, self.rows(step, start_sample), start_sample) for step in numbers)
        last = None if steps is None else start_step + steps
        return self._fetching_ahead(tasks, start_step, last, start_sample)

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

    def batch(self, step: int, rows: Int64[np.ndarray, " batch"], start_sample: int = 0) -> Batch:
        """Read the given rows.

        Raises:
            ShardSetError: one of them cannot be read; with `spec.skip_bad`, none of them can.
        """
        pictures = self.reader.read(rows, self.spec.masks, self.spec.skip_bad)
        if pictures.failed:
            rows, pictures = self._mended(rows, pictures)
        return Batch(
            step=step,
            stop=start_sample + (step + 1) * self.spec.batch_size,
            rows=rows,
            keys=self.shard_set.names(rows),
            images=pictures.images,
            condition_ids=self.shard_set.condition_id[rows],
            masks=pictures.masks,
        )

    @property
    def reader(self) -> ShardReader:
        """The shards; opened on first use, since a plan reads none, and anew in a forked process."""
        if self._reader is None or self._reader_process != os.getpid():
            _check_cache(self.spec, self.shard_set, len(self._order.pools))
            self._reader = ShardReader(self.shard_set, self.spec.cache, self.spec.cache_bytes)
            self._reader_process = os.getpid()
        return self._reader

    def _mended(self, rows: np.ndarray, pictures: Pictures) -> tuple[np.ndarray, Pictures]:
        """Put in the place of each slice that could not be read the next one of the batch that could."""
        good = [place for place in range(len(rows)) if place not in pictures.failed]
        if not good:
            raise pictures.failed[min(pictures.failed)]
        for place, error in pictures.failed.items():
            self.skipped[self.shard_set.keys[int(rows[place])].as_py()] = str(error)
        instead = np.array([min(good, key=lambda n: (n - place) % len(rows)) for place in range(len(rows))])
        masks = None if pictures.masks is None else pictures.masks[instead]
        return rows[instead], Pictures(pictures.images[instead], masks)

    def _fetching_ahead(
        self, tasks: Iterator[Callable[[], Batch]], step: int, last: int | None, start_sample: int
    ) -> Iterator[Callable[[], Batch]]:
        """Have the shards of the batches to come fetched while their turn comes, where the set is remote."""
        cache = None if self.shard_set.is_local else self.reader.cache
        if cache is None:
            yield from tasks
            return
        coming = Coming(self.shard_set.shard_bytes, cache.most_bytes - max(self.shard_set.shard_bytes))
        try:
            for here, task in enumerate(tasks, start=step):
                most = MOST_BATCHES_AHEAD if last is None else min(MOST_BATCHES_AHEAD, last - here)
                new: list[int] = []
                while len(coming) < most:
                    shards = np.unique(self.shard_set.shard[self.rows(here + len(coming), start_sample)]).tolist()
                    if not coming.takes(shards):
                        break
                    new += coming.add(shards)
                cache.fetch_ahead(new)
                yield task
                coming.pass_by()
        finally:
            cache.close()


def open_stream(spec: StreamSpec, workers: int = 0) -> Stream:
    """Open the shard set that a spec names.

    Raises:
        ShardSetError: no readable shard set lies there.
        SpecError: the spec does not fit the set.
    """
    return Stream(spec, open_shard_set(spec.shards, spec.split), workers)


def _reopened(spec: StreamSpec, workers: int, position: int) -> Stream:
    stream = open_stream(spec, workers)
    stream.position = position
    return stream


def plan(spec: StreamSpec, steps: int, start_step: int = 0) -> Iterator[tuple[str, ...]]:
    """Yield the keys that this rank would be given at each step, without opening a shard."""
    stream = open_stream(spec)
    for step in range(start_step, start_step + steps):
        yield stream.shard_set.names(stream.rows(step))


def plan_world(spec: StreamSpec, steps: int, start_step: int = 0) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yield step, rank and keys for all ranks of `spec.world`, without opening a shard."""
    whole = replace(spec, world=1, rank=0)
    part = spec.batch_size // spec.world
    for step, keys in enumerate(plan(whole, steps, start_step), start=start_step):
        for rank in range(spec.world):
            yield step, rank, keys[rank * part : (rank + 1) * part]


def ahead(tasks: Iterator[Callable[[], Item]], workers: int) -> Generator[Item]:
    """Run tasks in order, up to `workers` + 1 of them ahead of the reader; with 0 workers, in the reader's
    own thread.

    A task's error comes out where its result would have. `tasks` is closed at the end, if it is a generator.
    """
    with ExitStack() as ends:
        if isinstance(tasks, Generator):
            ends.callback(tasks.close)
        if workers <= 0:
            for task in tasks:
                yield task()
            return
        pool = ends.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="medvar-stream"))
        running: deque[Future[Item]] = deque()
        ends.callback(lambda: [future.cancel() for future in running])
        for task in tasks:
            running.append(pool.submit(task))
            if len(running) > workers + 1:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _check_cache(spec: StreamSpec, shard_set: ShardSet, pools: int) -> None:
    """Refuse an order that would fetch a remote set's shards over and over."""
    if shard_set.is_local or sum(shard_set.shard_bytes) <= spec.cache_bytes:
        return
    fits = spec.cache_bytes // (2 * pools * max(shard_set.shard_bytes))  # each pool uses two windows where one ends
    if not 0 < spec.window_shards <= fits:
        raise SpecError(
            f"{spec.shards} has {sum(shard_set.shard_bytes) / 1e9:.2f} GB of {spec.split} shards and the "
            f"cache holds {spec.cache_bytes / 1e9:.2f} GB; raise cache_bytes, or mix at most {fits} shards "
            "at a time (window_shards)."
        )
