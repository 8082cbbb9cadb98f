"""Laws of the split: a pure function of groups and seed, each patient in one split, shares met in every collection."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvar_data.errors import MedvarError
from medvar_data.shard.splits import SplitSpec, assign_splits, leading_groups
from medvar_data.shardset.schema import SPLITS

pairs = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40).map(lambda n: f"p/{n}")), max_size=80)


@settings(max_examples=100, deadline=None)
@given(groups=pairs, seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_matter(groups, seed, order):
    spec = SplitSpec(seed=seed)
    shuffled = [*groups, *groups[:3]]
    order.shuffle(shuffled)
    splits = assign_splits(groups, spec)
    assert splits == assign_splits(shuffled, spec)
    assert set(splits) == {group for _, group in groups}
    assert set(splits.values()) <= set(SPLITS)


def test_a_patient_of_two_collections_has_one_split():
    groups = [(c, f"shared/{n}") for c in ("a", "b") for n in range(30)] + [("b", f"b/{n}") for n in range(30)]
    alone = assign_splits([("a", f"shared/{n}") for n in range(30)], SplitSpec())
    together = assign_splits(groups, SplitSpec())
    assert {g: together[g] for g in alone} == alone


@pytest.mark.parametrize("n", [3, 10, 31, 100, 1000])
def test_shares_are_met_in_each_collection(n):
    counts = Counter(assign_splits([("a", f"a/{i}") for i in range(n)], SplitSpec(val=0.1, test=0.2)).values())
    assert counts["val"] == max(1, round(n * 0.1))
    assert counts["test"] == max(1, round(n * 0.2))
    assert counts["train"] == n - counts["val"] - counts["test"]
    assert counts["train"] > 0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.45, 0.45), (0.5, 0.49), (0.9, 0.0)])
def test_few_patients_never_break_it(n, val, test):
    splits = assign_splits([("a", f"a/{i}") for i in range(n)], SplitSpec(val=val, test=test))
    assert len(splits) == n
    assert "train" in splits.values()


def test_zero_holds_nobody_out():
    assert set(assign_splits([("a", str(i)) for i in range(50)], SplitSpec(val=0.0, test=0.0)).values()) == {"train"}


def test_another_seed_gives_another_split():
    groups = [("a", f"a/{i}") for i in range(100)]
    assert assign_splits(groups, SplitSpec(seed=0)) != assign_splits(groups, SplitSpec(seed=1))


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.1), (0.9, 0.2), (float("nan"), 0.1)])
def test_fractions_that_leave_nobody_are_refused(val, test):
    with pytest.raises(MedvarError, match="below 1"):
        SplitSpec(val=val, test=test)


class TestJoinedGroups:
    links = st.lists(st.tuples(*[st.integers(0, 44).map(lambda n: f"p/{n}")] * 2), max_size=30)

    @settings(max_examples=150, deadline=None)
    @given(groups=pairs, joined=links, seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
    def test_no_joined_groups_straddle_in_whatever_order_they_come(self, groups, joined, seed, order):
        spec = SplitSpec(val=0.2, test=0.2, seed=seed)
        splits = assign_splits(groups, spec, joined)
        assert set(splits) == {group for _, group in groups}
        assert all(splits[a] == splits[b] for a, b in joined if a in splits and b in splits)
        shuffled, turned = [*groups], [(b, a) for a, b in joined]
        order.shuffle(shuffled)
        order.shuffle(turned)
        assert assign_splits(shuffled, spec, turned) == splits

    def test_joined_groups_count_as_the_first_and_move_nobody_else(self):
        ours = [("a", f"a/{n}") for n in range(30)]
        copies = [("b", f"b/{n}") for n in range(30)]
        alone = assign_splits(ours, SplitSpec())
        together = assign_splits([*ours, *copies], SplitSpec(), [(f"b/{n}", f"a/{n}") for n in range(30)])
        assert together == {**alone, **{f"b/{n}": alone[f"a/{n}"] for n in range(30)}}

    def test_links_to_strangers_and_to_oneself_change_nothing(self):
        groups = [("a", f"a/{n}") for n in range(30)]
        assert assign_splits(groups, SplitSpec(), [("a/1", "z/1"), ("a/2", "a/2")]) == assign_splits(
            groups, SplitSpec()
        )

    def test_a_chain_is_one(self):
        groups = [("a", f"a/{n}") for n in range(20)]
        leading = leading_groups(groups, [("a/5", "a/4"), ("a/4", "a/3"), ("a/9", "a/5")])
        assert {leading[f"a/{n}"] for n in (3, 4, 5, 9)} == {"a/3"}


class TestOfficialSplits:
    groups = tuple(("a", f"a/{n}") for n in range(30))

    def test_they_hold_where_asked_for_and_others_are_as_without(self):
        official = [("a/0", "test"), ("a/1", "validation"), ("a/2", "train"), ("a/3", ""), ("a/4", "fold-7")]
        plain = assign_splits(self.groups, SplitSpec())
        assert assign_splits(self.groups, SplitSpec(), official=official) == plain
        asked = assign_splits(self.groups, SplitSpec(respect_official=True), official=official)
        assert asked == {**plain, "a/0": "test", "a/1": "val", "a/2": "train"}

    @pytest.mark.parametrize(
        ("said", "wanted"),
        [(["train", "test"], "test"), (["validation", "test", "train"], "test"), (["train", "validation", ""], "val")],
    )
    def test_the_most_held_out_holds_for_the_patient_and_all_that_are_joined(self, said, wanted):
        official = [(f"a/{n}", name) for n, name in enumerate(said)]
        joined = [("a/0", "a/1"), ("a/1", "a/2"), ("a/2", "a/20")]
        splits = assign_splits(self.groups, SplitSpec(respect_official=True), joined, official)
        assert {splits[name] for name in ("a/0", "a/1", "a/2", "a/20")} == {wanted}
