"""Write plain USTAR archives whose bytes depend on nothing but their members, and say where each member lies."""

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from medvar_data.errors import SpecError

BLOCK = 512
MAX_NAME = 99


@dataclass(frozen=True)
class Member:
    """One member of an archive: `offset` is the byte position of its data, `size` their length."""

    name: str
    offset: int
    size: int


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> list[Member]:
    """Write members in order; owner, mode and time are constants.

    Raises:
        SpecError: a name is not ASCII or longer than 99 characters, which would need another archive format.
    """
    written = []
    with path.open("wb") as stream:
        for name, data in members:
            if len(name) > MAX_NAME or not name.isascii():
                raise SpecError(f"member name {name!r} has {len(name)} characters; wanted at most {MAX_NAME}, ASCII")
            stream.write(_header(name, len(data)))
            written.append(Member(name, stream.tell(), len(data)))
            stream.write(data)
            stream.write(bytes(-len(data) % BLOCK))
        stream.write(bytes(2 * BLOCK))
    return written


def read_tar(data: bytes) -> list[Member]:
    """List an archive's members with the positions of their data."""
    with tarfile.open(fileobj=BytesIO(data), mode="r:") as archive:
        return [Member(info.name, info.offset_data, info.size) for info in archive.getmembers()]


def tar_oddity(data: bytes, members: Sequence[Member]) -> str:
    """Say what of an archive's bytes is not as `write_tar` writes them; "" where nothing is.

    Args:
        data: of the archive.
        members: of `read_tar`.
    """
    end = 0
    for member in members:
        start = end + BLOCK
        if member.offset != start or data[end:start] != _header(member.name, member.size):
            return f"the header of {member.name} holds another owner, mode, time or form than ours"
        end = start + member.size + -member.size % BLOCK
        if any(data[start + member.size : end]):
            return f"something lies between {member.name} and the next member"
    if data[end : end + 2 * BLOCK] != bytes(2 * BLOCK):
        return "it does not end in two blocks of zeros"
    n_more = len(data) - end - 2 * BLOCK
    return f"{n_more:,} bytes lie behind its end" if n_more else ""


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(format=tarfile.USTAR_FORMAT)
