"""Read members of archives without unpacking them where that can be, through a private scratch folder where it cannot.

zip, tar: in place. tar.gz, tar.bz2, tar.xz, 7z and archives in archives: through scratch. docs/decisions/0011-archives.md says why.
"""

from medvar_data.sources.archives.access import (
    DEFAULT_ACCESS,
    NOTHING_OPEN,
    Access,
    AccessSpec,
    Listing,
    clear_scratch,
    list_archive,
    open_access,
    private_folder,
    read_member,
    read_passwords,
    reading,
    room_bytes,
)
from medvar_data.sources.archives.names import KINDS, SEPARATOR, is_archive, is_junk, split_path

__all__ = [
    "DEFAULT_ACCESS", "KINDS", "NOTHING_OPEN", "SEPARATOR", "Access", "AccessSpec", "Listing", "clear_scratch", "is_archive", "is_junk", "list_archive", "open_access",
    "private_folder",
    "read_member", "read_passwords", "reading", "room_bytes", "split_path",
]  # fmt: skip
