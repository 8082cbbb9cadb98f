"""Cut harmonized cases into WebDataset tars and Parquet manifests: split by patient, shuffle all slices, write, index.

The plan (which slice lies where) is a pure function of the finished cases, the seed and the split; so shards can be
written in any order by any number of processes, and a killed run goes on where it stopped.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.casefile import read_case_file, read_pictures, read_slice_index, wanted_inputs
from medvar_data.catalog import CollectionSpec
from medvar_data.codec import CODECS, encoder_version
from medvar_data.engine import Engine, as_engine, run_tasks
from medvar_data.errors import WorkspaceError
from medvar_data.harmonize import PIPELINE_VERSION, HarmonizedCase
from medvar_data.recipes import Recipe
from medvar_data.records import Case, Progress, Reject
from medvar_data.splits import SPLITS, SplitSpec, assign_splits
from medvar_data.statistics import statistics
from medvar_data.store import Store, canonical_json, file_digest, remove_partials, scratch_path, write_bytes
from medvar_data.tables import (
    CASES_SCHEMA,
    SCHEMA_VERSION,
    SLICES_SCHEMA,
    table_from_rows,
    write_rejects,
    write_table,
)
from medvar_data.tar import write_tar
from medvar_data.workspace import Workspace

CONTENT_COLUMNS = ("key", "split", "image_sha256", "mask_sha256", "condition", "condition_id")
SLICE_MEMORY_BYTES = 400_000  # of a slice on its way: its pictures twice, its row
MANIFESTS = ("slices.parquet", "cases.parquet", "rejects.parquet", "stats.parquet")


@dataclass(frozen=True)
class ShardSpec:
    """What a shard set is made of."""

    recipe: Recipe
    split: SplitSpec = field(default_factory=SplitSpec)
    seed: int = 0  # of the order of slices
    slices_per_shard: int = 1024


@dataclass(frozen=True)
class ShardSummary:
    """What was written."""

    digest: str  # "" where shards of other parts are missing, and the set is not complete
    n_slices: dict[str, int]
    n_shards: int
    n_cases: int
    n_rejected: int
    n_reused: int  # shards found finished
    n_elsewhere: int  # shards left to other parts and not finished yet


@dataclass(frozen=True)
class _Kept:
    """A kept case: as ingest knows it now, and what harmonize made of it."""

    path: Path
    case: Case
    done: HarmonizedCase
    spec: CollectionSpec
    recipe: Recipe


@dataclass(frozen=True)
class _Slice:
    """A slice on its way into a shard."""

    key: str
    split: str
    path: str  # case file
    row: int
    columns: Mapping[str, Any]  # of SLICES_SCHEMA, but for the shard's


@dataclass(frozen=True)
class _ShardTask:
    name: str
    slices: tuple[_Slice, ...]
    suffix: str
    url: str
    index: str  # where the finished shard's rows go; the done-mark
    digest: str  # of the plan


def write_shards(
    workspace: Workspace, store: Store, spec: ShardSpec, engine: Engine | int, progress: Callable[[Progress], None]
) -> ShardSummary:
    """Write a shard set.

    Args:
        workspace: with every ingested case harmonized under `spec.recipe`.
        store: where the set goes; an unfinished run of the same plan is completed.
        spec: recipe, split, seed and shard size.
        engine: who does the work; a number means so many processes. A part writes its shards alone, and the tables
            where no shard is missing any more.
        progress: called at the start and after every shard.

    Raises:
        WorkspaceError: cases are not harmonized yet, or the store holds another set.
    """
    engine = as_engine(engine)
    kept, rejects = _finished_cases(workspace, spec.recipe)
    splits = assign_splits(((k.case.collection, k.case.group) for k in kept), spec.split)
    ids = workspace.condition_ids({k.case.condition for k in kept})
    slices = [s for k in kept for s in _slices(k, splits, ids, workspace)]
    plan = _plan(slices, spec)
    digest = _plan_digest(plan)
    folder = workspace.path / "shards" / sha256(f"{digest} {store.url}".encode()).hexdigest()[:16]
    _refuse_other_set(store, {name for name, _ in plan}, workspace)
    codec = CODECS[spec.recipe.codec]
    tasks = [_ShardTask(n, m, codec.suffix, store.url, str(folder / f"{n}.parquet"), digest) for n, m in plan]
    folders = [folder, *filter(None, [store.folder])]
    for place in folders:
        remove_partials(place)
    missing = [t for t in tasks if not _is_written(t, store)]
    if missing:
        store.remove("dataset.json")  # of an earlier set under the same names: it is not complete any more
    todo = [t for t in missing if engine.part.holds(t.name)]
    n_done = len(tasks) - len(missing)
    progress(Progress(n_done, n_done + len(todo), "", "skipped"))
    try:
        names = run_tasks(_write_shard, todo, engine, _killed, lambda task: len(task.slices) * SLICE_MEMORY_BYTES)
        for done, name in enumerate(names, start=n_done + 1):
            progress(Progress(done, n_done + len(todo), name, "kept"))
    finally:
        for place in folders:
            remove_partials(place)
    elsewhere = [] if engine.part.is_whole else [t for t in tasks if not _is_written(t, store)]
    if not elsewhere:
        _write_manifests(
            store,
            tasks,
            [_case_row(k, splits, ids, workspace) for k in kept],
            rejects,
            spec,
            ids,
            workspace.salt_digest(),
        )
    return ShardSummary(
        digest="" if elsewhere else json.loads(store.read("dataset.json"))["digest"],
        n_slices={split: sum(s.split == split for s in slices) for split in SPLITS},
        n_shards=len(tasks),
        n_cases=len(kept),
        n_rejected=len(rejects),
        n_reused=n_done,
        n_elsewhere=len(elsewhere),
    )


def _finished_cases(workspace: Workspace, recipe: Recipe) -> tuple[list[_Kept], list[Reject]]:
    """Read every case's outcome; every ingested case must have one, under this recipe."""
    kept, rejects, missing = [], [], 0
    for name in workspace.collections():
        rejects += workspace.ingest_rejects(name)
        spec = workspace.spec(name)
        for case in workspace.cases(name):
            path = workspace.case_file(case)
            file = read_case_file(path) if path.exists() else None
            if file is None or file.inputs != wanted_inputs(case, spec, recipe):
                missing += 1
            elif file.reject:
                rejects.append(file.reject)
            elif file.harmonized:
                kept.append(_Kept(path, case, file.harmonized, spec, recipe))
    if missing:
        raise WorkspaceError(
            f"{missing} cases are not harmonized with recipe {recipe.name!r}. "
            f"Run `medvar-data harmonize -w {workspace.path}` with the same --recipe first."
        )
    return kept, rejects


def _slices(kept: _Kept, splits: Mapping[str, str], ids: Mapping[str, int], workspace: Workspace) -> Iterator[_Slice]:
    common = _common(kept, splits, ids, workspace)
    for row, entry in enumerate(read_slice_index(kept.path)):
        key = f"{kept.case.collection}-{kept.case.case}-z{entry['z']:04d}"
        columns = {
            **common, "key": key, "z": entry["z"], "slice_index": entry["source_index"],
            "body_pixels": entry["body_pixels"], "foreground_pixels": entry["foreground_pixels"],
            "label_pixels": entry["label_pixels"], "image_sha256": entry["image_sha256"],
            "mask_sha256": entry["mask_sha256"],
        }  # fmt: skip
        yield _Slice(key, common["split"], str(kept.path), row, columns)


def _common(kept: _Kept, splits: Mapping[str, str], ids: Mapping[str, int], workspace: Workspace) -> dict[str, Any]:
    """Columns that slices.parquet and cases.parquet share."""
    case, done = kept.case, kept.done
    return {
        "collection": case.collection, "case": case.case, "patient": workspace.patient_hash(case.group),
        "split": splits[case.group], "condition": case.condition, "condition_id": ids[case.condition],
        "has_label": bool(done.label_digest), "region": case.region, "modality": case.modality,
        "sequence": case.sequence, "plane": done.plane, "n_slices": done.n_slices,
        "source_shape": done.shape, "source_affine": done.affine, "orientation": done.orientation,
        "spacing_row_mm": done.spacing_row_mm, "spacing_col_mm": done.spacing_col_mm,
        "through_plane_mm": done.through_plane_mm, "normalizer": done.normalizer, "low": done.low, "high": done.high,
        "source_sha256": done.image_digest, "label_sha256": done.label_digest,
        "license": kept.spec.license, "license_confirmed": kept.spec.license_confirmed,
        "recipe": kept.recipe.name, "pipeline_version": PIPELINE_VERSION,
    }  # fmt: skip


def _case_row(kept: _Kept, splits: Mapping[str, str], ids: Mapping[str, int], workspace: Workspace) -> dict[str, Any]:
    done = kept.done
    return {
        **_common(kept, splits, ids, workspace), **asdict(done.statistics),
        "official_split": kept.case.official_split, "n_kept": done.n_kept,
        "n_without_foreground": done.n_without_foreground, "n_emptied_by_cleanup": done.n_emptied_by_cleanup,
        "body_threshold": done.body_threshold, "body_fill": done.body_fill, "removed_body_mm3": done.removed_body_mm3,
        "removed_label_mm3": list(done.removed_label_mm3.items()), "label_mm3": list(done.label_mm3.items()),
        "vanished_labels": done.vanished_labels, "steps": done.steps, "recipe_sha256": kept.recipe.digest,
        "collection_sha256": kept.spec.digest,
    }  # fmt: skip


def _plan(slices: list[_Slice], spec: ShardSpec) -> list[tuple[str, tuple[_Slice, ...]]]:
    """Order each split's slices by a seeded hash of their keys and cut shards of nearly equal size."""
    plan = []
    for split in SPLITS:
        members = [s for s in slices if s.split == split]
        members.sort(key=lambda s: sha256(f"{spec.seed}/{s.key}".encode()).digest())
        n_shards = -(-len(members) // spec.slices_per_shard)
        bounds = [round(i * len(members) / max(1, n_shards)) for i in range(n_shards + 1)]
        plan += [(f"{split}-{i:06d}.tar", tuple(members[a:b])) for i, (a, b) in enumerate(pairwise(bounds))]
    return plan


def _plan_digest(plan: list[tuple[str, tuple[_Slice, ...]]]) -> str:
    """Name everything that the shards and their index will hold; whatever changes it makes them be written again."""
    digest = sha256()
    for name, members in plan:
        digest.update(name.encode())
        for s in members:
            digest.update(json.dumps(s.columns, sort_keys=True).encode())
    return digest.hexdigest()


def _refuse_other_set(store: Store, wanted: set[str], workspace: Workspace) -> None:
    place = Path(store.url).expanduser().resolve()
    if "://" not in store.url and (place == workspace.path.resolve() or workspace.path.resolve() in place.parents):
        raise WorkspaceError(
            f"{store.url} lies in the workspace, which is private; wanted a folder of its own for what may be published."
        )
    if "dataset.json" in store.names():
        salt = json.loads(store.read("dataset.json")).get("salt_sha256")
        if salt != workspace.salt_digest():
            raise WorkspaceError(f"{store.url} holds the shard set of another workspace. Give an empty folder.")
    there = {name for name in store.names() if name.endswith(".tar")}
    if other := there - wanted:
        raise WorkspaceError(
            f"{store.url} holds {len(other)} shards of another set, such as {min(other)}. Give an empty folder."
        )


def _is_written(task: _ShardTask, store: Store) -> bool:
    index = Path(task.index)
    if not index.exists():
        return False
    note = pq.read_schema(index).metadata
    return note[b"medvar.plan"].decode() == task.digest and store.size(task.name) == int(note[b"medvar.bytes"])


def _write_shard(task: _ShardTask) -> str:
    """Write one shard and, once it is in place, its index."""
    pictures: dict[tuple[str, int], tuple[bytes, bytes]] = {}
    by_case: dict[str, list[int]] = {}
    for s in task.slices:
        by_case.setdefault(s.path, []).append(s.row)
    for path, rows in by_case.items():
        pictures.update({(path, row): pair for row, pair in read_pictures(Path(path), rows).items()})
    index = Path(task.index)
    with scratch_path(index.parent / task.name) as local:
        members = write_tar(local, _members(task, pictures))
        digest, n_bytes = file_digest(local), local.stat().st_size
        Store(task.url).put(local, task.name)
    rows_out = []
    for s, image, mask, text in zip(task.slices, members[0::3], members[1::3], members[2::3], strict=True):
        rows_out.append(
            {
                **s.columns,
                "shard": task.name,
                "image_offset": image.offset,
                "image_size": image.size,
                "mask_offset": mask.offset,
                "mask_size": mask.size,
                "json_offset": text.offset,
                "json_size": text.size,
            }
        )
    notes = {"medvar.plan": task.digest, "medvar.sha256": digest, "medvar.bytes": str(n_bytes)}
    write_table(index, table_from_rows(rows_out, SLICES_SCHEMA), notes)
    return task.name


def _members(task: _ShardTask, pictures: Mapping[tuple[str, int], tuple[bytes, bytes]]) -> Iterator[tuple[str, bytes]]:
    for s in task.slices:
        image, mask = pictures[(s.path, s.row)]
        yield f"{s.key}.{task.suffix}", image
        yield f"{s.key}.mask.png", mask
        yield f"{s.key}.json", sample_json(s.columns)


def sample_json(columns: Mapping[str, Any]) -> bytes:
    """The JSON member of a sample: always the same keys, floats always floats, no nulls, no nested values."""
    texts = ("key", "collection", "condition", "region", "modality", "sequence", "case", "patient", "split", "plane",
             "orientation", "normalizer", "license", "source_sha256")  # fmt: skip
    floats = ("spacing_row_mm", "spacing_col_mm", "through_plane_mm", "low", "high")
    whole = ("condition_id", "z", "slice_index", "n_slices", "body_pixels", "foreground_pixels")
    note: dict[str, Any] = {name: str(columns[name]) for name in texts}
    note |= {name: float(columns[name]) for name in floats}
    note |= {name: int(columns[name]) for name in whole}
    note["has_label"] = bool(columns["has_label"])
    return json.dumps(note, sort_keys=True, separators=(",", ":")).encode()


def _killed(task: _ShardTask) -> str:
    raise WorkspaceError(
        f"The process that wrote {task.name} was killed twice; free memory or disk and run the same command again."
    )


def _write_manifests(
    store: Store,
    tasks: list[_ShardTask],
    case_rows: list[dict[str, Any]],
    rejects: list[Reject],
    spec: ShardSpec,
    ids: Mapping[str, int],
    salt_digest: str,
) -> None:
    """Write the tables, and dataset.json last: it says that the set is complete."""
    tables = [pq.read_table(t.index) for t in tasks]
    slices = pa.concat_tables([t.replace_schema_metadata() for t in tables]) if tables else SLICES_SCHEMA.empty_table()
    cases = table_from_rows(sorted(case_rows, key=lambda r: (r["collection"], r["case"])), CASES_SCHEMA)
    shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for task, table in zip(tasks, tables, strict=True):
        note = table.schema.metadata
        entry = {
            "name": task.name, "sha256": note[b"medvar.sha256"].decode(), "bytes": int(note[b"medvar.bytes"]),
            "slices": table.num_rows,
        }  # fmt: skip
        shards[task.slices[0].split].append(entry)
    dataset = {
        "schema_version": SCHEMA_VERSION,
        "digest": content_digest(slices),
        "image_side": spec.recipe.side,
        "image_suffix": CODECS[spec.recipe.codec].suffix,
        "conditions": dict(ids),
        "splits": {split: _split_note(split, shards[split], slices, cases) for split in SPLITS},
        "recipe": asdict(spec.recipe),
        "split": asdict(spec.split),
        "seed": spec.seed,
        "salt_sha256": salt_digest,
        "versions": {
            "pipeline": PIPELINE_VERSION, "encoder": encoder_version(), "numpy": np.__version__, "cv2": cv2.__version__,
            "pyarrow": pa.__version__,
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        write_table(local / "slices.parquet", slices)
        write_table(local / "cases.parquet", cases)
        write_rejects(local / "rejects.parquet", rejects)
        write_table(local / "stats.parquet", statistics(slices, cases, spec.recipe.side))
        dataset["tables"] = {name: file_digest(local / name) for name in MANIFESTS}
        write_bytes(local / "dataset.json", canonical_json(dataset).encode())
        for name in (*MANIFESTS, "dataset.json"):
            store.put(local / name, name)


def content_digest(slices: pa.Table) -> str:
    """Name a set's content: sha256 over key, pixels, mask and condition of every slice, in the set's order."""
    digest = sha256()
    for row in zip(*(slices[name].to_pylist() for name in CONTENT_COLUMNS), strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _split_note(split: str, shards: list[dict[str, Any]], slices: pa.Table, cases: pa.Table) -> dict[str, Any]:
    mine = cases.filter(pa.compute.equal(cases["split"], split))
    return {
        "slices": sum(s["slices"] for s in shards),
        "cases": mine.num_rows,
        "patients": len(set(mine["patient"].to_pylist())),
        "shards": shards,
    }
