"""Take out of a case's values whatever could link a shard set alone to a file that is not public.

In: values of cases.parquet or collections.parquet as measured. Out: the same values as a set may hold them. Digests become keyed
ones, equal where the digests are equal; the affine loses the scanner's frame; numbers that headers hold too lose their
digits. docs/security.md says what this keeps from whom. A new column that repeats what a header says gets its line here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

DIGESTS = ("source_sha256", "label_sha256", "collection_sha256")
STEPS_MM = ("spacing_row_mm", "spacing_col_mm", "through_plane_mm")
EXTREMES = ("minimum", "maximum")  # DICOM headers can hold them: SmallestImagePixelValue, LargestImagePixelValue
VOLUMES_MM3 = (
    "removed_body_mm3",
    "removed_label_mm3",
    "label_mm3",
)  # multiples of a voxel's volume, which tells its steps
AREAS_MM2 = ("body_mm2_median", "foreground_mm2_median")  # multiples of a pixel's area, which tells its steps
STEP_DECIMALS = 5  # what is behind them is the rounding error of direction cosines, which tells these apart
EXTREME_DIGITS = 2


def unlinkable(row: Mapping[str, Any], keyed: Callable[[str], str]) -> dict[str, Any]:
    """The values of a case that is not public, as a shard set may hold them.

    Args:
        row: values of cases.parquet or collections.parquet by column; columns that it lacks are left out.
        keyed: gives the keyed digest of a digest.
    """
    changed: dict[str, Any] = {name: keyed(row[name]) for name in DIGESTS if row.get(name)}
    changed |= {name: round(row[name], STEP_DECIMALS) for name in STEPS_MM if name in row}
    changed |= {name: rounded(row[name]) for name in EXTREMES if name in row}
    if "source_affine" in row:
        changed["source_affine"] = own_frame(row["source_affine"], row["source_shape"])
        ratios = {name: changed[name] / row[name] for name in STEPS_MM}
        changed |= {name: _scaled(row[name], math.prod(ratios.values())) for name in VOLUMES_MM3}
        area = ratios["spacing_row_mm"] * ratios["spacing_col_mm"]
        changed |= {name: _scaled(row[name], area) for name in AREAS_MM2 if name in row}
    return {**row, **changed}


def _scaled(volumes: Any, scale: float) -> Any:
    """A volume, or the volumes of labels as pairs, times a factor."""
    if isinstance(volumes, list):
        return [(label, volume * scale) for label, volume in volumes]
    return volumes * scale


def own_frame(affine: Sequence[float], shape: Sequence[int]) -> list[float]:
    """Put a volume into a frame of its own: axes along R, A and S as near as they were, centre at the origin.

    Orientation and step along each axis stay (to 0.01 micrometres), so slices are cut as before; position and
    obliquity, which an examination shares with its headers, do not.

    Args:
        affine: stored voxel index to RAS+ mm, 16 numbers in row order.
        shape: voxels along the stored axes.

    >>> own_frame([0.0, 2.0, 0.1, 40.0, -1.0, 0.1, 0.0, 7.0, 0.0, 0.1, 3.0, -9.0, 0.0, 0.0, 0.0, 1.0], [5, 3, 3])[:4]
    [0.0, 2.005, 0.0, -2.005]
    """
    stored = np.asarray(affine, dtype=np.float64).reshape(4, 4)
    steps = np.round(np.linalg.norm(stored[:3, :3], axis=0), STEP_DECIMALS)
    plain = np.eye(4)
    plain[:3, :3] = 0
    for axis, (canonical_axis, direction) in enumerate(nib.orientations.io_orientation(stored)):
        plain[int(canonical_axis), axis] = direction * steps[axis]
    plain[:3, 3] = -plain[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return [float(value) + 0.0 for value in plain.reshape(-1)]  # no -0.0


def rounded(value: float) -> float:
    """A number to its first two digits.

    >>> rounded(1273.0), rounded(-1024.0), rounded(0.0)
    (1300.0, -1000.0, 0.0)
    """
    if not value or not math.isfinite(value):
        return value
    return float(f"{value:.{EXTREME_DIGITS - 1}e}")
