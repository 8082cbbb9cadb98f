"""Bring shard sets to a plain torch `DataLoader`, as other trainers use it.

In: a `StreamSpec`. Out: `SliceDataset` (by index) and `SliceStream` (in the stream's order, resumable). Both hold little more than the
spec until they are read, so they reach the workers of a `DataLoader` by fork and by spawn. medvar's own trainer reads by threads
instead (`loader`), which needs no worker processes.

    >>> stream = SliceStream(StreamSpec("shards", batch_size=64, masks=True))     # doctest: +SKIP
    >>> for batch in DataLoader(stream, batch_size=64, num_workers=4):            # doctest: +SKIP
    ...     train(batch["image"], batch["condition_id"])
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from medvar_data.errors import SpecError
from medvar_data.stream import Batch, StreamSpec, open_stream

Sample = dict[str, Any]


class SliceDataset(Dataset[Sample]):
    """The selected slices of a split by index, in the set's own order.

    A sample holds `image` (uint8 [1, side, side], [0, 255]), `condition_id` (int), `key` (str) and, with `spec.masks`, `mask` (as the
    image).

    Args:
        spec: what to select; batch size, seed, mixture and ranks play no part.

    Raises:
        MedvarError: the set is unreadable, or the spec does not fit it.
    """

    def __init__(self, spec: StreamSpec) -> None:
        self._stream = open_stream(spec)

    def __len__(self) -> int:
        return len(self._stream.selected)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}; the split has {len(self)} selected slices.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Read several slices at once, as a `DataLoader` asks for a batch."""
        return list(_samples(self._stream.batch(0, self._stream.selected[np.asarray(indices, dtype=np.int64)])))


class SliceStream(IterableDataset[Sample]):
    """The stream of one rank: its part of each global batch in turn, without end or for a number of steps.

    Worker n of N yields the batches n, n + N, and so on, so that a `DataLoader` whose batch size is this rank's part,
    `spec.batch_size / spec.world`, gives exactly the stream's batches, whatever the number of workers. With `batched`, whole batches
    are yielded (`DataLoader(..., batch_size=None)`).

    `state_dict` and `load_state_dict` follow torchdata's StatefulDataLoader, whose state needs the same number of workers again.
    `state_after` gives a state that fits any number of workers and ranks.

    Args:
        spec: what to yield.
        steps: global batches; None never ends.
        batched: yield a batch at a time: `image` uint8 [n, 1, side, side], `condition_id` int64 [n], `key` n texts, and `mask`.

    Raises:
        MedvarError: the set is unreadable, or the spec does not fit it.
    """

    def __init__(self, spec: StreamSpec, steps: int | None = None, *, batched: bool = False) -> None:
        self._stream = open_stream(spec)
        self._steps, self._batched = steps, batched
        self._done = 0  # samples that this process has yielded since the stream's position

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        part = self._stream.spec.batch_size // self._stream.spec.world
        batches, skip = divmod(self._done, part)
        step = number + batches * count
        while self._steps is None or step < self._steps:
            rows = self._stream.rows(step, self._stream.position)
            batch = self._stream.batch(step, rows, self._stream.position)
            if self._batched:
                self._done += part
                yield _whole(batch)
            else:
                for sample in list(_samples(batch))[skip:]:
                    self._done += 1
                    yield sample
            step, skip = step + count, 0

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands; see `state_after` for another number of processes."""
        return {**self._stream.state_dict(), "done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict` or `state_after`.

        Raises:
            SpecError: it is not a state of this stream.
        """
        done = state.get("done", 0)
        if not isinstance(done, int) or done < 0:
            raise SpecError(f"a stream's state has done = {done!r}; wanted a count of samples.")
        self._stream.load_state_dict(state)
        self._done = done

    def state_after(self, steps: int) -> dict[str, Any]:
        """The state after a number of global batches from where this stream began, for any number of workers and ranks."""
        stream = self._stream
        return {**stream.state_dict(stream.position + steps * stream.spec.batch_size), "done": 0}


def _samples(batch: Batch) -> Iterator[Sample]:
    whole = _whole(batch)
    for place, key in enumerate(batch.keys):
        sample: Sample = {"image": whole["image"][place], "condition_id": int(batch.condition_ids[place]), "key": key}
        if batch.masks is not None:
            sample["mask"] = whole["mask"][place]
        yield sample


def _whole(batch: Batch) -> Sample:
    whole: Sample = {
        "image": torch.from_numpy(batch.images)[:, None],
        "condition_id": torch.from_numpy(batch.condition_ids.astype(np.int64)),
        "key": batch.keys,
    }
    if batch.masks is not None:
        whole["mask"] = torch.from_numpy(batch.masks)[:, None]
    return whole
