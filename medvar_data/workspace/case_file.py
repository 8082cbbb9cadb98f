"""One Parquet file a harmonized case: the unit of work, of resume and of atomic commit.

A kept case has one row a slice; a rejected one has none. All that holds for the whole case stands as JSON in the file's
metadata. The file's existence with the right digests of its inputs is the mark that the case is done.
"""

import dataclasses
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from medvar_data.errors import CaseRejected, Reason, WorkspaceError
from medvar_data.naming import Digest, Name
from medvar_data.records import Case, HarmonizedCase, HarmonizedSlice, HarmonizedVolume, Inputs, Reject
from medvar_data.shardset.columns import Column, schema_of
from medvar_data.storage.codec import PNG, pixel_digest
from medvar_data.storage.documents import decode_json, table_of
from medvar_data.storage.store import atomic_path

SLICE_TABLE = (
    Column("z", pa.int32(), "index along the slice axis, from the patient's feet, right or back"),
    Column("source_index", pa.int32(), "index along the slice axis as stored in the source"),
    Column("body_pixels", pa.int32(), "pixels of the finished slice inside the body", "pixels"),
    Column("foreground_pixels", pa.int32(), "pixels of the mask above 0", "pixels"),
    Column("label_pixels", pa.map_(pa.int16(), pa.int32()), "pixels of each label id that the mask holds", "pixels"),
    Column("image_size", pa.int64(), "length of the image", "bytes"),
    Column("mask_size", pa.int64(), "length of the mask", "bytes"),
    Column("image_sha256", pa.string(), 'sha256 of "HxW:" and the decoded pixels of the image'),
    Column("mask_sha256", pa.string(), 'sha256 of "HxW:" and the decoded pixels of the mask'),
    Column("image", pa.binary(), "the image as PNG, byte for byte what a shard of PNGs will hold"),
    Column("mask", pa.binary(), "the mask as PNG, byte for byte what a shard of PNGs will hold"),
    Column(
        "thumbnail",
        pa.binary(),
        "of the first row: the whole scan in few cells, for the search of duplicates; cells along each axis as three little-endian 16-bit numbers, then a PNG of all planes, one below the other",
    ),
)
SLICE_SCHEMA = schema_of(SLICE_TABLE, described=False)  # names and types alone, as in workspaces that exist
INDEX_COLUMNS = [name for name in SLICE_SCHEMA.names if name not in ("image", "mask", "thumbnail")]
SLICES_PER_GROUP = 16  # so that a shard reads little more of a case than the slices it takes
METADATA_KEY, DIGEST_KEY = b"medvar.case", b"medvar.case_sha256"
THUMBNAIL_HEAD = "<3H"
CHANGES = {
    "source": "source changed",
    "collection": "collection changed",
    "recipe": "recipe changed",
    "code": "code version changed",
}


AGAIN = "Run `medvar-data harmonize` again."
EDITED = "{name} in the workspace is not as harmonize wrote it: it was damaged or edited. " + AGAIN


@dataclass(frozen=True)
class _CaseNote:
    """What stands in a case file's metadata."""

    collection: Name
    case: Name
    inputs: Inputs
    rows_sha256: Digest
    thumbnail_sha256: str = ""
    harmonized: HarmonizedCase | None = None
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class CaseFile:
    """What a case's file says of the case as a whole; `harmonized` is None where it was rejected."""

    collection: str
    case: str
    inputs: Inputs
    harmonized: HarmonizedCase | None
    reject: Reject | None
    rows_sha256: str  # names its slices, pictures included


def write_kept(path: Path, volume: HarmonizedVolume, case: Case, inputs: Inputs) -> None:
    """Encode and write a kept case, made from `inputs`."""
    thumbnail = b"" if volume.thumbnail is None else _pack_thumbnail(volume.thumbnail)
    rows = [_slice_row(made) for made in volume.slices]
    _write(path, rows, case, inputs, thumbnail, harmonized=dataclasses.asdict(volume.case))


def _slice_row(made: HarmonizedSlice) -> dict[str, Any]:
    image, mask = PNG.encode(made.image), PNG.encode_mask(made.mask)
    return {
        "z": made.z, "source_index": made.source_index, "body_pixels": made.body_pixels,
        "foreground_pixels": made.foreground_pixels, "label_pixels": list(made.label_pixels.items()),
        "image_size": len(image), "mask_size": len(mask),
        "image_sha256": pixel_digest(made.image), "mask_sha256": pixel_digest(made.mask), "image": image, "mask": mask,
    }  # fmt: skip


def write_rejected(path: Path, error: CaseRejected, case: Case, inputs: Inputs) -> None:
    """Write a case rejected for what `inputs` say: no rows, the reason in the metadata."""
    _write(path, [], case, inputs, b"", reason=error.reason.value, detail=error.detail)


def read_case_file(path: Path) -> CaseFile:
    """Read what holds for the whole case; no slice is read."""
    note = _note(path)
    reject = None
    if note.reason:
        reject = Reject(note.collection, note.case, "harmonize", note.reason, note.detail)
    return CaseFile(note.collection, note.case, note.inputs, note.harmonized, reject, note.rows_sha256)


def read_slice_index(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a case without their pictures.

    Raises:
        WorkspaceError: they are not those that harmonize wrote.
    """
    rows = table_of(path, SLICE_SCHEMA, path.name, WorkspaceError, AGAIN, columns=INDEX_COLUMNS).to_pylist()
    if _digest_of_rows(rows) != _note(path).rows_sha256:
        raise WorkspaceError(EDITED.format(name=path.name))
    return rows


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


def read_thumbnail(path: Path) -> UInt8[np.ndarray, "a b c"] | None:
    """Read the thumbnail of a kept case; None where it was written without one.

    Raises:
        WorkspaceError: it is not as harmonize wrote it.
    """
    with pq.ParquetFile(path) as file:
        data = file.read_row_group(0, columns=["thumbnail"])["thumbnail"][0].as_py() if file.num_row_groups else None
    if sha256(data or b"").hexdigest() != (_note(path).thumbnail_sha256 or sha256().hexdigest()):
        raise WorkspaceError(EDITED.format(name=path.name))
    if not data:
        return None
    shape = struct.unpack_from(THUMBNAIL_HEAD, data)
    return PNG.decode(data[struct.calcsize(THUMBNAIL_HEAD) :]).reshape(shape)


def _pack_thumbnail(thumbnail: UInt8[np.ndarray, "a b c"]) -> bytes:
    return struct.pack(THUMBNAIL_HEAD, *thumbnail.shape) + PNG.encode(thumbnail.reshape(-1, thumbnail.shape[2]))


def _write(
    path: Path, rows: list[dict[str, Any]], case: Case, inputs: Inputs, thumbnail: bytes, **outcome: Any
) -> None:
    note = {
        "collection": case.collection, "case": case.case, "rows_sha256": _digest_of_rows(rows),
        "inputs": dataclasses.asdict(inputs), "thumbnail_sha256": sha256(thumbnail).hexdigest(), **outcome,
    }  # fmt: skip
    rows = [{**row, "thumbnail": None if number else thumbnail or None} for number, row in enumerate(rows)]
    columns = {f.name: pa.array([row[f.name] for row in rows], type=f.type) for f in SLICE_SCHEMA}
    text = json.dumps(note, sort_keys=True).encode()
    metadata = {METADATA_KEY: text, DIGEST_KEY: sha256(text).hexdigest().encode()}
    table = pa.table(columns, schema=SLICE_SCHEMA.with_metadata(metadata))
    with atomic_path(path) as partial:
        pq.write_table(
            table, partial, row_group_size=SLICES_PER_GROUP, use_dictionary=False, write_statistics=False,
            compression={**dict.fromkeys(INDEX_COLUMNS, "zstd"), "image": "none", "mask": "none", "thumbnail": "none"},
        )  # fmt: skip


def _note(path: Path) -> _CaseNote:
    """The note of a case file, as harmonize wrote it.

    Raises:
        WorkspaceError: it is damaged or was edited.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WorkspaceError(f"{path.name} in the workspace is damaged. {AGAIN}") from error
    text = metadata.get(METADATA_KEY, b"")
    if sha256(text).hexdigest().encode() != metadata.get(DIGEST_KEY):
        raise WorkspaceError(EDITED.format(name=path.name))
    return decode_json(text, _CaseNote, path.name, WorkspaceError, AGAIN)


def _digest_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Name the rows of a case, pictures by their digests."""
    digest = sha256()
    for row in rows:
        values = [row[name] if name != "label_pixels" else sorted(map(list, row[name])) for name in INDEX_COLUMNS]
        digest.update(json.dumps(values).encode() + b"\n")
    return digest.hexdigest()
