"""Read what a shard set or a workspace holds, in the same tables: cases, statistics, collections, rejects.

In: the folder or URL of a shard set, or the folder of a workspace, whose cases need not be sharded yet. Out: `Contents`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import WorkspaceError
from medvar_data.records import Reject
from medvar_data.shard.collections import collections_table, counted
from medvar_data.shard.rows import KeptCase, Numbering, case_row, finished_cases
from medvar_data.shard.statistics import names_of_labels, statistics
from medvar_data.shard.tally import BY, SLICE_VALUES, SliceCounts, tally
from medvar_data.shardset.dataset import read_dataset, read_reject_counts, read_table
from medvar_data.shardset.schema import CASES_SCHEMA, SLICES_SCHEMA
from medvar_data.storage.parquet import gathered, table_from_rows
from medvar_data.storage.store import Store
from medvar_data.workspace.case_file import read_slice_index
from medvar_data.workspace.workspace import Workspace


@dataclass(frozen=True)
class Contents:
    """What a shard set or a workspace holds.

    Attributes:
        cases: rows of cases.parquet; in a workspace the split is empty.
        statistics: rows of stats.parquet.
        collections: rows of collections.parquet, with the cases found, kept and rejected.
        rejects: (collection, reason, cases).
        n_missing: cases of a workspace that are not harmonized yet by this recipe.
        left_out: of a workspace, the rejected cases themselves.
    """

    cases: pa.Table
    statistics: pa.Table
    collections: pa.Table
    rejects: list[tuple[str, str, int]]
    n_missing: int = 0
    left_out: tuple[Reject, ...] = ()


def is_workspace(place: str) -> bool:
    """Tell whether a workspace lies in a folder."""
    return "://" not in place and (Path(place) / "ingest").is_dir()


def contents_of(place: str, recipe: Recipe) -> Contents:
    """Read what lies in a place: a shard set as it says of itself, a workspace as far as it is harmonized.

    Args:
        place: folder or URL of a shard set, or folder of a workspace.
        recipe: that the workspace was harmonized by; says nothing of a shard set.

    Raises:
        ShardSetError: there is neither.
        WorkspaceError: no case of the workspace is harmonized by this recipe.
    """
    if is_workspace(place):
        return contents_of_workspace(Workspace(Path(place)), recipe)
    store = Store(place)
    dataset = read_dataset(store)
    cases, stats, collections = (
        read_table(store, f"{name}.parquet", dataset) for name in ("cases", "stats", "collections")
    )
    return Contents(cases, stats, collections, read_reject_counts(store))


def contents_of_workspace(workspace: Workspace, recipe: Recipe) -> Contents:
    """Read what the harmonized cases of a workspace give; no picture is read.

    Raises:
        WorkspaceError: no case is harmonized by this recipe, or a case file is damaged.
    """
    found = finished_cases(workspace, recipe)
    if not found.kept:
        raise WorkspaceError(
            f"{workspace.path} holds no case that recipe {recipe.name!r} kept; {found.n_missing} are not harmonized by it. "
            f"Run `medvar-data harmonize -w {workspace.path}` with the same --recipe first."
        )
    numbering = Numbering(workspace.condition_ids({k.case.condition for k in found.kept}), workspace)
    cases = table_from_rows((case_row(kept, numbering) for kept in found.kept), CASES_SCHEMA)
    cases = cases.sort_by([("collection", "ascending"), ("case", "ascending")])
    sums = SliceCounts()
    for table in gathered(_slices_of(kept) for kept in found.kept):
        sums.add(table)
    collections = counted(collections_table(workspace), cases, found.rejects)
    stats = statistics(tally(sums.sums, cases), names_of_labels(collections), recipe.side)
    rejects = Counter((reject.collection, reject.reason.value) for reject in found.rejects)
    return Contents(
        cases,
        stats,
        collections,
        [(*pair, n) for pair, n in sorted(rejects.items())],
        found.n_missing,
        tuple(found.rejects),
    )


def _slices_of(kept: KeptCase) -> pa.Table:
    """What the statistics read of a case's slices."""
    group = {name: getattr(kept.case, name, "") for name in BY}  # the split is not known yet
    said = {**group, "has_label": bool(kept.done.label_digest)}
    rows: Iterator[dict[str, object]] = ({**entry, **said} for entry in read_slice_index(kept.path))
    return table_from_rows(rows, pa.schema([SLICES_SCHEMA.field(name) for name in SLICE_VALUES]))
