"""Open what a report is written of, a shard set or a workspace: its tables, and pictures of chosen cases.

Only the columns that a report shows are read, and of `slices.parquet` the rows of the cases whose pictures are shown.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8

from medvar_data.audit.contents import contents_of_workspace, is_workspace
from medvar_data.catalog.recipe import Recipe
from medvar_data.harmonize.dependencies import PIPELINE_VERSION
from medvar_data.naming import how_many
from medvar_data.shardset.dataset import PAIR_COLUMNS, Dataset, read_dataset, read_pair, read_table
from medvar_data.shardset.schema import CASE_KEY, SPLITS
from medvar_data.storage.codec import CODECS, PNG
from medvar_data.storage.store import Store
from medvar_data.workspace.case_file import read_pictures, read_slice_index
from medvar_data.workspace.workspace import Workspace

CASE_COLUMNS = (
    "collection", "case", "patient", "volume", "split", "official_split", "region", "modality", "sequence", "source_rows", "source_columns", "spacing_row_mm",
    "spacing_col_mm", "through_plane_mm", "n_slices", "low", "high", "label_mm3", "vanished_labels", "steps", "mean", "std", "p50", "p99_5",
    "clipped_low", "clipped_high", "foreground_fraction", "body_fraction",
)  # fmt: skip
SLICE_COLUMNS = [*PAIR_COLUMNS, *CASE_KEY, "z", "foreground_pixels", "body_pixels"]
Rows = tuple[dict[str, Any], ...]
CaseName = tuple[str, str]  # collection and case


@dataclass(frozen=True, eq=False)
class Shown:
    """The slice that stands for a case."""

    z: int
    image: UInt8[np.ndarray, "s s"]
    mask: UInt8[np.ndarray, "s s"]


@dataclass(frozen=True, eq=False)
class Subject:
    """What a report is written of.

    Attributes:
        kind: shard set or workspace.
        facts: what it says of itself, by a name for each.
        cases: rows of cases.parquet with `CASE_COLUMNS`.
        statistics: rows of stats.parquet.
        collections: rows of collections.parquet.
        rejects: rows of rejects.parquet.
        pictures: gives, of the cases that it is asked for, the slice with the largest annotated area, or else the most body.
        edges: rows of edges.parquet; none of a workspace.
        splits: by split, its slices, cases, patients, shards and bytes; none of a workspace.
    """

    kind: str
    facts: dict[str, str]
    cases: pa.Table
    statistics: Rows
    collections: Rows
    rejects: Rows
    pictures: Callable[[Collection[CaseName]], Iterator[tuple[CaseName, Shown]]]
    edges: Rows = ()
    splits: dict[str, dict[str, int]] = field(default_factory=dict)


def open_subject(place: str, recipe: Recipe) -> Subject:
    """Open a shard set or a workspace, whichever lies there.

    Args:
        place: folder or URL of a shard set, or folder of a workspace.
        recipe: that the workspace was harmonized by; says nothing of a shard set.

    Raises:
        ShardSetError: neither lies there, or the set is damaged.
        WorkspaceError: no case of the workspace is kept by this recipe, or a case file is damaged.
    """
    return open_workspace(Workspace(Path(place)), recipe) if is_workspace(place) else open_set(Store(place))


def open_set(store: Store) -> Subject:
    """Read what a report of a shard set needs.

    Raises:
        ShardSetError: it is no shard set, or a damaged one.
    """
    dataset = read_dataset(store)

    def rows(name: str) -> Rows:
        return tuple(read_table(store, f"{name}.parquet", dataset).to_pylist())

    return Subject(
        kind="shard set",
        facts=_facts(dataset),
        cases=read_table(store, "cases.parquet", dataset, columns=CASE_COLUMNS),
        statistics=rows("stats"),
        collections=rows("collections"),
        rejects=rows("rejects"),
        pictures=lambda names: _pictures_of_set(store, dataset, names),
        edges=rows("edges"),
        splits={split: _split(dataset, split) for split in SPLITS},
    )


def _facts(dataset: Dataset) -> dict[str, str]:
    side = dataset.image_side
    facts = {
        "Recipe": str(dataset.recipe.get("name", "")),
        "Pictures": f"{side} × {side} pixels, {dataset.codec}",
        "Pipeline version": str(dataset.versions.get("pipeline", "")),
        "Digest": dataset.digest,
        "Condition": dataset.where,
        "Made from": dataset.made_from,
        "Exact copies": "left out but for the first" if dataset.drop_duplicates else "",
    }
    return {name: value for name, value in facts.items() if value}


def _split(dataset: Dataset, name: str) -> dict[str, int]:
    split = dataset.splits[name]
    return {
        "slices": split.slices, "cases": split.cases, "patients": split.patients, "shards": len(split.shards),
        "bytes": sum(shard.bytes for shard in split.shards),
    }  # fmt: skip


def _pictures_of_set(store: Store, dataset: Dataset, names: Collection[CaseName]) -> Iterator[tuple[CaseName, Shown]]:
    table = read_table(store, "slices.parquet", dataset, columns=SLICE_COLUMNS)
    table = table.filter(pc.is_in(table["case"], pa.array({case for _, case in names}, pa.string())))
    best: dict[CaseName, Mapping[str, Any]] = {}
    for row in table.to_pylist():
        name = (row["collection"], row["case"])
        if name in names and (name not in best or telling(row) > telling(best[name])):
            best[name] = row
    codec = CODECS[dataset.codec]
    for name, row in sorted(best.items()):
        yield name, Shown(row["z"], *read_pair(store, dict(row), codec))


def telling(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """How much a slice shows: annotated pixels, then pixels of the body, then the lower of two equal ones."""
    return row["foreground_pixels"], row["body_pixels"], -row["z"]


def open_workspace(workspace: Workspace, recipe: Recipe) -> Subject:
    """Read what a report of a workspace needs, as far as it is harmonized.

    Raises:
        WorkspaceError: no case is kept by this recipe, or a case file is damaged.
    """
    contents = contents_of_workspace(workspace, recipe)
    facts = {
        "Recipe": recipe.name,
        "Pictures": f"{recipe.side} × {recipe.side} pixels",
        "Pipeline version": str(PIPELINE_VERSION),
    }
    if contents.n_missing:
        facts["Not harmonized yet, and not counted"] = how_many(contents.n_missing, "case")
    order = sorted(contents.left_out, key=lambda reject: (reject.collection, reject.case, reject.stage))
    return Subject(
        kind="workspace",
        facts=facts,
        cases=contents.cases.select(CASE_COLUMNS),
        statistics=tuple(contents.statistics.to_pylist()),
        collections=tuple(contents.collections.to_pylist()),
        rejects=tuple({**vars(reject), "reason": reject.reason.value} for reject in order),
        pictures=lambda names: _pictures_of_workspace(workspace, names),
    )


def _pictures_of_workspace(workspace: Workspace, names: Collection[CaseName]) -> Iterator[tuple[CaseName, Shown]]:
    for name in sorted(names):
        path = workspace.case_path(*name)
        rows = read_slice_index(path)
        best = max(range(len(rows)), key=lambda place: telling(rows[place]))
        image, mask = read_pictures(path, [best])[best]
        yield name, Shown(rows[best]["z"], PNG.decode(image), PNG.decode(mask))
