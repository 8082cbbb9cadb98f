"""The command medvar-model: each command in process, its errors, its help."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
import typer
from support.shard_sets import write_shard_set
from typer.testing import CliRunner

from medvar_cli import model_feedback as training
from medvar_cli.model_commands import app
from medvar_model.config import TOKENIZERS, TRANSFORMERS
from medvar_model.training.reports import RunStart, StepLog
from medvar_model.training.tokenizer import LOOPS as TOKENIZER_LOOPS
from medvar_model.training.transformer import LOOPS as TRANSFORMER_LOOPS

SHORT = ["--samples", "8", "--batch-size", "4", "--workers", "1", "--device", "cpu", "--validate-every", "8"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 12, "val": 4})


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("tok") / "run"
    call("train", "tokenizer", shards, "-o", out, "--preset", "tiny", "--no-lpips", *SHORT)
    return out


@pytest.fixture(scope="module")
def transformer(shards, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("var") / "run"
    result = call("train", "transformer", shards, "-o", out, "--tokenizer", tokenizer, "--size", "d2", *SHORT)
    assert "validation loss" in result.output
    lines = result.stderr.splitlines()
    assert lines[0] == f"transformer: fresh run in {out}, log in {out / 'log.jsonl'}"
    assert re.fullmatch(
        r"transformer: cpu, float32; 12 training slices of 32 pixels a side; [\d,]+ parameters; 8 images in 2 steps of 4",
        lines[1],
    )
    return out


def test_training_again_finds_nothing_left_to_do(shards, tokenizer):
    said = call(
        "train", "tokenizer", shards, "-o", tokenizer, "--preset", "tiny", "--no-lpips", *SHORT, "--json"
    ).stdout
    assert json.loads(said)["is_finished"]
    run = json.loads((tokenizer / "last" / "run.json").read_text())
    assert run["settings"]["loop"]["samples"] == 8
    assert run["command"]


def test_samples_are_images_and_the_same_twice(transformer, tmp_path):
    arguments = ["sample", transformer, "--condition", "beta-mr", "--condition", "none", "-n", "3", "--device", "cpu"]
    call(*arguments, "-o", tmp_path / "a", "--batch-size", "2")
    said = call(*arguments, "-o", tmp_path / "b", "--batch-size", "3", "--json").stdout
    names = [Path(name).name for name in json.loads(said)]
    assert names == [f"{condition}-{n:04d}.png" for condition in ("beta-mr", "none") for n in range(3)]
    for name in names:
        image = cv2.imread(str(tmp_path / "a" / name), cv2.IMREAD_UNCHANGED)
        assert image.shape == (32, 32)
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    listed = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert [image["file"] for image in listed["images"]] == names
    assert len({image["seed"] for image in listed["images"]}) == 3


def test_a_second_drawing_leaves_nothing_of_the_first(transformer, tmp_path):
    out = tmp_path / "drawn"
    arguments = ["sample", transformer, "-o", out, "--device", "cpu", "-n", "1"]
    call(*arguments, "--condition", "beta-mr", "--condition", "none", "-n", "3")
    call(*arguments, "--condition", "alpha-ct")
    assert sorted(path.name for path in out.iterdir()) == ["alpha-ct-0000.png", "grid.png", "samples.json"]
    (out / "mine.png").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = call(*arguments, "--condition", "beta-mr", code=2)
    assert "holds 1 PNGs that `medvar-model sample` did not write" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_grid_shows_every_image_under_its_condition(transformer, tmp_path):
    call("sample", transformer, "-o", tmp_path, "--condition", "beta-mr", "--condition", "none", "-n", "10")
    grid = cv2.imread(str(tmp_path / "grid.png"), cv2.IMREAD_UNCHANGED)
    strip = 24 + 2 * 130  # a label, and ten images in two rows of at most eight
    assert grid.shape == (2 * strip, 8 * 130)
    for row, name in enumerate(("beta-mr", "none")):
        label = grid[row * strip : row * strip + 24]
        assert (label < 128).any()
        for n in (0, 7, 8, 9):
            image = cv2.imread(str(tmp_path / f"{name}-{n:04d}.png"), cv2.IMREAD_UNCHANGED)
            top, left = row * strip + 24 + n // 8 * 130, n % 8 * 130
            shown = grid[top : top + 128, left : left + 128]
            assert (shown == cv2.resize(image, (128, 128), interpolation=cv2.INTER_CUBIC)).all()
    assert (grid[-130:, 2 * 130 :] == 255).all()


def test_a_named_way_of_sampling_gives_its_settings_and_options_change_them(transformer, tmp_path):
    def settings(*more):
        said = call("sample", transformer, "-o", tmp_path / "x", "--dry-run", "--json", *more).stdout
        return json.loads(said)["settings"]

    paper = {"guidance": 4.0, "top_k": 900, "top_p": 0.95, "seed": 42, "unguided_scales": 0}
    assert settings() == settings("--preset", "paper") == paper
    assert settings("--top-k", "7", "--seed", "0") == paper | {"top_k": 7, "seed": 0}
    assert settings("--preset", "demo") == paper | {"guidance": 1.0, "top_k": 0, "top_p": 0.98}


def test_an_interrupt_is_one_sentence_and_code_130(transformer, tmp_path, monkeypatch):
    from medvar_cli import model_commands as model

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "write_samples", interrupted)
    result = call("sample", transformer, "-o", tmp_path / "x", code=130)
    assert result.stderr == "Stopped. What was not finished is left out; the same command does it again.\n"


def heed_interrupts() -> None:
    """A job that a script starts in the background ignores interrupts, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_while_torch_is_imported_is_one_sentence_and_code_130(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-c", "from medvar_cli.main import model; model()"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"Stopped before anything began.\n")


def test_without_a_terminal_a_line_comes_every_half_minute(capsys):
    from rich.progress import Progress

    now = [0.0]
    feedback = training.Feedback("tokenizer", Progress(disable=True), lambda: now[0])
    feedback.begin(RunStart(Path("r"), "cpu", 1, "float32", 12, 64, 32, 1000, 20, 100, 8, ""))
    for step in range(21, 31):
        now[0] += 12.0
        feedback.step(
            StepLog(step, 100, step * 8, {"loss": 0.5, "images_per_second": 9.0, "waiting": 0.0, "mfu": 0.41})
        )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tokenizer: resumed at step 20 of 100 (160 of 800 images) in r, log in r/log.jsonl"
    assert "12 training slices of 32 pixels a side, averaged down from 64" in lines[1]
    assert lines[2] == (
        "tokenizer 184 of 800 images: loss 0.5000  (0.7 images/s, 0% waiting for images, 41% of the peak, 15 min left)"
    )
    assert [line.split()[1] for line in lines[2:]] == ["184", "208", "232"]


def test_all_presets_are_listed(tmp_path):
    said = json.loads(call("info", "--json").stdout)
    assert [row["name"] for row in said["tokenizers"]] == list(TOKENIZERS)
    assert [row["name"] for row in said["transformers"]] == list(TRANSFORMERS)
    assert said["transformers"][-1]["parameters"] == 2_010_020_356
    shown = call("info").output
    assert all(name in shown for name in (*TOKENIZERS, *TRANSFORMERS))
    assert "demo (64 px, 766k)" in " ".join(call("train", "tokenizer", "--help").output.replace("│", " ").split())


def test_a_tokenizer_that_is_not_the_transformers_is_refused(shards, transformer, tmp_path):
    call("train", "tokenizer", shards, "-o", tmp_path / "t", "--preset", "tiny", "--no-lpips", "--seed", "3", *SHORT)
    result = call("sample", transformer, "-o", tmp_path / "x", "--tokenizer", tmp_path / "t", code=2)
    assert "its tokens mean other things" in result.stderr
    assert not (tmp_path / "x").exists()


def test_info_gives_the_published_counts():
    said = json.loads(call("info", "d16", "--json").stdout)
    assert said["transformer_parameters"] == 310_283_520
    assert said["tokenizer_parameters"] == 108_942_593
    few = json.loads(call("info", "d16", "--conditions", "30", "--json").stdout)
    assert said["transformer_parameters"] - few["transformer_parameters"] == 970 * 1024
    small = json.loads(call("info", "demo", "--size", "d4", "--json").stdout)
    assert small["transformer"]["vocabulary"] == TOKENIZERS["demo"].vocabulary
    assert "310,283,520 parameters" in call("info", "d16").output


@pytest.mark.parametrize("command", ["tokenizer", "transformer", "sample", "evaluate"])
def test_a_dry_run_shows_the_configuration_and_does_nothing(command, shards, tokenizer, transformer, tmp_path):
    mix = ["--mix", "alpha-ct=0.5", "--mix", "beta-mr=1"]
    arguments = {
        "tokenizer": ["train", "tokenizer", shards, "--no-lpips", "--preset", "tiny", *mix],
        "transformer": ["train", "transformer", shards, "--tokenizer", tokenizer, "--seed", "9", "--size", "d2"],
        "sample": ["sample", transformer, "--condition", "alpha-ct"],
        "evaluate": ["evaluate", shards, transformer, "--features", "hand64"],
    }[command]
    for more in ([], ["--json"]):
        said = json.loads(call(*arguments, "-o", tmp_path / "out", "--dry-run", *more).stdout)
        assert said["out"] == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    if command == "tokenizer":
        assert said["data"]["mixture"] == [["alpha-ct", 0.5], ["beta-mr", 1.0]]
        assert said["config"]["width"] == 8
    if command == "transformer":
        assert said["loop"]["seed"] == 9
    if command == "evaluate":
        assert said["features"] == ["hand64", "radiomics"]


def test_features_and_their_weights_may_be_named_several_times(shards, tmp_path):
    weights = ["--feature-weights", "clip=a=b.bin", "--feature-weights", "inception=w.pth"]
    named = ["--features", "inception", "--features", "clip", *weights]
    said = json.loads(
        call("evaluate", shards, "--images", "drawn", "-o", tmp_path / "x", *named, "--dry-run", "--json").stdout
    )
    assert said["features"] == ["inception", "clip", "radiomics"]
    assert said["weights"] == {"inception": "w.pth", "clip": "a=b.bin"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tokenizer", "{shards}", "-o", "x", "--preset", "tiny"], "--no-lpips"),
        (["train", "tokenizer", "{shards}", "-o", "x", "--preset", "huge", "--no-lpips"], "no tokenizer preset 'huge'"),
        (["train", "tokenizer", "nowhere", "-o", "x", "--preset", "tiny", "--no-lpips"], "There is no folder nowhere"),
        (["train", "tokenizer", "{shards}", "-o", "x", "--preset", "demo", "--no-lpips"], "the network takes 64"),
        (["train", "tokenizer", "{shards}", "-o", "x", "--no-lpips", "--mix", "alpha-ct"], "wanted VALUE=WEIGHT"),
        (["train", "transformer", "{shards}", "-o", "x", "--tokenizer", "nowhere"], "holds no checkpoint"),
        (
            ["train", "transformer", "{shards}", "-o", "x", "--tokenizer", "t", "--size", "d1"],
            "no transformer size 'd1'",
        ),
        (["sample", "{transformer}", "-o", "x", "--condition", "delta-ct"], "trained with alpha-ct, beta-mr, gamma-mr"),
        (["sample", "{tokenizer}", "-o", "x"], "wanted a transformer"),
        (["train", "tokenizer", "{shards}", "-o", "x", "--no-lpips", "--device", "gpu"], "no device 'gpu'"),
        (["train", "tokenizer", "{shards}", "-o", "x", "--no-lpips", "--cache-gb", "nan"], "--cache-gb is nan"),
        (["train", "tokenizer", "{shards}", "-o", "x", "--no-lpips", "--base-learning-rate", "nan"], "rate is nan"),
        (["train", "tokenizer", "{shards}", "-o", "x", "--no-lpips", "--dry-run"], "the network takes 256"),
        (["train", "tokenizer", "{shards}", "-o", "{shards}", "--no-lpips", "--dry-run"], "is a shard set"),
        (
            [
                "train",
                "tokenizer",
                "{shards}",
                "-o",
                "{tokenizer}",
                "--preset",
                "tiny",
                "--no-lpips",
                "--samples",
                "8",
                "--batch-size",
                "4",
                "--validate-every",
                "8",
                "--seed",
                "5",
                "--dry-run",
            ],
            "--seed was 0, now 5",
        ),
        (["sample", "{transformer}", "-o", "x", "--device", "cuda:0"], "no CUDA here"),
        (["sample", "{transformer}", "-o", "x", "--guidance", "nan"], "--guidance is nan"),
        (["sample", "{transformer}", "-o", "x", "--preset", "huge"], "choose one of paper, demo"),
        (["sample", "{transformer}", "-o", "x", "--condition", "beta-mr", "--condition", "beta-mr"], "given twice"),
        (["sample", "{transformer}", "-o", "{shards}/dataset.json"], "dataset.json is a file; wanted a folder"),
        (["evaluate", "{shards}", "{transformer}", "-o", "{shards}/dataset.json"], "is a file; wanted a folder"),
        (["evaluate", "nowhere", "{transformer}", "-o", "x", "--dry-run"], "There is no folder nowhere"),
        (
            ["evaluate", "{shards}", "{transformer}", "-o", "x", "--feature-weights", "inception"],
            "--feature-weights 'inception' is not NAME=PATH",
        ),
        (
            [
                "evaluate",
                "{shards}",
                "{transformer}",
                "-o",
                "x",
                "--features",
                "clip",
                "--feature-weights",
                "clip=nowhere",
                "--dry-run",
            ],
            "nowhere is no file and no folder with one",
        ),
        (["grid", "{shards}", "{transformer}", "-o", "x", "--feature-weights", "clip=y"], "Add --features clip"),
        (["copies", "{shards}", "{transformer}", "-o", "x", "--features", "fid"], "There are no features 'fid'"),
        (["evaluate", "{shards}", "{transformer}", "-o", "x", "--perceptual", "lpips"], "LPIPS needs two files"),
        (
            ["train", "tokenizer", "{shards}", "-o", "x", "--no-lpips", "--perceptual", "st-lpips"],
            "--no-lpips and --perceptual st-lpips exclude each other",
        ),
        (
            ["train", "tokenizer", "{shards}", "-o", "x", "--perceptual", "ssim"],
            "--perceptual is 'ssim'; wanted one of",
        ),
        (
            ["train", "tokenizer", "{shards}", "-o", "x", "--perceptual", "none", "--lpips-weights", "vgg.pth"],
            "--lpips-weights belong to --perceptual lpips",
        ),
        (
            [
                "train",
                "tokenizer",
                "{shards}",
                "-o",
                "x",
                "--no-lpips",
                "--preset",
                "tiny",
                "--hold-out-collection",
                "delta",
            ],
            "has no collection 'delta'; it has alpha, beta, gamma",
        ),
        (["codebook", "{shards}", "{transformer}", "-o", "x"], "wanted a tokenizer"),
        (["codebook", "nowhere", "{tokenizer}", "-o", "x"], "There is no folder nowhere"),
        (["import-var", "nowhere.pth", "-o", "x"], "no weight file nowhere.pth"),
        (["import-var", "{tokenizer}/last/model.safetensors", "-o", "x"], "holds neither of VAR's networks"),
        (["import-var", "nowhere.pth", "-o", "x", "--scale-sides", "1-2"], "wanted whole numbers with commas"),
        (["info", "d5"], "no preset 'd5'; choose one of d2, "),
    ],
)
def test_what_is_wrong_is_one_sentence_and_code_2(arguments, words, shards, tokenizer, transformer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = {"shards": shards, "tokenizer": tokenizer, "transformer": transformer}
    result = call(*(argument.format(**places) for argument in arguments), code=2)
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not Path("x").exists()


def test_presets_and_options_decide_the_tokenizers_recipe(tmp_path):
    shards = write_shard_set(tmp_path / "set", {"train": 8, "val": 4}, side=256)
    common = [
        "train",
        "tokenizer",
        shards,
        "-o",
        tmp_path / "x",
        "--perceptual",
        "none",
        "--micro-batch",
        "1",
        "--dry-run",
        "--json",
    ]
    paper, sharp = (json.loads(call(*common, "--preset", name).stdout) for name in ("paper", "sharp"))
    assert (paper["adversary"]["weight"], paper["rotate"], paper["loop"]["average"]) == (0, False, 0)
    assert (sharp["adversary"]["weight"], sharp["adversary"]["start"], sharp["loop"]["average"]) == (0.4, 0.2, 0.9999)
    assert paper["config"] == sharp["config"]
    more = [
        "--adversary",
        "0",
        "--rotate",
        "--code-layer",
        "--codes-per-scale",
        "--scale-dropout",
        "0.1",
        "--average",
        "0.99",
    ]
    changed = json.loads(call(*common, "--preset", "paper", *more).stdout)
    assert (changed["rotate"], changed["scale_dropout"], changed["config"]["code_layer"]) == (True, 0.1, True)
    assert changed["config"]["codes_per_scale"]
    assert (changed["adversary"]["weight"], changed["loop"]["average"]) == (0, 0.99)


def test_options_decide_the_transformers_recipe(shards, tokenizer, tmp_path):
    common = [
        "train",
        "transformer",
        shards,
        "-o",
        tmp_path / "x",
        "--tokenizer",
        tokenizer,
        "--size",
        "d2",
        "--dry-run",
        "--json",
    ]
    plain = json.loads(call(*common).stdout)
    changed = json.loads(call(*common, "--scale-power", "0.5", "--no-prefix-token").stdout)
    assert (plain["scale_power"], plain["prefix_token"]) == (1.0, True)
    assert (changed["scale_power"], changed["prefix_token"]) == (0.5, False)
    assert "wanted a number from 0" in call(*common, "--scale-power", "1.5", code=2).stderr


def commands():
    def walk(name, command):
        if hasattr(command, "commands"):
            for sub in command.commands.values():
                yield from walk(f"{name} {sub.name}", sub)
        else:
            yield name, command

    return list(walk("medvar-model", typer.main.get_command(app)))


def snippet(help_text):
    """The lines of Python that a command's help ends with."""
    return help_text.split("Python:", 1)[1].replace("\b", "").strip()


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_has_an_example_and_a_python_twin(name, command):
    assert re.search(rf"Example: .*{name} ", command.help)
    assert all(line.strip().startswith("from ") for line in snippet(command.help).splitlines()[:1])
    assert all(parameter.help for parameter in command.params if parameter.param_type_name == "option")


def test_every_size_has_its_training_settings():
    assert list(TOKENIZER_LOOPS) == list(TOKENIZERS)
    assert list(TRANSFORMER_LOOPS) == list(TRANSFORMERS)


@pytest.mark.slow
def test_an_interrupt_leaves_a_checkpoint_and_the_same_command_goes_on(shards, tmp_path):
    command = [
        sys.executable,
        "-m",
        "medvar_cli.model_commands",
        "train",
        "tokenizer",
        str(shards),
        "-o",
        str(tmp_path / "run"),
    ]
    command += ["--preset", "tiny", "--no-lpips", "--samples", "4000", "--batch-size", "4", "--device", "cpu"]
    command += ["--validate-every", "40", "--checkpoint-every", "4000"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    assert process.stderr is not None
    while "validation" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    step = json.loads((tmp_path / "run" / "last" / "state" / "progress.json").read_text())["step"]
    assert 10 <= step < 1000
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    assert f"resumed at step {step:,} of 1,000" in lines[0]
    while "validation" not in lines[-1]:
        lines.append(process.stderr.readline())
    process.kill()
    process.communicate()
    assert int(lines[-1].split()[1]) == (step // 10 + 1) * 40


def test_a_scheduler_may_have_a_termination_end_with_0(shards, tokenizer, tmp_path):
    """SIGTERM ends the run at a checkpoint, from which the same command goes on to its end."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "medvar_cli.model_commands", "train", "transformer", str(shards), "-o", str(out)]
    command += [
        "--tokenizer",
        str(tokenizer),
        "--size",
        "d2",
        "--samples",
        "40000",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    command += ["--validate-every", "40", "--checkpoint-every", "40000", "--stop-is-success"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "validation" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 0, wrong
    assert "Stopped; the same command goes on from here" in said
    assert 10 <= json.loads((out / "last" / "state" / "progress.json").read_text())["step"] < 10_000


class InterruptedWrites(io.RawIOBase):
    """A stream whose first write is interrupted by a termination."""

    def writable(self):
        return True

    def write(self, data):
        if not self.__dict__.setdefault("asked", False):
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        return len(data)


def test_a_termination_amid_a_line_on_standard_error_stops_at_a_checkpoint(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(InterruptedWrites())))
    with training.stopping() as stop:
        assert not stop()
        print("a line", file=sys.stderr, flush=True)
        assert stop()
    assert "Stopping after this step" in capfd.readouterr().err
