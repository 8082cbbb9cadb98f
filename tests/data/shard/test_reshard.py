"""Laws of a set made from another one: the same pixels, rows and splits, whatever the codec, size, order or place; a kill costs nothing."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.runs_of_shards import bytes_of, quiet, rows_of

from medvar_data.audit.verify import verify
from medvar_data.errors import ShardSetError, SpecError, WorkspaceError
from medvar_data.shard.reshard import ReshardSpec, reshard
from medvar_data.shardset.dataset import read_dataset, read_pair
from medvar_data.storage.codec import CODECS, pixel_digest
from medvar_data.storage.store import Store

PLACE = {"shard", *(f"{m}_{n}" for m in ("image", "mask", "json") for n in ("offset", "size", "crc32"))}


def content(folder: Path) -> dict[str, dict]:
    return {row["key"]: {k: v for k, v in row.items() if k not in PLACE} for row in rows_of(folder, "slices.parquet")}


def test_the_same_options_give_the_same_bytes(pipeline, tmp_path):
    summary = reshard(pipeline.store, Store(str(tmp_path / "s")), ReshardSpec(slices_per_shard=20), 1, quiet)
    one, other = bytes_of(pipeline.shards), bytes_of(tmp_path / "s")
    assert other.keys() == one.keys()
    assert {n: d for n, d in other.items() if n != "dataset.json"} == {
        n: d for n, d in one.items() if n != "dataset.json"
    }
    before, after = read_dataset(pipeline.store), read_dataset(Store(str(tmp_path / "s")))
    assert (after.made_from, before.made_from) == (before.digest, "")
    assert (summary.digest, after.salt_sha256) == (before.digest, before.salt_sha256)
    assert verify(Store(str(tmp_path / "s"))).findings == ()


@pytest.mark.parametrize(
    ("spec", "workers"),
    [
        (ReshardSpec(codec="zstd"), 1), (ReshardSpec(slices_per_shard=7), 2), (ReshardSpec(seed=5, slices_per_shard=30), 1),
        (ReshardSpec("zstd", 9, 3, "modality = 'MR' AND \"case\" <> 'ann'"), 1),
    ],
)  # fmt: skip
def test_rows_and_pixels_are_those_of_the_first_set(pipeline, tmp_path, spec, workers):
    store = Store(str(tmp_path / "s"))
    summary = reshard(pipeline.store, store, spec, workers, quiet)
    assert verify(store).findings == ()
    before, after = content(pipeline.shards), content(tmp_path / "s")
    assert after == {
        k: row for k, row in before.items() if not spec.where or (row["modality"] == "MR" and row["case"] != "ann")
    }
    assert sum(summary.n_slices.values()) == len(after) > 0
    dataset = read_dataset(store)
    assert (dataset.codec, dataset.where) == (spec.codec or "png", spec.where)
    for row in rows_of(tmp_path / "s", "slices.parquet")[::9]:
        image, mask = read_pair(store, row, CODECS[dataset.codec])
        assert (pixel_digest(image), pixel_digest(mask)) == (row["image_sha256"], row["mask_sha256"])
    sizes = [shard.slices for split in dataset.splits.values() for shard in split.shards]
    assert max(sizes) <= spec.slices_per_shard


def test_who_is_left_out_is_a_reject_and_two_conditions_both_hold(pipeline, tmp_path):
    first, second = Store(str(tmp_path / "1")), Store(str(tmp_path / "2"))
    reshard(pipeline.store, first, ReshardSpec(where="modality = 'MR'"), 1, quiet)
    reshard(
        first,
        second,
        ReshardSpec(where="foreground_pixels > 0 AND commercial IS DISTINCT FROM false AND mean > 0"),
        1,
        quiet,
    )
    assert (
        read_dataset(second).where
        == "(modality = 'MR') AND (foreground_pixels > 0 AND commercial IS DISTINCT FROM false AND mean > 0)"
    )
    assert verify(second).findings == ()
    cases, rejects = rows_of(tmp_path / "2", "cases.parquet"), rows_of(tmp_path / "2", "rejects.parquet")
    found = {(r["collection"], r["case"]) for r in rows_of(pipeline.shards, "cases.parquet")}
    gone = {(r["collection"], r["case"]): r for r in rejects if r["reason"] == "not_selected"}
    assert found == {(c["collection"], c["case"]) for c in cases} | set(gone)
    assert {r["reason"] for r in rejects} == {"not_an_image", "not_selected"}
    assert all(r["stage"] == "shard" and "fulfils the condition" in r["detail"] for r in gone.values())
    assert ("chaos", next(c for k, c in gone if k == "chaos")) in gone
    assert "chaos-ct" not in read_dataset(second).conditions


def test_by_url(pipeline, tmp_path):
    source, store = Store("memory://reshard/source"), Store("memory://reshard/made")
    for path in pipeline.shards.iterdir():
        shutil.copy(path, tmp_path / path.name)
        source.put(tmp_path / path.name, path.name)
    reshard(source, store, ReshardSpec("zstd"), 1, quiet)
    reshard(pipeline.store, Store(str(tmp_path / "s")), ReshardSpec("zstd"), 1, quiet)
    assert {name: store.read(name) for name in store.names()} == {
        p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize("place", ["{tmp}/s", "memory://reshard-killed"])
def test_a_run_that_was_broken_off_goes_on(pipeline, tmp_path, place):
    store, seen = Store(place.format(tmp=tmp_path)), []

    def stop(progress):
        seen.append(progress.name)
        if progress.done == 3:
            raise Stop

    spec = ReshardSpec("zstd", 15)
    with pytest.raises(Stop):
        reshard(pipeline.store, store, spec, 1, stop)
    assert "dataset.json" not in store.names()
    with pytest.raises(WorkspaceError, match="begun with other options"):
        reshard(pipeline.store, store, ReshardSpec("png", 15), 1, quiet)
    again = reshard(pipeline.store, store, spec, 1, quiet)
    assert again.n_reused == 3
    whole = Store(str(tmp_path / "whole"))
    reshard(pipeline.store, whole, spec, 1, quiet)
    assert {name: store.read(name) for name in store.names()} == {name: whole.read(name) for name in whole.names()}
    finished = reshard(pipeline.store, store, spec, 1, quiet)
    assert (finished.n_reused, finished.digest) == (finished.n_shards, again.digest)


def test_the_first_set_and_other_peoples_folders_are_refused(pipeline, tmp_path):
    before = bytes_of(pipeline.shards)
    (tmp_path / "link").symlink_to(pipeline.shards)
    for url in (str(pipeline.shards), f"{pipeline.shards}/", str(tmp_path / "link"), str(pipeline.shards / "below")):
        with pytest.raises(WorkspaceError, match="is the set that is read, or lies in it"):
            reshard(pipeline.store, Store(url), ReshardSpec("zstd"), 1, quiet)
    assert bytes_of(pipeline.shards) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"not empty: it holds notes\.txt"):
        reshard(pipeline.store, Store(str(tmp_path / "mine")), ReshardSpec("zstd"), 1, quiet)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    shutil.copytree(pipeline.shards, tmp_path / "other")
    with pytest.raises(WorkspaceError, match="holds another shard set"):
        reshard(pipeline.store, Store(str(tmp_path / "other")), ReshardSpec("zstd"), 1, quiet)
    reshard(pipeline.store, Store(str(tmp_path / "s")), ReshardSpec("zstd", 10), 1, quiet)
    with pytest.raises(WorkspaceError, match="shards of another size"):
        reshard(pipeline.store, Store(str(tmp_path / "s")), ReshardSpec("zstd", 11), 1, quiet)
    assert verify(Store(str(tmp_path / "s"))).findings == ()
    assert not (tmp_path / "s" / "unfinished").exists()


def test_a_damaged_member_is_named_with_the_way_on(damaged, tmp_path):
    row = pq.read_table(Path(damaged.url) / "slices.parquet").to_pylist()[5]
    path = Path(damaged.url) / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["mask_offset"] + 20] ^= 1
    path.write_bytes(data)
    words = rf"{row['shard']}: the mask of {row['key']} is not the one that was published.*fetch or rebuild"
    with pytest.raises(ShardSetError, match=words):
        reshard(damaged, Store(str(tmp_path / "s")), ReshardSpec(), 1, quiet)
    assert not (tmp_path / "s" / "dataset.json").exists()


def test_a_table_that_was_altered_is_refused(damaged, tmp_path):
    table = pq.read_table(Path(damaged.url) / "slices.parquet")
    pq.write_table(table.slice(1), Path(damaged.url) / "slices.parquet")
    with pytest.raises(ShardSetError, match=r"slices\.parquet is not the one"):
        reshard(damaged, Store(str(tmp_path / "s")), ReshardSpec(), 1, quiet)


def test_what_is_no_codec_or_condition_is_refused(pipeline, tmp_path):
    with pytest.raises(SpecError, match="codec is 'jpeg'"):
        ReshardSpec("jpeg")
    with pytest.raises(SpecError, match="--where"):
        reshard(pipeline.store, Store(str(tmp_path / "s")), ReshardSpec(where="colour = 1"), 1, quiet)
    assert not list((tmp_path / "s").iterdir())


def test_a_run_that_was_killed_before_it_noted_its_plan_goes_on(pipeline, tmp_path):
    (tmp_path / "s" / "unfinished").mkdir(parents=True)
    (tmp_path / "s" / "unfinished" / "slices.arrow").write_bytes(b"half")
    reshard(pipeline.store, Store(str(tmp_path / "s")), ReshardSpec(slices_per_shard=20), 1, quiet)
    assert {p.name for p in (tmp_path / "s").iterdir()} == {p.name for p in pipeline.shards.iterdir()}


def test_nothing_is_left_where_nothing_fulfils_the_condition(pipeline, tmp_path):
    store = Store(str(tmp_path / "s"))
    summary = reshard(pipeline.store, store, ReshardSpec(where="z < 0"), 1, quiet)
    assert (summary.n_shards, summary.n_cases) == (0, 0)
    assert verify(store).findings == ()
    assert json.loads(store.read("dataset.json"))["conditions"] == {}
