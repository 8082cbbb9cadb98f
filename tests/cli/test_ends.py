"""Commands end when they end: no thread of a library outlives the interpreter and aborts it after the work is done."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.builders import acdc_tree, small_recipe

from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

AT_ONCE = 6  # more than the processors of small machines, so that threads wait


@pytest.mark.slow
@pytest.mark.parametrize("n", [200])
def test_stats_ends_under_load(tmp_path, n):
    recipe, work = small_recipe(tmp_path), Workspace(tmp_path / "work")
    list(run_ingest({"acdc": acdc_tree(tmp_path / "data", patients=2)}, work))
    run_harmonize(work, recipe, 1, lambda _: None)
    write_shards(work, Store(str(tmp_path / "shards")), ShardSpec(recipe), 1, lambda _: None)
    command = [sys.executable, "-c", "from medvar_cli.main import data; data()", "stats", str(tmp_path / "shards")]

    def run(_: int) -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(run, range(n))) == {(0, "")}
