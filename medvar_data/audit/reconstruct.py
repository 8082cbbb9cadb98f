"""Rebuild a case on its source grid from the slices of a shard set, and measure what was lost on the way.

In: a shard set and a case. Out: image and mask with the source's shape and affine, as NIfTI. With the workspace at hand, the
source is read again and each loss measured by itself: the window, the 8 bits, the resampling.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from jaxtyping import Bool, Float32, Shaped, UInt8

from medvar_data.audit.source import recipe_of, scanner_frame, source_case, source_grid
from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import ShardSetError, WorkspaceError
from medvar_data.geometry import (
    SlicePlan,
    as_stored,
    canonical,
    pad_to_square,
    plan_along,
    resample_image,
    resample_mask,
    slices_first,
    square_margins,
)
from medvar_data.harmonize.body import BodyParams, apply_body, find_body
from medvar_data.harmonize.dependencies import recipe_for
from medvar_data.harmonize.harmonize import PLANES, label_table
from medvar_data.harmonize.intensity import IntensityParams, invert_intensity
from medvar_data.readers.read import read_scan
from medvar_data.records import Geometry
from medvar_data.shardset.dataset import codec_of, read_pair, read_table
from medvar_data.sources.archives import DEFAULT_ACCESS, AccessSpec, open_access
from medvar_data.storage.store import Store, atomic_path
from medvar_data.workspace.workspace import Workspace


@dataclass(frozen=True)
class Reconstruction:
    """A case back on its source grid.

    Attributes:
        image: [i, j, k] in HU or the scanner's unit, within the 8-bit scale's bounds; `low` where no slice was kept.
        mask: [i, j, k], contiguous label ids; 0 where no slice was kept.
        geometry: the source's shape and affine.
        kept: [i, j, k] true on the slices that the set holds.
    """

    collection: str
    case: str
    image: Float32[np.ndarray, "i j k"] = field(repr=False)
    mask: UInt8[np.ndarray, "i j k"] = field(repr=False)
    geometry: Geometry
    kept: Bool[np.ndarray, "i j k"] = field(repr=False)


@dataclass(frozen=True)
class Losses:
    """What a reconstruction lost against its source: mean absolute differences inside the body on kept slices.

    In HU or the scanner's unit. The four steps add up, voxel by voxel, to the whole difference, so `image_error` is at most the
    sum of theirs.

    Attributes:
        window: of clipping to the bounds of the 8-bit scale.
        resampling: of bringing slices to squares and back, the squares clipped.
        cleanup: of what was taken off around the body and bleeds into it while resampling.
        quantization: of rounding the squares to 256 levels (a CT's first to whole HU).
        image_error: of the reconstruction.
        dice: per label id, the reconstruction's mask against the source label (2 |A and B| / (|A| + |B|)), all slices.
    """

    window: float
    resampling: float
    cleanup: float
    quantization: float
    image_error: float
    dice: dict[int, float]


def reconstruct(store: Store, name: str, workspace: Workspace | None = None) -> Reconstruction:
    """Rebuild one case.

    Args:
        store: the shard set.
        name: collection and case as in the slices' keys, such as `acdc-patient001-frame01`.
        workspace: that the set was made from; it alone knows where in the scanner a case of a collection that is not public lay.

    Raises:
        ShardSetError: the set holds no such case, or not all of its slices.
        WorkspaceError: the workspace does not hold the case.
    """
    case = _case_row(store, name)
    same_case = {"collection": case["collection"], "case": case["case"]}
    rows = read_table(store, "slices.parquet", equal=same_case).to_pylist()
    if len(rows) != case["n_kept"]:
        raise ShardSetError(
            f"The set holds {len(rows)} of the case's {case['n_kept']} slices; `medvar-data verify` tells more."
        )
    geometry, plan = source_grid(case if workspace is None else {**case, **scanner_frame(workspace, case)})
    recipe = recipe_of(store)
    params = IntensityParams(case["normalizer"], case["low"], case["high"])
    shape = slices_first(canonical(np.empty(geometry.shape, dtype=np.bool_), plan), plan.axis).shape
    image = np.full(shape, params.low, dtype=np.float32)
    mask = np.zeros(shape, dtype=np.uint8)
    kept = np.zeros(shape, dtype=bool)
    codec = codec_of(store)
    for row in rows:
        picture, labels = read_pair(store, row, codec)
        image[row["z"]] = _from_square(invert_intensity(picture, params), shape[1:], plan, recipe, resample_image)
        mask[row["z"]] = _from_square(labels, shape[1:], plan, recipe, resample_mask)
        kept[row["z"]] = True
    voxels, labels, there = (np.ascontiguousarray(as_stored(stack, plan)) for stack in (image, mask, kept))
    return Reconstruction(case["collection"], case["case"], voxels, labels, geometry, there)


def write_reconstruction(rebuilt: Reconstruction, path: Path) -> tuple[Path, Path]:
    """Write image and mask as NIfTI: `out.nii.gz` and `out.mask.nii.gz`.

    Raises:
        WorkspaceError: the name does not end in .nii or .nii.gz.
    """
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.endswith(s)), "")
    if not suffix:
        raise WorkspaceError(f"{path.name} is no NIfTI name; wanted one that ends in .nii.gz or .nii.")
    beside = path.with_name(f"{path.name.removesuffix(suffix)}.mask{suffix}")
    for target, voxels in ((path, rebuilt.image), (beside, rebuilt.mask)):
        volume = nib.Nifti1Image(voxels, rebuilt.geometry.affine)
        with atomic_path(target) as partial:
            data = volume.to_bytes()
            partial.write_bytes(igzip.compress(data, 1, mtime=0) if suffix == ".nii.gz" else data)
    return path, beside


def measure_losses(
    store: Store, rebuilt: Reconstruction, workspace: Workspace, archives: AccessSpec = DEFAULT_ACCESS
) -> Losses:
    """Read the source again and measure what each step cost.

    Args:
        store: the shard set.
        rebuilt: a case of it.
        workspace: that the set was made from.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        WorkspaceError: the workspace does not hold the case.
        CaseRejected: the source can no longer be read.
    """
    case = source_case(workspace, {"collection": rebuilt.collection, "case": rebuilt.case})
    spec = workspace.spec(case.collection)
    recipe = recipe_for(case, recipe_of(store))
    row = _case_row(store, f"{case.collection}-{case.case}")
    with open_access(archives):
        scan = read_scan(case, spec)
    plan = plan_along(scan.image.geometry, PLANES.index(row["plane"]))
    source = np.ascontiguousarray(slices_first(canonical(scan.image.voxels, plan), plan.axis))
    made = slices_first(canonical(rebuilt.image, plan), plan.axis)
    kept = np.flatnonzero(slices_first(canonical(rebuilt.kept, plan), plan.axis).any(axis=(1, 2)))
    body_params = BodyParams(row["body_threshold"], row["body_fill"])
    body = find_body(source, body_params, plan.spacing_mm, case.modality, recipe)
    params = IntensityParams(row["normalizer"], row["low"], row["high"])
    labels = np.zeros(source.shape, dtype=np.uint8)
    if scan.label is not None:
        labels = slices_first(canonical(label_table(spec, case.layout)[scan.label.voxels], plan), plan.axis)
    sums, n = np.zeros(5), 0
    for z in kept:
        inside = body.mask[z]
        clean = apply_body(source[z], body.hull[z], labels[z], body_params)
        losses = _losses(source[z], clean, made[z], params, plan, recipe)
        sums += [float(np.abs(loss[inside]).sum(dtype=np.float64)) for loss in losses]
        n += int(np.count_nonzero(inside))
    window, resampling, cleanup, quantization, error = (float(v) for v in sums / max(n, 1))
    dice = {}
    if scan.label is not None:
        published = label_table(spec, case.layout)[scan.label.voxels]
        dice = {int(v): _dice(published == v, rebuilt.mask == v) for v in np.unique(published) if v}
    return Losses(window, resampling, cleanup, quantization, error, dice)


def _losses(
    source: Shaped[np.ndarray, "h w"],
    clean: Shaped[np.ndarray, "h w"],
    made: Float32[np.ndarray, "h w"],
    params: IntensityParams,
    plan: SlicePlan,
    recipe: Recipe,
) -> list[Float32[np.ndarray, "h w"]]:
    """Difference images of one slice: window, resampling, cleanup, quantization, and the whole, which is their sum."""

    def clipped(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        return np.clip(values, np.float32(params.low), np.float32(params.high))

    def there_and_back(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        padded = pad_to_square(values, plan.spacing_mm[:2], params.low) if recipe.aspect == "pad" else values
        square = clipped(resample_image(padded, recipe.side, recipe.side))
        return _from_square(square, (values.shape[0], values.shape[1]), plan, recipe, resample_image)

    values = source.astype(np.float32)
    windowed, resampled, cleaned = clipped(values), there_and_back(values), there_and_back(clean.astype(np.float32))
    return [values - windowed, windowed - resampled, resampled - cleaned, cleaned - made, values - made]


def _from_square(
    square: Shaped[np.ndarray, "s s"],
    shape: tuple[int, int],
    plan: SlicePlan,
    recipe: Recipe,
    resample: Callable[[Shaped[np.ndarray, "s s"], int, int], Shaped[np.ndarray, "r c"]],
) -> Shaped[np.ndarray, "h w"]:
    """Bring a square back to its source's rows and columns; what was padded is cut off again."""
    margins = square_margins(shape, plan.spacing_mm[:2]) if recipe.aspect == "pad" else (0, 0, 0, 0)
    top, bottom, left, right = margins
    height, width = shape
    return resample(square, top + height + bottom, left + width + right)[top : top + height, left : left + width]


def _dice(a: Bool[np.ndarray, "i j k"], b: Bool[np.ndarray, "i j k"]) -> float:
    return 2.0 * int(np.count_nonzero(a & b)) / (int(np.count_nonzero(a)) + int(np.count_nonzero(b)))


def _case_row(store: Store, name: str) -> dict[str, Any]:
    rows = read_table(store, "cases.parquet").to_pylist()
    found = next((row for row in rows if f"{row['collection']}-{row['case']}" == name), None)
    if found is None:
        raise ShardSetError(
            f"No case has the name {name!r}; names look like acdc-patient001-frame01, a key without its -z0004."
        )
    return dict(found)
