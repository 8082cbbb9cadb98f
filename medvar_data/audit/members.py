"""Check the bytes of one shard: its archive, its members, the pictures in them, each against its row of slices.parquet.

An archive holds what `storage.tar` and `storage.codec` write and nothing else: whatever could be hidden beside a picture, behind a
member or behind the end of the archive is a finding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt8

from medvar_data.errors import ShardSetError
from medvar_data.harmonize.histogram import count_picture
from medvar_data.naming import is_key
from medvar_data.shard.plan import order_keys
from medvar_data.shardset.dataset import Dataset, ShardEntry, crc32
from medvar_data.shardset.schema import CASE_KEY, member_names, sample_json
from medvar_data.storage.codec import CODECS, pixel_digest
from medvar_data.storage.store import Store
from medvar_data.storage.tar import Member, read_tar, tar_oddity

Picture = UInt8[np.ndarray, "h w"]


@dataclass(frozen=True)
class Promised:
    """What dataset.json and collections.parquet say of all shards.

    Attributes:
        dataset: as read.
        labels: by collection, the label ids that its masks may hold.
        grey_levels: takes in every picture that is decoded.
    """

    dataset: Dataset
    labels: Mapping[str, frozenset[int]]
    grey_levels: "GreyLevels"


class GreyLevels:
    """The pixels of each case by grey level, as the pictures in the shards have them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Int64[np.ndarray, "2 256"]] = {}

    def add(self, row: Mapping[str, Any], image: Picture, mask: Picture) -> None:
        """Take in a slice: its row of slices.parquet and its pictures, of one shape."""
        found = self._found.setdefault((row["collection"], row["case"]), np.zeros((2, 256), dtype=np.int64))
        found[0] += count_picture(image)
        found[1] += count_picture(image, mask)

    def contradictions(self, cases: pa.Table) -> Iterator[str]:
        """Compare with cases.parquet: equal, or, where the set's condition left slices out, no more than it says.

        Args:
            cases: rows of cases.parquet of which every slice was added.
        """
        names = ("histogram_slices", "histogram_slices_foreground")
        for row in cases.select([*CASE_KEY, "n_not_selected", *names]).to_pylist():
            found = self._found.get((row["collection"], row["case"]), np.zeros((2, 256), dtype=np.int64))
            for name, pixels in zip(names, found, strict=True):
                said = np.array(row[name])
                if not (np.all(pixels <= said) if row["n_not_selected"] else np.array_equal(pixels, said)):
                    yield f"{row['collection']}/{row['case']}: its slices do not hold the pixels that {name} counts"


def check_shard(
    store: Store, split: str, entry: ShardEntry, rows: list[dict[str, Any]], promised: Promised
) -> Iterator[str]:
    """Check one shard.

    Args:
        store: where the set lies.
        split: that dataset.json lists the shard in.
        entry: what dataset.json says of it.
        rows: of slices.parquet that name it, in order.
        promised: what the set says of all shards.
    """
    name = entry.name
    try:
        data = store.read(name)
    except OSError:
        yield f"{name} is missing"
        return
    if sha256(data).hexdigest() != entry.sha256:
        yield f"{name} does not have the digest that dataset.json gives"
    if len(data) != entry.bytes:
        yield f"{name} has {len(data):,} bytes, dataset.json says {entry.bytes:,}"
    if len(rows) != entry.slices:
        yield f"{name}: dataset.json counts {entry.slices} slices, slices.parquet {len(rows)}"
    try:
        members = read_tar(data)
    except Exception:
        yield f"{name} is not a readable tar; fetch or write it again"
        return
    suffix = CODECS[promised.dataset.codec].suffix
    wanted = [name for row in rows for name in member_names(row["key"], suffix)]
    if [m.name for m in members] != wanted:
        yield f"{name}: its members are not the rows of slices.parquet, in order"
        return
    if oddity := tar_oddity(data, members):
        yield f"{name} is not as it was written: {oddity}"
    yield from _check_order(name, rows, promised.dataset.seed)
    for row, image, mask, text in zip(rows, members[0::3], members[1::3], members[2::3], strict=True):
        yield from _check_sample(data, split, row, (image, mask, text), promised)


def _check_order(name: str, rows: list[dict[str, Any]], seed: int) -> Iterator[str]:
    order = [tuple(pair) for pair in order_keys((row["key"] for row in rows), seed).tolist()]
    if order != sorted(order):
        yield f"{name}: its slices are not in the order that the seed {seed} of dataset.json gives"


def _check_sample(
    data: bytes,
    split: str,
    row: dict[str, Any],
    members: tuple[Member, Member, Member],
    promised: Promised,
) -> Iterator[str]:
    key = row["key"]
    if not is_key(key):
        yield f"{key}: not a key of lower-case letters, digits and hyphens"
    if key != f"{row['collection']}-{row['case']}-z{row['z']:04d}":
        yield f"{key}: its row names the case {row['collection']}/{row['case']} and z {row['z']}"
    if row["split"] != split:
        yield f"{key}: the row says {row['split']}, the shard is {split}"
    for member, column in zip(members, ("image", "mask", "json"), strict=True):
        if (member.offset, member.size) != (row[f"{column}_offset"], row[f"{column}_size"]):
            yield (
                f"{key}: {column} lies at byte {member.offset} and has {member.size} bytes, the row says {row[f'{column}_offset']} "
                f"and {row[f'{column}_size']}"
            )
    image, mask, text = (data[m.offset : m.offset + m.size] for m in members)
    if text != sample_json(row):
        yield f"{key}: its JSON does not say what its row says"
    pictures: list[Picture] = []
    for name, picture in (("image", image), ("mask", mask)):
        yield from _check_picture(picture, name, row, promised, pictures)
    if len(pictures) == 2 and pictures[0].shape == pictures[1].shape:
        promised.grey_levels.add(row, *pictures)


def _check_picture(
    picture: bytes, member: str, row: dict[str, Any], promised: Promised, decoded: list[Picture]
) -> Iterator[str]:
    key, side, codec = row["key"], promised.dataset.image_side, CODECS[promised.dataset.codec]
    if crc32(picture) != row[f"{member}_crc32"]:
        yield f"{key}: its bytes do not have the checksum in {member}_crc32"
    try:
        pixels, oddity = codec.decode(picture), codec.oddity(picture)
    except ShardSetError:
        yield f"{key}: a picture cannot be decoded"
        return
    decoded.append(pixels)
    if oddity:
        yield f"{key}: its {member} is not as it was written: {oddity}"
    if pixels.shape != (side, side):
        yield f"{key}: a picture is {pixels.shape[0]} x {pixels.shape[1]}; wanted {side} x {side}"
    if pixel_digest(pixels) != row[f"{member}_sha256"]:
        yield f"{key}: its pixels do not have the digest in {member}_sha256"
    if member == "mask":
        yield from _check_counts(pixels, row, promised.labels.get(row["collection"], frozenset()))


def _check_counts(mask: UInt8[np.ndarray, "h w"], row: dict[str, Any], labels: frozenset[int]) -> Iterator[str]:
    counts = np.bincount(mask.reshape(-1), minlength=1)
    found = {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v}
    if found != dict(row["label_pixels"]):
        yield f"{row['key']}: its mask does not hold the pixels that label_pixels counts"
    if sum(found.values()) != row["foreground_pixels"]:
        yield f"{row['key']}: its mask does not hold the pixels that foreground_pixels counts"
    if found and not row["has_label"]:
        yield f"{row['key']}: it has a mask, but has_label is false"
    if row["has_label"] and not found:
        yield f"{row['key']}: has_label is true, but its mask is empty"
    if unknown := sorted(found.keys() - labels):
        yield f"{row['key']}: its mask holds the label {unknown[0]}, which collections.parquet does not name"
