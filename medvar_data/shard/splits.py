"""Give each patient one split: by the unsalted group, so that it depends on nothing but the data and the seed.

Patients whose scans are the same (`shard.duplicates`) count as one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from medvar_data.errors import SpecError
from medvar_data.shard.unions import Unions

OFFICIAL = {"train": "train", "validation": "val", "test": "test"}  # our split for the publisher's
HELD_OUT_MOST = ("test", "val", "train")


@dataclass(frozen=True)
class SplitSpec:
    """Fractions of patients held out; the rest trains. With `respect_official` the publisher's own split goes before."""

    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    respect_official: bool = False

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise SpecError(f"val {self.val} and test {self.test} leave no patients to train on; wanted a sum below 1.")


def leading_groups(groups: Iterable[tuple[str, str]], joined: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """Find the group that stands for each patient group: itself, or the first of those that it is joined with.

    Args:
        groups: (collection, group) pairs, in any order, repeats allowed.
        joined: pairs of groups that show one scan; of those with a group that is not among `groups` nothing is known.

    Returns:
        The leading group of each; first is who comes first by collection, then by name.

    >>> leading_groups([("a", "a/1"), ("b", "b/1"), ("b", "b/2")], [("b/1", "a/1")])
    {'a/1': 'a/1', 'b/1': 'a/1', 'b/2': 'b/2'}
    """
    home = _homes(groups)
    names = list(home)
    number = {name: place for place, name in enumerate(names)}
    sets = Unions(len(names), ((number[a], number[b]) for a, b in joined if a in number and b in number))
    return {name: names[sets.find(place)] for place, name in enumerate(names)}


def assign_splits(
    groups: Iterable[tuple[str, str]],
    spec: SplitSpec,
    joined: Iterable[tuple[str, str]] = (),
    official: Iterable[tuple[str, str]] = (),
) -> dict[str, str]:
    """Assign every patient group to train, val or test.

    Within each collection the patients are ordered by a hash of seed and name and the first ones are held out, so a
    collection of ten patients has its one for validation, which a coin toss for each would not promise; at least one
    trains. A group that appears in several collections follows the alphabetically first; joined groups count as one, the first.

    Args:
        groups: (collection, group) pairs, in any order, repeats allowed.
        spec: fractions and seed.
        joined: pairs of groups that show one scan.
        official: (group, published split) pairs; of several for one patient the one that is held out most holds.

    >>> assign_splits([("a", "a/1"), ("a", "a/2")], SplitSpec(val=0.5, test=0.0))["a/2"]
    'val'
    """
    groups = set(groups)
    leading, home = leading_groups(groups, joined), _homes(groups)
    members: dict[str, list[str]] = {}
    for group in sorted(set(leading.values())):
        members.setdefault(home[group], []).append(group)
    splits = {group: split for names in members.values() for group, split in _hold_out(names, spec).items()}
    if spec.respect_official:
        splits |= _published(leading, official)
    return {group: splits[leader] for group, leader in leading.items()}


def _homes(groups: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The first collection of each group; groups in the order of these pairs."""
    home: dict[str, str] = {}
    for collection, group in sorted(set(groups)):
        home.setdefault(group, collection)
    return home


def _published(leading: Mapping[str, str], official: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The split of each leading group of which a publisher says one: of several the one that is held out most."""
    said: dict[str, set[str]] = {}
    for group, name in official:
        if group in leading and name in OFFICIAL:
            said.setdefault(leading[group], set()).add(OFFICIAL[name])
    return {leader: min(splits, key=HELD_OUT_MOST.index) for leader, splits in said.items()}


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
