"""Whatever somebody did to a shard set or a workspace, opening it ends in pixels or in a sentence: 2,500 alterations of each kind in
`make slow`."""

from collections import Counter
from pathlib import Path

import pytest
from support.doors import KINDS, Doors, outcome

SHORT, LONG = 60, 2_500


@pytest.fixture(scope="module")
def doors(tmp_path_factory) -> Doors:
    return Doors(tmp_path_factory.mktemp("doors"))


def run(doors: Doors, kind: str, numbers: range, folder: Path) -> Counter[str]:
    ends: Counter[str] = Counter()
    for number in numbers:
        end = outcome(kind, number, getattr(doors, kind), folder / str(number))
        assert not end.startswith("wrong"), f"{kind} {number}: {end}"
        ends[end] += 1
    print(kind, dict(ends))
    return ends


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_alterations(doors, kind, tmp_path):
    assert run(doors, kind, range(SHORT), tmp_path)["refused"] > SHORT / 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_alterations(doors, kind, tmp_path):
    assert sum(run(doors, kind, range(SHORT, SHORT + LONG), tmp_path).values()) == LONG
