"""A file system that answers late: the remote storage of bench/stream.py, without a network.

`slow:///FOLDER` reads a local folder; each request waits for `LATENCY_MS` first, and what all requests transfer together passes at
`BANDWIDTH_MB` a second. Both are environment variables, so that they reach a child. Requests of several threads wait side by side.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class _Line:
    """The line to the store, which all requests share."""

    def __init__(self) -> None:
        self.lock, self.free, self.carried = threading.Lock(), 0.0, 0

    def carry(self, n_bytes: int) -> None:
        """Wait as long as a request for so many bytes takes."""
        asked = time.monotonic() + float(os.environ["LATENCY_MS"]) / 1e3
        with self.lock:
            self.carried += n_bytes
            self.free = max(self.free, asked) + n_bytes / (float(os.environ["BANDWIDTH_MB"]) * 1e6)
            until = self.free
        time.sleep(max(0.0, until - time.monotonic()))


LINE = _Line()


class SlowFileSystem(AbstractFileSystem):
    """A local folder at a distance; read only."""

    protocol = "slow"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list:
        LINE.carry(0)
        rows = [_row(child) for child in sorted(Path(self._strip_protocol(path)).iterdir())]
        return rows if detail else [row["name"] for row in rows]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        LINE.carry(0)
        return _row(Path(self._strip_protocol(path)))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        data = Path(self._strip_protocol(path)).read_bytes()[start:end]
        LINE.carry(len(data))
        return data

    def get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> "SlowFile":
        return SlowFile(self, path, mode, **options)


class SlowFile(AbstractBufferedFile):
    """An open file; each block that is not at hand is one request."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


def _row(path: Path) -> dict[str, Any]:
    found = path.stat()  # raises FileNotFoundError, as a store does
    return {"name": str(path), "size": found.st_size, "type": "directory" if path.is_dir() else "file"}


def register() -> None:
    """Let fsspec open `slow://` URLs in this process."""
    fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
