"""What a run may be told beside its numbers: precision, memory, when to keep what, where to log, and how it says what it uses."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import run, same_files, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medvar_model.config import TOKENIZERS, transformer_config
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.transformer import Transformer
from medvar_model.training import stepper
from medvar_model.training.flops import measured_peak, training_flops
from medvar_model.training.keeping import superseded
from medvar_model.training.transformer import TransformerObjective


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 22, "val": 6})


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    spec = tokenizer_spec(shards, tmp_path_factory.mktemp("runs") / "tokenizer")
    run(spec)
    return spec.out


def logged(spec, **run_options):
    logs = []
    run(spec, logs.append, **run_options)
    return logs


@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
def test_computing_blocks_again_changes_no_bit(shards, tokenizer, kind, tmp_path, monkeypatch):
    calls = []
    real = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("medvar_model.training.parallel.checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    for recompute in (False, True):
        out = tmp_path / str(recompute)
        changes = {"samples": 12, "recompute": recompute}
        spec = (
            transformer_spec(shards, out, tokenizer, **changes)
            if kind == "transformer"
            else replace(tokenizer_spec(shards, out, **changes), unquantized=0.0)
        )
        run(spec)
        assert bool(calls) == recompute
    assert same_files(tmp_path / "False/last/model.safetensors", tmp_path / "True/last/model.safetensors")


@pytest.mark.slow
def test_half_precision_scales_its_losses_and_resumes(shards, tokenizer, tmp_path):
    exact = logged(transformer_spec(shards, tmp_path / "exact", tokenizer))
    spec = transformer_spec(shards, tmp_path / "half", tokenizer, precision="float16")
    half = logged(spec)
    assert [log.numbers["loss"] for log in half] == pytest.approx([log.numbers["loss"] for log in exact], rel=1e-2)
    assert [log.numbers["gradient_norm"] for log in half] == pytest.approx(
        [log.numbers["gradient_norm"] for log in exact], rel=0.1
    )
    state = load_file(tmp_path / "half" / "last" / "state" / "training.safetensors")
    assert state["scale"].tolist() == [2.0**11, 8.0]
    again = replace(spec, out=str(tmp_path / "again"))
    for _ in range(8):
        run(again, stop=lambda: True)
    for name in ("model.safetensors", "state/training.safetensors"):
        assert same_files(tmp_path / "half" / "last" / name, tmp_path / "again" / "last" / name)


def test_a_scale_that_is_too_large_is_halved_and_no_image_blamed(shards, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(stepper, "FIRST_SCALE", 2.0**30)
    spec = transformer_spec(shards, tmp_path / "run", tokenizer, precision="float16", samples=64)
    logs = logged(spec)
    scale, _ = load_file(tmp_path / "run" / "last" / "state" / "training.safetensors")["scale"].tolist()
    assert 1 < scale < 2.0**30
    assert logs[-1].numbers["skipped"] == 0
    assert not (tmp_path / "run" / "skipped.jsonl").exists()


def test_a_loss_that_is_not_finite_is_skipped_in_half_precision_too(shards, tokenizer, tmp_path, monkeypatch):
    forward = TransformerObjective.forward

    def poisoned(self, examples, draw):
        losses = forward(self, examples, draw)
        return {**losses, "loss": losses["loss"] * (float("nan") if draw.step == 2 else 1.0)}

    monkeypatch.setattr(TransformerObjective, "forward", poisoned)
    logs = logged(transformer_spec(shards, tmp_path / "run", tokenizer, precision="float16"))
    assert logs[-1].numbers["skipped"] == 1
    (note,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert (note["step"], len(note["keys"])) == (2, 4)


def test_checkpoints_come_by_the_clock_and_stay_by_policy(shards, tokenizer, tmp_path):
    """A checkpoint is due at once after each step; four older ones stay, and one for every twelve images."""
    timed = {"checkpoint_every": 1000, "checkpoint_minutes": 1e-9, "keep": 1, "keep_every": 12}
    spec = transformer_spec(shards, tmp_path / "run", tokenizer, **timed)
    run(spec)
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "kept").iterdir())
    assert kept == [12, 24, 28, 32]
    assert same_files(tmp_path / "run/kept/000000000032/model.safetensors", tmp_path / "run/last/model.safetensors")
    never = transformer_spec(
        shards, tmp_path / "never", tokenizer, checkpoint_every=1000, checkpoint_minutes=0.0, keep=9
    )
    run(never)
    assert sorted(int(path.name) for path in (tmp_path / "never" / "kept").iterdir()) == [0, 32]
    begun = replace(never, out=str(tmp_path / "begun"), init_from=str(tmp_path / "run/kept/000000000012"))
    assert run(begun).is_finished


@pytest.mark.parametrize(
    ("keep", "keep_every", "gone"),
    [(0, 0, [1, 5, 9, 10, 14]), (2, 0, [1, 5, 9]), (0, 5, [1, 9, 14]), (1, 9, [1, 5, 10]), (9, 9, [])],
)
def test_which_checkpoints_stay(keep, keep_every, gone):
    assert superseded([1, 5, 9, 10, 14, 16][:6], keep, keep_every) == [n for n in gone if n != 16]


def test_operations_are_those_that_torch_counts():
    config = transformer_config("d2", TOKENIZERS["tiny"], 3)
    network, inputs = Transformer(config).eval(), torch.zeros(1, config.n_tokens - 1, config.latent_channels)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, dtype=torch.int64), inputs)
    assert training_flops(config) == 3 * counter.get_total_flops()
    assert 1.7e12 < training_flops(TOKENIZERS["paper"]) < 1.9e12


def test_the_share_of_the_peak_is_told(shards, tokenizer, tmp_path):
    logs = logged(transformer_spec(shards, tmp_path / "run", tokenizer, peak_tflops=0.5, samples=8))
    config = transformer_config("d2", TOKENIZERS["tiny"], 3)
    for log in logs:
        wanted = log.numbers["images_per_second"] * training_flops(config) / 0.5e12
        assert log.numbers["mfu"] == pytest.approx(wanted)
    assert measured_peak(torch.device("cpu"), None) > 1e8


class Page:
    """Stands for a run's page in Weights & Biases."""

    def __init__(self, **begun):
        self.begun, self.lines, self.finished = begun, [], False

    def log(self, numbers, step):
        self.lines.append((step, numbers))

    def finish(self):
        self.finished = True


def test_weights_and_biases_gets_the_numbers_and_no_path(shards, tokenizer, tmp_path, monkeypatch):
    pages = []
    stub = types.ModuleType("wandb")
    stub.init = lambda **begun: pages.append(Page(**begun)) or pages[-1]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    spec = transformer_spec(shards, tmp_path / "run", tokenizer, wandb="scans")
    run(spec, stop=lambda: True)
    run(spec)
    first, second = pages
    assert first.begun["project"] == "scans"
    assert first.begun["resume"] == "allow"
    assert first.begun["id"] == second.begun["id"]
    assert first.begun["config"]["network"]["depth"] == 2
    assert str(tmp_path) not in json.dumps(first.begun["config"])
    assert [step for step, _ in first.lines + second.lines] == list(range(1, 9))
    last = second.lines[-1][1]
    assert {"train/loss", "train/mfu", "val/loss", "samples"} <= set(last)
    assert first.finished
    assert second.finished


def test_weights_and_biases_must_be_installed(shards, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigMismatch, match=r"pip install 'medvar\[wandb\]', or leave the option out"):
        run(transformer_spec(shards, tmp_path / "run", tokenizer, wandb="scans"))
    assert not Path(tmp_path / "run").exists()


@pytest.mark.slow
def test_compiled_blocks_train_alike(shards, tokenizer, tmp_path):
    """In a process of its own, since checks of shapes at run time are not compiled."""
    import subprocess
    import textwrap

    spec = transformer_spec(shards, tmp_path / "run", tokenizer, compile=True, samples=12, validate_every=0)
    program = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
        from medvar_model.loader import DataSpec
        from medvar_model.training.settings import LoopSettings
        from medvar_model.training.transformer import TrainTransformer
        from support.runs import run
        run({spec!r}, lambda log: print(log.numbers["loss"]))
        """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = logged(replace(spec, out=str(tmp_path / "plain"), loop=replace(spec.loop, compile=False)))
    compiled = [float(line) for line in done.stdout.split()]
    assert compiled == pytest.approx([log.numbers["loss"] for log in plain], rel=1e-5)
