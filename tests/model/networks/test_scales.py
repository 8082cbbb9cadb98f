"""The order of tokens: lengths, starts, the mask, the smoothers' table."""

from itertools import pairwise

import pytest
import torch

from medvar_model.config import PAPER_SIDES, TOKENIZERS
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.scales import ScaleSchedule, as_map, as_sequence

PAPER = ScaleSchedule(PAPER_SIDES)


def test_the_papers_scales_end_where_published():
    ends = [start + length for start, length in zip(PAPER.starts, PAPER.lengths, strict=True)]
    assert ends == [1, 5, 14, 30, 55, 91, 155, 255, 424, 680]
    assert (PAPER.n, PAPER.total) == (10, 680)


def test_the_papers_ten_scales_use_the_smoothers_that_the_released_weights_were_trained_with():
    assert PAPER.smoothers(4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


@pytest.mark.parametrize("sides", [config.scale_sides for config in TOKENIZERS.values()])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_smoothers_run_from_coarse_to_fine_and_all_are_used(sides, n):
    table = ScaleSchedule(sides).smoothers(n)
    assert list(table) == sorted(table)
    assert set(table) == set(range(n))


def test_with_as_many_smoothers_as_scales_each_has_its_own():
    assert ScaleSchedule((1, 2, 3, 4)).smoothers(4) == (0, 1, 2, 3)
    assert PAPER.smoothers(10) == tuple(range(10))


def test_a_position_sees_its_own_scale_and_the_coarser_ones_only():
    visible = ScaleSchedule((1, 2, 3)).visible()
    assert visible[0].tolist() == [True] + [False] * 13
    assert visible[4].tolist() == [True] * 5 + [False] * 9
    assert visible[5:].all()


def test_the_paper_mask_lets_286434_pairs_through():
    assert int(PAPER.visible().sum()) == 286_434


@pytest.mark.parametrize("sides", [(1, 2, 3), (1, 8), (1, 2, 3, 4, 8), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)])
def test_pieces_see_what_the_mask_lets_through(sides):
    schedule = ScaleSchedule(sides)
    ends, visible = schedule.pieces(), schedule.visible()
    assert ends[-1] == schedule.total
    for start, end in pairwise(ends):
        assert visible[start:end, :end].all()
        assert not visible[:end, end:].any()


def test_split_and_cat_are_inverse():
    ids = torch.arange(2 * 680).view(2, 680)
    maps = PAPER.split(ids)
    assert [m.shape[1] for m in maps] == list(PAPER.lengths)
    assert torch.equal(torch.cat(maps, 1), ids)


def test_levels_count_the_scales():
    assert PAPER.levels().bincount().tolist() == list(PAPER.lengths)


def test_sequences_read_maps_row_by_row():
    maps = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    assert torch.equal(as_map(as_sequence(maps)), maps)
    assert as_sequence(maps)[0, 5].tolist() == maps[0, :, 1, 1].tolist()


@pytest.mark.parametrize("sides", [(), (1,), (2, 3), (1, 3, 3), (1, 4, 2)])
def test_sides_that_do_not_grow_from_one_are_refused(sides):
    with pytest.raises(ConfigMismatch, match="scale_sides"):
        ScaleSchedule(sides)
