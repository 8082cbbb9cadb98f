"""Make the rows of slices.parquet and cases.parquet from finished cases.

In: kept cases as the workspace has them. Out: values by column name; which of them a table takes is the schema's to say
(`shardset.schema`), so a number that harmonize adds to `HarmonizedCase` reaches the table by a line there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.recipe import Recipe
from medvar_data.harmonize.dependencies import PIPELINE_VERSION
from medvar_data.records import Case, HarmonizedCase
from medvar_data.shardset.schema import CASE_COLUMNS, CASE_IDENTITY
from medvar_data.workspace.case_file import read_slice_index
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


@dataclass(frozen=True)
class Numbering:
    """What the set as a whole decides of a case: the split of each patient, the id of each condition, the patients' hashes."""

    splits: Mapping[str, str] = field(repr=False)  # by patient group, unsalted
    condition_ids: Mapping[str, int]
    workspace: Workspace


@dataclass(frozen=True)
class PlannedSlice:
    """A slice on its way into a shard."""

    key: str
    split: str
    path: str  # of its case file
    row: int  # in that file
    columns: Mapping[str, Any]  # of slices.parquet, but for the shard's


def planned_slices(kept: KeptCase, numbering: Numbering) -> Iterator[PlannedSlice]:
    """Give the slices of a case, in rising order of z, without their pictures."""
    values = _values(kept, numbering)
    split = values["split"]
    common = {column.name: values[column.name] for column in CASE_IDENTITY} | {"split": split}
    for row, entry in enumerate(read_slice_index(kept.path)):
        key = f"{kept.case.collection}-{kept.case.case}-z{entry['z']:04d}"
        slice_index = entry.pop("source_index")
        yield PlannedSlice(key, split, str(kept.path), row, {**common, **entry, "key": key, "slice_index": slice_index})


def case_row(kept: KeptCase, numbering: Numbering) -> dict[str, Any]:
    """Make a case's row of cases.parquet."""
    values = _values(kept, numbering)
    return {column.name: values[column.name] for column in CASE_COLUMNS}


def _values(kept: KeptCase, numbering: Numbering) -> dict[str, Any]:
    """All that is known of a case, by column name."""
    case, done, spec = kept.case, kept.done, kept.spec
    measured = {COLUMN_OF.get(name, name): value for name, value in vars(done).items()}
    return {
        **asdict(case),
        **{name: list(value.items()) if isinstance(value, dict) else value for name, value in measured.items()},
        **asdict(done.statistics),
        "removed_label_share": list(done.removed_label_share().items()),
        "patient": numbering.workspace.patient_hash(case.group),
        "split": numbering.splits[case.group],
        "condition_id": numbering.condition_ids[case.condition],
        "has_label": bool(done.label_digest),
        "license": spec.license,
        "license_confirmed": spec.license_confirmed,
        "collection_sha256": spec.digest,
        "recipe": kept.recipe.name,
        "recipe_sha256": kept.recipe.digest,
        "pipeline_version": PIPELINE_VERSION,
    }
