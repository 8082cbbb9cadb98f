"""Weigh a Frechet distance by the time an image takes: MedVAR's efficiency score.

In: a distance and seconds. Out: a number, the lower the better.
"""

import math

GAMMA = 0.1


def efficiency(distance: float, seconds: float, gamma: float = GAMMA) -> float:
    """Give distance * log10(1 + seconds)^gamma.

    MedVAR (arXiv 2602.14512), equation 4. The paper states neither the logarithm's base nor the unit; base 10 and seconds an image
    give every row of its Table 1.

    Args:
        distance: FID there.
        seconds: wall time of one image; say at which batch size.
        gamma: weight of the time.

    Example:
        >>> round(efficiency(16.59, 0.09), 2)
        11.94
    """
    return distance * math.log10(1 + seconds) ** gamma
