"""Laws of the slice geometry: orientation by the affine alone, image and mask never part, no label is invented."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import (
    canonical,
    check_affine,
    plan_slices,
    resize_image,
    resize_mask,
    resolve_spacing,
    slices_first,
    voxel_sizes,
)
from medvar_data.records import Geometry

SHAPE = (5, 6, 7)
STEPS = (1.0, 2.0, 3.0)
TURNS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def turned(voxels: np.ndarray, axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, Geometry]:
    """Store a RAS volume (1 x 2 x 3 mm) with permuted and flipped axes, its affine telling the truth."""
    ornt = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)], dtype=float)
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]], dtype=float), ornt)
    stored = nib.orientations.apply_orientation(voxels, back)
    affine = np.diag([*STEPS, 1.0]) @ nib.orientations.inv_ornt_aff(back, voxels.shape)
    return np.ascontiguousarray(stored), Geometry(stored.shape, affine)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)


@pytest.mark.parametrize(("axes", "signs"), TURNS)
def test_slices_do_not_depend_on_how_the_volume_is_stored(volume, axes, signs):
    stored, geometry = turned(volume, axes, signs)
    plan = plan_slices(geometry, "axial")
    stack = slices_first(canonical(stored, plan), plan.axis)
    assert np.array_equal(stack, slices_first(volume, 2))
    assert plan.spacing_mm == (2.0, 1.0, 3.0)
    assert plan.n_slices == SHAPE[2]
    assert "".join(nib.aff2axcodes(plan.affine)) == "RAS"


@pytest.mark.parametrize(("axes", "signs"), TURNS)
def test_source_index_finds_the_stored_slice(volume, axes, signs):
    stored, geometry = turned(volume, axes, signs)
    plan = plan_slices(geometry, "axial")
    stack = slices_first(canonical(stored, plan), plan.axis)
    for z in range(plan.n_slices):
        there = np.take(stored, plan.source_index(z), axis=plan.stored_axes[plan.axis])
        assert sorted(there.ravel()) == sorted(stack[z].ravel())


@pytest.mark.parametrize(("axes", "signs"), TURNS)
def test_canonical_affine_keeps_every_voxel_where_it_was(volume, axes, signs):
    stored, geometry = turned(volume, axes, signs)
    plan = plan_slices(geometry, "axial")
    turned_back = canonical(stored, plan)
    for index in ((0, 0, 0), (4, 5, 6), (1, 4, 2)):
        place = plan.affine @ [*index, 1]
        at = np.rint(np.linalg.inv(geometry.affine) @ place).astype(int)[:3]
        assert stored[tuple(at)] == turned_back[index]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_radiological_convention(axis):
    """A mark at the patient's right/front/top corner lands in the corner where a radiologist looks for it."""
    names = {2: ("anterior", "right"), 1: ("superior", "right"), 0: ("superior", "anterior")}
    volume = np.zeros(SHAPE, dtype=np.int16)
    corner = [0, 0, 0]
    for word in names[axis]:
        corner[{"right": 0, "anterior": 1, "superior": 2}[word]] = -1
    corner[axis] = 2
    volume[tuple(corner)] = 9
    assert slices_first(volume, axis)[2, 0, 0] == 9


def test_native_axis_is_the_coarsest_stored_one():
    oblique = np.array([[0, 0, -4, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)
    plan = plan_slices(Geometry((8, 9, 3), oblique), "native")
    assert (plan.axis, plan.n_slices, plan.spacing_mm[2]) == (0, 3, 4.0)
    assert plan_slices(Geometry((8, 9, 3), oblique), "axial").n_slices == 9


def test_native_axis_of_an_isotropic_volume_is_the_last_stored():
    plan = plan_slices(Geometry((8, 9, 3), np.diag([1.0, 1.0, 1.0, 1.0])), "native")
    assert plan.n_slices == 3


@pytest.mark.parametrize(("size", "side"), [((7, 9), 4), ((3, 5), 8), ((40, 10), 16), ((512, 300), 256), ((1, 1), 4)])
def test_mask_resize_is_exact_centre_nearest_and_invents_nothing(size, side):
    mask = np.random.default_rng(1).integers(0, 200, size).astype(np.uint8)
    out = resize_mask(mask, side)
    for row, column in product(range(side), range(side)):
        y, x = ((2 * row + 1) * size[0]) // (2 * side), ((2 * column + 1) * size[1]) // (2 * side)
        assert out[row, column] == mask[y, x]
    assert set(np.unique(out)) <= set(np.unique(mask))


@pytest.mark.parametrize(
    ("rows", "columns", "side"), [(64, 64, 32), (48, 48, 32), (20, 20, 32), (64, 20, 32), (20, 48, 32)]
)
def test_an_edge_stays_on_the_same_pixel_in_image_and_mask(rows, columns, side):
    """Half-plane edges at every position: thresholding the resized image gives the resized mask, to one pixel."""
    for axis, length in ((0, rows), (1, columns)):
        for edge in range(2, length - 1):
            mask = np.zeros((rows, columns), dtype=np.uint8)
            mask[(slice(edge, None), slice(None)) if axis == 0 else (slice(None), slice(edge, None))] = 1
            image = mask.astype(np.float32) * 100
            line = np.moveaxis(resize_image(image, side), axis, 0)[:, 3]
            labels = np.moveaxis(resize_mask(mask, side), axis, 0)[:, 3]
            # the resized image crosses 50 exactly where the true edge lies, in output pixels
            true_edge = edge * side / length
            crossing = np.sum(1 - line / 100)
            assert abs(crossing - true_edge) < 0.26, (axis, edge)
            assert abs(int(np.sum(labels == 0)) - true_edge) <= 0.5, (axis, edge)


@pytest.mark.parametrize("size", [(64, 64), (48, 20), (7, 100), (32, 32)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_constant_stays_constant(size, dtype):
    image = np.full(size, -731, dtype=dtype)
    out = resize_image(image, 32)
    assert out.dtype == dtype
    assert np.array_equal(out, np.full((32, 32), -731, dtype=dtype))


@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
def test_integer_shrinking_takes_area_means(ratio):
    image = np.random.default_rng(2).normal(size=(16 * ratio, 16 * ratio)).astype(np.float32)
    means = image.reshape(16, ratio, 16, ratio).mean(axis=(1, 3))
    assert np.allclose(resize_image(image, 16), means, atol=1e-5)


def test_mixed_axes_shrink_before_they_enlarge():
    """One axis shrunk by area, the other enlarged linearly: equal to doing the two one after the other."""
    image = np.random.default_rng(3).normal(size=(64, 8)).astype(np.float32)
    shrunk = image.reshape(16, 4, 8).mean(axis=1)
    assert np.allclose(resize_image(image, 16), resize_image(shrunk, 16), atol=1e-5)


def test_resize_leaves_its_input_alone(volume):
    before = volume.copy()
    resize_image(volume[:, :, 0], 3)
    resize_mask(volume[:, :, 0], 3)
    assert np.array_equal(before, volume)


def test_resize_takes_views_with_negative_strides(volume):
    stack = slices_first(volume, 2)
    assert np.array_equal(resize_image(stack[0], 8), resize_image(np.ascontiguousarray(stack[0]), 8))


class TestResolveSpacing:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    pixdim = (1.5, 1.5, 10.0)

    def test_agreement_changes_nothing(self):
        affine, steps = resolve_spacing(self.affine, (1.0, 1.0, 1.0), "reject")
        assert affine is self.affine
        assert steps == ()

    def test_pixdim_holds(self):
        affine, steps = resolve_spacing(self.affine, self.pixdim, "pixdim")
        assert voxel_sizes(affine) == self.pixdim
        assert np.array_equal(np.sign(affine[:3, :3]), np.sign(self.affine[:3, :3]))
        assert steps == ("spacing_from_pixdim",)
        assert voxel_sizes(self.affine) == (1.0, 1.0, 1.0)

    def test_affine_holds(self):
        affine, steps = resolve_spacing(self.affine, self.pixdim, "affine")
        assert np.array_equal(affine, self.affine)
        assert steps == ("spacing_from_affine",)

    def test_a_quarrel_nobody_settles_is_rejected(self):
        with pytest.raises(CaseRejected) as caught:
            resolve_spacing(self.affine, self.pixdim, "reject")
        assert caught.value.reason is Reason.SPACING_DISAGREES
        assert "spacing_from" in caught.value.detail


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([0.0, 1.0, 1.0, 1.0]), Reason.SPACING_IMPLAUSIBLE),
        (np.diag([1.0, 1.0, 101.0, 1.0]), Reason.SPACING_IMPLAUSIBLE),
        (np.diag([1.0, np.nan, 1.0, 1.0]), Reason.SPACING_IMPLAUSIBLE),
        (np.diag([1.0, np.inf, 1.0, 1.0]), Reason.SPACING_IMPLAUSIBLE),
        (np.eye(4) + np.array([[0, 0.5, 0, 0], *[[0] * 4] * 3]), Reason.NONORTHONORMAL),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), Reason.NONORTHONORMAL),
    ],
)
def test_check_affine_rejects(affine, reason):
    with pytest.raises(CaseRejected) as caught:
        check_affine(affine)
    assert caught.value.reason is reason


def test_check_affine_accepts_rotation_and_a_trace_of_shear():
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.5, 0.5, 5.0)
    check_affine(affine)
    check_affine(np.eye(4) + np.array([[0, 0.04, 0, 0], *[[0] * 4] * 3]))
