"""What a CT stores becomes HU: by the collection's rows, with a floor at air, each in the row's steps."""

import numpy as np
import pytest
from support.builders import case_of, nifti_bytes, write_files

from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.errors import SpecError
from medvar_data.readers.read import read_scan

TOML = """name = "own"
title = "t"
region = "abdomen"
modality = "CT"
slice_axis = "axial"
license = "none"

[[layout]]
id = "pairs"
image = '(?P<case>[a-z]+)\\.nii$'
case = "{case}"
group = "{case}"
"""
REPAIR = """
[[repair]]
id = "shifted"
cases = "s*"
intercept_hu = -1000.0
stored_from = -100.0
"""
WIDE = """
[[repair]]
id = "windowed"
slope = 5.88235294117647
intercept_hu = -1250.0
stored_from = 0.0
stored_to = 255.0
"""


def read(root, name, values, repairs=REPAIR, modality="CT", dtype=np.int16):
    voxels = np.resize(np.asarray(values, dtype=dtype), (4, 3, 2))
    write_files(root, {f"{name}.nii": nifti_bytes(voxels)})
    spec = parse_collection(TOML + repairs, "test")
    image = read_scan(case_of(root, f"{name}.nii", case=name, modality=modality), spec).image
    return image.voxels.reshape(-1)[: len(values)], image.steps, image.voxels.dtype


def test_an_offset_is_taken_off_and_noted(tmp_path):
    stored = np.resize(np.arange(24, dtype=np.int16) * 100, (4, 3, 2))
    write_files(tmp_path, {"s.nii": nifti_bytes(stored)})
    image = read_scan(
        case_of(tmp_path, "s.nii", case="s", modality="CT"), parse_collection(TOML + REPAIR, "test")
    ).image
    assert np.array_equal(image.voxels, stored - 1000)
    assert image.voxels.dtype == np.int16
    assert image.steps == ("hu=1*x-1000",)


@pytest.mark.parametrize("name", ["s", "t"])
def test_a_copy_in_hu_and_another_case_are_left_alone(tmp_path, name):
    values = [-900, 40, 300] if name == "s" else [-150, 40, 300]
    found, steps, _ = read(tmp_path, name, values)
    assert sorted(set(found.tolist())) == sorted(values)
    assert steps == ()


def test_eight_bits_of_a_window_come_back_to_hu(tmp_path):
    found, steps, dtype = read(tmp_path, "a", [0, 255, 51], WIDE, dtype=np.uint8)
    assert np.allclose(sorted(set(found.tolist())), [-1024, -950, 250], atol=1e-3)  # 0 stands for -1250, below air
    assert steps == ("hu=5.88235*x-1250", "hu_floor_-1024")
    assert dtype == np.float32


@pytest.mark.parametrize("padding", [-1025, -1500, -2048, -3024])
def test_padding_is_raised_to_air(tmp_path, padding):
    found, steps, dtype = read(tmp_path, "a", [padding, -1024, 40])
    assert sorted(set(found.tolist())) == [-1024, 40]
    assert (steps, dtype) == (("hu_floor_-1024",), np.int16)


def test_mr_is_never_touched(tmp_path):
    found, steps, _ = read(tmp_path, "s", [-3000, 0, 900], modality="MR")
    assert sorted(set(found.tolist())) == [-3000, 0, 900]
    assert steps == ()


def test_a_shift_beyond_int16_goes_to_float(tmp_path):
    found, _, dtype = read(tmp_path, "a", [0, 32767], "\n[[repair]]\nid = 'up'\nintercept_hu = 1000.0\n")
    assert (sorted(set(found.tolist())), dtype) == ([1000.0, 33767.0], np.float32)


def test_a_repair_with_a_wrong_key_is_named():
    with pytest.raises(SpecError, match=r"repair 1: unknown key 'offset'"):
        parse_collection(TOML + "\n[[repair]]\nid = 'x'\noffset = 1.0\n", "test")


@pytest.mark.parametrize("name", ["kipa22", "xvertseg", "covid19-ct-seg"])
def test_collections_that_store_no_hu_are_repaired(name):
    assert load_collection(name).repairs
    assert not any(quirk.skip for quirk in load_collection(name).quirks)
