"""Write one shard: its tar (bytes by `storage.tar`), then its rows, which mark it as finished.

In: a `ShardTask`. Out: `<split>-NNNNNN.tar` in the store and its rows of slices.parquet among the plan's notes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.errors import WorkspaceError
from medvar_data.shard.plan import ShardTask
from medvar_data.shard.plan_files import CASES, SLICES, take_rows
from medvar_data.shardset.dataset import crc32
from medvar_data.shardset.schema import CASE_IDENTITY, SLICES_SCHEMA, VERSION_NOTE, member_names, sample_json
from medvar_data.storage.codec import CODECS, PNG, Codec
from medvar_data.storage.parquet import table_from_rows, write_table
from medvar_data.storage.store import Store, file_digest, scratch_path
from medvar_data.storage.tar import write_tar
from medvar_data.workspace.case_file import read_pictures
from medvar_data.workspace.workspace import Workspace

MEMBERS = ("image", "mask", "json")  # of a sample, in this order
SAID_BY_CASE = (*(column.name for column in CASE_IDENTITY), "split")
Pair = tuple[bytes, bytes]  # encoded image and mask


def is_written(task: ShardTask, store: Store) -> bool:
    """Tell whether a shard of this plan is in the store."""
    try:
        with Store(task.notes).open(task.note) as stream:
            note = pq.read_schema(stream).metadata or {}
        n_bytes = int(note.get(b"medvar.bytes", b"-1"))
    except (pa.ArrowException, OSError, ValueError):  # none, or one that is damaged
        return False
    return note.get(b"medvar.plan") == task.digest.encode() and store.size(task.name) == n_bytes


def write_shard(task: ShardTask) -> str:
    """Write one shard from the case files and, once it is in place, its rows; returns its name."""
    rows = take_rows(Path(task.plan) / SLICES, task.rows)
    numbers = np.unique(np.array([row["__case"] for row in rows], dtype=np.int32))
    cases = dict(zip(numbers.tolist(), take_rows(Path(task.plan) / CASES, numbers), strict=True))
    rows = [{**row, **{name: cases[row["__case"]][name] for name in SAID_BY_CASE}} for row in rows]
    return finish_shard(task, rows, _pictures(task, rows))


def finish_shard(task: ShardTask, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Pair]) -> str:
    """Write a shard's tar and, once it is in place, its rows; returns its name.

    Args:
        task: name and places.
        rows: of slices.parquet, but for what says where the slice lies.
        pictures: of the rows, in the task's codec.
    """
    with scratch_path(Path(task.plan) / task.name) as local:
        members = write_tar(local, _members(rows, pictures, CODECS[task.codec].suffix))
        digest, n_bytes = file_digest(local), local.stat().st_size
        Store(task.url).put(local, task.name)
    placed = []
    for i, (row, (image, mask)) in enumerate(zip(rows, pictures, strict=True)):
        place: dict[str, Any] = {"shard": task.name, "image_crc32": crc32(image), "mask_crc32": crc32(mask)}
        for name, member in zip(MEMBERS, members[3 * i : 3 * i + 3], strict=True):
            place |= {f"{name}_offset": member.offset, f"{name}_size": member.size}
        placed.append({**row, **place})
    notes = {**VERSION_NOTE, "medvar.plan": task.digest, "medvar.sha256": digest, "medvar.bytes": str(n_bytes)}
    with scratch_path(Path(task.plan) / task.note) as local:
        write_table(local, table_from_rows(placed, SLICES_SCHEMA), notes)
        Store(task.notes).put(local, task.note)
    return task.name


def raise_killed(task: ShardTask) -> str:
    """Say that a shard's process was killed twice.

    Raises:
        WorkspaceError: always.
    """
    raise WorkspaceError(
        f"The process that wrote {task.name} was killed twice; free memory or disk and run the same command again."
    )


def _pictures(task: ShardTask, rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Images and masks of a shard's slices in its codec; each case file is read once."""
    codec, workspace = CODECS[task.codec], Workspace(Path(task.source))
    by_case: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        by_case.setdefault((row["collection"], row["case"]), []).append(place)
    pairs: list[Pair] = [(b"", b"")] * len(rows)
    for (collection, case), places in by_case.items():
        found = read_pictures(workspace.case_path(collection, case), [rows[place]["__row"] for place in places])
        for place in places:
            pairs[place] = transcoded(found[rows[place]["__row"]], PNG, codec)
    return pairs


def transcoded(pair: Pair, old: Codec, new: Codec) -> Pair:
    """Image and mask, encoded by `old`, in the codec `new`; untouched where it is the same."""
    if old is new:
        return pair
    image, mask = pair
    return new.encode(old.decode(image)), new.encode_mask(old.decode(mask))


def _members(rows: Sequence[Mapping[str, Any]], pictures: Sequence[Pair], suffix: str) -> Iterator[tuple[str, bytes]]:
    for row, (image, mask) in zip(rows, pictures, strict=True):
        yield from zip(member_names(row["key"], suffix), (image, mask, sample_json(row)), strict=True)
