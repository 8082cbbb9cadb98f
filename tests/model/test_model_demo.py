"""The model's demo, tiny: all stages, a page, and going on after a stop."""

import re
from dataclasses import replace

import pytest
from support.shard_sets import CONDITIONS, write_shard_set

from medvar_model.config import TOKENIZERS
from medvar_model.demo import TOKENIZER_LOOP, TRANSFORMER_LOOP, ModelDemo, run_model_demo
from medvar_model.errors import ModelError, ShardSetMismatch
from medvar_model.evaluation.page import model_section

STYLES = {"samples": 64, "batch_size": 8, "checkpoint_every": 16, "validate_every": 32, "log_every": 8}


def tiny(folder) -> ModelDemo:
    return ModelDemo(
        folder,
        TOKENIZERS["tiny"],
        replace(TOKENIZER_LOOP, **STYLES),
        "d2",
        replace(TRANSFORMER_LOOP, **STYLES),
        count=3,
        revive_every=24,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_shard_set(folder / "shards-64", {"train": 30, "val": 13, "test": 12})
    return folder


@pytest.fixture(scope="module")
def first(folder):
    lines = []
    return run_model_demo(tiny(folder), lines.append), lines


def test_all_stages_leave_their_folders_and_say_so(first, folder):
    result, lines = first
    for name in ("tokenizer", "transformer", "evaluation"):
        assert (folder / "model" / name).is_dir()
        assert any(name in line for line in lines)
        assert result.seconds[name] > 0
    assert result.evaluation.report["sampled"] == sorted(CONDITIONS)
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines)


def test_the_same_call_again_finds_everything_finished(first, folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "model").rglob("*.safetensors")}
    lines = []
    again = run_model_demo(tiny(folder), lines.append)
    assert again.evaluation.report == first[0].evaluation.report
    assert not lines
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "model").rglob("*.safetensors")}


def test_a_demo_that_was_stopped_ends_as_one_that_was_not(first, folder, tmp_path):
    """Stopped in the middle of the transformer's training."""
    write_shard_set(tmp_path / "shards-64", {"train": 30, "val": 13, "test": 12})

    class Stopped(Exception):
        pass

    def stop(line):
        if "transformer: 32" in line:
            raise Stopped

    with pytest.raises(Stopped):
        run_model_demo(tiny(tmp_path), stop)
    resumed = run_model_demo(tiny(tmp_path), lambda line: None)
    assert resumed.evaluation.report == first[0].evaluation.report


def test_the_page_shows_every_condition_and_both_runs(first):
    result, _ = first
    html = model_section(result.evaluation.report, "model/evaluation/pictures", result.tokenizer, result.transformer)
    for name in CONDITIONS:
        assert f"samples-{name}.png" in html
    assert "Tokenizer: loss" in html
    assert "Transformer: loss" in html


def test_a_folder_without_shards_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"medvar-data demo"):
        run_model_demo(tiny(tmp_path), lambda line: None)


def test_a_set_of_few_patients_is_evaluated_by_what_it_holds_out(tmp_path):
    """Nothing in val: no validation, and the test split scores; nothing in either: refused before any training."""
    write_shard_set(tmp_path / "some" / "shards-64", {"train": 30, "test": 12})
    report = run_model_demo(tiny(tmp_path / "some"), lambda line: None).evaluation.report
    assert report["splits"] == {"test": 12}
    write_shard_set(tmp_path / "none" / "shards-64", {"train": 30})
    with pytest.raises(ShardSetMismatch, match="more patients"):
        run_model_demo(tiny(tmp_path / "none"), lambda line: None)
    assert not (tmp_path / "none" / "model").exists()
