"""Sets of pictures that come from a model: they stream, count right, and refuse to overwrite."""

import numpy as np
import pytest

from medvar_data.errors import ShardSetError
from medvar_data.shardset import derived
from medvar_data.shardset.dataset import codec_of, read_dataset, read_pair, read_table
from medvar_data.shardset.derived import DerivedSet, DerivedWriter, case_row, drawn_row
from medvar_data.storage.store import Store
from medvar_data.stream import StreamSpec, open_stream

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 16), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(derived, "PER_SHARD", 3)
    writer = DerivedWriter(tmp_path / "set", DerivedSet(16, {"acdc-mr": 4, "none": 9}, {"transformer": "ab"}))
    rows = [drawn_row("acdc-mr" if n < 4 else "none", 4 if n < 4 else 9, n, 16) for n in range(7)]
    for row, image in zip(rows, IMAGES, strict=True):
        writer.add(row, image)
    writer.finish([case_row(row) for row in rows])
    return tmp_path / "set"


def test_a_set_streams_every_picture_once_an_epoch(folder):
    stream = open_stream(StreamSpec(str(folder), batch_size=7))
    batch = stream.batch(0, stream.rows(0))
    assert sorted(image.tobytes() for image in batch.images) == sorted(image.tobytes() for image in IMAGES)
    assert sorted(batch.condition_ids.tolist()) == [4, 4, 4, 4, 9, 9, 9]


def test_rows_say_where_the_pictures_lie_and_whose_they_are(folder):
    store = Store(str(folder))
    rows = read_table(store, "slices.parquet").to_pylist()
    assert [row["shard"] for row in rows] == ["train-000000.tar"] * 3 + ["train-000001.tar"] * 3 + ["train-000002.tar"]
    for row, image in zip(rows, IMAGES, strict=True):
        pixels, mask = read_pair(store, row, codec_of(store))
        assert np.array_equal(pixels, image)
        assert not mask.any()
    assert {row["modality"] for row in rows} == {"MR", ""}
    assert len({row["patient"] for row in rows}) == 7
    dataset = read_dataset(store)
    assert (dataset.splits["train"].slices, dataset.splits["test"].slices) == (7, 0)
    assert [row["n_kept"] for row in read_table(store, "cases.parquet").to_pylist()] == [1] * 7


def test_a_folder_that_holds_something_is_refused(folder):
    with pytest.raises(ShardSetError, match="not empty"):
        DerivedWriter(folder, DerivedSet(16, {}, {}))
