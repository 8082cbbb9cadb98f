"""Checkpoints: what is written comes back, half of one is never seen, and damage is named."""

import json

import pytest
import torch
from safetensors import SafetensorError

from medvar_data.errors import MedvarError
from medvar_model.checkpoints.checkpoint import (
    Contents,
    TrainingState,
    build_tokenizer,
    find_checkpoint,
    find_last,
    load_tokenizer,
    load_transformer,
    load_weights,
    read_checkpoint,
    read_state,
    replacing,
    write_checkpoint,
)
from medvar_model.config import TOKENIZERS, transformer_config
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer

TINY = TOKENIZERS["tiny"]


def tokenizer_contents(seed=0):
    tokenizer = Tokenizer(TINY, torch.Generator().manual_seed(seed))
    return Contents(tokenizer.state_dict(), TINY, {"seed": seed}, {})


def test_a_tokenizer_comes_back(tmp_path):
    tokenizer = Tokenizer(TINY, torch.Generator().manual_seed(1)).eval()
    write_checkpoint(tmp_path / "tok", Contents(tokenizer.state_dict(), TINY, {"seed": 1}, {}))
    again = load_tokenizer(tmp_path / "tok")
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    assert torch.equal(again.decode(again.encode(images)), tokenizer.decode(tokenizer.encode(images)))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    kept = read_checkpoint(tmp_path / "tok", "tokenizer")
    assert (kept.config, dict(kept.run), kept.conditions) == (TINY, {"seed": 1}, {})


def test_a_transformer_comes_back_with_its_conditions(tmp_path):
    config = transformer_config("d2", TINY, 2)
    transformer = Transformer(config, torch.Generator().manual_seed(2)).eval()
    rows = {"chaos-mr": 0, "amos-ct": 1}
    write_checkpoint(tmp_path / "run" / "last", Contents(transformer.state_dict(), config, {}, rows))
    again, conditions = load_transformer(tmp_path / "run")
    assert conditions == rows
    assert list(conditions) == list(rows)
    inputs = torch.rand(2, config.n_tokens - 1, config.latent_channels)
    assert torch.equal(again(torch.tensor([0, 2]), inputs), transformer(torch.tensor([0, 2]), inputs))


def test_a_state_comes_back_bit_for_bit(tmp_path):
    tensors = {"optimizer/0/step": torch.tensor(3.0), "memory/counts": torch.arange(4).view(2, 2)}
    progress = {"step": 4, "best": 0.1, "skipped": 0, "skipped_in_a_row": 0}
    write_checkpoint(tmp_path / "last", tokenizer_contents(), TrainingState(tensors, progress))
    state = read_state(tmp_path / "last")
    assert state.progress == progress
    assert all(torch.equal(state.tensors[name], value) for name, value in tensors.items())
    assert find_last(tmp_path) == tmp_path / "last"


def test_the_digest_names_the_content(tmp_path):
    one, same, other = tokenizer_contents(0), tokenizer_contents(0), tokenizer_contents(1)
    assert one.digest == same.digest != other.digest
    write_checkpoint(tmp_path / "tok", one)
    assert read_checkpoint(tmp_path / "tok", "tokenizer").digest == one.digest


def test_a_runs_folder_stands_for_its_best_else_its_last(tmp_path):
    write_checkpoint(tmp_path / "last", tokenizer_contents(0))
    assert find_checkpoint(tmp_path) == tmp_path / "last"
    write_checkpoint(tmp_path / "best", tokenizer_contents(1))
    assert find_checkpoint(tmp_path) == tmp_path / "best"
    assert find_checkpoint(tmp_path / "last") == tmp_path / "last"


def test_a_failed_write_leaves_the_old_one(tmp_path):
    write_checkpoint(tmp_path / "last", tokenizer_contents(0))

    def write_half():
        with replacing(tmp_path / "last") as partial:
            (partial / "config.json").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert read_checkpoint(tmp_path, "tokenizer").run == {"seed": 0}
    write_checkpoint(tmp_path / "last", tokenizer_contents(1))  # the leftover is no hindrance
    assert read_checkpoint(tmp_path, "tokenizer").run == {"seed": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_between_the_two_renames_the_old_one_is_found(tmp_path):
    write_checkpoint(tmp_path / "last", tokenizer_contents(0), TrainingState({}, {"step": 7}))
    (tmp_path / "last").rename(tmp_path / "last.previous")
    assert find_last(tmp_path) == tmp_path / "last.previous"
    assert read_checkpoint(tmp_path, "tokenizer").run == {"seed": 0}
    write_checkpoint(tmp_path / "last", tokenizer_contents(1), TrainingState({}, {"step": 8}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_what_is_missing_or_damaged_is_a_sentence(tmp_path):
    with pytest.raises(MissingCheckpoint, match="holds no checkpoint"):
        load_tokenizer(tmp_path)
    write_checkpoint(tmp_path / "tok", tokenizer_contents())
    with pytest.raises(MissingCheckpoint, match="holds a tokenizer; wanted a transformer"):
        load_transformer(tmp_path / "tok")
    weights = (tmp_path / "tok" / "model.safetensors").read_bytes()
    (tmp_path / "tok" / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(MissingCheckpoint, match=r"model\.safetensors is damaged"):
        load_tokenizer(tmp_path / "tok")
    (tmp_path / "tok" / "model.safetensors").unlink()
    with pytest.raises(MissingCheckpoint, match=r"no model\.safetensors"):
        load_tokenizer(tmp_path / "tok")
    for text in ("{", "[]"):
        (tmp_path / "tok" / "config.json").write_text(text)
        with pytest.raises(MissingCheckpoint, match=r"config\.json is damaged"):
            load_tokenizer(tmp_path / "tok")
    (tmp_path / "tok" / "config.json").write_text(json.dumps({"kind": "tokenizer", "widht": 3}))
    with pytest.raises(ConfigMismatch, match="widht"):
        load_tokenizer(tmp_path / "tok")
    (tmp_path / "tok" / "run.json").unlink()
    (tmp_path / "tok" / "config.json").write_text(json.dumps({"kind": "tokenizer"}))
    with pytest.raises(MissingCheckpoint, match="no "):
        load_tokenizer(tmp_path / "tok")


def test_weights_of_another_vocabulary_are_refused_by_name():
    contents = tokenizer_contents()
    codes = "pyramid.codebook.codes"
    fewer = {**contents.weights, codes: contents.weights[codes][:32]}
    with pytest.raises(ConfigMismatch, match=r"here: weight pyramid.codebook.codes has shape \(32, 8\)"):
        build_tokenizer(Contents(fewer, TINY, {}, {}), "here")
    without = {name: value for name, value in contents.weights.items() if name != codes}
    with pytest.raises(ConfigMismatch, match="has shape none"):
        load_weights(Tokenizer(TINY), without, "here")


def test_nothing_is_pickled(tmp_path):
    write_checkpoint(tmp_path / "last", tokenizer_contents(), TrainingState({}, {}))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


@pytest.mark.parametrize("code", [28, 122])
def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch, code):
    """Safetensors hides the system's error in a text."""

    def refuse(*_: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {code})")

    write_checkpoint(tmp_path / "last", tokenizer_contents(0))
    monkeypatch.setattr("medvar_model.checkpoints.checkpoint.save_file", refuse)
    with pytest.raises(MedvarError, match="is full"):
        write_checkpoint(tmp_path / "last", tokenizer_contents(1))
    assert read_checkpoint(tmp_path, "tokenizer").run == {"seed": 0}
