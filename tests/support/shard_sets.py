"""Write a small shard set exactly as readers may expect it, without the data side's writer; read back a table."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.shardset.schema import COLLECTIONS_SCHEMA, SCHEMA_VERSION

CONDITIONS = {"alpha-ct": 3, "beta-mr": 7, "gamma-mr": 12}  # global ids: not dense, not from zero


def rows_of(folder: Path, name: str) -> list[dict]:
    """The rows of one of a set's tables."""
    return pq.read_table(folder / name).to_pylist()


def picture(number: int, side: int) -> np.ndarray:
    """A smooth random picture with a bright ellipse: learnable, and different for each number."""
    rng = np.random.default_rng((number, 99))
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    y, x = rng.uniform(-0.2, 0.2, 2)
    height, width = rng.uniform(0.15, 0.35, 2)
    inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
    shade = 60 + 40 * np.sin(rng.uniform(2, 8) * rows + rng.uniform(0, 6)) + 90 * inside
    return np.clip(shade, 0, 255).astype(np.uint8)


def mask_of(image: np.ndarray) -> np.ndarray:
    return (image > 120).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def write_shard_set(
    root: Path,
    slices: dict[str, int],
    side: int = 32,
    per_shard: int = 5,
    conditions: dict[str, int] = CONDITIONS,
    image_of: Callable[[str, int, int], np.ndarray] = lambda condition, number, side: picture(number, side),
) -> Path:
    """Write a set with `slices[split]` slices a split, their conditions in the ratio 3 : 2 : 1 repeated.

    `image_of` draws a slice of a condition, from its number and side.
    """
    root.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    splits = {}
    names = list(conditions)
    pattern = [names[min(i, len(names) - 1)] for i in (0, 0, 0, 1, 1, 2)]
    for split_number, split in enumerate(("train", "val", "test")):
        count, shards = slices.get(split, 0), []
        for first in range(0, count, per_shard):
            name = f"{split}-{first // per_shard:06d}.tar"
            numbers = range(first, min(first + per_shard, count))
            rows += write_shard(root / name, split, split_number, numbers, side, pattern, conditions, image_of)
            data = (root / name).read_bytes()
            shards.append(
                {
                    "name": name,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "bytes": len(data),
                    "slices": len(numbers),
                }
            )
        splits[split] = {"slices": count, "cases": count, "patients": count, "shards": shards}
    pq.write_table(pa.Table.from_pylist(rows), root / "slices.parquet")
    pq.write_table(collections_of(rows), root / "collections.parquet")
    digest = hashlib.sha256(json.dumps([splits, side, conditions], sort_keys=True).encode()).hexdigest()
    dataset = {
        "schema_version": SCHEMA_VERSION, "digest": digest, "image_side": side, "codec": "png",
        "conditions": conditions, "splits": splits, "recipe": {}, "split": {}, "seed": 0, "salt_sha256": "", "versions": {},
        "tables": dict.fromkeys(
            ("cases.parquet", "rejects.parquet", "stats.parquet", "collections.parquet", "edges.parquet"), "0" * 64
        ),
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(dataset))
    return republished(root)


def republished(root: Path, **changes: object) -> Path:
    """Write the digests of a set's tables, and other changes, into its dataset.json: as somebody would who altered it on purpose."""
    dataset = json.loads((root / "dataset.json").read_text())
    for path in root.glob("*.parquet"):
        dataset["tables"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / "dataset.json").write_text(json.dumps({**dataset, **changes}))
    return root


def collections_of(rows) -> pa.Table:
    """What a set says of its collections: what a model's card takes from it."""
    names = sorted({row["collection"] for row in rows})
    terms = dict.fromkeys(("commercial", "derivatives", "share_alike", "redistribute"), "unknown")
    columns = [
        {
            "collection": name, "title": f"The {name} collection", "license": "CC-BY-4.0", "license_confirmed": True, "doi": "",
            "n_kept": sum(row["collection"] == name for row in rows), **terms,
        }
        for name in names
    ]  # fmt: skip
    schema = pa.schema([field for field in COLLECTIONS_SCHEMA if not columns or field.name in columns[0]])
    return pa.Table.from_pylist(columns, schema=schema)


def write_shard(path, split, split_number, numbers, side, pattern, conditions, image_of):
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            condition = pattern[number % len(pattern)]
            key = f"{condition}-{split}{number:04d}-z0001"
            image = image_of(condition, number + 10_000 * split_number, side)
            where = {}
            for suffix, field, data in (
                (".png", "image", png(image)),
                (".mask.png", "mask", png(mask_of(image))),
                (".json", "json", json.dumps({"key": key}).encode()),
            ):
                where[f"{field}_offset"] = np.int64(tar.offset + 512)
                where[f"{field}_size"] = np.int64(len(data))
                if field != "json":
                    where[f"{field}_crc32"] = np.uint32(zlib.crc32(data))
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            collection, modality = condition.split("-")
            rows.append({
                "key": key, "split": split, "shard": path.name, **where, "collection": collection,
                "condition": condition, "condition_id": np.int32(conditions[condition]),
                "has_label": number % 4 != 0, "region": "chest", "modality": modality.upper(), "sequence": "",
                "case": key, "patient": key, "slice_index": np.int32(1),
                "spacing_row_mm": 1.0, "spacing_col_mm": 1.0,
                "image_sha256": hashlib.sha256(f"{side}x{side}:".encode() + image.tobytes()).hexdigest(),
            })  # fmt: skip
    return rows
