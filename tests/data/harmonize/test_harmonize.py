"""Laws of harmonize: a pure function; every slice kept shows foreground; every number it reports can be counted again."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.builders import case_of, pairs_spec, scan, small_recipe, spaced

from medvar_data.catalog.collection import labels_of
from medvar_data.catalog.load import load_collection
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import resize_mask
from medvar_data.harmonize.dependencies import wanted_inputs
from medvar_data.harmonize.harmonize import harmonize, label_table
from medvar_data.harmonize.intensity import IntensityParams, apply_intensity
from medvar_data.readers.scan import Scan
from medvar_data.records import Geometry, HarmonizedVolume, LabelVolume, Volume
from medvar_data.storage.codec import PNG, pixel_digest
from medvar_data.workspace.case_file import read_case_file, read_pictures, read_slice_index, write_kept

MUCH_IS_DUST = {"label_slice_min_pixels": 9, "label_slice_min_mm2": 99.0}
ACDC, OWN = load_collection("acdc"), pairs_spec()
IMAGE, LABEL = scan((30, 26, 7), seed=3)
LABEL[:, :, 0] = 0
LABEL[:, :, 6] = 0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return small_recipe(tmp_path_factory.mktemp("recipe"))


def make(image: np.ndarray = IMAGE, label: np.ndarray | None = LABEL, affine: np.ndarray | None = None) -> Scan:
    affine = spaced(1.5, 1.5, 4.0) if affine is None else affine
    geometry = Geometry(image.shape, affine)
    labels = None if label is None else LabelVolume(label.astype(np.uint16), geometry, "l" * 64, ("read",))
    return Scan(Volume(image, geometry, "i" * 64, ("scaled",)), labels)


def run(scan_: Scan, recipe, spec=ACDC, **changes) -> HarmonizedVolume:
    return harmonize(scan_, case_of(Path("/"), "x.nii", collection=spec.name, **changes), spec, recipe)


def same(a: HarmonizedVolume, b: HarmonizedVolume) -> bool:
    pictures = all(
        np.array_equal(x.image, y.image) and np.array_equal(x.mask, y.mask)
        for x, y in zip(a.slices, b.slices, strict=True)
    )
    return pictures and a.case == b.case


def test_the_same_scan_gives_the_same_pixels_and_bytes(tmp_path, recipe):
    one, other = run(make(), recipe), run(make(), recipe)
    assert same(one, other)
    case = case_of(tmp_path, "x.nii")
    for name, volume in (("a", one), ("b", other)):
        write_kept(tmp_path / name, volume, case, wanted_inputs(case, ACDC, recipe))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_input_is_left_alone(recipe):
    image, label = IMAGE.copy(), LABEL.astype(np.uint16)
    image.setflags(write=False)
    label.setflags(write=False)
    run(make(image, label), recipe)
    assert np.array_equal(image, IMAGE)


def test_the_slices_with_annotation_are_kept_in_rising_order(recipe):
    volume = run(make(), recipe)
    assert [s.z for s in volume.slices] == [1, 2, 3, 4, 5]
    case = volume.case
    assert (case.n_slices, case.n_kept, case.n_without_foreground, case.n_emptied_by_cleanup) == (7, 5, 2, 0)
    assert case.n_slices == case.n_kept + case.n_without_foreground + case.n_emptied_by_cleanup


def test_every_pixel_follows_from_the_recorded_numbers(recipe):
    """Replay: bounds of the row, nearest mask, radiological convention, from the source voxels alone."""
    volume = run(make(), recipe)
    params = IntensityParams(volume.case.normalizer, volume.case.low, volume.case.high)
    inside = IMAGE[IMAGE != 0]
    assert (params.low, params.high) == tuple(np.percentile(inside, [0.5, 99.5]))
    for s in volume.slices:
        assert np.array_equal(s.mask, resize_mask(LABEL[:, :, s.source_index].T[::-1, ::-1], 32))
        nearest = apply_intensity(resize_mask(IMAGE[:, :, s.source_index].T[::-1, ::-1], 32), params)
        assert np.corrcoef(nearest.ravel(), s.image.ravel())[0, 1] > 0.9
        assert s.foreground_pixels == np.count_nonzero(s.mask) == sum(s.label_pixels.values())
        assert s.label_pixels == {v: int((s.mask == v).sum()) for v in (1, 2, 3)}
        assert 0 < s.body_pixels <= s.image.size


def test_storage_order_changes_nothing_but_source_index(recipe):
    flipped = make(IMAGE[::-1, :, ::-1], LABEL[::-1, :, ::-1], spaced(1.5, 1.5, 4.0) @ np.array(
        [[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, -1, 6], [0, 0, 0, 1]], dtype=float))  # fmt: skip
    one, other = run(make(), recipe), run(flipped, recipe)
    for a, b in zip(one.slices, other.slices, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.mask, b.mask)
        assert (a.z, b.source_index) == (b.z, 6 - a.source_index)
    assert other.case.orientation == "LAI"


def test_native_against_axial(recipe):
    """Short-axis heart stored along x: native slices along it, axial across."""
    affine = np.array([[0, 0, 8, 0], [1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]], dtype=float)
    native = run(make(affine=affine), recipe)
    assert (native.case.plane, native.case.n_slices, native.case.through_plane_mm) == ("sagittal", 7, 8.0)
    axial = run(make(affine=affine), recipe, dataclasses.replace(ACDC, slice_axis="axial"))
    assert (axial.case.plane, axial.case.n_slices, axial.case.through_plane_mm) == ("axial", 26, 1.5)
    assert (axial.case.spacing_row_mm, axial.case.spacing_col_mm) == (1.5, 8.0)


def test_a_case_without_label_keeps_slices_by_body_area(recipe):
    image = IMAGE.copy()
    image[:, :, 3] = 0
    image[3:5, 3:5, 3] = 500
    volume = run(make(image, None), recipe)
    assert [s.z for s in volume.slices] == [0, 1, 2, 4, 5, 6]
    assert volume.case.label_digest == ""
    assert all(s.foreground_pixels == 0 and not s.mask.any() for s in volume.slices)


def test_nothing_to_keep_is_a_reason(recipe):
    empty = np.zeros((30, 26, 7), dtype=np.int16)
    empty[3:5, 3:5, :] = np.arange(4).reshape(2, 2, 1) + 100
    with pytest.raises(CaseRejected, match=r"fills at most \d\.\d\d% of a slice; wanted 5\.00%") as caught:
        run(make(empty, None), recipe)
    assert caught.value.reason is Reason.NO_FOREGROUND
    dust = np.zeros_like(LABEL)
    dust[4, 4, 2] = 1
    with pytest.raises(
        CaseRejected, match=r"of 1 annotated voxels \(9 mm³\) .*9 pixels and 99 mm² a slice\) took 9 mm³"
    ) as caught:
        run(make(IMAGE, dust), dataclasses.replace(recipe, **MUCH_IS_DUST, label_keep_largest=False))
    assert caught.value.reason is Reason.NO_FOREGROUND


def test_a_structure_that_vanishes_is_flagged(recipe):
    """Where the recipe keeps no largest component; with `paper`'s rule a label of one voxel stays."""
    label = LABEL.copy()
    label[label == 3] = 2
    label[10, 10, 3] = 3
    dusty = dataclasses.replace(recipe, label_slice_min_pixels=2, label_slice_min_mm2=3.0)
    volume = run(make(IMAGE, label), dataclasses.replace(dusty, label_keep_largest=False))
    assert volume.case.vanished_labels == (3,)
    assert volume.case.removed_label_mm3 == {3: pytest.approx(9.0)}
    assert volume.case.removed_label_share() == {3: 1.0}
    kept = run(make(IMAGE, label), dusty)
    assert kept.case.vanished_labels == ()
    assert kept.case.removed_label_mm3 == {}
    assert volume.case.label_mm3 == {v: pytest.approx(np.count_nonzero(label == v) * 9.0) for v in (1, 2, 3)}


def test_a_slice_whose_label_does_not_survive_the_resize_is_not_kept(recipe):
    """A line one pixel wide between the rows that 256 -> 8 takes: no mask pixel is left, so the slice would lie."""
    image = np.random.default_rng(0).integers(100, 900, (256, 256, 3)).astype(np.int16)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[40:200, 40:200, 1] = 1
    label[40:200, 255, 2] = 1
    coarse = dataclasses.replace(recipe, side=8)
    volume = run(make(image, label, spaced(1, 1, 1)), coarse)
    assert [s.z for s in volume.slices] == [1]
    assert volume.case.n_emptied_by_cleanup == 1
    assert all(s.foreground_pixels > 0 for s in volume.slices)


def test_published_values_become_contiguous_ids(recipe):
    label = LABEL.astype(np.uint16)
    label[LABEL == 2], label[LABEL == 3] = 5, 6
    volume = run(make(IMAGE, label), recipe, OWN)
    for s in volume.slices:
        published = resize_mask(label[:, :, s.source_index].T[::-1, ::-1], 32)
        assert np.array_equal(s.mask, np.where(published > 1, 2, published))
    assert set(volume.case.label_mm3) == {1, 2}


def test_a_value_the_collection_does_not_define(recipe):
    label = LABEL.astype(np.uint16)
    label[5, 5, 5] = 500
    with pytest.raises(CaseRejected, match="500") as caught:
        run(make(IMAGE, label), recipe)
    assert caught.value.reason is Reason.LABEL_VALUES


@pytest.mark.parametrize("name", ["acdc", "mmwhs", "chaos"])
def test_label_tables_are_8_bit_and_complete(name):
    spec = load_collection(name)
    for layout in spec.layouts:
        table = label_table(spec, layout.id)
        assert table.dtype == np.uint8
        assert set(np.unique(table)) == {0, *(v.id for v in labels_of(spec, layout.id))}
        assert table[0] == 0


def test_ct_bounds_are_the_recipe_and_its_table_goes(recipe):
    rows, columns = np.mgrid[:60, :60]
    hu = np.where((rows - 24) ** 2 + (columns - 30) ** 2 < 400, 40, -1000)
    hu[55:57, 5:55] = 900
    image = np.repeat(hu.T[:, ::-1, None], 6, axis=2).astype(np.int16)
    label = (image == 40).astype(np.uint8)
    volume = run(make(image, label, spaced(2, 2, 2)), dataclasses.replace(recipe, body_opening_mm=3.0), modality="CT")
    assert (volume.case.low, volume.case.high, volume.case.normalizer) == (-160.0, 240.0, "window")
    assert volume.case.removed_body_mm3 == pytest.approx(100 * 6 * 8.0)
    assert all(s.image.max() <= 128 for s in volume.slices)
    assert volume.case.statistics.maximum == 900.0


def test_removed_body_is_what_was_taken_from_the_image(recipe):
    """A label on the far end of the table protects its voxels; they are neither changed nor reported."""
    rows, columns = np.mgrid[:60, :60]
    hu = np.where((rows - 24) ** 2 + (columns - 30) ** 2 < 400, 40, -1000)
    hu[55:57, 5:55] = 200
    image = np.repeat(hu.T[:, ::-1, None], 6, axis=2).astype(np.int16)
    label = (image == 40).astype(np.uint8)
    label[5:15][image[5:15] == 200] = 2
    wide = dataclasses.replace(recipe, body_opening_mm=3.0, side=60)
    volume = run(make(image, label, spaced(2, 2, 2)), wide, modality="CT")
    assert volume.case.removed_body_mm3 == pytest.approx(80 * 6 * 8.0)
    for s in volume.slices:
        assert np.count_nonzero(s.mask == 2) == 20
        assert (s.image[s.mask == 2] == 230).all()
        assert not (s.image[55:57] > 128)[s.mask[55:57] == 0].any()


def test_statistics_are_of_the_whole_image(recipe):
    found = run(make(), recipe).case.statistics
    assert (found.minimum, found.maximum) == (IMAGE.min(), IMAGE.max())
    assert found.mean == pytest.approx(IMAGE.mean())
    assert found.p50 == pytest.approx(np.percentile(IMAGE, 50))


def test_a_case_file_gives_back_what_went_in(tmp_path, recipe):
    volume, case = run(make(), recipe), case_of(tmp_path, "x.nii", "y.nii")
    write_kept(tmp_path / "c.parquet", volume, case, wanted_inputs(case, ACDC, recipe))
    file = read_case_file(tmp_path / "c.parquet")
    assert (file.collection, file.case, file.harmonized, file.reject) == ("own", "one", volume.case, None)
    assert file.inputs == wanted_inputs(case, ACDC, recipe)
    rows = read_slice_index(tmp_path / "c.parquet")
    pictures = read_pictures(tmp_path / "c.parquet", [4, 0, 2])
    assert sorted(pictures) == [0, 2, 4]
    for n, (image, mask) in pictures.items():
        assert np.array_equal(PNG.decode(image), volume.slices[n].image)
        assert np.array_equal(PNG.decode(mask), volume.slices[n].mask)
        assert rows[n]["image_sha256"] == pixel_digest(volume.slices[n].image)
        assert dict(rows[n]["label_pixels"]) == volume.slices[n].label_pixels


def test_pictures_are_found_across_row_groups(tmp_path, recipe):
    image, label = scan((16, 14, 50), seed=4)
    volume = run(make(image, label), recipe)
    case = case_of(tmp_path, "x.nii")
    write_kept(tmp_path / "c.parquet", volume, case, wanted_inputs(case, ACDC, recipe))
    for wanted in ([0], [15, 16], [49, 3], [20, 45], [49, 3, 31, 32], range(50)):
        for n, (picture, _) in read_pictures(tmp_path / "c.parquet", wanted).items():
            assert np.array_equal(PNG.decode(picture), volume.slices[n].image)
