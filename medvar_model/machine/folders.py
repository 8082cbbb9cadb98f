"""Look at folders before work begins: is this one what the caller takes it for, may that one be written, is it in use.

In: paths as the user typed them. Out: nothing, or a sentence that names what lies there and what would fit.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from medvar_data.shardset.dataset import is_shard_set
from medvar_data.storage.store import Store
from medvar_model.errors import FolderInUse, MissingCheckpoint, ShardSetMismatch, UnusableFolder

LOCK = ".lock"
MOST_LOOKED_AT = 2_000  # folders searched for what would have fitted
MOST_NAMED = 3
DEEPEST = 3


def check_shard_set(shards: str) -> None:
    """Refuse a local path that is no shard set, and name shard sets below it; URLs are left to the reader.

    Raises:
        ShardSetMismatch: nothing is there, or something else.
    """
    if "://" in shards or is_shard_set(Store(shards)):
        return
    wanted = "wanted a shard set, as `medvar-data shard` writes it"
    if not Path(shards).exists():
        raise ShardSetMismatch(f"There is no folder {shards}; {wanted}. Check the path.")
    found = _below(Path(shards), lambda folder: is_shard_set(Store(str(folder))))
    raise ShardSetMismatch(f"{shards} holds no dataset.json; {wanted}.{_fitting(found, 'shard set')}")


def no_checkpoint(path: Path, holds_one: Callable[[Path], bool]) -> MissingCheckpoint:
    """Say what lies at a path that holds no checkpoint, and where below it one lies."""
    wanted = "name a folder that `medvar-model train` wrote"
    if not path.exists():
        return MissingCheckpoint(f"There is no folder {path}; it holds no checkpoint, so {wanted}. Check the path.")
    if not path.is_dir():
        return MissingCheckpoint(f"{path} is a file and holds no checkpoint; {wanted}.")
    found = _below(path, holds_one)
    return MissingCheckpoint(
        f"{path} holds no checkpoint (no config.json, best or last in it); {wanted}.{_fitting(found, 'checkpoint')}"
    )


def check_writable(out: Path, option: str = "-o") -> None:
    """Refuse an output folder that could not be made or written.

    Raises:
        UnusableFolder: it, or a folder above it, is a file or may not be written.
    """
    another = f"Name another folder with {option}."
    above = next(folder for folder in (out, *out.absolute().parents) if os.path.lexists(folder))
    if not above.is_dir():
        what = "a file" if above.exists() else "a link that leads nowhere"
        where = f"{out}" if above == out else f"{out} cannot be made, since {above}"
        raise UnusableFolder(f"{where} is {what}; wanted a folder. {another}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UnusableFolder(f"{above} may not be written by you, so nothing can be kept in {out}. {another}")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder for the length of a `with` block.

    The lock is the operating system's, so it ends with this process, however that ends. Where the file system knows no
    locks, nobody is kept out.

    Raises:
        FolderInUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / LOCK, timeout=0))
        except Timeout:
            raise in_use(folder) from None
        except (OSError, NotImplementedError):
            pass
        yield


def check_free(folder: Path) -> None:
    """Refuse a folder that another process holds now.

    Raises:
        FolderInUse: one does.
    """
    if (folder / LOCK).is_file():
        with held(folder):
            pass


def in_use(folder: Path) -> FolderInUse:
    """Say that a folder is taken."""
    return FolderInUse(
        f"Another process is at work in {folder} at this moment. Wait for its end or stop it (`fuser {folder / LOCK}` "
        "names it), or name another folder (-o)."
    )


def _below(folder: Path, fits: Callable[[Path], bool]) -> list[Path]:
    """Find what fits below a folder, nearest first; give up where there is too much to look at."""
    found: list[Path] = []
    layer, looked = [folder], 0
    for _ in range(DEEPEST):
        below: list[Path] = []
        for parent in layer:
            with contextlib.suppress(OSError):
                below += sorted(child for child in parent.iterdir() if child.is_dir() and not child.is_symlink())
            looked += 1
            if looked + len(below) > MOST_LOOKED_AT:
                return found
        found += [child for child in below if fits(child)]
        layer = [child for child in below if child not in found]
    return found


def _fitting(found: list[Path], what: str) -> str:
    if not found:
        return ""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f" Below it, {', '.join(map(str, found[:MOST_NAMED]))}{more} would be a {what}."
