"""One Parquet file a harmonized case: the unit of work, of resume and of atomic commit.

A kept case has one row a slice; a rejected one has none. All that holds for the whole case stands as JSON in the file's
metadata. The file's existence with the right digests of its inputs is the mark that the case is done.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.errors import CaseRejected, Reason, WorkspaceError
from medvar_data.records import Case, CaseStatistics, HarmonizedCase, HarmonizedVolume, Inputs, Reject
from medvar_data.shardset.schema import Column, schema_of
from medvar_data.storage.codec import CODECS, pixel_digest
from medvar_data.storage.store import atomic_path

SLICE_TABLE = (
    Column("z", pa.int32(), "index along the slice axis, from the patient's feet, right or back"),
    Column("source_index", pa.int32(), "index along the slice axis as stored in the source"),
    Column("body_pixels", pa.int32(), "pixels of the finished slice inside the body", "pixels"),
    Column("foreground_pixels", pa.int32(), "pixels of the mask above 0", "pixels"),
    Column("label_pixels", pa.map_(pa.int16(), pa.int32()), "pixels of each label id that the mask holds", "pixels"),
    Column("image_sha256", pa.string(), 'sha256 of "HxW:" and the decoded pixels of the image'),
    Column("mask_sha256", pa.string(), 'sha256 of "HxW:" and the decoded pixels of the mask'),
    Column("image", pa.binary(), "the encoded image, byte for byte what the shard will hold"),
    Column("mask", pa.binary(), "the encoded mask, byte for byte what the shard will hold"),
)
SLICE_SCHEMA = schema_of(SLICE_TABLE, described=False)  # names and types alone, as in workspaces that exist
INDEX_COLUMNS = [name for name in SLICE_SCHEMA.names if name not in ("image", "mask")]
SLICES_PER_GROUP = 16  # so that a shard reads little more of a case than the slices it takes
METADATA_KEY = b"medvar.case"
CHANGES = {
    "source": "source changed",
    "collection": "collection changed",
    "recipe": "recipe changed",
    "code": "code version changed",
}


@dataclass(frozen=True)
class CaseFile:
    """What a case's file says of the case as a whole; `harmonized` is None where it was rejected."""

    collection: str
    case: str
    inputs: Inputs
    harmonized: HarmonizedCase | None
    reject: Reject | None


def write_kept(path: Path, volume: HarmonizedVolume, case: Case, inputs: Inputs, codec_name: str) -> None:
    """Encode and write a kept case, made from `inputs`."""
    codec = CODECS[codec_name]
    rows = [
        {
            "z": s.z, "source_index": s.source_index, "body_pixels": s.body_pixels,
            "foreground_pixels": s.foreground_pixels, "label_pixels": list(s.label_pixels.items()),
            "image_sha256": pixel_digest(s.image), "mask_sha256": pixel_digest(s.mask),
            "image": codec.encode(s.image), "mask": CODECS["png"].encode(s.mask),
        }
        for s in volume.slices
    ]  # fmt: skip
    _write(path, rows, case, inputs, harmonized=dataclasses.asdict(volume.case))


def write_rejected(path: Path, error: CaseRejected, case: Case, inputs: Inputs) -> None:
    """Write a case rejected for what `inputs` say: no rows, the reason in the metadata."""
    _write(path, [], case, inputs, reason=error.reason.value, detail=error.detail)


def read_case_file(path: Path) -> CaseFile:
    """Read what holds for the whole case; no slice is read."""
    try:
        note = json.loads(pq.read_schema(path).metadata[METADATA_KEY])
        collection, case, reject = note["collection"], note["case"], None
        if note.get("reason"):
            reject = Reject(collection, case, "harmonize", Reason(note["reason"]), note["detail"])
        harmonized = _harmonized(note["harmonized"]) if note.get("harmonized") else None
        return CaseFile(collection, case, Inputs(**note["inputs"]), harmonized, reject)
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise WorkspaceError(f"{path.name} in the workspace is damaged; run harmonize again.") from error


def read_slice_index(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a case without their pictures."""
    return pq.read_table(path, columns=INDEX_COLUMNS).to_pylist()


def read_pictures(path: Path, rows: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
    """Read encoded image and mask of some rows: row -> (image, mask)."""
    wanted = sorted(set(rows))
    with pq.ParquetFile(path) as file:
        groups = sorted({row // SLICES_PER_GROUP for row in wanted})
        table = file.read_row_groups(groups, columns=["image", "mask"])
    start = {group: n * SLICES_PER_GROUP for n, group in enumerate(groups)}
    images, masks = table["image"], table["mask"]
    at = {row: start[row // SLICES_PER_GROUP] + row % SLICES_PER_GROUP for row in wanted}
    return {row: (images[i].as_py(), masks[i].as_py()) for row, i in at.items()}


PASSING = {
    Reason.FILE_MISSING,
    Reason.NOT_FETCHED,
    Reason.NOT_PERMITTED,
    Reason.SOURCE_ERROR,
    Reason.WORKER_KILLED,
}


def why_to_do(path: Path, wanted: Inputs, *, retry: bool = False) -> tuple[str, ...]:
    """Tell why a case is to be made (again); nothing where its file is there and was made from the same inputs.

    With `retry`, a case that was rejected for want of its file or of memory is to be made again: neither says anything of it.
    """
    if not path.exists():
        return ("new",)
    try:
        file = read_case_file(path)
    except WorkspaceError:
        return ("result damaged",)
    made = file.inputs
    if retry and file.reject and file.reject.reason in PASSING:
        return ("source or memory was short",)
    return tuple(why for name, why in CHANGES.items() if getattr(made, name) != getattr(wanted, name))


def _write(path: Path, rows: list[dict[str, Any]], case: Case, inputs: Inputs, **outcome: Any) -> None:
    note = {
        "collection": case.collection, "case": case.case,
        "inputs": dataclasses.asdict(inputs), **outcome,
    }  # fmt: skip
    columns = {f.name: pa.array([row[f.name] for row in rows], type=f.type) for f in SLICE_SCHEMA}
    metadata = {METADATA_KEY: json.dumps(note, sort_keys=True).encode()}
    table = pa.table(columns, schema=SLICE_SCHEMA.with_metadata(metadata))
    with atomic_path(path) as partial:
        pq.write_table(
            table, partial, row_group_size=SLICES_PER_GROUP, use_dictionary=False, write_statistics=False,
            compression={**dict.fromkeys(INDEX_COLUMNS, "zstd"), "image": "none", "mask": "none"},
        )  # fmt: skip


def _harmonized(note: dict[str, Any]) -> HarmonizedCase:
    numbers = {k: {int(v): mm3 for v, mm3 in note[k].items()} for k in ("removed_label_mm3", "label_mm3")}
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in note.items()}
    plain |= {**numbers, "statistics": CaseStatistics(**note["statistics"])}
    return HarmonizedCase(**plain)
