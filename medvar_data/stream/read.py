"""Read slices' pixels: for each a range of its shard, for all together a decode.

In: a `ShardSet` and row numbers. Out: uint8 arrays. Every picture's CRC-32 is compared before it is decoded, so a picture that was
damaged or exchanged since the set was published is named, at a thousandth of a decode's time.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from medvar_data.errors import ShardSetError
from medvar_data.shardset.dataset import crc32
from medvar_data.shardset.index import ShardSet
from medvar_data.stream.buffers import Buffers
from medvar_data.stream.cache import ShardCache

MOST_OPEN_SHARDS = 256  # descriptors held; most systems allow a process 1,024
NEAR = 1 << 14  # bytes between image and mask below which one read fetches both
PATIENCE_SECONDS = 60.0  # before a shard that could not be opened is tried again
MEMBERS = ("image", "mask")


class _Descriptor:
    """An open file that closes when its last reader lets go, so eviction cannot pull it from under one."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was read of some rows.

    Attributes:
        images: of each row, where it could be read.
        masks: label maps, where they were asked for.
        failed: by place among the rows, why a slice could not be read.
    """

    images: UInt8[np.ndarray, "rows side side"]
    masks: UInt8[np.ndarray, "rows side side"] | None
    failed: Mapping[int, ShardSetError] = field(default_factory=dict)


class ShardReader:
    """Reads members of a set's shards; any number of threads may share one.

    Args:
        shard_set: where the shards lie.
        cache: folder for shards of a remote set; needed for those only.
        cache_bytes: that folder's bound.

    Raises:
        ShardSetError: the set is remote and no folder was named.
    """

    def __init__(self, shard_set: ShardSet, cache: str = "", cache_bytes: int = 0) -> None:
        if not shard_set.is_local and not cache:
            raise ShardSetError(
                f"{shard_set.url} is remote; name a local folder to keep fetched shards in (--cache FOLDER)."
            )
        self.shard_set = shard_set
        self.cache = None if shard_set.is_local else ShardCache(shard_set, Path(cache), cache_bytes)
        self._most_open = MOST_OPEN_SHARDS
        if self.cache is not None:  # an open copy takes room on the disk even after it was removed
            self._most_open = min(MOST_OPEN_SHARDS, max(4, cache_bytes // max(shard_set.shard_bytes, default=1)))
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._unreadable: dict[int, tuple[ShardSetError, float]] = {}  # why, and until when it is not tried again
        self._lock, self._buffers = threading.Lock(), Buffers()

    def read(self, rows: Int64[np.ndarray, " rows"], masks: bool = False, skip_bad: bool = False) -> Pictures:
        """Read the images of some rows, and their label maps if asked for.

        Raises:
            ShardSetError: one cannot be read; with `skip_bad` it is told by its place instead.
        """
        shape = (len(rows), self.shard_set.image_side, self.shard_set.image_side)
        encoded: dict[str, list[bytes]] = {member: [b""] * len(rows) for member in MEMBERS[: 1 + masks]}
        failed: dict[int, ShardSetError] = {}
        where = self._where(rows)
        for place in np.argsort(rows).tolist():  # in the order of the bytes on disk
            try:
                parts = self._encoded(int(rows[place]), where[place], masks)
                for member, data in zip(MEMBERS, parts, strict=False):
                    encoded[member][place] = data
            except ShardSetError as error:
                if not skip_bad:
                    raise
                failed[place] = error
        decoded = {}
        for member, pictures in encoded.items():
            decoded[member] = self._buffers.array(shape)
            self._decode(rows, member, pictures, decoded[member], failed)
        if failed and not skip_bad:
            raise failed[min(failed)]
        return Pictures(decoded["image"], decoded.get("mask"), failed)

    def close(self) -> None:
        """Close every open shard; the reader stays usable."""
        with self._lock:
            self._open.clear()
        if self.cache is not None:
            self.cache.close()

    def _where(self, rows: Int64[np.ndarray, " rows"]) -> list[tuple[int, ...]]:
        """Shard, and offset, size and CRC-32 of both members, of each row."""
        shard_set = self.shard_set
        columns = (
            shard_set.shard, shard_set.image_offset, shard_set.image_size, shard_set.image_crc32,
            shard_set.mask_offset, shard_set.mask_size, shard_set.mask_crc32,
        )  # fmt: skip
        return list(zip(*(column[rows].tolist() for column in columns), strict=True))

    def _encoded(self, row: int, where: tuple[int, ...], masks: bool) -> tuple[bytes, ...]:
        """Read a row's image, and its mask if asked for, and compare their checksums."""
        shard, start, size, crc, mask_start, mask_size, mask_crc = where
        held = self._descriptor(shard)  # open as long as it is held
        number = held.number
        if masks and 0 <= mask_start - start - size <= NEAR:
            data = os.pread(number, mask_start + mask_size - start, start)
            image, mask = data[:size], data[mask_start - start :]
        else:
            image = os.pread(number, size, start)
            mask = os.pread(number, mask_size, mask_start) if masks else b""
        self._check(row, "image", image, size, crc)
        if not masks:
            return (image,)
        self._check(row, "mask", mask, mask_size, mask_crc)
        return image, mask

    def _check(self, row: int, member: str, data: bytes, size: int, crc: int) -> None:
        if len(data) != size:
            raise self._damaged(row, member, f"ends after {len(data)} of {size} bytes")
        if crc32(data) != crc:
            raise self._damaged(row, member, "is another one than was published")

    def _decode(
        self,
        rows: np.ndarray,
        member: str,
        pictures: Sequence[bytes],
        out: np.ndarray,
        failed: dict[int, ShardSetError],
    ) -> None:
        """Decode what was read, all at once; one by one where one of them fails, to say which."""
        codec = self.shard_set.codec
        good = [place for place in range(len(rows)) if place not in failed]
        try:
            if len(good) == len(rows):
                codec.decode_into(pictures, out)
                return
        except ShardSetError:
            pass
        for place in good:
            try:
                codec.decode_into([pictures[place]], out[place : place + 1])
            except ShardSetError:
                failed[place] = self._damaged(int(rows[place]), member, "cannot be decoded")

    def _damaged(self, row: int, member: str, found: str) -> ShardSetError:
        shard_set = self.shard_set
        key, shard = shard_set.keys[row].as_py(), shard_set.shards[shard_set.shard[row]]
        side = shard_set.image_side
        return ShardSetError(
            f"{shard}: the {member} of {key} {found}; wanted {side} × {side} grey pixels of 8 bits. Run `medvar-data verify "
            f"{shard_set.url}` to list all damage, then fetch or rebuild that shard."
        )

    def _descriptor(self, shard: int) -> _Descriptor:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
            error, until = self._unreadable.get(shard, (None, 0.0))
        if error is not None and time.monotonic() < until:
            raise error
        try:
            opened = _Descriptor(self._opened(shard) if self.cache is None else self.cache.open(shard))
        except ShardSetError as error:
            self._unreadable[shard] = (error, time.monotonic() + PATIENCE_SECONDS)
            raise
        with self._lock:
            opened = self._open.setdefault(shard, opened)  # another thread may have been first
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)
        return opened

    def _opened(self, shard: int) -> int:
        """Open a local shard in place."""
        name, url = self.shard_set.shards[shard], self.shard_set.url
        try:
            number = os.open(self.shard_set.path(shard), os.O_RDONLY)
        except FileNotFoundError:
            raise ShardSetError(
                f"{name} is missing from {url}, though dataset.json lists it; run `medvar-data verify "
                f"{url}`, then fetch or rebuild that shard."
            ) from None
        found, wanted = os.fstat(number).st_size, self.shard_set.shard_bytes[shard]
        if found != wanted:
            os.close(number)
            raise ShardSetError(
                f"{name} in {url} has {found} bytes; dataset.json says {wanted}. Run `medvar-data verify "
                f"{url}`, then fetch or rebuild that shard."
            )
        return number
