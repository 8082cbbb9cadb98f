"""Describe a shard set in Croissant, the format that catalogues and loaders of data sets read: `croissant.json`.

In: what dataset.json will say, a few counts, and what is known of the collections. Out: the file's bytes, a function of these
alone. It speaks Croissant 1.1 and its vocabulary for responsible use (`shard.datasheet` has the sentences).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from medvar_data.catalog.collection import license_text
from medvar_data.errors import ShardSetError
from medvar_data.harmonize.dependencies import PIPELINE_VERSION
from medvar_data.naming import printable
from medvar_data.shard.datasheet import Contents, Origin, summary, terms_of_use
from medvar_data.shardset.columns import Column
from medvar_data.shardset.dataset import WAY_ON, Dataset, ShardEntry
from medvar_data.shardset.schema import SPLITS, TABLES
from medvar_data.storage.codec import CODECS
from medvar_data.storage.documents import decode_json
from medvar_data.storage.store import canonical_json

CROISSANT_FILE = "croissant.json"
NO_DATE = "1970-01-01"  # as in the tars: the same set has the same bytes on every day; a publisher puts their own
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
PARQUET, TAR = "application/x-parquet", "application/x-tar"
MEMBER_FORMATS = {"png": "image/png", "mvz": "application/octet-stream"}  # by a codec's suffix

_TERMS = (
    "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes", "extract", "field", "fileObject",
    "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path",
    "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS},
}

_TYPES: dict[pa.DataType, str] = {
    pa.string(): "sc:Text", pa.bool_(): "sc:Boolean", pa.int16(): "cr:Int16", pa.int32(): "cr:Int32", pa.int64(): "cr:Int64",
    pa.uint32(): "cr:UInt32", pa.float64(): "cr:Float64",
}  # fmt: skip


def croissant_bytes(
    dataset: Dataset, contents: Contents, table_sizes: Mapping[str, int], origins: Sequence[Origin]
) -> bytes:
    """Make a set's croissant.json.

    Args:
        dataset: what dataset.json will say.
        contents: counts for the sentences.
        table_sizes: bytes of each table.
        origins: the collections that the set's scans come from.
    """
    shards = [shard for split in SPLITS for shard in dataset.splits[split].shards]
    suffix = CODECS[dataset.codec].suffix
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"medvar-{dataset.recipe['name']}-{dataset.digest[:12]}",
        "version": f"{dataset.schema_version}.{PIPELINE_VERSION}.0+{dataset.digest[:12]}",
        "datePublished": NO_DATE,
        **summary(dataset, contents, origins),
        **_rights(origins),
        "distribution": [
            *(_table_file(name, dataset.tables[name], table_sizes[name]) for name in TABLES),
            *(_shard_file(shard) for shard in shards),
            *(_pictures(shards, suffix) if shards else ()),
        ],
        "recordSet": [
            *(_table_records(name, columns) for name, columns in TABLES.items()),
            *(_picture_records(suffix) if shards else ()),
        ],
    }
    return canonical_json(document).encode()


@dataclass(frozen=True)
class _ListedFile:
    name: str
    sha256: str = ""


@dataclass(frozen=True)
class _Listing:
    distribution: tuple[_ListedFile, ...]


def contradictions(data: bytes, dataset: Dataset) -> list[str]:
    """Say which files a croissant.json lists otherwise than dataset.json does; its words are its publisher's to edit.

    Raises:
        ShardSetError: it is not a description of data in Croissant.
    """
    listing = decode_json(data, _Listing, CROISSANT_FILE, ShardSetError, WAY_ON)
    listed = {file.name: file.sha256 for file in listing.distribution}
    shards = {shard.name: shard.sha256 for split in dataset.splits.values() for shard in split.shards}
    wanted = {**dataset.tables, **shards}
    gone = {name for name in listed if name.endswith((".tar", ".parquet"))} - set(wanted)
    return [
        *(f"{CROISSANT_FILE} does not list {name}" for name in wanted if name not in listed),
        *(f"{CROISSANT_FILE} gives {name} another digest than dataset.json" for name in wanted if listed.get(name, wanted[name]) != wanted[name]),
        *(f"{CROISSANT_FILE} lists {printable(name)}, which dataset.json does not" for name in sorted(gone)),
    ]  # fmt: skip


def _rights(origins: Sequence[Origin]) -> dict[str, Any]:
    """Licences, citations and collections; each slice keeps the terms of its own collection."""
    licences = {(o.license, o.license_confirmed, o.license_url): None for o in origins}
    cited = [f"{o.title}: {o.citation}" if o.citation else o.title for o in origins]
    return {
        "license": [
            {"@type": "sc:CreativeWork", "name": license_text(name, confirmed), **_given(url=url)}
            for name, confirmed, url in licences
        ],
        "usageInfo": terms_of_use(origins),
        "citeAs": " · ".join(cited) or "No collection is in this set.",
        "isBasedOn": [_collection(origin) for origin in origins],
    }


def _collection(origin: Origin) -> dict[str, Any]:
    doi = f"https://doi.org/{origin.doi}" if origin.doi else ""
    return {
        "@type": "sc:Dataset",
        "name": origin.title,
        "alternateName": origin.name,
        "license": origin.license_url or license_text(origin.license, origin.license_confirmed),
        **_given(url=origin.homepage, citation=origin.citation, identifier=doi),
    }


def _given(**values: str) -> dict[str, str]:
    """The values that are not empty."""
    return {name: value for name, value in values.items() if value}


def _table_file(name: str, digest: str, size: int) -> dict[str, Any]:
    return _file(name, f"One row a {_row_of(name)}.", PARQUET, digest, size)


def _shard_file(shard: ShardEntry) -> dict[str, Any]:
    return _file(shard.name, f"{shard.slices} slices, three files each.", TAR, shard.sha256, shard.bytes)


def _file(name: str, description: str, encoding: str, digest: str, size: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": description,
        "contentUrl": name,
        "encodingFormat": encoding,
        "sha256": digest,
        "contentSize": f"{size} B",
    }


def _row_of(table: str) -> str:
    rows = {
        "slices": "slice",
        "cases": "scan that was kept",
        "rejects": "scan that was left out",
        "stats": "combination of collection, modality, region, sequence and split",
        "collections": "collection",
        "edges": "pair of scans that are the same",
    }
    return rows[table.removesuffix(".parquet")]


def _pictures(shards: Sequence[ShardEntry], suffix: str) -> Iterator[dict[str, Any]]:
    """Images and masks as sets of files in the tars; a key ends in a digit, so the patterns are exclusive."""
    for name, pattern, what in (
        ("image-files", f"*[0-9].{suffix}", "Image of each slice, named after its key: 8-bit grey."),
        (
            "mask-files",
            f"*.mask.{suffix}",
            "Label map of each slice, named after its key: 8-bit label ids, 0 background.",
        ),
    ):
        yield {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": what,
            "containedIn": [{"@id": shard.name} for shard in shards],
            "encodingFormat": MEMBER_FORMATS[suffix],
            "includes": pattern,
        }


def _table_records(table: str, columns: Iterable[Column]) -> dict[str, Any]:
    name = table.removesuffix(".parquet")
    key = {"key": {"@id": f"{name}/key"}} if name == "slices" else {}
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"One record a {_row_of(table)}.",
        **key,
        "field": [_column_field(table, name, column) for column in columns],
    }


def _column_field(table: str, records: str, column: Column) -> dict[str, Any]:
    """A column as a field; a map from labels to values as a list of pairs, a list as an array."""
    name = f"{records}/{column.name}"
    source = {"fileObject": {"@id": table}, "extract": {"column": column.name}}
    meaning = column.meaning + (f" ({column.unit})" if column.unit else "")
    field = {"@type": "cr:Field", "@id": name, "name": column.name, "description": meaning}
    if parts := _parts(column.type):
        parted = [
            {
                "@type": "cr:Field", "@id": f"{name}/{part}", "name": part, "dataType": _TYPES[kind],
                "source": {**source, "transform": {"jsonPath": place}},
            }
            for part, kind, place in parts
        ]  # fmt: skip
        return {**field, "isArray": True, "arrayShape": "-1", "subField": parted}
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        shape = column.type.list_size if pa.types.is_fixed_size_list(column.type) else -1
        array = {"isArray": True, "arrayShape": str(shape)}
        return {**field, **array, "dataType": _TYPES[column.type.value_type], "source": source}
    return {**field, "dataType": _TYPES[column.type], "source": source}


def _parts(kind: pa.DataType) -> list[tuple[str, pa.DataType, str]]:
    """Name, type and place of what each element of a map or of a list of structs consists of; empty for other types."""
    if pa.types.is_map(kind):
        return [("label", kind.key_type, "$[0]"), ("value", kind.item_type, "$[1]")]
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        return [(field.name, field.type, f"$.{field.name}") for field in kind.value_type]
    return []


def _picture_records(suffix: str) -> Iterator[dict[str, Any]]:
    """Images and masks by key; what is no image to everybody is given as its bytes."""
    how = "" if suffix == "png" else ", as bytes; docs/formats.md prints a reader of them"
    for name, files, what in (("images", "image-files", "image"), ("masks", "mask-files", "label map")):
        content = {
            "@type": "cr:Field",
            "@id": f"{name}/content",
            "name": "content",
            "description": f"the slice's {what}{how}",
            "dataType": "sc:ImageObject" if suffix == "png" else "sc:Text",
            "source": {"fileSet": {"@id": files}, "extract": {"fileProperty": "content"}},
        }
        key = {
            "@type": "cr:Field",
            "@id": f"{name}/key",
            "name": "key",
            "description": "name of the slice, as in slices.parquet",
            "dataType": "sc:Text",
            "references": {"field": {"@id": "slices/key"}},
            "source": {
                "fileSet": {"@id": files},
                "extract": {"fileProperty": "filename"},
                "transform": {"regex": "^([^.]+)"},
            },
        }
        yield {
            "@type": "cr:RecordSet",
            "@id": name,
            "name": name,
            "description": f"The {what} of every slice.",
            "key": {"@id": f"{name}/key"},
            "field": [key, content],
        }
