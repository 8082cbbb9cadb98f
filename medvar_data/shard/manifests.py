"""Write a set's tables, croissant.json and, last of all, dataset.json, which says that the set is complete."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from medvar_data.errors import WorkspaceError
from medvar_data.harmonize.dependencies import PIPELINE_VERSION
from medvar_data.records import Reject
from medvar_data.shard.croissant import CROISSANT_FILE, croissant_bytes
from medvar_data.shard.datasheet import Origin, contents_of
from medvar_data.shard.plan import ShardSpec, ShardTask
from medvar_data.shard.statistics import statistics
from medvar_data.shardset.dataset import DATASET_FILE, Dataset, ShardEntry, SplitEntry
from medvar_data.shardset.rejects import write_rejects
from medvar_data.shardset.schema import (
    CASES_SCHEMA,
    SCHEMA_VERSION,
    SLICES_SCHEMA,
    SPLITS,
    TABLES,
    VERSION_NOTE,
    content_digest,
)
from medvar_data.storage.codec import CODECS
from medvar_data.storage.documents import table_of
from medvar_data.storage.parquet import table_from_rows, write_table
from medvar_data.storage.store import Store, canonical_json, file_digest, write_bytes


@dataclass(frozen=True)
class SetContents:
    """What the tables are made from.

    Attributes:
        tasks: every shard of the set, all of them written.
        cases: rows of cases.parquet, in any order.
        rejects: of ingest and harmonize.
        condition_ids: of the conditions in the set.
        salt_digest: names the workspace's salt.
        origins: the collections of the cases.
    """

    tasks: Sequence[ShardTask]
    cases: Sequence[Mapping[str, Any]]
    rejects: Sequence[Reject]
    condition_ids: Mapping[str, int]
    salt_digest: str
    origins: Sequence[Origin]


def write_manifests(store: Store, contents: SetContents, spec: ShardSpec) -> None:
    """Write the tables, croissant.json and dataset.json into the store."""
    indices = [Path(task.index) for task in contents.tasks]
    again = "Delete it and run `medvar-data shard` again."
    tables = [table_of(index, SLICES_SCHEMA, str(index), WorkspaceError, again) for index in indices]
    slices = pa.concat_tables([SLICES_SCHEMA.empty_table(), *(table.cast(SLICES_SCHEMA) for table in tables)])
    cases = table_from_rows(sorted(contents.cases, key=lambda r: (r["collection"], r["case"])), CASES_SCHEMA)
    splits = _splits(contents.tasks, tables, cases)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        write_table(local / "slices.parquet", slices, VERSION_NOTE)
        write_table(local / "cases.parquet", cases, VERSION_NOTE)
        write_rejects(local / "rejects.parquet", contents.rejects)
        write_table(local / "stats.parquet", statistics(slices, cases, spec.recipe.side), VERSION_NOTE)
        dataset = Dataset(
            schema_version=SCHEMA_VERSION,
            digest=content_digest(slices),
            image_side=spec.recipe.side,
            codec=spec.codec,
            conditions=dict(contents.condition_ids),
            splits=splits,
            recipe=asdict(spec.recipe),
            split=asdict(spec.split),
            seed=spec.seed,
            salt_sha256=contents.salt_digest,
            versions={
                "pipeline": PIPELINE_VERSION, "encoder": CODECS[spec.codec].version, "numpy": np.__version__, "cv2": cv2.__version__,
                "pyarrow": pa.__version__,
            },
            tables={name: file_digest(local / name) for name in TABLES},
        )  # fmt: skip
        sizes = {name: (local / name).stat().st_size for name in TABLES}
        contained = contents_of(cases, len(contents.rejects))
        write_bytes(local / CROISSANT_FILE, croissant_bytes(dataset, contained, sizes, contents.origins))
        write_bytes(local / DATASET_FILE, canonical_json(asdict(dataset)).encode())
        for name in (*TABLES, CROISSANT_FILE, DATASET_FILE):
            store.put(local / name, name)


def _splits(tasks: Sequence[ShardTask], tables: Sequence[pa.Table], cases: pa.Table) -> dict[str, SplitEntry]:
    shards: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    for task, table in zip(tasks, tables, strict=True):
        note = table.schema.metadata
        entry = ShardEntry(task.name, note[b"medvar.sha256"].decode(), int(note[b"medvar.bytes"]), table.num_rows)
        shards[task.slices[0].split].append(entry)
    splits = {}
    for split, entries in shards.items():
        mine = cases.filter(pa.compute.equal(cases["split"], split))
        patients = len(set(mine["patient"].to_pylist()))
        splits[split] = SplitEntry(sum(entry.slices for entry in entries), mine.num_rows, patients, tuple(entries))
    return splits
