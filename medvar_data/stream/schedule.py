"""Say which pool each position of a mixture draws from, for any weights, never off by a whole sample.

In: weights. Out: for any range of positions, the pool of each and how often it was drawn from before. With pools of share w_i, the
j-th draw from pool i is released when the pool would otherwise fall a whole sample ahead, after floor((j - 1) / w_i) positions, and
is due at position ceil(j / w_i), when it would fall a whole sample behind. The released draw that is due first is made; since the
shares add up to one, no due position is ever missed (Steiner and Yeomans, Management Science 39, 1993).

A schedule is a sequence: each block is made from how often each pool was drawn before it. Those counts are kept, so that going on
costs nothing; a position far ahead of all that is known is reached at a million positions a second.
"""

import heapq
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from medvar_data.errors import SpecError

BLOCK = 65_536  # positions made at a time
KEPT_BLOCKS = 4
SHORTEST = 1024
LEAST_SHARE = 1e-12


@dataclass(frozen=True, eq=False)
class Block:
    """The positions from `start` on: pool of each, and earlier draws from the same pool."""

    start: int
    pool: Int64[np.ndarray, " positions"]
    earlier: Int64[np.ndarray, " positions"]


class Schedule:
    """An endless sequence of pools.

    Args:
        weights: positive, any scale; decimal numbers are read as they print.

    Raises:
        SpecError: a weight is not a positive number, or is below 1e-12 of all.

    >>> Schedule([0.5, 0.25, 0.25]).counts(8)
    (4, 2, 2)
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or any(not 0 < weight < float("inf") for weight in weights):
            raise SpecError(
                f"mixture weights are {list(weights)}; wanted positive numbers, so leave out what is to be skipped."
            )
        exact = [Fraction(str(weight)) for weight in weights]
        if min(exact) < LEAST_SHARE * sum(exact):
            raise SpecError(
                f"mixture weights {list(weights)} differ by more than {1 / LEAST_SHARE:.0e}; leave out the smallest."
            )
        scale = sum(exact)
        whole = int(np.lcm.reduce(np.array([(weight / scale).denominator for weight in exact], dtype=object)))
        whole *= -(-SHORTEST // whole)  # a short period is made several times at once
        self._shares = [int(weight / scale * whole) for weight in exact]  # of `_whole`, in integers
        self._whole = whole
        assert sum(self._shares) == whole
        self._starts: list[int] = [0]  # positions where the counts are known
        self._counts: dict[int, tuple[int, ...]] = {0: (0,) * len(weights)}
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def draws(self, start: int, stop: int) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        """Return, for positions [start, stop), the pool of each and how often that pool was drawn from before."""
        pools, earlier = [], []
        while start < stop:
            block, turn = self._block(start)
            first = start - turn * self._whole - block.start
            taken = slice(first, min(first + stop - start, len(block.pool)))
            pools.append(block.pool[taken])
            earlier.append(block.earlier[taken])
            if turn:  # shares are small where there is more than one period
                earlier[-1] = earlier[-1] + turn * np.array(self._shares, dtype=np.int64)[pools[-1]]
            start += len(pools[-1])
        if not pools:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return np.concatenate(pools), np.concatenate(earlier)

    def counts(self, position: int) -> tuple[int, ...]:
        """How often each pool is drawn from before a position."""
        if position == 0:
            return self._counts[0]
        block, turn = self._block(position - 1)
        n = position - turn * self._whole - block.start
        before, drawn = self._counts[block.start], np.bincount(block.pool[:n], minlength=len(self._shares))
        return tuple(b + int(d) + turn * share for b, d, share in zip(before, drawn, self._shares, strict=True))

    def know(self, position: int, counts: Sequence[int]) -> None:
        """Go on from counts that `counts` gave for a position, without making all before.

        Raises:
            SpecError: they are not counts of this mixture.
        """
        turn, position = divmod(position, self._whole)
        own = tuple(count - turn * share for count, share in zip(counts, self._shares, strict=False))
        shares = zip(own, self._shares, strict=False)
        if len(counts) != len(self._shares) or sum(own) != position or any(
            abs(count * self._whole - position * share) >= self._whole for count, share in shares
        ):  # fmt: skip
            raise SpecError(
                f"the state says that the pools were drawn from {list(counts)} times; that is no state of this mixture."
            )
        self._remember(position, own)

    def _remember(self, position: int, counts: tuple[int, ...]) -> None:
        if position not in self._counts:
            self._starts.insert(bisect_right(self._starts, position), position)
            self._counts[position] = counts

    def _block(self, position: int) -> tuple[Block, int]:
        """The block that holds a position, and the whole periods before it."""
        turn, position = divmod(position, self._whole)
        while True:
            start = self._starts[bisect_right(self._starts, position) - 1]
            block = self._blocks.get(start) or self._made(start)
            self._blocks[start] = block
            self._blocks.move_to_end(start)
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
            if position < start + len(block.pool):
                return block, turn

    def _made(self, start: int) -> Block:
        """Make the block at a position whose counts are known, and remember the counts at its end."""
        drawn, stop = list(self._counts[start]), min(start + BLOCK, self._whole)
        pool, earlier = self._serve(drawn, start, stop)
        if stop < self._whole:
            self._remember(stop, tuple(drawn))
        return Block(start, np.array(pool, dtype=np.int64), np.array(earlier, dtype=np.int64))

    def _serve(self, drawn: list[int], start: int, stop: int) -> tuple[list[int], list[int]]:
        """Make positions [start, stop), of the released draws always the one due first; `drawn` is counted on."""
        whole, shares = self._whole, self._shares
        ready: list[tuple[int, int]] = []  # due position, pool
        waiting: list[tuple[int, int, int]] = []  # positions before its release, pool, due position
        for pool, share in enumerate(shares):
            n = drawn[pool]
            heapq.heappush(waiting, (n * whole // share, pool, -(-(n + 1) * whole // share)))
        pools, earlier = [], []
        for position in range(start, stop):
            while waiting and waiting[0][0] <= position:
                _, pool, due = heapq.heappop(waiting)
                heapq.heappush(ready, (due, pool))
            _, pool = heapq.heappop(ready)
            n = drawn[pool]
            pools.append(pool)
            earlier.append(n)
            drawn[pool] = n = n + 1
            share = shares[pool]
            heapq.heappush(waiting, (n * whole // share, pool, -(-(n + 1) * whole // share)))
        return pools, earlier
