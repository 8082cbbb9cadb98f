"""Say how sure a distance between two sets is, when slices come in patients.

In: a metric, rows and the group of each row. Out: a 95 % interval.

Slices of a patient are alike, so drawing slices anew would understate the error several times; and drawing patients with
replacement repeats rows, which raises Frechet distances. So patients are left out instead (delete-d jackknife, Shao and Wu
1989): a fifth of the groups of either set at a time, without replacement. The variance of those values times kept / left out
estimates the metric's.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from medvar_model.evaluation.metrics.proportion import Z_95

Rows = Float64[np.ndarray, "n features"]
OtherRows = Float64[np.ndarray, "m features"]

KEPT = 0.8
FEWEST_GROUPS = 10


def interval(
    metric: Callable[[Rows, OtherRows], float],
    real: tuple[Rows, Sequence[str]],
    fake: tuple[OtherRows, Sequence[str]],
    replicates: int = 20,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Give both ends of the 95 % interval of metric(real, fake); None where either set has fewer than ten groups.

    Args:
        metric: takes rows of both sets.
        real: rows, and the group (patient) of each.
        fake: likewise; a drawn image is a group of its own.
        replicates: how often a fifth is left out; fewer than two give no interval.
        seed: of what is left out.
    """
    groups = [np.unique(np.asarray(part[1]), return_inverse=True)[1] for part in (real, fake)]
    if replicates < 2 or min(int(group.max(initial=-1)) + 1 for group in groups) < FEWEST_GROUPS:
        return None
    draw, values = np.random.default_rng(seed), []
    for _ in range(replicates):
        first, second = (_kept(group, draw) for group in groups)
        values.append(metric(real[0][first], fake[0][second]))
    if not np.isfinite(values).all():
        return None
    value = metric(real[0], fake[0])
    half = Z_95 * float(np.std(values, ddof=1)) * np.sqrt(KEPT / (1 - KEPT))
    return value - half, value + half


def _kept(group: Int64[np.ndarray, " n"], draw: np.random.Generator) -> np.ndarray:
    """Say which rows remain when a fifth of the groups is left out."""
    count = int(group.max()) + 1
    chosen = np.zeros(count, dtype=bool)
    chosen[draw.choice(count, round(KEPT * count), replace=False)] = True
    return chosen[group]
