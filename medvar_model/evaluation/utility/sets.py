"""Open what is compared: held-out slices, training slices, synthetic images; refuse what does not belong together.

In: a `Utility`. Out: images at the classifier's side with conditions and keys.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from medvar_data.shardset.dataset import read_dataset
from medvar_data.storage.store import Store
from medvar_model.checkpoints.checkpoint import Contents, read_checkpoint
from medvar_model.errors import UnknownCondition
from medvar_model.evaluation.images import read_images
from medvar_model.evaluation.inputs import (
    check_conditions,
    held_out_collections,
    read_drawn,
    read_samples,
    samples_digest,
    slice_facts,
)
from medvar_model.evaluation.reference import Reference, fresh_slices
from medvar_model.evaluation.scores import Labelled
from medvar_model.evaluation.utility.settings import Utility
from medvar_model.machine.folders import check_shard_set, check_writable
from medvar_model.sampling.sample_files import SampleFiles, check_samples, own_tokenizer, write_samples

SIDE, LEAST_SIDE = 64, 32  # pixels a side that the classifier sees
SAMPLES = "samples"


def network_side(side: int) -> int:
    """Give the largest side up to 64 to which whole pixels of a set's side can be averaged; its own side if that is below 32.

    Example:
        >>> [network_side(side) for side in (256, 512, 96, 32, 127)]
        [64, 64, 48, 32, 127]
    """
    fits = max(small for small in range(1, SIDE + 1) if side % small == 0)
    return fits if fits >= LEAST_SIDE else side


class Sets:
    """Everything that is compared, opened and checked.

    Args:
        spec: what to measure.
        device: where images are drawn.
        report: told in a line of each stage that begins.

    Attributes:
        reference: the shard set at the classifier's side.
        facts: patients of slices, anatomy of conditions.

    Raises:
        ModelError, MedvarError: see `run.measure_utility`.
    """

    def __init__(self, spec: Utility, device: torch.device, report: Callable[[str], None]) -> None:
        self._spec, self._device, self._say, self._out = spec, device, report, Path(spec.out)
        check_writable(self._out)
        check_shard_set(spec.data.shards)
        self._kept = read_checkpoint(Path(spec.run), "transformer") if spec.run else None
        data = replace(spec.data, hold_out=held_out_collections(self._kept)) if self._kept else spec.data
        side = network_side(read_dataset(Store(spec.data.shards)).image_side)
        self.reference = Reference(data, device, side, spec.held_out)
        _ = self.reference.splits  # refuses a set without held-out slices
        if self._kept:
            self._check_run(self._kept)
        self.facts = slice_facts(spec.data.shards)
        self._given = self._read(Path(spec.images)) if spec.images else None

    def inputs(self) -> dict[str, Any]:
        """Name everything that decides a result."""
        spec = self._spec
        names = ("seeds", "steps", "batch_size", "task", "slices", "held_out", "replicates")
        return {
            "shard_set": self.reference.train.digest,
            "transformer": self._kept.digest if self._kept else None,
            "samples": self._given[1] if self._given else asdict(spec.settings),
            "count": spec.count if self._kept else None,
            "shares": sorted(set(spec.shares)),
            **{name: getattr(spec, name) for name in names},
        }

    def synthetic(self) -> Labelled:
        """Give the images of the folder, or draw images of every condition."""
        if self._given:
            return self._given[0]
        assert self._kept
        self._say("samples")
        write_samples(self._drawing(self._kept), self._device)
        return self._read(self._out / SAMPLES)[0]

    def held_out(self) -> tuple[Labelled, list[str]]:
        """Read held-out slices; give their keys, too."""
        self._say("held-out slices")
        held, keys = self.reference.held
        return held, list(keys)

    def training(self) -> tuple[Labelled, list[str]]:
        """Read all training slices, keep at most so many of each condition; give their keys, too."""
        self._say("training slices")
        fresh = self.reference.fresh(self._spec.slices)
        return fresh_slices(fresh, self.reference.names, self.reference.train.image_side)

    def _check_run(self, kept: Contents) -> None:
        check_conditions(kept, self._spec.run, self.reference.train.conditions, self._spec.data.shards)
        check_samples(self._drawing(kept))

    def _drawing(self, kept: Contents) -> SampleFiles:
        spec, folder = self._spec, str(self._out / SAMPLES)
        tokenizer = str(own_tokenizer(Path(spec.run)))
        return SampleFiles(spec.run, folder, tuple(kept.conditions), spec.count, spec.settings, tokenizer=tokenizer)

    def _read(self, folder: Path) -> tuple[Labelled, str]:
        """Read images at the classifier's side, and name them by a digest."""
        train = self.reference.train
        if not (folder / "samples.json").is_file():
            labelled, _, digest = read_images(folder, train)
            return labelled, digest
        unknown = sorted({image["condition"] for image in read_samples(folder)["images"]} - set(train.conditions))
        if unknown:
            raise UnknownCondition(
                f"{folder} holds samples of {unknown[0]!r}; the shard set has {', '.join(train.conditions)}. Name samples of these conditions."
            )
        return read_drawn(folder, train.image_side)[0], samples_digest(folder)
