"""The torch side of the stream: range, rows of conditions, sides, and one order for any number of workers."""

import pytest
import torch
from support.shard_sets import CONDITIONS, picture, write_shard_set

from medvar_model.errors import ShardSetMismatch
from medvar_model.loader import DataSpec, Loader, to_network
from medvar_model.machine.processes import Process

CPU = torch.device("cpu")
ALONE = Process(1, 0, CPU)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shard_set(tmp_path_factory.mktemp("set"), {"train": 22, "val": 7}))


def take(loader, start, steps):
    batches = loader.batches(start)
    taken = [next(batches) for _ in range(steps)]
    batches.close()
    return taken


def test_pixels_are_those_of_the_set_in_the_networks_range(shards):
    for examples in take(Loader(DataSpec(shards), "train", 32, 4, 0, ALONE), 0, 3):
        assert examples.images.shape == (4, 1, 32, 32)
        for process, key in enumerate(examples.keys):
            pixels = torch.from_numpy(picture(int(key.split("train")[1][:4]), 32))
            assert torch.equal(((examples.images[process, 0] + 1) * 127.5).round().to(torch.uint8), pixels)
            assert examples.conditions[process] == list(CONDITIONS).index(key[: key.index("-train")])


def test_the_networks_range_ends_at_one():
    ends = to_network(torch.tensor([[[0, 255], [255, 0]]], dtype=torch.uint8))
    assert ends.flatten().tolist() == [-1.0, 1.0, 1.0, -1.0]


def test_conditions_are_dense_rows_in_the_order_of_global_ids(shards, tmp_path):
    assert Loader(DataSpec(shards), "val", 32, 4, 0, ALONE).conditions == {"alpha-ct": 0, "beta-mr": 1, "gamma-mr": 2}
    mixed = {"zeta-ct": 2, "alpha-ct": 30, "beta-mr": 4}
    other = str(write_shard_set(tmp_path / "other", {"train": 6}, conditions=mixed))
    assert Loader(DataSpec(other), "train", 32, 2, 0, ALONE).conditions == {"zeta-ct": 0, "beta-mr": 1, "alpha-ct": 2}


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_resuming_change_nothing(shards, workers):
    whole = take(Loader(DataSpec(shards, workers=0), "train", 16, 6, 3, ALONE), 0, 9)
    rest = take(Loader(DataSpec(shards, workers=workers), "train", 16, 6, 3, ALONE), 4, 5)
    for a, b in zip(whole[4:], rest, strict=True):
        assert (a.step, a.keys) == (b.step, b.keys)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.conditions, b.conditions)


def test_ranks_share_a_global_batch_and_a_pass(shards):
    whole = take(Loader(DataSpec(shards), "train", 32, 6, 3, ALONE), 2, 1)[0]
    parts = [take(Loader(DataSpec(shards), "train", 32, 6, 3, Process(2, rank, CPU)), 2, 1)[0] for rank in (0, 1)]
    assert parts[0].keys + parts[1].keys == whole.keys
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    passed = [
        key
        for rank in (0, 1)
        for part in Loader(DataSpec(shards), "val", 32, 6, 3, Process(2, rank, CPU)).passes(2)
        for key in part.keys
    ]
    assert len(passed) == len(set(passed)) == 7


def test_a_mixture_shapes_training_but_not_validation(shards):
    spec = DataSpec(shards, mixture=(("gamma-mr", 1.0),))
    assert set(take(Loader(spec, "train", 32, 4, 0, ALONE), 0, 1)[0].conditions.tolist()) == {2}
    assert len(Loader(spec, "val", 32, 4, 0, ALONE)) == 7


def test_larger_slices_are_averaged_down_and_others_refused(shards):
    small = next(iter(Loader(DataSpec(shards), "val", 16, 7, 0, ALONE).passes(7)))
    full = next(iter(Loader(DataSpec(shards), "val", 32, 7, 0, ALONE).passes(7)))
    wanted = torch.nn.functional.avg_pool2d((full.images + 1) * 127.5, 2)
    assert ((small.images + 1) * 127.5 - wanted).abs().max() <= 0.5 + 1e-3
    with pytest.raises(ShardSetMismatch, match="images of 32 pixels a side, the network takes 64"):
        Loader(DataSpec(shards), "val", 64, 7, 0, ALONE)


def test_a_part_keeps_what_belongs_together(shards):
    examples = take(Loader(DataSpec(shards), "train", 32, 6, 3, ALONE), 0, 1)[0]
    part = examples.part(2, 5)
    assert len(part) == 3
    assert part.keys == examples.keys[2:5]
    assert torch.equal(part.conditions, examples.conditions[2:5])
