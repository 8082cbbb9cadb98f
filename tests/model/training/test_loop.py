"""The loop: its schedule, its sums, what it does with losses that are not finite, and one or two processes alike."""

import json
import math
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.runs import PROCESS, run, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_data.errors import SpecError
from medvar_model.checkpoints.checkpoint import load_tokenizer, read_checkpoint
from medvar_model.config import TOKENIZERS, TransformerConfig, transformer_config
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ModelError
from medvar_model.loader import DataSpec, Loader
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.training.log import read_log
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.objective import Draw, decay_groups
from medvar_model.training.settings import LoopSettings
from medvar_model.training.tokenizer import TokenizerObjective, TrainTokenizer
from medvar_model.training.transformer import SPARED, TransformerObjective

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 22, "val": 7})


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    spec = tokenizer_spec(shards, tmp_path_factory.mktemp("runs") / "tokenizer")
    run(spec)
    return spec.out


def settings(**changes):
    fields = {"samples": 1000, "batch_size": 64, "base_learning_rate": 1e-4, "clip": 1.0, "weight_decay": 0.1}
    return LoopSettings(betas=(0.9, 0.95), **fields | changes)


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    loop = settings(samples=100_000, batch_size=512)
    peak = 2e-4
    assert loop.peak_learning_rate == pytest.approx(peak)
    assert loop.learning_rate(0) == pytest.approx(0.005 * peak)
    assert loop.learning_rate(1000) == pytest.approx(peak * (0.005 + 0.995 / 2))
    assert loop.learning_rate(2000) == pytest.approx(peak)
    assert loop.learning_rate(51_000) == pytest.approx(peak * 0.55)
    assert loop.learning_rate(100_000) == loop.learning_rate(200_000) == pytest.approx(0.1 * peak)


def test_schedules_count_samples_so_the_batch_changes_only_the_scale():
    small, large = settings(batch_size=32), settings(batch_size=128)
    for seen in range(0, 1000, 7):
        assert large.learning_rate(seen) == pytest.approx(4 * small.learning_rate(seen))
    for loop in (small, large):
        due = [step for step in range(40) if loop.is_due(100, step)]
        assert [(step + 1) * loop.batch_size // 100 for step in due] == sorted(
            {(step + 1) * loop.batch_size // 100 for step in range(40)} - {0}
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"samples": 0}, "above 0"), ({"warmup": 1.0}, "from 0 to 1"), ({"precision": "fp8"}, "wanted one of auto")],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ConfigMismatch, match=words):
        settings(**changes)


def test_what_decays_follows_var():
    network = Transformer(transformer_config("d2", TOKENIZERS["tiny"], 3))
    decayed, spared = (
        {id(parameter) for parameter in group["params"]} for group in decay_groups(network, 0.05, SPARED)
    )
    names = {name: id(parameter) in decayed for name, parameter in network.named_parameters()}
    assert len(decayed) + len(spared) == len(names)
    assert all(names[name] for name in ("condition_embedding.weight", "head.weight", "blocks.0.modulation.weight"))
    assert not any(names[name] for name in ("position_embedding", "level_embedding.weight", "start_embedding"))
    assert not any(decays for name, decays in names.items() if name.endswith(("bias", "log_scale")))


@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
def test_adding_up_small_passes_gives_the_gradient_of_the_whole(shards, tokenizer, kind, tmp_path):
    """Compared after one step, where clipping and Adam's first step are the same functions of the gradient."""
    results = []
    for micro_batch in (0, 4, 3, 1):
        out = tmp_path / str(micro_batch)
        changes = {"samples": 4, "batch_size": 4, "micro_batch": micro_batch}
        whole = tokenizer_spec(shards, out, **changes)
        spec = whole if kind == "tokenizer" else transformer_spec(shards, out, tokenizer, **changes)
        if kind == "tokenizer":
            spec = replace(spec, unquantized=0.0)
        logs = []
        run(spec, logs.append)
        state = load_file(out / "last" / "state" / "training.safetensors")
        moments = torch.cat([value.flatten() for name, value in sorted(state.items()) if name.endswith("exp_avg")])
        results.append((logs[0].numbers["loss"], logs[0].numbers["gradient_norm"], moments))
    for loss, norm, moments in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert norm == pytest.approx(results[0][1], rel=1e-3)
        assert (moments - results[0][2]).norm() < 1e-3 * results[0][2].norm()


@pytest.mark.slow
def test_both_networks_learn(shards, tokenizer, tmp_path):
    many = {"samples": 240, "batch_size": 8, "checkpoint_every": 120, "validate_every": 40}
    for spec in (
        tokenizer_spec(shards, tmp_path / "tok", base_learning_rate=0.1, **many),
        transformer_spec(shards, tmp_path / "var", tokenizer, base_learning_rate=0.06, **many),
    ):
        logs = []
        run(spec, logs.append)
        losses = [log.numbers["loss"] for log in logs]
        assert sum(losses[-5:]) < 0.8 * sum(losses[3:8])
        assert [log.step for log in logs] == list(range(1, 31))
        validations = [log.validation["loss"] for log in logs if log.validation]
        assert min(validations) < 0.9 * validations[0]


def test_validation_is_the_same_twice_and_told_every_condition(shards, tokenizer):
    process, data = PROCESS, DataSpec(str(shards))
    config = transformer_config("d2", TOKENIZERS["tiny"], 3)
    objective = TransformerObjective(
        replace(config, condition_dropout=0.9), load_tokenizer(Path(tokenizer)), 0, process
    )
    loader = Loader(data, "val", 32, 4, 0, process)
    objective.network.eval()
    with torch.no_grad():
        validated = [objective.validate(loader.passes(batch)) for batch in (4, 4, 3)]
        assert validated[0] == validated[1]
        assert validated[2] == pytest.approx(validated[0], rel=1e-5)  # a short last batch has no greater weight
        objective.network.condition_embedding.weight[-1].fill_(
            float("nan")
        )  # the row of "no condition" must not be read
        assert objective.validate(loader.passes(4)) == validated[0]
    lengths = [side * side for side in config.scale_sides]
    scales = [validated[0][f"loss/scale_{k + 1:02d}"] for k in range(len(lengths))]
    mean = sum(n * loss for n, loss in zip(lengths, scales, strict=True)) / sum(lengths)
    assert mean == pytest.approx(validated[0]["loss"], rel=1e-5)


def test_dropping_depends_on_seed_and_step_and_place_alone():
    whole = Draw(seed=3, step=5, first=0).uniforms(8, 5)
    for first in range(8):
        for images in range(1, 9 - first):
            assert np.array_equal(Draw(3, 5, first).uniforms(images, 5), whole[first : first + images])
    assert not np.array_equal(Draw(3, 6, 0).uniforms(8, 5), whole)
    assert not np.array_equal(Draw(4, 5, 0).uniforms(8, 5), whole)
    assert len(np.unique(whole)) == whole.size


class Poisoned(Exception):
    pass


def poison(monkeypatch, steps):
    """Make the tokenizer's loss NaN at some steps."""
    forward = TokenizerObjective.forward

    def poisoned(self, examples, draw):
        losses = forward(self, examples, draw)
        factor = float("nan") if draw.step in steps else 1.0
        return {**losses, "loss": losses["loss"] * factor}

    monkeypatch.setattr(TokenizerObjective, "forward", poisoned)


def test_a_step_whose_loss_is_not_finite_is_left_out_and_counted(shards, tmp_path, monkeypatch):
    poison(monkeypatch, {2, 3, 5})
    logs = []
    result = run(tokenizer_spec(shards, tmp_path / "run"), logs.append)
    assert result.skipped == 3
    noted = [json.loads(line) for line in (result.out / "skipped.jsonl").read_text().splitlines()]
    assert [note["step"] for note in noted] == [2, 3, 5]
    assert all(len(note["keys"]) == logs[0].samples for note in noted)
    assert [log.numbers["skipped"] for log in logs] == [0, 0, 1, 2, 2, 3, 3, 3]
    weights = read_checkpoint(tmp_path / "run" / "last", "tokenizer").weights
    assert all(torch.isfinite(value).all() for value in weights.values())
    state = load_file(tmp_path / "run" / "last" / "state" / "training.safetensors")
    assert state["optimizer/0/step"] == 5


def test_ten_such_steps_in_a_row_end_the_run(shards, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(5, 99)) - {8})
    logs = []
    with pytest.raises(
        ModelError, match=r"not finite in 10 steps in a row .* --init-from .*best and a lower --base-learning-rate"
    ):
        run(tokenizer_spec(shards, tmp_path / "run", samples=400, checkpoint_every=80), logs.append)
    assert logs[-1].step == 18  # five good, three bad, one good, then the tenth bad one in a row ends it


def test_the_perceptual_loss_must_be_given_or_declined(shards):
    with pytest.raises(MissingCheckpoint, match=r"vgg\.pth.*--lpips-weights.*--no-lpips"):
        TrainTokenizer("out", DataSpec(str(shards)), TOKENIZERS["tiny"])
    with pytest.raises(ConfigMismatch, match="fractions"):
        TrainTokenizer(
            "out", DataSpec("s"), TOKENIZERS["tiny"], weights=TokenizerLossWeights(perceptual=0.0), unquantized=2.0
        )


def test_a_perceptual_term_takes_part(shards, tmp_path):
    from medvar_model.training.perceptual import PerceptualDistance, vgg_trunk

    names = {}
    for name, value in PerceptualDistance(vgg_trunk(shift_tolerant=False)).state_dict().items():
        if name.startswith("weights"):
            names[f"lin{name[-1]}.model.1.weight"] = value[None, :, None, None]
        else:
            _, stage, _, process, kind = name.split(".")
            number = {0: (0, 2), 1: (5, 7), 2: (10, 12, 14), 3: (17, 19, 21), 4: (24, 26, 28)}[int(stage)][int(process)]
            names[f"features.{number}.{kind}"] = value
    torch.save(names, tmp_path / "vgg.pth")
    spec = tokenizer_spec(shards, tmp_path / "run", samples=4, batch_size=2)
    spec = replace(spec, weights=TokenizerLossWeights(), lpips_files=(str(tmp_path / "vgg.pth"),))
    logs = []
    run(spec, logs.append)
    numbers = logs[-1].numbers
    assert numbers["perceptual"] > 0
    assert numbers["loss"] == pytest.approx(numbers["pixels"] + numbers["codes"] + numbers["perceptual"], rel=1e-5)
    assert logs[-1].validation["perceptual"] > 0
    torch.save({name: value + 1 for name, value in names.items()}, tmp_path / "vgg.pth")
    with pytest.raises(ConfigMismatch, match="other weights of the perceptual loss"):
        run(spec, logs.append)


def test_the_two_published_files_of_the_perceptual_loss_are_read_as_they_are(shards, tmp_path):
    """In their own layouts: torchvision's file is of the older kind and has a classifier, too."""
    from medvar_model.training.perceptual import PerceptualDistance, load_perceptual_distance, vgg_trunk

    wanted = PerceptualDistance(vgg_trunk(shift_tolerant=False)).state_dict()
    vgg, linear = {"classifier.0.weight": torch.zeros(2, 2)}, {}
    for name, value in wanted.items():
        if name.startswith("weights"):
            linear[f"lin{name[-1]}.model.1.weight"] = value[None, :, None, None]
        else:
            _, stage, _, process, kind = name.split(".")
            number = {0: (0, 2), 1: (5, 7), 2: (10, 12, 14), 3: (17, 19, 21), 4: (24, 26, 28)}[int(stage)][int(process)]
            vgg[f"features.{number}.{kind}"] = value
    torch.save(vgg, tmp_path / "vgg16.pth", _use_new_zipfile_serialization=False)
    torch.save(linear, tmp_path / "vgg.pth")
    files = [tmp_path / "vgg16.pth", tmp_path / "vgg.pth"]
    for order in (files, files[::-1]):
        found = load_perceptual_distance(order).state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    for alone in files:
        with pytest.raises(MissingCheckpoint, match="Give both"):
            load_perceptual_distance([alone])
    for text in (Path("README.md"), Path("docs/training.md"), Path("cli/medvar_cli/model_commands.py")):
        assert all(
            name in (Path(__file__).parents[3] / text).read_text() for name in ("vgg16-397923af.pth", "vgg.pth")
        ), text
    other = files[0].rename(tmp_path / "vgg16-397923af.pth")
    with pytest.raises(MissingCheckpoint, match="does not begin with 397923af"):
        load_perceptual_distance([other, files[1]])


def test_the_codebook_starts_from_data_and_dead_codes_come_back(shards, tmp_path):
    spec = tokenizer_spec(shards, tmp_path / "run", samples=80, checkpoint_every=40, validate_every=0)
    fresh = Tokenizer(spec.config, torch.Generator().manual_seed(spec.loop.seed)).pyramid.codebook.codes
    logs = []
    run(replace(spec, loop=replace(spec.loop, samples=4)), logs.append)
    assert logs[0].numbers["codes"] == 0  # without quantization
    run(replace(spec, out=str(tmp_path / "other")), logs.append)
    assert logs[-1].numbers["codes"] > 0
    codes = load_tokenizer(tmp_path / "other").pyramid.codebook.codes
    assert (codes - fresh).abs().max() > 0.1
    assert all(f"usage/scale_0{k}" in logs[-1].numbers for k in (1, 2, 3, 4))

    loader = Loader(spec.data, "train", 32, 4, 0, PROCESS)
    objective = TokenizerObjective(spec, PROCESS)
    objective.before_step(spec.loop.batch_size, lambda parameter, rows: None)
    started = objective.network.pyramid.codebook.codes.detach().clone()
    moved = []
    objective.counts_KV[:, :60] = 100  # the last four codes are dead
    examples = next(loader.batches(3))
    objective.after_step(10, examples, lambda parameter, rows: moved.append(rows))
    codes = objective.network.pyramid.codebook.codes
    assert moved[0].tolist() == [False] * 60 + [True] * 4
    assert torch.equal(codes[:60], started[:60])
    assert not torch.equal(codes[60:], started[60:])
    assert not objective.counts_KV.any()
    objective.counts_KV[:, :60] = 100
    for seen in (19, 80):  # between two revivals, and in the part of the run where codes settle
        objective.after_step(seen, examples, lambda parameter, rows: pytest.fail("a code was moved"))


def test_averaged_weights_are_those_that_are_validated_and_kept(shards, tokenizer, tmp_path):
    spec = transformer_spec(shards, tmp_path / "run", tokenizer, average=0.5)
    run(spec)
    kept = read_checkpoint(tmp_path / "run" / "last", "transformer").weights
    state = load_file(tmp_path / "run" / "last" / "state" / "training.safetensors")
    raw = {name.removeprefix("weights/"): value for name, value in state.items() if name.startswith("weights/")}
    assert kept.keys() == raw.keys()
    assert not torch.equal(kept["head.weight"], raw["head.weight"])
    assert (kept["head.weight"] - raw["head.weight"]).norm() < 0.5 * raw["head.weight"].norm()


def test_the_best_is_kept_beside_the_last(shards, tokenizer, tmp_path):
    many = {"samples": 240, "checkpoint_every": 120, "validate_every": 20}
    spec = transformer_spec(shards, tmp_path / "run", tokenizer, base_learning_rate=0.3, **many)
    result = run(spec)
    validations = [
        line["validation"]["loss"] for line in read_log(tmp_path / "run" / "log.jsonl") if "validation" in line
    ]
    assert result.best == min(validations) < validations[-1]
    best, last = (read_checkpoint(tmp_path / "run" / name, "transformer") for name in ("best", "last"))
    assert best.digest != last.digest
    assert not (tmp_path / "run" / "best" / "state").exists()


def test_a_set_without_a_val_split_must_be_acknowledged(tmp_path):
    shards = write_shard_set(tmp_path / "set", {"train": 8})
    with pytest.raises(SpecError, match="no val slice"):
        run(tokenizer_spec(shards, tmp_path / "run"))
    result = run(tokenizer_spec(shards, tmp_path / "run", validate_every=0))
    assert result.is_finished
    assert result.best is None


def test_a_log_that_was_cut_off_is_read_up_to_the_cut(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]
    assert list((tmp_path).glob("tensorboard")) == []


def test_bfloat16_trains(shards, tokenizer, tmp_path):
    logs = []
    run(transformer_spec(shards, tmp_path / "run", tokenizer, precision="bfloat16"), logs.append)
    exact = []
    run(transformer_spec(shards, tmp_path / "exact", tokenizer), exact.append)
    assert all(math.isfinite(log.numbers["loss"]) for log in logs)
    assert logs[0].numbers["loss"] == pytest.approx(exact[0].numbers["loss"], rel=0.01)
    assert logs[0].numbers["loss"] != exact[0].numbers["loss"]


def test_how_a_batch_is_cut_changes_nothing_but_rounding(shards, tokenizer, tmp_path, monkeypatch):
    """With drop-path and condition dropout on: whole batches, passes of one image, and of three."""
    monkeypatch.setattr(TransformerConfig, "drop_path_rate", 0.5)
    losses = {}
    for micro_batch in (0, 1, 3):
        logs: list = []
        spec = transformer_spec(shards, tmp_path / str(micro_batch), tokenizer, micro_batch=micro_batch)
        run(spec, logs.append)
        losses[micro_batch] = [log.numbers["loss"] for log in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
def test_two_processes_train_as_one(shards, tokenizer, kind, tmp_path):
    """The same global batches, cut in two, over gloo: losses, validation and weights agree to rounding."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    specs = []
    for out in (alone, together):
        spec = tokenizer_spec(shards, out) if kind == "tokenizer" else transformer_spec(shards, out, tokenizer)
        specs.append(spec)
    logs = []
    run(specs[0], logs.append)
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import json, os, sys
        sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
        import torch
        torch.set_num_threads(1)
        from medvar_model.machine import processes
        from medvar_model.config import *
        from medvar_model.loader import DataSpec
        from medvar_model.training.adversary import AdversarySettings
        from medvar_model.training.losses import TokenizerLossWeights
        from medvar_model.training.settings import LoopSettings
        from medvar_model.training.tokenizer import TrainTokenizer
        from medvar_model.training.transformer import TrainTransformer
        from support.runs import run
        logs = []
        with processes.joined(os.environ, "cpu") as process:
            run({specs[1]!r}, logs.append, process=process)
            if process.is_main:
                print("LOGS", json.dumps([[dict(log.numbers), log.validation] for log in logs]))
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "LOGS" in line]
    numbers = json.loads(lines[0].split("LOGS", 1)[1])
    assert len(numbers) == len(logs) == 8
    for (two, checked), one in zip(numbers, logs, strict=True):
        assert two["loss"] == pytest.approx(one.numbers["loss"], rel=2e-3)
        assert two["gradient_norm"] == pytest.approx(one.numbers["gradient_norm"], rel=2e-2)
        if checked:
            assert checked["loss"] == pytest.approx(one.validation["loss"], rel=2e-3)
