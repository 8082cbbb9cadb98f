"""Keep the shards of a remote set in a bounded local folder, fetched whole, before they are needed where that is known.

In: a `ShardSet` on object storage. Out: open files of local copies whose digests were compared. Any number of processes may share
the folder: one of them fetches a shard while the others that need it wait, and nobody sees half of one.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from medvar_data.errors import MedvarError, ShardSetError
from medvar_data.shardset.index import ShardSet
from medvar_data.storage.store import telling_of_full_disk

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.5  # before the second attempt; doubled before each later one
FETCHES_AT_ONCE = 8
UNREAD_SECONDS = 3600.0  # by which the time of a copy that nobody has opened yet lies ahead, so that others go first
ABANDONED_SECONDS = 3600.0  # a fetch that has not grown for so long has nobody waiting for it


class ShardCache:
    """Local copies of a remote set's shards.

    Args:
        shard_set: where the shards lie.
        folder: of the copies; those of this set go into a folder of their own in it.
        most_bytes: that folder's bound; the least recently opened copies go first, those that were fetched ahead last.
    """

    def __init__(self, shard_set: ShardSet, folder: Path, most_bytes: int) -> None:
        self.shard_set, self.most_bytes = shard_set, most_bytes
        self.folder = folder / shard_set.digest[:16]
        self._fetchers: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[None]] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()

    def open(self, shard: int) -> int:
        """Open the local copy of a shard, fetched if it is not there; returns a file descriptor.

        Raises:
            ShardSetError: it cannot be fetched, or is not the shard that was published.
        """
        copy = self._copy(shard)
        for _ in range(3):  # another process may remove the copy before it is opened
            if not copy.exists():
                with self._lock:
                    coming = self._coming.pop(shard, None)
                if coming is not None and not coming.cancel():
                    coming.result()
                else:
                    self._fetch(shard)
            with contextlib.suppress(FileNotFoundError):
                os.utime(copy)  # marks the copy as read, just now
                return os.open(copy, os.O_RDONLY)
        raise ShardSetError(
            f"{copy.name} keeps vanishing from the cache; its bound of {self.most_bytes / 1e9:.1f} GB is "
            "too small for the processes that share it, so raise --cache-gb."
        )

    def fetch_ahead(self, shards: Iterable[int]) -> None:
        """Begin to fetch shards, in this order, that are neither there nor on their way."""
        with self._lock:
            for shard in [shard for shard, coming in self._coming.items() if coming.done()]:
                del self._coming[shard]  # what failed fails again, and is told, where it is needed
            for shard in shards:
                if shard not in self._coming and not self._copy(shard).exists():
                    self._fetchers = self._fetchers or ThreadPoolExecutor(
                        FETCHES_AT_ONCE, thread_name_prefix="medvar-fetch"
                    )
                    self._coming[shard] = self._fetchers.submit(self._fetch, shard)

    def close(self) -> None:
        """Give up what was begun ahead."""
        if self._fetchers is not None:
            self._closed.set()  # whoever waits to try again gives up
            self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._fetchers, self._coming, self._closed = None, {}, threading.Event()

    def _copy(self, shard: int) -> Path:
        return self.folder / self.shard_set.shards[shard]

    def _fetch(self, shard: int) -> None:
        """Fetch a shard unless another process or thread has done so meanwhile; a fetch that fails is tried again."""
        copy, closed = self._copy(shard), self._closed
        with telling_of_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{copy.name}.lock"):
            pause, cause = FIRST_PAUSE_SECONDS, ""
            for attempt in range(ATTEMPTS):
                if copy.exists():
                    return
                if attempt and closed.wait(pause):
                    break
                pause *= 2 if attempt else 1
                cause = self._try(shard, copy)
                if not cause:
                    return
        raise ShardSetError(
            f"{copy.name} cannot be fetched from {self.shard_set.url}: {cause}, {ATTEMPTS} times in a row. Try again when the "
            f"storage answers; if it persists, run `medvar-data verify {self.shard_set.url}`."
        )

    def _try(self, shard: int, copy: Path) -> str:
        """Fetch beside, check, rename; returns what went wrong and may go better the next time."""
        shard_set = self.shard_set
        wanted = shard_set.shard_bytes[shard]
        partial = copy.with_name(f"{copy.name}.{uuid4().hex}.{wanted}.partial")
        with FileLock(self.folder / ".room.lock", poll_interval=0.005):
            _make_room(self.folder, self.most_bytes - wanted)
            partial.touch()  # others count its whole length from now on
        try:
            with telling_of_full_disk(self.folder):
                shard_set.filesystem.get_file(shard_set.path(shard), str(partial))
            found = partial.stat().st_size
            if found != wanted:
                return f"{found:,} bytes came of {wanted:,}"
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != shard_set.shard_sha256[shard]:
                return "what came has another digest than dataset.json says"
            unread = time.time() + UNREAD_SECONDS
            os.utime(partial, (unread, unread))
            partial.replace(copy)
        except FileNotFoundError:
            raise ShardSetError(
                f"{copy.name} is missing from {shard_set.url}, though dataset.json lists it; run "
                f"`medvar-data verify {shard_set.url}`, then upload or rebuild that shard."
            ) from None
        except PermissionError:
            raise ShardSetError(f"{shard_set.url} does not let {copy.name} be read; check your access to it.") from None
        except MedvarError:  # the disk is full
            raise
        except Exception as error:  # time-outs, resets, errors of the server: every storage has its own
            return type(error).__name__
        finally:
            partial.unlink(missing_ok=True)
        return ""


class Coming:
    """The shards of the batches to come, as far as there is room for them.

    Args:
        shard_bytes: of every shard of the split.
        room: bytes that the shards of all batches may have together; the next batch's may have more.
    """

    def __init__(self, shard_bytes: Sequence[int], room: int) -> None:
        self._bytes, self._room = shard_bytes, room
        self._batches: deque[list[int]] = deque()
        self._uses: Counter[int] = Counter()
        self._held = 0

    def __len__(self) -> int:
        return len(self._batches)

    def takes(self, shards: Iterable[int]) -> bool:
        """Tell whether there is room for a further batch."""
        more = sum(self._bytes[shard] for shard in shards if shard not in self._uses)
        return not self._batches or self._held + more <= self._room

    def add(self, shards: Iterable[int]) -> list[int]:
        """Add a batch; gives those of its shards that no batch before it has."""
        mine = list(shards)
        new = [shard for shard in mine if shard not in self._uses]
        self._held += sum(self._bytes[shard] for shard in new)
        self._uses.update(mine)
        self._batches.append(mine)
        return new

    def pass_by(self) -> None:
        """Leave the first batch behind."""
        for shard in self._batches.popleft():
            self._uses[shard] -= 1
            if not self._uses[shard]:
                del self._uses[shard]
                self._held -= self._bytes[shard]


def _make_room(folder: Path, allowed_bytes: int) -> None:
    """Remove the least recently opened copies until the rest, and what is on its way, fits."""
    copies: list[tuple[float, int, Path]] = []
    coming = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.suffix == ".tar":
                copies.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".partial" and time.time() - status.st_mtime > ABANDONED_SECONDS:
                path.unlink()
            elif path.suffix == ".partial":
                coming += int(path.suffixes[-2].removeprefix("."))
    total = coming + sum(size for _, size, _ in copies)
    for _, size, path in sorted(copies):
        if total <= allowed_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
