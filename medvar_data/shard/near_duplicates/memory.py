"""Remember which scans were compared, so that other parts of a run, a later run and `--append` compare only what is new.

In and out: a table in the workspace, a row for each pair of thumbnails that were compared. It says nothing that comparing anew
would not: lost, damaged or of another version, it is made again.
"""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.shard.near_duplicates.proof import PROOF_VERSION
from medvar_data.storage.parquet import write_table

Pair = tuple[bytes, bytes]
"""SHA-256 of two thumbnails, in the order in which they were compared."""
SIDE = pa.binary(32)
SCHEMA = pa.schema([pa.field("first", SIDE), pa.field("second", SIDE), pa.field("similarity", pa.float64())])
METADATA = {"medvar.proof": str(PROOF_VERSION)}


def read_comparisons(path: Path) -> dict[Pair, float | None]:
    """Outcomes by pair: the similarity of one scan's thumbnails, None for those of two scans."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return {}
    if table.schema != SCHEMA or table.schema.metadata != {k.encode(): v.encode() for k, v in METADATA.items()}:
        return {}
    first, second, similarity = (table[name].to_pylist() for name in SCHEMA.names)
    return dict(zip(zip(first, second, strict=True), similarity, strict=True))


def add_comparisons(path: Path, fresh: Iterable[tuple[Pair, float | None]]) -> None:
    """Add outcomes to those that are there; of two processes that do so at once, one's may be lost."""
    every = sorted((read_comparisons(path) | dict(fresh)).items(), key=lambda entry: entry[0])
    columns = [[a for (a, _), _ in every], [b for (_, b), _ in every], [similarity for _, similarity in every]]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    write_table(path, pa.table(arrays, schema=SCHEMA), METADATA)
