"""Lay tables side by side by their keys, and say where their values differ; a column at a time, so that memory stays small."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64


def matched(left: pa.Table, right: pa.Table, on: Sequence[str]) -> Int64[np.ndarray, " left"]:
    """The row of `right` that has the keys of each row of `left`; -1 where none has.

    Args:
        left: rows that look for others.
        right: rows that are found; of several with the same keys, one is.
        on: columns of both, of text or numbers.

    >>> matched(pa.table({"a": ["x", "y"]}), pa.table({"a": ["z", "x"]}), ["a"]).tolist()
    [1, -1]
    """
    rows = np.full(left.num_rows, -1, dtype=np.int64)
    numbered = [
        table.select(list(on)).append_column(name, pa.array(np.arange(table.num_rows)))
        for name, table in (("__left", left), ("__right", right))
    ]
    found = numbered[0].join(numbered[1], keys=list(on), join_type="inner", use_threads=False)
    rows[np.asarray(found["__left"])] = np.asarray(found["__right"])
    return rows


def unequal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> Bool[np.ndarray, " rows"]:
    """Tell in which rows two columns of one type differ; NaN equals NaN.

    >>> unequal(pa.chunked_array([[1, 2]]), pa.chunked_array([[1, 3]])).tolist()
    [False, True]
    """
    kind = left.type
    if pa.types.is_fixed_size_list(kind):
        one, other = (_flat(column).reshape(len(left), kind.list_size) for column in (left, right))
        return ~((one == other) | ((one != one) & (other != other))).all(axis=1)
    if pa.types.is_nested(kind):
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
        return np.array([repr(one) != repr(other) for one, other in pairs], dtype=np.bool_)
    differ = np.asarray(pc.fill_null(pc.not_equal(left, right), True)).astype(np.bool_)
    if pa.types.is_floating(kind):
        differ &= ~np.asarray(pc.and_(pc.is_nan(left), pc.is_nan(right))).astype(np.bool_)
    return differ


def repeated(table: pa.Table, columns: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
    """The values of some columns that stand in several rows, and in how many.

    >>> repeated(pa.table({"a": ["x", "y", "x"]}), ["a"])
    [(('x',), 2)]
    """
    counts = table.group_by(list(columns), use_threads=False).aggregate([([], "count_all")])
    several = counts.filter(pc.greater(counts["count_all"], 1)).to_pylist()
    return [(tuple(row[name] for name in columns), row["count_all"]) for row in several]


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """All elements of a column of lists of one length, one after the other."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0)
