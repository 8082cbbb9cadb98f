"""Write a shard set whose pictures do not come from scans: images that a model drew, or maps that it made of a set's slices.

In: rows and pictures. Out: tars, tables and `dataset.json` in a new folder, which streams like any other set. Where the rows are those of
a set's slices, their geometry comes along, so that `medvar-data reconstruct` lays the maps back onto the scans.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from medvar_data.errors import ShardSetError
from medvar_data.shardset.columns import Column
from medvar_data.shardset.dataset import DATASET_FILE, Dataset, ShardEntry, SplitEntry, crc32
from medvar_data.shardset.schema import (
    CASE_COLUMNS,
    CASES_SCHEMA,
    SCHEMA_VERSION,
    SCHEMAS,
    SLICE_COLUMNS,
    SLICES_SCHEMA,
    SPLITS,
    VERSION_NOTE,
    content_digest,
    member_names,
    sample_json,
)
from medvar_data.storage.codec import PNG, pixel_digest
from medvar_data.storage.parquet import table_from_rows, write_table
from medvar_data.storage.store import canonical_json, file_digest, write_bytes
from medvar_data.storage.tar import write_tar

PER_SHARD = 1024


@dataclass(frozen=True)
class DerivedSet:
    """What `dataset.json` says of a derived set; the attributes are those of `Dataset`.

    Attributes:
        versions: of what made the pictures, such as digests of checkpoints.
    """

    image_side: int
    conditions: Mapping[str, int]
    versions: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    made_from: str = ""


class DerivedWriter:
    """Takes slices one after the other and writes a shard whenever one is full; `finish` makes it a set.

    Args:
        folder: a new or empty one.
        about: see `DerivedSet`.

    Raises:
        ShardSetError: the folder holds something already.
    """

    def __init__(self, folder: Path, about: DerivedSet) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise ShardSetError(f"{folder} is not empty; a shard set is written into a new folder. Name another one.")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._about = folder, about
        self._waiting: dict[str, list[tuple[dict[str, Any], bytes, bytes]]] = {split: [] for split in SPLITS}
        self._placed: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._shards: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}

    def add(self, row: Mapping[str, Any], image: UInt8[np.ndarray, "side side"]) -> None:
        """Take in a slice; its mask is empty.

        Args:
            row: of slices.parquet; what says where the slice lies and what its pictures hold is filled in here.
            image: side x side, [0, 255].
        """
        mask = np.zeros_like(image)
        said = {
            "image_sha256": pixel_digest(image),
            "mask_sha256": pixel_digest(mask),
            "has_label": False,
            "foreground_pixels": 0,
            "label_pixels": {},
        }
        waiting = self._waiting[row["split"]]
        waiting.append(({**row, **said}, PNG.encode(image), PNG.encode_mask(mask)))
        if len(waiting) == PER_SHARD:
            self._write_shard(row["split"])

    def finish(self, cases: Sequence[Mapping[str, Any]]) -> str:
        """Write what is left, the tables and, last, dataset.json; returns the set's digest.

        Args:
            cases: rows of cases.parquet, but for the number of slices.
        """
        for split in SPLITS:
            if self._waiting[split]:
                self._write_shard(split)
        rows = [row for split in SPLITS for row in self._placed[split]]
        counts: dict[tuple[str, str], int] = {}
        for row in rows:
            counts[(row["collection"], row["case"])] = counts.get((row["collection"], row["case"]), 0) + 1
        kept = [{**case, "n_kept": counts[(case["collection"], case["case"])]} for case in cases]
        slices = table_from_rows(rows, SLICES_SCHEMA)
        tables = {
            name: pa.table({f.name: pa.array([], f.type) for f in schema}, schema) for name, schema in SCHEMAS.items()
        }
        tables |= {"slices.parquet": slices, "cases.parquet": table_from_rows(kept, CASES_SCHEMA)}
        for name, table in tables.items():
            write_table(self._folder / name, table, VERSION_NOTE)
        about = self._about
        dataset = Dataset(
            schema_version=SCHEMA_VERSION,
            digest=content_digest(slices),
            image_side=about.image_side,
            codec=PNG.name,
            conditions=dict(about.conditions),
            splits={split: self._split(split) for split in SPLITS},
            recipe=dict(about.recipe),
            split={},
            seed=0,
            salt_sha256="",
            versions=dict(about.versions),
            tables={name: file_digest(self._folder / name) for name in tables},
            made_from=about.made_from,
        )
        write_bytes(self._folder / DATASET_FILE, canonical_json(asdict(dataset)).encode())
        return dataset.digest

    def _split(self, split: str) -> SplitEntry:
        rows = self._placed[split]
        cases = {(row["collection"], row["case"]) for row in rows}
        return SplitEntry(len(rows), len(cases), len({row["patient"] for row in rows}), tuple(self._shards[split]))

    def _write_shard(self, split: str) -> None:
        waiting, self._waiting[split] = self._waiting[split], []
        name = f"{split}-{len(self._shards[split]):06d}.tar"
        members = write_tar(self._folder / name, _members(waiting))
        for i, (row, image, mask) in enumerate(waiting):
            place: dict[str, Any] = {"shard": name, "image_crc32": crc32(image), "mask_crc32": crc32(mask)}
            for member, written in zip(("image", "mask", "json"), members[3 * i : 3 * i + 3], strict=True):
                place |= {f"{member}_offset": written.offset, f"{member}_size": written.size}
            self._placed[split].append({**row, **place})
        path = self._folder / name
        self._shards[split].append(ShardEntry(name, file_digest(path), path.stat().st_size, len(waiting)))


def drawn_row(condition: str, condition_id: int, number: int, side: int) -> dict[str, Any]:
    """Give the row of slices.parquet of an image that a model drew: of the split train, a scan and a patient of its own.

    It has no source, so what tells of one is empty or 0; a pixel counts as 1 mm.
    """
    case = f"{condition}-{number:06d}"
    modality = {"ct": "CT", "mr": "MR"}.get(condition.rpartition("-")[2], "")
    said = {
        "key": f"synthetic-{case}-z0000",
        "split": "train",
        "collection": "synthetic",
        "case": case,
        "patient": sha256(f"synthetic {case}".encode()).hexdigest()[:16],
        "condition": condition,
        "condition_id": condition_id,
        "modality": modality,
        "plane": "axial",
        "n_slices": 1,
        "source_shape": [side, side, 1],
        "source_affine": [float(i == j) for i in range(4) for j in range(4)],
        "orientation": "RAS",
        "spacing_row_mm": 1.0,
        "spacing_col_mm": 1.0,
        "through_plane_mm": 1.0,
        "normalizer": "window",
        "high": 255.0,
        "recipe": "synthetic",
    }
    return {**_blank(SLICE_COLUMNS), **said}


def case_row(slice_row: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of cases.parquet that goes with a drawn image's row."""
    blank = _blank(CASE_COLUMNS)
    return {**blank, **{name: slice_row[name] for name in blank if name in slice_row}}


def _blank(columns: Sequence[Column]) -> dict[str, Any]:
    """A row that says nothing: empty texts and lists, zeros, false."""
    return {column.name: _nothing(column.type) for column in columns}


def _nothing(kind: pa.DataType) -> Any:
    if pa.types.is_map(kind):
        return {}
    if pa.types.is_fixed_size_list(kind):
        return [0] * kind.list_size
    if pa.types.is_list(kind):
        return []
    if pa.types.is_string(kind):
        return ""
    return False if pa.types.is_boolean(kind) else 0


def _members(waiting: Sequence[tuple[dict[str, Any], bytes, bytes]]) -> Iterator[tuple[str, bytes]]:
    for row, image, mask in waiting:
        yield from zip(member_names(row["key"], PNG.suffix), (image, mask, sample_json(row)), strict=True)
