"""How much memory this process may use, and sizes as people write them."""

import os
import re
from pathlib import Path

from medvar_data.errors import WorkspaceError

UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
DEFAULT_FRACTION = 0.8  # of the machine's memory: the rest is the system's, the page cache's and the parent's


def parse_size(text: str) -> int:
    """Read a size in bytes.

    >>> parse_size("8GB"), parse_size("1.5 GiB")
    (8000000000, 1610612736)

    Raises:
        WorkspaceError: it is no size, or nothing.
    """
    match = SIZE.fullmatch(text)
    n_bytes = int(float(match[1]) * UNITS[(match[2] or "").upper()]) if match else 0
    if not n_bytes:
        raise WorkspaceError(f"{text!r} is no amount of memory; wanted a number with a unit, such as 8GB or 500MiB.")
    return n_bytes


def show_size(n_bytes: int) -> str:
    """Write a size for people.

    >>> show_size(2_340_000_000)
    '2.3 GB'
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes} bytes"


def memory_limit() -> int:
    """Bytes of memory of this machine, or of the control group (container, batch job) that holds this process."""
    return min([_physical(), *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def default_budget() -> int:
    """Four fifths of the memory that this process may use."""
    return int(DEFAULT_FRACTION * memory_limit())


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_limits(membership: Path, mount: Path) -> list[int]:
    """Limits of the control groups that hold this process, from its own up to the root; version 1 and version 2."""
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        folder = base / path.lstrip("/")
        limits += [
            _limit(place / name) for place in (folder, *folder.parents) if place == base or base in place.parents
        ]
    return [limit for limit in limits if limit]


def _limit(file: Path) -> int:
    """Bytes of one limit; 0 where there is none."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
