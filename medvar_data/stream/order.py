"""Say which row stands at each position of the endless training sequence.

In: row numbers, a seed, maybe a schedule of pools. Out: for any range of positions, the rows that stand
there. Everything here is arithmetic on the position, so a run resumes by naming a number, and neither the
count of ranks nor of workers can change what comes next.
"""

import threading
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from medvar_data.stream.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows that are walked through in one epoch permutation after the other.

    Args:
        rows: row numbers of the index.
        salt: what sets this pool's permutations apart from another pool's under the same seed; the global id
            of its condition in a mixture, nothing for the pool that holds every row.
        shards: for a windowed order, the shard of each row; None permutes the rows freely.
        window: how many shards are mixed at a time in a windowed order.
    """

    rows: Int64[np.ndarray, " rows"]
    salt: tuple[int, ...] = ()
    shards: Int64[np.ndarray, " rows"] | None = None
    window: int = 0

    def permutation(self, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
        """Return this pool's rows in the order of one epoch."""
        rng = np.random.default_rng((seed, epoch, *self.salt))
        if self.shards is None or self.window <= 0:
            return self.rows[rng.permutation(len(self.rows))]
        names, shard_of_row = np.unique(self.shards, return_inverse=True)
        place = np.empty(len(names), dtype=np.int64)
        place[rng.permutation(len(names))] = np.arange(len(names))
        return self.rows[np.lexsort((rng.permutation(len(self.rows)), place[shard_of_row] // self.window))]


@dataclass(eq=False)
class Order:
    """The endless sequence: pools, the schedule between them, and the permutations made so far.

    Not frozen only because the permutations in use (two a pool) are kept between calls; what `rows` returns
    depends on the arguments alone. Threads may share one.
    """

    seed: int
    pools: tuple[Pool, ...]
    schedule: Schedule | None = None
    _permutations: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def rows(self, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """Return the rows at positions [start, stop) of the endless sequence."""
        with self._lock:
            if self.schedule is None:
                return self._walk(0, np.arange(start, stop, dtype=np.int64))
            pool, turn = self.schedule.draws(start, stop)
            rows = np.empty(len(pool), dtype=np.int64)
            for number in np.unique(pool):
                rows[pool == number] = self._walk(int(number), turn[pool == number])
            return rows

    def _walk(self, pool: int, turns: Int64[np.ndarray, " turns"]) -> Int64[np.ndarray, " turns"]:
        epochs, places = np.divmod(turns, len(self.pools[pool].rows))
        rows = np.empty(len(turns), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._permutation(pool, int(epoch))[places[here]]
        return rows

    def _permutation(self, pool: int, epoch: int) -> np.ndarray:
        kept = self._permutations
        if (pool, epoch) not in kept:
            for old in [key for key in kept if key[0] == pool and key[1] not in (epoch - 1, epoch + 1)]:
                del kept[old]
            kept[pool, epoch] = self.pools[pool].permutation(self.seed, epoch)
        return kept[pool, epoch]
