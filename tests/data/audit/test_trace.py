"""A slice is followed back to its file and made again to the same pixels; contact sheets show what they say."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.tampering import edit_dataset, edit_rows, fit_digests, mirror, paint, refit, rows_of

from medvar_data.audit.contact_sheets import choose, contact_sheets, grid, outlined
from medvar_data.audit.trace import trace
from medvar_data.errors import ShardSetError, WorkspaceError
from medvar_data.storage.codec import PNG
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
    with pytest.raises(WorkspaceError, match="another salt than this workspace's; give the one that it was made from"):
        trace(pipeline.store, key, other)


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
        "wrong: its source has changed since the set was made, or its digests in the tables were edited"
    )
    source = report["source"]
    assert not source["image_unchanged"]
    assert not source["same_pixels_when_made_again"]
    label = np.zeros((24, 20, 5), dtype=np.uint8)
    label[5:9, 5:9] = 1
    acdc_tree(tmp_path / "acdc", patients=3)
    write_nifti(folder / "patient001_frame01_gt.nii.gz", label, np.diag([-1.0, -1, 1, 1]), pixdim=(1.5, 1.5, 10))
    report = trace(store, key, workspace)
    source = report["source"]
    assert report["verdict"].startswith("wrong: its source has changed")
    assert source["image_unchanged"]
    assert not source["label_unchanged"]
    assert not source["same_pixels_when_made_again"], "another mask is another slice"


def blamed(pipeline, store, *how) -> list[str]:
    """What a trace of the slice that tampering takes blames, most telling first."""
    rows = rows_of(Path(store.url), "slices")
    row = max(rows, key=lambda row: (len(row["label_pixels"]), row["foreground_pixels"], row["key"]))
    for change in how:
        change(Path(store.url))
    report = trace(store, row["key"], pipeline.workspace)
    assert report["verdict"] == f"wrong: {report['blamed'][0]}"
    return report["blamed"]


def test_a_shard_painted_under_its_row_is_to_blame(pipeline, damaged):
    digests = {row["key"]: row["image_sha256"] for row in rows_of(Path(damaged.url), "slices")}

    def keep_digests(folder: Path) -> None:
        edit_rows(folder, "slices", lambda row: row.update(image_sha256=digests[row["key"]]))
        edit_dataset(folder, lambda dataset: fit_digests(folder, dataset))

    picture, counts = blamed(pipeline, damaged, paint, refit, keep_digests)
    assert "histogram_slices" in counts
    assert picture.startswith("the image in the shard is another than its row and its source give (")


def test_a_shard_painted_with_no_digest_made_to_fit_has_a_verdict_too(pipeline, damaged):
    def same_size(folder: Path) -> None:
        row = max(rows_of(folder, "slices"), key=lambda row: row["key"])
        path, data = folder / row["shard"], bytearray((folder / row["shard"]).read_bytes())
        start = row["mask_offset"]
        pixels = PNG.decode(bytes(data[start : start + row["mask_size"]]))
        pixels[0, 0] ^= 1
        made = PNG.encode_mask(pixels)
        edit_rows(folder, "slices", lambda r: r.update(mask_size=len(made)) if r["key"] == row["key"] else None)
        data[start : start + len(made)] = made
        path.write_bytes(data)
        edit_dataset(folder, lambda dataset: fit_digests(folder, dataset))

    same_size(Path(damaged.url))
    key = max(row["key"] for row in rows_of(Path(damaged.url), "slices"))
    without, with_source = trace(damaged, key), trace(damaged, key, pipeline.workspace)
    assert without["verdict"].startswith("wrong: the mask in the shard does not have the digest of its row")
    assert with_source["verdict"] == (
        "wrong: the mask in the shard is another than its row and its source give (1 pixel differs)"
    )


def test_a_set_whose_digests_fit_is_to_blame_against_its_source(pipeline, damaged):
    image, mask, counts = blamed(pipeline, damaged, paint, mirror, refit)
    assert "histogram_slices" in counts
    assert image.startswith("the image is another than its source gives, and its row fits it (")
    assert mask.startswith("the mask is another than its source gives, and its row fits it (")


def test_a_row_is_to_blame(pipeline, damaged):
    def other_digest(folder: Path) -> None:
        edit_rows(folder, "slices", lambda row: row.update(mask_sha256="0" * 64))
        edit_dataset(folder, lambda dataset: fit_digests(folder, dataset))

    assert blamed(pipeline, damaged, other_digest) == ["mask_sha256 of its row is wrong; shard and source agree"]


def test_parameters_that_did_not_make_the_pixels_are_to_blame(pipeline, damaged):
    def other_bounds(folder: Path) -> None:
        edit_rows(folder, "cases", lambda row: row.update(high=row["high"] * 2))
        edit_dataset(folder, lambda dataset: fit_digests(folder, dataset))

    assert blamed(pipeline, damaged, other_bounds) == [
        "cases.parquet does not say what its source gives: high",
        "its row says another high than cases.parquet",
        "the parameters in cases.parquet are not those that made the pixels",
    ]


def test_without_a_workspace_shard_row_and_case_are_compared(pipeline, damaged):
    edit_rows(Path(damaged.url), "slices", lambda row: row.update(image_sha256="0" * 64, low=-7.0))
    edit_dataset(Path(damaged.url), lambda dataset: fit_digests(Path(damaged.url), dataset))
    report = trace(damaged, rows_of(Path(damaged.url), "slices")[0]["key"])
    assert report["blamed"] == [
        "the image in the shard does not have the digest of its row", "its row says another low than cases.parquet",
    ]  # fmt: skip
    assert report["verdict"].startswith("wrong: the image in the shard")


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
