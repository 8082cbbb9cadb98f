"""Find the cases that show one scan although no byte of them is the same: renamed, laid otherwise, cropped, resampled, windowed.

In: case files of the workspace, with the thumbnails that harmonize left there. Out: pairs of cases, each proved on its voxels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from medvar_data.engine.engine import Engine, as_engine, run_tasks
from medvar_data.errors import WorkspaceError
from medvar_data.shard.near_candidates import describe, find_candidates
from medvar_data.shard.near_proof import Prepared, compare
from medvar_data.workspace.case_file import read_thumbnail

Read = Callable[[Path], UInt8[np.ndarray, "a b c"] | None]
PER_TASK = 64
KEPT_IN_MEMORY = 256  # thumbnails of a process


@dataclass(frozen=True)
class _DescribeTask:
    first: int  # number of the first case
    files: tuple[str, ...]
    read: Read


@dataclass(frozen=True)
class _CompareTask:
    pairs: tuple[tuple[int, int], ...]
    files: tuple[tuple[str, str], ...]
    read: Read


def near_pairs(
    files: Sequence[Path], joined: Int64[np.ndarray, " cases"], engine: Engine | int, read: Read = read_thumbnail
) -> Iterator[tuple[int, int, float]]:
    """Find the pairs of cases whose thumbnails show one scan.

    Args:
        files: of the cases, as harmonize wrote them.
        joined: a number for each case; those with the same belong together anyway and are not compared.
        engine: whose processes of this machine do the work.
        read: gives the thumbnail of a file; importable.

    Yields:
        Numbers of two cases, and the correlation of their voxels where they lie over each other.
    """
    local = Engine(workers=as_engine(engine).workers)
    described = _described(files, local, read)
    places = np.array(sorted(described), dtype=np.int64)
    if len(places) < 2:
        return
    rows = np.stack([described[int(place)] for place in places])
    pairs = [(int(places[a]), int(places[b])) for a, b in find_candidates(rows, joined[places])]
    batches = [tuple(pairs[start : start + PER_TASK]) for start in range(0, len(pairs), PER_TASK)]
    tasks = [_CompareTask(batch, tuple((str(files[a]), str(files[b])) for a, b in batch), read) for batch in batches]
    for found in run_tasks(_compare, tasks, local, _died):
        yield from found


def _described(files: Sequence[Path], engine: Engine, read: Read) -> dict[int, Float32[np.ndarray, "parts waves"]]:
    starts = range(0, len(files), PER_TASK)
    tasks = [_DescribeTask(start, tuple(map(str, files[start : start + PER_TASK])), read) for start in starts]
    found: dict[int, Float32[np.ndarray, "parts waves"]] = {}
    for some in run_tasks(_describe, tasks, engine, _died):
        found.update(some)
    return found


def _describe(task: _DescribeTask) -> dict[int, Float32[np.ndarray, "parts waves"]]:
    """Describe the cases that have a thumbnail."""
    thumbnails = ((number, task.read(Path(file))) for number, file in enumerate(task.files, task.first))
    return {number: describe(thumbnail) for number, thumbnail in thumbnails if thumbnail is not None}


def _compare(task: _CompareTask) -> list[tuple[int, int, float]]:
    """Compare pairs; those that show one scan."""
    likenesses = (compare(_prepared(a, task.read), _prepared(b, task.read)) for a, b in task.files)
    return [(*pair, found.similarity) for pair, found in zip(task.pairs, likenesses, strict=True) if found.is_one_scan]


@lru_cache(KEPT_IN_MEMORY)
def _prepared(file: str, read: Read) -> Prepared:
    thumbnail = read(Path(file))
    assert thumbnail is not None
    return Prepared.of(thumbnail)


def _died(_: _DescribeTask | _CompareTask) -> NoReturn:
    raise WorkspaceError(
        "A process that compared scans died, or ran out of memory, twice. Run the command again with fewer --workers."
    )
