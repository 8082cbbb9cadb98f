"""A run that is killed and started again ends with the same bytes as one that was never disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from builders import acdc_tree, brats_tree, recipe_file
from medvar_cli.console import run as run_app
from medvar_cli.data import app

MEDVAR = (sys.executable, "-c", "from medvar_cli.main import data; data()")
SALT = "00" * 32


def commands(folder: Path, workers: int) -> dict[str, list[str]]:
    recipe = str(folder.parent / "small.toml")
    work, shards = str(folder / "work"), str(folder / "shards")
    return {
        "ingest": ["ingest", f"acdc={folder.parent / 'acdc'}", f"brats2023={folder.parent / 'brats'}", "-w", work,
                   "--salt-file", str(folder.parent / "salt")],
        "harmonize": ["harmonize", "-w", work, "--recipe", recipe, "--workers", str(workers)],
        "shard": ["shard", "-w", work, shards, "--recipe", recipe, "--slices-per-shard", "6", "--workers", str(workers)],
    }  # fmt: skip


def run(arguments: list[str]) -> None:
    """Run a command to its end, in this process (a start costs seconds)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["medvar-data", *arguments])
        with pytest.raises(SystemExit) as left:
            run_app(app)
    assert left.value.code == 0


def kill_when(arguments: list[str], ready: Callable[[], bool]) -> bool:
    """Start a command, kill the parent process without warning once `ready`; tells whether it was still at work."""
    process = subprocess.Popen([*MEDVAR, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.005)
    was_running = process.poll() is None
    if was_running:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return was_running


def digests(folder: Path) -> dict[str, str]:
    """Every file of the shard set and of the harmonized cases; nothing half-written may be among them."""
    files = [p for part in ("shards", "work/harmonized") for p in sorted((folder / part).rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    acdc_tree(root / "acdc", patients=4, shape=(40, 36, 6))
    brats_tree(root / "brats", patients=3)
    recipe_file(root)
    (root / "salt").write_text(SALT)
    for arguments in commands(root / "whole", workers=1).values():
        run(arguments)
    return root / "whole"


def finished_cases(folder: Path) -> int:
    return len(list((folder / "work" / "harmonized").rglob("[!.]*.parquet")))


def finished_shards(folder: Path) -> int:
    return len(list((folder / "shards").glob("*.tar")))


def killed_and_resumed(whole: Path, folder: Path, kills: dict[str, Callable[[], bool]], pools: set[str]) -> int:
    """Run the three commands, killing each of `kills` once; returns how many kills struck a running command.

    Commands named in `pools` are killed while two processes work for them; those may live on for a second.
    """
    struck = 0
    for name, arguments in commands(folder, workers=1).items():
        if name in kills:
            struck += kill_when(commands(folder, workers=2)[name] if name in pools else arguments, kills[name])
        run(arguments)
    assert digests(folder) == digests(whole)
    return struck


def test_killed_in_harmonize_and_in_shard(undisturbed):
    folder = undisturbed.parent / "killed"
    n_cases = finished_cases(undisturbed)
    kills = {
        "harmonize": lambda: finished_cases(folder) >= 3,
        "shard": lambda: finished_shards(folder) >= 1,
    }
    struck = killed_and_resumed(undisturbed, folder, kills, {"harmonize"})
    assert n_cases == 32
    assert struck >= 1, "both commands ended before they could be killed: the test proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random(undisturbed, seed):
    chance = random.Random(seed)
    folder = undisturbed.parent / f"random{seed}"
    cases, shards = chance.randrange(0, 30), chance.randrange(0, 20)
    wait = chance.uniform(0, 0.3)

    def after(condition: Callable[[], bool]) -> Callable[[], bool]:
        def ready() -> bool:
            if condition():
                time.sleep(wait)
                return True
            return False

        return ready

    kills = {
        "harmonize": after(lambda: finished_cases(folder) >= cases),
        "shard": after(lambda: finished_shards(folder) >= shards),
    }
    killed_and_resumed(undisturbed, folder, kills, {name for name in kills if chance.random() < 0.7})
