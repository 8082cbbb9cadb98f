"""Which scans the collections share, as declared and as found, and whether the splits are apart: computed from the tables."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from medvar_data.audit.report.source import Rows, Subject
from medvar_data.audit.report.table import Table, table
from medvar_data.shardset.schema import SPLITS


@dataclass(frozen=True)
class Cell:
    """What two collections share: cases that were found to be one scan, and what a description says."""

    found: int
    declared: str  # how many, or that it is not known how many; empty where nothing is declared
    certainty: str


@dataclass(frozen=True)
class Overlaps:
    """Scans in several places."""

    names: tuple[str, ...]
    matrix: tuple[tuple[Cell, ...], ...]
    pairs: Table  # found
    elsewhere: Table  # declared with collections that are not here


@dataclass(frozen=True)
class Apart:
    """Whether splits are apart, as counted."""

    n_patients: int
    n_edges: int
    patients_in_two: int
    edges_across: int

    @property
    def holds(self) -> bool:
        """Whether no patient and no pair lies in two splits."""
        return not (self.patients_in_two or self.edges_across)


def overlaps_of(subject: Subject) -> Overlaps:
    """Compare collections pair by pair."""
    names = tuple(row["collection"] for row in subject.collections)
    found = Counter(_pair(edge["collection_a"], edge["collection_b"]) for edge in subject.edges)
    declared: dict[tuple[str, str], tuple[str, str]] = {}
    elsewhere = []
    for row in subject.collections:
        for overlap in row["overlaps"]:
            says = f"{overlap['n_cases']:,}" if overlap["n_cases"] else "some"
            if overlap["collection"] in names:
                declared.setdefault(_pair(row["collection"], overlap["collection"]), (says, overlap["certainty"]))
            else:
                other = overlap["collection"] or overlap["title"]
                elsewhere.append((row["collection"], other, overlap["n_cases"] or None, overlap["certainty"]))
    return Overlaps(
        names=names,
        matrix=tuple(
            tuple(Cell(found[_pair(a, b)], *declared.get(_pair(a, b), ("", ""))) for b in names) for a in names
        ),
        pairs=_pairs(subject.edges),
        elsewhere=table(
            "Overlaps that descriptions declare with collections that are not here",
            (("collection", "name"), ("shares scans with", "text"), ("scans", "count"), ("how it is known", "text")),
            elsewhere,
        ),
    )


def apart(cases: pa.Table, edges: Rows) -> Apart:
    """Count the patients and the pairs of one scan that lie in two splits."""
    splits: dict[str, set[str]] = {}
    for patient, split in zip(cases["patient"].to_pylist(), cases["split"].to_pylist(), strict=True):
        splits.setdefault(patient, set()).add(split)
    return Apart(
        n_patients=len(splits),
        n_edges=len(edges),
        patients_in_two=sum(len(found) > 1 for found in splits.values()),
        edges_across=sum(edge["split_a"] != edge["split_b"] for edge in edges),
    )


def split_table(subject: Subject) -> Table:
    """Sizes of the splits."""
    columns = (
        ("split", "text"), ("patients", "count"), ("cases", "count"), ("slices", "count"), ("share of slices", "share"),
        ("shards", "count"), ("bytes", "bytes"),
    )  # fmt: skip
    every = max(1, sum(split["slices"] for split in subject.splits.values()))
    rows = (
        (name, split["patients"], split["cases"], split["slices"], split["slices"] / every, split["shards"], split["bytes"])
        for name, split in ((name, subject.splits[name]) for name in SPLITS if name in subject.splits)
    )  # fmt: skip
    return table("Splits", columns, rows)


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)


def _pairs(edges: Rows) -> Table:
    columns = (
        ("case", "name"), ("shows the same scan as", "name"), ("split", "text"), ("evidence", "text"), ("exact copy", "answer"),
        ("shared slices", "count"),
    )  # fmt: skip
    rows = (
        (
            f"{edge['collection_a']}/{edge['case_a']}", f"{edge['collection_b']}/{edge['case_b']}",
            " / ".join(dict.fromkeys((edge["split_a"], edge["split_b"]))), edge["evidence"].replace("_", " "),
            "yes" if edge["exact"] else "no", edge["shared_slices"] or None,
        )
        for edge in edges
    )  # fmt: skip
    return table("Cases found to show one scan", columns, rows)
