"""A run that is killed and started again ends with the same bytes as one that was never disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from support.builders import acdc_tree, brats_tree, recipe_file

from medvar_cli.console import run as run_app
from medvar_cli.data_commands import app

MEDVAR = (sys.executable, "-c", "from medvar_cli.main import data; data()")
SALT = "00" * 32
KINDS = ("parent", "group", "worker", "ctrl-c")


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


def start(arguments: list[str]) -> subprocess.Popen:
    """Start a command in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [*MEDVAR, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children would ignore it
    )


def strike(process: subprocess.Popen, kind: str) -> None:
    """Kill the parent, its whole group, one of its workers, or press Ctrl-C."""
    if kind == "parent":
        os.kill(process.pid, signal.SIGKILL)
    elif kind == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif kind == "worker":
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1:]:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)


def wait_for_orphans(group: int) -> None:
    """No child outlives its parent by much, whatever killed the parent."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("worker processes outlive a parent that was killed")


def kill_when(arguments: list[str], ready: Callable[[], bool], kind: str) -> bool:
    """Start a command and strike once `ready`; tells whether it was still at work."""
    process = start(arguments)
    deadline = time.monotonic() + 120
    while process.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.002)
    was_running = process.poll() is None
    struck = time.monotonic()
    if was_running:
        strike(process, kind)
    _, told = process.communicate(timeout=120)
    wait_for_orphans(process.pid)
    if was_running and kind == "ctrl-c" and process.returncode != 0:
        assert process.returncode == 130, told
        assert told.splitlines() == ["Stopped. What is finished stays; the same command goes on from here."]
        assert time.monotonic() - struck < 5
    elif kind == "worker":
        assert process.returncode == 0, told
    return was_running


def digests(folder: Path) -> dict[str, str]:
    """Every file of the shard set and of the harmonized cases; nothing half-written may be among them, nor elsewhere."""
    assert not list(folder.rglob("*.partial"))
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


def killed_and_resumed(whole: Path, folder: Path, seed: int, strikes: tuple[int, int] = (3, 2)) -> int:
    """Run the three commands, struck at random moments in random ways.

    Args:
        strikes: how often harmonize is struck, and shard.

    Returns:
        How many strikes found the command at work.
    """
    chance, struck = random.Random(seed), 0
    n_cases, n_shards = finished_cases(whole), finished_shards(whole)
    marks = {
        "harmonize": (finished_cases, sorted(chance.sample(range(n_cases - 4), strikes[0]))),
        "shard": (finished_shards, sorted(chance.sample(range(n_shards - 2), strikes[1]))),
    }
    for name, arguments in commands(folder, workers=1).items():
        count, thresholds = marks.get(name, (None, []))
        for threshold in thresholds:
            kind = chance.choice(KINDS)
            wait, pool = chance.uniform(0, 0.03), kind == "worker" or chance.random() < 0.5

            mark = max(threshold, count(folder) + 1)  # the command is at work: it has finished something

            def ready(count=count, threshold=mark, wait=wait) -> bool:
                if count(folder) >= threshold:
                    time.sleep(wait)
                    return True
                return False

            struck += kill_when(commands(folder, workers=2)[name] if pool else arguments, ready, kind)
        run(arguments)
    assert digests(folder) == digests(whole)
    return struck


def test_killed_once_in_each_command(undisturbed):
    """The short form of the two below."""
    assert finished_cases(undisturbed) == 32
    assert killed_and_resumed(undisturbed, undisturbed.parent / "once", seed=0, strikes=(1, 1)) >= 1


@pytest.mark.slow
def test_killed_five_times(undisturbed):
    struck = killed_and_resumed(undisturbed, undisturbed.parent / "killed", seed=0)
    assert struck >= 3, "too many commands ended before they could be killed: the test proves too little"


@pytest.mark.slow
def test_killed_fifty_times(undisturbed):
    struck = [killed_and_resumed(undisturbed, undisturbed.parent / f"random{seed}", seed) for seed in range(1, 14)]
    print(f"struck {sum(struck)} times of {5 * len(struck)}: {struck}")
    assert sum(struck) >= 50


def test_parts_together_give_the_same_bytes(undisturbed):
    """Three jobs of harmonize, then of shard; one comes twice, one as another number of parts."""
    folder = undisturbed.parent / "parts"
    made = commands(folder, workers=1)
    run(made["ingest"])
    for part in ("2/3", "2/3", "1/3"):
        run([*made["harmonize"], "--part", part])
    assert finished_cases(folder) < 32
    run([*made["harmonize"], "--part", "1/2"])
    run([*made["harmonize"], "--part", "2/2"])
    for part in ("1/2", "1/2"):
        run([*made["shard"], "--part", part])
    assert not (folder / "shards" / "dataset.json").exists()
    run([*made["shard"], "--part", "2/2"])
    assert digests(folder) == digests(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parent", "worker"])
def test_a_set_from_a_set_is_killed_and_resumed(undisturbed, kind):
    folder = undisturbed.parent / f"reshard-{kind}"
    made = {
        name: ["reshard", str(undisturbed / "shards"), str(folder / name / "shards"), "--codec", "zstd", "--slices-per-shard", "2"]
        for name in ("struck", "whole")
    }  # fmt: skip
    workers = ["--workers", "2" if kind == "worker" else "1"]
    kill_when([*made["struck"], *workers], lambda: finished_shards(folder / "struck") >= 3, kind)
    run([*made["struck"], *workers])
    run([*made["whole"], *workers])
    assert digests(folder / "struck") == digests(folder / "whole")
    assert not (folder / "struck" / "shards" / "unfinished").exists()


def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(undisturbed):
    """On a real file system of 100 kB, in a mount namespace of the test's own; all commands in one process, whose start costs seconds."""
    folder = undisturbed.parent / "full"
    (folder / "work").mkdir(parents=True)
    made = commands(folder, workers=1)
    one_after_the_other = f"""if True:
        import subprocess, sys
        from contextlib import redirect_stdout
        from medvar_cli.main import data
        def medvar(*arguments):
            sys.argv[1:] = arguments
            try:
                with redirect_stdout(sys.stderr):
                    data()
            except SystemExit as left:
                return left.code
        def mount(options):
            return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", {str(folder / "work")!r}]).returncode
        if mount("size=120k"):
            sys.exit(77)
        print("left with", medvar(*{made["ingest"]!r}), medvar(*{made["harmonize"]!r}), flush=True)
        subprocess.run(["find", {str(folder / "work")!r}, "-name", "*.partial"], check=True)
        assert mount("remount,size=9m") == 0
        print("left with", medvar(*{made["harmonize"]!r}), medvar(*{made["shard"]!r}), flush=True)
        subprocess.run(["cp", "-r", {str(folder / "work" / "harmonized")!r}, {str(folder / "kept")!r}], check=True)
    """
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", one_after_the_other], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system may be mounted here")
    assert done.stdout.splitlines() == ["left with 0 2", "left with 0 0"], done.stderr
    assert "error: The disk that holds" in done.stderr
    assert "is full. Free some space and run the same command again" in done.stderr.replace("\n", " ")
    (folder / "work" / "harmonized").parent.mkdir(exist_ok=True)
    (folder / "kept").rename(folder / "work" / "harmonized")
    assert digests(folder) == digests(undisturbed)
