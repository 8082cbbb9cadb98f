"""Make the training sets that are compared, and the task that they are trained for.

In: real slices with conditions and patients, synthetic images with conditions. Out: arms, and the images of each for a seed.

    real        a share of the training patients
    synthetic   images that a model drew
    both        the synthetic images beside the real ones, half of each batch
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from medvar_model.errors import ShardSetMismatch
from medvar_model.evaluation.scores import Labelled
from medvar_model.evaluation.utility.classifier import Part

REAL, SYNTHETIC, BOTH = "real", "synthetic", "both"


@dataclass(frozen=True)
class Arm:
    """A training set that is compared.

    Attributes:
        name: real, synthetic or both.
        share: of the training patients, (0, 1]; 0 where no real slice is used.
    """

    name: str
    share: float

    @property
    def said(self) -> str:
        """The arm in words."""
        return self.name if self.name == SYNTHETIC else f"{self.name}, {100 * self.share:g} % of patients"


@dataclass(frozen=True, eq=False)
class Slices:
    """Images, each with the number of its class.

    Attributes:
        part: images and classes.
        keys: of the slices, or numbers of synthetic images.
        patients: of each; a synthetic image is a patient of its own.
    """

    part: Part
    keys: tuple[str, ...]
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.patients)


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be named.

    Attributes:
        classes: their names, sorted.
        left_out: name → what it lacks, for those that cannot be trained and tested in every arm.
        of: condition → class.
    """

    classes: tuple[str, ...]
    left_out: Mapping[str, str]
    of: Mapping[str, str]

    def slices(self, labelled: Labelled, keys: Sequence[str], patient: Mapping[str, str] | None = None) -> Slices:
        """Keep the images of the task's classes.

        Args:
            labelled: images.
            keys: of each.
            patient: key → patient; None makes each image a patient of its own.
        """
        number = {name: place for place, name in enumerate(self.classes)}
        kept = [i for i, name in enumerate(labelled.conditions) if self.of[name] in number]
        target = np.array([number[self.of[labelled.conditions[i]]] for i in kept], dtype=np.int64)
        mine = tuple(keys[i] for i in kept)
        whose = mine if patient is None else tuple(patient[key] for key in mine)
        return Slices(Part(labelled.part(kept).images, target), mine, whose)


def arms(shares: Sequence[float]) -> list[Arm]:
    """List what is compared: real and both at every share, the smallest first, and synthetic."""
    rising = sorted(set(shares))
    return [*(Arm(REAL, s) for s in rising), Arm(SYNTHETIC, 0.0), *(Arm(BOTH, s) for s in rising)]


def task_of(of: Mapping[str, str], sets: Mapping[str, Sequence[str]]) -> Task:
    """Find the classes that every set has images of.

    Args:
        of: condition → class.
        sets: name of a set, such as "synthetic images" → condition of each of its images.

    Raises:
        ShardSetMismatch: there are fewer than two.
    """
    found = {name: {of[condition] for condition in conditions} for name, conditions in sets.items()}
    every = sorted(set().union(*found.values()))
    lacks = {name: [kind for kind, has in found.items() if name not in has] for name in every}
    classes = tuple(name for name in every if not lacks[name])
    if len(classes) < 2:
        has = "; ".join(f"{kind}: {', '.join(sorted(names)) or 'none'}" for kind, names in found.items())
        raise ShardSetMismatch(
            f"Found {len(classes)} conditions that can be both trained and tested ({has}); wanted two at least, to be told apart. Add "
            "what one of them lacks, or shard more collections, or larger held-out shares."
        )
    return Task(classes, {name: f"no {' and no '.join(kinds)}" for name, kinds in lacks.items() if kinds}, of)


def check_apart(train: Sequence[str], held: Sequence[str]) -> None:
    """Refuse patients that are trained on and tested on.

    Raises:
        ShardSetMismatch: there are some.
    """
    both = set(train) & set(held)
    if both:
        raise ShardSetMismatch(
            f"{len(both)} patients have slices both in train and in a held-out split; wanted each in one split alone. `medvar-data verify` "
            "names them; shard the set again."
        )


def chosen(real: Slices, share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Choose a share of the patients of every class, one at least; say which slices are theirs.

    Patients have one order a seed, so a larger share has all patients of a smaller one.
    """
    names, who = np.unique(np.array(real.patients), return_inverse=True)
    rank = np.random.default_rng((seed, 2)).permutation(len(names))
    kept = np.zeros(len(names), dtype=bool)
    for number in np.unique(real.part.target):
        mine = np.unique(who[real.part.target == number])
        most = max(1, math.ceil(share * len(mine) - 1e-9))
        kept[mine[np.argsort(rank[mine])[:most]]] = True
    return kept[who]


def parts_of(arm: Arm, real: Slices, synthetic: Slices, seed: int) -> tuple[list[Part], int]:
    """Give an arm's training images, and how many patients the real ones are of."""
    if arm.name == SYNTHETIC:
        return [synthetic.part], 0
    mine: Int64[np.ndarray, " n"] = np.flatnonzero(chosen(real, arm.share, seed))
    part = Part(real.part.images[mine], real.part.target[mine])
    patients = len({real.patients[i] for i in mine})
    return [part] if arm.name == REAL else [part, synthetic.part], patients
