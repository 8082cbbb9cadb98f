"""The stream's laws: the order depends on the seed and the step alone, and damage is named."""

import json
import os
import shutil
from contextlib import suppress
from fractions import Fraction

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shard_sets import CONDITIONS, mask_of, picture, write_shard_set

from medvar_data.errors import ShardSetError, SpecError
from medvar_data.stream import StreamSpec, cache, open_stream, plan
from medvar_data.stream.order import Order, Pool
from medvar_data.stream.schedule import Schedule


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shard_set(tmp_path_factory.mktemp("set"), {"train": 23, "val": 7}))


def global_keys(spec_fields, world, workers, steps, start=0):
    """Keys of each global batch, put together from what each rank really read."""
    parts = []
    for rank in range(world):
        stream = open_stream(StreamSpec(**spec_fields, world=world, rank=rank))
        parts.append([batch.keys for batch in stream.batches(start, steps, workers)])
    return [sum(step, ()) for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("extra", [{}, {"mixture": (("alpha-ct", 1.0), ("beta-mr", 2.0))}, {"window_shards": 2}])
def test_ranks_and_workers_change_nothing(shards, extra):
    fields = {"shards": shards, "batch_size": 24, "seed": 5, **extra}
    wanted = list(plan(StreamSpec(**fields), 4))
    for world in (1, 2, 3, 8):
        for workers in (0, 1, 2):
            assert global_keys(fields, world, workers, 4) == wanted


ORDERS = (
    {},
    {"window_shards": 2},
    {"mixture": (("alpha-ct", 0.137), ("beta-mr", 0.274), ("gamma-mr", 0.589))},
    {"temperature": 0.4, "mix_by": "modality", "window_shards": 1},
    {"where": "has_label", "temperature": 0.0},
)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_interrupted_anywhere_on_any_ranks_and_workers_the_sequence_is_the_same(shards, data):
    """Ranks, workers and interruptions change; the samples, one after the other, are those of the undisturbed stream."""
    extra = data.draw(st.sampled_from(ORDERS))
    whole = open_stream(StreamSpec(shards, batch_size=1, seed=4, **extra))
    state, got = {"samples": 0, "drawn": []}, []
    for _ in range(data.draw(st.integers(1, 3))):
        world = data.draw(st.integers(1, 16))
        batch_size = world * data.draw(st.integers(1, 3))
        steps, workers = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([0, 1, 2, 8]))
        parts = []
        for rank in range(world):
            spec = StreamSpec(shards, batch_size=batch_size, seed=4, world=world, rank=rank, **extra)
            stream = open_stream(spec, workers)
            stream.load_state_dict(state)
            batches = iter(stream)
            parts.append([next(batches).keys for _ in range(steps)])
            batches.close()
        got += [key for step in zip(*parts, strict=True) for part in step for key in part]
        state = json.loads(json.dumps(stream.state_dict()))
    wanted = [key for step in range(len(got)) for key in whole.shard_set.names(whole.rows(step))]
    assert got == wanted
    assert state["samples"] == len(got)
    if not extra:
        epochs = [got[start : start + 23] for start in range(0, len(got) - 22, 23)]
        assert all(len(set(epoch)) == 23 for epoch in epochs)


def test_resuming_at_every_step_gives_the_rest(shards):
    spec = StreamSpec(shards, batch_size=4, seed=1)
    stream = open_stream(spec)
    whole = list(stream.batches(0, 15, workers=2))
    for start in range(15):
        rest = list(open_stream(spec).batches(start, 15 - start))
        assert [batch.keys for batch in rest] == [batch.keys for batch in whole[start:]]
        assert all(np.array_equal(a.images, b.images) for a, b in zip(rest, whole[start:], strict=True))
        assert [batch.step for batch in rest] == list(range(start, 15))


@pytest.mark.parametrize("window", [0, 1, 2, 50])
def test_every_slice_once_an_epoch_and_epochs_differ(shards, window):
    keys = [key for step in plan(StreamSpec(shards, batch_size=5, seed=3, window_shards=window), 23) for key in step]
    epochs = [keys[start : start + 23] for start in range(0, 115, 23)]
    assert all(len(set(epoch)) == 23 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    other = [key for step in plan(StreamSpec(shards, batch_size=5, seed=4, window_shards=window), 23) for key in step]
    assert other != keys


def test_a_window_touches_few_shards_at_a_time(shards):
    stream = open_stream(StreamSpec(shards, batch_size=1, window_shards=2))
    shard = [int(stream.shard_set.shard[stream.rows(step)[0]]) for step in range(23)]
    changes = [step for step in range(23) if len(set(shard[: step + 1])) > len(set(shard[:step]))]
    assert len(set(shard)) == 5
    for start in (0, 2, 4):  # the third shard appears only when the first two are used up
        window = list(dict.fromkeys(shard))[start : start + 2]
        places = [step for step in range(23) if shard[step] in window]
        assert places == list(range(places[0], places[0] + len(places)))
    assert changes[0] == 0


def test_pixels_masks_and_conditions_are_those_written(shards):
    stream = open_stream(StreamSpec(shards, split="val", batch_size=7, masks=True))
    batch = next(stream.batches(0, 1))
    for place, key in enumerate(batch.keys):
        image = picture(int(key.split("val")[1][:4]) + 10_000, 32)
        assert np.array_equal(batch.images[place], image)
        assert np.array_equal(batch.masks[place], mask_of(image))
        assert batch.condition_ids[place] == CONDITIONS["-".join(key.split("-")[:2])]


def drawn_and_due(schedule, weights, n):
    pool, earlier = schedule.draws(0, n)
    drawn = np.cumsum(pool[:, None] == np.arange(len(weights)), axis=0)
    assert np.array_equal(earlier, drawn[np.arange(n), pool] - 1)
    share = np.array([Fraction(str(weight)) for weight in weights]) / sum(Fraction(str(weight)) for weight in weights)
    return drawn, [[place * part for part in share] for place in range(1, n + 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 40).map(float), st.floats(1e-3, 1e3)), min_size=1, max_size=12))
def test_a_mixture_is_exact_within_one_sample_at_every_length(weights):
    drawn, due = drawn_and_due(Schedule(weights), weights, 700)
    assert all(
        abs(int(d) - w) < 1 for row, wanted in zip(drawn, due, strict=True) for d, w in zip(row, wanted, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=6), st.integers(0, 5000), st.integers(0, 300))
def test_a_mixture_goes_on_from_its_counts(weights, start, n):
    whole = Schedule(weights)
    counts = whole.counts(start)
    rest = Schedule(weights)
    rest.know(start, counts)
    assert sum(counts) == start
    for one, other in zip(whole.draws(start, start + n), rest.draws(start, start + n), strict=True):
        assert np.array_equal(one, other)


def test_a_mixture_far_ahead():
    schedule = Schedule([0.137, 0.274, 0.589])
    assert schedule.counts(10**15) == (137 * 10**12, 274 * 10**12, 589 * 10**12)
    pool, earlier = schedule.draws(10**15, 10**15 + 1000)
    assert np.bincount(pool).tolist() == [137, 274, 589]
    assert earlier.min() == 137 * 10**12


@pytest.mark.parametrize("counts", [[3, 0], [1, 1, 1], [0, 3], [-1, 4]])
def test_counts_of_another_mixture(counts):
    with pytest.raises(SpecError, match="no state of this mixture"):
        Schedule([1.0, 1.0]).know(3, counts)


def test_a_mixture_walks_each_condition_in_epochs(shards):
    mixture = (("beta-mr", 0.5), ("gamma-mr", 0.25), ("alpha-ct", 0.25))
    keys = [key for step in plan(StreamSpec(shards, batch_size=8, mixture=mixture), 10) for key in step]
    assert [sum(key.startswith(name) for key in keys) for name, _ in mixture] == [40, 20, 20]
    gamma = [key for key in keys if key.startswith("gamma")]
    assert len(set(gamma[:3])) == len(set(gamma[3:6])) == 3  # three such slices: each once, then again


def test_a_mixture_in_windows(shards):
    mixture = (("alpha-ct", 0.5), ("beta-mr", 0.5))
    stream = open_stream(StreamSpec(shards, batch_size=1, mixture=mixture, window_shards=1))
    rows = np.array([int(stream.rows(step)[0]) for step in range(24)])
    of_alpha = stream.shard_set.condition_id[rows] == CONDITIONS["alpha-ct"]
    assert abs(np.cumsum(of_alpha) - np.arange(1, 25) / 2).max() < 1
    shard = stream.shard_set.shard[rows[of_alpha]]
    assert np.flatnonzero(np.diff(shard)).size == len(set(shard)) - 1  # one shard of a condition after the other


def test_temperature_weighs_by_size(shards):
    for temperature, counts in ((1.0, [12, 8, 3]), (0.0, [8, 8, 7])):
        spec = StreamSpec(shards, batch_size=23, temperature=temperature)
        (keys,) = plan(spec, 1)
        found = [sum(key.startswith(name) for key in keys) for name in CONDITIONS]
        assert np.abs(np.array(found) - counts).max() <= 1
    by_modality = open_stream(StreamSpec(shards, batch_size=23, temperature=0.0, mix_by="modality"))
    assert abs(sum("-ct-" in key for key in by_modality.shard_set.names(by_modality.rows(0))) - 11.5) < 1


def test_the_order_is_the_documented_one():
    rows = np.arange(100, 110)
    order = Order(9, (Pool(rows),))
    wanted = np.concatenate([rows[np.random.default_rng((9, epoch)).permutation(10)] for epoch in range(3)])
    assert np.array_equal(order.rows(0, 30), wanted)
    assert np.array_equal(order.rows(7, 23), wanted[7:23])


def test_filters(shards):
    labelled = open_stream(StreamSpec(shards, where="has_label"))
    assert labelled.selected.tolist() == [number for number in range(23) if number % 4 != 0]
    gamma = open_stream(StreamSpec(shards, where="condition = 'gamma-mr'"))
    assert set(gamma.shard_set.condition_id[gamma.selected]) == {12}
    assert len(open_stream(StreamSpec(shards, where="collection IN ('alpha', 'beta')")).selected) == 20
    assert len(open_stream(StreamSpec(shards, where="collection <> 'gamma' AND NOT has_label")).selected) == 6


def test_one_pass_gives_every_row_once_over_all_ranks(shards):
    for world in (1, 2, 3):
        keys = []
        for rank in range(world):
            stream = open_stream(StreamSpec(shards, batch_size=6, world=world, rank=rank))
            keys += [key for n, rows in stream.pass_rows(4) for key in stream.batch(n, rows).keys]
        assert len(keys) == len(set(keys)) == 23
    some = [row for _, rows in open_stream(StreamSpec(shards)).pass_rows(4, most=6) for row in rows]
    assert len(set(some)) == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 7, "world": 2}, "batch_size is 7 on 2 processes"),
        ({"world": 2, "rank": 2}, "rank is 2 of 2"),
        ({"seed": -1}, "seed is -1"),
        ({"where": "region = 'foot'"}, "no train slice that is asked for"),
        ({"where": "colour = 'red'"}, "is no condition over the set's tables"),
        ({"mixture": (("delta-ct", 1.0),)}, "no condition 'delta-ct'"),
        ({"mixture": (("delta", 1.0),), "mix_by": "collection"}, "no collection 'delta'"),
        ({"temperature": 0.5, "mix_by": "colour"}, "no column 'colour'"),
        ({"temperature": 0.5, "mixture": (("alpha-ct", 1.0),)}, "no mixture beside it"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"mixture": (("alpha-ct", 0.0),)}, "wanted positive numbers"),
        ({"mixture": (("alpha-ct", 1.0), ("beta-mr", 1e-14))}, "differ by more than"),
        (
            {"mixture": (("alpha-ct", 1.0), ("beta-mr", 1.0)), "where": "condition = 'alpha-ct'"},
            "gives beta-mr a weight",
        ),
        ({"mixture": (("alpha-ct", 1.0), ("alpha-ct", 1.0))}, "names alpha-ct twice"),
    ],
)
def test_a_wrong_spec_is_a_sentence(shards, fields, words):
    with pytest.raises(SpecError, match=words):
        open_stream(StreamSpec(shards, **fields))


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


def read_all(root, workers=0):
    return list(open_stream(StreamSpec(str(root), batch_size=23)).batches(0, 1, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_is_named(copy, workers):
    (copy / "train-000002.tar").unlink()
    with pytest.raises(ShardSetError, match=r"train-000002.tar is missing .*medvar-data verify"):
        read_all(copy, workers)


def test_a_truncated_shard_is_named(copy):
    os.truncate(copy / "train-000001.tar", 700)
    with pytest.raises(ShardSetError, match=r"train-000001.tar .* has 700 bytes; .*medvar-data verify"):
        read_all(copy)


def test_a_damaged_member_is_named(copy):
    stream = open_stream(StreamSpec(str(copy), batch_size=23))
    offset, key = int(stream.shard_set.image_offset[7]), stream.shard_set.keys[7].as_py()
    with (copy / "train-000001.tar").open("r+b") as file:
        file.seek(offset + 60)
        file.write(b"\xff\x00\xff")
    with pytest.raises(
        ShardSetError, match=rf"train-000001.tar: the image of {key} is another one than was published.*verify"
    ):
        read_all(copy)


def test_a_folder_that_is_no_shard_set_is_named(tmp_path, copy):
    with pytest.raises(ShardSetError, match=r"holds no dataset\.json"):
        read_all(tmp_path)
    dataset = json.loads((copy / "dataset.json").read_text())
    for change, words in (
        ({"schema_version": 9}, "schema version 9"),
        ({"splits": {}}, "its splits are not train, val, test"),
    ):
        (copy / "dataset.json").write_text(json.dumps(dataset | change))
        with pytest.raises(ShardSetError, match=words):
            read_all(copy)
    (copy / "dataset.json").write_text("{")
    with pytest.raises(ShardSetError, match=r"dataset\.json is damaged"):
        read_all(copy)
    (copy / "dataset.json").write_text(json.dumps(dataset))
    (copy / "slices.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShardSetError, match=r"slices\.parquet is not the one that dataset\.json was published with"):
        read_all(copy)
    with pytest.raises(ShardSetError, match="no split 'training'"):
        open_stream(StreamSpec(str(copy), split="training"))


@pytest.fixture
def remote(shards):
    """The same set on a file system that is not local."""
    memory = fsspec.filesystem("memory")
    memory.put(shards + "/", "/remote-set/", recursive=True)
    yield "memory://remote-set"
    memory.rm("/remote-set", recursive=True)


def test_a_remote_set_reads_like_a_local_one(shards, remote, tmp_path):
    local = [
        (batch.keys, batch.images.tobytes()) for batch in open_stream(StreamSpec(shards, batch_size=6)).batches(0, 8)
    ]
    spec = StreamSpec(remote, batch_size=6, cache=str(tmp_path))
    for workers in (0, 2):
        far = [(batch.keys, batch.images.tobytes()) for batch in open_stream(spec).batches(0, 8, workers)]
        assert far == local
    assert len(list(tmp_path.rglob("*.tar"))) == 5
    assert not list(tmp_path.rglob("*.partial"))


def held_bytes(folder):
    held = 0
    for path in folder.rglob("*.tar"):
        with suppress(FileNotFoundError):  # shards come and go meanwhile
            held += path.stat().st_size
    return held


def test_a_cache_stays_within_its_bound(remote, tmp_path):
    stream = open_stream(StreamSpec(remote, batch_size=6))
    largest = max(stream.shard_set.shard_bytes)
    spec = StreamSpec(remote, batch_size=6, cache=str(tmp_path), cache_bytes=4 * largest)
    with pytest.raises(SpecError, match="mix at most 2 shards"):
        list(open_stream(spec).batches(0, 1))
    windowed = StreamSpec(remote, batch_size=6, cache=str(tmp_path), cache_bytes=4 * largest, window_shards=2)
    fetched = []
    for _ in open_stream(windowed).batches(0, 12):
        fetched.append(held_bytes(tmp_path))
    assert max(fetched) <= 4 * largest


def test_remote_damage_and_a_missing_cache_are_named(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FIRST_PAUSE_SECONDS", 0.01)
    memory = fsspec.filesystem("memory")
    with pytest.raises(ShardSetError, match="is remote; name a local folder"):
        list(open_stream(StreamSpec(remote)).batches(0, 1))
    data = bytearray(memory.cat_file("/remote-set/train-000000.tar"))
    data[600] ^= 1
    memory.pipe_file("/remote-set/train-000000.tar", bytes(data))
    with pytest.raises(
        ShardSetError, match=r"train-000000.tar cannot be fetched .* another digest .*, 5 times in a row"
    ):
        list(open_stream(StreamSpec(remote, cache=str(tmp_path))).batches(0, 1))
    memory.rm("/remote-set/train-000000.tar")
    with pytest.raises(ShardSetError, match=r"train-000000.tar is missing"):
        list(open_stream(StreamSpec(remote, cache=str(tmp_path))).batches(0, 1))
    assert not list(tmp_path.rglob("*.partial"))
