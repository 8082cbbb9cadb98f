"""Checkpoints that somebody altered: opening one ends in a network or in a sentence, and no name in it leads out of a folder."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from support.doors import altered_json, damaged

from medvar_data.errors import MedvarError
from medvar_model.checkpoints.checkpoint import (
    Contents,
    TrainingState,
    build_tokenizer,
    build_transformer,
    read_checkpoint,
    read_state,
    write_checkpoint,
)
from medvar_model.config import TOKENIZERS, TransformerConfig
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.sample import SampleSettings
from medvar_model.sampling.sample_files import SampleFiles, write_samples

TINY = TOKENIZERS["tiny"]
SMALL = TransformerConfig(2, 2, TINY.vocabulary, TINY.latent_channels, TINY.scale_sides, head_width=8)
SHORT, LONG = 60, 2_500


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer(TINY, torch.Generator().manual_seed(0))
    transformer = Transformer(SMALL, torch.Generator().manual_seed(0))
    note = {"shard_set": {"shards": "s", "digest": "d", "train_slices": 3}, "settings": {"loop.samples": 5}}
    contents = Contents(transformer.state_dict(), SMALL, note, {"a-ct": 0, "b-mr": 1})
    progress = {"step": 3, "best": 1.5, "skipped": 0, "skipped_in_a_row": 0}
    write_checkpoint(folder / "last", contents, TrainingState({"x": torch.zeros(3)}, progress))
    write_checkpoint(folder / "tokenizer", Contents(tokenizer.state_dict(), TINY, {}, {}))
    return folder


def altered(run: Path, number: int, place: Path) -> str:
    rng = np.random.default_rng((7, number))
    shutil.copytree(run, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    change = altered_json if path.suffix == ".json" else damaged
    path.write_bytes(change(path.read_bytes(), rng))
    try:
        build_transformer(read_checkpoint(place, "transformer"), "run")
        build_tokenizer(read_checkpoint(place / "tokenizer", "tokenizer"), "tokenizer")
        read_state(place / "last")
    except MedvarError:
        return "refused"
    finally:
        shutil.rmtree(place)
    return "read"


def test_a_few_alterations(run, tmp_path):
    ends = Counter(altered(run, number, tmp_path / str(number)) for number in range(SHORT))
    assert ends["refused"] > SHORT / 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_alterations(run, tmp_path):
    ends = Counter(altered(run, number, tmp_path / str(number)) for number in range(SHORT, SHORT + LONG))
    print(dict(ends))
    assert sum(ends.values()) == LONG


@pytest.mark.parametrize("name", ["../../../x", "/tmp/x", "a/b", "", "A", "x\x1b[31m", "a" * 200])
def test_a_condition_whose_name_leads_out_writes_nothing(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "last" / "conditions.json").write_text(json.dumps({name: 0, "b-mr": 1}))
    before = set(tmp_path.rglob("*"))
    spec = SampleFiles(str(tmp_path / "run"), str(tmp_path / "out"), (name,), 1, SampleSettings(), 1, "")
    with pytest.raises(MissingCheckpoint, match=r"conditions\.json is damaged"):
        write_samples(spec, torch.device("cpu"))
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "out"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("depth", 10**7, "wanted at most"), ("head_width", 10**9, "wanted at most"), ("n_conditions", 10**6, "describes .* weights"),
     ("depth", 200, "describes .* weights"), ("scale_sides", list(range(1, 200)), "a list of 199 numbers")],
)  # fmt: skip
def test_a_configuration_beyond_its_weights_is_refused_before_it_is_built(run, tmp_path, key, value, words):
    shutil.copytree(run / "last", tmp_path / "last")
    path = tmp_path / "last" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ConfigMismatch, match=words):
        read_checkpoint(tmp_path, "transformer")
