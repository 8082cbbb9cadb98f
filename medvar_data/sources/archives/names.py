"""Names of archives and in archives: which files are archives, how a path leads through them, which members are safe.

A path is POSIX and relative to the root; `outer.zip!/inner.tar!/folder/file` is a member of an archive in an archive.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from medvar_data.errors import CaseRejected, Reason

SEPARATOR = "!/"
KINDS = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bzip2",
    ".tbz2": "bzip2",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".7z": "7z",
}
READ_IN_PLACE = ("zip", "tar")
MAGIC = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"7z\xbc\xaf'\x1c": "7z"}
MEMBER_LIMIT = 16 << 30  # bytes: a 512 x 512 x 4000 float64 volume is 8 GiB
MEMBERS_LIMIT = 5_000_000  # of one archive; the largest published sets have some hundred thousand DICOM slices
RATIO_LIMIT = 2_000  # unpacked over packed: deflate cannot pass 1,032, which empty label maps come near
RATIO_FREE = 1 << 30  # bytes below which the ratio does not matter
JUNK_NAMES = {".DS_Store", "Thumbs.db", "desktop.ini", ".git", ".datalad"}


def is_archive(path: str) -> bool:
    """Tell by the name whether a file is an archive that we read; `.nii.gz` is none."""
    return path.lower().endswith(tuple(KINDS))


def is_junk(path: str) -> bool:
    """Tell AppleDouble twins, files of Finder and Explorer, and git's own folders from data."""
    parts = PurePosixPath(path.replace(SEPARATOR, "/")).parts
    return any(p.startswith("._") or p == "__MACOSX" or p in JUNK_NAMES for p in parts)


def split_path(path: str) -> tuple[str, ...]:
    """Split a path into its archives, outermost first, and the member; a plain file is one part.

    >>> split_path("a/outer.zip!/inner.tar!/scan.nii.gz")
    ('a/outer.zip', 'inner.tar', 'scan.nii.gz')
    """
    parts: list[str] = []
    for part in path.split(SEPARATOR):
        if parts and not is_archive(parts[-1]):  # a folder whose name ends in "!"
            parts[-1] += SEPARATOR + part
        else:
            parts.append(part)
    return tuple(parts)


def kind_of(file: Path, name: str) -> str:
    """Tell how an archive is packed: by its first bytes, and where those say nothing by its name."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith((b"U2FsdGVk", b"Salted__")):
        raise CaseRejected(Reason.ARCHIVE_PASSWORD, "the file is encrypted with OpenSSL; decrypt it first")
    if head[257:262] == b"ustar":
        return "tar"
    by_name = next(kind for end, kind in KINDS.items() if name.lower().endswith(end))
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), by_name)


def safe_members(members: Iterable[tuple[str, int]], packed_bytes: int) -> Iterator[tuple[str, int]]:
    """Pass on the members of an archive, names without a leading `./`, as long as nothing about them is hostile.

    Args:
        members: name and declared size in bytes of each.
        packed_bytes: size of the archive.

    Raises:
        CaseRejected: `unsafe_archive` at the first name that leads out of the archive, or sizes beyond all measure.
    """
    total = 0
    for number, (name, size) in enumerate(members, start=1):
        check_name(name)
        total += size
        if size > MEMBER_LIMIT or number > MEMBERS_LIMIT:
            raise bomb()
        check_ratio(total, packed_bytes)
        yield plain_name(name), size


def plain_name(name: str) -> str:
    """Drop the `./` that tar puts before names."""
    return re.sub(r"^(\./+)+", "", name)


def check_name(name: str) -> None:
    """Refuse a member whose name leads out of the archive, with slashes or backslashes, or could be taken for a way through one.

    Raises:
        CaseRejected: `unsafe_archive`.
    """
    name = name.replace("\\", "/")
    odd = not name or name.startswith("/") or "\0" in name or SEPARATOR in name
    if odd or re.match("[A-Za-z]:", name) or ".." in PurePosixPath(name).parts:
        raise CaseRejected(
            Reason.UNSAFE_ARCHIVE,
            "the archive holds a member whose name leads out of its folder; nothing of it is used. Download it again, or unpack it yourself",
        )


def check_ratio(unpacked_bytes: int, packed_bytes: int) -> None:
    """Refuse an archive that grows beyond all measure.

    Raises:
        CaseRejected: `unsafe_archive`.
    """
    if unpacked_bytes > RATIO_FREE and unpacked_bytes > RATIO_LIMIT * packed_bytes:
        raise bomb()


def bomb() -> CaseRejected:
    """What is said of an archive that inflates without bound."""
    return CaseRejected(
        Reason.UNSAFE_ARCHIVE, "the archive inflates beyond all measure; nothing of it is used. Download it again"
    )


def not_a_file() -> CaseRejected:
    """What is said of an archive with a link or a device in it."""
    return CaseRejected(Reason.UNSAFE_ARCHIVE, "the archive holds a link or a device; wanted plain files only")


def damaged() -> CaseRejected:
    """What is said of an archive that cannot be read to its end."""
    return CaseRejected(
        Reason.ARCHIVE_UNREADABLE, "the archive cannot be read: it is cut short or damaged; download it again"
    )


def unknown_packing() -> CaseRejected:
    """What is said of an archive whose compression we do not know."""
    return CaseRejected(
        Reason.ARCHIVE_UNREADABLE, "the archive is packed in a way that is not known here; unpack it yourself"
    )


def locked(*, given: bool) -> CaseRejected:
    """What is said of an encrypted archive; `given`: passwords were there, but none fits."""
    why = "none of the passwords given opens it" if given else "no password was given"
    return CaseRejected(Reason.ARCHIVE_PASSWORD, f"the archive is encrypted and {why}; use --password-file FILE")
