"""List and read plain tar archives in place: one pass over the headers, then each member by its offset.

Long names (GNU and PAX) and sparse members come out as `tar -x` would write them.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from medvar_data.sources.archives.names import not_a_file, plain_name
from medvar_data.sources.archives.scratch import BoundedFile

COPY_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class TarMember:
    """Where a member's data lie: `size` bytes from `offset`, or the (offset, size) pieces of a sparse file."""

    offset: int
    size: int
    pieces: tuple[tuple[int, int], ...] = ()  # place in the file and length of what is stored; the rest is zero
    is_sparse: bool = False


def tar_members(file: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size of every file; where a name comes twice the last holds, as when unpacked.

    Raises:
        CaseRejected: `unsafe_archive` where a member is a link or a device. tarfile.TarError: the archive is damaged.
    """
    for name, member in _index(file, stamp(file)).items():
        yield name, member.size


def read_tar_member(file: Path, name: str, n_bytes: int) -> bytes:
    """Read the first bytes of a member, all where negative.

    Raises:
        KeyError: there is no such member. EOFError: the archive ends within it.
    """
    member = _index(file, stamp(file))[name]
    wanted = member.size if n_bytes < 0 else min(n_bytes, member.size)
    with file.open("rb") as stream:
        stream.seek(member.offset)
        if not member.is_sparse:
            data = stream.read(wanted)
            if len(data) < wanted:
                raise EOFError
            return data
        whole = bytearray(wanted)
        for start, length in member.pieces:
            piece = stream.read(length)
            if len(piece) < length:
                raise EOFError
            whole[start : start + length] = piece[: max(0, wanted - start)]
    return bytes(whole[:wanted])


def copy_tar_member(file: Path, name: str, out: BoundedFile) -> None:
    """Write a member elsewhere, a piece at a time.

    Raises:
        KeyError, EOFError: as `read_tar_member`. CaseRejected: there is no room for it.
    """
    member = _index(file, stamp(file))[name]
    if member.is_sparse:
        out.write(read_tar_member(file, name, -1))
        return
    with file.open("rb") as stream:
        stream.seek(member.offset)
        left = member.size
        while left:
            chunk = stream.read(min(left, COPY_CHUNK))
            if not chunk:
                raise EOFError
            left -= out.write(chunk)


def stamp(file: Path) -> tuple[int, int]:
    """Size and modification time: what tells that a file is still the same."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8)
def _index(file: Path, stamp: tuple[int, int]) -> dict[str, TarMember]:
    with tarfile.open(file, "r:") as archive:
        members = archive.getmembers()
        end = archive.offset
    with file.open("rb") as stream:  # tarfile stops without a word where a header is damaged or the rest is cut off
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError
    if any(not (info.isfile() or info.isdir()) for info in members):
        raise not_a_file()
    return {plain_name(info.name): _member(info) for info in members if info.isfile()}


def _member(info: tarfile.TarInfo) -> TarMember:
    if not info.issparse():
        return TarMember(info.offset_data, info.size)
    stored = cast("list[tuple[int, int]]", info.sparse)
    return TarMember(info.offset_data, info.size, tuple((start, n) for start, n in stored if n), is_sparse=True)
