"""Find copies of a scan in two splits, from a set's tables alone."""

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from medvar_data.naming import printable
from medvar_data.shard.duplicates import find_links
from medvar_data.shardset.dataset import Dataset


def check_copies(tables: Mapping[str, pa.Table], dataset: Dataset) -> Iterator[str]:
    """Name scans that lie in two splits, found by digests, pixels and statistics anew, or listed by edges.parquet."""
    slices, cases, edges = (tables[f"{name}.parquet"] for name in ("slices", "cases", "edges"))
    names, of_slices = ([f"{c}/{k}" for c, k in _names(table)] for table in (cases, slices))
    split_of = dict(zip(names, cases["split"].to_pylist(), strict=True))
    numbers = pc.index_in(pa.array(of_slices, pa.string()), value_set=pa.array(names, pa.string()))
    numbered = slices.append_column("__case", numbers).filter(pc.is_valid(numbers))
    pairs = {
        (names[link.first], names[link.second]): link.evidence for link in find_links(cases, numbered, dataset.image_side)
    }  # fmt: skip
    for row in edges.to_pylist():
        pairs.setdefault(
            (f"{row['collection_a']}/{row['case_a']}", f"{row['collection_b']}/{row['case_b']}"), "edges.parquet"
        )
    for (a, b), evidence in pairs.items():
        if unknown := [name for name in (a, b) if name not in split_of]:
            yield f"edges.parquet joins {printable(unknown[0])}, which cases.parquet does not list"
        elif split_of[a] != split_of[b]:
            yield f"{a} in {split_of[a]} and {b} in {split_of[b]} show one scan ({evidence}); wanted both in one split"


def _names(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["collection"].to_pylist(), table["case"].to_pylist(), strict=True)
