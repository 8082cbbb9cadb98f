"""Bring a token cache to the trainer: the stream's order without its pictures.

In: a `DataSpec`, and a `TokenCache` of the same set. Out: `CodedExamples`, whose slices, order and parts are those that `Loader`
gives as images.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import torch
from jaxtyping import Int64

from medvar_data.stream import ahead
from medvar_model.errors import ShardSetMismatch
from medvar_model.loader import CodedExamples, DataSpec, Loader
from medvar_model.machine.processes import Process
from medvar_model.tokens.cache import TokenCache, check_origin, keys_digest


class TokenLoader(Loader):
    """One split's tokens, in batches on a device.

    Args:
        spec: what to read; where the pictures lie plays no part.
        split: train, val or test.
        cache: the tokens.
        batch_size: slices of a global batch, all processes together.
        seed: of the order.
        process: this process.

    Raises:
        ShardSetMismatch: the cache was made from another set.
        MedvarError: the set's tables are unreadable, or the spec does not fit it.
    """

    def __init__(
        self, spec: DataSpec, split: str, cache: TokenCache, batch_size: int, seed: int, process: Process
    ) -> None:
        super().__init__(spec, split, cache.note.origin.image_side, batch_size, seed, process)
        there, entry = cache.note.origin, cache.note.splits.get(split)
        check_origin(cache.folder, there, replace(there, shard_set=self.digest), ("shard_set",))
        keys = self.stream.shard_set.keys
        if entry is None or entry.keys_sha256 != keys_digest(keys):
            raise ShardSetMismatch(
                f"{cache.folder} has tokens of {entry.slices if entry else 0:,} {split} slices, whose keys are not those of the "
                f"{len(keys):,} in {spec.shards}. Tokenize the set again, in a new folder (`medvar-model tokenize … -o NEW`)."
            )
        self._ids = cache.ids(split)

    def batches(self, start_step: int) -> Generator[CodedExamples]:  # type: ignore[override]  # tokens in the place of images
        """Yield this process's part of each global batch from a step on, without end; `close` ends it."""
        tasks = (self._task(step, self.stream.rows(step)) for step in count(start_step))
        with contextlib.closing(ahead(tasks, 1)) as read:  # a thread, since a page may have to come from a disk
            yield from map(self._on_device, read)

    def passes(self, batch_size: int, most: int = 0, skip: int = 0) -> Iterator[CodedExamples]:  # type: ignore[override]
        """Yield this process's part of one pass in fixed order; as `Loader.passes`."""
        for number, rows in self.stream.pass_rows(batch_size, most)[skip:]:
            yield self._on_device(self._read(number, rows))

    def _task(self, step: int, rows: Int64[np.ndarray, " batch"]) -> Callable[[], CodedExamples]:
        return partial(self._read, step, rows)

    def _read(self, step: int, rows: Int64[np.ndarray, " batch"]) -> CodedExamples:
        shard_set = self.stream.shard_set
        tokens = torch.from_numpy(self._ids[rows].astype(np.int64))
        return CodedExamples(step, tokens, self.condition_rows(shard_set.condition_id[rows]), shard_set.names(rows))

    def _on_device(self, read: CodedExamples) -> CodedExamples:
        if self.device.type == "cpu":
            return read
        tokens, conditions = (
            values.pin_memory().to(self.device, non_blocking=True) for values in (read.tokens, read.conditions)
        )
        return CodedExamples(read.step, tokens, conditions, read.keys)
