"""A case comes back on its source grid: same shape and affine, the same voxels but for measured losses."""

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import acdc_tree, recipe_file

from medvar_data.audit.reconstruct import measure_losses, reconstruct, write_reconstruction
from medvar_data.catalog.recipe import load_recipe
from medvar_data.errors import ShardSetError, WorkspaceError
from medvar_data.geometry import as_stored, canonical, plan_along, slices_first
from medvar_data.harmonize.harmonize import label_table
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.readers.read import read_scan
from medvar_data.records import Geometry
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace


def cases_of(pipeline):
    return pq.read_table(pipeline.shards / "cases.parquet").to_pylist()


@given(axes=st.permutations([0, 1, 2]), signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3), axis=st.integers(0, 2))
def test_as_stored_undoes_every_turn(axes, signs, axis):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, axes] * np.array([1.0, 1.5, 2.0])
    voxels = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    plan = plan_along(Geometry(voxels.shape, affine), axis)
    assert np.array_equal(as_stored(slices_first(canonical(voxels, plan), axis), plan), voxels)


def test_every_case_comes_back_on_its_grid(pipeline):
    seen = set()
    for row in cases_of(pipeline):
        name = f"{row['collection']}-{row['case']}"
        rebuilt = reconstruct(pipeline.store, name, pipeline.workspace)
        case = next(c for c in pipeline.workspace.cases(row["collection"]) if c.case == row["case"])
        spec = pipeline.workspace.spec(row["collection"])
        scan = read_scan(case, spec)
        assert rebuilt.image.shape == rebuilt.mask.shape == scan.image.geometry.shape
        assert np.array_equal(rebuilt.geometry.affine, scan.image.geometry.affine)
        alone = reconstruct(pipeline.store, name)
        assert np.array_equal(alone.image, rebuilt.image)
        assert np.array_equal(alone.geometry.affine, rebuilt.geometry.affine) == spec.public
        if scan.label is not None:  # 32 pixels a side are no fewer than the source's: masks lose nothing but dust
            lost = label_table(spec, case.layout)[scan.label.voxels] != rebuilt.mask
            assert lost.mean() < 0.001
        kept = rebuilt.kept & (scan.image.voxels > rebuilt.image.min()) & (scan.image.voxels < rebuilt.image.max())
        assert np.corrcoef(rebuilt.image[kept], scan.image.voxels[kept])[0, 1] > 0.8
        assert (rebuilt.image[~rebuilt.kept] == np.float32(row["low"])).all()
        seen.add(row["collection"])
    assert len(seen) == 4


def test_each_loss_is_measured_and_the_whole_is_no_more_than_the_sum(pipeline):
    for row in cases_of(pipeline):
        rebuilt = reconstruct(pipeline.store, f"{row['collection']}-{row['case']}")
        losses = measure_losses(pipeline.store, rebuilt, pipeline.workspace)
        whole = losses.window + losses.resampling + losses.cleanup + losses.quantization
        assert 0 <= losses.image_error <= whole + 1e-3
        assert losses.quantization <= (row["high"] - row["low"]) / 255 / 2 * 1.001 + (row["modality"] == "CT") / 2
        assert (losses.resampling > 0) == (max(row["source_shape"]) != 32 or row["collection"] != "chaos")
        assert all(0.97 <= dice <= 1 for dice in losses.dice.values())
        assert bool(losses.dice) == row["has_label"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_files_hold_image_and_mask_with_the_sources_affine(pipeline, tmp_path, suffix):
    rebuilt = reconstruct(pipeline.store, "acdc-patient001-frame01")
    image, mask = write_reconstruction(rebuilt, tmp_path / f"out{suffix}")
    assert (image.name, mask.name) == (f"out{suffix}", f"out.mask{suffix}")
    for path, voxels in ((image, rebuilt.image), (mask, rebuilt.mask)):
        volume = nib.load(path)
        assert np.array_equal(np.asanyarray(volume.dataobj), voxels)
        assert np.allclose(volume.affine, rebuilt.geometry.affine, atol=1e-4)


def test_what_cannot_be_rebuilt_is_one_sentence(pipeline, tmp_path):
    with pytest.raises(ShardSetError, match="No case has the name"):
        reconstruct(pipeline.store, "acdc-nobody")
    rebuilt = reconstruct(pipeline.store, "acdc-patient001-frame01")
    with pytest.raises(WorkspaceError, match="no NIfTI name"):
        write_reconstruction(rebuilt, tmp_path / "out.png")


def test_what_was_padded_to_a_square_is_cut_off_again(tmp_path):
    path = recipe_file(tmp_path)
    path.write_text(path.read_text() + 'aspect = "pad"\n')
    recipe, workspace, store = load_recipe(str(path)), Workspace(tmp_path / "work"), Store(str(tmp_path / "s"))
    list(run_ingest({"acdc": acdc_tree(tmp_path / "acdc", patients=3, shape=(30, 17, 4))}, workspace))
    run_harmonize(workspace, recipe, 1, lambda _: None)
    write_shards(workspace, store, ShardSpec(recipe), 1, lambda _: None)
    rebuilt = reconstruct(store, "acdc-patient001-frame01")
    case = next(c for c in workspace.cases("acdc") if c.case == rebuilt.case)
    scan = read_scan(case, workspace.spec("acdc"))
    assert rebuilt.image.shape == scan.image.voxels.shape
    losses = measure_losses(store, rebuilt, workspace)
    assert all(dice == 1 for dice in losses.dice.values())
    assert losses.image_error <= losses.window + losses.resampling + losses.cleanup + losses.quantization + 1e-3
    kept = rebuilt.kept & (scan.image.voxels > rebuilt.image.min()) & (scan.image.voxels < rebuilt.image.max())
    assert np.corrcoef(rebuilt.image[kept], scan.image.voxels[kept])[0, 1] > 0.6  # noise, a pixel off, would give 0.2
