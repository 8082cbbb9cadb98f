"""Open a shard set to compare images with: its held-out slices, and training slices as the floor.

In: a shard set. Out: slices with conditions and patients; scores of sets of images against them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from medvar_data.shardset.dataset import read_dataset
from medvar_data.storage.store import Store
from medvar_model.errors import ShardSetMismatch
from medvar_model.evaluation.comparison import FLOOR, Grouped, compare, summary
from medvar_model.evaluation.extractors import Extractor
from medvar_model.evaluation.inputs import slice_facts, split_sizes
from medvar_model.evaluation.passes import Fresh
from medvar_model.evaluation.scores import Labelled
from medvar_model.loader import DataSpec, Loader
from medvar_model.machine.processes import Process
from medvar_model.sampling.sample import to_uint8


@dataclass(frozen=True, eq=False)
class Reference:
    """A shard set, opened to compare images with: what held-out and training slices it has.

    Args:
        data: the shard set.
        side: pixels a side at which images are compared; 0 takes the set's.
        held_out: at most so many slices of each held-out split; 0 takes all.
        batch_size: slices read at a time.
        device: where features are computed.

    Raises:
        ShardSetMismatch: the set has no held-out slices.
    """

    data: DataSpec
    device: torch.device
    side: int = 0
    held_out: int = 2048
    batch_size: int = 64

    @cached_property
    def splits(self) -> list[str]:
        """The held-out splits that have slices."""
        sizes = split_sizes(self.data.shards)
        splits = [split for split in ("val", "test") if sizes.get(split, 0)]
        if not splits:
            raise ShardSetMismatch(
                f"{self.data.shards} has no val or test slices, so there is nothing unseen to score by. Shard it again "
                "with larger held-out shares, or from more patients."
            )
        return splits

    @cached_property
    def train(self) -> Loader:
        """The training slices."""
        return self.loader("train")

    def loader(self, split: str) -> Loader:
        """Open a split."""
        side = self.side or read_dataset(Store(self.data.shards)).image_side
        return Loader(self.data, split, side, self.batch_size, 0, Process(1, 0, self.device))

    @cached_property
    def names(self) -> dict[int, str]:
        """Row → condition."""
        return {row: name for name, row in self.train.conditions.items()}

    @cached_property
    def held(self) -> tuple[Labelled, tuple[str, ...]]:
        """Held-out slices and their keys."""
        stacks, names, keys = [], [], []
        for split in self.splits:
            for part in self.loader(split).passes(self.batch_size, self.held_out):
                stacks.append(to_uint8(part.images).cpu().numpy())
                names += [self.names[row] for row in part.conditions.tolist()]
                keys += list(part.keys)
        return Labelled(np.concatenate(stacks), tuple(names)), tuple(keys)

    def compared(
        self, sets: dict[str, Labelled], fresh: Fresh, extractors: Sequence[Extractor], replicates: int
    ) -> dict[str, Any]:
        """Score sets of images, and fresh training slices in the numbers of the first set, by every set metric."""
        facts, (held, keys) = slice_facts(self.data.shards), self.held
        real, real_keys = self.floor(fresh, next(iter(sets.values())))
        candidates = {name: Grouped.drawn(part) for name, part in sets.items()}
        candidates[FLOOR] = Grouped(real, tuple(facts.patient[key] for key in real_keys))
        reference = Grouped(held, tuple(facts.patient[key] for key in keys))
        scores = compare(reference, candidates, extractors, facts.cell, replicates)
        return summary(scores, extractors, reference, candidates)

    def floor(self, fresh: Fresh, samples: Labelled) -> tuple[Labelled, list[str]]:
        """Give fresh training slices, as many of each condition as there are samples, and their keys."""
        return fresh_slices(fresh, self.names, self.train.image_side, samples)

    def fresh(self, count: int) -> Fresh:
        """Choose at most so many training slices of each condition."""
        fresh = Fresh(count)
        for part in self.train.passes(self.batch_size):
            fresh.offer_all(part, to_uint8(part.images).cpu().numpy())
        return fresh


def fresh_slices(
    fresh: Fresh, names: Mapping[int, str], side: int, like: Labelled | None = None
) -> tuple[Labelled, list[str]]:
    """Give chosen training slices, and their keys.

    Args:
        fresh: training slices by row of the condition.
        names: row → condition.
        side: of the slices, in pixels.
        like: as many of each condition are given as there are here; None gives all.
    """
    stack, conditions, keys = [], [], []
    for row, name in names.items():
        most = None if like is None else len(like.places(name))
        mine = fresh.images(row)[:most]
        stack += mine
        conditions += [name] * len(mine)
        keys += fresh.keys(row)[:most]
    return Labelled(np.array(stack, dtype=np.uint8).reshape(-1, side, side), tuple(conditions)), keys
