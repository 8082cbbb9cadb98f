"""Ask which condition an image shows: a small classifier that has seen held-out real slices only.

In: features and condition names. Out: what it calls each image, and how often it is right on real slices it was not
fitted on, which bounds what can be asked of drawn ones.

It looks at 16 x 16 pixels: enough to tell anatomies apart, and coarse enough that an image is not called something else
only because a tokenizer made it a little smooth. Multinomial logistic regression on standardised pixels, every condition of equal weight, with a ridge penalty;
fitted by L-BFGS, so the same input gives the same answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from medvar_model.evaluation.metrics.features import shrunk

RIDGE = 1e-3  # on the mean loss
FOLDS = 5
SIDE = 16


@dataclass(frozen=True, eq=False)
class Classifier:
    """A fitted classifier.

    Attributes:
        names: the conditions it can tell apart, sorted.
        shift, scale: of the standardisation.
        weights: one column a condition; the last row is the bias.
    """

    names: tuple[str, ...]
    shift: Float64[np.ndarray, " features"]
    scale: Float64[np.ndarray, " features"]
    weights: Float64[np.ndarray, "rows names"]

    def chances(self, rows: Float64[np.ndarray, "n features"]) -> Float64[np.ndarray, "n names"]:
        """Give the probability of each condition."""
        return np.asarray(torch.from_numpy(self._extended(rows) @ self.weights).softmax(1).numpy())

    def names_of(self, rows: Float64[np.ndarray, "n features"]) -> list[str]:
        """Name the likeliest condition of each row."""
        return [self.names[i] for i in self.chances(rows).argmax(1)]

    def _extended(self, rows: np.ndarray) -> np.ndarray:
        return np.hstack([(rows - self.shift) / self.scale, np.ones((len(rows), 1))])


def condition_features(images: UInt8[np.ndarray, "n side side"]) -> Float64[np.ndarray, "n 256"]:
    """Describe images for the classifier: the picture at 16 x 16 pixels, grey in [0, 1]."""
    return shrunk(images, SIDE).reshape(len(images), -1) / 255.0


def fit_classifier(rows: Float64[np.ndarray, "n features"], conditions: Sequence[str]) -> Classifier:
    """Fit to rows and their conditions; one condition alone is allowed and always named."""
    names = tuple(sorted(set(conditions)))
    target = np.array([names.index(name) for name in conditions], dtype=np.int64)
    shift, scale = rows.mean(0), rows.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    blank = Classifier(names, shift, scale, np.zeros((rows.shape[1] + 1, len(names))))
    share = 1 / (np.bincount(target, minlength=len(names)) * len(names))
    weights = _minimised(torch.from_numpy(blank._extended(rows)), torch.from_numpy(target), torch.from_numpy(share))
    return Classifier(names, shift, scale, weights)


def cross_validated(
    rows: Float64[np.ndarray, "n features"], conditions: Sequence[str], groups: Sequence[str]
) -> list[str]:
    """Name every row by a classifier fitted without its group (five folds of whole groups).

    Args:
        rows: features.
        conditions: the truth.
        groups: what must not be torn apart, such as the scan a slice is from.
    """
    fold = _folds(groups, conditions)
    named = np.array([""] * len(rows), dtype=object)
    for number in np.unique(fold):
        out = fold == number
        if not (~out).any():
            return ["" for _ in named]  # a single group: nothing to fit on
        fitted = fit_classifier(rows[~out], [name for name, left in zip(conditions, out, strict=True) if not left])
        named[out] = fitted.names_of(rows[out])
    return [str(name) for name in named]


def confusion(
    truth: Sequence[str], named: Sequence[str], conditions: Sequence[str]
) -> Int64[np.ndarray, "conditions conditions"]:
    """Count what each condition's images were called: a row a true condition, a column a name."""
    place = {name: i for i, name in enumerate(conditions)}
    table = np.zeros((len(conditions), len(conditions)), dtype=np.int64)
    for true, called in zip(truth, named, strict=True):
        table[place[true], place[called]] += 1
    return table


def _minimised(x: Tensor, target: Tensor, share: Tensor) -> np.ndarray:
    weights = torch.zeros(x.shape[1], len(share), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> Tensor:
        search.zero_grad()
        each = F.cross_entropy(x @ weights, target, reduction="none")
        loss = (each * share[target]).sum() + RIDGE * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    return weights.detach().numpy()


def _folds(groups: Sequence[str], conditions: Sequence[str]) -> np.ndarray:
    """Deal groups to folds in turn, condition by condition, so that each fold sees each condition if it can."""
    first = dict(zip(reversed(groups), reversed(conditions), strict=True))
    ordered = sorted(first, key=lambda group: (first[group], group))
    number = {group: place % FOLDS for place, group in enumerate(ordered)}
    return np.array([number[group] for group in groups])
