"""List and read the files of a download, whether folder or archive, without unpacking anything by hand.

A path is POSIX and relative to the root. `archive.zip!/folder/file` is a member of an archive that lies in the tree,
so the pattern of a collection matches packed and unpacked downloads alike.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.records import SourceFile
from medvar_data.sources.archives import KINDS, SEPARATOR, is_archive, is_junk, list_archive, read_member, split_path

__all__ = ["SEPARATOR", "PackedFiles", "Tree", "is_junk", "modified_ns", "open_tree", "read_bytes", "read_head"]

POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/", b"/annex/objects/")
POINTER_BYTES = 1024  # no pointer is longer
GONE = "a file found by ingest is gone; bring it back and run the command again, or run ingest again"
NO_TARGET = (
    "a link leads to nothing: the content was not fetched; fetch it (git annex get, datalad get) and run ingest again"
)
NO_CONTENT = "the file is a pointer without its content; fetch it (git lfs pull, git annex get) and run ingest again"
NO_READING = "this user may not read the file; allow reading it and run the command again"
NO_ENTRY = (
    "this user may not open the folder, and whatever lies in it is missing here; allow reading it and run ingest again"
)
NO_DISK = "the folder cannot be listed, and whatever lies in it is missing here; see to the disk and run ingest again"


@dataclass(frozen=True)
class PackedFiles:
    """One archive of a tree, as far as reading it again depends on it.

    Attributes:
        path: below the root.
        encrypted: a password was needed to list it.
        scratch_bytes: what has to be unpacked before its members can be read; 0 where they are read in place.
    """

    path: str
    encrypted: bool
    scratch_bytes: int


@dataclass(frozen=True)
class Tree:
    """Everything found below a root, junk left out.

    Attributes:
        root: the folder, absolute.
        files: sorted by path.
        broken: archives and folders of which nothing is used: (path, reason, sentence).
        archives: the others.
    """

    root: Path
    files: tuple[SourceFile, ...]
    broken: tuple[tuple[str, Reason, str], ...] = ()
    archives: tuple[PackedFiles, ...] = ()


def open_tree(path: Path) -> Tree:
    """List a folder, or one archive, with the members of the archives in it.

    Raises:
        SourceError: the path does not exist or is no folder and no archive.
    """
    path = path.expanduser().resolve()
    broken: list[tuple[str, Reason, str]] = []
    try:
        root, found = _found_at(path, broken)
    except PermissionError as error:
        raise SourceError(
            f"{path} may not be opened by this user; allow reading it, or give another folder."
        ) from error
    files: list[SourceFile] = []
    archives: list[PackedFiles] = []
    for file in found:
        name = file.relative_to(root).as_posix()
        if is_junk(name):
            continue
        if not is_archive(name):
            files.append(SourceFile(name, _size_of(file)))
            continue
        try:
            _look_at(root, name)
            listing = list_archive(root, name)  # all of a sound archive, or none
        except CaseRejected as error:
            broken.append((name, error.reason, error.detail))
            continue
        files.extend(SourceFile(f"{name}{SEPARATOR}{member}", size) for member, size in listing.members)
        broken.extend((f"{name}{SEPARATOR}{inner}", reason, detail) for inner, reason, detail in listing.broken)
        archives.append(PackedFiles(name, listing.encrypted, listing.scratch_bytes))
    return Tree(root, tuple(sorted(files, key=lambda f: f.path)), tuple(broken), tuple(archives))


def _found_at(path: Path, broken: list[tuple[str, Reason, str]]) -> tuple[Path, list[Path]]:
    """The root that a user named, and the files to look at; folders that cannot be opened go to `broken`."""
    if path.is_dir():
        return path, sorted(_files_below(path, broken))
    if path.is_file() and is_archive(path.name):
        return path.parent, [path]
    if path.exists():
        raise SourceError(f"{path} is a file, but no archive ({', '.join(KINDS)}); wanted the folder of the download.")
    raise SourceError(f"{path} does not exist. Give the folder that you downloaded to.")


def _files_below(root: Path, broken: list[tuple[str, Reason, str]]) -> Iterator[Path]:
    """Every file below a folder, links to nowhere included; linked folders are followed, each only once."""
    seen: set[tuple[int, int]] = set()

    def shut(error: OSError) -> None:
        place = Path(error.filename)
        if place == root:
            raise error
        what = (
            (Reason.NOT_PERMITTED, NO_ENTRY) if isinstance(error, PermissionError) else (Reason.SOURCE_ERROR, NO_DISK)
        )
        broken.append((place.relative_to(root).as_posix(), *what))

    for place, folders, names in os.walk(root, onerror=shut, followlinks=True):
        here = Path(place)
        folders[:] = [name for name in folders if not is_junk(name)]
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for name in names:
            file = here / name
            if _leads_nowhere(file) and not file.suffix:  # to a folder, or to a file that no name tells of
                broken.append((file.relative_to(root).as_posix(), Reason.NOT_FETCHED, NO_TARGET))
            elif _may_be_file(file):
                yield file


def _leads_nowhere(file: Path) -> bool:
    try:
        return file.is_symlink() and not file.exists()
    except OSError:
        return False  # what cannot be looked at is told by whoever reads it


def _may_be_file(file: Path) -> bool:
    """Tell files, and what may be one, from sockets and devices."""
    try:
        return file.is_file() or not file.exists()
    except OSError:
        return True


def _size_of(file: Path) -> int:
    """Bytes of a file; 1 of one that cannot be looked at, since 0 would say that it is empty."""
    try:
        return file.stat().st_size
    except OSError:
        return 1


def _look_at(root: Path, path: str) -> int:
    """Modification time of a file, once it is known that its content is here and may be read.

    Raises:
        CaseRejected: `not_fetched`, `not_permitted`, `file_missing` or `source_error`.
    """
    file = root / path
    try:
        stat = file.stat()
        if not os.access(file, os.R_OK):
            raise CaseRejected(Reason.NOT_PERMITTED, NO_READING)
        if stat.st_size <= POINTER_BYTES:
            check_pointer(file.read_bytes())
    except OSError as error:
        raise why_unread(file, error) from error
    return stat.st_mtime_ns


def check_pointer(head: bytes) -> None:
    """Refuse the small text that Git LFS and git-annex leave where the content was not fetched.

    Raises:
        CaseRejected: `not_fetched`.
    """
    if head.startswith(POINTERS):
        raise CaseRejected(Reason.NOT_FETCHED, NO_CONTENT)


def why_unread(file: Path, error: OSError) -> CaseRejected:
    """Say why a file could not be read."""
    if isinstance(error, PermissionError):
        return CaseRejected(Reason.NOT_PERMITTED, NO_READING)
    if file.is_symlink() and (isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP):
        return CaseRejected(Reason.NOT_FETCHED, NO_TARGET)
    if isinstance(error, FileNotFoundError):
        return CaseRejected(Reason.FILE_MISSING, GONE)
    return CaseRejected(Reason.SOURCE_ERROR, f"the file cannot be read ({error.strerror}); run the command again")


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
    chain = split_path(path)
    try:
        if len(chain) > 1:
            data = read_member(root, chain, n_bytes)
        else:
            with (root / path).open("rb") as stream:
                data = stream.read(n_bytes)
    except KeyError as error:
        raise CaseRejected(Reason.FILE_MISSING, GONE) from error
    except OSError as error:
        raise why_unread(root / chain[0], error) from error
    check_pointer(data)
    return data


def modified_ns(root: Path, path: str) -> int:
    """Modification time of the file, or of the archive that holds it.

    Raises:
        CaseRejected: the content is not here, or may not be read.
    """
    return _look_at(root, split_path(path)[0])
