"""Which cases show one scan: what proves it, what does not, and laws of the links."""

import time
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvar_data.shard.duplicates import edges_between, edges_table, find_links
from medvar_data.shard.unions import Unions
from medvar_data.shardset.schema import CASES_SCHEMA
from medvar_data.storage.codec import pixel_digest

SIDE = 32
FULL = SIDE * SIDE // 2  # body pixels of a slice with content


def case_row(number: int, **values: object) -> dict[str, object]:
    """A case that shares nothing with any other."""
    return {
        "collection": "a", "case": f"c{number:05d}", "patient": f"p{number}", "source_sha256": f"file{number}",
        "source_shape": [20, 20, 10], "minimum": 0.0, "p0_5": 1.0, "p50": 50.0, "p99_5": 90.0, "maximum": 100.0,
        "mean": 40.0 + number / 7, "std": 9.0, "n_kept": 10, "n_not_selected": 0, **values,
    }  # fmt: skip


def tables(
    cases: list[dict[str, object]], pictures: dict[int, list[str]], body: int = FULL
) -> tuple[pa.Table, pa.Table]:
    """Tables of cases, and of slices by the digests of their pixels."""
    owners = [number for number, digests in pictures.items() for _ in digests]
    slices = pa.table({
        "__case": pa.array(owners, pa.int32()),
        "image_sha256": pa.array([d for digests in pictures.values() for d in digests], pa.string()),
        "body_pixels": pa.array([body] * len(owners), pa.int32()),
    })  # fmt: skip
    columns = {name: pa.array([c[name] for c in cases], CASES_SCHEMA.field(name).type) for name in case_row(0)}
    return pa.table(columns), slices


def links(cases, pictures=None, body=FULL, named=()):
    found = find_links(*tables(cases, pictures or {}, body), SIDE, named)
    return [(x.first, x.second, x.evidence, x.exact) for x in found]


def test_nothing_in_common():
    assert links([case_row(n) for n in range(5)], {n: [f"{n}-{z}" for z in range(10)] for n in range(5)}) == []
    assert links([]) == []


def test_the_same_file_and_the_same_volume_of_it():
    cases = [case_row(n, source_sha256="x", mean=40.0) for n in range(4)]
    assert links(cases) == [(0, n, "source_digest", True) for n in (1, 2, 3)]  # a star, not all pairs


def test_two_volumes_of_one_file_are_no_copies_but_belong_together():
    one_patient = [case_row(n, source_sha256="x", patient="p") for n in range(4)]
    assert links(one_patient) == []
    assert links([case_row(n, source_sha256="x") for n in range(3)]) == [
        (0, 1, "source_digest", False), (0, 2, "source_digest", False),
    ]  # fmt: skip


def test_channels_of_a_copied_file_are_joined_channel_by_channel():
    cases = [case_row(2 * p + c, source_sha256="x", patient=f"p{p}", mean=40.0 + c) for p in (0, 1) for c in (0, 1)]
    assert links(cases) == [(0, 2, "source_digest", True), (1, 3, "source_digest", True)]


def test_a_scan_packed_anew_has_the_same_statistics():
    same = {"mean": 40.25}
    assert links([case_row(0, **same), case_row(1, **same), case_row(2)]) == [(0, 1, "statistics", False)]
    assert links([case_row(0, **same, patient="p"), case_row(1, **same, patient="p")]) == []


@pytest.mark.parametrize(
    "values",
    [
        {"source_shape": [9, 10, 11]},  # a few voxels
        {"std": 0.0, "minimum": 40.0, "p0_5": 40.0, "p50": 40.0, "p99_5": 40.0, "maximum": 40.0},  # one value
        {"minimum": 0.0, "p0_5": 0.0, "p50": 0.0, "p99_5": 1.0, "maximum": 1.0},  # a mask
        {"std": float("nan")},
        {"maximum": float("inf")},
    ],
)
def test_statistics_that_many_scans_have_prove_nothing(values):
    assert links([case_row(n, mean=40.0, **values) for n in range(3)]) == []


@pytest.mark.parametrize("name", ["minimum", "maximum", "mean", "std", "p0_5", "p50", "p99_5", "source_shape"])
def test_statistics_must_agree_in_all(name):
    other = [20, 10, 20] if name == "source_shape" else 60.5
    assert links([case_row(0, mean=40.0), case_row(1, **{"mean": 40.0, name: other})]) == []


@pytest.mark.parametrize(
    ("shared", "n", "joined"),
    [(3, 100, True), (2, 100, False), (2, 10, True), (1, 10, False), (1, 5, True), (1, 1, True)],
)
def test_three_slices_or_a_fifth_of_the_smaller_case(shared, n, joined):
    pictures = {0: [f"s{z}" for z in range(n)], 1: [f"s{z}" if z < shared else f"t{z}" for z in range(2 * n)]}
    cases = [case_row(0, n_kept=n), case_row(1, n_kept=2 * n)]
    assert bool(links(cases, pictures)) == joined


def test_slices_that_a_condition_left_out_count_in_the_share():
    pictures = {0: ["s", "t"], 1: ["s", "u"]}
    assert links([case_row(n, n_kept=2, n_not_selected=0) for n in (0, 1)], pictures)
    assert not links([case_row(n, n_kept=2, n_not_selected=98) for n in (0, 1)], pictures)


def test_empty_flat_and_nearly_empty_slices_prove_nothing():
    cases = [case_row(n) for n in range(2)]
    flat = [pixel_digest(np.full((SIDE, SIDE), value, np.uint8)) for value in (0, 7, 255)]
    assert links(cases, {n: [*flat, *(f"{n}-{z}" for z in range(7))] for n in (0, 1)}) == []
    same = {n: [f"s{z}" for z in range(10)] for n in (0, 1)}
    assert links(cases, same, body=SIDE * SIDE // 20) == []
    assert links(cases, same, body=SIDE * SIDE // 20 + 1) == [(0, 1, "pixels", True)]
    assert links(cases, {n: ["s"] * 9 + [f"{n}"] for n in (0, 1)}) == []  # one picture, however often


def test_two_frames_of_a_patient_are_one_patient_already():
    frames = [case_row(n, patient="p") for n in (0, 1)]
    assert links(frames, {0: [f"s{z}" for z in range(10)], 1: [f"s{z}" for z in range(9)] + ["t"]}) == []
    assert links(frames, {n: [f"s{z}" for z in range(10)] for n in (0, 1)}) == [(0, 1, "pixels", True)]


def test_what_a_description_names():
    cases = [case_row(0, mean=39.0), case_row(1, mean=40.0), case_row(2, mean=40.0)]
    assert links(cases, named=[(2, 0), (1, 2)]) == [(1, 2, "statistics", False), (0, 2, "overlap", False)]


def test_the_strongest_evidence_names_the_pair_and_its_strength():
    cases = [case_row(n, source_sha256="x" if n < 2 else "y") for n in range(3)]
    pictures = {0: ["a", "b", "c", "d"], 1: ["a", "b", "c", "d"], 2: ["a", "b", "c", "z"]}
    found = find_links(*tables([{**c, "n_kept": 4} for c in cases], pictures), SIDE)
    assert [(x.first, x.second, x.evidence, x.exact, x.shared, x.share) for x in found] == [
        (0, 1, "pixels", True, 4, 1.0), (0, 2, "pixels", False, 3, 0.75),
    ]  # fmt: skip


@st.composite
def worlds(draw):
    n = draw(st.integers(2, 14))
    few = st.integers(0, 4)
    cases = [
        case_row(
            i, collection=draw(st.sampled_from("ab")), patient=f"p{draw(st.integers(0, n))}",
            source_sha256=f"f{draw(st.integers(0, 3 * n))}", mean=draw(st.integers(0, 3 * n)) / 3, n_kept=4,
        )
        for i in range(n)
    ]  # fmt: skip
    return cases, {i: [f"s{draw(few)}-{z}" for z in range(4)] for i in range(n)}


def sets_of(cases, found) -> set[frozenset[str]]:
    """What the links join, patients included."""
    joined = Unions(len(cases), ((x.first, x.second) for x in found))
    for a, b in combinations(range(len(cases)), 2):
        if cases[a]["patient"] == cases[b]["patient"]:
            joined.join(a, b)
    parts: dict[int, set[str]] = {}
    for number, case in enumerate(cases):
        parts.setdefault(joined.find(number), set()).add(case["case"])
    return {frozenset(part) for part in parts.values()}


@settings(max_examples=60, deadline=None)
@given(world=worlds(), order=st.randoms(use_true_random=False))
def test_links_do_not_hang_on_the_order_and_join_every_pair_that_shares(world, order):
    cases, pictures = world
    found = find_links(*tables(cases, pictures), SIDE)
    places = list(range(len(cases)))
    order.shuffle(places)
    shuffled = [cases[place] for place in places]
    again = find_links(*tables(shuffled, {new: pictures[old] for new, old in enumerate(places)}), SIDE)
    named = [(cases[x.first]["case"], cases[x.second]["case"], x.evidence, x.exact, x.shared, x.share) for x in found]
    assert named == [
        (shuffled[x.first]["case"], shuffled[x.second]["case"], x.evidence, x.exact, x.shared, x.share) for x in again
    ]
    sets = sets_of(cases, found)
    together = {name: part for part in sets for name in part}
    for a, b in combinations(range(len(cases)), 2):
        shares = len(set(pictures[a]) & set(pictures[b])) >= 1  # a fifth of four
        if shares or cases[a]["source_sha256"] == cases[b]["source_sha256"] or cases[a]["mean"] == cases[b]["mean"]:
            assert together[cases[a]["case"]] is together[cases[b]["case"]]
    assert len(found) < len(cases)


def test_a_slice_that_many_cases_hold_joins_all_of_them_and_takes_no_square_of_time():
    n, each = 4000, 20
    cases = [case_row(i, n_kept=each) for i in range(n)]
    started = time.process_time()
    found = find_links(*tables(cases, {i: [f"s{z}" for z in range(each)] for i in range(n)}), SIDE)
    assert [(x.first, x.second) for x in found] == [(0, i) for i in range(1, n)]
    assert time.process_time() - started < 20


def test_edges_name_both_cases_and_only_those_that_are_left():
    cases = [{**case_row(n, source_sha256="x", mean=40.0), "split": "val"} for n in range(3)]
    table = pa.Table.from_pylist([{**c, "n_kept": n_kept} for c, n_kept in zip(cases, (10, 10, 0), strict=True)])
    edges = edges_table(find_links(*tables(cases, {}), SIDE), table)
    assert edges.to_pylist() == [{
        "collection_a": "a", "case_a": "c00000", "split_a": "val", "collection_b": "a", "case_b": "c00001", "split_b": "val",
        "evidence": "source_digest", "exact": True, "shared_slices": 0, "share": 0.0,
        "similarity": 1.0,
    }]  # fmt: skip
    assert edges_between(edges, table.slice(0, 2)).num_rows == 1
    assert edges_between(edges, table.slice(1)).num_rows == 0
    assert edges_between(edges.slice(0, 0), table).num_rows == 0
