"""`verify`, `seal`, `diff`, `trace` and `--require` as they are typed: what is printed, and how the command ends."""

import json
import shutil
from pathlib import Path

import pytest
from support.tampering import edit_statistics, paint, refit, rows_of
from typer.testing import CliRunner

from medvar_cli.console import DIFFERENT, OK, SOME_REJECTED, WRONG
from medvar_cli.data_commands import app


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture
def shards(pipeline, tmp_path) -> Path:
    shutil.copytree(pipeline["shards"], tmp_path / "set")
    return tmp_path / "set"


def test_painted_pixels_whose_digests_fit(pipeline, shards):
    paint(shards)
    refit(shards)
    assert call("verify", shards)[0] == OK
    code, text = call("verify", shards, "-w", pipeline["work"], "--remake", 10_000)
    assert (code, text.count("wrong: "), text.count("histogram_slices")) == (WRONG, 2, 1)
    before = {row["key"]: row["image_sha256"] for row in rows_of(Path(pipeline["shards"]), "slices")}
    key = next(row["key"] for row in rows_of(shards, "slices") if row["image_sha256"] != before[row["key"]])
    assert key in text
    code, text = call("trace", shards, key, "-w", pipeline["work"], "--json")
    assert code == WRONG
    assert json.loads(text)["verdict"].startswith("wrong: the image is another than its source gives")
    assert call("trace", shards, key)[0] == OK, "without the source nothing contradicts itself"


def test_a_seal_is_made_and_checked(shards, tmp_path):
    pytest.importorskip("cryptography")
    code, public = call("seal", "--new-key", tmp_path / "private.pem")
    assert (code, public.splitlines()[0]) == (OK, "-----BEGIN PUBLIC KEY-----")
    (tmp_path / "public.pem").write_text(public)
    assert call("seal", shards, "--key", tmp_path / "private.pem")[0] == OK
    assert call("verify", shards, "--seal", tmp_path / "public.pem")[0] == OK
    edit_statistics(shards)
    refit(shards)
    code, text = call("verify", shards, "--seal", tmp_path / "public.pem")
    assert code == WRONG
    assert "dataset.json is not the one that was sealed" in text


@pytest.mark.parametrize("typed", [("seal",), ("seal", "S"), ("seal", "--key", "k"), ("seal", "S", "--new-key", "k")])
def test_what_seal_wants(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = call(*typed)
    assert code == WRONG
    assert "Wanted either a shard set and --key FILE" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", [("-w", "work"), ("--remake", "3")])
def test_remake_and_workspace_go_together(shards, typed):
    code, text = call("verify", shards, *typed)
    assert code == WRONG
    assert "go together" in text


def test_diff_ends_with_1_where_sets_differ(pipeline, shards):
    assert call("diff", pipeline["shards"], shards) == (OK, "equal\n")
    paint(shards)
    refit(shards)
    code, text = call("diff", pipeline["shards"], shards)
    assert code == DIFFERENT
    assert "image_sha256" in text
    code, text = call("diff", pipeline["shards"], shards, "--json")
    assert code == DIFFERENT
    assert json.loads(text)["slices"]["changed"] == {"image_sha256": 1}
    assert call("diff", pipeline["shards"], shards.parent / "none")[0] == WRONG


def test_a_requirement_that_leaves_nothing_is_told_with_its_reason(pipeline, tmp_path):
    common = ("shard", "-w", pipeline["work"], "--recipe", pipeline["recipe"], "--workers", 1)
    asked = ("--require", "commercial", "--where", "collection = 'acdc'")
    code, text = call(*common, tmp_path / "s", *asked)
    assert code == SOME_REJECTED
    assert "warning: the set is empty: the condition (collection = 'acdc') AND commercial = 'yes' left out" in text
    details = {
        row["detail"]
        for row in rows_of(tmp_path / "s", "rejects")
        if row["collection"] == "acdc" and row["stage"] == "shard"
    }
    assert len(details) == 1
    assert details.pop().endswith("; its collection's terms say commercial = 'no'")
    code, text = call("reshard", pipeline["shards"], tmp_path / "r", "--workers", 1, *asked, "--json")
    assert code == SOME_REJECTED
    assert '"left_out": {' in text


def test_requirements_are_conditions(pipeline, tmp_path):
    common = ("shard", "-w", pipeline["work"], "--recipe", pipeline["recipe"], "--workers", 1)
    code, text = call(
        *common, tmp_path / "s", "--require", "commercial", "--require", "redistribute", "--where", "z > 1 OR z = 0"
    )
    assert code == SOME_REJECTED, text  # there is acdc alone
    where = json.loads((tmp_path / "s" / "dataset.json").read_text())["where"]
    assert where == "(z > 1 OR z = 0) AND commercial = 'yes' AND redistribute = 'yes'"
    terms = {
        r["collection"]: r["commercial"] == r["redistribute"] == "yes" for r in rows_of(tmp_path / "s", "collections")
    }
    cases = {row["collection"] for row in rows_of(tmp_path / "s", "cases")}
    assert cases == {name for name, allowed in terms.items() if allowed}
    gone = {row["collection"] for row in rows_of(tmp_path / "s", "rejects") if row["reason"] == "not_selected"}
    assert {name for name, allowed in terms.items() if not allowed} <= gone
    assert f"{min(gone)} " in text.split("Cases that the condition left out: ")[1]
    code, text = call(*common, tmp_path / "t", "--require", "fame")
    assert code == WRONG
    assert "commercial, derivatives, redistribute, no-share-alike" in text
