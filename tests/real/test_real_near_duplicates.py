"""Real scans that were changed and published again under other names: each lies in the split of its original, by the real commands."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from support.runs_of_shards import quiet, rows_of

from medvar_data.catalog.recipe import load_recipe
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

ACDC = Path(__file__).parents[3] / "shared" / "real" / "acdc"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not ACDC.is_dir(), reason="the real scans are not here"),
]


def laid_otherwise(image):
    axes = nib.orientations.axcodes2ornt(("P", "I", "R"))
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), axes))


def mirrored(image):
    """As a writer does that loses the header's directions."""
    return nib.Nifti1Image(np.asanyarray(image.dataobj)[::-1], np.diag([*image.header.get_zooms()[:3], 1]))


def cropped(image):
    return image.slicer[6:-6, 4:-8, 1:-1]


def resampled(image):
    """To pixels of 1.2 mm."""
    found = sitk.GetImageFromArray(np.asanyarray(image.dataobj).astype(np.float32).transpose(2, 1, 0))
    steps = tuple(float(step) for step in image.header.get_zooms()[:3])
    found.SetSpacing(steps)
    shape = [round(n * s / 1.2) for n, s in zip(image.shape[:2], steps, strict=False)] + [image.shape[2]]
    made = sitk.Resample(
        found, shape, sitk.Transform(), sitk.sitkBSpline, (0, 0, 0), (1.2, 1.2, steps[2]), np.eye(3).ravel().tolist()
    )
    voxels = sitk.GetArrayFromImage(made).transpose(2, 1, 0)
    return nib.Nifti1Image(np.rint(voxels).astype(np.int16), np.diag([-1.2, -1.2, steps[2], 1]))


def shifted(image):
    return nib.Nifti1Image((np.asanyarray(image.dataobj) * 2.0 + 1024).astype(np.int16), image.affine)


def windowed(image):
    voxels = np.asanyarray(image.dataobj).astype(np.float32)
    low, high = np.percentile(voxels, (1, 99))
    return nib.Nifti1Image((np.clip((voxels - low) / (high - low), 0, 1) * 255).astype(np.uint8), image.affine)


def stored_as_floats(image):
    return nib.Nifti1Image(np.sqrt(np.asanyarray(image.dataobj).astype(np.float32)), image.affine)


def spacing_overwritten(image):
    return nib.Nifti1Image(np.asanyarray(image.dataobj), np.eye(4))


CHANGES = (
    laid_otherwise, mirrored, cropped, resampled, shifted, windowed, stored_as_floats, spacing_overwritten,
)  # fmt: skip

OWN = """
name = "changed"
title = "Scans that came from somewhere"
region = "heart"
modality = "MR"
slice_axis = "native"
spacing_from = "pixdim"
case_names = "published"

[[layout]]
id = "flat"
image = '(?:^|/)(?P<case>x\\d+)\\.nii\\.gz$'
case = "{case}"
group = "{case}"
labelled = false
"""


def test_each_change_lies_in_the_split_of_its_original(tmp_path):
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed.toml").write_text(OWN)
    for number, change in enumerate(CHANGES, 1):
        patient = f"patient{number:03d}"
        image = nib.load(ACDC / "database" / "training" / patient / f"{patient}_frame01.nii.gz")
        nib.save(change(image), tmp_path / "changed" / f"x{number}.nii.gz")
    workspace, recipe = Workspace(tmp_path / "work"), load_recipe("demo")
    list(run_ingest({"acdc": ACDC, str(tmp_path / "changed.toml"): tmp_path / "changed"}, workspace))
    run_harmonize(workspace, recipe, 2, quiet)
    write_shards(workspace, Store(str(tmp_path / "shards")), ShardSpec(recipe, SplitSpec(0.25, 0.25)), 2, quiet)
    edges = rows_of(tmp_path / "shards", "edges.parquet")
    found = {(edge["case_a"], edge["case_b"]): edge["evidence"] for edge in edges}
    same_values = {mirrored, spacing_overwritten}  # voxels of the same values, wherever they lie
    assert found == {
        (f"patient{n:03d}-frame01", f"x{n}"): "statistics" if change in same_values else "voxels"
        for n, change in enumerate(CHANGES, 1)
    }
    assert all(edge["split_a"] == edge["split_b"] and edge["similarity"] > 0.9 for edge in edges)
