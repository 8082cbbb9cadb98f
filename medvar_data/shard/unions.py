"""Join numbers into sets: union-find."""

from collections.abc import Iterable


class Unions:
    """Disjoint sets of the numbers below n; the smallest number of a set leads it, in whatever order it was joined.

    >>> sets = Unions(4)
    >>> sets.join(3, 1), sets.join(1, 3), sets.find(3), sets.find(2)
    (True, False, 1, 2)
    """

    def __init__(self, n: int, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._above = list(range(n))
        for a, b in pairs:
            self.join(a, b)

    def find(self, number: int) -> int:
        """The smallest number of the set that holds this one."""
        above = self._above
        while above[number] != number:
            above[number] = above[above[number]]
            number = above[number]
        return number

    def join(self, a: int, b: int) -> bool:
        """Make one set of two; tells whether they were two."""
        low, high = sorted((self.find(a), self.find(b)))
        self._above[high] = low
        return low != high
