"""What goes wrong with shards and storage is tried again, replaced and counted, or named; two processes share a cache."""

import multiprocessing
import os
import pickle
import shutil
import threading

import fsspec
import fsspec.implementations.dirfs
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.shard_sets import write_shard_set

from medvar_data.errors import ShardSetError
from medvar_data.stream import StreamSpec, cache, open_stream

SPLIT = {"train": 40, "val": 7}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shard_set(tmp_path_factory.mktemp("set"), SPLIT))


@pytest.fixture
def copy(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "copy")
    return tmp_path / "copy"


def damage(folder, stream, row, member="image"):
    """Alter a byte of one picture at equal length; returns the slice's key."""
    shard_set = stream.shard_set
    offset = int(getattr(shard_set, f"{member}_offset")[row])
    with (folder / shard_set.shards[shard_set.shard[row]]).open("r+b") as file:
        file.seek(offset + 50)
        byte = file.read(1)[0]
        file.seek(offset + 50)
        file.write(bytes([byte ^ 0xFF]))
    return shard_set.keys[row].as_py()


class Flaky(MemoryFileSystem):
    """A store whose fetches fail in turn as `script` says, and then succeed."""

    protocol = "flaky"
    cachable = False
    script: list[str] = []  # noqa: RUF012
    fetches: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def get_file(self, rpath, lpath, **options):
        Flaky.fetches.append(rpath)
        fault = Flaky.script.pop(0) if Flaky.script else ""
        if fault == "timeout":
            raise TimeoutError("read timed out")
        if fault == "500":
            raise OSError(5, "Internal Server Error")
        if fault == "reset":
            raise ConnectionResetError("reset by peer")
        if fault == "foreign":
            raise RuntimeError("an error of the storage's own library")
        super().get_file(rpath, lpath, **options)
        if fault == "short":
            os.truncate(lpath, os.path.getsize(lpath) // 2)
        if fault == "altered":
            with open(lpath, "r+b") as file:
                file.seek(700)
                file.write(b"\xff\x00\xff")


@pytest.fixture
def flaky(shards, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.script, Flaky.fetches = [], []
    Flaky.store.clear()
    filesystem = fsspec.filesystem("flaky")
    for name in os.listdir(shards):
        with open(os.path.join(shards, name), "rb") as file:
            filesystem.pipe_file(f"/far/{name}", file.read())
    monkeypatch.setattr(cache, "FIRST_PAUSE_SECONDS", 0.001)
    yield "flaky://far"
    for thread in threading.enumerate():  # what was given up may still be under way
        if thread.name.startswith("medvar-fetch"):
            thread.join()
    Flaky.store.clear()


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("faults", [["timeout"], ["500", "short"], ["reset", "altered", "foreign", "timeout"]])
def test_a_store_that_recovers_changes_nothing(shards, flaky, tmp_path, faults, workers):
    wanted = [batch.images.tobytes() for batch in open_stream(StreamSpec(shards, batch_size=5)).batches(0, 9)]
    stream = open_stream(StreamSpec(flaky, batch_size=5, cache=str(tmp_path)))
    Flaky.script = list(faults)
    assert [batch.images.tobytes() for batch in stream.batches(0, 9, workers)] == wanted
    assert not Flaky.script
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("fault", "words"), [("timeout", "TimeoutError"), ("short", "bytes came of"), ("altered", "digest")]
)
def test_a_store_that_does_not_recover_is_named(flaky, tmp_path, fault, words):
    stream = open_stream(StreamSpec(flaky, batch_size=5, cache=str(tmp_path)))
    Flaky.script = [fault] * 400
    with pytest.raises(ShardSetError, match=rf"train-\d+\.tar cannot be fetched from flaky://far: .*{words}.*5 times"):
        list(stream.batches(0, 1))


def test_shards_are_fetched_before_their_turn_and_once(flaky, tmp_path):
    stream = open_stream(StreamSpec(flaky, batch_size=5, cache=str(tmp_path)))
    next(stream.batches(0, 8))
    names = [path.rsplit("/", 1)[-1] for path in Flaky.fetches]
    assert len(names) == len(set(names))
    list(stream.batches(0, 8))
    names = [path.rsplit("/", 1)[-1] for path in Flaky.fetches]
    assert sorted(names) == sorted(stream.shard_set.shards)


@pytest.mark.parametrize("member", ["image", "mask"])
@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_replaces_and_counts(copy, shards, member, workers):
    whole = list(open_stream(StreamSpec(shards, batch_size=8, masks=True)).batches(0, 5))
    spec = StreamSpec(str(copy), batch_size=8, masks=True, skip_bad=True)
    stream = open_stream(spec)
    keys = {damage(copy, stream, row, member) for row in (3, 17)}
    with pytest.raises(ShardSetError, match="is another one than was published"):
        list(open_stream(StreamSpec(str(copy), batch_size=8, masks=True)).batches(0, 5))
    mended = list(stream.batches(0, 5, workers))
    assert set(stream.skipped) == keys
    for one, other in zip(mended, whole, strict=True):
        assert not set(one.keys) & keys
        assert len(one.keys) == 8
        for place, (key, wanted) in enumerate(zip(one.keys, other.keys, strict=True)):
            assert key == wanted or wanted in keys
            source = other.keys.index(key)
            assert np.array_equal(one.images[place], other.images[source])
            assert np.array_equal(one.masks[place], other.masks[source])


def test_a_batch_of_nothing_but_damage_is_an_error(copy):
    for path in copy.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(ShardSetError, match="is missing"):
        next(open_stream(StreamSpec(str(copy), batch_size=4, skip_bad=True)).batches())


def test_exchanged_pictures_are_noticed(copy):
    """Two members of equal length that change places leave the tar whole; their checksums do not fit any more."""
    stream = open_stream(StreamSpec(str(copy), batch_size=40))
    shard_set = stream.shard_set
    size = shard_set.mask_size
    one, other = next(
        (a, b)
        for a in range(40)
        for b in range(a + 1, 40)
        if size[a] == size[b] and shard_set.mask_crc32[a] != shard_set.mask_crc32[b]
    )
    data = [(copy / shard_set.shards[shard_set.shard[row]]) for row in (one, other)]
    read = [
        path.read_bytes()[shard_set.mask_offset[row] :][: size[row]]
        for path, row in zip(data, (one, other), strict=True)
    ]
    for path, row, new in zip(data, (one, other), read[::-1], strict=True):
        with path.open("r+b") as file:
            file.seek(int(shard_set.mask_offset[row]))
            file.write(new)
    list(open_stream(StreamSpec(str(copy), batch_size=40)).batches(0, 1))  # images alone are whole
    with pytest.raises(ShardSetError, match=r"the mask of .* is another one than was published"):
        list(open_stream(StreamSpec(str(copy), batch_size=40, masks=True)).batches(0, 1))


def _read_through(url, folder, bound, window, queue):
    stream = open_stream(StreamSpec(url, batch_size=8, cache=folder, cache_bytes=bound, window_shards=window))
    queue.put([batch.images.tobytes() for batch in stream.batches(0, 15, workers=2)])


@pytest.mark.parametrize("times_largest", [100, 5])
def test_two_processes_share_a_cache(shards, tmp_path, times_largest):
    local = open_stream(StreamSpec(shards, batch_size=8, window_shards=2))
    wanted = [batch.images.tobytes() for batch in local.batches(0, 15)]
    bound = times_largest * max(local.shard_set.shard_bytes)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    fsspec.register_implementation("far", _Far, clobber=True)
    url = f"far://{shards}"
    readers = [context.Process(target=_read_through, args=(url, str(tmp_path), bound, 2, queue)) for _ in range(3)]
    for reader in readers:
        reader.start()
    got = [queue.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join(60)
    assert got == [wanted] * 3
    held = sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    assert held <= bound
    assert not list(tmp_path.rglob("*.partial"))


class _Far(fsspec.implementations.dirfs.DirFileSystem):
    """The local disk as if it were far away."""

    protocol = "far"

    def __init__(self, **options):
        super().__init__(path="/", fs=fsspec.filesystem("file"))

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("far://")


def test_a_pickled_stream_goes_on(shards):
    stream = open_stream(StreamSpec(shards, batch_size=8, temperature=0.3))
    batches = iter(stream)
    first = [next(batches).keys for _ in range(3)]
    copy = pickle.loads(pickle.dumps(stream))
    assert copy.position == 24
    again = open_stream(StreamSpec(shards, batch_size=8, temperature=0.3))
    again.load_state_dict(pickle.loads(pickle.dumps(stream.state_dict())))
    wanted = [batch.keys for batch in stream.batches(0, 6)]
    for other in (copy, again):
        rest = iter(other)
        assert first + [next(rest).keys for _ in range(3)] == wanted


def test_threads_share_a_stream(shards):
    stream = open_stream(StreamSpec(shards, batch_size=8, temperature=0.3))
    wanted = [stream[position].keys[0] for position in range(60)]
    assert wanted == [key for batch in stream.batches(0, 8) for key in batch.keys][:60]
    got: dict[int, str] = {}

    def read(start):
        for position in range(start, 60, 4):
            got[position] = stream[position].keys[0]

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[position] for position in range(60)] == wanted
