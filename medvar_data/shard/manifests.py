"""Write a set's tables, croissant.json and, last of all, dataset.json, which says that the set is complete.

The rows of slices pass through shard by shard: whatever the size of the set, those of one row group are held.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medvar_data.errors import ShardSetError, WorkspaceError
from medvar_data.records import Reject
from medvar_data.shard.collections import counted
from medvar_data.shard.croissant import CROISSANT_FILE, croissant_bytes
from medvar_data.shard.datasheet import contents_of, origins_of
from medvar_data.shard.plan import ShardTask
from medvar_data.shard.statistics import names_of_labels, statistics
from medvar_data.shard.tally import SliceCounts, tally
from medvar_data.shardset.dataset import DATASET_FILE, WAY_ON, Dataset, ShardEntry, SplitEntry
from medvar_data.shardset.rejects import write_rejects
from medvar_data.shardset.schema import (
    CASES_SCHEMA,
    COLLECTIONS_SCHEMA,
    EDGES_SCHEMA,
    SCHEMA_VERSION,
    SLICES_SCHEMA,
    SPLITS,
    TABLES,
    VERSION_NOTE,
    ContentDigest,
)
from medvar_data.storage.codec import CODECS
from medvar_data.storage.documents import table_of, tables_of
from medvar_data.storage.parquet import write_table, write_tables
from medvar_data.storage.store import Store, canonical_json, file_digest, write_bytes


@dataclass(frozen=True)
class Provenance:
    """What dataset.json says of how a set was made; the attributes are those of `Dataset`."""

    image_side: int
    codec: str
    recipe: Mapping[str, Any]
    split: Mapping[str, Any]
    seed: int
    salt_sha256: str
    pipeline: Any  # version of the code that made the pixels
    where: str = ""
    made_from: str = ""
    drop_duplicates: bool = False


@dataclass(frozen=True)
class Earlier:
    """The shards that a set has already: their entries in dataset.json and their rows, which stay as they are.

    Attributes:
        dataset: of the set as it is.
        slices: its slices.parquet, in a place where nothing replaces it.
        cases: its rows of cases.parquet.
    """

    dataset: Dataset
    slices: Path
    cases: pa.Table

    def rows(self, split: str) -> Iterator[pa.Table]:
        """The rows of a split, in order."""
        for table in tables_of(self.slices, SLICES_SCHEMA, "slices.parquet", ShardSetError, WAY_ON):
            yield table.filter(pc.equal(table["split"], split)).cast(SLICES_SCHEMA)


@dataclass(frozen=True)
class SetContents:
    """What the tables are made from.

    Attributes:
        tasks: every shard that was planned, all of them written.
        cases: rows of cases.parquet, in any order.
        edges: rows of edges.parquet.
        collections: rows of collections.parquet, not counted yet.
        rejects: of all stages.
        earlier: shards before those of the tasks.
    """

    tasks: Sequence[ShardTask]
    cases: pa.Table
    edges: pa.Table
    collections: pa.Table
    rejects: Sequence[Reject]
    earlier: Earlier | None = None


def write_manifests(store: Store, contents: SetContents, made: Provenance) -> str:
    """Write the tables, croissant.json and dataset.json into the store; returns the set's digest."""
    cases = contents.cases.sort_by([("collection", "ascending"), ("case", "ascending")])
    collections = counted(contents.collections, cases, contents.rejects)
    digest, sums = ContentDigest(), SliceCounts()
    entries: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}

    def rows() -> Iterator[pa.Table]:
        for table in _slices(contents, entries):
            digest.add(table)
            sums.add(table)
            yield table

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        write_tables(local / "slices.parquet", rows(), SLICES_SCHEMA, VERSION_NOTE)
        write_table(local / "cases.parquet", cases.cast(CASES_SCHEMA), VERSION_NOTE)
        write_rejects(local / "rejects.parquet", contents.rejects)
        stats = statistics(tally(sums.sums, cases), names_of_labels(collections), made.image_side)
        write_table(local / "stats.parquet", stats, VERSION_NOTE)
        write_table(local / "collections.parquet", collections.cast(COLLECTIONS_SCHEMA), VERSION_NOTE)
        write_table(local / "edges.parquet", contents.edges.cast(EDGES_SCHEMA), VERSION_NOTE)
        dataset = Dataset(
            schema_version=SCHEMA_VERSION,
            digest=digest.hexdigest(),
            conditions=dict(zip(cases["condition"].to_pylist(), cases["condition_id"].to_pylist(), strict=True)),
            splits=_splits(entries, cases),
            tables={name: file_digest(local / name) for name in TABLES},
            **_said(made),
        )
        sizes = {name: (local / name).stat().st_size for name in TABLES}
        contained = contents_of(cases, len(contents.rejects))
        write_bytes(local / CROISSANT_FILE, croissant_bytes(dataset, contained, sizes, origins_of(collections)))
        write_bytes(local / DATASET_FILE, canonical_json(asdict(dataset)).encode())
        for name in (*TABLES, CROISSANT_FILE, DATASET_FILE):
            store.put(local / name, name)
    return dataset.digest


def _said(made: Provenance) -> dict[str, Any]:
    """What `dataset.json` says of how the set was made, by the names that it has there."""
    said = {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(made).items()}
    versions = {
        "pipeline": said.pop("pipeline"), "encoder": CODECS[made.codec].version, "numpy": np.__version__, "cv2": cv2.__version__,
        "pyarrow": pa.__version__,
    }  # fmt: skip
    return {**said, "versions": versions}


def _slices(contents: SetContents, entries: Mapping[str, list[ShardEntry]]) -> Iterator[pa.Table]:
    """The rows of all slices, split by split and shard by shard; notes each shard in `entries` as it passes."""
    again = "Delete it and run the same command again."
    for split in SPLITS:
        if contents.earlier:
            entries[split].extend(contents.earlier.dataset.splits[split].shards)
            yield from contents.earlier.rows(split)
        for task in (task for task in contents.tasks if task.split == split):
            where = f"{task.notes}/{task.note}"
            table = table_of(Store(task.notes).read(task.note), SLICES_SCHEMA, where, WorkspaceError, again)
            note = table.schema.metadata
            sha256, n_bytes = note[b"medvar.sha256"].decode(), int(note[b"medvar.bytes"])
            entries[split].append(ShardEntry(task.name, sha256, n_bytes, table.num_rows))
            yield table.cast(SLICES_SCHEMA)


def _splits(entries: Mapping[str, list[ShardEntry]], cases: pa.Table) -> dict[str, SplitEntry]:
    splits = {}
    for split, shards in entries.items():
        mine = cases.filter(pc.equal(cases["split"], split))
        patients = len(pc.unique(mine["patient"]))
        splits[split] = SplitEntry(sum(shard.slices for shard in shards), mine.num_rows, patients, tuple(shards))
    return splits
