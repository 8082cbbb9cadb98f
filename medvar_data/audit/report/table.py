"""A table as the report shows it: columns with the kind of their values, rows of plain values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_ROWS = 200


@dataclass(frozen=True)
class Table:
    """A table that readers can sort.

    Attributes:
        caption: what it shows.
        columns: title and kind of each; the template knows how to show a kind.
        rows: values; None is shown as a dash.
        left_out: rows beyond those shown.
    """

    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Any, ...], ...]
    left_out: int = 0


@dataclass(frozen=True)
class Bar:
    """A value and a part of it that was lost, as shares (0 to 1) of the longest bar of the column."""

    kept: float
    lost: float


def table(caption: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]]) -> Table:
    """Make a table of at most `MOST_ROWS` rows, and count the others."""
    every = [tuple(row) for row in rows]
    return Table(caption, tuple(columns), tuple(every[:MOST_ROWS]), max(0, len(every) - MOST_ROWS))
