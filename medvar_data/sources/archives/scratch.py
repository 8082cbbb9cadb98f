"""A private scratch folder for archives that cannot be read in place: bounded, and gone when the run is over.

The folder is readable by its owner alone and holds no name from any archive: files are called by digests. A lock that dies
with its process tells a folder in use from one that a killed run left behind; those go at the next run.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.sources.archives.names import check_ratio

PREFIX = "medvar-scratch-"
LOCK = "lock"
KEEP_FREE = 1 << 30  # bytes of the disk that scratch leaves alone
ATTEMPTS = 20
GRACE_SECONDS = 60.0  # between making a folder and locking it


@dataclass(frozen=True)
class Scratch:
    """A scratch folder in use.

    Attributes:
        folder: private.
        limit_bytes: of all files together; None for all that the disk has free but 1 GiB.
    """

    folder: Path
    limit_bytes: int | None = None

    def make(self, key: str, packed_bytes: int, write: Callable[["BoundedFile"], None]) -> Path:
        """Write the file `key` unless it is there; one that failed before fails again at once.

        Args:
            key: file name, the same for the same content.
            packed_bytes: of the archive that it comes from, for the ratio's bound.
            write: fills the file.

        Raises:
            CaseRejected: whatever `write` raises, or `scratch_full`.
        """
        path, note = self.folder / key, self.folder / f"{key}.failed"
        if path.exists():
            return path
        if note.exists():
            reason, detail = json.loads(note.read_text(encoding="utf-8"))
            raise CaseRejected(Reason(reason), detail)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f"{key}.", suffix=".partial")
        os.close(handle)
        partial = Path(name)
        try:
            with partial.open("wb") as stream:
                write(BoundedFile(stream, self.folder, max(0, self.room_bytes() - self.used_bytes()), packed_bytes))
            partial.replace(path)
        except CaseRejected as error:
            if error.reason not in (Reason.SCRATCH_FULL, Reason.ARCHIVE_PASSWORD):  # those are no fault of the archive
                note.write_text(json.dumps([error.reason.value, error.detail]), encoding="utf-8")
            raise
        finally:
            partial.unlink(missing_ok=True)
        return path

    def used_bytes(self, prefix: str = "") -> int:
        """Bytes of the files whose names start so."""
        total = 0
        for path in self.folder.glob(f"{prefix}*"):
            with contextlib.suppress(FileNotFoundError):  # another process has renamed or removed it
                total += path.stat().st_size if path.is_file() and path.name != LOCK else 0
        return total

    def clear(self) -> None:
        """Remove everything but the folder."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)

    def room_bytes(self) -> int:
        """Bytes that the empty folder could hold."""
        free = shutil.disk_usage(self.folder).free + self.used_bytes() - KEEP_FREE
        return max(0, free if self.limit_bytes is None else min(free, self.limit_bytes))


class BoundedFile:
    """A file to write to that refuses to grow beyond what scratch may hold, or beyond all measure."""

    def __init__(self, stream: IO[bytes], folder: Path, allowed_bytes: int, packed_bytes: int) -> None:
        self._stream = stream
        self.folder = folder
        self._allowed_bytes = allowed_bytes
        self._packed_bytes = packed_bytes
        self.n_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of `data`.

        Raises:
            CaseRejected: `scratch_full` or `unsafe_archive`; nothing of `data` is written then.
        """
        self.n_bytes += len(data)
        check_ratio(self.n_bytes, self._packed_bytes)
        if self.n_bytes > self._allowed_bytes:
            raise scratch_full(self._allowed_bytes)
        try:
            return self._stream.write(data)
        except OSError as error:
            raise scratch_full(self.n_bytes) from error

    def restart(self) -> None:
        """Begin anew with an empty file."""
        self._stream.seek(0)
        self._stream.truncate()
        self.n_bytes = 0

    def flush(self) -> None:
        """Hand on what is buffered."""
        self._stream.flush()

    def tell(self) -> int:
        """Bytes so far."""
        return self.n_bytes


def scratch_full(allowed_bytes: int) -> CaseRejected:
    """What is said of an archive that needs more scratch space than there is."""
    return CaseRejected(
        Reason.SCRATCH_FULL,
        f"the archive unpacks to more than the {allowed_bytes / 1e9:.1f} GB left for it; raise --scratch-limit, name a larger"
        " disk with --scratch, or unpack it yourself",
    )


@contextlib.contextmanager
def open_scratch(parent: Path | None, limit_bytes: int | None) -> Iterator[Scratch]:
    """Make a scratch folder below `parent` (the system's temporary folder where None) and remove it at the end.

    Folders that a killed run left there are removed first.
    """
    place = Path(parent or tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    remove_stale(place)
    folder, lock = _locked_folder(place)
    try:
        yield Scratch(folder, limit_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _locked_folder(place: Path) -> tuple[Path, FileLock]:
    """Make a folder and hold its lock; again where another run took it for abandoned in between."""
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(dir=place, prefix=PREFIX))  # mode 0700
        lock = FileLock(folder / LOCK, mode=0o600)
        with contextlib.suppress(OSError):
            lock.acquire()
            if (folder / LOCK).exists():
                return folder, lock
            lock.release()
    raise SourceError(
        f"No scratch folder can be kept in {place}: something removes it at once. Name another by --scratch."
    )


def remove_stale(place: Path) -> int:
    """Remove the scratch folders of runs that no longer live; returns how many."""
    return sum(_remove_if_stale(folder) for folder in sorted(place.glob(f"{PREFIX}*")))


def _remove_if_stale(folder: Path) -> bool:
    try:
        stat = folder.lstat()
        if stat.st_uid != os.getuid() or folder.is_symlink() or not folder.is_dir():
            return False
        if time.time() - stat.st_mtime < GRACE_SECONDS and not (folder / LOCK).exists():
            return False
        with FileLock(folder / LOCK, timeout=0, mode=0o600):
            shutil.rmtree(folder, ignore_errors=True)
            return True
    except (OSError, Timeout):  # it cannot be opened, or somebody holds it
        return False
