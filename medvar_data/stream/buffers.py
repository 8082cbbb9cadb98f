"""Reuse the memory of batches that nobody holds any more.

Fresh memory costs a page fault for every 4 KiB, which for a batch of pictures takes as long as half of their decoding.
"""

import mmap
import weakref
from collections import deque
from math import prod

import numpy as np
from jaxtyping import UInt8

MOST_FREE = 16  # of one size
MOST_SIZES = 8


class Buffers:
    """Gives arrays whose memory comes back when the last view of it (a slice, a tensor that shares it) is gone.

    Threads may share one. Memory comes back whenever an array ends, even amid another call; so the lists of free memory are only
    ever appended to and popped from, which needs no lock.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[mmap.mmap]] = {}  # by bytes

    def array(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        """An array of that shape, its values left from before."""
        size = prod(shape)
        if not size:
            return np.empty(shape, dtype=np.uint8)
        if size not in self._free and len(self._free) >= MOST_SIZES:
            self._free = {}
        free = self._free.setdefault(size, deque(maxlen=MOST_FREE))  # the oldest goes where there are more
        try:
            memory = free.pop()
        except IndexError:
            memory = _mapped(size)
        # Views of an array over foreign memory keep that array alive, not the memory alone; so its end is the end of all views.
        owner = np.frombuffer(memory, dtype=np.uint8, count=size)
        weakref.finalize(owner, free.append, memory).atexit = False
        return owner.reshape(shape)


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
