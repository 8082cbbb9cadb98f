"""Make the rows of slices.parquet and cases.parquet from finished cases.

In: kept cases as the workspace has them. Out: values by column name; which of them a table takes is the schema's to say
(`shardset.schema`), so a number that harmonize adds to `HarmonizedCase` reaches the table by a line there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.recipe import Recipe
from medvar_data.catalog.volumes import volume_name
from medvar_data.harmonize.dependencies import PIPELINE_VERSION, wanted_inputs
from medvar_data.records import Case, HarmonizedCase, Reject
from medvar_data.shardset.schema import CASE_COLUMNS, SLICES_SCHEMA
from medvar_data.storage.parquet import table_from_rows
from medvar_data.workspace.case_file import read_case_file, read_slice_index
from medvar_data.workspace.workspace import Workspace

# Fields of `HarmonizedCase` whose columns have other names.
COLUMN_OF = {
    "image_digest": "source_sha256", "label_digest": "label_sha256", "shape": "source_shape", "affine": "source_affine",
}  # fmt: skip


@dataclass(frozen=True)
class KeptCase:
    """A kept case: as ingest knows it now, and what harmonize made of it."""

    path: Path  # of its case file
    case: Case
    done: HarmonizedCase
    spec: CollectionSpec
    recipe: Recipe
    rows_sha256: str  # names its slices


@dataclass(frozen=True)
class Finished:
    """The outcomes of a workspace's cases.

    Attributes:
        kept, rejects: cases, those that ingest left out included.
        n_missing: cases that are not harmonized yet, or were by another recipe, version or description.
    """

    kept: list[KeptCase]
    rejects: list[Reject]
    n_missing: int


@dataclass(frozen=True)
class Numbering:
    """What the set as a whole decides of a case, but for its split: the id of each condition, the patients' hashes."""

    condition_ids: Mapping[str, int]
    workspace: Workspace


def finished_cases(workspace: Workspace, recipe: Recipe) -> Finished:
    """Read every case's outcome, as far as it has one under this recipe and this version.

    Raises:
        WorkspaceError: a case file is damaged.
    """
    kept, rejects, missing = [], [], 0
    for name in workspace.collections():
        rejects += workspace.ingest_rejects(name)
        spec = workspace.spec(name)
        for case in workspace.cases(name):
            path = workspace.case_file(case)
            file = read_case_file(path) if path.exists() else None
            if file is None or file.inputs != wanted_inputs(case, spec, recipe):
                missing += 1
            elif file.reject:
                rejects.append(file.reject)
            elif file.harmonized:
                kept.append(KeptCase(path, case, file.harmonized, spec, recipe, file.rows_sha256))
    return Finished(kept, rejects, missing)


PLANNED_SCHEMA = pa.schema([
    pa.field("__case", pa.int32()),  # number of its case
    pa.field("__row", pa.int32()),  # in the case's file
    *(SLICES_SCHEMA.field(name) for name in ("key", "z", "slice_index", "body_pixels", "foreground_pixels", "label_pixels")),
    *(SLICES_SCHEMA.field(name) for name in ("image_sha256", "mask_sha256")),
])  # fmt: skip
"""What is known of a slice on its way into a shard, but for what its case says of it."""


def planned_slices(kept: KeptCase, number: int) -> pa.Table:
    """Give the slices of a case, in rising order of z, without their pictures; rows of `PLANNED_SCHEMA`.

    Args:
        kept: the case.
        number: of the case in the plan.

    Raises:
        WorkspaceError: its file is not as harmonize wrote it.
    """
    rows = [
        {
            **entry, "__case": number, "__row": row, "key": f"{kept.case.collection}-{kept.case.case}-z{entry['z']:04d}",
            "slice_index": entry["source_index"],
        }
        for row, entry in enumerate(read_slice_index(kept.path))
    ]  # fmt: skip
    return table_from_rows(rows, PLANNED_SCHEMA)


def case_row(kept: KeptCase, numbering: Numbering) -> dict[str, Any]:
    """Make a case's row of cases.parquet, which says all that its rows of slices.parquet say of the case; the split is still empty."""
    values = _values(kept, numbering)
    return {column.name: values[column.name] for column in CASE_COLUMNS}


def _values(kept: KeptCase, numbering: Numbering) -> dict[str, Any]:
    """All that is known of a case, by column name."""
    case, done, spec = kept.case, kept.done, kept.spec
    assert done.measures, "only case files of this version are kept"
    measured = {COLUMN_OF.get(name, name): value for name, value in vars(done).items()}
    return {
        **asdict(case),
        **{name: list(value.items()) if isinstance(value, dict) else value for name, value in measured.items()},
        **asdict(done.statistics),
        **asdict(done.measures),
        "volume": numbering.workspace.patient_hash(f"volume {case.collection} {volume_name(case, spec)}"),
        "n_not_selected": 0,  # before any condition chose
        "removed_label_share": list(done.removed_label_share().items()),
        "patient": numbering.workspace.patient_hash(case.group),
        "split": "",  # before the patients were compared
        "condition_id": numbering.condition_ids[case.condition],
        "has_label": bool(done.label_digest),
        "license": spec.license,
        "license_confirmed": spec.license_confirmed,
        "collection_sha256": spec.digest,
        "recipe": kept.recipe.name,
        "recipe_sha256": kept.recipe.digest,
        "pipeline_version": PIPELINE_VERSION,
    }
