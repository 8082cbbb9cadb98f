"""Laws of the process pool: every task has one result, and a task that kills its process harms no other."""

import os
import signal
import time
from pathlib import Path

import pytest

from medvar_data.engine import run_tasks


def square(n: int) -> int:
    return n * n


def killed(task) -> str:
    return f"killed {task}"


def die_on_three(n: int) -> str:
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done {n}"


def die_once(task: tuple[int, str]) -> str:
    n, folder = task
    mark = Path(folder) / "died"
    if n == 2 and not mark.exists():
        mark.touch()
        os._exit(1)
    return f"done {n}"


def fail_on_two(n: int) -> int:
    if n == 2:
        raise ValueError("two")
    return n


def pid_of(n: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def test_one_worker_stays_in_this_process():
    assert list(run_tasks(pid_of, [1, 2], 1, killed)) == [os.getpid()] * 2


def test_one_worker_equals_two():
    assert sorted(run_tasks(square, range(9), 1, killed)) == sorted(run_tasks(square, range(9), 2, killed))


def test_no_tasks_no_results():
    assert list(run_tasks(square, [], 2, killed)) == []


def test_a_killer_is_retried_alone_and_handed_over_others_unharmed():
    results = list(run_tasks(die_on_three, range(8), 2, killed))
    assert sorted(results) == sorted([f"done {n}" for n in range(8) if n != 3] + ["killed 3"])


def test_a_task_that_dies_once_is_done_the_second_time(tmp_path):
    tasks = [(n, str(tmp_path)) for n in range(5)]
    assert sorted(run_tasks(die_once, tasks, 2, killed)) == [f"done {n}" for n in range(5)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_ordinary_exception_is_not_swallowed(workers):
    with pytest.raises(ValueError, match="two"):
        list(run_tasks(fail_on_two, range(4), workers, killed))


def test_a_pool_that_dies_while_idle_is_replaced():
    """The consumer is slow; the workers die between two of its steps, with nothing in flight."""
    steps = run_tasks(pid_of, range(12), 2, killed)
    seen = [next(steps)]
    time.sleep(0.5)
    for pid in {p for p in _children() if _is_worker(p)}:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)  # until the pool knows
    seen += list(steps)
    assert len(seen) == 12


def _children() -> list[int]:
    return [int(p) for p in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


def _is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
