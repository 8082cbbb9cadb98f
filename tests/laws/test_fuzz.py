"""However an input is damaged, its cases are kept or rejected with a reason: no crash, no hang, no memory blow-up.

A few inputs of each kind run always, 36,400 in `make slow`. An input that once broke something is kept by kind and number.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fuzz import KINDS, PACKED, mutant

ROOT = Path(__file__).parents[2]
SHORT, LONG = 25, 2_600
PEAK_MIB = 600
ONCE_BROKEN = (
    ("dicom", 102),  # a mask whose PNG claims a chunk of a gigabyte
    ("cohort", 1041),  # a segmentation with more frames than its header names
    ("zip", 64),  # a member without a name
    ("dicom", 164),  # a mask cut off within its first chunk
)


def fuzz(*ranges: tuple[str, int, int]) -> list[dict]:
    """Run ranges of inputs, each a kind, its first number and a count, in one process; returns a report for each."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "fuzz.py"), *(str(part) for r in ranges for part in r)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(ranges) :]]


def check(report: dict) -> None:
    assert sum(report["ends"].values()) == report["count"]
    assert report["peak_mib"] < PEAK_MIB
    assert not [end for end in report["ends"] if end.startswith("no sentence")]
    if report["kind"] != "toml":
        assert len(report["ends"]) >= 2, "damage of one outcome alone tests nothing"


@pytest.fixture(scope="module")
def few() -> dict[tuple[str, int], dict]:
    """Reports of the short runs, by kind and first number; in one process, whose start costs as much as they do."""
    ranges = [(kind, 0, SHORT) for kind in sorted(KINDS)] + [(kind, number, 1) for kind, number in ONCE_BROKEN]
    return {(report["kind"], report["first"]): report for report in fuzz(*ranges)}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_few_of_each_kind(few, kind):
    assert few[kind, 0]["count"] == SHORT
    check(few[kind, 0])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_many_of_each_kind(kind):
    (report,) = fuzz((kind, 0, LONG))
    print(json.dumps(report))
    check(report)


@pytest.mark.parametrize(("kind", "number"), ONCE_BROKEN)
def test_inputs_that_broke_something_once(few, kind, number):
    assert sum(few[kind, number]["ends"].values()) == 1


def test_a_number_names_one_input_for_ever():
    for kind in KINDS.keys() - PACKED.keys():  # archives hold the time of their making
        assert mutant(kind, 5) == mutant(kind, 5)
        assert mutant(kind, 5) != mutant(kind, 6)
