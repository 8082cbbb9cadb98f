"""Headers whose voxels may lie in other files (.mhd, .mha, .nhdr, .nrrd): which files those are.

In: the path of a header. Out: the paths of its data files, which lie beside it. MetaIO names them in `ElementDataFile`, NRRD in
`data file`: one name, `LIST` with a name a line, or a pattern with numbers.
"""

import re
from itertools import takewhile
from pathlib import Path, PurePosixPath

from medvar_data.errors import CaseRejected, Reason
from medvar_data.sources.tree import SEPARATOR, read_bytes, read_head

META, NRRD = (".mhd", ".mha"), (".nhdr", ".nrrd")
HEADER_BYTES = 1 << 18  # more than any header, less than a volume that follows one
MAX_FILES = 100_000
INSIDE = {"local"}  # MetaIO: the voxels follow the header
PATTERN = re.compile(r"%0?\d*[du]")


def data_files(root: Path, path: str) -> tuple[str, ...]:
    """Find the data files of a header, in the order of the header; none where the voxels lie in the file itself.

    Raises:
        CaseRejected: `unreadable` where the header names none or they lead out of its folder.
    """
    if not path.lower().endswith((*META, *NRRD)):
        return ()
    return _data_files(path, read_head(root, path, HEADER_BYTES))


def read_with_data(root: Path, path: str) -> dict[str, bytes]:
    """Read a file and the data files it points to: name beside the header -> content, the header first.

    Raises:
        CaseRejected: one of them is missing or empty, or lies outside the header's folder.
    """
    whole = read_bytes(root, path)
    files = {PurePosixPath(path).name: whole}
    folder = _folder(path)
    for data in _data_files(path, whole[:HEADER_BYTES]):
        try:
            files[data.removeprefix(folder)] = read_bytes(root, data)
        except CaseRejected as error:
            if error.reason is not Reason.FILE_MISSING:
                raise
            raise no_data_file() from error
    return files


def no_data_file() -> CaseRejected:
    """What is said of a header whose voxels are missing."""
    return CaseRejected(
        Reason.FILE_MISSING, "the header's data file is not there; it has to lie beside the header, download it again"
    )


def _data_files(path: str, head: bytes) -> tuple[str, ...]:
    if path.lower().endswith(META):
        names = _names(head, b"ElementDataFile[ \\t]*=")
    elif path.lower().endswith(NRRD):
        head = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]  # behind an empty line come the voxels
        if path.lower().endswith(".nrrd") and not re.search(rb"(?mi)^data ?file:", head):
            return ()
        names = _names(head, b"data ?file:")
    else:
        return ()
    return tuple(_beside(path, name) for name in names)


def _names(head: bytes, key: bytes) -> list[str]:
    match = re.search(rb"^" + key + rb"[ \t]*([^\r\n]*)", head, re.IGNORECASE | re.MULTILINE)
    value = match[1].decode("utf-8", "surrogateescape").strip() if match else ""
    if not match or not value:
        raise CaseRejected(Reason.UNREADABLE, "the header does not say which file holds the voxels")
    if value.lower() in INSIDE:
        return []
    if value.split()[0].upper() == "LIST":
        rest = head[match.end() :].decode("utf-8", "surrogateescape").lstrip("\r\n").splitlines()
        return [line.strip() for line in takewhile(str.strip, rest)]
    return _numbered(value) if PATTERN.search(value) else [value]


def _numbered(value: str) -> list[str]:
    """Write out `slice%03d.raw first last step`."""
    pattern, *numbers = value.split()
    try:
        first, last, step = (int(number) for number in [*numbers, "1"][:3])
        series = range(first, last + (1 if step > 0 else -1), step)
        if len(series) > MAX_FILES:
            raise ValueError
        return [pattern % number for number in series]
    except (ValueError, TypeError) as error:
        raise CaseRejected(Reason.UNREADABLE, "the header's list of data files cannot be understood") from error


def _beside(path: str, name: str) -> str:
    """The path of a data file, which may not leave the folder of its header."""
    parts = PurePosixPath(name).parts
    odd = "\\" in name or "\0" in name or SEPARATOR in name or re.match("[A-Za-z]:", name)
    if odd or not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise CaseRejected(
            Reason.UNREADABLE, "the header points to a data file outside its own folder; wanted one beside it"
        )
    return _folder(path) + PurePosixPath(name).as_posix()


def _folder(path: str) -> str:
    """What stands before a file's name: folders, archives, or nothing."""
    return path[: path.rfind("/") + 1]
