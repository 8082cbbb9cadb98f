"""Exported models: what is written comes back, says what it is, and names no place of whoever trained it."""

import json
from dataclasses import replace

import pytest
import torch
from support.runs import run, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_cli.model_options import SamplingOptions
from medvar_data.errors import MedvarError
from medvar_model.checkpoints.checkpoint import read_checkpoint
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnusableFolder
from medvar_model.export.export import ExportSpec, export, exported_settings, without_places
from medvar_model.export.zoo import zoo
from medvar_model.sampling.sample import SAMPLINGS
from medvar_model.sampling.sample_files import SampleFiles, write_samples

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A shard set and a run on it, in a folder whose name would give somebody away."""
    folder = tmp_path_factory.mktemp("home-of-jane-doe")
    write_shard_set(folder / "S", {"train": 12, "val": 5, "test": 5})
    run(tokenizer_spec(folder / "S", folder / "tok"))
    run(transformer_spec(folder / "S", folder / "d2", folder / "tok"))
    return folder


def front_matter(card: str) -> dict:
    head = card.split("---\n")[1]
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in head.splitlines())}


def test_an_export_draws_what_the_run_draws(trained, tmp_path):
    out = export(ExportSpec(str(trained / "d2"), str(tmp_path / "model"), SAMPLINGS["demo"], str(trained / "S")))
    for name, source in (("drawn", trained / "d2"), ("again", out)):
        write_samples(SampleFiles(str(source), str(tmp_path / name), count=2, settings=SAMPLINGS["demo"]), CPU)
    assert [p.read_bytes() for p in sorted((tmp_path / "drawn").glob("*.png"))] == [
        p.read_bytes() for p in sorted((tmp_path / "again").glob("*.png"))
    ]
    assert exported_settings(out) == SAMPLINGS["demo"]
    assert exported_settings(trained / "d2") is None


def test_an_export_is_sampled_as_it_says(trained, tmp_path):
    out = export(ExportSpec(str(trained / "d2"), str(tmp_path / "model"), SAMPLINGS["demo"]))
    assert SamplingOptions().settings(str(out)) == SAMPLINGS["demo"]
    assert SamplingOptions(guidance=3.0).settings(str(out)) == replace(SAMPLINGS["demo"], guidance=3.0)
    assert SamplingOptions(preset="paper").settings(str(out)) == SAMPLINGS["paper"]
    assert SamplingOptions().settings(str(trained / "d2")) == SAMPLINGS["paper"]


def test_an_export_names_no_place(trained, tmp_path):
    out = export(ExportSpec(str(trained / "d2"), str(tmp_path / "model"), shards=str(trained / "S")))
    texts = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert len(texts) == 9
    assert not any(b"jane-doe" in text or str(tmp_path).encode() in text for text in texts)
    run_note = json.loads((out / "run.json").read_text())
    assert run_note["shard_set"]["digest"] == json.loads((trained / "S/dataset.json").read_text())["digest"]
    assert run_note["settings"]["loop"]["batch_size"] == 4


def test_the_card_says_what_the_checkpoint_is(trained, tmp_path):
    out = export(
        ExportSpec(str(trained / "d2"), str(tmp_path / "model"), shards=str(trained / "S"), name="a|b", license="mit")
    )
    card = (out / "README.md").read_text()
    assert front_matter(card)["license"] == "mit"
    assert front_matter(card)["pipeline_tag"] == "unconditional-image-generation"
    kept = read_checkpoint(out, "transformer")
    assert kept.digest in card
    assert "# a\\|b" in card
    assert all(f"`{name}`" in card for name in kept.conditions)
    assert all(f"| {name} |" in card for name in ("alpha", "beta"))


def test_a_tokenizer_is_exported_alone(trained, tmp_path):
    out = export(ExportSpec(str(trained / "tok"), str(tmp_path / "model")))
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors", "run.json"]
    assert read_checkpoint(out, "tokenizer").digest == read_checkpoint(trained / "tok", "tokenizer").digest
    assert "load_tokenizer" in (out / "README.md").read_text()


def test_an_export_takes_the_place_of_an_earlier_one_only(trained, tmp_path):
    out = export(ExportSpec(str(trained / "tok"), str(tmp_path / "model")))
    export(ExportSpec(str(trained / "d2"), str(out)))
    assert (out / "conditions.json").is_file()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UnusableFolder, match=r"thesis\.txt"):
        export(ExportSpec(str(trained / "d2"), str(out)))
    with pytest.raises(UnusableFolder, match="another"):
        export(ExportSpec(str(trained / "d2"), str(trained / "d2" / "last")))


def test_another_shard_set_is_refused(trained, tmp_path):
    write_shard_set(tmp_path / "other", {"train": 6})
    with pytest.raises(ConfigMismatch, match="trained on"):
        export(ExportSpec(str(trained / "d2"), str(tmp_path / "model"), shards=str(tmp_path / "other")))
    assert not (tmp_path / "model").exists()


def test_settings_that_were_damaged_are_named(trained, tmp_path):
    out = export(ExportSpec(str(trained / "d2"), str(tmp_path / "model")))
    for text in ("[", '{"guidance": "much"}', '{"top_p": 7}'):
        (out / "generation_config.json").write_text(text)
        with pytest.raises(MedvarError, match=r"generation_config|--top-p"):
            exported_settings(out)


def test_places_leave_run_json_whatever_they_are_nested_in():
    run_note = {
        "command": ["medvar-model", "/home/jane"], "device": "cuda:0", "seed": 3,
        "tokenizer": {"path": "/home/jane/tok", "digest": "ab"},
        "settings": {"out": "/home/jane", "data": {"shards": "/home/jane/S", "cache": "/tmp/x", "where": "modality = 'CT'"}},
    }  # fmt: skip
    kept = without_places(run_note)
    assert kept == {
        "seed": 3, "tokenizer": {"digest": "ab", "path": ""}, "settings": {"data": {"where": "modality = 'CT'"}},
    }  # fmt: skip


def test_the_zoo_reads_its_rows_off_the_checkpoints(trained):
    tokenizer, transformer = zoo([str(trained / "tok"), str(trained / "d2" / "last")])
    assert (tokenizer.kind, tokenizer.size, tokenizer.conditions) == ("tokenizer", "32", 0)
    assert (transformer.kind, transformer.size, transformer.samples, transformer.finished) == (
        "transformer",
        "d2",
        32,
        1.0,
    )
    logged = [json.loads(line) for line in (trained / "d2/log.jsonl").read_text().splitlines()]
    assert transformer.validation == min(line["validation"]["loss"] for line in logged if "validation" in line)
    with pytest.raises(MissingCheckpoint):
        zoo([str(trained / "S")])
