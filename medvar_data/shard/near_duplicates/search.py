"""Find the cases that show one scan although no byte of them is the same: renamed, laid otherwise, cropped, resampled, windowed.

In: case files of the workspace, with the thumbnails that harmonize left there. Out: pairs of cases, each proved on its voxels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from medvar_data.engine.engine import Engine, as_engine, run_tasks
from medvar_data.errors import WorkspaceError
from medvar_data.shard.near_duplicates.candidates import describe, find_candidates
from medvar_data.shard.near_duplicates.fit import Prepared
from medvar_data.shard.near_duplicates.memory import add_comparisons, read_comparisons
from medvar_data.shard.near_duplicates.proof import can_be_proved, compare
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
    thumbnails: tuple[tuple["_Thumbnail", "_Thumbnail"], ...]
    read: Read


@dataclass(frozen=True)
class _Thumbnail:
    file: str
    digest: bytes  # so that what is kept of a file is not taken for what the file holds later


@dataclass(frozen=True, eq=False)
class _Described:
    thumbnail: _Thumbnail
    parts: Float32[np.ndarray, "parts waves"]


def near_pairs(
    files: Sequence[Path],
    joined: Int64[np.ndarray, " cases"],
    engine: Engine | int,
    memory: Path | None = None,
    read: Read = read_thumbnail,
) -> Iterator[tuple[int, int, float]]:
    """Find the pairs of cases whose thumbnails show one scan.

    Args:
        files: of the cases, as harmonize wrote them.
        joined: a number for each case; those with the same belong together anyway and are not compared.
        engine: whose processes of this machine do the work.
        memory: the table of earlier comparisons, which are not made again; what is compared now is added.
        read: gives the thumbnail of a file; importable.

    Yields:
        Numbers of two cases, and the correlation of their voxels where they lie over each other.
    """
    local = Engine(workers=as_engine(engine).workers)
    described = _described(files, local, read)
    places = np.array(sorted(described), dtype=np.int64)
    if len(places) < 2:
        return
    rows = np.stack([described[int(place)].parts for place in places])
    pairs = [(int(places[a]), int(places[b])) for a, b in find_candidates(rows, joined[places])]
    thumbnails = {place: one.thumbnail for place, one in described.items()}
    digests = {(a, b): (thumbnails[a].digest, thumbnails[b].digest) for a, b in pairs}
    known = read_comparisons(memory) if memory else {}
    fresh = _compared([pair for pair in pairs if digests[pair] not in known], thumbnails, local, read)
    if memory and fresh:
        add_comparisons(memory, ((digests[pair], similarity) for pair, similarity in fresh.items()))
    for pair in pairs:
        similarity = fresh[pair] if pair in fresh else known[digests[pair]]
        if similarity is not None:
            yield (*pair, similarity)


def _compared(
    pairs: Sequence[tuple[int, int]], thumbnails: Mapping[int, _Thumbnail], engine: Engine, read: Read
) -> dict[tuple[int, int], float | None]:
    """Compare pairs of cases; None where they show two scans."""
    batches = [tuple(pairs[start : start + PER_TASK]) for start in range(0, len(pairs), PER_TASK)]
    tasks = [_CompareTask(batch, tuple((thumbnails[a], thumbnails[b]) for a, b in batch), read) for batch in batches]
    found: dict[tuple[int, int], float | None] = {}
    for some in run_tasks(_compare, tasks, engine, _died):
        found.update(some)
    return found


def _described(files: Sequence[Path], engine: Engine, read: Read) -> dict[int, _Described]:
    starts = range(0, len(files), PER_TASK)
    tasks = [_DescribeTask(start, tuple(map(str, files[start : start + PER_TASK])), read) for start in starts]
    found: dict[int, _Described] = {}
    for some in run_tasks(_describe, tasks, engine, _died):
        found.update(some)
    return found


def _describe(task: _DescribeTask) -> dict[int, _Described]:
    """Describe the cases that have a thumbnail large enough for a proof."""
    thumbnails = ((number, file, task.read(Path(file))) for number, file in enumerate(task.files, task.first))
    return {
        number: _Described(_Thumbnail(file, _digest(t)), describe(t))
        for number, file, t in thumbnails
        if t is not None and can_be_proved(t.shape)
    }


def _digest(thumbnail: UInt8[np.ndarray, "a b c"]) -> bytes:
    return sha256(repr(thumbnail.shape).encode() + thumbnail.tobytes()).digest()


def _compare(task: _CompareTask) -> dict[tuple[int, int], float | None]:
    """Compare pairs; the similarity of those that show one scan, None for the others."""
    likenesses = (compare(_prepared(a, task.read), _prepared(b, task.read)) for a, b in task.thumbnails)
    found = zip(task.pairs, likenesses, strict=True)
    return {pair: likeness.similarity if likeness.is_one_scan else None for pair, likeness in found}


@lru_cache(KEPT_IN_MEMORY)
def _prepared(source: _Thumbnail, read: Read) -> Prepared:
    thumbnail = read(Path(source.file))
    assert thumbnail is not None
    return Prepared.of(thumbnail)


def _died(_: _DescribeTask | _CompareTask) -> NoReturn:
    raise WorkspaceError(
        "A process that compared scans died, or ran out of memory, twice. Run the command again with fewer --workers."
    )
