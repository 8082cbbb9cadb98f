"""A run of two processes that is killed goes on with three: the batches continue exactly, and the training from its last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.shard_sets import write_shard_set

from medvar_data.stream import StreamSpec, plan

BATCH = 12
MIXTURE = (("alpha-ct", 0.137), ("beta-mr", 0.274), ("gamma-mr", 0.589))


def training(shards: Path, out: Path, seen: Path) -> str:
    """A training of a small tokenizer, each of whose processes writes down the keys that it is given."""
    return textwrap.dedent(f"""
        import json, os, sys, time
        sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
        import torch
        torch.set_num_threads(1)
        from support.runs import run, tokenizer_spec
        from dataclasses import replace
        from medvar_model.loader import DataSpec, Loader
        from medvar_model.machine import processes

        own = Loader.batches
        with processes.joined(os.environ, "cpu") as process:
            open({str(seen)!r} + f".{{process.world}}.{{process.rank}}.pid", "w").write(str(os.getpid()))
            notes = open({str(seen)!r} + f".{{process.world}}.{{process.rank}}", "a", buffering=1)

            def noted(self, start):
                for examples in own(self, start):
                    notes.write(json.dumps([examples.step, examples.keys]) + "\\n")
                    yield examples

            Loader.batches = noted
            spec = tokenizer_spec({str(shards)!r}, {str(out)!r}, batch_size={BATCH}, samples={BATCH * 10}, checkpoint_every={BATCH})
            spec = replace(spec, data=replace(spec.data, mixture={MIXTURE!r}))
            run(spec, lambda log: time.sleep(0.3), process=process)
        """)


def start(program: Path, world: int) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world),
        str(program),
    ]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def read(seen: Path, world: int) -> dict[int, list[str]]:
    """Keys of each global batch that all ranks wrote down."""
    texts = [Path(f"{seen}.{world}.{rank}").read_text() for rank in range(world)]
    ranks = [dict(json.loads(line) for line in text.splitlines() if line.endswith("]]")) for text in texts]
    steps = set.intersection(*(set(rank) for rank in ranks))
    return {step: [key for rank in ranks for key in rank[step]] for step in sorted(steps)}


@pytest.mark.slow
def test_killed_on_two_processes_and_resumed_on_three(tmp_path):
    shards = write_shard_set(tmp_path / "set", {"train": 23, "val": 6})
    seen, program = tmp_path / "seen", tmp_path / "program.py"
    program.write_text(training(shards, tmp_path / "run", seen))
    first = start(program, 2)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if Path(f"{seen}.2.1").exists() and len(read(seen, 2)) > 4:
            break
        time.sleep(0.1)
    for pid in (first.pid, *(int(Path(f"{seen}.2.{rank}.pid").read_text()) for rank in range(2))):
        os.kill(pid, signal.SIGKILL)
    first.communicate(timeout=30)
    before = read(seen, 2)
    assert 4 < len(before) < 10
    second = start(program, 3)
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors[-3000:]
    after = read(seen, 3)
    wanted = [list(keys) for keys in plan(StreamSpec(str(shards), batch_size=BATCH, seed=0, mixture=MIXTURE), 10)]
    assert [before[step] for step in before] == wanted[: len(before)]
    assert list(after) == list(range(min(after), 10))
    assert 1 <= min(after) <= len(before)
    assert [after[step] for step in after] == wanted[min(after) :]
