"""The plan: the order of a seeded hash, shards of nearly equal size, numbers in place of objects."""

import pickle
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs_of_shards import quiet

from medvar_data.shard import plan_files, write_missing
from medvar_data.shard.plan import cut_shards, order_keys, plan_digest
from medvar_data.shard.run import write_shards
from medvar_data.shardset.schema import SPLITS
from medvar_data.storage.parquet import gathered, write_tables
from medvar_data.storage.store import Store

KEYS = st.lists(st.text("abcdefgh-0123456789", min_size=1, max_size=12), unique=True, max_size=60)


def sorted_by_hash(keys: list[str], splits: list[int], seed: int, size: int) -> list[tuple[str, list[str]]]:
    """The plan, said as simply as can be."""
    plan = []
    for number, split in enumerate(SPLITS):
        members = sorted(
            (k for k, s in zip(keys, splits, strict=True) if s == number),
            key=lambda k: sha256(f"{seed}/{k}".encode()).digest(),
        )
        n = -(-len(members) // size)
        bounds = [round(i * len(members) / max(1, n)) for i in range(n + 1)]
        plan += [(f"{split}-{i:06d}.tar", members[bounds[i] : bounds[i + 1]]) for i in range(n)]
    return plan


@given(KEYS, st.integers(0, 5), st.integers(1, 20), st.randoms(use_true_random=False))
def test_the_order_is_that_of_the_hashes(keys, seed, size, chance):
    splits = [chance.randrange(3) for _ in keys]
    everything = np.ones(len(keys), dtype=np.bool_)
    cut = cut_shards(np.array(splits, dtype=np.int8), order_keys(keys, seed), everything, size)
    assert [(name, [keys[row] for row in rows]) for name, rows in cut] == sorted_by_hash(keys, splits, seed, size)


@given(KEYS, st.randoms(use_true_random=False))
def test_leaving_slices_out_keeps_the_order_of_the_others(keys, chance):
    chosen = np.array([chance.random() < 0.5 for _ in keys], dtype=np.bool_)
    splits, order = np.zeros(len(keys), dtype=np.int8), order_keys(keys, 0)
    whole = [row for _, rows in cut_shards(splits, order, np.ones_like(chosen), 7) for row in rows]
    part = [row for _, rows in cut_shards(splits, order, chosen, 7) for row in rows]
    assert part == [row for row in whole if chosen[row]]


def test_numbers_go_on_where_shards_are():
    names = [
        name
        for name, _ in cut_shards(
            np.zeros(5, dtype=np.int8), order_keys("abcde", 0), np.ones(5, dtype=np.bool_), 2, {"train": 7, "val": 1, "test": 0}
        )
    ]  # fmt: skip
    assert names == ["train-000007.tar", "train-000008.tar", "train-000009.tar"]


def test_whatever_changes_a_shard_changes_the_digest():
    rows = np.arange(3, dtype=np.int32)
    digests = {
        plan_digest(*arguments)
        for arguments in (
            ([("train-000000.tar", rows)], "png", [b"a"]), ([("train-000000.tar", rows)], "zstd", [b"a"]),
            ([("train-000000.tar", rows)], "png", [b"b"]), ([("train-000000.tar", rows[::-1])], "png", [b"a"]),
            ([("train-000001.tar", rows)], "png", [b"a"]), ([("train-000000.tar", rows)], "png", [b"", b"a"]),
        )
    }  # fmt: skip
    assert len(digests) == 6


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_rows_are_gathered_in_order(lengths, size):
    numbers = iter(range(1000))
    tables = [pa.table({"n": pa.array([next(numbers) for _ in range(n)], pa.int32())}) for n in lengths]
    parts = [table["n"].to_pylist() for table in gathered(tables, size)]
    assert [n for part in parts for n in part] == list(range(sum(lengths)))
    assert all(len(part) == size for part in parts[:-1])
    assert all(parts)


def test_tables_written_in_pieces_have_the_row_groups_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr("medvar_data.storage.parquet.gathered", lambda tables: gathered(tables, 10))
    table = pa.table({"n": list(range(25)), "of": [{"a": 1.0}] * 25})
    write_tables(tmp_path / "t.parquet", (table.slice(at, 3) for at in range(0, 25, 3)), table.schema, {"a": "b"})
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [10, 10, 5]
    assert file.read().equals(table)
    assert file.schema_arrow.metadata == {b"a": b"b"}


@given(st.lists(st.integers(0, 29), max_size=40))
def test_rows_are_found_by_their_numbers(tmp_path_factory, numbers):
    path = tmp_path_factory.getbasetemp() / "rows.arrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_files, "ROW_GROUP", 8)
        if not path.exists():
            tables = [
                pa.table({"n": list(range(at, at + 5)), "t": [f"row {n}" for n in range(at, at + 5)]})
                for at in range(0, 30, 5)
            ]
            plan_files.write_rows(path, tables, tables[0].schema)
        found = plan_files.take_rows(path, np.array(numbers, dtype=np.int32))
    assert found == [{"n": n, "t": f"row {n}"} for n in numbers]


def test_a_file_in_its_place_is_left_there(tmp_path):
    target = tmp_path / "plan" / "slices.arrow"
    for content, replaced in ((b"one", True), (b"one", False), (b"two", True)):
        before = target.stat().st_ino if target.exists() else 0
        (tmp_path / "new").write_bytes(content)
        plan_files.settle(tmp_path / "new", target)
        assert target.read_bytes() == content
        assert (target.stat().st_ino != before) == replaced


def test_a_task_is_a_few_bytes_a_slice_and_the_plan_goes_with_the_last_shard(pipeline, tmp_path, monkeypatch):
    seen = []
    real = write_missing.run_tasks
    monkeypatch.setattr(
        write_missing, "run_tasks", lambda write, todo, *rest: seen.extend(todo) or real(write, todo, *rest)
    )
    spec = replace(pipeline.spec, slices_per_shard=60)
    write_shards(pipeline.workspace, Store(str(tmp_path / "s")), spec, 1, quiet)
    assert seen
    for task in seen:
        few = replace(task, rows=task.rows[:0])
        assert len(pickle.dumps(task)) - len(pickle.dumps(few)) <= 4 * len(task.rows) + 16
        assert len(pickle.dumps(few)) < 2000
    assert not list((pipeline.workspace.path / "shards").rglob("*.arrow"))
