"""Freed memory is kept for the next tensors: a step that repeats itself asks the system for no fresh page."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from medvar_model.machine.processes import device_of
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    device_of("cpu")
def work():
    parts = [torch.ones(16 << 20) for _ in range(3)]  # 64 MiB each
    return float(sum(part[0] for part in parts))
for _ in range(10):  # until free blocks of every size are at hand
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is the GNU C library's")
def test_memory_that_is_freed_is_used_again():
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    given = faults("given back", clean)
    if given < 1000:
        pytest.skip("this system's pages are so large that faults do not count")
    assert faults("kept", clean) < given / 10
    assert faults("kept", clean | {"MALLOC_ARENA_MAX": "8"}) > given / 2, "the user's own setting was overruled"
