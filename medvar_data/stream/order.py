"""Say which row stands at each position of the endless training sequence.

In: row numbers, a seed, maybe weights per condition. Out: for any range of positions, the rows that stand
there. Everything here is arithmetic on the position, so a run resumes by naming a number, and neither the
count of ranks nor of workers can change what comes next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from medvar_data.errors import SpecError

LONGEST_PERIOD = 100_000  # samples after which a pattern repeats; its table takes a second to make


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


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which pool each position draws from: a pattern that repeats after `len(pool)` positions.

    Args:
        pool: pool number of each position of one period.
        earlier: how many earlier positions of the period draw from the same pool.
        counts: how often each pool is drawn from in a period.
    """

    pool: Int64[np.ndarray, " period"]
    earlier: Int64[np.ndarray, " period"]
    counts: Int64[np.ndarray, " pools"]


def mixture_schedule(weights: Sequence[float]) -> Schedule:
    """Spread the pools over one period so that no prefix is off by a whole sample.

    After any N samples, pool i has been drawn from |count - N·w_i| < 1 times: Tijdeman's answer to the
    chairman assignment problem (Discrete Mathematics 32, 1980). At each position the pools that may be served
    without running ahead are compared, and the one with the nearest deadline is served.

    Args:
        weights: positive, any scale; read as the decimal numbers they print as.

    Raises:
        SpecError: a weight is not positive, or the pattern's period is above `LONGEST_PERIOD`.
    """
    if any(not 0 < weight < float("inf") for weight in weights):
        raise SpecError(
            f"mixture weights are {list(weights)}; wanted positive numbers, so leave out a condition to skip it."
        )
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = int(np.lcm.reduce(np.array([share.denominator for share in shares], dtype=object)))
    if period > LONGEST_PERIOD:
        raise SpecError(
            f"mixture weights {list(weights)} repeat only after {period} samples; wanted at most "
            f"{LONGEST_PERIOD}, so round them to fewer digits."
        )
    counts = np.array([int(share * period) for share in shares], dtype=np.int64)
    pool, earlier = _chairman(counts, period)
    return Schedule(pool, earlier, counts)


def _chairman(counts: Int64[np.ndarray, " pools"], period: int) -> tuple[np.ndarray, np.ndarray]:
    """Walk one period; in integers, multiplied through by period and 2·pools - 2."""
    pools = len(counts)
    pool, earlier = np.zeros(period, dtype=np.int64), np.arange(period, dtype=np.int64)
    if pools == 1:
        return pool, earlier
    slack = 2 * pools - 2
    drawn = np.zeros(pools, dtype=np.int64)
    for position in range(period):
        # Served next, pool i would stand at drawn + 1 after position + 1 samples, against its due w·(position
        # + 1).
        may = slack * (counts * (position + 1) - drawn * period) >= period
        deadline = -((-(slack * (drawn + 1) - 1) * period) // (slack * counts))
        chosen = int(np.argmin(np.where(may, deadline, np.iinfo(np.int64).max)))
        pool[position], earlier[position] = chosen, drawn[chosen]
        drawn[chosen] += 1
    return pool, earlier


@dataclass(eq=False)
class Order:
    """The endless sequence: pools, the schedule between them, and the permutations made so far.

    Not frozen only because the permutations in use (two a pool) are kept between calls; what `rows` returns
    depends on the arguments alone.
    """

    seed: int
    pools: tuple[Pool, ...]
    schedule: Schedule | None = None
    _permutations: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def rows(self, start: int, stop: int) -> Int64[np.ndarray, " positions"]:
        """Return the rows at positions [start, stop) of the endless sequence."""
        positions = np.arange(start, stop, dtype=np.int64)
        if self.schedule is None:
            return self._walk(0, positions)
        rounds, phase = np.divmod(positions, len(self.schedule.pool))
        pool = self.schedule.pool[phase]
        turn = rounds * self.schedule.counts[pool] + self.schedule.earlier[phase]
        rows = np.empty(len(positions), dtype=np.int64)
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
