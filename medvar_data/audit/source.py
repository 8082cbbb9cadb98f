"""Go from a shard set back to what it was made from: its recipe, the grid of a source, and the workspace's case of a row."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medvar_data.catalog.recipe import Recipe, parse_recipe
from medvar_data.errors import WorkspaceError
from medvar_data.geometry import SlicePlan, plan_along
from medvar_data.harmonize.harmonize import PLANES
from medvar_data.records import Case, Geometry
from medvar_data.shardset.dataset import read_dataset
from medvar_data.storage.store import Store
from medvar_data.workspace.case_file import read_case_file
from medvar_data.workspace.workspace import Workspace


def recipe_of(store: Store) -> Recipe:
    """The recipe that a set was harmonized by.

    Raises:
        ShardSetError: there is no set. SpecError: the recipe that it names is none.
    """
    return parse_recipe(read_dataset(store).recipe, "the recipe in dataset.json")


def source_case(workspace: Workspace, row: Mapping[str, Any]) -> Case:
    """The workspace's case of a row, by its columns `collection` and `case`.

    Raises:
        WorkspaceError: the workspace does not hold it.
    """
    known = workspace.cases(row["collection"]) if row["collection"] in workspace.collections() else []
    case = next((c for c in known if c.case == row["case"]), None)
    if case is None:
        raise WorkspaceError("The workspace does not hold this case; give the one that the set was made from.")
    return case


def scanner_frame(workspace: Workspace, row: Mapping[str, Any]) -> dict[str, Any]:
    """The affine of a case as its source has it, as the column `source_affine`; of public collections the row has it already.

    Raises:
        WorkspaceError: the workspace does not hold the case, or has not harmonized it.
    """
    case = source_case(workspace, row)
    path = workspace.case_file(case)
    done = read_case_file(path).harmonized if path.exists() else None
    if done is None:
        raise WorkspaceError("The workspace holds no finished result of this case; run `medvar-data harmonize` first.")
    return {"source_affine": list(done.affine)}


def source_grid(row: Mapping[str, Any]) -> tuple[Geometry, SlicePlan]:
    """Shape and affine of a case's source, and how its slices were cut, by its row of cases.parquet."""
    i, j, k = row["source_shape"]
    geometry = Geometry((i, j, k), np.asarray(row["source_affine"], dtype=np.float64).reshape(4, 4))
    return geometry, plan_along(geometry, PLANES.index(row["plane"]))
