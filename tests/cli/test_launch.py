"""Several processes under one launcher: a stop or a wrong option ends in the command's own sentence and exit code."""

import signal
import subprocess
import sys
import time

import pytest
from support.shard_sets import write_shard_set

LAUNCH = (sys.executable, "-m", "medvar_cli.launch", "--nproc-per-node", "2")


def test_no_command():
    done = subprocess.run([*LAUNCH[:3]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no command" in done.stderr


@pytest.mark.slow
def test_a_wrong_command_ends_with_its_sentence(tmp_path):
    command = [
        *LAUNCH,
        "train",
        "tokenizer",
        str(tmp_path / "nowhere"),
        "-o",
        str(tmp_path / "run"),
        "--preset",
        "tiny",
        "--no-lpips",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("option", "code"), [([], 128 + signal.SIGTERM), (["--stop-is-success"], 0)])
def test_a_termination_stops_at_a_checkpoint(tmp_path, option, code):
    shards = write_shard_set(tmp_path / "set", {"train": 12, "val": 5, "test": 5})
    command = [
        *LAUNCH,
        "train",
        "tokenizer",
        str(shards),
        "-o",
        str(tmp_path / "run"),
        "--preset",
        "tiny",
        "--no-lpips",
    ]
    more = ["--samples", "400000", "--batch-size", "8", *option]
    with subprocess.Popen([*command, *more], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        started = time.monotonic()
        while not (tmp_path / "run" / "log.jsonl").exists() and time.monotonic() - started < 120:
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in out + err
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()
