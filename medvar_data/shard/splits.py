"""Give each patient one split: by the unsalted group, so that it depends on nothing but the data and the seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from medvar_data.errors import SpecError


@dataclass(frozen=True)
class SplitSpec:
    """Fractions of patients held out; the rest trains."""

    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise SpecError(f"val {self.val} and test {self.test} leave no patients to train on; wanted a sum below 1.")


def assign_splits(groups: Iterable[tuple[str, str]], spec: SplitSpec) -> dict[str, str]:
    """Assign every patient group to train, val or test.

    Within each collection the patients are ordered by a hash of seed and name and the first ones are held out, so a
    collection of ten patients has its one for validation, which a coin toss for each would not promise; at least one
    trains. A group that appears in several collections follows the alphabetically first.

    Args:
        groups: (collection, group) pairs, in any order, repeats allowed.
        spec: fractions and seed.

    >>> assign_splits([("a", "a/1"), ("a", "a/2")], SplitSpec(val=0.5, test=0.0))["a/2"]
    'val'
    """
    home: dict[str, str] = {}
    for collection, group in sorted(set(groups)):
        home.setdefault(group, collection)
    members: dict[str, list[str]] = {}
    for group, collection in home.items():
        members.setdefault(collection, []).append(group)
    return {group: split for names in members.values() for group, split in _hold_out(names, spec).items()}


def _hold_out(groups: list[str], spec: SplitSpec) -> Mapping[str, str]:
    ordered = sorted(groups, key=lambda g: sha256(f"{spec.seed}/{g}".encode()).digest())
    n_test = min(_share(len(ordered), spec.test), len(ordered) - 1)
    n_val = min(_share(len(ordered), spec.val), len(ordered) - 1 - n_test)
    names = ["test"] * n_test + ["val"] * n_val
    names += ["train"] * (len(ordered) - len(names))
    return dict(zip(ordered, names, strict=True))


def _share(n: int, fraction: float) -> int:
    """Round to the nearest; of three patients or more at least one, where any is to be held out."""
    share = round(n * fraction)
    return max(1, share) if fraction > 0 and n >= 3 else share
