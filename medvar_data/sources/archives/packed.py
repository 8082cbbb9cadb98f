"""Turn archives that can only be read from the front into ones that are read in place.

tar.gz, tar.bz2 and tar.xz become the tar inside them, .7z becomes a zip of stored members. Only bytes are written, to a file
that the caller bounds; no name from the archive ever becomes the name of a file.
"""

import bz2
import lzma
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from isal import igzip

from medvar_data.errors import CaseRejected
from medvar_data.sources.archives.names import damaged
from medvar_data.sources.archives.scratch import BoundedFile

CHUNK = 1 << 20  # bytes
UNPACKED_KIND = {"gzip": "tar", "bzip2": "tar", "xz": "tar", "7z": "zip"}


def unpack(kind: str, file: Path, out: BoundedFile, passwords: tuple[bytes, ...]) -> bool:
    """Write the tar or zip that a packed archive holds.

    Returns:
        Whether the archive is encrypted.

    Raises:
        CaseRejected: `archive_unreadable`, `unsafe_archive`, `archive_password` or `scratch_full`.
    """
    if kind == "7z":
        from medvar_data.sources.archives.seven_zip import unpack_7z  # slow to import, and seldom wanted

        return unpack_7z(file, out, passwords)
    try:
        with _open(kind, file) as stream:
            while chunk := stream.read(CHUNK):
                out.write(chunk)
    except CaseRejected:
        raise
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # each library raises its own, ISA-L one for broken deflate blocks that it does not export
        raise damaged() from error
    return False


def _open(kind: str, file: Path) -> BufferedIOBase:
    if kind == "gzip":
        return cast(BufferedIOBase, igzip.open(file, "rb"))
    return bz2.BZ2File(file) if kind == "bzip2" else lzma.LZMAFile(file)
