"""Laws of the process pool: every task has one result, and a task that kills its process harms no other."""

import os
import signal
import time
from pathlib import Path

import cv2
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from medvar_data.engine.engine import Engine, Part, parse_part, run_tasks
from medvar_data.engine.memory import _group_limits, default_budget, parse_size, show_size
from medvar_data.errors import CaseRejected, Reason, WorkspaceError


def square(n: int) -> int:
    return n * n


def threads(_: int) -> tuple[int, int]:
    """Threads that OpenCV and BLAS may take."""
    return cv2.getNumThreads(), max(found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas")


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


def starve_on_three(n: int) -> str:
    if n == 3:
        raise MemoryError
    return f"done {n}"


def starve_in_company(task: tuple[int, str]) -> str:
    n, folder = task
    mark = Path(folder) / "starved"
    if n == 2 and not mark.exists():
        mark.touch()
        raise MemoryError
    return f"done {n}"


class Unfit(Exception):
    """Cannot be made again from its pickled form."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} {second}")


def fail_unfit(n: int) -> None:
    raise Unfit(n, n)


def reject(n: int) -> None:
    raise CaseRejected(Reason.TRUNCATED, "the file ends early")


def span(task: tuple[int, str]) -> tuple[int, float, float]:
    """Take a moment; tasks of cost 3 wait for each other, so they can only end side by side."""
    cost, folder = task
    started = time.monotonic()
    if cost == 3:
        (Path(folder) / str(os.getpid())).touch()
        while len(list(Path(folder).iterdir())) < 2 and time.monotonic() - started < 30:
            time.sleep(0.01)
    time.sleep(0.03)
    return cost, started, time.monotonic()


def interrupt_the_group(n: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return n


def test_a_task_that_starves_is_tried_alone_and_handed_over_others_unharmed(tmp_path):
    wanted = sorted([f"done {n}" for n in range(5) if n != 3] + ["killed 3"])
    assert sorted(run_tasks(starve_on_three, range(5), 2, killed)) == wanted
    assert sorted(run_tasks(starve_on_three, range(5), 1, killed)) == wanted
    tasks = [(n, str(tmp_path)) for n in range(4)]
    assert sorted(run_tasks(starve_in_company, tasks, 2, killed)) == [f"done {n}" for n in range(4)]


def test_an_error_that_cannot_travel_is_told_in_words():
    with pytest.raises(RuntimeError, match="Unfit in a worker process"):
        list(run_tasks(fail_unfit, range(2), 2, killed))
    with pytest.raises(CaseRejected, match="ends early") as caught:
        list(run_tasks(reject, range(2), 2, killed))
    assert caught.value.reason is Reason.TRUNCATED


def test_workers_are_deaf_to_ctrl_c():
    assert sorted(run_tasks(interrupt_the_group, range(4), 2, killed)) == list(range(4))


def test_processes_that_cannot_start_are_one_sentence(monkeypatch):
    monkeypatch.setattr("medvar_data.engine.pool._work", os._exit)
    with pytest.raises(WorkspaceError, match="die as they start"):
        list(run_tasks(square, range(4), 2, killed))


def test_a_run_that_is_given_up_leaves_no_process():
    before = set(_children())
    steps = run_tasks(pid_of, range(50), 2, killed)
    next(steps)
    started = {p for p in set(_children()) - before if _is_worker(p)}
    steps.close()
    assert started
    assert not started & set(_children())


def test_running_tasks_stay_within_the_budget_and_a_giant_runs_alone(tmp_path):
    costs = [12, 7, 6, 6, 3, 3, 2, 2, 1, 1]
    tasks = [(cost, str(tmp_path)) for cost in costs]
    spans = list(run_tasks(span, tasks, Engine(workers=3, memory_bytes=10), killed, lambda task: task[0]))
    assert sorted(cost for cost, _, _ in spans) == sorted(costs)
    for _, started, _ in spans:  # the load can rise only where a task starts
        running = [cost for cost, begin, end in spans if begin <= started < end]
        assert sum(running) <= 10 or running == [12]
    assert len(list(tmp_path.iterdir())) == 2, "the two of cost 3 never ran side by side"


def test_without_a_budget_costs_do_not_matter(tmp_path):
    tasks = [(3, str(tmp_path))] * 2
    assert len(list(run_tasks(span, tasks, Engine(workers=2), killed, lambda task: 10**12))) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_parts_share_out_the_work_whatever_their_number():
    keys = [f"acdc/patient{n:03d}-frame01" for n in range(500)]
    for count in (1, 2, 3, 7, 50):
        held = [[key for key in keys if Part(i, count).holds(key)] for i in range(1, count + 1)]
        assert sorted(key for part in held for key in part) == keys
        if count <= 7:
            assert min(map(len, held)) > 500 / count * 0.7
    assert Part(2, 3).holds(keys[0]) == Part(2, 3).holds(keys[0])
    assert [n for n in range(10) if Part(1, 2).holds(f"c/{n}")] == [0, 2, 3, 4, 5, 6, 9], (
        "parts never move between versions"
    )


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_wrong_part_is_a_sentence(text):
    with pytest.raises(WorkspaceError, match="is no part; wanted I/N"):
        parse_part(text)


def test_sizes_are_read_and_written():
    assert parse_size("8GB") == 8_000_000_000
    assert parse_size("500 MiB") == 500 << 20
    assert parse_size("12345") == 12345
    assert [show_size(n) for n in (12, 2_300, 4_500_000, 3_200_000_000)] == ["12 bytes", "2.3 kB", "4.5 MB", "3.2 GB"]
    for text in ("", "0", "many", "8XB", "-3GB"):
        with pytest.raises(WorkspaceError, match="no amount of memory"):
            parse_size(text)


def test_the_budget_obeys_the_control_group(tmp_path):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < default_budget() <= 0.8 * physical
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("3000\n")
    (tmp_path / "job" / "step" / "memory.max").write_text("max\n")
    (tmp_path / "membership").write_text("0::/job/step\n")
    assert _group_limits(tmp_path / "membership", tmp_path) == [3000]
    (tmp_path / "memory" / "box").mkdir(parents=True)
    (tmp_path / "memory" / "box" / "memory.limit_in_bytes").write_text("7000\n")
    (tmp_path / "membership").write_text("4:cpu,cpuacct:/box\n3:memory:/box\n")
    assert _group_limits(tmp_path / "membership", tmp_path) == [7000]
    assert _group_limits(tmp_path / "nowhere", tmp_path) == []


def _children() -> list[int]:
    return [int(p) for p in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


def _is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_computes_with_one_thread_and_blas_gets_its_threads_back(workers):
    with threadpool_limits(3, user_api="blas"):
        assert list(run_tasks(threads, range(3), Engine(workers=workers), killed)) == [(1, 1)] * 3
        assert threads(0)[1] == 3
