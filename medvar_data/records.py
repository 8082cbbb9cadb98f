"""The nouns of the data side: what is found, what is read, what is written.

Frozen values only. Where each lives on disk is written in docs/formats.md.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Shaped, UInt8, UInt16

from medvar_data.errors import Reason


@dataclass(frozen=True)
class SourceFile:
    """One file, found but not opened: `path` is POSIX and relative to the root; `a.zip!/b` is a member of an archive."""

    path: str
    n_bytes: int


@dataclass(frozen=True)
class Case:
    """One scan (an image and, where there is one, its label), found but not opened. A row of `W/ingest/*.parquet`."""

    collection: str
    case: str  # key, [a-z0-9-]+, unique in the collection
    group: str  # the patient, unsalted; stays inside the workspace
    modality: str  # "CT" or "MR"
    region: str
    sequence: str
    official_split: str  # as published: train, validation, test, ""
    condition: str  # name in the condition vocabulary
    layout: str  # the layout of the collection that found it
    reader: str  # key of READERS
    root: str  # folder or archive that the user named
    image: tuple[str, ...]  # paths below root, in stacking order
    label: tuple[str, ...]  # empty where there is no annotation
    channel: int  # index into the fourth dimension; -1 where there is none
    n_bytes: int  # of all files together, as stored
    modified_ns: int  # newest modification time of the files, for the resume check alone
    n_voxels: int = 0  # of the image, one channel; 0 where no header tells
    inflated_bytes: int = 0  # image and label uncompressed, all channels; what reading them takes of memory


@dataclass(frozen=True)
class Reject:
    """A case left out, with its reason. A row of `rejects.parquet`.

    `files` (below the root, where known) stay in the workspace: they can name a person.
    """

    collection: str
    case: str
    stage: str  # ingest, harmonize or shard
    reason: Reason
    detail: str
    files: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie: the affine maps index (i, j, k) to millimetres, RAS+ (x to the Right, y Anterior, z Superior)."""

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Volume:
    """Voxels of one scan in physical units with their geometry.

    Attributes:
        voxels: [i, j, k] int16, uint16, int32 or float32; HU for CT, arbitrary units for MR.
        geometry: shape and affine; the stored axis order, nothing permuted.
        digest: sha256 of the file's bytes as stored (of the sorted member digests for a stack).
        steps: what the reader had to decide or repair, one word each (`scaled`, `spacing_from_pixdim`).
    """

    voxels: Shaped[np.ndarray, "i j k"]
    geometry: Geometry
    digest: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelVolume:
    """Label voxels [i, j, k] on their image's grid, with the values as published; uint8 where they fit, else uint16."""

    voxels: UInt8[np.ndarray, "i j k"] | UInt16[np.ndarray, "i j k"]
    geometry: Geometry
    digest: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class HarmonizedSlice:
    """One square slice, still as pixels.

    Attributes:
        z: index along the slice axis of the canonical (RAS) volume.
        source_index: the same slice's index along that axis as stored.
        image: [row, column] uint8.
        mask: [row, column] uint8, contiguous label ids, 0 background.
    """

    z: int
    source_index: int
    image: UInt8[np.ndarray, "s s"]
    mask: UInt8[np.ndarray, "s s"]
    body_pixels: int
    foreground_pixels: int
    label_pixels: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """One finished unit of work, for progress bars."""

    done: int
    total: int
    name: str
    status: str  # kept, rejected, skipped
