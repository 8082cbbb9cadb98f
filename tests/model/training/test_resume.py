"""The law of resuming: a run that was stopped or killed gives what an undisturbed one gives, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import run, same_files, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_model.errors import ConfigMismatch, ShardSetMismatch
from medvar_model.training.log import read_log

TIMES = ("images_per_second", "waiting", "mfu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 22, "val": 6})


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """Undisturbed runs of both networks, with averaged weights for the transformer."""
    root = tmp_path_factory.mktemp("runs")
    specs = {"tokenizer": tokenizer_spec(shards, root / "tokenizer")}
    specs["transformer"] = transformer_spec(shards, root / "transformer", root / "tokenizer", average=0.9)
    for spec in specs.values():
        assert run(spec).is_finished
    return specs


class Killed(Exception):
    pass


def killer(step):
    def report(log):
        if log.step == step:
            raise Killed

    return report


def log_of(out):
    return [
        {name: value for name, value in line.items() if name not in TIMES} for line in read_log(Path(out) / "log.jsonl")
    ]


def assert_same_run(a: str, b: str):
    assert log_of(a) == log_of(b)
    for name in ("last/model.safetensors", "last/state/training.safetensors", "best/model.safetensors"):
        assert same_files(Path(a) / name, Path(b) / name), name


@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
@pytest.mark.parametrize("step", [1, 3, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 7))])
def test_killed_and_resumed_is_undisturbed(runs, kind, step, tmp_path):
    spec = replace(runs[kind], out=str(tmp_path / "run"))
    with pytest.raises(Killed):
        run(spec, killer(step))
    resumed = []
    assert run(spec, lambda log: resumed.append(log.step)).is_finished
    assert resumed == list(range(step // 2 * 2 + 1, 9))  # a checkpoint lies every two steps
    assert_same_run(spec.out, runs[kind].out)


@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
def test_stopped_at_every_step_is_undisturbed(runs, kind, tmp_path):
    spec = replace(runs[kind], out=str(tmp_path / "run"))
    results = [run(spec, stop=lambda: True) for _ in range(8)]
    assert [result.step for result in results] == list(range(1, 9))
    assert results[-1].is_finished
    assert_same_run(spec.out, runs[kind].out)


def test_a_finished_run_is_left_alone(runs):
    spec = runs["tokenizer"]
    before = {path: path.stat().st_mtime_ns for path in Path(spec.out).rglob("*")}
    result = run(spec, report=lambda log: pytest.fail("a step was taken"))
    assert result.is_finished
    assert {path: path.stat().st_mtime_ns for path in Path(spec.out).rglob("*")} == before


def test_worker_threads_and_passes_do_not_change_the_run(runs, tmp_path):
    spec = runs["tokenizer"]
    other = replace(spec, out=str(tmp_path / "run"), data=replace(spec.data, workers=3))
    run(other)
    assert_same_run(other.out, spec.out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "--seed was 0, now 1.* Repeat the command"),
        (
            {"samples": 64},
            "--samples was 32, now 64.* begin another run with -o NEW_FOLDER --init-from .*repeat the command",
        ),
        ({"batch_size": 2}, "--batch-size was 4, now 2.* Repeat the command"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(runs, change, words):
    spec = runs["tokenizer"]
    with pytest.raises(ConfigMismatch, match=words):
        run(replace(spec, loop=replace(spec.loop, **change)))


def test_another_vocabulary_is_refused(runs):
    spec = runs["tokenizer"]
    with pytest.raises(ConfigMismatch, match="vocabulary was 64, now 32"):
        run(replace(spec, config=replace(spec.config, vocabulary=32)))


def test_another_shard_set_is_refused(runs, tmp_path):
    more = write_shard_set(tmp_path / "more", {"train": 23, "val": 6})
    spec = runs["tokenizer"]
    with pytest.raises(ShardSetMismatch, match=r"22 training slices .* has 23"):
        run(replace(spec, data=replace(spec.data, shards=str(more))))
    conditions = {"alpha-ct": 3, "beta-mr": 7, "delta-mr": 12}
    other = write_shard_set(tmp_path / "other", {"train": 22, "val": 6}, conditions=conditions)
    spec = runs["transformer"]
    with pytest.raises(
        ShardSetMismatch, match="alpha-ct, beta-mr, gamma-mr, the shard set now has alpha-ct, beta-mr, delta"
    ):
        run(replace(spec, data=replace(spec.data, shards=str(other))))


def test_another_tokenizer_is_refused(runs, shards, tmp_path):
    run(tokenizer_spec(shards, tmp_path / "tokenizer", seed=5, samples=4))
    with pytest.raises(ConfigMismatch, match=r"begun with tokenizer .* the copy that was kept"):
        run(replace(runs["transformer"], tokenizer=str(tmp_path / "tokenizer")))
    assert run(replace(runs["transformer"], tokenizer=runs["transformer"].out + "/tokenizer")).is_finished


def test_a_moved_shard_set_is_the_same_set(runs, shards, tmp_path):
    (tmp_path / "moved").symlink_to(shards)
    spec = runs["tokenizer"]
    assert run(replace(spec, data=replace(spec.data, shards=str(tmp_path / "moved")))).is_finished


def test_run_json_says_what_went_in(runs):
    spec = runs["transformer"]
    said = json.loads((Path(spec.out) / "last" / "run.json").read_text())
    assert said["shard_set"]["shards"] == spec.data.shards
    assert said["shard_set"]["train_slices"] == 22
    assert said["tokenizer"]["path"] == spec.tokenizer
    assert said["settings"]["loop"]["betas"] == [0.9, 0.95]
    assert {"python", "torch", "medvar"} <= set(said["versions"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
def test_a_process_that_is_killed_outright_resumes_undisturbed(runs, kind, tmp_path):
    """SIGKILL at a moment nobody chose, again and again, until the run gets through."""
    spec = replace(runs[kind], out=str(tmp_path / "run"))
    program = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
        import torch
        torch.set_num_threads(1)
        from medvar_model.config import *
        from medvar_model.loader import DataSpec
        from medvar_model.training.adversary import AdversarySettings
        from medvar_model.training.losses import TokenizerLossWeights
        from medvar_model.training.settings import LoopSettings
        from medvar_model.training.tokenizer import TrainTokenizer
        from medvar_model.training.transformer import TrainTransformer
        from support.runs import run
        def report(log):
            print(log.step, flush=True)
        run({spec!r}, report)
    """)
    for deaths in range(4):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=dict(os.environ))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01 * deaths)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert_same_run(spec.out, runs[kind].out)
