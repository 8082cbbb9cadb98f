"""Write files so that a reader sees the whole of one or nothing, in a folder or on an object store (fsspec)."""

import errno
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from medvar_data.errors import WorkspaceError

PARTIAL = ".partial"
PARTIAL_NAME = re.compile(r"\..+\.(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-\w+\.partial")
ABANDONED_SECONDS = 24 * 3600.0  # a partial file of another machine that has not grown for so long has no writer
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_path(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Give a private name beside `path`; on success the file is synced and takes its place, on failure it goes.

    Raises:
        WorkspaceError: the disk is full.
    """
    with scratch_path(path) as partial:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.chmod(mode)
        partial.replace(path)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> bool:
    """Write a whole file unless there is one; of several that try at once, one succeeds. Tells whether this one did."""
    with scratch_path(path) as partial:
        partial.write_bytes(data)
        partial.chmod(mode)
        try:
            os.link(partial, path)  # unlike a rename it never replaces
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            partial.replace(path)
            partial.touch()
        return True


@contextmanager
def scratch_path(path: Path) -> Iterator[Path]:
    """Give an empty file with a private name beside `path`, which goes at the end.

    Raises:
        WorkspaceError: the disk is full, or the user's share of it.
    """
    with telling_of_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _new_partial(path)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def telling_of_full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's error of a full disk into a sentence.

    Raises:
        WorkspaceError: the disk is full, or the user's share of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise WorkspaceError(
            f"The disk that holds {folder} is full. Free some space and run the same command again: what is finished "
            "stays, nothing is half-written."
        ) from error


def _new_partial(path: Path) -> Path:
    """A fresh empty file beside `path`, whose name tells the machine and the process that write it."""
    prefix = f".{path.name}.{_place()}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=PARTIAL)
    os.close(handle)
    return Path(name)


def _place() -> str:
    """Name of what process numbers are counted in: this machine, or the container on it. Eight hex digits."""
    try:
        numbering = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux, no containers
        numbering = ""
    return sha256(f"{socket.gethostname()} {numbering}".encode()).hexdigest()[:8]


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a small file atomically."""
    with atomic_path(path, mode) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, two-space indent, newline at the end."""
    write_bytes(path, canonical_json(value).encode())


def canonical_json(value: Any) -> str:
    """Spell a value as JSON in one way only."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def file_digest(path: Path) -> str:
    """Sha256 of a file, hex."""
    with path.open("rb") as stream:
        digest = sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_partials(folder: Path) -> None:
    """Clear what killed processes left half-written below a folder, and nothing that is still being written.

    A file of this machine goes where its process is dead; one of another machine, whose processes cannot be asked, where
    it has not grown for a day.
    """
    for partial in folder.rglob(f".*{PARTIAL}"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if _is_abandoned(partial):
                partial.unlink()


def _is_abandoned(partial: Path) -> bool:
    name = PARTIAL_NAME.fullmatch(partial.name)
    if name and name["place"] == _place() and not _is_alive(int(name["pid"])):
        return True
    return time.time() - partial.stat().st_mtime > ABANDONED_SECONDS


def _is_alive(pid: int) -> bool:
    """Tell whether a process of this machine is at work; a dead one whose parent has not yet waited for it is not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # it has just gone, or it is another user's, or this is no Linux
        return not Path("/proc/self").exists() or Path(f"/proc/{pid}").exists()
    return state not in ("Z", "X")


@dataclass(frozen=True)
class Store:
    """A place for a shard set: a local folder, or any URL that an installed fsspec filesystem understands."""

    url: str

    @property
    def location(self) -> tuple[Any, str]:
        """The filesystem of the URL, and the path on it without a slash at its end."""
        try:
            fs, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise WorkspaceError(
                f"Cannot open {self.url}: {error}. Install the filesystem's package, such as s3fs."
            ) from error
        return fs, path.rstrip("/")

    @property
    def folder(self) -> Path | None:
        """The folder of a local store; None for an object store."""
        fs, path = self.location
        return Path(path) if isinstance(fs, LocalFileSystem) else None

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file into the store under `name`; never visible in part, and gone where it fails half-way."""
        fs, path = self.location
        target = f"{path}/{name}"
        if isinstance(fs, LocalFileSystem):
            with atomic_path(Path(target)) as partial:
                shutil.copyfile(local, partial)
        else:  # object stores publish a put at its end; others may leave a part of it
            try:
                fs.put_file(str(local), target)
            except BaseException:
                with suppress(Exception):  # the first failure is the one to tell
                    self.remove(name)
                raise
        local.unlink()

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        fs, path = self.location
        return bytes(fs.cat_file(f"{path}/{name}"))

    def get(self, name: str, local: Path) -> None:
        """Copy a whole file to a local one."""
        fs, path = self.location
        fs.get_file(f"{path}/{name}", str(local))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Read `size` bytes from byte `start` of a file, in one request; fewer where the file ends before."""
        fs, path = self.location
        return bytes(fs.cat_file(f"{path}/{name}", start=start, end=start + size))

    def open(self, name: str) -> Any:
        """Open a file for seeking reads."""
        fs, path = self.location
        return fs.open(f"{path}/{name}", "rb")

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where it is not there."""
        fs, path = self.location
        target = f"{path}/{name}"
        return int(fs.size(target)) if fs.exists(target) else None

    def names(self) -> list[str]:
        """Names of the files at the top of the store, sorted."""
        fs, path = self.location
        if not fs.exists(path):
            return []
        return sorted(str(p).rsplit("/", 1)[-1] for p in fs.ls(path, detail=False))

    def below(self, name: str) -> "Store":
        """A folder in this store, as a store."""
        return Store(f"{self.url.rstrip('/')}/{name}")

    def remove_all(self) -> None:
        """Remove the store's folder with everything in it, if it is there."""
        fs, path = self.location
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        fs, path = self.location
        if fs.exists(f"{path}/{name}"):
            fs.rm_file(f"{path}/{name}")
