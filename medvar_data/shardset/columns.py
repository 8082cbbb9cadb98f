"""A column of a table: its name, its type, its unit and its meaning; and the Arrow schema that columns make."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        meaning: half a sentence for someone who has only the file.
        unit: of its numbers; "" where they have none.
        in_sample: whether it stands in a sample's JSON too (scalars only).
    """

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    in_sample: bool = False

    def field(self) -> pa.Field:
        """The column as Arrow knows it, with meaning and unit as field metadata."""
        notes = {"description": self.meaning, **({"unit": self.unit} if self.unit else {})}
        return pa.field(self.name, self.type, metadata=notes)


def schema_of(columns: Iterable[Column], *, described: bool = True) -> pa.Schema:
    """Make the Arrow schema of a table; without `described`, of names and types alone."""
    return pa.schema([column.field() if described else pa.field(column.name, column.type) for column in columns])
