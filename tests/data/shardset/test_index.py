"""A shard set whose rows do not say what was published is not opened, whether its digests were made to fit again or not."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shard_sets import republished, write_shard_set

from medvar_data.errors import ShardSetError
from medvar_data.shardset.dataset import PAIR_COLUMNS, codec_of, read_dataset, read_pair, read_table
from medvar_data.shardset.index import open_shard_set
from medvar_data.storage.store import Store


@pytest.fixture
def shards(tmp_path) -> Path:
    return write_shard_set(tmp_path / "set", {"train": 8, "val": 2, "test": 2})


def with_column(shards: Path, name: str, change) -> None:
    table = pq.read_table(shards / "slices.parquet")
    values = pa.chunked_array([pa.array(change(table[name].to_pylist()), type=table.schema.field(name).type)])
    pq.write_table(table.set_column(table.column_names.index(name), name, values), shards / "slices.parquet")


CHANGES = [
    ("condition_id", lambda ids: ids[::-1], "gives the condition"),
    ("condition_id", lambda ids: [-1, *ids[1:]], "gives the condition"),
    ("condition_id", lambda ids: [None, *ids[1:]], "holds 1 nulls"),
    ("condition_id", lambda ids: [2**31 - 1] * len(ids), "gives the condition"),
    ("image_offset", lambda values: [-512, *values[1:]], "but its shard has"),
    ("image_size", lambda values: [2**40, *values[1:]], "but its shard has"),
    ("mask_size", lambda values: [0, *values[1:]], "but its shard has"),
    ("mask_offset", lambda values: [2**62, *values[1:]], "but its shard has"),
    ("key", lambda keys: ["../../x", *keys[1:]], "which is none"),
    ("shard", lambda names: ["../../x.tar", *names[1:]], "which dataset.json does not list"),
]


@pytest.mark.parametrize(("name", "change", "words"), CHANGES)
def test_rows_that_were_altered(shards, name, change, words):
    with_column(shards, name, change)
    with pytest.raises(ShardSetError, match=r"is not the one that dataset\.json was published with"):
        open_shard_set(str(shards), "train")
    republished(shards)
    with pytest.raises(ShardSetError, match=words):
        open_shard_set(str(shards), "train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conditions": {"../x": 3}}, "matching regex"),
        ({"conditions": {"alpha-ct": 3, "beta-mr": 3}}, "two conditions have one id"),
        ({"conditions": {"alpha-ct": 2**40}}, "conditions"),
        ({"tables": {}}, "its tables are not"),
        ({"seed": -1}, r"\$\.seed"),
        ({"image_side": "32"}, r"\$\.image_side"),
        ({"codec": "../png"}, "its codec is none of png, zstd"),
        ({"splits": []}, r"\$\.splits"),
    ],
)
def test_a_dataset_json_that_cannot_be(shards, change, words):
    republished(shards, **change)
    with pytest.raises(ShardSetError, match=words):
        read_dataset(Store(str(shards)))


def test_a_shard_listed_twice_or_in_another_split(shards):
    dataset = json.loads((shards / "dataset.json").read_text())
    train = dataset["splits"]["train"]["shards"]
    republished(
        shards, splits={**dataset["splits"], "train": {**dataset["splits"]["train"], "shards": [*train, train[0]]}}
    )
    with pytest.raises(ShardSetError, match="listed twice"):
        read_dataset(Store(str(shards)))
    republished(shards, splits={**dataset["splits"], "val": {**dataset["splits"]["val"], "shards": train}})
    with pytest.raises(ShardSetError, match="another split than its name"):
        read_dataset(Store(str(shards)))


def test_pictures_swapped_within_a_shard_are_noticed(shards):
    """Two rows that point to each other's pictures, everything else fitting."""
    for name in ("image_offset", "image_size"):
        with_column(shards, name, lambda values: [values[1], values[0], *values[2:]])
    republished(shards)
    store = Store(str(shards))
    rows = read_table(store, "slices.parquet", columns=[*PAIR_COLUMNS, "split"], equal={"split": "train"}).to_pylist()
    with pytest.raises(ShardSetError, match="is not the one that was published"):
        read_pair(store, rows[0], codec_of(store))
    assert len(rows) == 8
