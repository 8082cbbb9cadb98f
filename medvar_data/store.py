"""Write files so that a reader sees the whole of one or nothing, in a folder or on an object store (fsspec)."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from medvar_data.errors import WorkspaceError

PARTIAL = ".partial"


@contextmanager
def atomic_path(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Give a private name beside `path`; on success the file is synced and takes its place, on failure it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.chmod(mode)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    """Clear what a killed run left half-written below a folder."""
    for partial in folder.rglob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Store:
    """A place for a shard set: a local folder, or any URL that an installed fsspec filesystem understands."""

    url: str

    @property
    def _place(self) -> tuple[Any, str]:
        try:
            fs, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise WorkspaceError(
                f"Cannot open {self.url}: {error}. Install the filesystem's package, such as s3fs."
            ) from error
        return fs, path.rstrip("/")

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file into the store under `name`; never visible in part."""
        fs, path = self._place
        target = f"{path}/{name}"
        if isinstance(fs, LocalFileSystem):
            with atomic_path(Path(target)) as partial:
                shutil.copyfile(local, partial)
        else:  # object stores publish a put at its end
            fs.put_file(str(local), target)
        local.unlink()

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        fs, path = self._place
        return bytes(fs.cat_file(f"{path}/{name}"))

    def open(self, name: str) -> Any:
        """Open a file for seeking reads."""
        fs, path = self._place
        return fs.open(f"{path}/{name}", "rb")

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where it is not there."""
        fs, path = self._place
        target = f"{path}/{name}"
        return int(fs.size(target)) if fs.exists(target) else None

    def names(self) -> list[str]:
        """Names of the files at the top of the store, sorted."""
        fs, path = self._place
        if not fs.exists(path):
            return []
        return sorted(str(p).rsplit("/", 1)[-1] for p in fs.ls(path, detail=False))

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        fs, path = self._place
        if fs.exists(f"{path}/{name}"):
            fs.rm_file(f"{path}/{name}")
