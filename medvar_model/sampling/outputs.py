"""Write drawn images in forms that others read: DICOM that says it is synthetic, and a shard set that the stream trains on.

In: images with names and conditions, and what drew them. Out: `<name>.dcm` beside the PNGs, `shards/`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from medvar_data.shardset.derived import DerivedSet, DerivedWriter, case_row, drawn_row
from medvar_data.storage.synthetic_dicom import Origin, synthetic_dicom

SHARDS = "shards"


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images of one condition, in the order of their numbers.

    Attributes:
        condition: its name; `none` for no condition.
        condition_id: the model's row of it.
        images: uint8, n x side x side.
    """

    condition: str
    condition_id: int
    images: UInt8[np.ndarray, "n side side"]


def write_dicom(folder: Path, drawn: Sequence[Drawn], model: str, settings: Mapping[str, object]) -> list[str]:
    """Write each image as `<condition>-<number>.dcm`; returns the files' names.

    Args:
        folder: where to.
        drawn: what was drawn.
        model: digest of the transformer's checkpoint.
        settings: how it was sampled.
    """
    names = []
    for part in drawn:
        key = json.dumps([model, dict(settings), part.condition], sort_keys=True)
        series = hashlib.sha256(key.encode()).hexdigest()
        modality = part.condition.rpartition("-")[2].upper()
        for number, image in enumerate(part.images):
            names.append(f"{part.condition}-{number:04d}.dcm")
            origin = Origin(modality, series, number + 1, f"synthetic {part.condition}", f"checkpoint {model[:16]}")
            (folder / names[-1]).write_bytes(synthetic_dicom(image, origin))
    return names


def write_shards(folder: Path, drawn: Sequence[Drawn], versions: Mapping[str, object]) -> str:
    """Write the images as a shard set of their own, all in the split train; returns its digest.

    Args:
        folder: a new or empty one.
        drawn: what was drawn.
        versions: what drew them, for dataset.json.
    """
    side = drawn[0].images.shape[-1]
    conditions = {part.condition: part.condition_id for part in drawn}
    writer = DerivedWriter(folder, DerivedSet(side, conditions, versions))
    rows = []
    for part in drawn:
        for number, image in enumerate(part.images):
            rows.append(drawn_row(part.condition, part.condition_id, number, side))
            writer.add(rows[-1], image)
    return writer.finish([case_row(row) for row in rows])
