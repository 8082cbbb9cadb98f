"""Templates serve as they stand, and as the start of a user's own description."""

import pytest
from support.builders import small_recipe, write_files
from support.dicom_files import slices, volume

from medvar_data.catalog.load import (
    collection_text,
    find_collections,
    load_conditions,
    parse_collection,
    template_names,
)
from medvar_data.errors import SpecError
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shardset.dataset import read_table
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace


@pytest.mark.parametrize("name", template_names())
def test_every_template_is_a_users_own_collection(name):
    (spec,) = find_collections(name)
    assert (spec.name, spec.case_names, spec.license, spec.license_confirmed) == (name, "hash", "not stated", False)
    assert f"{name}-ct" not in load_conditions()
    assert parse_collection(collection_text(name), "a copy", own=True) == spec


def test_a_near_miss_names_the_template():
    with pytest.raises(SpecError, match="dicom-cohort"):
        find_collections("dicom-cohrt")


def test_a_cohort_goes_from_studies_to_shards(tmp_path):
    files = {}
    for number, words in enumerate(("Abdomen portal venous", "ax T2 SPIR liver", "localizer-like"), start=1):
        modality = "CT" if number == 1 else "MR"
        files |= slices(
            volume(6, side=24, seed=number), prefix=f"export/{number}/", series=number, modality=modality,
            SeriesDescription=words,
        )  # fmt: skip
    write_files(tmp_path / "download", files)
    workspace = Workspace(tmp_path / "work")
    (found,) = run_ingest({"dicom-cohort": tmp_path / "download"}, workspace)
    assert sorted((c.modality, c.sequence) for c in found.cases) == [
        ("CT", "portal venous"), ("MR", ""), ("MR", "T2 fat-saturated"),
    ]  # fmt: skip
    recipe = small_recipe(tmp_path)
    assert run_harmonize(workspace, recipe, 1, lambda _: None).n_kept == 3
    write_shards(workspace, Store(str(tmp_path / "s")), ShardSpec(recipe), 1, lambda _: None)
    rows = read_table(Store(str(tmp_path / "s")), "cases.parquet").to_pylist()
    assert {row["condition"] for row in rows} == {"dicom-cohort-ct", "dicom-cohort-mr"}
    assert {row["condition_id"] for row in rows} <= {1000, 1001}
