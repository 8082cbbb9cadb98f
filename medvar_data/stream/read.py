"""Read one slice's pixels: a `pread` and a PNG decode.

In: a `ShardSet` and a row number. Out: a uint8 array. Shards on remote storage are fetched whole on first
touch into a bounded folder, so that a set is downloaded once and then read like a local one.
"""

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from uuid import uuid4

import numpy as np
from jaxtyping import UInt8

from medvar_data.errors import ShardSetError
from medvar_data.shardset.dataset import crc32
from medvar_data.shardset.index import ShardSet

MOST_OPEN_SHARDS = 256  # descriptors held; most systems allow a process 1,024


class _Descriptor:
    """An open file that closes when its last reader lets go, so eviction cannot pull it from under one."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class ShardReader:
    """Reads members of a set's shards; any number of threads may share one.

    Args:
        shard_set: where the shards lie.
        cache: folder for shards of a remote set; needed for those only.
        cache_bytes: that folder's bound; the least recently opened shards go first.
    """

    def __init__(self, shard_set: ShardSet, cache: str = "", cache_bytes: int = 0) -> None:
        if not shard_set.is_local and not cache:
            raise ShardSetError(
                f"{shard_set.url} is remote; name a local folder to keep fetched shards in (--cache FOLDER)."
            )
        self.shard_set = shard_set
        self._cache = Path(cache) / shard_set.digest[:16] if cache else None
        self._cache_bytes = cache_bytes
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, row: int) -> UInt8[np.ndarray, "side side"]:
        """Return the pixels of a slice."""
        return self._pixels(row, "image")

    def mask(self, row: int) -> UInt8[np.ndarray, "side side"]:
        """Return the label map of a slice, all zero where it has no annotation."""
        return self._pixels(row, "mask")

    def close(self) -> None:
        """Close every open shard; the reader stays usable."""
        with self._lock:
            self._open.clear()

    def _pixels(self, row: int, member: str) -> np.ndarray:
        shard_set = self.shard_set
        side = shard_set.image_side
        offset, size, crc = (
            int(getattr(self.shard_set, f"{member}_{name}")[row]) for name in ("offset", "size", "crc32")
        )
        data = self._bytes(int(self.shard_set.shard[row]), offset, size)
        wanted = f"{side} × {side} grey pixels of 8 bits"
        if len(data) != size:
            raise self._damaged(row, member, f"ends after {len(data)} of {size} bytes", wanted)
        if crc32(data) != crc:
            raise self._damaged(row, member, "is another one than was published", wanted)
        try:
            pixels = shard_set.codec.decode(data)
        except ShardSetError:
            raise self._damaged(row, member, "cannot be decoded", wanted) from None
        if pixels.shape != (side, side):
            raise self._damaged(row, member, f"has {pixels.shape[0]} × {pixels.shape[1]} pixels", wanted)
        return pixels

    def _damaged(self, row: int, member: str, found: str, wanted: str) -> ShardSetError:
        shard_set = self.shard_set
        key, shard = shard_set.keys[row].as_py(), shard_set.shards[shard_set.shard[row]]
        return ShardSetError(
            f"{shard}: the {member} of {key} {found}; wanted {wanted}. Run `medvar-data verify "
            f"{shard_set.url}` to list all damage, then fetch or rebuild that shard."
        )

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(shard)
        return os.pread(descriptor.number, size, offset)

    def _descriptor(self, shard: int) -> _Descriptor:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        opened = self._open_shard(shard)
        with self._lock:
            self._open[shard] = opened
            while len(self._open) > MOST_OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def _open_shard(self, shard: int) -> _Descriptor:
        """Open a local shard in place, or a remote one's copy, which another process may evict meanwhile."""
        if self._cache is None or self.shard_set.is_local:
            return self._opened(Path(self.shard_set.path(shard)), shard)
        copy = self._cache / self.shard_set.shards[shard]
        for _ in range(3):
            if not copy.exists():
                self._fetch(shard, copy)
            with contextlib.suppress(FileNotFoundError):
                os.utime(copy)  # marks the copy as recently used
                return _Descriptor(copy)
        raise ShardSetError(
            f"{copy.name} keeps vanishing from the cache; its bound of {self._cache_bytes / 1e9:.1f} GB is "
            "too small for the processes that share it, so raise --cache-gb."
        )

    def _opened(self, path: Path, shard: int) -> _Descriptor:
        name, url = self.shard_set.shards[shard], self.shard_set.url
        try:
            descriptor = _Descriptor(path)
        except FileNotFoundError:
            raise ShardSetError(
                f"{name} is missing from {url}, though dataset.json lists it; run `medvar-data verify "
                f"{url}`, then fetch or rebuild that shard."
            ) from None
        found, wanted = os.fstat(descriptor.number).st_size, self.shard_set.shard_bytes[shard]
        if found != wanted:
            raise ShardSetError(
                f"{name} in {url} has {found} bytes; dataset.json says {wanted}. Run `medvar-data verify "
                f"{url}`, then fetch or rebuild that shard."
            )
        return descriptor

    def _fetch(self, shard: int, copy: Path) -> None:
        """Fetch beside, check, rename. Two processes may both fetch a shard; neither can see half of it."""
        shard_set = self.shard_set
        copy.parent.mkdir(parents=True, exist_ok=True)
        _evict(copy.parent, self._cache_bytes - shard_set.shard_bytes[shard])
        partial = copy.with_name(f"{copy.name}.{uuid4().hex}.partial")
        try:
            shard_set.filesystem.get_file(shard_set.path(shard), str(partial))
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != shard_set.shard_sha256[shard]:
                raise ShardSetError(
                    f"{copy.name} as fetched from {shard_set.url} has another digest than dataset.json says; "
                    f"fetch it again, and if that persists run `medvar-data verify {shard_set.url}`."
                )
            partial.replace(copy)
        except FileNotFoundError:
            raise ShardSetError(
                f"{copy.name} is missing from {shard_set.url}, though dataset.json lists it; run "
                f"`medvar-data verify {shard_set.url}`, then upload or rebuild that shard."
            ) from None
        finally:
            partial.unlink(missing_ok=True)


def _evict(folder: Path, allowed_bytes: int) -> None:
    """Remove the least recently opened copies until the rest fits; another process may be doing the same."""
    copies: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            copies.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in copies)
    for _, size, path in sorted(copies):
        if total <= allowed_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
