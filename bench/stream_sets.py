"""Shard sets for bench/stream.py: another one's slices in another codec or in smaller shards, and an index without shards."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.shard.write import transcoded
from medvar_data.shardset.dataset import DATASET_FILE, Dataset, ShardEntry, crc32, read_dataset
from medvar_data.shardset.schema import SLICES_SCHEMA, SPLITS, VERSION_NOTE, sample_json
from medvar_data.storage.codec import CODECS
from medvar_data.storage.parquet import table_from_rows, write_table
from medvar_data.storage.store import Store, canonical_json, file_digest
from medvar_data.storage.tar import write_tar


def repack(source: Path, out: Path, codec: str, per_shard: int) -> None:
    """Write the slices of a set, in their order, as another set."""
    out.mkdir()
    dataset = read_dataset(Store(str(source)))
    old, new = CODECS[dataset.codec], CODECS[codec]
    rows, entries = [], {split: [] for split in SPLITS}
    for split in SPLITS:
        mine = pq.read_table(source / "slices.parquet", filters=[("split", "==", split)]).to_pylist()
        for number, start in enumerate(range(0, len(mine), per_shard)):
            some, name = mine[start : start + per_shard], f"{split}-{number:06d}.tar"
            pictures = [transcoded(_pair(source, row), old, new) for row in some]
            placed = iter(write_tar(out / name, _members(some, pictures, new.suffix)))
            for row, (image, mask) in zip(some, pictures, strict=True):
                row |= {"shard": name, "image_crc32": crc32(image), "mask_crc32": crc32(mask)}
                for what in ("image", "mask", "json"):
                    member = next(placed)
                    row |= {f"{what}_offset": member.offset, f"{what}_size": member.size}
            entries[split].append(ShardEntry(name, file_digest(out / name), (out / name).stat().st_size, len(some)))
            rows += some
    for name in set(dataset.tables) - {"slices.parquet"}:
        (out / name).write_bytes((source / name).read_bytes())
    splits = {split: replace(dataset.splits[split], shards=tuple(entries[split])) for split in SPLITS}
    _publish(out, replace(dataset, codec=codec, splits=splits), table_from_rows(rows, SLICES_SCHEMA))


def _pair(source: Path, row: dict) -> tuple[bytes, bytes]:
    with (source / row["shard"]).open("rb") as file:
        file.seek(row["image_offset"])
        image = file.read(row["image_size"])
        file.seek(row["mask_offset"])
        return image, file.read(row["mask_size"])


def _members(rows: list[dict], pictures: list[tuple[bytes, bytes]], suffix: str) -> Iterator[tuple[str, bytes]]:
    for row, (image, mask) in zip(rows, pictures, strict=True):
        yield f"{row['key']}.{suffix}", image
        yield f"{row['key']}.mask.{suffix}", mask
        yield f"{row['key']}.json", sample_json(row)


def large_index(source: Path, out: Path, n_slices: int) -> None:
    """Repeat a set's train rows until there are so many, in the paper's 1,024 a shard, under keys and digests of their own."""
    out.mkdir()
    dataset = read_dataset(Store(str(source)))
    some = pq.read_table(source / "slices.parquet", filters=[("split", "==", "train")]).cast(SLICES_SCHEMA)
    shards = [f"train-{number:06d}.tar" for number in range(-(-n_slices // 1024))]
    rng = np.random.default_rng(0)
    at = rng.integers(0, len(some), n_slices)
    table = some.take(pa.array(at))
    numbers = np.arange(n_slices)
    digests = rng.bytes(64 * n_slices).hex()
    collections = np.array(some["collection"].to_pylist())[at]
    own = {
        "key": [f"{c}-case{n // 100:05d}-z{n % 100:04d}" for n, c in zip(numbers, collections, strict=True)],
        "shard": [shards[n // 1024] for n in numbers],
        "image_sha256": [digests[128 * n : 128 * n + 64] for n in numbers],
        "mask_sha256": [digests[128 * n + 64 : 128 * n + 128] for n in numbers],
        "image_crc32": rng.integers(0, 1 << 32, n_slices, dtype=np.uint32),
        "mask_crc32": rng.integers(0, 1 << 32, n_slices, dtype=np.uint32),
    }
    for name, values in own.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, SLICES_SCHEMA.field(name), pa.array(values, SLICES_SCHEMA.field(name).type))
    longest = int(pa.compute.max(some["json_offset"]).as_py()) + (1 << 20)
    entries = tuple(
        ShardEntry(name, "0" * 64, longest, min(1024, n_slices - 1024 * i)) for i, name in enumerate(shards)
    )
    none = {split: replace(dataset.splits[split], slices=0, shards=()) for split in SPLITS}
    _publish(
        out,
        replace(dataset, splits={**none, "train": replace(none["train"], slices=n_slices, shards=entries)}),
        table,
    )


def _publish(out: Path, dataset: Dataset, slices: pa.Table) -> None:
    write_table(out / "slices.parquet", slices, VERSION_NOTE)
    tables = {**dataset.tables, "slices.parquet": file_digest(out / "slices.parquet")}
    (out / DATASET_FILE).write_text(canonical_json(asdict(replace(dataset, tables=tables))))
