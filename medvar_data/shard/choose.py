"""Choose the slices of a set by a condition, and make its case rows fit; whoever is left out whole becomes a reject.

In: a plan's slices, the rows of cases.parquet and collections.parquet. Out: which slices are taken, the rows of what is left.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from medvar_data.errors import Reason, SpecError
from medvar_data.naming import printable
from medvar_data.records import LICENSE_TERMS, Reject
from medvar_data.shard.collections import with_column
from medvar_data.shard.terms import own_terms
from medvar_data.shardset.schema import TERMS
from medvar_data.shardset.select import rows_where

NONE: Mapping[int, str] = MappingProxyType({})
REQUIREMENTS = {
    "commercial": "commercial = 'yes'",
    "derivatives": "derivatives = 'yes'",
    "redistribute": "redistribute = 'yes'",
    "no-share-alike": "share_alike = 'no'",
}
"""What may be required of a scan's terms, the strictest of the collections that hold it; what is unknown does not fulfil it."""


def required(names: Sequence[str], where: str = "") -> str:
    """Make one condition of another and of what the collections' terms must allow.

    Args:
        names: keys of `REQUIREMENTS`.
        where: further condition in SQL, or "".

    Raises:
        SpecError: a name is none of them.

    >>> required(["commercial", "redistribute"], "z > 3 OR z = 1")
    "(z > 3 OR z = 1) AND commercial = 'yes' AND redistribute = 'yes'"
    """
    if unknown := [name for name in names if name not in REQUIREMENTS]:
        raise SpecError(f"--require is {unknown[0]!r}; wanted one of {', '.join(REQUIREMENTS)}.")
    terms = [REQUIREMENTS[name] for name in dict.fromkeys(names)]
    return " AND ".join([f"({where})", *terms]) if where and terms else where or " AND ".join(terms)


def chosen_slices(
    where: str, slices: pa.Table, cases: pa.Table, collections: pa.Table, case_key: Sequence[str]
) -> Bool[np.ndarray, " slices"]:
    """Tell which slices fulfil a condition; all where there is none.

    Args:
        where: a condition in SQL, or "".
        slices: of the plan.
        cases: rows of cases.parquet, with the columns of `case_key`.
        collections: rows of collections.parquet.
        case_key: columns by which a slice finds its case.

    Raises:
        SpecError: it is no condition over these tables.
    """
    if not where:
        return np.ones(slices.num_rows, dtype=np.bool_)
    terms = collections.select(["collection", *TERMS])
    return rows_where(where, slices, {tuple(case_key): cases, ("collection",): terms})


def allowed_alone(
    where: str, slices: pa.Table, cases: pa.Table, collections: pa.Table, case_key: Sequence[str]
) -> Bool[np.ndarray, " slices"]:
    """Tell which slices would fulfil a condition by the terms of their own collection; the arguments are `chosen_slices`'s.

    Those of them that `chosen_slices` does not take show a scan that another collection holds under stricter terms.
    """
    if not any(term in where for term in LICENSE_TERMS):
        return np.zeros(slices.num_rows, dtype=np.bool_)
    return chosen_slices(where, slices, own_terms(cases, collections), collections, case_key)


def left_of_cases(
    cases: pa.Table,
    collections: pa.Table,
    counts: Int[np.ndarray, " cases"],
    where: str,
    alone: Int[np.ndarray, " cases"],
    duplicates: Mapping[int, str] = NONE,
) -> tuple[pa.Table, list[Reject]]:
    """Count the slices that are left of each case.

    Args:
        cases: rows of cases.parquet.
        collections: rows of collections.parquet.
        counts: slices that the set takes of each.
        where: the condition that chose them.
        alone: slices of each that would be taken by the terms of its own collection.
        duplicates: rows of cases that are left out since they show a scan that the set holds, each with a sentence.

    Returns:
        The rows with their counts, and a reject for each case of which no slice is left.
    """
    kept = cases["n_kept"].to_numpy()
    left_out = cases["n_not_selected"].to_numpy() + kept - counts
    cases = with_column(cases, "n_kept", counts.tolist())
    cases = with_column(cases, "n_not_selected", left_out.tolist())
    names = cases.select(["collection", "case"]).to_pylist()
    shown, answers = printable(where, 500), _answers(where, collections)

    def reject(number: int) -> Reject:
        said = answers.get(names[number]["collection"], "")
        reason, detail = Reason.NOT_SELECTED, f"none of its slices fulfils the condition {shown}{said}"
        if number in duplicates:
            reason, detail = Reason.DUPLICATE_SCAN, duplicates[number]
        elif alone[number]:
            reason = Reason.LICENSE_OF_COPY
            detail = f"its own collection's terms fulfil the condition {shown}, those of another one that holds the scan do not"
        return Reject(**names[number], stage="shard", reason=reason, detail=detail)

    return cases, [reject(number) for number in np.flatnonzero(counts == 0).tolist()]


def _answers(where: str, collections: pa.Table) -> dict[str, str]:
    """Half a sentence for each collection: what its licence answers to the terms that a condition names.

    >>> table = pa.table({"collection": ["a"], **{term: ["no"] for term in LICENSE_TERMS}})
    >>> _answers("commercial = 'yes' AND z > 3", table)
    {'a': "; its collection's terms say commercial = 'no'"}
    """
    named = [term for term in LICENSE_TERMS if re.search(rf"\b{term}\b", where)]
    if not named:
        return {}
    return {
        row["collection"]: f"; its collection's terms say {', '.join(f'{term} = {row[term]!r}' for term in named)}"
        for row in collections.select(["collection", *named]).to_pylist()
    }


def left_out_by_condition(rejects: Iterable[Reject]) -> dict[str, int]:
    """Cases of each collection that the condition of a set left out, whether for their own terms or for those of a copy."""
    by_condition = (Reason.NOT_SELECTED, Reason.LICENSE_OF_COPY)
    return dict(sorted(Counter(reject.collection for reject in rejects if reject.reason in by_condition).items()))
