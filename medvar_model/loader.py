"""Bring the stream to torch: the one module that turns samples into tensors.

In: a `DataSpec` and where this process stands. Out: `Examples` on its device, in an order that only seed and
step decide. Reading and decoding run in threads beside the computation.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor

from medvar_data.errors import SpecError
from medvar_data.naming import printable
from medvar_data.shardset.dataset import read_dataset, read_table
from medvar_data.storage.store import Store
from medvar_data.stream import Batch, Stream, StreamSpec, ahead, open_shard_set
from medvar_model.errors import ShardSetMismatch
from medvar_model.machine.folders import check_shard_set
from medvar_model.machine.memory import check_memory
from medvar_model.machine.processes import Process


@dataclass(frozen=True)
class DataSpec:
    """What to train on.

    Args:
        shards: folder or URL of a shard set.
        where: a condition in SQL that the training slices fulfil; empty takes all.
        mixture: pairs of value and weight; empty, without `temperature`, gives every slice once an epoch.
        mix_by: the column that the mixture's values stand in.
        temperature: mixes all values, each weighing the number of its slices to this power.
        skip_bad: put another slice in the place of one that cannot be read, and count it.
        window_shards: mix only so many shards at a time (remote sets larger than the cache); 0 mixes all.
        cache: folder for the shards of a remote set.
        cache_bytes: bound of that folder.
        workers: threads that read ahead.
        hold_out: collections whose slices and conditions are left out of every split.
    """

    shards: str
    where: str = ""
    mixture: tuple[tuple[str, float], ...] = ()
    mix_by: str = "condition"
    temperature: float | None = None
    skip_bad: bool = False
    window_shards: int = 0
    cache: str = ""
    cache_bytes: int = 20_000_000_000
    workers: int = 2
    hold_out: tuple[str, ...] = ()

    @property
    def selection(self) -> str:
        """The condition in SQL that the slices fulfil, held-out collections considered."""
        held = ", ".join("'" + name.replace("'", "''") + "'" for name in self.hold_out)
        without = f"collection NOT IN ({held})" if held else ""
        return f"({self.where}) AND {without}" if self.where and held else without or self.where


@dataclass(frozen=True, eq=False)
class CodedExamples:
    """One process's part of a batch whose images were tokenized before, on its device.

    Args:
        step: number of the global batch.
        tokens: ids of all scales, coarsest first: int64, batch × tokens, [0, vocabulary).
        conditions: the transformer's row of each image's condition, [0, N).
        keys: key of each slice.
    """

    step: int
    tokens: Int64[Tensor, "batch tokens"]
    conditions: Int64[Tensor, " batch"]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, stop: int) -> "CodedExamples":
        """Return some of the images' tokens."""
        return CodedExamples(self.step, self.tokens[start:stop], self.conditions[start:stop], self.keys[start:stop])


@dataclass(frozen=True, eq=False)
class Examples:
    """One process's part of a batch, on its device.

    Args:
        step: number of the global batch.
        images: float32, batch × 1 × rows × columns, [-1, 1].
        conditions: the transformer's row of each image's condition, [0, N).
        keys: key of each slice.
    """

    step: int
    images: Float32[Tensor, "batch 1 side side"]
    conditions: Int64[Tensor, " batch"]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, stop: int) -> "Examples":
        """Return some of the images."""
        return Examples(self.step, self.images[start:stop], self.conditions[start:stop], self.keys[start:stop])


class Loader:
    """One split of a shard set, ready for a network.

    Args:
        spec: what to train on.
        split: train, val or test.
        image_side: pixels along a side that the network takes; a whole fraction of the set's, averaged down
            to it.
        batch_size: images of a global batch.
        seed: of the order.
        process: this process.

    Attributes:
        stream: the set's slices and their order.
        set_side, image_side: pixels along a side in the set, and as the network takes them.

    Raises:
        ShardSetMismatch: there is no set, or its images cannot be averaged down to that side.
        OutOfMemory: the batches that are read ahead exceed the machine's memory.
        MedvarError: the set is unreadable, or the spec does not fit it.
    """

    def __init__(
        self, spec: DataSpec, split: str, image_side: int, batch_size: int, seed: int, process: Process
    ) -> None:
        stream_spec = StreamSpec(
            shards=spec.shards,
            split=split,
            batch_size=batch_size,
            seed=seed,
            world=process.world,
            rank=process.rank,
            where=spec.selection,
            mixture=spec.mixture if split == "train" else (),
            mix_by=spec.mix_by,
            temperature=spec.temperature if split == "train" else None,
            skip_bad=spec.skip_bad,
            window_shards=spec.window_shards if split == "train" else 0,
            cache=spec.cache,
            cache_bytes=spec.cache_bytes,
        )
        check_shard_set(spec.shards)
        unseen = held_out_conditions(spec)
        self.stream = Stream(stream_spec, open_shard_set(spec.shards, split))
        self._workers = spec.workers
        self.device = process.device
        ids = self.stream.shard_set.condition_ids
        self._condition_ids = {name: number for name, number in ids.items() if number not in unseen}
        self._global_ids = np.array(sorted(self._condition_ids.values()))
        self.image_side, self.set_side = image_side, self.stream.shard_set.image_side
        side = self.set_side
        if side % image_side:
            raise ShardSetMismatch(
                f"{spec.shards} holds images of {side} pixels a side, the network takes {image_side}; wanted "
                "a whole multiple. Choose another preset, or make a shard set of that size."
            )
        self._shrink = side // image_side
        held = batch_size // process.world * side**2 * (spec.workers + 2)  # 8-bit images of the batches in flight
        check_memory(
            held, torch.device("cpu"), f"Reading batches of {batch_size:,} images ahead", "Give a smaller --batch-size."
        )

    def __len__(self) -> int:
        return len(self.stream.selected)

    @property
    def unreadable(self) -> dict[str, str]:
        """Why each slice that could not be read was left out, by key."""
        return self.stream.skipped

    @property
    def digest(self) -> str:
        """Digest of the whole shard set."""
        return self.stream.shard_set.digest

    @property
    def conditions(self) -> dict[str, int]:
        """Name → row in the transformer's table: the set's conditions in the order of their global ids, held-out ones left out."""
        return {
            name: row
            for row, name in enumerate(sorted(self._condition_ids, key=lambda name: self._condition_ids[name]))
        }

    def batches(self, start_step: int) -> Generator[Examples]:
        """Yield this process's part of each global batch from a step on, without end; `close` ends it."""
        tasks = (partial(self._load, task) for task in self.stream.tasks(start_step))
        with contextlib.closing(ahead(tasks, self._workers)) as loaded:
            yield from map(self._placed, loaded)

    def passes(self, batch_size: int, most: int = 0, skip: int = 0) -> Iterator[Examples]:
        """Yield this process's part of one pass in fixed order; with `most`, of that many evenly spread
        slices; without the first `skip` batches.

        Over all processes every slice comes once, so parts may differ in length, and one may be empty.
        """
        parts = self.stream.pass_rows(batch_size, most)[skip:]
        tasks = (partial(self._load, partial(self.stream.batch, number, rows)) for number, rows in parts)
        return map(self._placed, ahead(tasks, self._workers))

    def condition_rows(self, condition_ids: Int32[np.ndarray, " batch"]) -> Int64[Tensor, " batch"]:
        """Turn global ids of conditions into the transformer's rows."""
        return torch.from_numpy(np.searchsorted(self._global_ids, condition_ids).astype(np.int64))

    def _load(self, read: Callable[[], Batch]) -> "_Loaded":
        """Read a batch (in a worker's thread)."""
        batch = read()
        images = torch.from_numpy(batch.images)
        if self._shrink > 1:
            mean = F.avg_pool2d(images[:, None].float(), self._shrink)
            images = mean.round().to(torch.uint8)[:, 0]
        conditions = self.condition_rows(batch.condition_ids)
        if self.device.type == "cuda":
            images, conditions = images.pin_memory(), conditions.pin_memory()
        return _Loaded(batch.step, images, conditions, batch.keys)

    def _placed(self, loaded: "_Loaded") -> Examples:
        images = loaded.images.to(self.device, non_blocking=True)
        conditions = loaded.conditions.to(self.device, non_blocking=True)
        return Examples(loaded.step, to_network(images), conditions, loaded.keys)


def held_out_conditions(spec: DataSpec) -> set[int]:
    """Return the global ids of the conditions that held-out collections alone have.

    Raises:
        SpecError: the set has no such collection, or no other.
    """
    if not spec.hold_out:
        return set()
    store = Store(spec.shards)
    table = read_table(store, "slices.parquet", read_dataset(store), columns=["collection", "condition_id"])
    pairs = table.group_by(["collection", "condition_id"]).aggregate([]).to_pylist()
    names = {pair["collection"] for pair in pairs}
    unknown = [name for name in spec.hold_out if name not in names]
    if unknown or names <= set(spec.hold_out):
        found = f"has no collection {printable(unknown[0])!r}" if unknown else "has no other collections to train on"
        raise SpecError(
            f"{spec.shards} {found}; it has {', '.join(sorted(names))}. Choose --hold-out-collection among them, not all of them."
        )
    kept = {pair["condition_id"] for pair in pairs if pair["collection"] not in spec.hold_out}
    return {pair["condition_id"] for pair in pairs} - kept


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A batch before it travels to the device."""

    step: int
    images: UInt8[Tensor, "batch side side"]
    conditions: Int64[Tensor, " batch"]
    keys: tuple[str, ...]


def to_network(images: UInt8[Tensor, "batch side side"]) -> Float32[Tensor, "batch 1 side side"]:
    """Turn 8-bit grey values [0, 255] into the network's [-1, 1]."""
    return images[:, None].float().div_(127.5).sub_(1)
