"""Give each case the strictest terms of all collections that hold its scan, and say what a whole set obliges to.

In: rows of cases.parquet with the terms of their own collections, and which of them show one scan. Out: the same rows with the
strictest terms over each group of copies. A scan that two publishers pass on under two licences may be used as both allow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from medvar_data.records import LICENSE_TERMS
from medvar_data.shard.collections import with_column
from medvar_data.shard.unions import Unions
from medvar_data.shardset.schema import CASE_KEY, case_keys

LOOSEST_FIRST: Mapping[str, tuple[str, ...]] = {
    term: ("no", "unknown", "yes") if term == "share_alike" else ("yes", "unknown", "no") for term in LICENSE_TERMS
}
"""The answers of each term; what nobody knows is stricter than what is allowed, and looser than what is forbidden."""


def strictest(term: str, answers: Iterable[str]) -> str:
    """The strictest of some answers to a term; what is no answer, in a table that was altered, counts as stricter than all.

    >>> strictest("commercial", ["yes", "unknown"]), strictest("share_alike", ["no", "yes"])
    ('unknown', 'yes')
    """
    known = LOOSEST_FIRST[term]
    return max(answers, key=lambda answer: known.index(answer) if answer in known else len(known))


def strictest_terms(cases: pa.Table, copies: Iterable[tuple[int, int]]) -> pa.Table:
    """Give all cases that show one scan the strictest terms of any of them.

    Args:
        cases: rows of cases.parquet.
        copies: pairs of their numbers that show one scan.
    """
    groups = Unions(cases.num_rows, copies)
    leaders = [groups.find(number) for number in range(cases.num_rows)]
    for term in LICENSE_TERMS:
        answers: dict[int, str] = {}
        for leader, answer in zip(leaders, cases[term].to_pylist(), strict=True):
            answers[leader] = strictest(term, [answer, answers.get(leader, answer)])
        cases = with_column(cases, term, [answers[leader] for leader in leaders])
    return cases


def own_terms(cases: pa.Table, collections: pa.Table) -> pa.Table:
    """The cases with the terms of their own collections alone, whatever other collections hold the same scan."""
    rows = collections.select(["collection", *LICENSE_TERMS]).to_pylist()
    said = {row["collection"]: row for row in rows}
    for term in LICENSE_TERMS:
        cases = with_column(cases, term, [said[name][term] for name in cases["collection"].to_pylist()])
    return cases


def joined_cases(cases: pa.Table, edges: pa.Table) -> list[tuple[int, int]]:
    """The pairs of cases, by their numbers, that edges.parquet joins; pairs with a case that is not there are left out."""
    number = {key: place for place, key in enumerate(case_keys(cases))}
    ends = [zip(*(edges[f"{name}_{side}"].to_pylist() for name in CASE_KEY), strict=True) for side in "ab"]
    return [(number[a], number[b]) for a, b in zip(*ends, strict=True) if a in number and b in number]


@dataclass(frozen=True)
class Obligation:
    """What the strictest answer to one term means for a set, and whom it comes from.

    Attributes:
        term: as in `LICENSE_TERMS`.
        answer: the strictest over all cases.
        collections: whose cases have it.
    """

    term: str
    answer: str
    collections: tuple[str, ...]


def obligations(cases: pa.Table) -> Sequence[Obligation]:
    """What a set obliges to: for each term the strictest answer over its cases, and the collections whose cases have it."""
    found = []
    for term in LICENSE_TERMS if cases.num_rows else ():
        pairs = set(zip(cases[term].to_pylist(), cases["collection"].to_pylist(), strict=True))
        answer = strictest(term, (answer for answer, _ in pairs))
        found.append(Obligation(term, answer, tuple(sorted(name for said, name in pairs if said == answer))))
    return found
