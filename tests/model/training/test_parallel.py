"""Several processes: weights held whole (ddp) or split (fsdp), and checkpoints that any number of processes takes up.

Compared with one process from images to checkpoint. Sums are taken in another order, so losses and gradients may differ in the last digits of
float32: here by less than 2e-6 of their size.
"""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import PROCESS, run, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_model.checkpoints.checkpoint import read_state
from medvar_model.checkpoints.sharded import read_shards
from medvar_model.errors import ConfigMismatch, MissingCheckpoint

CLOSE = {"rel": 2e-6}
LOOP = {"average": 0.5, "micro_batch": 1, "checkpoint_every": 4, "keep": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 22, "val": 7})


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    spec = tokenizer_spec(shards, tmp_path_factory.mktemp("runs") / "tokenizer")
    run(spec)
    return spec.out


@pytest.fixture(scope="module")
def alone(shards, tokenizer, tmp_path_factory):
    """An undisturbed run of one process: its spec, and loss, gradient and validation of each step."""
    spec, told = transformer_spec(shards, tmp_path_factory.mktemp("runs") / "alone", tokenizer, **LOOP), []
    run(spec, lambda log: told.append(numbers(log)))
    return spec, told


def numbers(log):
    return [log.step, log.numbers["loss"], log.numbers["gradient_norm"], (log.validation or {}).get("loss", 0.0)]


def together(spec, parallel: str, world: int, stop_at: int = 0) -> list[list[float]]:
    """Run a spec on so many processes under torchrun until a step; return what the first one told."""
    told = Path(spec.out + ".told")
    program = textwrap.dedent(f"""
        import json, os, sys
        sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
        import torch
        torch.set_num_threads(1)
        from medvar_model.loader import DataSpec
        from medvar_model.machine import processes
        from medvar_model.training.settings import LoopSettings
        from medvar_model.training.transformer import TrainTransformer
        from support.runs import run
        from test_parallel import numbers
        spec = {replace(spec, loop=replace(spec.loop, parallel=parallel))!r}
        asked = []
        def stop():
            asked.append(1)
            return len(asked) == {stop_at}
        with processes.joined(os.environ, "cpu") as process:
            told = []
            run(spec, lambda log: told.append(numbers(log)), stop, process)
            if process.is_main:
                open({str(told)!r}, "w").write(json.dumps(told))
        """)
    path = Path(spec.out + ".py")
    path.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{program}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(told.read_text())


def assert_close(told, wanted):
    assert [line[0] for line in told] == [line[0] for line in wanted]
    for ours, theirs in zip(told, wanted, strict=True):
        assert ours[1:] == pytest.approx(theirs[1:], **CLOSE), ours[0]


def assert_same_weights(out: str, wanted: str):
    ours, theirs = (load_file(Path(folder) / "last" / "model.safetensors") for folder in (out, wanted))
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("parallel", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_processes_then_one(alone, parallel, tmp_path):
    """Stopped on two after three steps; one goes on from there. Their state is a file each where weights are split."""
    spec, wanted = replace(alone[0], out=str(tmp_path / "run")), alone[1]
    assert_close(together(spec, parallel, 2, stop_at=3), wanted[:3])
    state = Path(spec.out) / "last" / "state"
    parts = sorted(path.name for path in state.rglob("*.safetensors"))
    assert len(parts) == (2 if parallel == "fsdp" else 1)
    assert not list(Path(spec.out).rglob("*.metadata"))
    told = []
    run(spec, lambda log: told.append(numbers(log)))
    assert_close(told, wanted[3:])
    assert_same_weights(spec.out, alone[0].out)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_one_process_then_two(alone, parallel, tmp_path):
    spec, wanted = replace(alone[0], out=str(tmp_path / "run")), alone[1]
    asked = []
    run(spec, stop=lambda: asked.append(1) or len(asked) == 3)
    assert_close(together(spec, parallel, 2), wanted[3:])
    assert_same_weights(spec.out, alone[0].out)


@pytest.mark.slow
def test_split_over_three_then_two_then_held_whole(alone, tmp_path):
    """Three processes do not divide the batch of four, so it is one of twelve; no axis is a multiple of three either."""
    spec = replace(alone[0], loop=replace(alone[0].loop, batch_size=12, samples=96))
    wanted = []
    run(replace(spec, out=str(tmp_path / "alone")), lambda log: wanted.append(numbers(log)))
    spec = replace(spec, out=str(tmp_path / "run"))
    assert_close(together(spec, "fsdp", 3, stop_at=2), wanted[:2])
    assert_close(together(spec, "fsdp", 2, stop_at=3), wanted[2:5])
    assert_close(together(spec, "ddp", 2), wanted[5:])


def test_splitting_needs_several_processes_and_a_transformer(shards, tokenizer, tmp_path):
    spec = transformer_spec(shards, tmp_path / "run", tokenizer, parallel="fsdp")
    with pytest.raises(ConfigMismatch, match=r"this one is alone\. Start it with `python -m medvar_cli\.launch"):
        run(spec, process=PROCESS)
    with pytest.raises(ConfigMismatch, match=r"a tokenizer's fit on every device\. Leave the option out"):
        run(tokenizer_spec(shards, tmp_path / "tok", parallel="fsdp"))
    with pytest.raises(ConfigMismatch, match="--parallel is 'tensor'; wanted one of ddp, fsdp"):
        replace(spec.loop, parallel="tensor")
    with pytest.raises(ConfigMismatch, match=r"does not scale float16's losses\. Choose --precision bfloat16"):
        replace(spec.loop, precision="float16")


def test_a_lost_part_is_named(tmp_path):
    from medvar_model.checkpoints.sharded import write_shards

    folder = tmp_path / "state" / "shards"
    folder.mkdir(parents=True)
    (tmp_path / "state" / "progress.json").write_text('{"step": 1, "best": null, "skipped": 0, "skipped_in_a_row": 0}')
    kept = {"a": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(5.0)}
    write_shards(folder, kept, is_main=True)
    state = read_state(tmp_path)
    assert torch.equal(state.tensors["a"], kept["a"])
    assert state.tensors["step"].tolist() == [5.0]
    (path,) = folder.glob("*.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(
        MissingCheckpoint, match=rf"{path.name} has {len(data) - 1} bytes; wanted {len(data)}\. Restore it"
    ):
        read_shards(folder, lambda name, shape, dtype: torch.zeros(shape, dtype=dtype))
    path.unlink()
    with pytest.raises(MissingCheckpoint, match=rf"{path.name} has no bytes"):
        read_state(tmp_path)
