"""Which values cannot be HU, from files of any format; and how a collection says what they are."""

import nibabel as nib
import numpy as np
import pytest

from medvar_data.catalog.load import parse_collection
from medvar_data.errors import CaseRejected, Reason
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.hounsfield import check_hu
from medvar_data.readers.read import read_scan
from medvar_data.sources.tree import open_tree

RNG = np.random.default_rng(5)
SHAPE = (24, 24, 12)


def body(air: float = -1000, noise: float = 12) -> np.ndarray:
    """A fat-rimmed body of soft tissue with some bone in air, HU."""
    i, j, _ = np.indices(SHAPE)
    radius = np.hypot(i - 11.5, j - 11.5)
    hu = np.where(radius < 10, np.where(radius < 8, 45.0, -95.0), air)
    hu[11:13, 11:13] = 700
    return hu + RNG.normal(0, noise, SHAPE)


def padded(voxels: np.ndarray, value: float) -> np.ndarray:
    out = voxels.copy()
    out[:3] = value
    return out


GOOD = {
    "as scanned": body(),
    "whole numbers": body().astype(np.int16),
    "air cut off at -1024": np.maximum(body(), -1024),
    "constant air": np.where(body() < -500, -1000, body()),
    "masked with air": np.where(body() < -20, -1024, body()),
    "within the body": body()[4:20, 4:20],
    "padded with -3024": padded(body(), -3024),
    "padded with -2000 and interpolated": padded(body(), -2000) + RNG.normal(0, 1e-3, SHAPE),
    "padded with 4000": padded(body(), 4000),
    "a window of soft tissue": np.clip(body(), -160, 240),
}
BAD = {
    "0 to 255": np.clip((body() + 160) / 400 * 255, 0, 255).astype(np.uint8),
    "0 to 255, padded": padded(np.clip((body() + 160) / 400 * 255, 0, 255), -2000),
    "0 to 255, padded beyond air with -1500": padded(np.clip((body() + 160) / 400 * 255, 0, 255), -1500),
    "-128 to 127": np.clip((body() + 160) / 400 * 255 - 128, -128, 127).astype(np.int8),
    "offset of 1024": np.maximum(body(), -1024) + 1024,
    "offset of 1000": np.maximum(body(), -1024) + 1000,
    "offset of 1024, padded with -3024": padded(np.maximum(body(), -1024) + 1024, -3024),
    "offset of 1024, padded with 0": padded(np.maximum(body(), -1024) + 1024, 0),
    "0 to 1": np.clip((body() + 1000) / 2000, 0, 1).astype(np.float32),
    "-1 to 1": np.clip(body() / 1000, -1, 1),
    "standardized": (body() - body().mean()) / body().std(),
    "offset applied twice": body() - 1024,
    "offset applied twice, padded": padded(body() - 1024, -4048),
}


@pytest.mark.parametrize("name", GOOD)
def test_hu_pass(name):
    check_hu(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_hu_is_refused(name):
    with pytest.raises(CaseRejected, match=r"\[\[repair\]\]") as caught:
        check_hu(BAD[name])
    assert caught.value.reason is Reason.NOT_HU


@pytest.mark.parametrize("n", [30, 300])
def test_a_large_volume_is_judged_as_a_small_one(n):
    large = np.tile(body().astype(np.int16), (1, 1, n))
    check_hu(large)
    with pytest.raises(CaseRejected):
        check_hu(large + 1024)


TOML = """name = "lab"
title = "CT of a lab"
region = "abdomen"
modality = "CT"
slice_axis = "axial"
license = "own data"
case_names = "published"

[[layout]]
id = "all"
image = '(?P<n>\\d+)\\.nii$'
case = "{n}"
group = "{n}"
"""
REPAIR = '\n[[repair]]\nid = "offset"\nslope = 1.0\nintercept_hu = %d\n'


@pytest.mark.parametrize(
    ("stored", "intercept", "lowest"), [(body() + 1024, -1024, -1024), (np.clip(body(), -20, 200), 0, -20)]
)
def test_a_repair_is_the_way_on(tmp_path, stored, intercept, lowest):
    """It says what the values are; with slope 1 and intercept 0, that they are HU all the same."""
    nib.Nifti1Image(stored.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0])).to_filename(tmp_path / "1.nii")
    spec = parse_collection(TOML, "test", own=True)
    (case,) = ingest(spec, open_tree(tmp_path), b"salt").cases
    with pytest.raises(CaseRejected, match="no HU"):
        read_scan(case, spec)
    repaired = read_scan(case, parse_collection(TOML + REPAIR % intercept, "test", own=True))
    assert repaired.image.voxels.min() >= lowest
    assert f"hu=1*x{intercept:+g}" in repaired.image.steps
