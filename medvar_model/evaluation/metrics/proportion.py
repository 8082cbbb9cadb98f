"""Say how sure a counted share is.

In: how many of how many. Out: the share with Wilson's interval (1927), which is right for small counts, too.
"""

import math
from dataclasses import dataclass

Z_95 = 1.959964


@dataclass(frozen=True)
class Proportion:
    """A share and its 95 % interval, for independent draws.

    Attributes:
        hits, n: so many of so many.
        share: hits / n, [0, 1]; NaN for n = 0.
        low, high: ends of the interval, [0, 1].
    """

    hits: int
    n: int
    share: float
    low: float
    high: float


def proportion(hits: int, n: int) -> Proportion:
    """Count.

    Example:
        >>> round(proportion(0, 200).high, 3)
        0.019
    """
    if n == 0:
        return Proportion(0, 0, math.nan, 0.0, 1.0)
    share, z2 = hits / n, Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Proportion(hits, n, share, max(0.0, middle - half), min(1.0, middle + half))
