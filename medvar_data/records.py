"""The nouns of the data side: what is found, what is read, what is written.

Frozen values only. Where each lives on disk is written in docs/formats.md.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Shaped, UInt8, UInt16

from medvar_data.errors import Reason

LICENSE_TERMS = ("commercial", "derivatives", "share_alike", "redistribute")
"""What a licence allows or asks for: fields of a collection's description, each yes, no or unknown."""


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


@dataclass(frozen=True)
class LayoutCount:
    """Cases of one layout beside what the publisher counts (0: unknown)."""

    layout: str
    found: int
    expected: int
    unlabelled: int  # found without the label that the layout promises


@dataclass(frozen=True)
class Ingested:
    """Everything that one collection's ingest found out."""

    collection: str
    cases: tuple[Case, ...]
    rejects: tuple[Reject, ...]
    counts: tuple[LayoutCount, ...]
    notes: tuple[str, ...]

    @property
    def n_found(self) -> int:
        """Cases and rejects together."""
        return len(self.cases) + len(self.rejects)


@dataclass(frozen=True)
class CaseStatistics:
    """Voxel values of the whole image, in HU or the scanner's unit."""

    minimum: float
    maximum: float
    mean: float
    std: float
    p0_5: float
    p50: float
    p99_5: float


@dataclass(frozen=True)
class CaseMeasures:
    """What the statistics are made of: sizes, areas and histograms of one case; columns of the same names say more.

    Attributes:
        source_rows, source_columns: pixels of the source's pictures.
        body_fraction, foreground_fraction: shares of the finished slices' pixels.
        body_mm2_median, foreground_mm2_median: over the finished slices.
        clipped_low, clipped_high: shares of the source's voxels below `low` and above `high`.
        histogram_source, histogram_source_foreground: voxels by the bins of `shardset.histograms`; inside the published label.
        histogram_slices, histogram_slices_foreground: pixels of the finished slices by grey level; inside their masks.
    """

    source_rows: int
    source_columns: int
    body_fraction: float
    foreground_fraction: float
    body_mm2_median: float
    foreground_mm2_median: float
    clipped_low: float
    clipped_high: float
    histogram_source: tuple[int, ...]
    histogram_source_foreground: tuple[int, ...]
    histogram_slices: tuple[int, ...]
    histogram_slices_foreground: tuple[int, ...]


@dataclass(frozen=True)
class HarmonizedCase:
    """All that was decided and measured on one kept case; mm³ are of the source grid, pixels of the finished slices."""

    image_digest: str
    label_digest: str
    steps: tuple[str, ...]
    shape: tuple[int, int, int]
    affine: tuple[float, ...]  # stored voxel index to RAS+ mm, 16 numbers in row order
    orientation: str
    plane: str
    spacing_row_mm: float
    spacing_col_mm: float
    through_plane_mm: float
    normalizer: str
    low: float
    high: float
    body_threshold: float
    body_fill: float
    n_slices: int
    n_kept: int
    n_without_foreground: int
    n_emptied_by_cleanup: int
    removed_body_mm3: float
    removed_label_mm3: dict[int, float]
    label_mm3: dict[int, float]
    vanished_labels: tuple[int, ...]
    statistics: CaseStatistics
    measures: CaseMeasures | None = None  # None in case files of earlier versions, which are made again
    burned_in_text: str = "unknown"  # none found, suspected

    def removed_label_share(self) -> dict[int, float]:
        """Share of each label's volume that the thresholds for small components took, 0 to 1."""
        return {v: min(1.0, mm3 / self.label_mm3[v]) for v, mm3 in self.removed_label_mm3.items()}


@dataclass(frozen=True)
class HarmonizedVolume:
    """A kept case and its slices, in rising order of z."""

    case: HarmonizedCase
    slices: tuple[HarmonizedSlice, ...] = field(repr=False)
    thumbnail: UInt8[np.ndarray, "a b c"] | None = field(default=None, repr=False)  # of the whole scan


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Digests of all that a case's result depends on, apart, so that a change can be named."""

    source: str
    collection: str
    recipe: str
    code: str
