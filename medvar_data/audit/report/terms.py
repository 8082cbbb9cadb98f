"""What the licences of a set's collections ask for: each one's terms, and the strictest answer to each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvar_data.audit.report.source import Rows
from medvar_data.audit.report.table import Table, table

STRICTER = {
    "commercial": ("no", "unknown", "yes"), "derivatives": ("no", "unknown", "yes"), "share_alike": ("yes", "unknown", "no"),
    "redistribute": ("no", "unknown", "yes"),
}  # fmt: skip
"""Answers to each term of a licence, the strictest first; what is not known binds more than what is allowed."""
SAYS = {
    ("commercial", "no"): "No commercial use",
    ("commercial", "unknown"): "Commercial use is not known to be allowed",
    ("commercial", "yes"): "Commercial use is allowed",
    ("derivatives", "no"): "What is made of it may not be passed on",
    ("derivatives", "unknown"): "It is not known whether what is made of it may be passed on",
    ("derivatives", "yes"): "What is made of it may be passed on",
    ("share_alike", "yes"): "What is made of it must carry the same licence",
    ("share_alike", "unknown"): "It is not known whether what is made of it must carry the same licence",
    ("share_alike", "no"): "What is made of it may carry another licence",
    ("redistribute", "no"): "The scans may not be passed on",
    ("redistribute", "unknown"): "It is not known whether the scans may be passed on",
    ("redistribute", "yes"): "The scans may be passed on",
}


@dataclass(frozen=True)
class Obligation:
    """The strictest answer to one term over all collections, and whose it is."""

    says: str
    answer: str
    binding: bool  # whether it forbids or asks for something, or nobody knows
    collections: tuple[str, ...]


@dataclass(frozen=True)
class Terms:
    """The licences of a set: what holds for all of it together, and a row for each."""

    obligations: tuple[Obligation, ...]
    strictest: tuple[str, ...]  # collections whose licence forbids or asks for most
    licences: Table
    unconfirmed: tuple[str, ...]


def terms_of(collections: Rows) -> Terms:
    """Compare the licences of the collections of which a case was kept; where there is none, of all."""
    kept = tuple(row for row in collections if row["n_kept"]) or collections
    strictness = {row["collection"]: _strictness(row) for row in kept}
    most = max(strictness.values(), default=0)
    return Terms(
        obligations=tuple(_strictest(term, kept) for term in STRICTER) if kept else (),
        strictest=tuple(name for name, n in strictness.items() if n == most),
        licences=_licences(collections),
        unconfirmed=tuple(row["collection"] for row in kept if not row["license_confirmed"]),
    )


def _strictness(row: Mapping[str, Any]) -> int:
    """How much a licence forbids or asks for: two for what it surely does, one for what is unknown."""
    return sum(2 - answers.index(row[term]) for term, answers in STRICTER.items() if row[term] in answers)


def _strictest(term: str, rows: Sequence[Mapping[str, Any]]) -> Obligation:
    answers = STRICTER[term]
    answer = min((row[term] for row in rows if row[term] in answers), key=answers.index, default="unknown")
    names = tuple(row["collection"] for row in rows if row[term] == answer)
    return Obligation(SAYS[term, answer], answer, answer != answers[-1], names)


def _licences(collections: Rows) -> Table:
    columns = (
        ("collection", "name"), ("licence", "link"), ("read at its source", "confirmed"), ("commercial use", "answer"),
        ("derivatives", "answer"), ("share alike", "duty"), ("redistribution", "answer"), ("read", "date"), ("evidence", "text"),
    )  # fmt: skip
    return table(
        "Licences of the collections",
        columns,
        (
            (
                row["collection"], (row["license"], row["license_url"]), "yes" if row["license_confirmed"] else "no",
                *(row[term] for term in STRICTER), row["license_read"],
                _sentences(row["license_evidence"], row["license_conflict"]),
            )
            for row in collections
        ),
    )  # fmt: skip


def _sentences(*texts: str) -> str:
    return " ".join(text if text.endswith(".") else f"{text}." for text in texts if text)
