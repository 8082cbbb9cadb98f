"""Maps of surprise, laid back onto the scan by `medvar-data reconstruct`; and what the commands refuse."""

import json

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from medvar_cli.data_commands import app as data
from medvar_cli.model_commands import app as model
from medvar_model.checkpoints.checkpoint import Contents, write_checkpoint
from medvar_model.config import TOKENIZERS, transformer_config
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer


@pytest.fixture(scope="module")
def run(pipeline, tmp_path_factory) -> str:
    """Random networks that know the conditions of the pipeline's set."""
    folder = tmp_path_factory.mktemp("run")
    with open(f"{pipeline['shards']}/dataset.json") as file:
        names = json.load(file)["conditions"]
    tokenizer = Tokenizer(TOKENIZERS["tiny"], torch.Generator().manual_seed(1))
    transformer = Transformer(transformer_config("d2", tokenizer.config, len(names)), torch.Generator().manual_seed(2))
    rows = {name: row for row, name in enumerate(sorted(names, key=lambda name: names[name]))}
    write_checkpoint(folder / "tokenizer", Contents(tokenizer.state_dict(), tokenizer.config, {}, {}))
    write_checkpoint(folder / "best", Contents(transformer.state_dict(), transformer.config, {}, rows))
    return str(folder)


def called(app, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_map_of_surprise_is_laid_back_onto_its_scan(pipeline, run, tmp_path):
    out = tmp_path / "inside"
    split = next(
        s
        for s in ("train", "val", "test")
        if pq.read_table(f"{pipeline['shards']}/slices.parquet")["split"].to_pylist().count(s)
    )
    said = json.loads(called(model, "features", pipeline["shards"], run, "-o", str(out), "--split", split, "--json"))
    rows = pq.read_table(out / "surprise" / "slices.parquet").to_pylist()
    assert said["slices"] == len(rows) > 0
    name = f"{rows[0]['collection']}-{rows[0]['case']}"
    for source, target in ((pipeline["shards"], "scan.nii.gz"), (str(out / "surprise"), "map.nii.gz")):
        called(data, "reconstruct", source, name, "-o", str(tmp_path / target))
    scan, laid = (nib.load(tmp_path / file) for file in ("scan.nii.gz", "map.nii.gz"))
    assert scan.shape == laid.shape
    assert np.array_equal(scan.affine, laid.affine)
    seen = {row["key"]: row for row in pq.read_table(out / "slices.parquet").to_pylist()}
    mine = [seen[row["key"]] for row in rows if row["case"] == rows[0]["case"]]
    maps = [load_file(out / row["file"])["surprise"][row["place"]] for row in mine]
    kept = laid.get_fdata()[laid.get_fdata() > 0]
    assert kept.mean() == pytest.approx(float(torch.stack(maps).mean()), rel=0.1)  # nats a pixel, as the maps have them


def test_inpaint_wants_an_area(pipeline, run, tmp_path):
    for box in ([], ["--box", "1,2"]):
        result = CliRunner().invoke(model, ["inpaint", pipeline["shards"], run, "-o", str(tmp_path / "out"), *box])
        assert result.exit_code != 0
        assert "--box" in result.output


def test_presets_come_from_a_file_too(run, tmp_path):
    (tmp_path / "mine.toml").write_text("[mine]\nguidance = 1.5\ntop_k = 10\n")
    arguments = [
        "sample",
        run,
        "-o",
        str(tmp_path / "out"),
        "--settings",
        str(tmp_path / "mine.toml"),
        "--preset",
        "mine",
    ]
    shown = json.loads(called(model, *arguments, "--seed", "3", "--unguided-scales", "1", "--dry-run", "--json"))
    assert shown["settings"] == {"guidance": 1.5, "top_k": 10, "top_p": 0.95, "seed": 3, "unguided_scales": 1}
