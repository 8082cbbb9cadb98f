"""Decide of each image whether it is a copy: how much better its best training slice fits than another patient's.

In: an index and images. Out: for each image its best slice, both scores, and their ratio

    suspicion = (1 - best score) / (1 - best score of any other patient)

which is near 1 for an unseen patient's slice, since many patients fit it about as well, and near 0 for a copy. So every image is
measured by what is usual for images like it: dark, round or frequent anatomy fits many patients well and is not suspected for it.
The threshold is the alpha quantile of held-out patients' slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from medvar_model.evaluation.copies.index import Describer, Index, candidates
from medvar_model.evaluation.copies.match import SIDE, best_scores, spectra, turned_spectra
from medvar_model.evaluation.metrics.features import shrunk

ALPHA = 0.01
AT_A_TIME = 1024
SOFTENING = 0.02  # added to both: two scores that are both almost 1 tell nothing

Images = UInt8[np.ndarray, "n side side"]


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What was found for each image.

    Attributes:
        place: the slice of the index that fits best.
        score: how well, up to 1.
        other: how well the best slice of any other patient does.
        ratio: see the head of the file; small is suspicious.
    """

    place: Int64[np.ndarray, " n"]
    score: Float64[np.ndarray, " n"]
    other: Float64[np.ndarray, " n"]

    @property
    def ratio(self) -> Float64[np.ndarray, " n"]:
        """Near 1 for unseen patients, near 0 for copies."""
        return (1 - self.score + SOFTENING) / (1 - self.other + SOFTENING)

    @staticmethod
    def joined(parts: "Sequence[Suspicion]") -> "Suspicion":
        """Join parts."""
        names = ("place", "score", "other")
        return Suspicion(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def suspect(index: Index, describer: Describer, images: Images) -> Suspicion:
    """Find the best slice of every image; images are taken some at a time, so memory stays bounded."""
    return Suspicion.joined(
        [_suspect(index, describer, images[start : start + AT_A_TIME]) for start in range(0, len(images), AT_A_TIME)]
    )


def _suspect(index: Index, describer: Describer, images: Images) -> Suspicion:
    turned = turned_spectra(shrunk(images, SIDE))
    rows = []
    for query, found in zip(turned, candidates(index, describer, images), strict=True):
        scores = best_scores(query, spectra(np.asarray(index.thumbs[found.place])), found.flip).astype(np.float64)
        best = int(scores.argmax())
        patients = index.patients[found.place]
        others = scores[patients != patients[best]]
        rows.append((int(found.place[best]), float(scores[best]), float(others.max()) if len(others) else 0.0))
    place, score, other = zip(*rows, strict=True)
    return Suspicion(np.array(place, dtype=np.int64), np.array(score), np.array(other))
