"""Keep the libraries that compute to one thread while a task is done: the processes are the parallelism.

Two processes whose matrix products took two threads each on two cores were five times as slow as with one each: threads that
wait for each other spin.
"""

from contextlib import AbstractContextManager

import cv2
from threadpoolctl import ThreadpoolController


class OneThread:
    """Makes contexts in which OpenCV and the BLAS of numpy and scipy compute with one thread; BLAS gets its threads back after."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self._controller = ThreadpoolController()

    def __call__(self) -> AbstractContextManager[object]:
        """Give a context for one task."""
        return self._controller.limit(limits=1, user_api="blas")
