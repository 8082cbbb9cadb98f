"""A set may hold the slices that fulfil a condition; whatever it leaves out is told."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs_of_shards import bytes_of, quiet, rows_of

from medvar_data.audit.verify import verify
from medvar_data.errors import SpecError
from medvar_data.shard.run import write_shards
from medvar_data.shardset.dataset import read_dataset
from medvar_data.storage.store import Store

WHERE = "modality = 'MR' AND commercial IS DISTINCT FROM false AND z <> 1"


@pytest.fixture(scope="module")
def chosen(pipeline, tmp_path_factory) -> Path:
    store = Store(str(tmp_path_factory.mktemp("where") / "s"))
    write_shards(pipeline.workspace, store, replace(pipeline.spec, where=WHERE), 1, quiet)
    return Path(store.url)


def key(row: dict) -> tuple[str, str]:
    return row["collection"], row["case"]


def test_the_set_holds_what_fulfils_the_condition_and_nothing_else(pipeline, chosen):
    terms = {r["collection"]: r["commercial"] for r in rows_of(pipeline.shards, "collections.parquet")}
    wanted = {
        row["key"]: row["split"]
        for row in rows_of(pipeline.shards, "slices.parquet")
        if row["modality"] == "MR" and terms[row["collection"]] != "no" and row["z"] != 1
    }
    assert {row["key"]: row["split"] for row in rows_of(chosen, "slices.parquet")} == wanted
    assert 0 < len(wanted) < len(rows_of(pipeline.shards, "slices.parquet"))
    assert read_dataset(Store(str(chosen))).where == WHERE
    assert read_dataset(pipeline.store).where == ""
    assert verify(Store(str(chosen))).findings == ()


def test_every_case_is_a_row_with_counts_or_a_reject(pipeline, chosen):
    before = {key(row): row for row in rows_of(pipeline.shards, "cases.parquet")}
    after = {key(row): row for row in rows_of(chosen, "cases.parquet")}
    gone = {key(row): row for row in rows_of(chosen, "rejects.parquet") if row["reason"] == "not_selected"}
    assert before.keys() == after.keys() | gone.keys()
    assert not after.keys() & gone.keys()
    held = Counter(key(row) for row in rows_of(chosen, "slices.parquet"))
    for name, row in after.items():
        assert row["n_kept"] == held[name]
        assert row["n_kept"] + row["n_not_selected"] == before[name]["n_kept"]
        left_out = row["n_without_foreground"] + row["n_emptied_by_cleanup"] + row["n_not_selected"]
        assert row["n_slices"] == row["n_kept"] + left_out
    assert all(row["n_not_selected"] == 0 for row in before.values())
    assert any(row["n_not_selected"] for row in after.values())
    for row in gone.values():
        assert row["stage"] == "shard"
        assert WHERE in row["detail"]


def test_collections_count_what_became_of_their_cases(pipeline, chosen):
    for folder in (pipeline.shards, chosen):
        cases = Counter(r["collection"] for r in rows_of(folder, "cases.parquet"))
        rejects = Counter(r["collection"] for r in rows_of(folder, "rejects.parquet"))
        for row in rows_of(folder, "collections.parquet"):
            name = row["collection"]
            assert (row["n_kept"], row["n_rejected"]) == (cases[name], rejects[name])
            assert row["n_found"] == cases[name] + rejects[name] > 0


def test_conditions_are_those_of_the_cases_that_are_left(pipeline, chosen):
    kept = {r["condition"]: r["condition_id"] for r in rows_of(chosen, "cases.parquet")}
    assert read_dataset(Store(str(chosen))).conditions == kept
    assert kept.items() < read_dataset(pipeline.store).conditions.items()


def test_another_condition_is_another_plan(pipeline, tmp_path):
    store = Store(str(tmp_path / "s"))
    spec = replace(pipeline.spec, slices_per_shard=1000)
    first = write_shards(pipeline.workspace, store, replace(spec, where="z >= 0"), 1, quiet)
    same = write_shards(pipeline.workspace, store, replace(spec, where="z >= 0"), 1, quiet)
    other = write_shards(pipeline.workspace, store, replace(spec, where="z >= 1"), 1, quiet)
    assert (first.n_reused, same.n_reused, other.n_reused) == (0, 3, 0)
    assert verify(store).findings == ()


def test_two_workers_give_the_same_set(pipeline, chosen, tmp_path):
    write_shards(pipeline.workspace, Store(str(tmp_path / "s")), replace(pipeline.spec, where=WHERE), 2, quiet)
    assert bytes_of(tmp_path / "s") == bytes_of(chosen)


def test_what_is_no_condition_leaves_nothing(pipeline, tmp_path):
    for where, words in (("colour = 'red'", "Columns are "), ("true); DROP TABLE s; SELECT (1", "several statements")):
        with pytest.raises(SpecError, match=words) as told:
            write_shards(pipeline.workspace, Store(str(tmp_path / "s")), replace(pipeline.spec, where=where), 1, quiet)
        assert "__" not in str(told.value)
    assert not (tmp_path / "s").exists()
    assert not list((pipeline.workspace.path / "shards").rglob("*.partial"))


def test_nothing_is_left(pipeline, tmp_path):
    store = Store(str(tmp_path / "s"))
    summary = write_shards(pipeline.workspace, store, replace(pipeline.spec, where="z < 0"), 1, quiet)
    assert (summary.n_cases, summary.n_shards, summary.n_rejected) == (0, 0, 27)
    assert verify(store).findings == ()
