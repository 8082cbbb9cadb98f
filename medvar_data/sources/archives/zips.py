"""List and read zip archives in place: plain members by zipfile, encrypted ones (WinZip AES and ZipCrypto) by pyzipper."""

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

from medvar_data.sources.archives.names import damaged, locked, not_a_file, plain_name
from medvar_data.sources.archives.scratch import BoundedFile
from medvar_data.sources.archives.tars import COPY_CHUNK, stamp

ENCRYPTED_FLAG = 0x1
BROKEN = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError)


def zip_members(file: Path) -> Iterator[tuple[str, int]]:
    """Yield name and declared size of every file.

    Raises:
        CaseRejected: `unsafe_archive` where a member is a link or a device. zipfile.BadZipFile: the archive is damaged.
    """
    for info in _open(file, stamp(file)).infolist():
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise not_a_file()
    for name, info in _index(file, stamp(file)).items():
        yield name, info.file_size


def check_passwords(file: Path, passwords: tuple[bytes, ...]) -> bool:
    """Tell whether an archive is encrypted; where it is, read a little of its smallest encrypted member.

    Raises:
        CaseRejected: `archive_password` where no password opens it.
    """
    hidden = [
        (info.file_size, name)
        for name, info in _index(file, stamp(file)).items()
        if info.flag_bits & ENCRYPTED_FLAG and info.file_size
    ]
    if hidden:
        read_zip_member(file, min(hidden)[1], 1, passwords)
    return bool(hidden)


def read_zip_member(file: Path, name: str, n_bytes: int, passwords: tuple[bytes, ...]) -> bytes:
    """Read the first bytes of a member, all where negative; never more than its declared size.

    Raises:
        KeyError: there is no such member. CaseRejected: it is encrypted and no password opens it.
    """
    info = _index(file, stamp(file))[name]
    wanted = info.file_size if n_bytes < 0 else min(n_bytes, info.file_size)
    if not info.flag_bits & ENCRYPTED_FLAG:
        with _open(file, stamp(file)).open(info) as stream:
            data = stream.read(wanted)
    else:
        data = _decrypt(file, info.filename, lambda stream: stream.read(wanted), passwords)
    if len(data) < wanted:
        raise EOFError
    return data


def copy_zip_member(file: Path, name: str, out: BoundedFile, passwords: tuple[bytes, ...]) -> None:
    """Write a member elsewhere, a piece at a time.

    Raises:
        KeyError, CaseRejected: as `read_zip_member`, or there is no room for it.
    """
    info = _index(file, stamp(file))[name]
    if not info.flag_bits & ENCRYPTED_FLAG:
        with _open(file, stamp(file)).open(info) as stream:
            _copy(cast(BufferedIOBase, stream), info.file_size, out)
    else:
        _decrypt(file, info.filename, lambda stream: _copy(stream, info.file_size, out), passwords)


def _copy(stream: BufferedIOBase, size: int, out: BoundedFile) -> bytes:
    out.restart()
    while out.n_bytes < size:
        chunk = stream.read(min(COPY_CHUNK, size - out.n_bytes))
        if not chunk:
            raise EOFError
        out.write(chunk)
    return b""


def _decrypt(file: Path, name: str, use: Callable[[BufferedIOBase], bytes], passwords: tuple[bytes, ...]) -> bytes:
    """Try the passwords in turn: a wrong one can pass the short check of a member and fails at its content then."""
    import pyzipper  # slow to import, and seldom wanted

    archive, passed = _open_encrypted(file, stamp(file)), False
    for password in passwords:
        try:
            with archive.open(name, pwd=password) as stream:
                passed = True
                return use(stream)
        except NotImplementedError:
            raise
        except (RuntimeError, pyzipper.BadZipFile, *BROKEN):
            continue
    raise damaged() if passed else locked(given=bool(passwords))


def forget_zips() -> None:
    """Close archives that are kept open for the next read, so that one that is removed frees its space."""
    for cache in (_open, _index, _open_encrypted):
        cache.cache_clear()


@lru_cache(maxsize=8)
def _open(file: Path, stamp: tuple[int, int]) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(file)
    except (
        ValueError,
        IndexError,
        struct.error,
    ) as error:  # a directory that is damaged in ways zipfile does not foresee
        raise zipfile.BadZipFile from error
    if not all(archive.namelist()):
        raise zipfile.BadZipFile("a member without a name")
    return archive


@lru_cache(maxsize=8)
def _index(file: Path, stamp: tuple[int, int]) -> dict[str, zipfile.ZipInfo]:
    """Files by name; where a name comes twice the last holds, as when unpacked.

    Some Windows programs write backslashes where the format wants slashes (APPNOTE 4.4.17.1); they part folders too.
    """
    named = ((plain_name(info.filename.replace("\\", "/")), info) for info in _open(file, stamp).infolist())
    return {name: info for name, info in named if not name.endswith("/")}


@lru_cache(maxsize=8)
def _open_encrypted(file: Path, stamp: tuple[int, int]) -> Any:
    import pyzipper

    return pyzipper.AESZipFile(file)
