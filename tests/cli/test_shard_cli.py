"""`shard` with its options and `reshard` as they are typed."""

import json

import pyarrow.parquet as pq
from support.builders import acdc_tree
from typer.testing import CliRunner

from medvar_cli.data_commands import app


def call(*arguments: str) -> dict:
    result = CliRunner().invoke(app, [*arguments, "--workers", "1", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_condition(pipeline, tmp_path):
    common = ("shard", "-w", pipeline["work"], str(tmp_path / "s"), "--recipe", pipeline["recipe"])
    summary = call(*common, "--where", "z >= 2 AND modality = 'MR' AND commercial <> 'yes'")
    assert sum(summary["n_slices"].values()) == pq.read_metadata(tmp_path / "s" / "slices.parquet").num_rows > 0
    assert min(pq.read_table(tmp_path / "s" / "slices.parquet")["z"].to_pylist()) == 2
    again = call(
        "reshard", str(tmp_path / "s"), str(tmp_path / "t"), "--where", "z = 3", "--codec", "zstd", "--seed", "4"
    )
    assert 0 < sum(again["n_slices"].values()) < sum(summary["n_slices"].values())
    dataset = json.loads((tmp_path / "t" / "dataset.json").read_text())
    assert (dataset["codec"], dataset["seed"], dataset["made_from"]) == ("zstd", 4, summary["digest"])


def test_copies_and_official_splits(pipeline, tmp_path):
    common = ("shard", "-w", pipeline["work"], str(tmp_path / "s"), "--recipe", pipeline["recipe"])
    summary = call(*common, "--respect-official-splits", "--drop-duplicates")
    dataset = json.loads((tmp_path / "s" / "dataset.json").read_text())
    assert (dataset["split"]["respect_official"], dataset["drop_duplicates"]) == (True, True)
    cases = pq.read_table(tmp_path / "s" / "cases.parquet").select(["official_split", "split"]).to_pylist()
    assert {row["split"] for row in cases if row["official_split"] == "train"} == {"train"}
    assert summary["n_cases"] == len(cases)


def test_appending(pipeline, tmp_path):
    work, shards = str(tmp_path / "work"), str(tmp_path / "shards")
    common = ("shard", "-w", work, shards, "--recipe", pipeline["recipe"])
    for patients in (3, 5):
        source = acdc_tree(tmp_path / "acdc", patients=patients)
        assert CliRunner().invoke(app, ["ingest", f"acdc={source}", "-w", work]).exit_code == 0
        call("harmonize", "-w", work, "--recipe", pipeline["recipe"])
        summary = call(*common, *(["--append"] if patients == 5 else []))
        assert summary["n_cases"] == 2 * patients
    assert summary["n_reused"] == 3
    assert CliRunner().invoke(app, ["verify", shards]).exit_code == 0
