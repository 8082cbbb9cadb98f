"""Shard sets, workspaces and checkpoints that somebody altered: every file that the product reads back, changed at random, by value
or by byte, also where digests were made to fit again.

`outcome` opens the altered thing as the commands do. It may be read, or be refused by one of our errors; nothing else.
"""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.audit.verify import verify
from medvar_data.errors import MedvarError, ShardSetError
from medvar_data.harmonize.plan import pending_cases
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.croissant import CROISSANT_FILE, contradictions
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shardset.dataset import (
    codec_of,
    read_dataset,
    read_pair,
    read_reject_counts,
    read_statistics,
    read_table,
)
from medvar_data.shardset.index import open_shard_set
from medvar_data.storage.store import Store
from medvar_data.stream.read import ShardReader
from medvar_data.workspace.case_file import read_case_file, read_slice_index
from medvar_data.workspace.workspace import Workspace
from support.builders import acdc_tree, small_recipe
from support.shard_sets import republished, write_shard_set

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x", "../../x", "/etc/passwd", "a" * 5000, "\x1b[31mred", "🜚", [], {}, [None],
    [[1]], {"a": {"b": []}}, {"../x": 1}, ["train-000000.tar"] * 3,
)  # fmt: skip


def altered_json(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three values of a JSON document replaced, taken out, renamed or doubled; or its bytes damaged."""
    if rng.random() < 0.25:
        return damaged(data, rng)
    if rng.random() < 0.05:
        return b'{"a":' * 50_000
    value = json.loads(data)
    for _ in range(int(rng.integers(1, 4))):
        value = _changed(value, rng)
    return json.dumps(value).encode()


def _changed(value: Any, rng: np.random.Generator) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return STRANGE[rng.integers(len(STRANGE))]
    value = dict(value) if isinstance(value, dict) else list(value)
    at: Any = list(value)[rng.integers(len(value))] if isinstance(value, dict) else int(rng.integers(len(value)))
    how = rng.random()
    if how < 0.15:
        del value[at]
    elif how < 0.25 and isinstance(value, dict):
        value[str(STRANGE[rng.integers(len(STRANGE))])] = value.pop(at)
    elif how < 0.35 and isinstance(value, list):
        value.append(value[at])
    else:
        value[at] = _changed(value[at], rng)
    return value


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes cut out, the end cut off, or everything replaced."""
    out, how = bytearray(data), rng.random()
    if how < 0.1 or not out:
        return bytes(rng.integers(0, 256, int(rng.integers(0, 200)), dtype=np.uint8))
    at = int(rng.integers(len(out)))
    if how < 0.4:
        del out[at:]
    elif how < 0.6:
        del out[at : at + int(rng.integers(1, 40))]
    else:
        for place in rng.integers(0, len(out), int(rng.integers(1, 6))):
            out[place] ^= int(1 << rng.integers(8))
    return bytes(out)


def altered_table(path: Path, rng: np.random.Generator) -> None:
    """Some values of a table replaced by odd ones of the same type, a column taken out, renamed or of another type, nulls, shuffles."""
    table = pq.read_table(path)
    metadata, rows = table.schema.metadata, table.to_pylist()
    name, how = table.column_names[rng.integers(table.num_columns)], rng.random()
    kind = table.schema.field(name).type
    if how < 0.1:
        table = table.drop_columns([name])
    elif how < 0.2:
        table = table.rename_columns(["other" if column == name else column for column in table.column_names])
    elif how < 0.3 and rows:
        table = table.set_column(table.column_names.index(name), name, pa.array([str(row[name]) for row in rows]))
    elif rows:
        odd = [None]
        if pa.types.is_integer(kind):
            bounds = np.iinfo(kind.to_pandas_dtype())
            odd += [0, int(bounds.min), int(bounds.max), int(rng.integers(0, 2**15))]
        elif pa.types.is_string(kind):
            odd += ["", "../../x", "/etc/passwd", "x" * 3000, "\x1b[31m", *{row[name] for row in rows}]
        for row in rows if rng.random() < 0.3 else [rows[rng.integers(len(rows))]]:
            row[name] = odd[rng.integers(len(odd))]
        table = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(table.replace_schema_metadata(metadata), path)


class Doors:
    """Good things of each kind, made once, and what opens them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.set = write_shard_set(folder / "set", {"train": 12, "val": 5, "test": 5})
        self.recipe, work = small_recipe(folder / "recipe"), Workspace(folder / "work")
        list(run_ingest({"acdc": acdc_tree(folder / "data", patients=2)}, work))
        run_harmonize(work, self.recipe, 1, lambda _: None)
        write_shards(work, Store(str(folder / "written")), ShardSpec(self.recipe), 1, lambda _: None)
        for name in ("archives", "conditions"):  # which this workspace has no need of
            note = {"n_bytes": 1, "modified_ns": 1, "sha256": "0" * 64, "encrypted": False, "scratch_bytes": 0}
            value = {"/data/a.zip": note} if name == "archives" else {"own-ct": 1000, "own-mr": 1001}
            (work.path / f"{name}.json").write_text(json.dumps(value))

    def dataset(self, rng: np.random.Generator, place: Path) -> None:
        """Alter dataset.json."""
        shutil.copytree(self.folder / "written", place)
        path = place / "dataset.json"
        path.write_bytes(altered_json(path.read_bytes(), rng))
        self._open_set(place)

    def tables(self, rng: np.random.Generator, place: Path) -> None:
        """Alter a table, and make the digests fit again half the time."""
        shutil.copytree(self.folder / "written", place)
        files = sorted(place.glob("*.parquet"))
        path = files[rng.integers(len(files))]
        path.write_bytes(damaged(path.read_bytes(), rng)) if rng.random() < 0.3 else altered_table(path, rng)
        if rng.random() < 0.7:
            republished(place)
        self._open_set(place)

    def descriptions(self, rng: np.random.Generator, place: Path) -> None:
        """Alter croissant.json; what it lists otherwise than dataset.json is refused, its words are free."""
        written = Store(str(self.folder / "written"))
        data = written.read(CROISSANT_FILE)
        altered = altered_json(data, rng) if rng.random() < 0.5 else damaged(data, rng)
        if found := contradictions(altered, read_dataset(written)):
            raise ShardSetError(found[0])

    def shards(self, rng: np.random.Generator, place: Path) -> None:
        """Alter a shard, at equal length half the time; its digest fits again sometimes."""
        shutil.copytree(self.set, place)
        path = sorted(place.glob("*.tar"))[0]
        data = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            path.write_bytes(damaged(bytes(data), rng))
        else:
            a, b = sorted(int(n) for n in rng.integers(0, len(data), 2))
            data[a:b] = data[a:b][::-1]
            path.write_bytes(bytes(data))
        if rng.random() < 0.3:
            text = json.loads((place / "dataset.json").read_text())
            for shard in text["splits"]["test"]["shards"][:1]:
                shard |= {"sha256": sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            (place / "dataset.json").write_text(json.dumps(text))
        self._stream(place)

    def workspaces(self, rng: np.random.Generator, place: Path) -> None:
        """Alter a file of a workspace."""
        shutil.copytree(self.folder / "work", place)
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix != ".toml")
        path = files[rng.integers(len(files))]
        if path.suffix == ".json":
            path.write_bytes(altered_json(path.read_bytes(), rng))
        elif path.suffix == ".parquet" and rng.random() < 0.6:
            altered_table(path, rng)
        else:
            path.write_bytes(damaged(path.read_bytes(), rng))
        self._open_workspace(Workspace(place))

    def _open_set(self, place: Path) -> None:
        store = Store(str(place))
        verify(store)
        read_statistics(store)
        read_reject_counts(store)
        for row in read_table(store, "slices.parquet").to_pylist():
            read_pair(store, row, codec_of(store))
        self._stream(place)

    def _stream(self, place: Path) -> None:
        for split in ("train", "val", "test"):
            opened = open_shard_set(str(place), split)
            ShardReader(opened).read(np.arange(len(opened)), masks=True)

    def _open_workspace(self, work: Workspace) -> None:
        for name in work.collections():
            work.counts(name)
            work.ingest_rejects(name)
            for case in work.cases(name):
                if work.case_file(case).exists():
                    read_case_file(work.case_file(case))
                    read_slice_index(work.case_file(case))
        work.archive_notes()
        work.condition_ids({"acdc-mr", "own-ct", "own-pt"})
        work.patient_hash("x")
        pending_cases(work, self.recipe)


KINDS = ("dataset", "tables", "shards", "descriptions", "workspaces")


def outcome(kind: str, number: int, open_it: Callable[[np.random.Generator, Path], None], place: Path) -> str:
    """How one altered thing ends; a number names one alteration for ever."""
    try:
        open_it(np.random.default_rng((sum(kind.encode()), number)), place)
    except MedvarError as error:
        sentence = str(error)
        return (
            "refused" if len(sentence) < 2000 and "\x1b" not in sentence else f"wrong: {sentence[:80]!r} is no sentence"
        )
    except Exception as error:  # whatever else comes out is a fault
        return f"wrong: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return "read"
