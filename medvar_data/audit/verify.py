"""Prove a shard set: every byte, row and promise of its tables is checked again, from the files alone.

Checks, in order: dataset.json and the digests of tables and shards; the members of every tar and their offsets against
slices.parquet; keys; sample JSON; pixels against digests and counts; patients and copies of a scan in one split; the condition ids; cases counted by
collection; the files that croissant.json lists.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8

from medvar_data.errors import ShardSetError
from medvar_data.naming import is_key, printable
from medvar_data.records import Progress
from medvar_data.shard.croissant import CROISSANT_FILE, contradictions
from medvar_data.shard.duplicates import find_links
from medvar_data.shardset.dataset import WAY_ON, Dataset, ShardEntry, crc32, read_dataset
from medvar_data.shardset.schema import (
    SCHEMAS,
    SPLITS,
    TABLES,
    content_digest,
    sample_json,
)
from medvar_data.storage.codec import CODECS, pixel_digest
from medvar_data.storage.documents import table_of
from medvar_data.storage.store import Store
from medvar_data.storage.tar import Member, read_tar

MAX_FINDINGS = 50


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found wrong; an empty list of findings is a sound set."""

    n_shards: int
    n_slices: int
    n_cases: int
    findings: tuple[str, ...]


def verify(store: Store, progress: Callable[[Progress], None] = lambda _: None) -> Verification:
    """Check a shard set.

    Raises:
        ShardSetError: there is no set to check, or its tables cannot be read.
    """
    dataset = read_dataset(store)
    findings: list[str] = []
    tables = {name: _table(store, name, dataset, findings) for name in TABLES}
    slices, cases = tables["slices.parquet"].combine_chunks(), tables["cases.parquet"]
    rows_of = _rows_by_shard(slices)
    entries = [(split, entry) for split in SPLITS for entry in dataset.splits[split].shards]
    for done, (split, entry) in enumerate(entries, start=1):
        rows = slices.take(rows_of.pop(entry.name, pa.array([], pa.int64()))).to_pylist()
        findings += _check_shard(store, split, entry, rows, dataset)
        progress(Progress(done, len(entries), entry.name, "checked"))
        if len(findings) >= MAX_FINDINGS:
            break
    else:
        findings += [f"slices.parquet names {name}, which dataset.json does not" for name in rows_of]
    findings += _check_tables(slices, cases, dataset)
    findings += _check_duplicates(slices, cases, tables["edges.parquet"], dataset.image_side)
    findings += _check_collections(tables["collections.parquet"], cases, tables["rejects.parquet"])
    stray = {n for n in store.names() if n.endswith(".tar")} - {entry.name for _, entry in entries}
    findings += [f"{name} lies in the folder but is not part of the set" for name in sorted(stray)]
    findings += _check_croissant(store, dataset)
    return Verification(len(entries), slices.num_rows, cases.num_rows, tuple(findings[:MAX_FINDINGS]))


def _rows_by_shard(slices: pa.Table) -> dict[str, pa.Array]:
    """The numbers of each shard's rows, in order: as objects all rows at once would take gigabytes."""
    if not slices.num_rows:
        return {}
    shard = slices["shard"].combine_chunks().dictionary_encode()
    codes = shard.indices.to_numpy()
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return {name: pa.array(part) for name, part in zip(shard.dictionary.to_pylist(), parts, strict=True)}


def _table(store: Store, name: str, dataset: Dataset, findings: list[str]) -> pa.Table:
    try:
        data = store.read(name)
    except OSError as error:
        raise ShardSetError(f"{name} is missing or cannot be read. {WAY_ON}") from error
    if sha256(data).hexdigest() != dataset.tables[name]:
        findings.append(f"{name} does not have the digest that dataset.json gives")
    return table_of(data, SCHEMAS[name], name, ShardSetError, WAY_ON)


def _check_croissant(store: Store, dataset: Dataset) -> list[str]:
    try:
        return contradictions(store.read(CROISSANT_FILE), dataset)
    except OSError:
        return [f"{CROISSANT_FILE} is missing or cannot be read"]
    except ShardSetError as error:
        return [str(error)]


def _check_shard(
    store: Store, split: str, entry: ShardEntry, rows: list[dict[str, Any]], dataset: Dataset
) -> Iterator[str]:
    name = entry.name
    try:
        data = store.read(name)
    except OSError:
        yield f"{name} is missing"
        return
    if sha256(data).hexdigest() != entry.sha256:
        yield f"{name} does not have the digest that dataset.json gives"
    if len(rows) != entry.slices:
        yield f"{name}: dataset.json counts {entry.slices} slices, slices.parquet {len(rows)}"
    try:
        members = read_tar(data)
    except Exception:
        yield f"{name} is not a readable tar; fetch or write it again"
        return
    suffix = CODECS[dataset.codec].suffix
    wanted = [f"{row['key']}.{ending}" for row in rows for ending in (suffix, f"mask.{suffix}", "json")]
    if [m.name for m in members] != wanted:
        yield f"{name}: its members are not the rows of slices.parquet, in order"
        return
    for row, image, mask, text in zip(rows, members[0::3], members[1::3], members[2::3], strict=True):
        yield from _check_sample(data, split, row, (image, mask, text), dataset)


def _check_sample(
    data: bytes,
    split: str,
    row: dict[str, Any],
    members: tuple[Member, Member, Member],
    dataset: Dataset,
) -> Iterator[str]:
    key = row["key"]
    if not is_key(key):
        yield f"{key}: not a key of lower-case letters, digits and hyphens"
    if row["split"] != split:
        yield f"{key}: the row says {row['split']}, the shard is {split}"
    for member, column in zip(members, ("image", "mask", "json"), strict=True):
        if (member.offset, member.size) != (row[f"{column}_offset"], row[f"{column}_size"]):
            yield f"{key}: {column} lies at byte {member.offset}, the row says {row[f'{column}_offset']}"
    image, mask, text = (data[m.offset : m.offset + m.size] for m in members)
    if text != sample_json(row):
        yield f"{key}: its JSON does not say what its row says"
    for name, picture in (("image", image), ("mask", mask)):
        yield from _check_picture(picture, name, row, dataset)


def _check_picture(picture: bytes, member: str, row: dict[str, Any], dataset: Dataset) -> Iterator[str]:
    key, side = row["key"], dataset.image_side
    if crc32(picture) != row[f"{member}_crc32"]:
        yield f"{key}: its bytes do not have the checksum in {member}_crc32"
    try:
        pixels = CODECS[dataset.codec].decode(picture)
    except ShardSetError:
        yield f"{key}: a picture cannot be decoded"
        return
    if pixels.shape != (side, side):
        yield f"{key}: a picture is {pixels.shape[0]} x {pixels.shape[1]}; wanted {side} x {side}"
    if pixel_digest(pixels) != row[f"{member}_sha256"]:
        yield f"{key}: its pixels do not have the digest in {member}_sha256"
    if member == "mask":
        yield from _check_counts(pixels, row)


def _check_counts(mask: UInt8[np.ndarray, "h w"], row: dict[str, Any]) -> Iterator[str]:
    counts = np.bincount(mask.reshape(-1), minlength=1)
    found = {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v}
    if found != dict(row["label_pixels"]):
        yield f"{row['key']}: its mask does not hold the pixels that label_pixels counts"
    if sum(found.values()) != row["foreground_pixels"]:
        yield f"{row['key']}: its mask does not hold the pixels that foreground_pixels counts"
    if found and not row["has_label"]:
        yield f"{row['key']}: it has a mask, but has_label is false"


def _check_collections(collections: pa.Table, cases: pa.Table, rejects: pa.Table) -> Iterator[str]:
    kept, rejected = (Counter(table["collection"].to_pylist()) for table in (cases, rejects))
    listed = Counter(collections["collection"].to_pylist())
    yield from (f"{name} stands in collections.parquet {n} times" for name, n in listed.items() if n > 1)
    yield from (
        f"{name} has cases, but collections.parquet does not list it" for name in sorted({*kept, *rejected} - {*listed})
    )
    for row in collections.select(["collection", "n_found", "n_kept", "n_rejected"]).to_pylist():
        name = row["collection"]
        if (row["n_kept"], row["n_rejected"], row["n_found"]) != (
            kept[name],
            rejected[name],
            kept[name] + rejected[name],
        ):
            yield (
                f"{name}: {kept[name]} cases kept and {rejected[name]} rejected, collections.parquet says {row['n_kept']} and "
                f"{row['n_rejected']} of {row['n_found']}"
            )


def _check_duplicates(slices: pa.Table, cases: pa.Table, edges: pa.Table, side: int) -> Iterator[str]:
    """Scans that lie in two splits, found by digests, pixels and statistics anew, and named by edges.parquet."""
    names, of_slices = ([f"{c}/{k}" for c, k in _names(table)] for table in (cases, slices))
    split_of = dict(zip(names, cases["split"].to_pylist(), strict=True))
    numbers = pc.index_in(pa.array(of_slices, pa.string()), value_set=pa.array(names, pa.string()))
    numbered = slices.append_column("__case", numbers).filter(pc.is_valid(numbers))
    pairs = {
        (names[link.first], names[link.second]): link.evidence for link in find_links(cases, numbered, side)
    }  # fmt: skip
    for row in edges.to_pylist():
        pairs.setdefault(
            (f"{row['collection_a']}/{row['case_a']}", f"{row['collection_b']}/{row['case_b']}"), "edges.parquet"
        )
    for (a, b), evidence in pairs.items():
        if unknown := [name for name in (a, b) if name not in split_of]:
            yield f"edges.parquet joins {printable(unknown[0])}, which cases.parquet does not list"
        elif split_of[a] != split_of[b]:
            yield f"{a} in {split_of[a]} and {b} in {split_of[b]} show one scan ({evidence}); wanted both in one split"


def _names(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["collection"].to_pylist(), table["case"].to_pylist(), strict=True)


def _check_tables(slices: pa.Table, cases: pa.Table, dataset: Dataset) -> Iterator[str]:
    keys = Counter(slices["key"].to_pylist())
    yield from (f"{key} appears {n} times" for key, n in keys.items() if n > 1)
    splits: dict[str, set[str]] = {}
    for patient, split in zip(cases["patient"].to_pylist(), cases["split"].to_pylist(), strict=True):
        splits.setdefault(patient, set()).add(split)
    for patient, split in zip(slices["patient"].to_pylist(), slices["split"].to_pylist(), strict=True):
        splits.setdefault(patient, set()).add(split)
    yield from (f"patient {p} is in {' and '.join(sorted(s))}" for p, s in splits.items() if len(s) > 1)
    counted = Counter(_names(slices))
    for row in cases.select(["collection", "case", "n_kept"]).to_pylist():
        found = counted.pop((row["collection"], row["case"]), 0)
        if found != row["n_kept"]:
            yield f"{row['collection']}/{row['case']}: {found} slices, cases.parquet says {row['n_kept']}"
    yield from (f"{c}/{k}: slices of a case that cases.parquet does not list" for c, k in counted)
    ids = dataset.conditions
    pairs = set(zip(slices["condition"].to_pylist(), slices["condition_id"].to_pylist(), strict=True))
    yield from (f"condition {n} has id {i}, dataset.json says {ids.get(n)}" for n, i in pairs if ids.get(n) != i)
    if content_digest(slices) != dataset.digest:
        yield "the rows of slices.parquet do not have the digest in dataset.json"
    for split in SPLITS:
        found = slices.filter(pc.equal(slices["split"], split)).num_rows
        if found != dataset.splits[split].slices:
            yield f"{split}: {found} slices, dataset.json says {dataset.splits[split].slices}"
