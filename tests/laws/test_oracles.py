"""No silent difference: inputs made with their truth (`support.oracles`) are read exactly or refused, 2,500 of each kind in `make slow`."""

from collections import Counter
from pathlib import Path
from shutil import rmtree

import pytest
from support.oracles import KINDS, outcome

SHORT, LONG = 40, 2_500
LEAST_EXACT = {"geometry": 0.6, "units": 0.9, "contours": 0.9, "marks": 0.4}  # the rest is refused


def run(kind: str, numbers: range, folder: Path) -> Counter[str]:
    ends: Counter[str] = Counter()
    for number in numbers:
        end = outcome(kind, number, folder)
        ends[end] += 1
        assert not end.startswith("wrong"), f"{kind} {number}: {end}"
        rmtree(folder / f"{kind}-{number}")
    print(kind, dict(ends))
    return ends


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_of_each_kind(kind, tmp_path):
    ends = run(kind, range(SHORT), tmp_path)
    assert ends["exact"] >= 0.75 * LEAST_EXACT[kind] * SHORT


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_of_each_kind(kind, tmp_path):
    ends = run(kind, range(SHORT, SHORT + LONG), tmp_path)
    assert sum(ends.values()) == LONG
    assert ends["exact"] >= LEAST_EXACT[kind] * LONG
