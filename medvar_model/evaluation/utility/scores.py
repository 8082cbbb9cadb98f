"""Score classifiers on held-out patients, with intervals that know both patients and seeds.

In: what trained networks say of the held-out slices, one for each seed. Out: balanced accuracy, area under the ROC curve, recalls.

    recall              share of a class's slices that are named right
    balanced_accuracy   mean of all classes' recalls; 1 / classes is chance
    auroc               chance that a slice of the class scores higher for it than one of another class (ties half), mean over classes
    accuracy            share of all slices that are named right

Intervals are percentiles of a bootstrap (Efron and Tibshirani 1993) that draws patients with replacement, as many of each class as there
are, and seeds alike. Two arms are compared on the same draws, so that a patient who is hard for both does not blur their difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from medvar_model.evaluation.metrics.intervals import FEWEST_GROUPS

MAIN = ("balanced_accuracy", "auroc", "accuracy")
ENDS = (2.5, 97.5)

Chances = Float64[np.ndarray, "n classes"]
Values = Float64[np.ndarray, "seeds draws"]


@dataclass(frozen=True, eq=False)
class Draws:
    """Held-out slices, and how often each counts in every draw of the bootstrap.

    Attributes:
        target: number of each slice's class.
        weights: a row a draw; the first is 1 for all slices, the sample itself.
        seeds: which of the seeds each further draw takes.
        certain: there are patients enough for an interval.
    """

    target: Int64[np.ndarray, " n"]
    weights: Float64[np.ndarray, "draws n"]
    seeds: Int64[np.ndarray, "replicates seeds"]
    certain: bool

    @staticmethod
    def of(target: Int64[np.ndarray, " n"], patients: Sequence[str], seeds: int, replicates: int) -> "Draws":
        """Draw patients among those who have slices of the same classes, so that no draw lacks a class."""
        draw = np.random.default_rng(0)
        names, who = np.unique(np.array(patients), return_inverse=True)
        classes = [tuple(np.unique(target[who == number]).tolist()) for number in range(len(names))]
        counts = np.ones((1 + replicates, len(names)))
        for stratum in sorted(set(classes)):
            mine = [number for number, has in enumerate(classes) if has == stratum]
            counts[1:, mine] = draw.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=replicates)
        certain = len(names) >= FEWEST_GROUPS and replicates > 1
        return Draws(target, counts[:, who], draw.integers(seeds, size=(replicates, seeds)), certain)


def scored(chances: Sequence[Chances], draws: Draws, classes: Sequence[str]) -> dict[str, Values]:
    """Compute every metric of every seed, in every draw.

    Args:
        chances: of each seed, (logarithms of) the probability of each class.
        draws: of the held-out slices.
        classes: their names.

    Returns:
        The metrics of the head of the file, and `recall <class>` of each class.
    """
    recall = np.stack([recalls(rows.argmax(1), draws) for rows in chances])
    area = np.stack([areas(rows, draws) for rows in chances])
    total = draws.weights.sum(1)
    right = np.stack([draws.weights @ (rows.argmax(1) == draws.target) / total for rows in chances])
    means = {"balanced_accuracy": recall.mean(2), "auroc": area.mean(2), "accuracy": right}
    return means | {f"recall {name}": recall[:, :, number] for number, name in enumerate(classes)}


def recalls(named: Int64[np.ndarray, " n"], draws: Draws) -> Float64[np.ndarray, "draws classes"]:
    """Give the recall of every class in every draw."""
    among = draws.target[:, None] == np.unique(draws.target)
    right = among & (named == draws.target)[:, None]
    return (draws.weights @ right) / (draws.weights @ among)


def areas(chances: Chances, draws: Draws) -> Float64[np.ndarray, "draws classes"]:
    """Give the area under the ROC curve of every class against all others in every draw."""
    columns = [weighted_area(chances[:, c], draws.target == c, draws.weights) for c in np.unique(draws.target)]
    return np.stack(columns, axis=1)


def weighted_area(
    score: Float64[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], weights: Float64[np.ndarray, "draws n"]
) -> Float64[np.ndarray, " draws"]:
    """Give the weighted share of pairs in which the positive scores higher than the negative; ties count half."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # of equal scores
    counted, is_positive = weights[:, order], positive[order]
    up = np.add.reduceat(counted * is_positive, starts, axis=1)
    down = np.add.reduceat(counted * ~is_positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(1) / (up.sum(1) * down.sum(1))


def summary(values: Values, draws: Draws) -> dict[str, Any]:
    """Give the mean over seeds, its 95 % interval over patients and seeds, the spread of seeds and each seed's value; JSON-ready.

    The interval is None for fewer than ten patients, the spread (standard deviation) for one seed.
    """
    each = values[:, 0]
    low = high = None
    if draws.certain:
        mean = values[draws.seeds % len(values), np.arange(1, values.shape[1])[:, None]].mean(1)
        low, high = (float(end) for end in np.percentile(mean, ENDS))
    spread = float(each.std(ddof=1)) if len(each) > 1 else None
    return {"value": float(each.mean()), "low": low, "high": high, "spread": spread, "by_seed": each.tolist()}
