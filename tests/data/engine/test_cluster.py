"""Laws of the Dask engine: the same files as without it, a killer harms no other, a lost scheduler is one sentence."""

import json
import os
import signal
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest
from support.builders import acdc_tree, small_recipe
from support.cluster import Cluster, start_cluster

from medvar_data.engine.engine import Engine, run_tasks
from medvar_data.errors import WorkspaceError
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

distributed = pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def killed(task) -> str:
    return f"killed {task}"


def die_on_three(n: int) -> str:
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done {n} in {os.getpid()}"


def fail_on_two(n: int) -> int:
    if n == 2:
        raise ValueError("two")
    return n


def doze(task: tuple[int, float]) -> int:
    time.sleep(task[1])
    return task[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Cluster:
    cluster = start_cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.kill()


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.slow
def test_a_cluster_over_tcp_gives_the_same_bytes(cluster, tmp_path):
    assert json.loads(cluster.scheduler_file.read_text())["address"].startswith("tcp://")
    source, recipe = acdc_tree(tmp_path / "acdc", patients=4), small_recipe(tmp_path)
    broken = source / "database/training/patient002/patient002_frame10.nii.gz"
    broken.write_bytes(broken.read_bytes()[:700])
    made = {}
    for name, engine in (("here", Engine()), ("there", Engine(scheduler=str(cluster.scheduler_file)))):
        workspace, seen = Workspace(tmp_path / name), []
        list(run_ingest({"acdc": source}, workspace, bytes(32), engine))
        summary = run_harmonize(workspace, recipe, engine, seen.append)
        assert (summary.n_kept, summary.n_rejected) == (7, 1)
        assert [p.done for p in seen] == list(range(9))
        store = Store(str(tmp_path / f"{name}-shards"))
        write_shards(workspace, store, ShardSpec(recipe, slices_per_shard=6), engine, seen.append)
        made[name] = digests(workspace.path / "harmonized") | digests(Path(store.url))
    assert len(made["here"]) > 12
    assert made["here"] == made["there"]


def test_the_work_is_done_elsewhere_and_a_killer_harms_no_other(cluster):
    address = json.loads(cluster.scheduler_file.read_text())["address"]
    results = sorted(run_tasks(die_on_three, range(6), Engine(scheduler=address), killed))
    assert [r.split(" in ")[0] for r in results] == [*(f"done {n}" for n in (0, 1, 2, 4, 5)), "killed 3"]
    assert str(os.getpid()) not in {r.split(" in ")[-1] for r in results}


def test_an_ordinary_exception_is_not_swallowed(cluster):
    with pytest.raises(ValueError, match="two"):
        list(run_tasks(fail_on_two, range(4), Engine(scheduler=str(cluster.scheduler_file)), killed))


def test_no_scheduler_is_one_sentence(monkeypatch):
    monkeypatch.setattr("medvar_data.engine.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(WorkspaceError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(run_tasks(doze, [(1, 0.0)], Engine(scheduler="tcp://127.0.0.1:9"), killed))


def test_a_lost_scheduler_is_one_sentence_and_finished_work_stays(cluster):
    """The last test of this file, since it ends the cluster."""
    results = run_tasks(doze, [(1, 0.0), (2, 60.0)], Engine(scheduler=str(cluster.scheduler_file)), killed)
    assert next(results) == 1
    threading.Timer(0.5, cluster.kill_scheduler).start()
    started = time.monotonic()
    with pytest.raises(WorkspaceError, match=r"connection to the Dask scheduler .* is lost"):
        list(results)
    assert time.monotonic() - started < 15
