"""A sound set gives no finding; whatever is spoiled, by accident or with matching digests, is found."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medvar_data.audit.verify import verify
from medvar_data.errors import ShardSetError
from medvar_data.shardset.schema import content_digest
from medvar_data.storage.store import Store, canonical_json


def folder(store: Store) -> Path:
    return Path(store.url)


def findings(store: Store) -> str:
    found = verify(store).findings
    assert found
    return "\n".join(found)


def edit(store: Store, name: str, change) -> None:
    """Change the rows of a table and make all digests fit again: only the content can give it away."""
    table = pq.read_table(folder(store) / name)
    rows = table.to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(table, folder(store) / name)
    dataset = json.loads(store.read("dataset.json"))
    dataset["tables"][name] = sha256(store.read(name)).hexdigest()
    dataset["digest"] = content_digest(pq.read_table(folder(store) / "slices.parquet"))
    (folder(store) / "dataset.json").write_text(canonical_json(dataset))


def test_a_sound_set(pipeline):
    result = verify(pipeline.store)
    assert result.findings == ()
    table = pq.read_table(pipeline.shards / "slices.parquet")
    assert result.n_slices == table.num_rows
    assert result.n_shards == len(list(pipeline.shards.glob("*.tar")))


def test_progress_reaches_the_end(pipeline):
    seen = []
    verify(pipeline.store, seen.append)
    assert [p.done for p in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].done == seen[-1].total


@pytest.mark.parametrize("place", [0, 300, 513, 3000, -1])
def test_one_flipped_byte_in_a_shard(damaged, place):
    path = folder(damaged) / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert "train-000001.tar does not have the digest" in findings(damaged)


def test_pixels_changed_with_all_file_digests_fitting(damaged):
    row = pq.read_table(folder(damaged) / "slices.parquet").to_pylist()[0]
    path = folder(damaged) / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["image_offset"] + 60] ^= 0x10
    path.write_bytes(data)
    dataset = json.loads(damaged.read("dataset.json"))
    for entry in dataset["splits"][row["split"]]["shards"]:
        if entry["name"] == row["shard"]:
            entry["sha256"] = sha256(bytes(data)).hexdigest()
    (folder(damaged) / "dataset.json").write_text(canonical_json(dataset))
    assert row["key"] in findings(damaged)


def test_a_table_written_again(damaged):
    path = folder(damaged) / "cases.parquet"
    pq.write_table(pq.read_table(path), path, compression="none")
    assert "cases.parquet does not have the digest" in findings(damaged)


def test_a_shard_is_gone(damaged):
    (folder(damaged) / "val-000000.tar").unlink()
    assert "val-000000.tar is missing" in findings(damaged)


def test_a_shard_cut_short(damaged):
    path = folder(damaged) / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    assert "train-000000.tar" in findings(damaged)


def test_a_stray_shard(damaged):
    shutil.copy(folder(damaged) / "train-000000.tar", folder(damaged) / "train-000077.tar")
    assert "train-000077.tar lies in the folder" in findings(damaged)


def test_a_patient_moved_to_another_split(damaged):
    def change(rows):
        case = next(r for r in rows if r["collection"] == "acdc" and r["split"] == "train")
        case["split"] = "val"

    edit(damaged, "cases.parquet", change)
    assert "is in train and val" in findings(damaged)


def test_a_case_moved_whole_disagrees_with_its_shards(damaged):
    patient = next(
        r["patient"] for r in pq.read_table(folder(damaged) / "cases.parquet").to_pylist() if r["split"] == "train"
    )

    def change(rows):
        for row in rows:
            if row["patient"] == patient:
                row["split"] = "test"

    edit(damaged, "cases.parquet", change)
    edit(damaged, "slices.parquet", change)
    assert "the row says test, the shard is train" in findings(damaged)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("image_offset", 1, "image lies at byte"),
        ("image_sha256", "0" * 64, "do not have the digest in image_sha256"),
        ("mask_sha256", "0" * 64, "do not have the digest in mask_sha256"),
        ("condition_id", 77, "condition"),
        ("has_label", None, "its JSON does not say what its row says"),
        ("low", 1.25, "its JSON does not say what its row says"),
        ("case", "another", "cases.parquet"),
        ("key", "Not A Key", "in order"),
        ("shard", "train-009999.tar", "train-009999.tar"),
        ("foreground_pixels", 3, "its JSON does not say"),
        ("label_pixels", [(1, 1)], "label_pixels"),
    ],
)
def test_one_cell_changed_with_all_digests_fitting(damaged, column, value, says):
    def change(rows):
        rows[3][column] = (not rows[3][column]) if value is None else value

    edit(damaged, "slices.parquet", change)
    assert says in findings(damaged)


def test_rows_lost_or_swapped(damaged):
    edit(damaged, "slices.parquet", lambda rows: rows.pop(2))
    assert "counts" in findings(damaged)


def test_rows_in_another_order(damaged):
    def change(rows):
        rows[0], rows[1] = rows[1], rows[0]

    edit(damaged, "slices.parquet", change)
    assert "in order" in findings(damaged)


def test_a_case_lost(damaged):
    edit(damaged, "cases.parquet", lambda rows: rows.pop(0))
    assert "does not list" in findings(damaged)


def test_the_sets_own_digest(damaged):
    dataset = json.loads(damaged.read("dataset.json"))
    dataset["digest"] = "0" * 64
    (folder(damaged) / "dataset.json").write_text(canonical_json(dataset))
    assert "digest" in findings(damaged)


@pytest.mark.parametrize(
    ("name", "content"),
    [("dataset.json", None), ("dataset.json", b"{"), ("dataset.json", b'{"schema_version": 99}'), ("dataset.json", b"[]"),
     ("slices.parquet", None), ("slices.parquet", b"PAR1"), ("cases.parquet", b"")],
)  # fmt: skip
def test_nothing_to_check_is_an_error(damaged, name, content):
    path = folder(damaged) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ShardSetError):
        verify(damaged)


def test_findings_do_not_run_on_forever(damaged):
    def change(rows):
        for row in rows:
            row["image_sha256"] = "0" * 64

    edit(damaged, "slices.parquet", change)
    assert 0 < len(verify(damaged).findings) <= 50
