"""Say what changed between two shard sets: how they were made, their cases, their slices, their statistics.

In: two sets, by folder or URL; no shard is read, since the tables hold a digest of every picture. Out: a `Difference`, of which an
empty part says that nothing changed. Where slices lie and how large they are stored (shard, offset, size) counts for nothing: it follows from codec and seed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from medvar_data.audit.align import matched, unequal
from medvar_data.shard.tally import BY
from medvar_data.shardset.dataset import read_dataset, read_table
from medvar_data.shardset.schema import CASE_KEY, CASES_SCHEMA, COLLECTIONS_SCHEMA, STATS_SCHEMA
from medvar_data.storage.store import Store

FEW = 10  # keys of one kind that are named
FOLLOWS = ("tables", "documents", "splits", "digest")  # of dataset.json: from what the tables hold
STORED = {"slice_bytes"}  # of stats.parquet: from how pictures are stored
SLICE_COLUMNS = ("key", "collection", "split", "condition", "image_sha256", "mask_sha256")
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Changed:
    """Rows of a table that two sets do not share, or whose values differ.

    Attributes:
        only_first, only_second: rows that one set alone holds, by collection.
        changed: rows whose values differ, by column.
        shown: the first few names of each kind: `only_first`, `only_second`, these and a collection (`only_first acdc`), a column's name.
    """

    only_first: dict[str, int]
    only_second: dict[str, int]
    changed: dict[str, int]
    shown: dict[str, list[str]]

    def __bool__(self) -> bool:
        return bool(self.only_first or self.only_second or self.changed)


@dataclass(frozen=True)
class Difference:
    """What two sets do not share.

    Attributes:
        dataset: by field of dataset.json (`recipe.side`), what the first and the second say; None where one lacks it.
        collections: rows of collections.parquet, such as another licence.
        cases: rows of cases.parquet.
        rejects: rejected cases by collection and reason, first and second.
        slices: rows of slices.parquet; `image_sha256` counts those with other pixels.
        statistics: rows of stats.parquet.
    """

    dataset: dict[str, Pair]
    collections: Changed
    cases: Changed
    rejects: dict[str, tuple[int, int]]
    slices: Changed
    statistics: Changed

    def __bool__(self) -> bool:
        return any(vars(self).values())


def diff(first: Store, second: Store) -> Difference:
    """Compare two finished sets.

    Raises:
        ShardSetError: one of them is none, or a table is not the one that its dataset.json was published with.
    """
    datasets = [read_dataset(store) for store in (first, second)]

    def changed(name: str, on: Sequence[str], columns: Sequence[str]) -> Changed:
        tables = [
            read_table(store, f"{name}.parquet", dataset, columns=columns)
            for store, dataset in zip((first, second), datasets, strict=True)
        ]
        return _changed(tables[0], tables[1], on)

    said = [_flat(asdict(dataset)) for dataset in datasets]
    rejects = [_rejects(store) for store in (first, second)]
    return Difference(
        dataset={name: (said[0].get(name), said[1].get(name)) for name in _other(*said)},
        collections=changed("collections", ["collection"], COLLECTIONS_SCHEMA.names),
        cases=changed("cases", CASE_KEY, CASES_SCHEMA.names),
        rejects={name: (rejects[0][name], rejects[1][name]) for name in _other(*rejects)},
        slices=changed("slices", ["key"], SLICE_COLUMNS),
        statistics=changed("stats", BY, [name for name in STATS_SCHEMA.names if name not in STORED]),
    )


def _flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """A nested mapping as one, by places such as `recipe.side`; without what follows from the tables."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if not place and name in FOLLOWS:
            continue
        flat |= _flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {f"{place}{name}": value}
    return flat


def _other(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The names, sorted, of which two mappings say different things."""
    return sorted(name for name in {*one, *two} if one.get(name) != two.get(name))


def _rejects(store: Store) -> Counter[str]:
    rows = read_table(store, "rejects.parquet", columns=["collection", "stage", "reason"]).to_pylist()
    return Counter(f"{row['collection']} {row['stage']} {row['reason']}" for row in rows)


def _changed(first: pa.Table, second: pa.Table, on: Sequence[str]) -> Changed:
    """Compare two tables row by row, the rows found by their keys."""
    partner = matched(first, second, on)
    shared = np.flatnonzero(partner >= 0)
    gone, new = np.flatnonzero(partner < 0), np.setdiff1d(np.arange(second.num_rows), partner[shared])
    left, right = first.take(pa.array(shared)), second.take(pa.array(partner[shared]))
    shown: dict[str, list[str]] = {}
    for kind, table, rows in (("only_first", first, gone), ("only_second", second, new)):
        shown[kind] = _names(table, rows, on)
        owners = np.array(table["collection"].take(pa.array(rows)).to_pylist(), dtype=object)
        shown |= {f"{kind} {name}": _names(table, rows[owners == name], on) for name in sorted(set(owners))}
    changed: dict[str, int] = {}
    for column in (column for column in first.column_names if column not in on):
        rows = np.flatnonzero(unequal(left[column], right[column]))
        if len(rows):
            changed[column], shown[column] = len(rows), _names(left, rows, on)
    return Changed(
        _by_collection(first, gone),
        _by_collection(second, new),
        changed,
        {kind: few for kind, few in shown.items() if few},
    )


def _names(table: pa.Table, rows: Int64[np.ndarray, " rows"], on: Sequence[str]) -> list[str]:
    few = table.select(list(on)).take(pa.array(rows[:FEW])).to_pylist()
    return ["/".join(filter(None, row.values())) for row in few]


def _by_collection(table: pa.Table, rows: Int64[np.ndarray, " rows"]) -> dict[str, int]:
    return dict(sorted(Counter(table["collection"].take(pa.array(rows)).to_pylist()).items()))
