"""Laws of union-find: what is joined by a chain is one set, its smallest number leads it, and the order of joining does not matter."""

from hypothesis import given, settings
from hypothesis import strategies as st

from medvar_data.shard.unions import Unions

N = 24
pairs = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, N - 1)), max_size=40)


def reachable(joined: list[tuple[int, int]]) -> list[int]:
    """The smallest number that each one reaches, found the slow way."""
    lowest = list(range(N))
    for _ in range(N):
        for a, b in joined:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    return lowest


@settings(max_examples=200, deadline=None)
@given(joined=pairs, order=st.randoms(use_true_random=False))
def test_sets_are_what_chains_reach(joined, order):
    shuffled = [pair[:: order.choice((1, -1))] for pair in joined]
    order.shuffle(shuffled)
    sets = Unions(N, shuffled)
    assert [sets.find(number) for number in range(N)] == reachable(joined)


@settings(max_examples=100, deadline=None)
@given(joined=pairs)
def test_joining_says_whether_they_were_apart(joined):
    sets = Unions(N)
    told = sum(sets.join(a, b) for a, b in joined)
    assert told == N - len({sets.find(number) for number in range(N)})
    assert not any(sets.join(a, b) for a, b in joined)
