"""The strictest terms over copies: laws of the joining, and `--require` on a scan that two collections hold under two licences."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import acdc_tree, small_recipe
from support.copies import copies_toml, copy_scans
from support.shard_sets import rows_of

from medvar_data.audit.verify import verify
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.records import LICENSE_TERMS
from medvar_data.shard.choose import required
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.reshard import ReshardSpec, reshard
from medvar_data.shard.run import write_shards
from medvar_data.shard.terms import LOOSEST_FIRST, strictest, strictest_terms
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

ANSWERS = ("yes", "no", "unknown")


def table(answers: list[str]) -> pa.Table:
    return pa.table(dict.fromkeys(LICENSE_TERMS, answers))


@given(answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=9), data=st.data())
def test_copies_have_equal_terms_as_strict_as_the_strictest(answers, data):
    number = st.integers(0, len(answers) - 1)
    copies = data.draw(st.lists(st.tuples(number, number), max_size=9))
    made = strictest_terms(table(answers), copies)
    assert made.equals(strictest_terms(table(answers), copies[::-1]))
    assert made.equals(strictest_terms(made, copies))
    for term in LICENSE_TERMS:
        found = made[term].to_pylist()
        assert all(found[a] == found[b] for a, b in copies)
        ranks = LOOSEST_FIRST[term].index
        assert all(ranks(now) >= ranks(before) for before, now in zip(answers, found, strict=True))
        assert {a for a in range(len(answers)) if found[a] != answers[a]} <= {a for pair in copies for a in pair}


def test_which_answer_is_the_strictest():
    assert [strictest(term, ANSWERS) for term in LICENSE_TERMS] == ["no", "no", "yes", "no"]
    assert [strictest(term, ("unknown", "yes" if term != "share_alike" else "no")) for term in LICENSE_TERMS] == [
        "unknown"
    ] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """ACDC, which forbids commercial use, and copies of half of it in a collection that allows it, beside scans of its own."""
    folder = tmp_path_factory.mktemp("terms")
    workspace = Workspace(folder / "work")
    acdc, other = acdc_tree(folder / "acdc", patients=4), acdc_tree(folder / "elsewhere", patients=6)
    copy_scans(acdc, folder / "own", [1, 2])
    copy_scans(other, folder / "own", [5, 6])
    own = copies_toml(folder / "copies.toml")
    own.write_text('commercial = "yes"\n' + own.read_text())
    list(run_ingest({"acdc": acdc, str(own): folder / "own"}, workspace))
    run_harmonize(workspace, small_recipe(folder), 1, lambda _: None)
    write_shards(workspace, Store(str(folder / "all")), ShardSpec(small_recipe(folder)), 1, lambda _: None)
    return folder


def outcome(shards: Path) -> tuple[set[str], dict[str, str]]:
    rejects = rows_of(shards, "rejects.parquet")
    return {r["case"] for r in rows_of(shards, "cases.parquet")}, {r["case"]: r["reason"] for r in rejects}


def test_a_copy_of_a_scan_that_may_not_be_sold_may_not_be_sold(folder, tmp_path):
    terms = {(r["collection"], r["case"][:2]): r["commercial"] for r in rows_of(folder / "all", "cases.parquet")}
    assert {terms["copies", "x1"], terms["copies", "x2"], terms["acdc", "pa"]} == {"no"}
    assert {terms["copies", "x5"], terms["copies", "x6"]} == {"yes"}
    where = required(["commercial"])
    spec = ShardSpec(small_recipe(folder), where=where)
    write_shards(Workspace(folder / "work"), Store(str(tmp_path / "asked")), spec, 1, lambda _: None)
    reshard(Store(str(folder / "all")), Store(str(tmp_path / "resharded")), ReshardSpec(where=where), 1, lambda _: None)
    for name in ("asked", "resharded"):
        kept, reasons = outcome(tmp_path / name)
        assert {case[:2] for case in kept} == {"x5", "x6"}
        assert {case[:2] for case, why in reasons.items() if why == "license_of_copy"} == {"x1", "x2"}
        assert {why for case, why in reasons.items() if case.startswith("patient")} == {"not_selected"}
        assert verify(Store(str(tmp_path / name))).findings == ()
        assert "Commercial use is allowed" in (tmp_path / name / "README.md").read_text()


def test_the_terms_stay_where_the_other_copy_was_left_out(folder, tmp_path):
    """`reshard` sees no edge to a copy that is not in the set, and still knows."""
    reshard(
        Store(str(folder / "all")),
        Store(str(tmp_path / "copies")),
        ReshardSpec(where="collection = 'copies'"),
        1,
        lambda _: None,
    )
    assert rows_of(tmp_path / "copies", "edges.parquet") == []
    assert verify(Store(str(tmp_path / "copies"))).findings == ()
    asked = ReshardSpec(where=required(["commercial"]))
    reshard(Store(str(tmp_path / "copies")), Store(str(tmp_path / "sold")), asked, 1, lambda _: None)
    assert {case[:2] for case in outcome(tmp_path / "sold")[0]} == {"x5", "x6"}


def test_a_condition_on_anything_else_is_no_matter_of_copies(folder, tmp_path):
    reshard(
        Store(str(folder / "all")),
        Store(str(tmp_path / "part")),
        ReshardSpec(where="collection = 'acdc'"),
        1,
        lambda _: None,
    )
    assert set(outcome(tmp_path / "part")[1].values()) == {"not_selected"}
