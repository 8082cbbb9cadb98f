"""Laws of every stage of harmonize, on whatever numbers hypothesis finds: counts, window, percentiles, cleanup, cropping, resize.

Each stage decides (fit) and does (apply); what it decided is in the case's row, and `replay` makes the same pixels from it.
"""

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays
from skimage.filters import threshold_li
from support.builders import case_of, pairs_spec, small_recipe, spaced

from medvar_data.catalog.collection import LabelSpec
from medvar_data.catalog.load import load_collection
from medvar_data.catalog.recipe import load_recipe
from medvar_data.demo.phantoms import write_phantoms
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import resize_image, resize_mask
from medvar_data.harmonize.body import apply_body, find_body, fit_body
from medvar_data.harmonize.components import bounding_box, label_components
from medvar_data.harmonize.harmonize import HarmonizedSlice, harmonize, recorded_params, replay
from medvar_data.harmonize.histogram import count, li_threshold, moments, percentiles
from medvar_data.harmonize.intensity import IntensityParams, apply_intensity, fit_percentiles
from medvar_data.harmonize.label_dust import remove_label_dust, remove_slice_dust
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.readers.scan import Scan, compact
from medvar_data.records import Geometry, LabelVolume, Volume
from medvar_data.sources.tree import open_tree

REAL = Path(__file__).parents[3] / "shared" / "real"
PAPER = load_recipe("paper")
OWN = dataclasses.replace(
    pairs_spec(), slice_axis="axial", labels=tuple(LabelSpec(n, n, n, f"structure {n}") for n in range(1, 9))
)
SIZES = some.integers(1, 40)
quick = settings(max_examples=60, deadline=None)


def volumes(dtype: type, most: int = 8) -> some.SearchStrategy[np.ndarray]:
    return arrays.arrays(dtype, arrays.array_shapes(min_dims=3, max_dims=3, max_side=most))


class TestHistogram:
    @quick
    @given(some.one_of(volumes(np.int16), volumes(np.uint8), volumes(np.uint16)), some.floats(0, 100))
    def test_what_is_read_off_counts_is_what_numpy_finds(self, voxels, percent):
        counts = count(voxels)
        found = moments(counts)
        exact = voxels.astype(np.float64)
        assert counts.total == voxels.size
        assert (found.minimum, found.maximum) == (voxels.min(), voxels.max())
        assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
        assert found.std == pytest.approx(exact.std(), rel=1e-9, abs=1e-9)
        assert percentiles(counts, [percent, 0.5, 99.5]) == [*np.percentile(exact, [percent, 0.5, 99.5])]

    @quick
    @given(volumes(np.int16))
    def test_memory_order_changes_nothing(self, voxels):
        for view in (np.asfortranarray(voxels), voxels[::-1, :, ::-1], voxels.transpose(2, 0, 1)):
            assert np.array_equal(count(view).n, count(voxels).n)

    @quick
    @given(volumes(np.int16), some.integers(-5, 5), some.integers(-32768, 32767))
    def test_replacing_voxels_is_counting_again(self, voxels, threshold, value):
        chosen = voxels > threshold
        replaced = np.where(chosen, np.int16(value), voxels)
        assert np.array_equal(count(voxels).replaced(voxels[chosen], value).n, count(replaced).n)

    @quick
    @given(arrays.arrays(np.int16, some.integers(2, 500), elements=some.integers(-900, 4000)))
    def test_lis_threshold_is_that_of_the_voxels(self, values):
        if values.min() < values.max():
            assert li_threshold(count(values)) == threshold_li(values.astype(np.float64))

    def test_more_voxels_than_a_32_bit_float_counts(self):
        voxels = np.zeros((1 << 24) + 5, dtype=np.uint8)
        assert count(voxels).n[0] == voxels.size


class TestComponents:
    @quick
    @given(volumes(np.uint8, 6).map(lambda v: v % 3))
    def test_runs_count_every_voxel_once(self, labels):
        parts = label_components(labels, 26)
        assert np.array_equal(parts.n_voxels, np.bincount(parts.ids.reshape(-1)))
        for n in range(1, len(parts.n_voxels)):
            chosen = np.arange(len(parts.n_voxels)) == n
            assert np.array_equal(np.sort(parts.voxels_of(chosen)), np.flatnonzero(parts.ids.reshape(-1) == n))
            assert parts.ids.reshape(-1)[parts.one_voxel()[n]] == n

    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize(
        ("line", "dtype", "n_voxels"),
        [([1, 0, 1], bool, [1, 1, 1]), ([1, 0, 1, 0, 1], bool, [2, 1, 1, 1]), ([1, 0, 2, 2, 0], np.uint8, [2, 1, 2])],
    )
    def test_a_single_line_may_hold_several(self, axis, line, dtype, n_voxels):
        """cc3d raises at the mask `x.x`; a thin image must not take its worker down."""
        shape = [len(line) if a == axis else 1 for a in range(3)]
        parts = label_components(np.array(line, dtype=dtype).reshape(shape), 26)
        assert parts.n_voxels.tolist() == n_voxels
        assert parts.ids.shape == tuple(shape)

    @quick
    @given(volumes(np.uint8, 6).map(lambda v: v // 200))
    def test_the_box_is_tight(self, labels):
        box = bounding_box(labels)
        assert (box is None) == (not labels.any())
        if box is not None:
            crop = labels[box]
            assert crop.sum() == labels.sum()
            assert all(np.take(crop, side, axis).any() for axis in range(3) for side in (0, -1))


class TestIntensity:
    @quick
    @given(
        arrays.arrays(np.int16, (1, 50)),
        some.floats(-2000, 2000),
        some.floats(1, 4000),
    )
    def test_the_window_is_monotone_and_bounded_by_its_own_bounds(self, values, low, width):
        params = IntensityParams("window", low, low + width)
        ordered = np.sort(values)
        out = apply_intensity(ordered, params)
        assert (np.diff(out[0].astype(int)) >= 0).all()
        assert (out[ordered <= low] == 0).all()
        assert (out[ordered >= low + width] == 255).all()

    @quick
    @given(arrays.arrays(np.int16, (5, 40)), some.integers(0, 39))
    def test_a_pixel_does_not_hang_on_its_neighbours(self, values, column):
        params = IntensityParams("window", -160.0, 240.0)
        alone = apply_intensity(values[:, column : column + 1], params)
        assert np.array_equal(apply_intensity(values, params)[:, column : column + 1], alone)

    @quick
    @given(some.one_of(volumes(np.int16), volumes(np.uint16)), some.integers(0, 2000))
    def test_percentiles_are_of_the_non_zero_voxels(self, voxels, n_zeros):
        nonzero = voxels[voxels != 0].astype(np.float64)
        padded = np.concatenate([voxels.reshape(-1), np.zeros(n_zeros, dtype=voxels.dtype)])
        if nonzero.size and np.ptp(np.percentile(nonzero, [0.5, 99.5])) > 0:
            params = fit_percentiles(padded, PAPER)
            assert (params.low, params.high) == tuple(np.percentile(nonzero, [0.5, 99.5]))
            assert params == fit_percentiles(count(padded), PAPER)
        else:
            with pytest.raises(CaseRejected) as caught:
                fit_percentiles(padded, PAPER)
            assert caught.value.reason is Reason.CONSTANT_IMAGE


class TestResize:
    @quick
    @given(some.integers(1, 90), some.integers(1, 90), SIZES, some.integers(0, 2**32 - 1))
    def test_nearest_never_invents_a_label(self, height, width, side, seed):
        mask = np.random.default_rng(seed).integers(0, 255, (height, width)).astype(np.uint8)
        out = resize_mask(mask, side)
        assert set(np.unique(out)) <= set(np.unique(mask))
        assert np.array_equal(out.T, resize_mask(np.ascontiguousarray(mask.T), side))

    @quick
    @given(some.integers(2, 90), some.integers(2, 90), some.integers(2, 40), some.floats(0, 1), some.booleans())
    def test_an_edge_stays_on_the_same_pixel_in_image_and_mask(self, height, width, side, where, across):
        """At every ratio (shrink, enlarge, mixed): the resized image crosses the middle where the mask changes."""
        mask = np.zeros((height, width), dtype=np.uint8)
        line = mask.T if across else mask
        edge = 1 + round(where * (len(line) - 2))
        line[edge:] = 1
        image = resize_image(mask.astype(np.float32) * 100, side)
        labels = resize_mask(mask, side)
        image, labels = (image.T, labels.T) if across else (image, labels)
        true_edge = edge * side / len(line)
        assert abs(float(np.sum(1 - image[:, 0] / 100)) - true_edge) < max(0.26, 0.26 * side / len(line))
        assert abs(int(np.sum(labels[:, 0] == 0)) - true_edge) <= max(0.5, 0.5 * side / len(line)) + 1e-9

    @quick
    @given(some.integers(1, 90), some.integers(1, 90), SIZES, some.integers(0, 2**32 - 1))
    def test_each_axis_shrinks_by_area_and_enlarges_linearly(self, height, width, side, seed):
        """Per axis, the shrinking one first; an explicit matrix an axis gives the same picture."""
        image = np.random.default_rng(seed).normal(0, 100, (height, width)).astype(np.float32)
        rows, columns = axis_weights(height, side), axis_weights(width, side)
        assert np.allclose(resize_image(image, side), rows @ image @ columns.T, atol=0.05)

    @quick
    @given(some.integers(1, 60), some.integers(1, 60), SIZES, some.integers(0, 2**32 - 1))
    def test_resampling_stays_between_the_extremes(self, height, width, side, seed):
        image = np.random.default_rng(seed).integers(-1024, 3000, (height, width)).astype(np.int16)
        out = resize_image(image, side)
        assert out.dtype == np.int16
        assert image.min() <= out.min() <= out.max() <= image.max()


def axis_weights(size: int, side: int) -> np.ndarray:
    """Rows of weights that resample one axis: overlap of pixels to shrink, neighbouring centres to enlarge."""
    weights = np.zeros((side, size))
    for n in range(side):
        if size > side:
            first, last = n * size / side, (n + 1) * size / side
            for m in range(math.floor(first), min(size, math.ceil(last))):
                weights[n, m] = (min(m + 1, last) - max(m, first)) * side / size
        else:
            at = (n + 0.5) * size / side - 0.5
            low = math.floor(at)
            for m, weight in ((low, 1 - (at - low)), (low + 1, at - low)):
                weights[n, min(size - 1, max(0, m))] += weight
    return weights


def bodies(centres: list[tuple[int, int]], radii: list[int], depth: int = 6) -> np.ndarray:
    """Discs of soft tissue in air, [z, row, column] HU, with a table below them all."""
    rows, columns = np.mgrid[:120, :160]
    inside = np.zeros((120, 160), dtype=bool)
    for (row, column), radius in zip(centres, radii, strict=True):
        inside |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    hu = np.where(inside, 40, -1000)
    hu[112:114, 10:150] = 300
    return np.repeat(hu[None], depth, axis=0).astype(np.int16)


class TestBody:
    step = (2.0, 2.0, 3.0)

    def find(self, stack: np.ndarray, modality: str = "CT"):
        params = fit_body(stack, modality, PAPER)
        return find_body(stack, params, self.step, modality, PAPER), params

    @settings(max_examples=25, deadline=None)
    @given(
        some.lists(some.tuples(some.integers(20, 85), some.integers(20, 140)), min_size=1, max_size=4),
        some.lists(some.integers(9, 18), min_size=4, max_size=4),
    )
    def test_every_body_part_above_the_threshold_stays(self, centres, radii):
        """Legs, arms beside a trunk, heads: whatever lies in parts above 2 % of the largest keeps every voxel."""
        stack = bodies(centres, radii[: len(centres)])
        body, params = self.find(stack)
        none = np.zeros(stack.shape[1:], dtype=np.uint8)
        for z, picture in enumerate(stack):
            out = apply_body(picture, body.hull[z], none, params)
            assert np.array_equal(out[:110], picture[:110])
            assert (out[112:114, 10:150] == -1024).all()
        assert body.removed_mm3 == pytest.approx(2 * 140 * 6 * 12.0)

    @staticmethod
    def lying(depth: int, taper: float = 1.0) -> np.ndarray:
        """Two legs that narrow towards the feet, on a solid table 16 mm thick under a mattress of foam."""
        rows, columns = np.mgrid[:120, :160]
        stack = np.full((depth, 120, 160), -1000, dtype=np.int16)
        for z in range(depth):
            radius = 24 - 8 * taper * z / max(1, depth - 1)
            for centre in (50, 110):
                stack[z][np.hypot(rows - 55, columns - centre) < radius] = 40
        stack[:, 100:108, 20:140] = 150
        return stack

    def test_a_solid_table_goes_and_both_legs_stay(self):
        """16 mm of board are a fifth of what lies on it: no size tells it from a leg, its shape and place do."""
        stack = self.lying(40)
        body, _ = self.find(stack)
        assert body.hull[:, :90][stack[:, :90] > 0].all()
        assert body.n_components == 2
        assert (body.n_spurious == 8 * 120).all()
        assert body.removed_mm3 == pytest.approx(40 * 8 * 120 * 12.0)

    def test_a_board_between_two_parts_stays(self):
        """Neither under all nor over all: it could be a part of the patient."""
        stack = np.roll(self.lying(40), -16, axis=1)
        rows, columns = np.mgrid[:120, :160]
        for z, picture in enumerate(stack):
            picture[np.hypot(rows - 106, columns - 80) < 11 - z / 10] = 40
        body, _ = self.find(stack)
        assert (body.n_components, body.removed_mm3) == (4, 0.0)

    def test_of_two_boards_both_go(self):
        stack = self.lying(40)
        stack[:, 112:118, 30:130] = 300
        assert (self.find(stack)[0].n_spurious == 8 * 120 + 6 * 100).all()

    def test_on_its_side_the_table_goes_too(self):
        """A patient lying on the face: the board is on the other side."""
        body, _ = self.find(np.ascontiguousarray(self.lying(40)[:, ::-1]))
        assert (body.n_spurious == 8 * 120).all()

    @pytest.mark.parametrize(
        "change",
        [
            lambda s: s[:12],  # too short to tell a board from a leg
            lambda s: np.concatenate([s[:-3], np.where(s[-3:] == 150, -1000, s[-3:])]),  # not in every slice
            lambda s: np.where((np.arange(160) > 60) & (s == 150), -1000, s),  # under a part of the patient: an arm?
            lambda s: np.stack([np.where(p == 150, -1000, p) + np.roll(np.where(p == 150, 1150, 0), -z // 4, 0)
                                for z, p in enumerate(s)]),
        ],
    )  # fmt: skip
    def test_in_doubt_it_stays(self, change):
        body, _ = self.find(np.ascontiguousarray(change(self.lying(40))).astype(np.int16))
        assert body.n_components == 3
        assert body.removed_mm3 == 0

    def test_in_a_picture_inside_the_body_nothing_is_spurious(self):
        """A field of view cropped to the heart: lung vessels beyond the hull of what is solid are the patient."""
        rows, columns = np.mgrid[:120, :160]
        heart = (np.hypot(rows - 60, columns) < 50) | ((columns > 20) & (columns < 60))
        vessel = (rows > 50) & (rows < 56) & (columns > 140) & (columns < 146)
        stack = np.repeat(np.where(heart | vessel, 40, -850)[None], 6, axis=0).astype(np.int16)
        assert self.find(stack)[0].hull.all()
        stack[:, :10] = -850  # the body ends below the upper border: two borders are left
        assert (self.find(stack)[0].n_spurious == np.count_nonzero(vessel)).all()

    def test_a_part_inside_a_ring_that_goes_is_kept(self):
        """A head in a thin holder that closes around it: the holder goes, the head stays."""
        rows, columns = np.mgrid[:120, :160]
        far = np.hypot(rows - 60, columns - 80)
        head, holder = far < 15, (far > 30) & (far < 31.5)
        stack = np.repeat(np.where(head | holder, 40, -1000)[None], 6, axis=0).astype(np.int16)
        recipe = dataclasses.replace(PAPER, body_opening_mm=0.0, body_min_fraction=0.5)
        body = find_body(stack, fit_body(stack, "CT", recipe), self.step, "CT", recipe)
        assert np.array_equal(body.mask, np.repeat(head[None], 6, axis=0))
        assert (body.n_spurious == np.count_nonzero(holder)).all()

    @quick
    @given(volumes(np.int16, 7), some.sampled_from(["CT", "MR"]))
    def test_any_volume_is_taken_and_its_account_is_right(self, stack, modality):
        body, params = self.find(stack, modality)
        outside = (stack > params.threshold) & ~body.hull
        assert np.array_equal(body.n_spurious, outside.sum(axis=(1, 2)))
        assert body.removed_mm3 == pytest.approx(outside.sum() * 12.0)

    @quick
    @given(volumes(np.int16, 7), some.sampled_from(["CT", "MR"]), some.permutations(range(3)))
    def test_memory_order_and_flips_in_memory_change_nothing(self, stack, modality, order):
        stored = np.ascontiguousarray(stack.transpose(order)[::-1])
        view = stored[::-1].transpose(np.argsort(order))
        (one, params), (other, again) = self.find(stack, modality), self.find(view, modality)
        assert params == again
        assert np.array_equal(one.hull, other.hull)
        assert np.array_equal(one.mask, other.mask)


class TestDust:
    @quick
    @given(volumes(np.uint8, 7).map(lambda v: v % 4), some.integers(1, 12), some.booleans())
    def test_what_goes_is_small_and_told_in_mm3(self, labels, least, keep_largest):
        recipe = dataclasses.replace(
            PAPER, label_min_voxels=least, label_min_mm3=least * 6.0, label_keep_largest=keep_largest
        )
        clean = remove_label_dust(labels, (1.0, 2.0, 3.0), recipe)
        gone = clean.voxels != labels
        assert not clean.voxels[gone].any()
        for value in range(1, 4):
            assert clean.removed_mm3.get(value, 0.0) == pytest.approx(6.0 * np.count_nonzero(gone & (labels == value)))
            if keep_largest and (labels == value).any():
                assert (clean.voxels == value).any()
        left = label_components(clean.voxels, 26).n_voxels[1:]
        assert keep_largest or (left >= least).all()

    @quick
    @given(arrays.arrays(np.uint8, (9, 9)).map(lambda v: v % 3), some.integers(1, 9))
    def test_slice_dust_sees_diagonals_as_joined(self, mask, least):
        recipe = dataclasses.replace(PAPER, label_slice_min_pixels=least, label_slice_min_mm2=float(least))
        clean = remove_slice_dust(mask, (1.0, 1.0, 1.0), recipe).voxels[0]
        for value in (1, 2):
            n, _, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=8)
            large = sum(int(s) for s in stats[1:n, cv2.CC_STAT_AREA] if s >= least)
            assert np.count_nonzero(clean == value) == large


def scan_of(image: np.ndarray, label: np.ndarray | None, steps: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> Scan:
    geometry = Geometry(image.shape, spaced(*steps))
    labels = None if label is None else LabelVolume(label.astype(np.uint8), geometry, "l" * 64)
    return Scan(Volume(compact(image), geometry, "i" * 64), labels)


def same(one: tuple[HarmonizedSlice, ...], other: tuple[HarmonizedSlice, ...]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a.image, b.image)
        and np.array_equal(a.mask, b.mask)
        and (a.z, a.source_index, a.body_pixels, a.label_pixels) == (b.z, b.source_index, b.body_pixels, b.label_pixels)
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A recipe for scans of a few voxels."""
    return small_recipe(tmp_path_factory.mktemp("recipe"))


class TestWhole:
    @settings(max_examples=40, deadline=None)
    @given(volumes(np.uint8, 9).map(lambda v: v % 3), some.sampled_from(["CT", "MR"]), some.integers(0, 2**32 - 1))
    def test_the_annotated_slices_are_kept_and_replayed(self, tiny, label, modality, seed):
        """Cropping keeps exactly the annotated slices; the row makes their pixels again; what vanished is flagged."""
        image = np.random.default_rng(seed).integers(-500, 900, label.shape).astype(np.int16)
        if image.min() == image.max() or not label.any():
            return
        scan, case = scan_of(image, label), case_of(Path("/"), "x.nii", modality=modality)
        try:
            volume = harmonize(scan, case, OWN, tiny)
        except CaseRejected as error:
            if error.reason not in (Reason.NO_FOREGROUND, Reason.CONSTANT_IMAGE):
                raise
            return
        kept = [s.z for s in volume.slices]
        annotated = np.flatnonzero(label.any(axis=(0, 1)))
        assert set(kept) <= set(annotated)
        assert volume.case.n_emptied_by_cleanup + len(kept) + volume.case.n_without_foreground == label.shape[2]
        if not volume.case.removed_label_mm3 and min(label.shape[:2]) <= tiny.side:
            assert kept == [int(z) for z in annotated]
        seen = {v for s in volume.slices for v in s.label_pixels}
        assert set(volume.case.vanished_labels) == set(volume.case.label_mm3) - seen
        assert same(replay(scan, case, OWN, tiny, recorded_params(vars(volume.case)), kept), volume.slices)
        assert same(replay(scan, case, OWN, tiny, recorded_params(vars(volume.case)), kept[-1:]), volume.slices[-1:])

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
    @pytest.mark.parametrize("modality", ["CT", "MR"])
    def test_every_type_gives_the_same_pixels(self, tiny, dtype, modality):
        values = np.random.default_rng(0).integers(0, 120, (20, 18, 4))
        label = np.zeros(values.shape, dtype=np.uint8)
        label[4:15, 4:15, 1:3] = 1
        case = case_of(Path("/"), "x.nii", modality=modality)
        wanted = harmonize(scan_of(values.astype(np.int16), label), case, OWN, tiny)
        found = harmonize(scan_of(values.astype(dtype), label), case, OWN, tiny)
        assert same(found.slices, wanted.slices)
        assert found.case == wanted.case

    def test_fractions_keep_their_value(self, tiny):
        values = np.random.default_rng(0).normal(100, 30, (20, 18, 4)).astype(np.float32)
        label = np.zeros(values.shape, dtype=np.uint8)
        label[4:15, 4:15, 1:3] = 1
        case = case_of(Path("/"), "x.nii")
        scan = scan_of(values, label)
        volume = harmonize(scan, case, OWN, tiny)
        assert (volume.case.low, volume.case.high) == tuple(np.percentile(values, [0.5, 99.5]).astype(float))
        assert volume.case.statistics.std == pytest.approx(float(values.astype(np.float64).std()))
        assert same(
            replay(scan, case, OWN, tiny, recorded_params(vars(volume.case)), [s.z for s in volume.slices]),
            volume.slices,
        )

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (np.where(np.arange(60).reshape(5, 4, 3) == 7, np.nan, 1.0), Reason.NAN_VOXELS),
            (np.where(np.arange(60).reshape(5, 4, 3) == 7, np.inf, 1.0), Reason.NAN_VOXELS),
            (np.full((5, 4, 3), 12, dtype=np.int16), Reason.CONSTANT_IMAGE),
            (np.full((5, 4, 3), 1.5, dtype=np.float32), Reason.CONSTANT_IMAGE),
        ],
    )
    def test_what_is_no_image_has_a_reason(self, values, reason):
        with pytest.raises(CaseRejected) as caught:
            scan_of(values, None)
        assert caught.value.reason is reason

    @pytest.mark.parametrize("modality", ["CT", "MR"])
    def test_a_single_slice_is_a_volume(self, tiny, modality):
        image = np.random.default_rng(1).integers(-200, 300, (30, 22, 1)).astype(np.int16)
        label = np.ones(image.shape, dtype=np.uint8)
        volume = harmonize(scan_of(image, label), case_of(Path("/"), "x.nii", modality=modality), OWN, tiny)
        assert [s.z for s in volume.slices] == [0]
        assert volume.slices[0].foreground_pixels == tiny.side**2


def replays(collection: str, folder: Path, most: int) -> int:
    """Harmonize some cases of a collection and replay each from its row; returns how many."""
    spec, n = load_collection(collection), 0
    for case in ingest(spec, open_tree(folder), b"").cases[:most]:
        scan = read_scan(case, spec)
        volume = harmonize(scan, case, spec, PAPER)
        again = replay(scan, case, spec, PAPER, recorded_params(vars(volume.case)), [s.z for s in volume.slices])
        assert same(again, volume.slices), case.case
        n += 1
    return n


@pytest.mark.parametrize(
    ("cell", "collection"), [("chest-ct", "msd-lung"), ("heart-mr", "acdc"), ("brain-mr", "brats2023")]
)
def test_phantoms_replay_from_their_rows(tmp_path, cell, collection):
    folders = write_phantoms(tmp_path, patients=1, cells=[cell], broken=False)
    assert replays(collection, folders.get(collection) or next(iter(folders.values())), 1)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the real scans are not here")
@pytest.mark.parametrize(("collection", "folder"), [("acdc", "acdc"), ("msd-hippocampus", "msd"), ("chaos", "chaos")])
def test_real_scans_replay_from_their_rows(collection, folder):
    assert replays(collection, REAL / folder, 2)
