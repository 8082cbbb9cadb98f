"""Decide which patients belong together and in which split, and which cases are left out for showing what the set holds.

In: kept cases, their rows of cases.parquet and slices. Out: a split a case, the links between cases, and sentences on who is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from medvar_data.catalog.load import same_scans
from medvar_data.engine.engine import Engine
from medvar_data.shard.duplicates import Link, find_links
from medvar_data.shard.near_duplicates.search import near_pairs
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.rows import KeptCase
from medvar_data.shard.splits import HELD_OUT_MOST, assign_splits, leading_groups
from medvar_data.shard.unions import Unions


@dataclass(frozen=True)
class Grouping:
    """What was decided.

    Attributes:
        splits: of each case.
        links: between cases that show one scan.
        torn: cases that join patients who lie in several splits of the set that is added to, each with a sentence.
    """

    splits: Sequence[str]
    links: Sequence[Link]
    torn: Mapping[int, str]


def group_cases(
    kept: Sequence[KeptCase],
    cases: pa.Table,
    slices: pa.Table,
    spec: ShardSpec,
    known: Mapping[str, str],
    engine: Engine | int = 1,
    memory: Path | None = None,
) -> Grouping:
    """Join the patients whose cases show one scan, and give each set of them one split.

    Args:
        kept: the cases.
        cases: their rows of cases.parquet, whatever their split.
        slices: their slices, as planned.
        spec: of the set.
        known: splits of the patient groups that the set has already; they stay. Who is joined with one follows it.
        engine: who compares voxels.
        memory: the table of scans that were compared before.
    """
    groups = [k.case.group for k in kept]
    pairs = [(k.case.collection, group) for k, group in zip(kept, groups, strict=True)]
    files = [k.path for k in kept]
    links = find_links(
        cases, slices, spec.recipe.side, _named(kept), lambda joined: near_pairs(files, joined, engine, memory)
    )
    joined = [(groups[link.first], groups[link.second]) for link in links]
    leading = leading_groups(pairs, joined)
    there: dict[str, set[str]] = {}  # splits of the set, by leading group
    for group, split in known.items():
        there.setdefault(leading[group], set()).add(split)
    official = [(k.case.group, k.case.official_split) for k in kept]
    splits = assign_splits((pair for pair in pairs if leading[pair[1]] not in there), spec.split, joined, official)
    splits |= {g: min(there[lead], key=HELD_OUT_MOST.index) for g, lead in leading.items() if lead in there}
    splits |= known
    torn = {
        number: f"it joins patients who lie in {' and '.join(sorted(there[leading[group]]))} of the set already, so that in any "
        "split it would show one of them to the other. Write the whole set anew to have it."
        for number, group in enumerate(groups)
        if len(there.get(leading[group], ())) > 1
    }  # fmt: skip
    return Grouping([splits[group] for group in groups], links, torn)


def left_out(
    grouping: Grouping, kept: Sequence[KeptCase], counts: Int[np.ndarray, " cases"], held: Bool[np.ndarray, " cases"],
    *, drop_duplicates: bool,
) -> dict[int, str]:  # fmt: skip
    """Tell which cases are left out and why; none that the set holds already.

    Args:
        grouping: of the cases.
        kept: the cases.
        counts: slices of each that fulfil the condition.
        held: which of them the set holds already.
        drop_duplicates: leave out all exact copies but the first by collection and case, or but those that are held.
    """
    found = {number: why for number, why in grouping.torn.items() if not held[number]}
    if not drop_duplicates:
        return found
    copies = [(link.first, link.second) for link in grouping.links if link.exact]
    sets = Unions(len(kept), copies)
    first: dict[int, int] = {}
    names = {number: f"{kept[number].case.collection}/{kept[number].case.case}" for pair in copies for number in pair}
    for number in sorted(names, key=lambda n: (not held[n], kept[n].case.collection, kept[n].case.case)):
        if counts[number] and number not in found:
            stays = first.setdefault(sets.find(number), number)
            if stays != number and not held[number]:
                found[number] = f"an exact copy of {names[stays]}, which the set holds."
    return found


def _named(kept: Sequence[KeptCase]) -> Iterator[tuple[int, int]]:
    """The pairs of cases that a description says are one scan."""
    numbers = {(k.case.collection, k.case.case): number for number, k in enumerate(kept)}
    specs = {k.case.collection: k.spec for k in kept}
    for name, spec in specs.items():
        cases = [case for collection, case in numbers if collection == name]
        for ours, other, theirs in same_scans(spec, cases):
            if (other, theirs) in numbers:
                yield numbers[name, ours], numbers[other, theirs]
