"""A Dask cluster of two worker processes over TCP, as `dask scheduler` and `dask worker` start it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cluster:
    """Processes of a cluster and the file that says where its scheduler listens."""

    scheduler_file: Path
    processes: list[subprocess.Popen]

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill_scheduler(self) -> None:
        os.killpg(self.processes[0].pid, signal.SIGKILL)


def start_cluster(folder: Path, workers: int = 2) -> Cluster:
    file = folder / "scheduler.json"
    paths = os.pathsep.join([str(TESTS), str(TESTS / "data" / "engine"), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"  # a worker's death is tried again by us alone

    def start(*arguments: str) -> subprocess.Popen:
        with (folder / "cluster.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments, "--no-dashboard", "--scheduler-file", str(file)],
                env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder,
            )  # fmt: skip

    scheduler = start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    nanny = start("distributed.cli.dask_worker", "--nthreads", "1", "--nworkers", str(workers), "--host", "127.0.0.1")
    return Cluster(file, [scheduler, nanny])
