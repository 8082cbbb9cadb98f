"""List and read the files of a download, whether folder or archive, without unpacking anything by hand.

A path is POSIX and relative to the root. `archive.zip!/folder/file` is a member of an archive that lies in the tree,
so the pattern of a collection matches packed and unpacked downloads alike.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.records import SourceFile
from medvar_data.sources.archives import KINDS, SEPARATOR, is_archive, is_junk, list_archive, read_member, split_path

__all__ = ["SEPARATOR", "PackedFiles", "Tree", "is_junk", "modified_ns", "open_tree", "read_bytes", "read_head"]


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
        broken: archives of which nothing is used: (path, reason, sentence).
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
    if path.is_dir():
        root, found = path, sorted(_files_below(path))
    elif path.is_file() and is_archive(path.name):
        root, found = path.parent, [path]
    elif path.exists():
        raise SourceError(f"{path} is a file, but no archive ({', '.join(KINDS)}); wanted the folder of the download.")
    else:
        raise SourceError(f"{path} does not exist. Give the folder that you downloaded to.")
    files: list[SourceFile] = []
    broken: list[tuple[str, Reason, str]] = []
    archives: list[PackedFiles] = []
    for file in found:
        name = file.relative_to(root).as_posix()
        if is_junk(name):
            continue
        if not is_archive(name):
            files.append(SourceFile(name, file.stat().st_size))
            continue
        try:
            listing = list_archive(root, name)  # all of a sound archive, or none
        except CaseRejected as error:
            broken.append((name, error.reason, error.detail))
            continue
        files.extend(SourceFile(f"{name}{SEPARATOR}{member}", size) for member, size in listing.members)
        broken.extend((f"{name}{SEPARATOR}{inner}", reason, detail) for inner, reason, detail in listing.broken)
        archives.append(PackedFiles(name, listing.encrypted, listing.scratch_bytes))
    return Tree(root, tuple(sorted(files, key=lambda f: f.path)), tuple(broken), tuple(archives))


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder; linked folders are followed, each only once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        yield from (here / name for name in names if (here / name).is_file())


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
            return read_member(root, chain, n_bytes)
        with (root / path).open("rb") as stream:
            return stream.read(n_bytes)
    except (FileNotFoundError, KeyError) as error:
        raise CaseRejected(
            Reason.FILE_MISSING,
            "a file found by ingest is gone; bring it back and run the command again, or run ingest again",
        ) from error
    except OSError as error:
        raise CaseRejected(
            Reason.SOURCE_ERROR, f"the file cannot be read ({error.strerror}); run the command again"
        ) from error


def modified_ns(root: Path, path: str) -> int:
    """Modification time of the file, or of the archive that holds it."""
    return (root / split_path(path)[0]).stat().st_mtime_ns
