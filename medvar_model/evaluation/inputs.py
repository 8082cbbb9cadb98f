"""Read what an evaluation compares: samples that were drawn, the sizes of the splits, the scans of slices."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import cv2
import msgspec
import numpy as np
from jaxtyping import UInt8

from medvar_data.naming import NAME, Name
from medvar_data.shardset.dataset import read_dataset, read_table
from medvar_data.storage.documents import read_json
from medvar_data.storage.store import Store
from medvar_model.checkpoints.checkpoint import Contents
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ShardSetMismatch
from medvar_model.evaluation.metrics.features import shrunk
from medvar_model.evaluation.scores import Labelled
from medvar_model.machine.folders import check_shard_set


def split_sizes(shards: str) -> dict[str, int]:
    """Say how many slices each split of a shard set has."""
    check_shard_set(shards)
    return {name: split.slices for name, split in read_dataset(Store(shards)).splits.items()}


def held_out_collections(kept: Contents) -> tuple[str, ...]:
    """Name the collections that a run was told never to see."""
    return tuple(kept.run.get("settings", {}).get("data", {}).get("hold_out", ()))


@dataclass(frozen=True, eq=False)
class SliceFacts:
    """What a set's tables say of its slices.

    Attributes:
        patient: key → salted hash of the patient.
        cell: condition → anatomy and modality, such as `heart mr`.
    """

    patient: dict[str, str]
    cell: dict[str, str]


def slice_facts(shards: str) -> SliceFacts:
    """Read who each slice is of, and what each condition shows: the region that most of its slices have."""
    columns = ["key", "patient", "condition", "region", "modality"]
    table = read_table(Store(shards), "slices.parquet", columns=columns).to_pydict()
    patient = dict(zip(table["key"], table["patient"], strict=True))
    seen: dict[str, Counter[str]] = {}
    for condition, region, modality in zip(table["condition"], table["region"], table["modality"], strict=True):
        seen.setdefault(condition, Counter())[f"{region} {modality.lower()}"] += 1
    return SliceFacts(patient, {name: count.most_common(1)[0][0] for name, count in seen.items()})


def scan_of(key: str) -> str:
    """Give the part of a slice's key that names its scan.

    Example:
        >>> scan_of("acdc-patient001-frame01-z0004")
        'acdc-patient001-frame01'
    """
    return key.rpartition("-z")[0]


def check_conditions(kept: Contents, run: str, conditions: Mapping[str, int], shards: str) -> None:
    """Refuse a shard set with other conditions than a transformer was trained with.

    Raises:
        ShardSetMismatch: they differ.
    """
    if conditions != dict(kept.conditions):
        raise ShardSetMismatch(
            f"{run} was trained with the conditions {', '.join(kept.conditions)}; {shards} has {', '.join(conditions)}. "
            "Evaluate it on the set it was trained on."
        )


def check_pair(kept: Contents, frozen: Contents, run: str) -> None:
    """Refuse a tokenizer that is not the one a transformer was trained with."""
    wanted = kept.run.get("tokenizer", {}).get("digest", frozen.digest)
    if frozen.digest != wanted:
        raise ConfigMismatch(
            f"{run} was trained with a tokenizer of digest {wanted[:12]}, the one named has {frozen.digest[:12]}. "
            "Leave out --tokenizer to take the copy in the run's folder."
        )


class SampleRow(TypedDict):
    """What samples.json says of one image."""

    file: Annotated[str, msgspec.Meta(pattern=f"^{NAME}\\.png$")]
    condition: Name
    seed: int


class _Samples(TypedDict):
    images: Annotated[list[SampleRow], msgspec.Meta(min_length=1)]


class Samples(_Samples, total=False):
    """What samples.json says that is read back."""

    finished: bool
    transformer_digest: str


def read_samples(folder: Path) -> dict[str, Any]:
    """Read what `write_samples` said of its images."""
    try:
        said = read_json(folder / "samples.json", Samples, MissingCheckpoint, "Draw the samples again.")
    except OSError:
        raise MissingCheckpoint(
            f"{folder} holds no samples.json; wanted a folder that `medvar-model sample` wrote."
        ) from None
    if not said.get("finished", True):
        raise MissingCheckpoint(f"The drawing into {folder} was stopped before its end. Repeat that command first.")
    return dict(said)


def samples_digest(folder: Path) -> str:
    """Name the drawn images by a digest of their files and conditions."""
    digest = hashlib.sha256()
    for image in read_samples(folder)["images"]:
        digest.update(f"{image['file']} {image['condition']}".encode())
        digest.update((folder / image["file"]).read_bytes())
    return digest.hexdigest()


def read_drawn(folder: Path, side: int = 0) -> tuple[Labelled, list[str]]:
    """Read drawn images and the names of their files.

    Args:
        folder: where `write_samples` wrote them.
        side: that they are brought to, in pixels; 0 leaves them as they are.
    """
    said = read_samples(folder)["images"]
    stack = [read_png(folder / image["file"])[None] for image in said]
    small = [shrunk(image, side or image.shape[1]) for image in stack]
    return Labelled(np.concatenate(small), tuple(str(image["condition"]) for image in said)), [i["file"] for i in said]


def read_png(path: Path) -> UInt8[np.ndarray, "side side"]:
    """Read one drawn image as grey values [0, 255]."""
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.shape[0] != pixels.shape[1]:
        raise ConfigMismatch(f"{path} is no square image. Take it out of samples.json, or write it again.")
    return pixels
