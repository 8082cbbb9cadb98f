"""A run that fails leaves no shard that looks whole, and no set that looks complete, wherever it was to go."""

import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from support.runs_of_shards import bytes_of, quiet

from medvar_data.errors import ShardSetError
from medvar_data.shard import write
from medvar_data.shard.reshard import ReshardSpec, reshard
from medvar_data.shard.run import write_shards
from medvar_data.shardset.dataset import read_dataset
from medvar_data.storage.store import Store

SECOND = "train-000001.tar"


class Broken(Exception):
    pass


def die_within_the_second_tar(monkeypatch) -> None:
    """Raise amid the members of the second shard."""
    real, calls = write.sample_json, []

    def dying(row):
        calls.append(row["key"])
        if len(calls) == 25:
            raise Broken
        return real(row)

    monkeypatch.setattr(write, "sample_json", dying)


def die_within_the_second_copy(monkeypatch) -> None:
    """Raise when half of the second shard was copied to its place."""
    real, put_file = shutil.copyfile, fsspec.get_filesystem_class("memory").put_file

    def half(source, target) -> None:
        data = Path(source).read_bytes()
        target.write(data[: len(data) // 2])
        raise Broken

    def copyfile(source, target):
        if SECOND in str(target):
            with Path(target).open("wb") as stream:
                half(source, stream)
        return real(source, target)

    def put(self, source, target, **options):
        if target.endswith(SECOND):
            with self.open(target, "wb") as stream:
                half(source, stream)
        return put_file(self, source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", put)


def make(kind: str, pipeline, store: Store):
    if kind == "shard":
        return write_shards(pipeline.workspace, store, pipeline.spec, 1, quiet)
    return reshard(pipeline.store, store, ReshardSpec(slices_per_shard=20), 1, quiet)


@pytest.mark.parametrize("die", [die_within_the_second_tar, die_within_the_second_copy])
@pytest.mark.parametrize("kind", ["shard", "reshard"])
@pytest.mark.parametrize("place", ["{folder}/s", "memory://broken/{name}"])
def test_no_half_shard_and_no_set(pipeline, tmp_path, monkeypatch, place, kind, die: Callable):
    store = Store(place.format(folder=tmp_path, name=f"{kind}-{die.__name__}"))
    with monkeypatch.context() as patch:
        die(patch)
        with pytest.raises(Broken):
            make(kind, pipeline, store)
    assert [name for name in store.names() if name.endswith(".tar")] == ["train-000000.tar"]
    assert store.read("train-000000.tar") == (pipeline.shards / "train-000000.tar").read_bytes()
    assert "dataset.json" not in store.names()
    with pytest.raises(ShardSetError, match=r"no dataset\.json"):
        read_dataset(store)
    for folder in (tmp_path, pipeline.workspace.path):
        assert not list(folder.rglob("*.partial"))
    again = make(kind, pipeline, store)
    assert again.n_reused == 1
    assert {n: store.read(n) for n in store.names() if n.endswith(".tar")} == {
        p.name: p.read_bytes() for p in pipeline.shards.glob("*.tar")
    }
    assert set(store.names()) == set(bytes_of(pipeline.shards))
