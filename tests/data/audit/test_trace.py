"""A slice is followed back to its file and made again to the same pixels; contact sheets show what they say."""

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from medvar_data.audit.contact_sheets import choose, contact_sheets, grid, outlined
from medvar_data.audit.trace import trace
from medvar_data.errors import ShardSetError
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace


@pytest.mark.parametrize("collection", ["acdc", "chaos", "msd-brain-tumour", "own"])
def test_made_again_to_the_same_pixels(pipeline, collection):
    rows = [r for r in pq.read_table(pipeline.shards / "slices.parquet").to_pylist() if r["collection"] == collection]
    for row in rows[:2]:
        report = trace(pipeline.store, row["key"], pipeline.workspace)
        assert report["slice"]["key"] == row["key"]
        assert report["case"]["case"] == row["case"]
        assert report["pixels_match_row"]
        source = report["source"]
        assert (next(iter(report)), report["verdict"]) == ("verdict", "sound")
        assert source["found"]
        assert source["image_unchanged"]
        assert source["same_pixels_when_made_again"]
        assert len(source["image"]) >= 1


def test_without_a_workspace_no_source_is_named(pipeline):
    key = pq.read_table(pipeline.shards / "slices.parquet")["key"][0].as_py()
    report = trace(pipeline.store, key)
    assert "source" not in report
    assert report["verdict"].startswith("sound; no workspace")
    assert report["license"] == report["slice"]["license"]
    assert report["license_confirmed"] is True


def test_another_workspace_says_so(pipeline, tmp_path):
    key = next(k for k in pq.read_table(pipeline.shards / "slices.parquet")["key"].to_pylist() if k.startswith("acdc"))
    other = Workspace(tmp_path)
    from support.builders import brats_tree

    from medvar_data.ingest.run import run_ingest

    list(run_ingest({"brats2023": brats_tree(tmp_path / "b")}, other))
    assert trace(pipeline.store, key, other)["source"]["found"] is False


def test_a_changed_source_is_noticed(pipeline, tmp_path):
    import shutil

    from support.builders import acdc_tree, write_nifti

    from medvar_data.harmonize.run import run_harmonize
    from medvar_data.ingest.run import run_ingest
    from medvar_data.shard.run import write_shards

    root = acdc_tree(tmp_path / "acdc", patients=3)
    workspace, store = Workspace(tmp_path / "work"), Store(str(tmp_path / "s"))
    list(run_ingest({"acdc": root}, workspace))
    run_harmonize(workspace, pipeline.recipe, 1, lambda _: None)
    write_shards(workspace, store, pipeline.spec, 1, lambda _: None)
    key = "acdc-patient001-frame01-z0002"
    assert trace(store, key, workspace)["source"]["same_pixels_when_made_again"]
    folder = root / "database/training/patient001"
    shutil.copy(folder / "patient001_frame10.nii.gz", folder / "patient001_frame01.nii.gz")
    report = trace(store, key, workspace)
    assert report["verdict"] == (
        "wrong: not image_unchanged, not same_pixels_when_made_again, not same_pixels_by_the_recorded_parameters"
    )
    source = report["source"]
    assert not source["image_unchanged"]
    assert not source["same_pixels_when_made_again"]
    label = np.zeros((24, 20, 5), dtype=np.uint8)
    label[5:9, 5:9] = 1
    acdc_tree(tmp_path / "acdc", patients=3)
    write_nifti(folder / "patient001_frame01_gt.nii.gz", label, np.diag([-1.0, -1, 1, 1]), pixdim=(1.5, 1.5, 10))
    source = trace(store, key, workspace)["source"]
    assert source["image_unchanged"]
    assert not source["same_pixels_when_made_again"], "another mask is another slice"


def test_an_unknown_key(pipeline):
    with pytest.raises(ShardSetError, match="No slice"):
        trace(pipeline.store, "acdc-nobody-z0001")


def test_one_sheet_a_collection(pipeline, tmp_path):
    sheets = contact_sheets(pipeline.store, tmp_path, tiles=6)
    assert [s.collection for s in sheets] == ["acdc", "chaos", "msd-brain-tumour", "own"]
    for sheet in sheets:
        picture = cv2.imread(str(sheet.path))
        assert picture.ndim == 3
        assert picture.std() > 10
        assert 0 < sheet.n_slices <= 6


def test_a_choice_shows_as_many_cases_as_it_can():
    rows = [{"key": f"c{n}-z{z}", "case": f"c{n}", "sequence": "", "z": z} for n in range(10) for z in range(5)]
    assert len({r["case"] for r in choose(rows, 10)}) == 10
    assert len({r["case"] for r in choose(rows, 4)}) == 4
    few = choose(rows[:10], 6)
    assert len(few) == 6
    assert {r["case"] for r in few} == {"c0", "c1"}
    assert choose(rows[:1], 8) == rows[:1]


def test_outlines_lie_on_the_label_and_leave_the_rest():
    image = np.full((128, 128), 60, dtype=np.uint8)
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[40:60, 50:90] = 1
    picture = outlined(image, mask)
    coloured = (picture != 60).any(axis=2)
    assert coloured[40, 50:90].all()
    assert not coloured[mask == 0].any()
    assert not coloured[45:55, 55:85].any()


def test_the_grid_holds_every_picture():
    pictures = [np.full((8, 8, 3), n, dtype=np.uint8) for n in (50, 60, 70)]
    sheet = grid(pictures, columns=2)
    assert {int(v) for v in np.unique(sheet)} == {24, 50, 60, 70}
