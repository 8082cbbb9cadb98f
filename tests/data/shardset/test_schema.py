"""Every column of every table says what it holds: in the list of columns, in the files and on the page of formats."""

import json
import re
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medvar_data.shardset.schema import SCHEMA_VERSION, SCHEMAS, SLICE_COLUMNS, TABLES
from medvar_data.workspace.case_file import SLICE_SCHEMA, SLICE_TABLE
from medvar_data.workspace.tables import CASE_SCHEMA, CASE_TABLE

ALL_TABLES = {**TABLES, "W/ingest": CASE_TABLE, "W/harmonized": SLICE_TABLE}
MEASURED = re.compile(r".*_(mm|mm3|pixels|size|offset)(_median|_sum)?")
FORMATS = Path(__file__).resolve().parents[3] / "docs" / "formats.md"


@pytest.mark.parametrize("table", ALL_TABLES)
def test_every_column_has_a_meaning_and_every_measure_a_unit(table):
    columns = ALL_TABLES[table]
    assert len({c.name for c in columns}) == len(columns)
    short = [c.name for c in columns if len(c.meaning.split()) < 3]
    assert short == []
    bare = [c.name for c in columns if MEASURED.fullmatch(c.name) and not c.unit]
    assert bare == []


@pytest.mark.parametrize("table", TABLES)
def test_published_files_describe_their_own_columns(pipeline, table):
    schema = pq.read_schema(pipeline.shards / table)
    assert schema.names == [c.name for c in TABLES[table]]
    for column in TABLES[table]:
        notes = schema.field(column.name).metadata
        assert notes[b"description"].decode() == column.meaning
        assert notes.get(b"unit", b"").decode() == column.unit
    assert schema.equals(SCHEMAS[table])
    assert schema.metadata == {b"medvar.schema_version": str(SCHEMA_VERSION).encode()}


def test_workspace_files_hold_names_and_types_alone(pipeline):
    """So that the files of a workspace that exists stay as they are, byte for byte."""
    folder = pipeline.workspace.path
    for file, schema in (
        (folder / "ingest" / "acdc.parquet", CASE_SCHEMA),
        (next((folder / "harmonized" / "acdc").glob("*.parquet")), SLICE_SCHEMA),
    ):
        found = pq.read_schema(file)
        assert found.equals(schema)
        assert not any(found.field(name).metadata for name in found.names)


def test_a_sample_holds_the_columns_marked_for_it(pipeline):
    wanted = {c.name for c in SLICE_COLUMNS if c.in_sample}
    with tarfile.open(next(pipeline.shards.glob("train-*.tar"))) as shard:
        notes = [json.load(shard.extractfile(m)) for m in shard if m.name.endswith(".json")]
    assert notes
    assert all(set(note) == wanted for note in notes)


def test_the_page_of_formats_lists_every_column():
    """`test_docs.py` checks that the tables are current; here, that none is missing from the page."""
    text = FORMATS.read_text(encoding="utf-8")
    for columns in ALL_TABLES.values():
        for column in columns:
            assert f"| `{column.name}` |" in text
            assert f"| {column.meaning} |" in text
