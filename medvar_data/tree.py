"""List and read the files of a download, whether folder or archive, without unpacking anything.

A path is POSIX and relative to the root. `archive.zip!/folder/file` is a member of an archive that lies in the tree,
so the pattern of a collection matches packed and unpacked downloads alike.
"""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase, BytesIO
from pathlib import Path, PurePosixPath

from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.records import SourceFile

ARCHIVES = (".zip", ".tar")
MEMBER_LIMIT = 16 << 30  # bytes: a 512 x 512 x 4000 float64 volume is 8 GiB
SEPARATOR = "!/"
JUNK_NAMES = {".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Tree:
    """Everything found below a root, junk left out.

    Attributes:
        root: the folder, absolute.
        files: sorted by path.
        broken: archives that could not be listed: (path, reason, sentence).
    """

    root: Path
    files: tuple[SourceFile, ...]
    broken: tuple[tuple[str, Reason, str], ...] = ()


def open_tree(path: Path) -> Tree:
    """List a folder, or one archive, with the members of the archives in it.

    Raises:
        SourceError: the path does not exist or is no folder and no archive.
    """
    path = path.expanduser().resolve()
    if path.is_dir():
        root, found = path, sorted(p for p in path.rglob("*") if p.is_file())
    elif path.is_file() and path.suffix.lower() in ARCHIVES:
        root, found = path.parent, [path]
    elif path.exists():
        raise SourceError(
            f"{path} is a file, but no {' or '.join(ARCHIVES)} archive; wanted the folder of the download."
        )
    else:
        raise SourceError(f"{path} does not exist. Give the folder that you downloaded to.")
    files: list[SourceFile] = []
    broken: list[tuple[str, Reason, str]] = []
    for file in found:
        name = file.relative_to(root).as_posix()
        if is_junk(name):
            continue
        if file.suffix.lower() in ARCHIVES:
            try:
                files.extend(list(_members(file, name)))  # all of a sound archive, or none
            except CaseRejected as error:
                broken.append((name, error.reason, error.detail))
        else:
            files.append(SourceFile(name, file.stat().st_size))
    return Tree(root, tuple(sorted(files, key=lambda f: f.path)), tuple(broken))


def is_junk(path: str) -> bool:
    """Tell AppleDouble twins, Finder and Explorer files from data."""
    parts = PurePosixPath(path.replace(SEPARATOR, "/")).parts
    return any(p.startswith("._") or p == "__MACOSX" or p in JUNK_NAMES for p in parts)


def read_bytes(root: Path, path: str) -> bytes:
    """Read one file or archive member whole.

    Raises:
        CaseRejected: the file is gone, empty, or its archive is damaged.
    """
    data = read_head(root, path, -1)
    if not data:
        raise CaseRejected(Reason.FILE_EMPTY, "the file has 0 bytes; download it again")
    return data


def read_head(root: Path, path: str, n_bytes: int) -> bytes:
    """Read the first bytes of a file or archive member; all of them where `n_bytes` is negative.

    Raises:
        CaseRejected: the file is gone, or its archive is damaged, encrypted or packed in an unknown way.
    """
    try:
        with open_binary(root, path) as stream:
            return stream.read(n_bytes)
    except (FileNotFoundError, KeyError) as error:
        raise CaseRejected(Reason.FILE_MISSING, "a file found by ingest is gone; run ingest again") from error
    except OSError as error:
        raise CaseRejected(Reason.UNREADABLE, f"the file cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise CaseRejected(
            Reason.ARCHIVE_UNREADABLE, "the archive is damaged at this member; download it again"
        ) from error
    except RuntimeError as error:  # zipfile: a password is wanted, or a packing it does not know
        raise CaseRejected(
            Reason.ARCHIVE_UNREADABLE, "the archive is encrypted or packed in an unknown way; unpack it yourself"
        ) from error


def open_binary(root: Path, path: str) -> BufferedIOBase:
    """Open one file or archive member for reading from its start."""
    if SEPARATOR not in path:
        return (root / path).open("rb")
    archive, member = path.split(SEPARATOR, 1)
    if archive.lower().endswith(".zip"):
        return _zip(root / archive, _stamp(root / archive)).open(member)  # type: ignore[return-value]
    offset, size = _tar_index(root / archive, _stamp(root / archive))[member]
    with (root / archive).open("rb") as stream:
        stream.seek(offset)
        return BytesIO(stream.read(size))


def modified_ns(root: Path, path: str) -> int:
    """Modification time of the file, or of the archive that holds it."""
    return (root / path.split(SEPARATOR, 1)[0]).stat().st_mtime_ns


def _members(file: Path, name: str) -> Iterator[SourceFile]:
    listing = _zip_members if file.suffix.lower() == ".zip" else _tar_members
    try:
        for member, size in listing(file):
            if member.startswith("/") or "\\" in member or ".." in PurePosixPath(member).parts or size > MEMBER_LIMIT:
                raise CaseRejected(
                    Reason.UNSAFE_ARCHIVE,
                    "the archive holds a member that escapes its folder or inflates without bound",
                )
            if not is_junk(member):
                yield SourceFile(f"{name}{SEPARATOR}{member}", size)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise CaseRejected(
            Reason.ARCHIVE_UNREADABLE,
            "the archive cannot be listed: it is cut short or damaged; download it again",
        ) from error


def _zip_members(file: Path) -> Iterator[tuple[str, int]]:
    for info in _zip(file, _stamp(file)).infolist():
        if not info.is_dir():
            yield info.filename, info.file_size


def _tar_members(file: Path) -> Iterator[tuple[str, int]]:
    for name, (_, size) in _tar_index(file, _stamp(file)).items():
        yield name, size


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8)
def _zip(file: Path, stamp: tuple[int, int]) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


@lru_cache(maxsize=8)
def _tar_index(file: Path, stamp: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Where the files of an uncompressed tar lie: name -> offset and size of the data."""
    with tarfile.open(file, "r:") as archive:
        members = archive.getmembers()
        end = archive.offset
    with file.open("rb") as stream:  # tarfile stops without a word where a header is damaged or the rest is cut off
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError
    if any(info.issym() or info.islnk() for info in members):
        raise CaseRejected(Reason.UNSAFE_ARCHIVE, "the archive holds a link; wanted plain files only")
    return {info.name.removeprefix("./"): (info.offset_data, info.size) for info in members if info.isfile()}
