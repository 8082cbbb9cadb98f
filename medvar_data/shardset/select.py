"""Choose slices by a condition in SQL over a set's tables, which DuckDB evaluates.

In: the tables and a condition such as `modality = 'MR' AND spacing_row_mm < 1`. Out: which rows of `slices.parquet` fulfil it.
Columns of `cases.parquet` may stand in the condition too, where `slices.parquet` has none of that name, and so may the terms of the
licence, which `collections.parquet` tells: `commercial`, `derivatives`, `share_alike` and `redistribute` are true, false or, where it is
unknown, NULL, so `modality = 'MR' AND commercial` takes what certainly may be used, and `commercial = 'yes'` means the same.

    >>> table = pa.table({"modality": ["CT", "MR"], "z": [3, 4]})
    >>> rows_where("modality = 'MR' AND z > 3", table).tolist()
    [False, True]
"""

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from medvar_data.errors import SpecError
from medvar_data.records import LICENSE_TERMS
from medvar_data.shardset.schema import CASE_KEY

JOINED = {
    CASE_KEY: "cases.parquet",
    ("collection",): "collections.parquet",
}  # tables beside slices.parquet, by what joins them


def rows_where(
    where: str,
    slices: pa.Table,
    others: Mapping[tuple[str, ...], pa.Table] | None = None,
    offered: Collection[str] = (),
) -> Bool[np.ndarray, " rows"]:
    """Tell which rows of a table fulfil a condition; a row where it is unknown (SQL's NULL) does not.

    Args:
        where: a condition in SQL; column names that are SQL's own words stand in double quotes: `"case" = 'patient001'`.
        slices: rows to choose from.
        others: further tables by the columns that join them to `slices`; only what `slices` lacks is taken from them.
        offered: the columns that a wrong condition's error lists; empty lists those of the tables.

    Raises:
        SpecError: the condition is none, or names a column that the tables lack.
    """
    import duckdb  # slow to import

    chosen = np.zeros(slices.num_rows, dtype=np.bool_)
    known = set(slices.column_names)
    joins, columns = [], ["s.*"]
    with duckdb.connect(config={"enable_external_access": "false", "threads": "1"}) as connection:
        connection.register("s", slices.append_column("__row", pa.array(np.arange(slices.num_rows))))
        for number, (keys, table) in enumerate((others or {}).items()):
            new = [name for name in table.column_names if name not in known]
            known |= set(new)
            connection.register(f"t{number}", _with_terms(table.select([*keys, *new])))
            joins.append(f"LEFT JOIN t{number} USING ({', '.join(_quoted(key) for key in keys)})")
            columns += [f"t{number}.{_quoted(name)}" for name in new]
        query = f"SELECT __row FROM (SELECT {', '.join(columns)} FROM s {' '.join(joins)}) WHERE ({where}\n)"
        try:
            if len(duckdb.extract_statements(query)) != 1:
                raise SpecError(f"--where {where!r} holds several statements; wanted one condition.")
            chosen[connection.execute(query).fetchnumpy()["__row"]] = True
        except duckdb.Error as error:
            cause = str(error).partition("\n")[0]
            shown = ", ".join(sorted(name for name in offered or known if not name.startswith("__")))
            raise SpecError(
                f"--where {where!r} is no condition over the set's tables: {cause}. Columns are {shown}."
            ) from None
    return chosen


def _with_terms(table: pa.Table) -> pa.Table:
    """The table with the terms of licences as truth values: yes, no, and null for what is unknown."""
    for name in LICENSE_TERMS:
        if name in table.column_names:
            truth = pa.array([{"yes": True, "no": False}.get(value) for value in table[name].to_pylist()], pa.bool_())
            table = table.set_column(table.column_names.index(name), name, truth)
    return table


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
