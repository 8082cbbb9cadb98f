"""Shard sets in a plain DataLoader: by fork and by spawn, with any number of workers, resumed anywhere."""

import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from support.shard_sets import write_shard_set
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from medvar_data.errors import SpecError
from medvar_data.stream import StreamSpec, open_stream, plan
from medvar_model.datasets import SliceDataset, SliceStream

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata 0.11 calls it
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
MIXED = {"mixture": (("alpha-ct", 0.137), ("beta-mr", 0.274), ("gamma-mr", 0.589))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shard_set(tmp_path_factory.mktemp("set"), {"train": 23, "val": 7}))


def keys_of(loader, n):
    got = []
    for batch in loader:
        got.append(tuple(batch["key"]))
        if len(got) == n:
            return got
    return got


@pytest.mark.parametrize("extra", [{}, MIXED])
@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), (1, "fork"), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_a_data_loader_gives_the_streams_batches(shards, workers, context, extra):
    spec = StreamSpec(shards, batch_size=6, seed=2, masks=True, **extra)
    wanted = list(plan(spec, 7))
    options = {"num_workers": workers, "multiprocessing_context": context}
    assert keys_of(DataLoader(SliceStream(spec, steps=7), batch_size=6, **options), 9) == wanted
    whole = DataLoader(SliceStream(spec, steps=7, batched=True), batch_size=None, **options)
    assert keys_of(whole, 9) == wanted


def test_what_a_batch_holds(shards):
    spec = StreamSpec(shards, batch_size=5, masks=True)
    batch = next(iter(DataLoader(SliceStream(spec), batch_size=5)))
    own = next(open_stream(spec).batches())
    assert batch["image"].shape == batch["mask"].shape == (5, 1, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert np.array_equal(batch["image"][:, 0].numpy(), own.images)
    assert np.array_equal(batch["mask"][:, 0].numpy(), own.masks)
    assert batch["condition_id"].tolist() == own.condition_ids.tolist()
    assert "mask" not in next(iter(SliceStream(StreamSpec(shards))))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_state_fits_any_number_of_ranks_and_workers(shards, world):
    spec = StreamSpec(shards, batch_size=6, seed=2, **MIXED)
    wanted = list(plan(spec, 12))
    state = SliceStream(spec).state_after(5)
    parts = []
    for rank in range(world):
        mine = SliceStream(StreamSpec(shards, batch_size=6, seed=2, world=world, rank=rank, **MIXED))
        mine.load_state_dict(pickle.loads(pickle.dumps(state)))
        parts.append(keys_of(DataLoader(mine, batch_size=6 // world, num_workers=rank), 7))
    assert [sum(step, ()) for step in zip(*parts, strict=True)] == wanted[5:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 4])
def test_a_stateful_data_loader_goes_on_with_the_very_next_slice(shards, workers, taken):
    spec = StreamSpec(shards, batch_size=4, seed=3, **MIXED)
    wanted = list(plan(spec, 12))
    loader = StatefulDataLoader(SliceStream(spec, steps=12), batch_size=4, num_workers=workers)
    batches = iter(loader)
    first = [tuple(next(batches)["key"]) for _ in range(taken)]
    state = loader.state_dict()
    again = StatefulDataLoader(SliceStream(spec, steps=12), batch_size=4, num_workers=workers)
    again.load_state_dict(state)
    assert first + keys_of(again, 20) == wanted


def test_a_state_in_the_middle_of_a_batch(shards):
    spec = StreamSpec(shards, batch_size=6, seed=3)
    wanted = [key for step in plan(spec, 3) for key in step]
    stream = SliceStream(spec)
    samples = iter(stream)
    first = [next(samples)["key"] for _ in range(8)]
    rest = SliceStream(spec, steps=3)
    rest.load_state_dict(stream.state_dict())
    assert first + [sample["key"] for sample in rest] == wanted


@pytest.mark.parametrize(
    "state", [{}, {"samples": -1}, {"samples": "3"}, {"samples": 3, "drawn": [3, 3, 3]}, {"samples": 0, "done": "x"}]
)
def test_no_state(shards, state):
    with pytest.raises(SpecError):
        SliceStream(StreamSpec(shards, **MIXED)).load_state_dict(state)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_slices_by_index(shards, context):
    data = SliceDataset(StreamSpec(shards, where="has_label", masks=True))
    assert len(data) == 17
    assert data[3]["key"] == data[-14]["key"]
    with pytest.raises(IndexError):
        data[17]
    loader = DataLoader(data, batch_size=5, shuffle=True, num_workers=2, multiprocessing_context=context)
    keys = [key for batch in loader for key in batch["key"]]
    assert len(set(keys)) == 17


# torch tells of the worker's death a second time, where the loader is taken down
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_worker_ends_the_loader(shards):
    loader = DataLoader(SliceStream(StreamSpec(shards, batch_size=4)), batch_size=4, num_workers=2, timeout=30)
    batches = iter(loader)
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, OSError, EOFError)):  # torch says so, or the dead one's memory cannot be reached
        keys_of(batches, 50)


def test_the_page_on_streaming_runs(tmp_path, monkeypatch):
    write_shard_set(tmp_path / "shards", {"train": 23, "val": 7})
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
    codes = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    assert len(codes) == 3
    scope: dict = {}
    for code in codes:
        exec(code, scope)
    assert scope["batch"]["image"].shape == (32, 1, 32, 32)
    assert len(scope["loader"]) == 1
