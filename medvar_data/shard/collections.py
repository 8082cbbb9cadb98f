"""Make collections.parquet: what the descriptions say of the collections in a set, and what became of their cases."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medvar_data.catalog.collection import CollectionSpec, LabelSpec
from medvar_data.naming import printable
from medvar_data.records import LayoutCount, Reject
from medvar_data.shard.privacy import unlinkable
from medvar_data.shardset.schema import COLLECTION_COLUMNS, COLLECTIONS_SCHEMA
from medvar_data.storage.parquet import table_from_rows
from medvar_data.workspace.workspace import Workspace

MOST_LETTERS = 4000  # of a text
FACE_REGIONS = ("brain", "head", "head-neck", "neck")  # whose field of view holds the face, where nobody took it out


def collections_table(workspace: Workspace) -> pa.Table:
    """Describe every collection of a workspace of which a case was found; nothing is counted yet."""
    rows = [collection_row(workspace.spec(name), workspace.counts(name)) for name in workspace.collections()]
    told = (row if row["public"] else unlinkable(row, workspace.keyed_digest) for row in rows)
    return table_from_rows(told, COLLECTIONS_SCHEMA)


def collection_row(spec: CollectionSpec, counts: Sequence[LayoutCount]) -> dict[str, Any]:
    """Make the row of a collection as it is described; its cases are not counted yet."""
    values = {
        **{name: _shown(value) for name, value in vars(spec).items()},
        "collection": spec.name,
        "labels": sorted(label_names(spec.labels).items()),
        "n_expected": spec.n_expected,
        "layouts": [{name: _shown(value) for name, value in asdict(count).items()} for count in counts],
        "overlaps": [{name: _shown(value) for name, value in asdict(overlap).items()} for overlap in spec.overlaps],
        "n_found": 0,
        "n_kept": 0,
        "n_rejected": 0,
        "n_faces": 0,
        "n_burned_in_text": 0,
        "collection_sha256": spec.digest,
    }
    return {column.name: values[column.name] for column in COLLECTION_COLUMNS}


def label_names(labels: Iterable[LabelSpec]) -> dict[int, str]:
    """Name every id that a mask may hold; an id of several names has them all.

    >>> label_names([LabelSpec(1, 1, 1, "liver"), LabelSpec(63, 63, 1, "liver"), LabelSpec(2, 2, 2, "kidney\\x1b")])
    {1: 'liver', 2: 'kidney'}
    """
    names: dict[int, list[str]] = {}
    for label in labels:
        names.setdefault(label.id, []).append(printable(label.name))
    return {label_id: " / ".join(dict.fromkeys(found)) for label_id, found in names.items()}


def counted(collections: pa.Table, cases: pa.Table, rejects: Sequence[Reject]) -> pa.Table:
    """Count what became of the cases of each collection; one of which none was found is left out.

    Args:
        collections: of `collections_table`, or of a finished set.
        cases: rows of cases.parquet.
        rejects: of all stages.
    """
    kept, rejected = Counter(cases["collection"].to_pylist()), Counter(reject.collection for reject in rejects)
    names = collections["collection"].to_pylist()
    faces, texts = _seen_in(cases)
    for column, count in (
        ("n_found", [kept[name] + rejected[name] for name in names]),
        ("n_kept", [kept[name] for name in names]),
        ("n_rejected", [rejected[name] for name in names]),
        ("n_faces", [faces[name] for name in names]),
        ("n_burned_in_text", [texts[name] for name in names]),
    ):
        collections = with_column(collections, column, count)
    return collections.filter(pc.greater(collections["n_found"], 0))


def may_show_face(defaced: str, region: str) -> bool:
    """Tell whether a face may be in the field of view, by what the description says.

    >>> may_show_face("unknown", "brain"), may_show_face("yes", "brain"), may_show_face("no", "spine")
    (True, False, True)
    """
    return defaced == "no" or (defaced == "unknown" and region in FACE_REGIONS)


def _seen_in(cases: pa.Table) -> tuple[Counter[str], Counter[str]]:
    """By collection, the cases that may show a face, and those in which burned-in text is suspected."""
    faces, texts = Counter[str](), Counter[str]()
    for row in cases.select(["collection", "region", "defaced", "burned_in_text"]).to_pylist():
        faces[row["collection"]] += may_show_face(row["defaced"], row["region"])
        texts[row["collection"]] += row["burned_in_text"] == "suspected"
    return faces, texts


def with_column(table: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """The table with other values in one of its columns."""
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, type=field.type))


def _shown(value: Any) -> Any:
    return printable(value, MOST_LETTERS) if isinstance(value, str) else value
