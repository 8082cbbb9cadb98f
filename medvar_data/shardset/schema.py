"""What a shard set's tables hold: every column once, with its type, its unit and its meaning.

The lists below make the Parquet schemas (with the meanings as field metadata), pick the columns of each row, and decide
what goes into a sample's JSON and into docs/formats.md. A new column is a line here plus its value, where
`shard.rows` (slices, cases), `shard.collections`, `shard.statistics` or `shard.duplicates` (edges) makes it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pyarrow as pa

from medvar_data.records import LICENSE_TERMS
from medvar_data.shardset.columns import Column, schema_of
from medvar_data.shardset.measures import CASE_MEASURES, STATS_MEASURES

SCHEMA_VERSION = 5
SPLITS = ("train", "val", "test")
VERSION_NOTE = {"medvar.schema_version": str(SCHEMA_VERSION)}  # in the metadata of every table

_text, _i32, _i64, _f64, _bool, _u32 = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_(), pa.uint32()
_per_label_mm3, _per_label_pixels = pa.map_(pa.int16(), _f64), pa.map_(pa.int16(), _i32)


_COLLECTION = Column("collection", _text, "name of the collection that the scan was published in", in_sample=True)
_CASE = Column("case", _text, "key of the scan within its collection", in_sample=True)
_SPLIT = Column("split", _text, "train, val or test; all of a patient is in one", in_sample=True)
_MODALITY = Column("modality", _text, "CT or MR", in_sample=True)
_REGION = Column("region", _text, "part of the body that the collection shows", in_sample=True)
_SEQUENCE = Column(
    "sequence", _text, "MR sequence or CT phase as the publisher names it; empty where it names none", in_sample=True
)
_LICENSE = Column(
    "license", _text, "licence of the collection, by its SPDX identifier where there is one", in_sample=True
)
_LICENSE_CONFIRMED = Column("license_confirmed", _bool, "whether the licence was read at its source")

# What a set says otherwise of a collection that is not public (`shard.privacy`), and what it says of faces and of text in pictures.
_KEYED = "of a collection that is not public an HMAC of it, whose key the workspace holds"
_OWN_PLACE = "of a collection that is not public along R, A and S, the volume's centre at 0"
_ROUNDED = "of a collection that is not public to two digits"
_CASE_TERMS = tuple(
    Column(
        name,
        _text,
        f"{name.replace('_', ' ')}: the strictest answer of the collections that hold this scan: yes, no, unknown",
    )
    for name in LICENSE_TERMS
)
_CASE_PRIVACY = (
    Column("defaced", _text, "whether its pictures are without a face, as the description says: yes, no, unknown"),
    Column(
        "burned_in_text",
        _text,
        "whether its pictures look as if text were burned into them: none found, suspected, unknown",
    ),
)
_COLLECTION_PRIVACY = (
    Column(
        "public",
        _bool,
        "whether its files are published; if not, what could link this set to a file is left out or keyed",
    ),
    Column(
        "n_faces",
        _i32,
        "scans that the set holds whose face may be in the field of view: not defaced, or of a head or neck of which nothing is known",
        "cases",
    ),
    Column("n_burned_in_text", _i32, "scans that the set holds with text suspected in their pictures", "cases"),
)

# What slices.parquet and cases.parquet both say of a case.
CASE_IDENTITY = (
    _COLLECTION,
    Column("condition", _text, "what the model is told of the slice: collection and modality, or finer", in_sample=True),
    Column("condition_id", _i32, "number of the condition; never changes", in_sample=True),
    Column("has_label", _bool, "whether the scan was annotated; where not, its masks are all zero", in_sample=True),
    _REGION,
    _MODALITY,
    _SEQUENCE,
    _CASE,
    Column("patient", _text, "salted hash of the patient, the same in all scans of one", in_sample=True),
    Column("plane", _text, "plane of the slices: axial, coronal or sagittal", in_sample=True),
    Column("n_slices", _i32, "slices of the source scan along the slice axis", "slices", in_sample=True),
    Column("source_shape", pa.list_(_i32, 3), "voxels of the source scan along its stored axes", "voxels"),
    Column("source_affine", pa.list_(_f64, 16), f"stored voxel index to RAS+ position, 4 x 4 in row order; {_OWN_PLACE}", "mm"),
    Column("orientation", _text, "directions of the stored axes, such as LPS", in_sample=True),
    Column("spacing_row_mm", _f64, "distance between neighbouring rows of the source's pixels", "mm", in_sample=True),
    Column("spacing_col_mm", _f64, "distance between neighbouring columns of the source's pixels", "mm", in_sample=True),
    Column("through_plane_mm", _f64, "distance of neighbouring slices in the source", "mm", in_sample=True),
    Column("normalizer", _text, "how intensities became 8 bit: window or percentiles", in_sample=True),
    Column("low", _f64, "intensity that became 0", "HU in CT, the scanner's unit in MR", in_sample=True),
    Column("high", _f64, "intensity that became 255", "HU in CT, the scanner's unit in MR", in_sample=True),
    Column("source_sha256", _text, f"sha256 of the image's file as published; {_KEYED}", in_sample=True),
    Column("label_sha256", _text, f"sha256 of the label's file as published, empty where there is none; {_KEYED}"),
    _LICENSE,
    _LICENSE_CONFIRMED,
    Column("recipe", _text, "name of the harmonization recipe"),
    Column("pipeline_version", _i32, "version of the code that made the pixels"),
)  # fmt: skip
_SHARED = {column.name: column for column in CASE_IDENTITY}


def _shared(*names: str) -> tuple[Column, ...]:
    return tuple(_SHARED[name] for name in names)


SLICE_COLUMNS = (
    Column("key", _text, "name of the slice and of its files in the shard", in_sample=True),
    _SPLIT,
    Column("shard", _text, "file name of the shard that holds it"),
    Column("image_offset", _i64, "where the image's bytes begin in the shard", "bytes"),
    Column("image_size", _i64, "length of the encoded image", "bytes"),
    Column("image_crc32", _u32, "CRC-32 of the encoded image, checked while reading"),
    Column("mask_offset", _i64, "where the mask's bytes begin in the shard", "bytes"),
    Column("mask_size", _i64, "length of the encoded mask", "bytes"),
    Column("mask_crc32", _u32, "CRC-32 of the encoded mask, checked while reading"),
    Column("json_offset", _i64, "where the sample's JSON begins in the shard", "bytes"),
    Column("json_size", _i64, "length of the sample's JSON", "bytes"),
    *_shared("collection", "condition", "condition_id", "has_label", "region", "modality", "sequence", "case", "patient", "plane"),
    Column("z", _i32, "index along the slice axis, from the patient's feet, right or back", in_sample=True),
    Column("slice_index", _i32, "index along the slice axis as stored in the source", in_sample=True),
    *_shared("n_slices", "source_shape", "source_affine", "orientation", "spacing_row_mm", "spacing_col_mm", "through_plane_mm"),
    *_shared("normalizer", "low", "high"),
    Column("body_pixels", _i32, "pixels of the finished slice inside the body", "pixels", in_sample=True),
    Column("foreground_pixels", _i32, "pixels of the mask above 0", "pixels", in_sample=True),
    Column("label_pixels", _per_label_pixels, "pixels of each label id that the mask holds", "pixels"),
    Column("image_sha256", _text, 'sha256 of "HxW:" and the decoded pixels of the image'),
    Column("mask_sha256", _text, 'sha256 of "HxW:" and the decoded pixels of the mask'),
    *_shared("source_sha256", "label_sha256", "license", "license_confirmed", "recipe", "pipeline_version"),
)  # fmt: skip

CASE_COLUMNS = (
    *_shared("collection", "case", "patient"),
    _SPLIT,
    Column("official_split", _text, "the publisher's own split: train, validation or test; empty where there is none"),
    *_shared("condition", "condition_id", "region", "modality", "sequence", "has_label", "plane"),
    *_shared("source_shape", "source_affine", "orientation", "spacing_row_mm", "spacing_col_mm", "through_plane_mm", "n_slices"),
    Column("n_kept", _i32, "slices in the shard set", "slices"),
    Column("n_without_foreground", _i32, "slices left out because they hold no annotation, or too little body where there is no label", "slices"),
    Column("n_emptied_by_cleanup", _i32, "slices left out because cleanup or resizing left no annotation", "slices"),
    Column("n_not_selected", _i32, "slices left out because they do not fulfil the set's condition (`where`)", "slices"),
    *_shared("normalizer", "low", "high"),
    Column("body_threshold", _f64, "intensity above which a voxel may be body", "HU in CT, the scanner's unit in MR"),
    Column("body_fill", _f64, "intensity that everything outside the body was set to", "HU in CT, the scanner's unit in MR"),
    Column("removed_body_mm3", _f64, "volume above the threshold that was taken off as no body: table, cushions, wires", "mm³"),
    Column("removed_label_mm3", _per_label_mm3, "volume of each label id that was taken off as dust", "mm³"),
    Column("removed_label_share", _per_label_mm3, "share of each label id's volume that was taken off as dust", "fraction"),
    Column("label_mm3", _per_label_mm3, "volume of each label id as published", "mm³"),
    Column("vanished_labels", pa.list_(pa.int16()), "label ids of the source that no finished slice holds"),
    Column("steps", pa.list_(_text), "what reading and cleanup decided or repaired, in order"),
    Column("minimum", _f64, f"lowest voxel of the source; {_ROUNDED}", "HU in CT, the scanner's unit in MR"),
    Column("maximum", _f64, f"highest voxel of the source; {_ROUNDED}", "HU in CT, the scanner's unit in MR"),
    Column("mean", _f64, "mean of the source's voxels", "HU in CT, the scanner's unit in MR"),
    Column("std", _f64, "standard deviation of the source's voxels", "HU in CT, the scanner's unit in MR"),
    Column("p0_5", _f64, "0.5th percentile of the source's voxels", "HU in CT, the scanner's unit in MR"),
    Column("p50", _f64, "median of the source's voxels", "HU in CT, the scanner's unit in MR"),
    Column("p99_5", _f64, "99.5th percentile of the source's voxels", "HU in CT, the scanner's unit in MR"),
    *CASE_MEASURES,
    *_shared("source_sha256", "label_sha256", "license", "license_confirmed", "recipe"),
    Column("recipe_sha256", _text, "digest of all the recipe's values"),
    Column("collection_sha256", _text, f"sha256 of the collection's description (TOML); {_KEYED}"),
    *_shared("pipeline_version"),
    *_CASE_TERMS,
    *_CASE_PRIVACY,
)  # fmt: skip

REJECT_COLUMNS = (
    _COLLECTION,
    _CASE,
    Column("stage", _text, "what left it out: ingest, harmonize or shard"),
    Column("reason", _text, "why, as a word; the list only grows"),
    Column("detail", _text, "why, as a sentence: what was found and what was wanted"),
)

STATS_COLUMNS = (
    _COLLECTION, _MODALITY, _REGION, _SEQUENCE,
    replace(_SPLIT, meaning="train, val or test"),
    Column("patients", _i32, "different patients of the row's scans", "patients"),
    Column("cases", _i32, "scans that the set holds", "cases"),
    Column("labelled_cases", _i32, "scans with an annotation", "cases"),
    Column("slices", _i32, "slices that the set holds", "slices"),
    Column("labelled_slices", _i32, "slices of annotated scans", "slices"),
    Column("in_plane_mm_median", _f64, "median over scans of the row spacing", "mm"),
    Column("through_plane_mm_median", _f64, "median over scans of the distance of slices", "mm"),
    Column("foreground_fraction_mean", _f64, "mean over slices of the share that is annotated", "fraction"),
    Column("body_fraction_mean", _f64, "mean over slices of the share that is body", "fraction"),
    Column("low_median", _f64, "median over scans of the intensity that became 0", "HU in CT, the scanner's unit in MR"),
    Column("high_median", _f64, "median over scans of the intensity that became 255", "HU in CT, the scanner's unit in MR"),
    Column("removed_label_mm3_sum", _f64, "volume of labels that was taken off as dust, all scans", "mm³"),
    Column("removed_body_mm3_median", _f64, "median over scans of the volume taken off as no body", "mm³"),
    Column("vanished_structures", _i32, "labels of the sources that no finished slice holds, summed over scans", "labels"),
    *STATS_MEASURES,
    _LICENSE,
    _LICENSE_CONFIRMED,
)  # fmt: skip

COLLECTION_COLUMNS = (
    _COLLECTION,
    Column("title", _text, "name of the collection as its publisher writes it"),
    replace(_REGION, meaning='part of the body that the collection shows; "header" where each scan says its own'),
    replace(_MODALITY, meaning="CT or MR; scans of single layouts may be of the other"),
    Column("family", _text, "collections published together share this name; empty where it stands alone"),
    Column("homepage", _text, "page of the publisher"),
    Column("doi", _text, "DOI of the data or of the paper that describes them"),
    Column("citation", _text, "what the publisher asks to be cited"),
    _LICENSE,
    Column("license_url", _text, "where the licence's text stands"),
    _LICENSE_CONFIRMED,
    Column("license_evidence", _text, "where the licence was read, or what could not be read"),
    Column("license_read", _text, "month (such as 2026-11) or day on which the licence was read"),
    Column("license_conflict", _text, "other answers for the same scans; the strictest stands in the four terms"),
    Column("commercial", _text, "may it be used for profit: yes, no, unknown"),
    Column("derivatives", _text, "may what is made of it be passed on: yes, no, unknown"),
    Column("share_alike", _text, "must what is made of it carry the same licence: yes, no, unknown"),
    Column("redistribute", _text, "may it be passed on as it is: yes, no, unknown"),
    Column("access", _text, "what it takes to download it, such as a registration"),
    Column("labels", pa.map_(pa.int16(), _text), "name of each label id that its masks may hold"),
    Column("n_expected", _i32, "scans that the publisher counts; 0 where unknown", "cases"),
    Column(
        "layouts",
        pa.list_(pa.struct([("layout", _text), ("found", _i32), ("expected", _i32), ("unlabelled", _i32)])),
        "scans of each published layout: found by ingest, counted by the publisher (0 where unknown), found without their label",
        "cases",
    ),
    Column(
        "overlaps",
        pa.list_(
            pa.struct([
                ("collection", _text), ("title", _text), ("cases", _text), ("numbers", _text), ("theirs", _text),
                ("n_cases", _i32), ("certainty", _text),
            ])
        ),
        "scans shared with other collections: which, their cases here and their keys there, how many (0 where unknown), and how that is known",
    ),
    Column("n_found", _i32, "scans found in the download: kept and rejected together", "cases"),
    Column("n_kept", _i32, "scans that the set holds", "cases"),
    Column("n_rejected", _i32, "scans left out, each a row of rejects.parquet", "cases"),
    Column("collection_sha256", _text, f"sha256 of the collection's description (TOML); {_KEYED}"),
    *_COLLECTION_PRIVACY,
)  # fmt: skip

EDGE_COLUMNS = (
    *(
        column
        for side, which in (("a", "one case, the first by collection and case"), ("b", "the other case"))
        for column in (
            Column(f"collection_{side}", _text, f"collection of {which}"),
            Column(f"case_{side}", _text, f"key within its collection of {which}"),
            Column(f"split_{side}", _text, f"split of {which}; always that of both"),
        )
    ),
    Column("evidence", _text, "why they are one scan: source_digest (the same file), pixels, statistics (of the voxels), voxels (one laid over the other) or overlap (a description says so)"),
    Column("exact", _bool, "whether one is a copy of the other: the same file and statistics, or the same pixels in all slices"),
    Column("shared_slices", _i32, "different slices with content that both hold; 0 where the evidence is not pixels", "slices"),
    Column("share", _f64, "shared slices, of those of the case with fewer; 0 where the evidence is not pixels", "fraction"),
    Column("similarity", _f64, "correlation of the two scans' voxels where they lie over each other; 1 where the evidence is not voxels"),
)  # fmt: skip

TABLES: dict[str, tuple[Column, ...]] = {
    "slices.parquet": SLICE_COLUMNS,
    "cases.parquet": CASE_COLUMNS,
    "rejects.parquet": REJECT_COLUMNS,
    "stats.parquet": STATS_COLUMNS,
    "collections.parquet": COLLECTION_COLUMNS,
    "edges.parquet": EDGE_COLUMNS,
}
SCHEMAS: dict[str, pa.Schema] = {name: schema_of(columns) for name, columns in TABLES.items()}
SLICES_SCHEMA, CASES_SCHEMA, REJECTS_SCHEMA, STATS_SCHEMA, COLLECTIONS_SCHEMA, EDGES_SCHEMA = SCHEMAS.values()
CASE_KEY = ("collection", "case")
"""Columns that name a case, in every table."""
TERMS = ("family", *LICENSE_TERMS, "access")
"""Columns of collections.parquet that a condition over slices may name."""
CONTENT_COLUMNS = ("key", "split", "image_sha256", "mask_sha256", "condition", "condition_id")

_SAMPLE_TYPES: dict[pa.DataType, type] = {_text: str, _f64: float, _i32: int, _bool: bool}
_SAMPLE = tuple((column.name, _SAMPLE_TYPES[column.type]) for column in SLICE_COLUMNS if column.in_sample)


def sample_json(row: Mapping[str, Any]) -> bytes:
    """The JSON member of a sample: always the same keys, floats always floats, no nulls, no nested values.

    Args:
        row: of slices.parquet; the shard's columns may be missing.
    """
    note = {name: kind(row[name]) for name, kind in _SAMPLE}
    return json.dumps(note, sort_keys=True, separators=(",", ":")).encode()


class ContentDigest:
    """Name a set's content: sha256 over key, pixels, mask and condition of every slice, in the set's order."""

    def __init__(self) -> None:
        self._digest = sha256()

    def add(self, slices: pa.Table) -> None:
        """Take in further rows of slices.parquet."""
        for batch in slices.select(CONTENT_COLUMNS).to_batches(max_chunksize=1 << 13):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                self._digest.update(json.dumps(row).encode())

    def hexdigest(self) -> str:
        """The digest of all rows so far."""
        return self._digest.hexdigest()


def member_names(key: str, suffix: str) -> tuple[str, str, str]:
    """Files of a slice in its shard, in order: image, mask, JSON; `suffix` is the codec's."""
    return f"{key}.{suffix}", f"{key}.mask.{suffix}", f"{key}.json"


def case_keys(table: pa.Table) -> list[tuple[str, str]]:
    """Collection and case of each row."""
    return list(zip(*(table[name].to_pylist() for name in CASE_KEY), strict=True))


def content_digest(slices: pa.Table) -> str:
    """Name the content of a set whose rows are at hand; as `ContentDigest`."""
    digest = ContentDigest()
    digest.add(slices)
    return digest.hexdigest()
