"""Take dust away from labels, in 3D and then slice by slice.

Each step says what it removed, in mm³ per label. A component goes only when it is below the voxel threshold *and* below
the millimetre threshold, so that neither thick slices nor fine grids make a step harsher. Where the recipe keeps the largest component,
no label of a case goes whole: the largest stays in 3D, and a label that the second step would take from every slice is spared.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from medvar_data.catalog.recipe import Recipe
from medvar_data.harmonize.components import bounding_box, label_components


@dataclass(frozen=True)
class CleanLabels:
    """Labels without dust, and the dust removed per label id, mm³."""

    voxels: UInt8[np.ndarray, "z h w"]
    removed_mm3: dict[int, float] = field(default_factory=dict)


def remove_label_dust(
    labels: UInt8[np.ndarray, "z h w"], spacing_mm: tuple[float, float, float], recipe: Recipe
) -> CleanLabels:
    """Remove small 3D components (26 neighbours) of each label; the largest of a label stays whatever its size."""
    return _dust(
        labels,
        float(np.prod(spacing_mm)),
        recipe.label_min_voxels,
        recipe.label_min_mm3,
        keep_largest=recipe.label_keep_largest,
    )


def remove_slice_dust(
    mask: UInt8[np.ndarray, "h w"],
    spacing_mm: tuple[float, float, float],
    recipe: Recipe,
    spared: Collection[int] = (),
) -> CleanLabels:
    """Remove small 2D components (8 neighbours) of each label but the spared in one slice; returns mm³ of that slice."""
    area_mm2 = spacing_mm[0] * spacing_mm[1]
    clean = _dust(mask[None], area_mm2, recipe.label_slice_min_pixels, recipe.label_slice_min_mm2, spared=spared)
    removed = {label: mm2 * spacing_mm[2] for label, mm2 in clean.removed_mm3.items()}
    return CleanLabels(clean.voxels, removed)


def labels_to_spare(
    labels: UInt8[np.ndarray, "z h w"], present: Iterable[int], spacing_mm: tuple[float, float, float], recipe: Recipe
) -> frozenset[int]:
    """Labels that `remove_slice_dust` would take from every slice; none where the recipe keeps no largest component.

    Args:
        labels: after `remove_label_dust`.
        present: ids that they hold.
        spacing_mm: row, column, slice.
        recipe: its thresholds.
    """
    left = {label for label in present if label} if recipe.label_keep_largest else set()
    for z in _spread(len(labels)):  # most labels are met within the first few slices
        if not left:
            break
        left -= set(np.unique(remove_slice_dust(labels[z], spacing_mm, recipe).voxels).tolist())
    return frozenset(left)


def _spread(n: int, step: int = 8) -> Iterable[int]:
    """All of 0 to n - 1, every eighth first."""
    return (z for first in range(step) for z in range(first, n, step))


def _dust(
    labels: UInt8[np.ndarray, "z h w"],
    voxel_size: float,
    min_count: int,
    min_size: float,
    *,
    keep_largest: bool = False,
    spared: Collection[int] = (),
) -> CleanLabels:
    """Remove the components below both thresholds; sizes in mm³, or mm² where `labels` is one slice."""
    box = bounding_box(labels)
    if box is None:
        return CleanLabels(labels)
    crop = np.ascontiguousarray(labels[box])
    parts = label_components(crop, 26)
    n_voxels = parts.n_voxels
    small = (n_voxels < min_count) & (n_voxels * voxel_size < min_size)
    small[0] = False
    value = crop.reshape(-1)[parts.one_voxel()]
    if spared:
        small &= ~np.isin(value, list(spared))
    if keep_largest and small.any():
        order = np.lexsort((np.arange(len(n_voxels)), -n_voxels))
        _, first = np.unique(value[order], return_index=True)
        small[order[first]] = False
    if not small.any():
        return CleanLabels(labels)
    crop = crop.copy() if np.shares_memory(crop, labels) else crop
    crop.reshape(-1)[parts.voxels_of(small)] = 0
    cleaned = np.zeros_like(labels)
    cleaned[box] = crop
    lost = np.bincount(value[small], weights=n_voxels[small] * voxel_size, minlength=256)
    return CleanLabels(cleaned, {int(v): float(lost[v]) for v in np.flatnonzero(lost)})
