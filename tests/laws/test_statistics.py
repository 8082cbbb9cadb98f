"""Laws of the statistics: parts merge to the whole to the last digit, and every bin counts what plain comparison counts."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvar_data.errors import ShardSetError
from medvar_data.harmonize.histogram import count, is_countable
from medvar_data.harmonize.measure import bin_counts, clipped_shares, values_inside
from medvar_data.shard.statistics import statistics
from medvar_data.shard.tally import BY, SLICE_VALUES, SliceCounts, merged, tally
from medvar_data.shardset.histograms import GREY_LEVELS, SOURCE_NUMBERS, edges_of_case
from medvar_data.shardset.schema import CASES_SCHEMA, SLICES_SCHEMA

SIDE = 4
NAMES = {"a": {1: "liver", 2: "spleen"}, "b": {1: "heart"}}
some = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
fractions = st.floats(0, 1)
sizes_mm = st.floats(0.01, 100)
volumes_mm3 = st.dictionaries(st.integers(1, 3), st.floats(0, 1e7), max_size=3)


@st.composite
def a_case(draw, number):
    """A row of cases.parquet and its rows of slices.parquet, as far as statistics read them."""
    group = {
        "collection": draw(st.sampled_from("ab")), "modality": draw(st.sampled_from(["CT", "MR"])), "region": "chest",
        "sequence": draw(st.sampled_from(["", "T1"])), "split": draw(st.sampled_from(["train", "val"])),
    }  # fmt: skip
    has_label = draw(st.booleans())
    bins = {
        name: np.random.default_rng(draw(st.integers(0, 99))).integers(0, 1 << 40, size).tolist()
        for name, size in (
            ("histogram_source", SOURCE_NUMBERS), ("histogram_source_foreground", SOURCE_NUMBERS),
            ("histogram_slices", GREY_LEVELS), ("histogram_slices_foreground", GREY_LEVELS),
        )
    }  # fmt: skip
    floats = {
        name: draw(sizes_mm)
        for name in ("spacing_row_mm", "spacing_col_mm", "through_plane_mm", "low", "high", "removed_body_mm3", "body_mm2_median", "foreground_mm2_median")
    }  # fmt: skip
    case = {
        **group, **bins, **floats, "case": f"c{number}", "patient": f"p{draw(st.integers(0, 2))}", "volume": f"v{draw(st.integers(0, 3))}",
        "has_label": has_label, "n_bytes": draw(st.integers(0, 1 << 40)), "n_without_foreground": draw(st.integers(0, 9)),
        "n_emptied_by_cleanup": 0, "n_not_selected": 0, "source_rows": draw(st.integers(1, 600)), "source_columns": 7, "n_slices": 9,
        "removed_label_mm3": list(draw(volumes_mm3).items()), "label_mm3": list(draw(volumes_mm3).items()),
        "vanished_labels": draw(st.lists(st.integers(1, 3), unique=True)), "clipped_low": draw(fractions), "clipped_high": draw(fractions),
        "source_sha256": f"{number:064x}", "label_sha256": "", "license": "CC0-1.0", "license_confirmed": True,
    }  # fmt: skip
    slices = [
        {
            **group, "has_label": has_label, "foreground_pixels": draw(st.integers(0, 16)), "body_pixels": draw(st.integers(0, 16)),
            "label_pixels": list(draw(st.dictionaries(st.integers(1, 3), st.integers(1, 16), max_size=3)).items()),
            "image_size": draw(st.integers(1, 1 << 30)), "mask_size": 80,
        }
        for _ in range(draw(st.integers(1, 3)))
    ]  # fmt: skip
    return case, slices


@st.composite
def parts_of_a_set(draw):
    """Cases, and the number of the part that each is in."""
    cases = [draw(a_case(number)) for number in range(draw(st.integers(1, 6)))]
    return cases, [draw(st.integers(0, 2)) for _ in cases]


def table(rows, schema, names):
    return pa.table({name: pa.array([row[name] for row in rows], type=schema.field(name).type) for name in names})


def tally_of(cases):
    sums = SliceCounts()
    sums.add(table([row for _, slices in cases for row in slices], SLICES_SCHEMA, SLICE_VALUES))
    return tally(sums.sums, table([case for case, _ in cases], CASES_SCHEMA, cases[0][0]))


class TestMerging:
    @some
    @given(parts_of_a_set(), st.randoms(use_true_random=False))
    def test_the_merge_of_parts_equals_the_whole_in_any_order(self, drawn, random):
        cases, of = drawn
        parts = [tally_of([c for c, n in zip(cases, of, strict=True) if n == part]) for part in sorted({*of})]
        random.shuffle(parts)
        shuffled = list(cases)
        random.shuffle(shuffled)
        whole, again = tally_of(cases), merged(parts)
        assert again == whole
        wanted = statistics(whole, NAMES, SIDE)
        assert statistics(again, NAMES, SIDE).equals(wanted)
        assert statistics(tally_of(shuffled), NAMES, SIDE).equals(wanted)

    @some
    @given(parts_of_a_set())
    def test_nothing_is_neutral(self, drawn):
        whole = tally_of(drawn[0])
        assert merged([{}, whole, {}]) == whole

    @some
    @given(parts_of_a_set())
    def test_sums_are_those_of_the_rows(self, drawn):
        cases, _ = drawn
        rows = statistics(tally_of(cases), NAMES, SIDE).to_pylist()
        assert sum(row["cases"] for row in rows) == len(cases)
        assert sum(row["source_bytes"] for row in rows) == sum(case["n_bytes"] for case, _ in cases)
        pixels = sum(n for _, slices in cases for row in slices for _, n in row["label_pixels"])
        assert sum(label["pixels"] for row in rows for label in row["labels"]) == pixels
        for row in rows:
            mine = [case for case, _ in cases if all(case[name] == row[name] for name in BY)]
            assert row["histogram_source"] == np.sum([case["histogram_source"] for case in mine], axis=0).tolist()
            assert {label["name"] for label in row["labels"]} <= {*NAMES[row["collection"]].values(), ""}

    @some
    @given(a_case(1))
    def test_parts_that_share_a_case_are_refused(self, case):
        with pytest.raises(ShardSetError, match=r"[ab]/c1 is in two of the parts"):
            merged([tally_of([case]), tally_of([case])])


kinds = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32])


@st.composite
def voxels_and_bounds(draw):
    """Voxels, many of them on edges of bins, and the bounds of the 8-bit scale."""
    kind, rng = draw(kinds), np.random.default_rng(draw(st.integers(0, 9999)))
    low, width = draw(st.floats(-500, 500)), draw(st.sampled_from([0.01, 1.0, 100.0, 640.0, 3.0e4]))
    modality = draw(st.sampled_from(["CT", "MR"]))
    edges = edges_of_case(modality, low, low + width)
    near = np.concatenate([rng.choice(edges, 40), rng.normal(low, width, 40), [low, low + width]])
    if kind is not np.float32:
        near = np.clip(np.rint(near), np.iinfo(kind).min, np.iinfo(kind).max)
    return near.astype(kind).reshape(2, 1, -1), modality, low, low + width


class TestBins:
    @some
    @given(voxels_and_bounds())
    def test_each_bin_holds_what_comparison_with_its_edges_gives(self, drawn):
        voxels, modality, low, high = drawn
        edges = edges_of_case(modality, low, high)
        reached = [int((voxels.astype(np.float64) >= edge).sum()) for edge in edges]
        wanted = -np.diff([voxels.size, *reached, 0])
        assert bin_counts(voxels, edges).tolist() == wanted.tolist()
        if is_countable(voxels.dtype):
            assert bin_counts(count(voxels), edges).tolist() == wanted.tolist()

    @some
    @given(voxels_and_bounds())
    def test_what_is_clipped_is_what_lies_outside_the_bounds(self, drawn):
        voxels, _, low, high = drawn
        wide = voxels.astype(np.float64)
        wanted = (int((wide < low).sum()) / voxels.size, int((wide > high).sum()) / voxels.size)
        assert clipped_shares(voxels, low, high) == wanted
        if is_countable(voxels.dtype):
            assert clipped_shares(count(voxels), low, high) == wanted

    @some
    @given(voxels_and_bounds(), st.integers(0, 99))
    def test_the_voxels_inside_a_label_are_counted_as_they_are(self, drawn, seed):
        voxels, modality, low, high = drawn
        label = np.random.default_rng(seed).integers(0, 3, voxels.shape, dtype=np.uint8)
        edges = edges_of_case(modality, low, high)
        assert bin_counts(values_inside(voxels, label), edges).tolist() == bin_counts(voxels[label > 0], edges).tolist()

    def test_a_range_that_is_tiny_beside_its_place(self):
        voxels = np.nextafter(np.float32(1e6), np.float32(2e6)) + np.arange(64, dtype=np.float32) / 16
        edges = edges_of_case("MR", 1e6, 1e6 + 1)
        reached = [int((voxels.astype(np.float64) >= edge).sum()) for edge in edges]
        assert bin_counts(voxels, edges).tolist() == (-np.diff([voxels.size, *reached, 0])).tolist()
