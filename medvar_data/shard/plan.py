"""Plan a shard set: which slice lies in which shard, and where.

A pure function of the finished cases, the seed and the split.
"""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise

from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import SpecError
from medvar_data.shard.rows import PlannedSlice
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.schema import SPLITS
from medvar_data.storage.codec import CODECS


@dataclass(frozen=True)
class ShardSpec:
    """What a shard set is made of."""

    recipe: Recipe
    split: SplitSpec = field(default_factory=SplitSpec)
    seed: int = 0  # of the order of slices
    slices_per_shard: int = 1024
    codec: str = "png"  # of the pictures in the shards

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise SpecError(f"codec is {self.codec!r}; wanted one of {', '.join(CODECS)}.")


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: its slices in order, and where it and its rows go."""

    name: str
    slices: tuple[PlannedSlice, ...]
    codec: str
    url: str
    index: str  # where the finished shard's rows go; the done-mark
    digest: str  # of the plan


def plan_shards(slices: list[PlannedSlice], spec: ShardSpec) -> list[tuple[str, tuple[PlannedSlice, ...]]]:
    """Order each split's slices by a seeded hash of their keys and cut shards of nearly equal size."""
    plan = []
    for split in SPLITS:
        members = [s for s in slices if s.split == split]
        members.sort(key=lambda s: sha256(f"{spec.seed}/{s.key}".encode()).digest())
        n_shards = -(-len(members) // spec.slices_per_shard)
        bounds = [round(i * len(members) / max(1, n_shards)) for i in range(n_shards + 1)]
        plan += [(f"{split}-{i:06d}.tar", tuple(members[a:b])) for i, (a, b) in enumerate(pairwise(bounds))]
    return plan


def plan_digest(plan: list[tuple[str, tuple[PlannedSlice, ...]]], codec: str) -> str:
    """Name everything that the shards and their index will hold; whatever changes it makes them be written again."""
    digest = sha256(CODECS[codec].version.encode())
    for name, members in plan:
        digest.update(name.encode())
        for s in members:
            digest.update(json.dumps(s.columns, sort_keys=True).encode())
    return digest.hexdigest()
