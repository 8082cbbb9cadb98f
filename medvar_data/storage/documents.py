"""Read back JSON and tables that somebody may have altered: with types, ranges and lengths, or one sentence.

Every JSON file and Parquet table that the product opens comes through here (`audit.verify` reads bytes itself). What is wrong
is named by its place in the file, never by a traceback.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medvar_data.errors import MedvarError
from medvar_data.naming import printable

MOST_JSON_BYTES = 256 << 20  # a description of 400,000 slices is far below
ROWS_AT_ONCE = 1 << 14


def decode_json(data: bytes, kind: Any, where: str, error: type[MedvarError], way_on: str) -> Any:
    """Decode JSON into a type that msgspec knows: dataclasses, mappings, annotated ranges.

    Args:
        data: the file's content.
        kind: what it should be; that is also what comes back.
        where: the file, as the message names it.
        error: what to raise.
        way_on: what the user does next; a sentence.

    Raises:
        MedvarError: of the class `error`: it is no JSON, or not of that type; says where in the file.
    """
    if len(data) > MOST_JSON_BYTES:
        raise error(f"{where} has {len(data):,} bytes; wanted at most {MOST_JSON_BYTES:,}. {way_on}")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as wrong:
        raise error(f"{where} is damaged ({printable(str(wrong))}). {way_on}") from None
    except RecursionError:
        raise error(f"{where} is damaged (values lie too deep in each other). {way_on}") from None
    except (msgspec.MsgspecError, ValueError, OverflowError) as wrong:
        cause = "it is empty" if not data.strip() else f"it is no JSON: {printable(str(wrong))}"
        raise error(f"{where} is damaged ({cause}). {way_on}") from None


def read_json(path: Path, kind: Any, error: type[MedvarError], way_on: str) -> Any:
    """Decode a JSON file; as `decode_json`.

    Raises:
        FileNotFoundError: there is none.
    """
    return decode_json(path.read_bytes(), kind, str(path), error, way_on)


def table_of(
    source: Path | bytes,
    schema: pa.Schema,
    where: str,
    error: type[MedvarError],
    way_on: str,
    *,
    columns: Sequence[str] = (),
    equal: Mapping[str, Any] = MappingProxyType({}),
) -> pa.Table:
    """Read a Parquet table and hold it to a schema: every column there, of its type, without nulls.

    Args:
        source: a file, or its bytes.
        schema: names and types; maps and lists may hold what they like inside their type.
        where: the table, as the message names it.
        error: what to raise.
        way_on: what the user does next.
        columns: those to read; all where empty.
        equal: column -> value of the rows to keep.

    Raises:
        MedvarError: of the class `error`.
        FileNotFoundError: there is none.
    """
    names = list(columns or schema.names)
    with _opened(source, [schema.field(name) for name in names], where, error, way_on) as file:
        table = file.read(names, use_threads=False)
    if problem := _nulls(table):
        raise error(f"{where} is damaged ({problem}). {way_on}")
    for name, value in equal.items():
        table = table.filter(pc.equal(table[name], value))
    return table


def tables_of(
    source: Path, schema: pa.Schema, where: str, error: type[MedvarError], way_on: str, *, columns: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Read a Parquet table as `table_of` does, in pieces of which one is held at a time.

    Raises:
        MedvarError: of the class `error`.
    """
    names = list(columns or schema.names)
    with _opened(source, [schema.field(name) for name in names], where, error, way_on) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch]).select(names)
            if problem := _nulls(table):
                raise error(f"{where} is damaged ({problem}). {way_on}")
            yield table


@contextmanager
def _opened(
    source: Path | bytes, wanted: Sequence[pa.Field], where: str, error: type[MedvarError], way_on: str
) -> Iterator[pq.ParquetFile]:
    """A Parquet file that has the wanted columns; what reading it raises becomes an error of the class `error`."""
    try:
        # One thread, nothing read ahead: a thread of Arrow's that still holds Python's bytes as the interpreter ends aborts it.
        with pq.ParquetFile(
            str(source) if isinstance(source, Path) else pa.BufferReader(source), pre_buffer=False
        ) as file:
            if problem := next(filter(None, (_mismatch(file.schema_arrow, field) for field in wanted)), ""):
                raise error(f"{where} is damaged ({problem}). {way_on}")
            yield file
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, RecursionError) as wrong:
        first = next(iter(str(wrong).splitlines()), "")
        raise error(f"{where} is damaged (Parquet: {printable(first, 80)}). {way_on}") from None


def _nulls(table: pa.Table) -> str:
    empty = next((name for name in table.column_names if table[name].null_count), "")
    return f"column {empty} holds {table[empty].null_count} nulls" if empty else ""


def _mismatch(found: pa.Schema, wanted: pa.Field) -> str:
    where = found.get_all_field_indices(wanted.name)
    if len(where) != 1:
        return f"column {wanted.name} is there {len(where)} times"
    kind = found.field(where[0]).type
    return "" if kind == wanted.type else f"column {wanted.name} is of type {kind}, wanted {wanted.type}"
