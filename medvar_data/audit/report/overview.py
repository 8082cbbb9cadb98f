"""The report's first page: what was found and kept, collection by collection, and the paper's figure of data sets beside it."""

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from medvar_data.audit.report.source import Subject
from medvar_data.audit.report.table import Table, table
from medvar_data.catalog.collection import license_text
from medvar_data.engine.memory import show_size
from medvar_data.naming import how_many


def tiles(subject: Subject) -> tuple[tuple[str, str, str], ...]:
    """The figures that come first: name, value, and a remark or nothing."""
    found, kept, rejected = (
        sum(row[name] for row in subject.collections) for name in ("n_found", "n_kept", "n_rejected")
    )
    statistics = subject.statistics
    expected = sum(row["n_expected"] for row in subject.collections)
    shards = sum(split["bytes"] for split in subject.splits.values())
    n_shards = sum(split["shards"] for split in subject.splits.values())
    return (
        ("cases found", f"{found:,}", f"publishers count {expected:,}" if expected else ""),
        ("kept", f"{kept:,}", _percent(kept, found)),
        ("rejected", f"{rejected:,}", _percent(rejected, found)),
        ("patients", f"{len(pc.unique(subject.cases['patient'])):,}", ""),
        ("volumes", f"{len(pc.unique(subject.cases['volume'])):,}", "sequences of one scan are one"),
        ("slices", f"{sum(row['slices'] for row in statistics):,}", ""),
        ("sources", show_size(sum(row["source_bytes"] for row in statistics)), "as published"),
        (
            "slices in bytes",
            show_size(shards or sum(row["slice_bytes"] for row in statistics)),
            how_many(n_shards, "shard") if n_shards else "",
        ),
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} % of found" if whole else ""


def collection_table(subject: Subject) -> Table:
    """A row a collection."""
    columns = (
        ("collection", "anchor"), ("modality", "text"), ("region", "text"), ("expected", "count"), ("found", "count"), ("kept", "count"),
        ("rejected", "count"), ("patients", "count"), ("volumes", "count"), ("slices", "count"), ("sources", "bytes"), ("licence", "short"),
    )  # fmt: skip
    return table("Collections", columns, (_row(n, row, subject) for n, row in enumerate(subject.collections, start=1)))


def _row(place: int, row: Mapping[str, Any], subject: Subject) -> tuple[Any, ...]:
    name = row["collection"]
    statistics = [part for part in subject.statistics if part["collection"] == name]
    cases = subject.cases.filter(pc.equal(subject.cases["collection"], name))
    return (
        (f"c{place}", name),
        " ".join(dict.fromkeys(part["modality"] for part in statistics)) or row["modality"],
        " ".join(dict.fromkeys(part["region"] for part in statistics)) or row["region"],
        row["n_expected"] or None, row["n_found"], row["n_kept"], row["n_rejected"],
        len(pc.unique(cases["patient"])), len(pc.unique(cases["volume"])),
        sum(part["slices"] for part in statistics), sum(part["source_bytes"] for part in statistics),
        license_text(row["license"], row["license_confirmed"], row),
    )  # fmt: skip


def dropped_slices(subject: Subject) -> Table:
    """How many slices were left out for which reason, by collection."""
    columns = (
        ("collection", "name"), ("kept", "count"), ("without annotation, or too little body", "count"),
        ("emptied by cleanup or resizing", "count"), ("not selected", "count"),
    )  # fmt: skip
    names = ("slices", "slices_without_foreground", "slices_emptied_by_cleanup", "slices_not_selected")
    rows = []
    for row in subject.collections:
        parts = [part for part in subject.statistics if part["collection"] == row["collection"]]
        rows.append((row["collection"], *(sum(part[name] for part in parts) for name in names)))
    return table("Slices kept and left out", columns, rows)
