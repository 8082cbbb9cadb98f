"""Write one shard: its tar (bytes by `storage.tar`), then its rows, which mark it as finished.

In: a `ShardTask`. Out: `<split>-NNNNNN.tar` in the store and its rows of slices.parquet in the workspace.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.errors import WorkspaceError
from medvar_data.shard.plan import ShardTask
from medvar_data.shardset.dataset import crc32
from medvar_data.shardset.schema import SLICES_SCHEMA, VERSION_NOTE, sample_json
from medvar_data.storage.codec import CODECS, PNG, Codec
from medvar_data.storage.parquet import table_from_rows, write_table
from medvar_data.storage.store import Store, file_digest, scratch_path
from medvar_data.storage.tar import write_tar
from medvar_data.workspace.case_file import read_pictures

MEMBERS = ("image", "mask", "json")  # of a sample, in this order


def is_written(task: ShardTask, store: Store) -> bool:
    """Tell whether a shard of this plan is in the store."""
    index = Path(task.index)
    if not index.exists():
        return False
    try:
        note = pq.read_schema(index).metadata or {}
        n_bytes = int(note.get(b"medvar.bytes", b"-1"))
    except (pa.ArrowException, OSError, ValueError):  # an index that is damaged is none
        return False
    return note.get(b"medvar.plan") == task.digest.encode() and store.size(task.name) == n_bytes


def write_shard(task: ShardTask) -> str:
    """Write one shard and, once it is in place, its rows; returns its name."""
    pictures = _pictures(task)
    index = Path(task.index)
    with scratch_path(index.parent / task.name) as local:
        members = write_tar(local, _members(task, pictures))
        digest, n_bytes = file_digest(local), local.stat().st_size
        Store(task.url).put(local, task.name)
    rows = []
    for i, planned in enumerate(task.slices):
        row = {**planned.columns, "shard": task.name}
        for name, member in zip(MEMBERS, members[3 * i : 3 * i + 3], strict=True):
            row |= {f"{name}_offset": member.offset, f"{name}_size": member.size}
        image, mask = pictures[(planned.path, planned.row)]
        rows.append({**row, "image_crc32": crc32(image), "mask_crc32": crc32(mask)})
    notes = {**VERSION_NOTE, "medvar.plan": task.digest, "medvar.sha256": digest, "medvar.bytes": str(n_bytes)}
    write_table(index, table_from_rows(rows, SLICES_SCHEMA), notes)
    return task.name


def raise_killed(task: ShardTask) -> str:
    """Say that a shard's process was killed twice.

    Raises:
        WorkspaceError: always.
    """
    raise WorkspaceError(
        f"The process that wrote {task.name} was killed twice; free memory or disk and run the same command again."
    )


def _pictures(task: ShardTask) -> dict[tuple[str, int], tuple[bytes, bytes]]:
    """Images and masks of a shard's slices in its codec; each case file is read once."""
    codec = CODECS[task.codec]
    by_case: dict[str, list[int]] = {}
    for planned in task.slices:
        by_case.setdefault(planned.path, []).append(planned.row)
    return {
        (path, row): transcoded(pair, PNG, codec)
        for path, rows in by_case.items()
        for row, pair in read_pictures(Path(path), rows).items()
    }


def transcoded(pair: tuple[bytes, bytes], old: Codec, new: Codec) -> tuple[bytes, bytes]:
    """Image and mask, encoded by `old`, in the codec `new`; untouched where it is the same."""
    if old is new:
        return pair
    image, mask = pair
    return new.encode(old.decode(image)), new.encode_mask(old.decode(mask))


def _members(task: ShardTask, pictures: Mapping[tuple[str, int], tuple[bytes, bytes]]) -> Iterator[tuple[str, bytes]]:
    suffix = CODECS[task.codec].suffix
    for planned in task.slices:
        image, mask = pictures[(planned.path, planned.row)]
        yield f"{planned.key}.{suffix}", image
        yield f"{planned.key}.mask.{suffix}", mask
        yield f"{planned.key}.json", sample_json(planned.columns)
