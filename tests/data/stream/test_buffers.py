"""Memory of batches is used again only when nobody can see it any more."""

import gc
import threading

import numpy as np
import pytest

from medvar_data.stream.buffers import MOST_FREE, MOST_SIZES, Buffers


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[1:],
        lambda a: a[::2, None],
        lambda a: a.reshape(-1),
        lambda a: np.asarray(memoryview(a))[0],
        lambda a: a[1:][0].T,
    ],
)
def test_a_view_keeps_the_memory(view):
    buffers = Buffers()
    array = buffers.array((4, 8, 8))
    array[:] = 7
    held, place = view(array), address(array)
    del array
    gc.collect()
    other = buffers.array((4, 8, 8))
    other[:] = 9
    assert (held == 7).all()
    assert address(other) != place
    del held
    gc.collect()
    assert address(buffers.array((4, 8, 8))) == place


def test_a_tensor_keeps_the_memory():
    torch = pytest.importorskip("torch")
    buffers = Buffers()
    tensor = torch.from_numpy(buffers.array((4, 8, 8)))[1:, None]
    tensor[:] = 7
    gc.collect()
    for _ in range(3):
        buffers.array((4, 8, 8))[:] = 9
    assert bool((tensor == 7).all())


def test_no_more_is_kept_than_the_bound_and_sizes_fit():
    buffers = Buffers()
    held = [buffers.array((64, 64)) for _ in range(3 * MOST_FREE)]
    del held
    gc.collect()
    assert len(buffers._free[64 * 64]) == MOST_FREE
    for side in range(1, 40):
        buffers.array((side, side))
    assert len(buffers._free) <= MOST_SIZES
    assert buffers.array((1000, 1000)).shape == (1000, 1000)
    assert buffers.array((0, 5)).shape == (0, 5)


def test_threads_never_share_memory():
    buffers, wrong = Buffers(), []

    def work(value):
        for _ in range(400):
            one, two = buffers.array((16, 16)), buffers.array((16, 16))
            one[:], two[:] = value, value + 1
            if not ((one == value).all() and (two == value + 1).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
