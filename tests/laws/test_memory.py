"""What the scheduler expects of memory is what a case takes, and a large CT passes in a small process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_cases_stay_within_what_is_expected_and_a_thousand_slices_within_three_gigabytes():
    done = subprocess.run(
        [sys.executable, "bench/memory.py", "--quick", "--large"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    figures = {name: figure["value"] for name, figure in json.loads(done.stdout.splitlines()[-1]).items()}
    assert figures["peak_512x512x1000"] < 3.0
    assert figures["peak_512x512x1000_over_expected"] <= 1.0
    assert figures["peak_over_expected"] <= 1.0
