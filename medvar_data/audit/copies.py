"""Find copies of a scan in two splits, from a set's tables alone."""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from medvar_data.audit.align import matched
from medvar_data.naming import printable
from medvar_data.shard.duplicates import find_links
from medvar_data.shardset.dataset import Dataset
from medvar_data.shardset.schema import CASE_KEY, case_keys


def check_copies(tables: Mapping[str, pa.Table], dataset: Dataset) -> Iterator[str]:
    """Name scans that lie in two splits, found by digests, pixels and statistics anew, or listed by edges.parquet."""
    slices, cases, edges = (tables[f"{name}.parquet"] for name in ("slices", "cases", "edges"))
    names = [f"{collection}/{case}" for collection, case in case_keys(cases)]
    split_of = dict(zip(names, cases["split"].to_pylist(), strict=True))
    owners = matched(slices, cases, CASE_KEY)
    numbered = slices.append_column("__case", pa.array(owners)).filter(pa.array(owners >= 0))
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
