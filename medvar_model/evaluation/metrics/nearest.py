"""Look for copies: is a drawn image closer to a training slice than an unseen patient's slice would be?

In: images and training slices. Out: for each image its nearest training slice; and a score for a set of them.

A distance alone says nothing, for slices of different patients may be very alike. So it is compared with the
distances of held-out slices, which cannot be copies: by construction a share alpha of those lies below the threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from medvar_model.evaluation.metrics.distances import squared_distances
from medvar_model.evaluation.metrics.features import shrunk
from medvar_model.evaluation.metrics.proportion import Proportion, proportion

SIDE = 32  # pixels a side at which slices are compared: copies survive it, noise does not
ALPHA = 0.01
BLOCK = 4096

Images = UInt8[np.ndarray, "n side side"]


@dataclass(frozen=True, eq=False)
class Nearest:
    """Nearest training slices.

    Attributes:
        index: which training slice, per image.
        distance: root mean square difference of grey at 32 x 32 pixels, [0, 255].
    """

    index: Int64[np.ndarray, " n"]
    distance: Float64[np.ndarray, " n"]


def thumbnails(images: Images) -> UInt8[np.ndarray, "n 32 32"]:
    """Make the small pictures that are compared."""
    return shrunk(images, SIDE)


def nearest(images: UInt8[np.ndarray, "n 32 32"], training: UInt8[np.ndarray, "m 32 32"]) -> Nearest:
    """Find each thumbnail's nearest training thumbnail; the first one wins a tie."""
    search = Search(images)
    for start in range(0, len(training), BLOCK):
        search.see(training[start : start + BLOCK])
    return search.nearest


class Search:
    """A search that is shown the training slices part by part, so that they need not fit into memory.

    Args:
        images: the thumbnails whose nearest training slices are wanted.
    """

    def __init__(self, images: UInt8[np.ndarray, "n 32 32"]) -> None:
        self._rows = images.reshape(len(images), -1).astype(np.float64)
        self._best = np.full(len(images), np.inf)
        self._index = np.zeros(len(images), dtype=np.int64)
        self._seen = 0

    def see(self, training: UInt8[np.ndarray, "m 32 32"]) -> Int64[np.ndarray, " n"]:
        """Compare with further training thumbnails; say which of them is now each image's nearest, -1 where none."""
        apart = squared_distances(self._rows, training.reshape(len(training), -1).astype(np.float64))
        place = apart.argmin(1)
        found = apart[np.arange(len(place)), place]
        closer = found < self._best
        self._best[closer], self._index[closer] = found[closer], self._seen + place[closer]
        self._seen += len(training)
        return np.where(closer, place, -1)

    @property
    def nearest(self) -> Nearest:
        """The nearest of all training slices seen so far."""
        return Nearest(self._index.copy(), np.sqrt(self._best) / SIDE)


@dataclass(frozen=True)
class CopyAudit:
    """Score a set of images for copies.

    Attributes:
        alpha: share of held-out slices that lie below the threshold by construction.
        threshold: that quantile of the held-out distances.
        closer: share of the scored samples below it; about alpha where nothing is copied, 1 where all is.
        sample_median, held_out_median: median distances; a ratio far below 1 is suspicious.
        unscored: samples of conditions without held-out slices.
    """

    alpha: float
    threshold: float
    closer: Proportion
    sample_median: float
    held_out_median: float
    unscored: int


def copy_audit(
    sample_distance: Float64[np.ndarray, " n"],
    sample_condition: Sequence[str],
    held_out_distance: Float64[np.ndarray, " m"],
    held_out_condition: Sequence[str],
    alpha: float = ALPHA,
) -> CopyAudit:
    """Compare samples' distances with held-out slices' distances.

    The held-out slices are weighted so that each condition counts as much as among the samples: dark or uniform
    anatomy has small distances, and more of it in one of the two sets would otherwise look like copying.
    """
    drawn, kept = np.asarray(sample_condition), np.asarray(held_out_condition)
    known = np.isin(drawn, kept)
    weights = np.zeros(len(kept))
    for name in np.unique(drawn[known]):
        weights[kept == name] = (drawn == name).sum() / (kept == name).sum()
    scored = sample_distance[known]
    if not len(scored):
        return CopyAudit(alpha, np.nan, proportion(0, 0), np.nan, np.nan, len(drawn))
    threshold = weighted_quantile(held_out_distance, weights, alpha)
    return CopyAudit(
        alpha,
        threshold,
        proportion(int((scored < threshold).sum()), len(scored)),
        float(np.median(scored)),
        weighted_quantile(held_out_distance, weights, 0.5),
        int((~known).sum()),
    )


def weighted_quantile(values: Float64[np.ndarray, " n"], weights: Float64[np.ndarray, " n"], q: float) -> float:
    """Give the smallest value at which the weights of it and all smaller ones reach the share q of all weights."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    place = np.searchsorted(reached, q * reached[-1] * (1 - 1e-12))
    return float(values[order][min(place, len(values) - 1)])
