"""Laws of the cleanup: the table goes, the patient stays, what is annotated is never touched, every mm³ is accounted for."""

from dataclasses import replace

import numpy as np
import pytest
from support.builders import ball

from medvar_data.catalog.recipe import load_recipe
from medvar_data.harmonize.body import apply_body, find_body, fit_body, removed_mm3
from medvar_data.harmonize.label_dust import labels_to_spare, remove_label_dust, remove_slice_dust

RECIPE = load_recipe("paper")
STEP = (1.5, 1.5, 3.0)  # mm: row, column, slice
SIZE = (8, 160, 200)  # slices, rows, columns


def disc(row: float, column: float, height: float, width: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[2]]
    return ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1


def trunk() -> np.ndarray:
    """A trunk between two arms, one picture."""
    return disc(70, 100, 45, 60) | disc(75, 20, 13, 12) | disc(75, 180, 13, 12)


def legs() -> np.ndarray:
    return disc(70, 60, 30, 28) | disc(70, 140, 30, 28)


def table() -> np.ndarray:
    """A thin curved shell below, and a wire beside it."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[2]]
    curve = 128 + ((columns - 100) / 100) ** 2 * 6
    shell = (np.abs(rows - curve) <= 1) & (np.abs(columns - 100) < 80)
    return shell | ((rows - 150) ** 2 + (columns - 30) ** 2 <= 2)


def ct(body: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-20, 21, SIZE)
    hu = np.where(body, 40, -1000) + np.where(table(), 1200, 0)
    return (np.broadcast_to(hu, SIZE) + noise).astype(np.int16)


def cleaned(stack: np.ndarray, modality: str = "CT", labels: np.ndarray | None = None, recipe=RECIPE):
    labels = np.zeros(stack.shape, dtype=np.uint8) if labels is None else labels
    params = fit_body(stack, modality, recipe)
    body = find_body(stack, params, STEP, modality, recipe)
    pictures = [apply_body(*layers, params) for layers in zip(stack, body.hull, labels, strict=True)]
    return np.stack(pictures), body, params


@pytest.mark.parametrize(("part", "n_parts"), [(trunk, 3), (legs, 2)])
def test_the_table_goes_and_every_limb_stays(part, n_parts):
    stack = ct(part())
    out, body, params = cleaned(stack)
    patient = np.broadcast_to(part(), SIZE)
    assert np.array_equal(out[patient], stack[patient])
    assert not (out[np.broadcast_to(table(), SIZE)] > params.threshold).any()
    assert body.n_components == n_parts
    assert body.hull[patient].all()
    assert body.mask[patient].mean() > 0.97  # the opening takes the skin's corners
    assert not body.mask[~patient].any()


def test_removed_mm3_is_exactly_what_changed():
    stack = ct(trunk())
    out, body, params = cleaned(stack)
    gone = int(np.count_nonzero((stack > params.threshold) & (out <= params.threshold)))
    assert gone > 0
    assert body.removed_mm3 == pytest.approx(gone * 1.5 * 1.5 * 3.0)
    none = np.zeros(SIZE, dtype=np.uint8)
    assert removed_mm3(stack, body, none, params, STEP) == body.removed_mm3


def test_what_is_annotated_is_never_changed_and_not_reported():
    stack = ct(trunk())
    labels = np.broadcast_to(table(), SIZE).astype(np.uint8)
    labels[:, :, :100] = 0
    out, body, params = cleaned(stack, labels=labels)
    assert np.array_equal(out[labels > 0], stack[labels > 0])
    gone = int(np.count_nonzero((stack > params.threshold) & (out <= params.threshold)))
    assert removed_mm3(stack, body, labels, params, STEP) == pytest.approx(gone * 1.5 * 1.5 * 3.0)


def test_only_foreground_is_changed():
    stack = ct(trunk())
    out, _, params = cleaned(stack)
    changed = out != stack
    assert (stack[changed] > params.threshold).all()
    assert (out[changed] == params.fill).all()


def test_the_input_is_left_alone():
    stack, labels = ct(trunk()), np.broadcast_to(table(), SIZE).astype(np.uint8)
    before, labels_before = stack.copy(), labels.copy()
    cleaned(stack, labels=labels)
    remove_label_dust(labels, STEP, RECIPE)
    remove_slice_dust(labels[0], STEP, RECIPE)
    assert np.array_equal(stack, before)
    assert np.array_equal(labels, labels_before)


def test_cavities_belong_to_the_body():
    air = disc(60, 80, 15, 12)
    _, body, _ = cleaned(ct(trunk() & ~air))
    assert body.mask[:, air].all()
    assert body.hull[:, air].all()


def test_a_picture_full_of_air_keeps_everything():
    stack = np.full(SIZE, -1000, dtype=np.int16)
    out, body, _ = cleaned(stack)
    assert np.array_equal(out, stack)
    assert (body.n_components, body.removed_mm3) == (0, 0.0)


class TestMr:
    def test_a_crop_full_of_tissue_loses_nothing(self):
        stack = np.random.default_rng(1).integers(50, 800, (6, 40, 50)).astype(np.int16)
        out, body, _ = cleaned(stack, "MR")
        assert np.array_equal(out, stack)
        assert body.removed_mm3 == 0.0

    def test_a_crop_with_dark_holes_loses_nothing(self):
        stack = np.random.default_rng(1).integers(300, 800, (6, 40, 50)).astype(np.int16)
        stack[:, 10:20, 10:30] = 2
        stack[2, 0:5, 0:5] = 0
        out, body, _ = cleaned(stack, "MR")
        assert np.array_equal(out, stack)
        assert body.mask[:, 12:18, 12:28].all()

    def test_a_speck_outside_the_head_goes(self):
        stack = np.zeros(SIZE, dtype=np.int16)
        stack[:, disc(80, 90, 50, 50)] = 500
        stack[3, 5:8, 190:195] = 400
        out, body, _ = cleaned(stack, "MR")
        assert not out[3, 5:8, 190:195].any()
        assert body.removed_mm3 == pytest.approx(15 * 1.5 * 1.5 * 3.0)
        assert np.array_equal(out[:, disc(80, 90, 50, 50)], stack[:, disc(80, 90, 50, 50)])

    def test_values_below_zero_are_filled_with_the_least(self):
        stack = np.full(SIZE, -2.5, dtype=np.float32)
        stack[:, disc(80, 90, 50, 50)] = np.random.default_rng(0).normal(2, 0.3, int(disc(80, 90, 50, 50).sum()))
        stack[3, 5:8, 190:195] = 2
        out, _, params = cleaned(stack, "MR")
        assert params.fill == pytest.approx(-2.5)
        assert (out[3, 5:8, 190:195] == -2.5).all()

    @pytest.mark.parametrize("value", [0, 7, -3])
    def test_a_constant_volume_is_no_accident(self, value):
        stack = np.full((4, 10, 10), value, dtype=np.int16)
        out, _, _ = cleaned(stack, "MR")
        assert np.array_equal(out, stack)


class TestLabelDust:
    shape = (10, 30, 30)

    def labels(self, n_small: int) -> np.ndarray:
        labels = np.zeros(self.shape, dtype=np.uint8)
        labels[ball(self.shape, (5, 10, 10), 4.0)] = 1
        labels[0, 25, :n_small] = 1
        return labels

    @pytest.mark.parametrize(
        ("min_voxels", "min_mm3", "goes"),
        [(7, 14.0, True), (6, 14.0, False), (7, 12.0, False), (6, 12.0, False), (100, 1000.0, True)],
    )
    def test_both_thresholds_must_agree(self, min_voxels, min_mm3, goes):
        """Six voxels of 2 mm³: below both thresholds they go, at either of them they stay."""
        recipe = replace(RECIPE, label_min_voxels=min_voxels, label_min_mm3=min_mm3)
        labels = self.labels(6)
        clean = remove_label_dust(labels, (1.0, 1.0, 2.0), recipe)
        assert (clean.voxels[0, 25] == 0).all() == goes
        assert clean.removed_mm3 == ({1: pytest.approx(12.0)} if goes else {})
        assert np.array_equal(clean.voxels[1:], labels[1:])

    def test_the_largest_of_each_label_stays_whatever_its_size(self):
        labels = np.zeros(self.shape, dtype=np.uint8)
        labels[2, 3, 3:6] = 1
        labels[7, 3, 3:5] = 1
        labels[2, 20, 20] = 9
        clean = remove_label_dust(labels, (1.0, 1.0, 1.0), RECIPE)
        wanted = labels.copy()
        wanted[7] = 0
        assert np.array_equal(clean.voxels, wanted)
        assert clean.removed_mm3 == {1: 2.0}

    def test_of_two_equal_ones_exactly_one_stays_always_the_same(self):
        labels = np.zeros(self.shape, dtype=np.uint8)
        labels[2, 3, 3], labels[7, 3, 3] = 4, 4
        results = [remove_label_dust(labels.copy(), (1.0, 1.0, 1.0), RECIPE).voxels for _ in range(3)]
        assert all(int((r > 0).sum()) == 1 for r in results)
        assert all(np.array_equal(r, results[0]) for r in results)

    def test_without_keep_largest_everything_small_goes(self):
        labels = self.labels(6)
        clean = remove_label_dust(labels, (1.0, 1.0, 1.0), replace(RECIPE, label_keep_largest=False))
        assert not clean.voxels.any()
        assert clean.removed_mm3 == {1: float(labels.sum())}

    def test_diagonal_neighbours_are_one_piece(self):
        labels = np.zeros(self.shape, dtype=np.uint8)
        labels[0, 0, 0], labels[1, 1, 1], labels[2, 2, 2] = 1, 1, 1
        clean = remove_label_dust(labels, (1.0, 1.0, 1.0), RECIPE)
        assert np.array_equal(clean.voxels, labels)

    def test_neighbouring_labels_are_separate_pieces(self):
        labels = np.zeros(self.shape, dtype=np.uint8)
        labels[3:7, 5:20, 5:20] = 1
        labels[3, 5:20, 20] = 2
        labels[9, 0, 0] = 2
        recipe = replace(RECIPE, label_min_voxels=100, label_min_mm3=100.0)
        clean = remove_label_dust(labels, (1.0, 1.0, 1.0), recipe)
        assert clean.removed_mm3 == {2: 1.0}
        assert np.array_equal(clean.voxels[3:7], labels[3:7])

    def test_no_label_no_work(self):
        empty = np.zeros(self.shape, dtype=np.uint8)
        clean = remove_label_dust(empty, (1.0, 1.0, 1.0), RECIPE)
        assert not clean.voxels.any()
        assert clean.removed_mm3 == {}

    @pytest.mark.parametrize(
        ("min_pixels", "min_mm2", "goes"), [(5, 4.5, True), (4, 4.5, False), (5, 4.0, False), (3, 1.0, False)]
    )
    def test_slice_dust(self, min_pixels, min_mm2, goes):
        """Four pixels of 1 mm² in a slice 3 mm thick, joined at their corners."""
        recipe = replace(RECIPE, label_slice_min_pixels=min_pixels, label_slice_min_mm2=min_mm2)
        mask = np.zeros((20, 20), dtype=np.uint8)
        mask[range(2, 6), range(2, 6)] = 3
        clean = remove_slice_dust(mask, (0.5, 2.0, 3.0), recipe)
        assert clean.voxels.shape == (1, 20, 20)
        assert clean.voxels.any() != goes
        assert clean.removed_mm3 == ({3: pytest.approx(12.0)} if goes else {})

    def test_a_label_that_slices_would_lose_everywhere_is_spared(self):
        """Label 3 is thin in every slice; label 1 is large in one slice alone, the last that is looked at."""
        labels = np.zeros(self.shape, dtype=np.uint8)
        labels[:, 3, 3:5] = 3
        labels[:, 10, 10] = 1
        labels[-1, 10:16, 10:16] = 1
        recipe = replace(RECIPE, label_slice_min_pixels=10, label_slice_min_mm2=10.0)
        assert labels_to_spare(labels, [1, 3], STEP, recipe) == {3}
        spared = remove_slice_dust(labels[0], STEP, recipe, {3})
        assert set(np.unique(spared.voxels)) == {0, 3}
        assert set(spared.removed_mm3) == {1}
        assert not labels_to_spare(labels, [1, 3], STEP, replace(recipe, label_keep_largest=False))

    def test_what_is_left_and_what_went_add_up(self):
        labels = (np.random.default_rng(2).random(self.shape) > 0.8).astype(np.uint8) * 3
        labels[:, :, 15:] //= 3
        clean = remove_label_dust(labels, (1.0, 1.0, 2.0), replace(RECIPE, label_min_voxels=9, label_min_mm3=18.0))
        for value in (1, 3):
            gone = (np.count_nonzero(labels == value) - np.count_nonzero(clean.voxels == value)) * 2.0
            assert clean.removed_mm3.get(value, 0.0) == pytest.approx(gone)
        assert ((clean.voxels == labels) | (clean.voxels == 0)).all()
