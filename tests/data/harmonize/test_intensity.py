"""Laws of the 8-bit scale: fixed bounds, monotone, replayable from its parameters, invertible to half a grey level."""

import dataclasses

import numpy as np
import pytest

from medvar_data.catalog.recipe import NORMALIZER_NAMES, load_recipe
from medvar_data.errors import CaseRejected, Reason
from medvar_data.harmonize.intensity import (
    NORMALIZERS,
    IntensityParams,
    apply_intensity,
    fit_percentiles,
    fit_window,
    invert_intensity,
)

RECIPE = load_recipe("paper")


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, (6, 7, 8)).astype(np.int16)


@pytest.mark.parametrize(
    "params", [IntensityParams("window", -160.0, 240.0), IntensityParams("percentiles", 3.5, 7.25)]
)
def test_monotone_and_pinned_at_both_ends(params):
    ramp = np.linspace(params.low - 10, params.high + 10, 4001, dtype=np.float32)[None]
    out = apply_intensity(ramp, params)
    assert out.dtype == np.uint8
    assert np.all(np.diff(out[0].astype(int)) >= 0)
    ends = np.array([[params.low, params.high]], dtype=np.float32)
    assert apply_intensity(ends, params).tolist() == [[0, 255]]
    assert set(np.unique(out)) == set(range(256))


def test_window_bounds_do_not_depend_on_content():
    assert fit_window(volume(1), RECIPE) == fit_window(volume(2), RECIPE) == IntensityParams("window", -160.0, 240.0)


def test_percentiles_see_non_zero_voxels_only():
    voxels = volume().astype(np.int32) + 3000
    padded = np.concatenate([voxels.reshape(-1), np.zeros(50_000, dtype=np.int32)])
    assert fit_percentiles(padded, RECIPE) == fit_percentiles(voxels, RECIPE)
    low, high = np.percentile(voxels, [0.5, 99.5])
    assert fit_percentiles(voxels, RECIPE) == IntensityParams("percentiles", float(low), float(high))


@pytest.mark.parametrize("voxels", [np.zeros((2, 3)), np.where(np.eye(4) > 0, 7.0, 0.0)])
def test_percentiles_of_nothing_are_rejected(voxels):
    with pytest.raises(CaseRejected) as caught:
        fit_percentiles(voxels, RECIPE)
    assert caught.value.reason is Reason.CONSTANT_IMAGE


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
def test_replay_from_the_recorded_parameters_is_equal(name):
    voxels = volume()
    params = NORMALIZERS[name](voxels, RECIPE)
    again = IntensityParams(**dataclasses.asdict(params))
    for z in range(len(voxels)):
        assert np.array_equal(apply_intensity(voxels[z], params), apply_intensity(voxels[z], again))


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
def test_invert_is_within_half_a_grey_level(name):
    voxels = volume()
    params = NORMALIZERS[name](voxels, RECIPE)
    image = np.clip(voxels[0], params.low, params.high)
    back = invert_intensity(apply_intensity(image, params), params)
    assert np.abs(back - image).max() <= 0.5 * (params.high - params.low) / 255 * 1.001


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
def test_the_input_is_untouched(name):
    voxels = volume()
    before = voxels.copy()
    apply_intensity(voxels[0], NORMALIZERS[name](voxels, RECIPE))
    assert np.array_equal(voxels, before)


def test_one_slice_does_not_change_another():
    """Fixed bounds: brightening one voxel elsewhere leaves a slice's pixels alone under the window."""
    voxels = volume()
    brighter = voxels.copy()
    brighter[1] += 500
    params, other = fit_window(voxels, RECIPE), fit_window(brighter, RECIPE)
    assert np.array_equal(apply_intensity(voxels[0], params), apply_intensity(brighter[0], other))


def test_the_catalog_knows_every_normalizer():
    assert set(NORMALIZER_NAMES) == set(NORMALIZERS)
