"""Reach the members of archives: what a run holds open for that, and the way through archives in archives.

Readers ask for a path and nothing else, wherever it lies. What reading may need besides (passwords, a scratch folder) is
therefore held for the length of a `with` block: `open_access` in the process that runs a command, `reading` in its workers.
"""

import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.sources.archives.names import (
    READ_IN_PLACE,
    SEPARATOR,
    damaged,
    is_archive,
    is_junk,
    kind_of,
    safe_members,
    unknown_packing,
)
from medvar_data.sources.archives.packed import UNPACKED_KIND, unpack
from medvar_data.sources.archives.scratch import BoundedFile, Scratch, open_scratch
from medvar_data.sources.archives.tars import copy_tar_member, read_tar_member, stamp, tar_members
from medvar_data.sources.archives.zips import (
    check_passwords,
    copy_zip_member,
    forget_zips,
    read_zip_member,
    zip_members,
)

MAX_DEPTH = 4  # archives in archives
KEY_DIGITS = 24
LOCKED = ".locked"  # an empty file beside what came from an encrypted archive
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class AccessSpec:
    """What a user gives for the reading of archives.

    Attributes:
        passwords: tried in turn on whatever is encrypted.
        scratch_parent: where the scratch folder goes; the system's temporary folder where None.
        scratch_limit_bytes: of all that is unpacked at one time; None for all that the disk has free but 1 GiB.
    """

    passwords: tuple[bytes, ...] = field(default=(), repr=False)
    scratch_parent: Path | None = None
    scratch_limit_bytes: int | None = None


DEFAULT_ACCESS = AccessSpec()


@dataclass(frozen=True)
class Access:
    """What a run holds open; travels to the workers with their tasks."""

    passwords: tuple[bytes, ...] = field(default=(), repr=False)
    scratch: Scratch | None = None


@dataclass(frozen=True)
class Listing:
    """Members of one archive and of the archives in it.

    Attributes:
        members: path below the archive and size in bytes, in the archive's order.
        broken: archives within that could not be listed: path below the archive, reason, sentence.
        encrypted: a password was needed.
        scratch_bytes: what is unpacked of it in the scratch folder.
    """

    members: tuple[tuple[str, int], ...]
    broken: tuple[tuple[str, Reason, str], ...] = ()
    encrypted: bool = False
    scratch_bytes: int = 0


NOTHING_OPEN = Access()
_ACCESS: ContextVar[Access] = ContextVar("medvar archive access", default=NOTHING_OPEN)


@contextmanager
def open_access(spec: AccessSpec) -> Iterator[Access]:
    """Make passwords and a scratch folder available to every read within; one that is open already is used on."""
    if _ACCESS.get().scratch is not None:
        yield _ACCESS.get()
        return
    with open_scratch(spec.scratch_parent, spec.scratch_limit_bytes) as scratch:
        access = Access(spec.passwords, scratch)
        with reading(access):
            yield access


@contextmanager
def reading(access: Access) -> Iterator[None]:
    """Read with what another process holds open."""
    token = _ACCESS.set(access)
    try:
        yield
    finally:
        _ACCESS.reset(token)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for copies of members, in the open scratch folder where there is one: it goes with it, even after a kill."""
    scratch = _ACCESS.get().scratch
    with tempfile.TemporaryDirectory(dir=scratch.folder if scratch else None) as folder:
        yield Path(folder)


def room_bytes() -> int:
    """Bytes that may still be unpacked into the open scratch folder, were it empty."""
    scratch = _ACCESS.get().scratch
    return scratch.room_bytes() if scratch else 0


def clear_scratch() -> None:
    """Empty the open scratch folder."""
    forget_zips()
    if scratch := _ACCESS.get().scratch:
        scratch.clear()


def read_passwords(file: Path) -> tuple[bytes, ...]:
    """Read a password file: one password a line, tried in turn.

    Raises:
        SourceError: the file cannot be read or holds none.
    """
    try:
        lines = file.expanduser().read_bytes().splitlines()
    except OSError as error:
        raise SourceError(f"The password file cannot be read ({error.strerror}). Give a text file.") from error
    if not any(lines):
        raise SourceError("The password file holds no password; wanted one a line.")
    return tuple(line for line in lines if line)


def list_archive(root: Path, path: str) -> Listing:
    """List an archive and, without limit of kinds, the archives in it; what must be unpacked for that is.

    Raises:
        CaseRejected: nothing of the archive is to be used, with the reason.
    """
    broken: list[tuple[str, Reason, str]] = []
    encrypted: list[bool] = []
    members = tuple(_members(root, (path,), broken, encrypted))
    scratch = _ACCESS.get().scratch
    if scratch is None:
        return Listing(members, tuple(broken), any(encrypted))
    top = _key(root, (path,))[:KEY_DIGITS]
    locked_inside = any(scratch.folder.glob(f"{top}*{LOCKED}"))
    return Listing(members, tuple(broken), any(encrypted) or locked_inside, scratch.used_bytes(top))


def read_member(root: Path, chain: tuple[str, ...], n_bytes: int) -> bytes:
    """Read the first bytes of a member, all where negative.

    Args:
        root: the folder that the outermost archive is named from.
        chain: the archives from the outside in, then the member.
        n_bytes: at most, from the member's start.

    Raises:
        KeyError: there is no such member. CaseRejected: it cannot be read.
    """
    try:
        kind, file = _plain(root, chain[:-1])
        return _read(kind, file, chain[-1], n_bytes)
    except FileNotFoundError:
        raise
    except NotImplementedError as error:
        raise unknown_packing() from error
    except BROKEN as error:
        raise CaseRejected(
            Reason.ARCHIVE_UNREADABLE, "the archive is damaged at this member; download it again"
        ) from error


def _members(
    root: Path, chain: tuple[str, ...], broken: list[tuple[str, Reason, str]], encrypted: list[bool]
) -> list[tuple[str, int]]:
    """All members of a sound archive, or an error; an archive in it that is no use is noted in `broken`."""
    if len(chain) > MAX_DEPTH:
        raise CaseRejected(Reason.UNSAFE_ARCHIVE, f"archives lie more than {MAX_DEPTH} deep in one another")
    try:
        kind, file = _plain(root, chain)
        if kind == "zip":
            encrypted.append(check_passwords(file, _ACCESS.get().passwords))
        listing = zip_members(file) if kind == "zip" else tar_members(file)
        found = [m for m in safe_members(listing, max(1, file.stat().st_size)) if not is_junk(m[0])]
    except NotImplementedError as error:
        raise unknown_packing() from error
    except BROKEN as error:
        raise damaged() from error
    members: list[tuple[str, int]] = []
    for name, size in found:
        if not is_archive(name):
            members.append((name, size))
            continue
        try:
            inner = _members(root, (*chain, name), broken, encrypted)
            members += [(f"{name}{SEPARATOR}{path}", n_bytes) for path, n_bytes in inner]
        except CaseRejected as error:
            broken.append((SEPARATOR.join((*chain[1:], name)), error.reason, error.detail))
    return members


def _plain(root: Path, chain: tuple[str, ...]) -> tuple[str, Path]:
    """Get an archive as a zip or tar on disk: itself, or what scratch holds of it."""
    if len(chain) == 1:
        file = root / chain[0]
    else:
        kind, outer = _plain(root, chain[:-1])
        file = _scratch().make(_key(root, chain), _size(outer), partial(_copy_member, kind, outer, chain[-1]))
    kind = kind_of(file, chain[-1])
    if kind in READ_IN_PLACE:
        return kind, file

    key = f"{_key(root, chain)}-unpacked"

    def write(out: BoundedFile) -> None:
        if unpack(kind, file, out, _ACCESS.get().passwords):
            (out.folder / f"{key}{LOCKED}").touch()

    return UNPACKED_KIND[kind], _scratch().make(key, _size(file), write)


def _copy_member(kind: str, outer: Path, name: str, out: BoundedFile) -> None:
    if kind == "zip":
        copy_zip_member(outer, name, out, _ACCESS.get().passwords)
    else:
        copy_tar_member(outer, name, out)


def _read(kind: str, file: Path, name: str, n_bytes: int) -> bytes:
    if kind == "zip":
        return read_zip_member(file, name, n_bytes, _ACCESS.get().passwords)
    return read_tar_member(file, name, n_bytes)


def _scratch() -> Scratch:
    scratch = _ACCESS.get().scratch
    if scratch is None:
        raise CaseRejected(
            Reason.SCRATCH_FULL, "the archive has to be unpacked to be read, and no scratch folder is open for that"
        )
    if not scratch.folder.is_dir():
        raise SourceError("A worker cannot see the scratch folder. Give --scratch a folder that all machines share.")
    return scratch


def _key(root: Path, chain: tuple[str, ...]) -> str:
    """Name in the scratch folder: the digest of the outermost archive's place, size and time, then of the way in."""
    outermost = root / chain[0]
    top = sha256(repr((str(outermost), stamp(outermost))).encode()).hexdigest()[:KEY_DIGITS]
    return f"{top}-{sha256(repr(chain[1:]).encode()).hexdigest()[:KEY_DIGITS]}"


def _size(file: Path) -> int:
    return max(1, file.stat().st_size)
