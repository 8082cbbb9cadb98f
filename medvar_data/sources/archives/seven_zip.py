"""Turn a .7z into a zip of stored members, which is read in place. Imported where one is met: py7zr takes a tenth of a second."""

import stat
import zipfile
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path
from typing import IO, cast

import py7zr
from py7zr.exceptions import PasswordRequired, UnsupportedCompressionMethodError
from py7zr.io import Py7zIO, WriterFactory

from medvar_data.errors import CaseRejected, Reason
from medvar_data.sources.archives.names import (
    bomb,
    check_name,
    damaged,
    locked,
    not_a_file,
    safe_members,
    unknown_packing,
)
from medvar_data.sources.archives.scratch import BoundedFile


def unpack_7z(file: Path, out: BoundedFile, passwords: tuple[bytes, ...]) -> bool:
    """Try without a password, then each in turn; a wrong one fails at the headers or within the first member."""
    for password in (None, *passwords):
        out.restart()
        try:
            with file.open("rb") as stream:  # an open file keeps py7zr to one thread and to the order of the archive
                _repack(stream, file.stat().st_size, out, password)
            return password is not None
        except PasswordRequired:
            continue
        except (CaseRejected, MemoryError):
            raise
        except UnsupportedCompressionMethodError as error:
            raise unknown_packing() from error
        except Exception as error:  # py7zr lets through whatever its decoders raise
            if password is None:
                raise damaged() from error
    raise locked(given=bool(passwords))


def _repack(stream: BufferedIOBase, packed_bytes: int, out: BoundedFile, password: bytes | None) -> None:
    text = None if password is None else password.decode("utf-8", "replace")
    with py7zr.SevenZipFile(cast(IO[bytes], stream), "r", password=text) as archive:
        if archive.needs_password() and password is None:
            raise PasswordRequired
        entries = list(archive.files)
        for entry in entries:
            check_name(entry.filename)
            if (entry.st_fmt or stat.S_IFREG) not in (stat.S_IFREG, stat.S_IFDIR) or entry.is_symlink:
                raise not_a_file()
        files = [entry for entry in entries if not entry.is_directory]
        sizes = dict(safe_members(((e.filename, e.uncompressed) for e in files), packed_bytes))
        if len(sizes) < len(files):
            raise CaseRejected(Reason.UNSAFE_ARCHIVE, "the archive holds two members of one name; unpack it yourself")
        packed = zipfile.ZipFile(cast(IO[bytes], out), "w", zipfile.ZIP_STORED)
        factory = _MemberFactory(packed, sizes, out.folder)
        try:
            archive.extract(out.folder, factory=factory)
            packed.close()
        except BaseException:
            with suppress(Exception):  # left open, it would try to finish itself much later, and complain of that
                factory.close()
            with suppress(Exception):
                packed.close()
            raise


class _MemberFactory(WriterFactory):
    """Hands py7zr a member of the zip for each file that it unpacks."""

    def __init__(self, packed: zipfile.ZipFile, sizes: dict[str, int], folder: Path) -> None:
        self._packed = packed
        self._sizes = sizes
        self._folder = folder
        self._latest: _MemberWriter | None = None

    def create(self, filename: str) -> Py7zIO:
        name = Path(filename).relative_to(self._folder).as_posix()
        self._latest = _MemberWriter(self._packed, name, self._sizes[name])
        return self._latest

    def close(self) -> None:
        """Close the member that was being written."""
        if self._latest:
            self._latest.close()


class _MemberWriter(Py7zIO):
    """Writes one member, which is closed before the next begins; refuses more than the declared size."""

    def __init__(self, packed: zipfile.ZipFile, name: str, size: int) -> None:
        self._stream = packed.open(zipfile.ZipInfo(name), "w", force_zip64=True)
        self._declared = size
        self._size = 0

    def write(self, s: bytes | bytearray) -> int:
        self._size += len(s)
        if self._size > self._declared:
            raise bomb()
        return self._stream.write(s)

    def close(self) -> None:
        self._stream.close()

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        return None

    def size(self) -> int:
        return self._size
