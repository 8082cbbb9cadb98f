"""Harmonize one scan: canonical orientation, cleanup, slices with foreground, resize, 8 bit. MedVAR section 3.2.

In: a `Scan`, its collection and a recipe. Out: a `HarmonizedCase` with every parameter that made its pixels, and the
slices. A pure function: the same scan and recipe give the same bytes wherever it runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from medvar_data.catalog import CollectionSpec, Recipe, labels_of
from medvar_data.cleanup import (
    Body,
    BodyParams,
    apply_body,
    find_body,
    fit_body,
    remove_label_dust,
    remove_slice_dust,
    removed_mm3,
)
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import SlicePlan, canonical, plan_slices, resize_image, resize_mask, slices_first
from medvar_data.intensity import NORMALIZERS, IntensityParams, apply_intensity
from medvar_data.readers import Scan
from medvar_data.records import Case, HarmonizedSlice

PIPELINE_VERSION = 1  # of the pixels: raised whenever the same scan and recipe give other pixels
PLANES = ("sagittal", "coronal", "axial")
MAX_VALUES_SHOWN = 5


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


@dataclass(frozen=True)
class HarmonizedVolume:
    """A kept case and its slices, in rising order of z."""

    case: HarmonizedCase
    slices: tuple[HarmonizedSlice, ...] = field(repr=False)


def harmonize(scan: Scan, case: Case, spec: CollectionSpec, recipe: Recipe) -> HarmonizedVolume:
    """Harmonize one scan.

    Raises:
        CaseRejected: `label_values`, `constant_image`, or `no_foreground` where the cleanup leaves nothing to keep.
    """
    plan = plan_slices(scan.image.geometry, spec.slice_axis)
    stack = np.ascontiguousarray(slices_first(canonical(scan.image.voxels, plan), plan.axis))
    labels = _labels(scan, plan, spec, case.layout)
    body_params = fit_body(stack, case.modality, recipe)
    body = find_body(stack, body_params, plan.spacing_mm, case.modality, recipe)
    clean = remove_label_dust(labels, plan.spacing_mm, recipe)
    keep = _slices_to_keep(clean.voxels, body.mask, scan.label is not None, recipe)
    normalizer = recipe.ct_normalizer if case.modality == "CT" else recipe.mr_normalizer
    params = NORMALIZERS[normalizer](_without_spurious(stack, body, body_params, clean.voxels), recipe)
    removed = dict(clean.removed_mm3)
    slices, n_emptied = [], 0
    for z, image, mask, slice_body in _cut(stack, clean.voxels, body, body_params, keep):
        tidy = remove_slice_dust(mask, plan.spacing_mm, recipe)
        for label, mm3 in tidy.removed_mm3.items():
            removed[label] = removed.get(label, 0.0) + mm3
        finished = _finish(z, image, tidy.voxels[0], slice_body, plan, params, recipe)
        if scan.label is not None and not finished.foreground_pixels:  # dust, or too thin to survive the resize
            n_emptied += 1
            continue
        slices.append(finished)
    if not slices:
        raise CaseRejected(Reason.NO_FOREGROUND, "no slice holds foreground above the recipe's thresholds")
    voxel_mm3 = float(np.prod(plan.spacing_mm))
    counts = np.bincount(labels.reshape(-1), minlength=256)
    seen = {label for s in slices for label in s.label_pixels}
    present = [int(v) for v in np.flatnonzero(counts) if v > 0]
    return HarmonizedVolume(
        HarmonizedCase(
            image_digest=scan.image.digest,
            label_digest=scan.label.digest if scan.label else "",
            steps=(*scan.image.steps, *(scan.label.steps if scan.label else ())),
            shape=scan.image.geometry.shape,
            affine=tuple(float(v) for v in scan.image.geometry.affine.reshape(-1)),
            orientation=plan.orientation,
            plane=PLANES[plan.axis],
            spacing_row_mm=plan.spacing_mm[0],
            spacing_col_mm=plan.spacing_mm[1],
            through_plane_mm=plan.spacing_mm[2],
            normalizer=params.normalizer,
            low=params.low,
            high=params.high,
            body_threshold=body_params.threshold,
            body_fill=body_params.fill,
            n_slices=plan.n_slices,
            n_kept=len(slices),
            n_without_foreground=plan.n_slices - len(keep),
            n_emptied_by_cleanup=n_emptied,
            removed_body_mm3=removed_mm3(stack, body, clean.voxels, body_params, plan.spacing_mm),
            removed_label_mm3=removed,
            label_mm3={v: float(counts[v]) * voxel_mm3 for v in present},
            vanished_labels=tuple(v for v in present if v not in seen),
            statistics=_statistics(stack),
        ),
        tuple(slices),
    )


def _labels(scan: Scan, plan: SlicePlan, spec: CollectionSpec, layout: str) -> UInt8[np.ndarray, "z h w"]:
    """Bring the label onto the slice stack with contiguous ids; zeros where there is no label."""
    if scan.label is None:
        axis_order = [a for a in range(3) if a != plan.axis]
        shape = [scan.image.geometry.shape[plan.stored_axes[a]] for a in (plan.axis, axis_order[1], axis_order[0])]
        return np.zeros(shape, dtype=np.uint8)
    stored = scan.label.voxels
    table = label_table(spec, layout)
    unknown = [int(v) for v in np.flatnonzero(np.bincount(stored.reshape(-1))) if v and not table[v]]
    if unknown:
        shown = ", ".join(map(str, unknown[:MAX_VALUES_SHOWN])) + (" …" if len(unknown) > MAX_VALUES_SHOWN else "")
        raise CaseRejected(
            Reason.LABEL_VALUES, f"the label holds the values {shown}, which the collection does not define"
        )
    return np.ascontiguousarray(slices_first(canonical(table[stored], plan), plan.axis))


def label_table(spec: CollectionSpec, layout: str) -> UInt8[np.ndarray, "65536"]:
    """Look-up table from a layout's label value to contiguous id; 0 where the collection defines nothing."""
    table = np.zeros(65536, dtype=np.uint8)
    for label in labels_of(spec, layout):
        table[label.low : label.high + 1] = label.id
    return table


def _slices_to_keep(
    labels: UInt8[np.ndarray, "z h w"], body: Bool[np.ndarray, "z h w"], has_label: bool, recipe: Recipe
) -> list[int]:
    """Slices with annotation; for a case without labels, those that the body fills enough."""
    if has_label:
        return [int(z) for z in np.flatnonzero(labels.any(axis=(1, 2)))]
    return [int(z) for z in np.flatnonzero(body.mean(axis=(1, 2)) >= recipe.unlabelled_min_body_fraction)]


def _without_spurious(
    stack: Shaped[np.ndarray, "z h w"], body: Body, params: BodyParams, labels: UInt8[np.ndarray, "z h w"]
) -> Shaped[np.ndarray, "z h w"]:
    if not body.removed_mm3:
        return stack
    return np.stack([apply_body(*layers, params) for layers in zip(stack, body.hull, labels, strict=True)])


def _cut(
    stack: Shaped[np.ndarray, "z h w"],
    labels: UInt8[np.ndarray, "z h w"],
    body: Body,
    params: BodyParams,
    keep: list[int],
) -> Iterator[tuple[int, Shaped[np.ndarray, "h w"], UInt8[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]]:
    """Yield (z, image without spurious foreground, mask, body) of the slices to keep.

    The stack runs in canonical order along the slice axis reversed in no way: row and column are turned to the
    radiological habit, z stays the canonical index.
    """
    for z in keep:
        yield z, apply_body(stack[z], body.hull[z], labels[z], params), labels[z], body.mask[z]


def _finish(
    z: int,
    image: Shaped[np.ndarray, "h w"],
    mask: UInt8[np.ndarray, "h w"],
    body: Bool[np.ndarray, "h w"],
    plan: SlicePlan,
    params: IntensityParams,
    recipe: Recipe,
) -> HarmonizedSlice:
    square = resize_mask(mask, recipe.side)
    counts = np.bincount(square.reshape(-1))
    pixels = {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v > 0}
    return HarmonizedSlice(
        z=z,
        source_index=plan.source_index(z),
        image=apply_intensity(resize_image(_resizable(image, params), recipe.side), params),
        mask=square,
        body_pixels=int(np.count_nonzero(resize_mask(body, recipe.side))),
        foreground_pixels=sum(pixels.values()),
        label_pixels=pixels,
    )


def _resizable(image: Shaped[np.ndarray, "h w"], params: IntensityParams) -> Shaped[np.ndarray, "h w"]:
    """Resample whole HU as int16, where rounding costs a third of a grey level at most; anything else as float32."""
    exact_enough = image.dtype == np.int16 and params.normalizer == "window"
    return image if exact_enough else image.astype(np.float32)


def _statistics(stack: Shaped[np.ndarray, "z h w"]) -> CaseStatistics:
    low, middle, high = np.percentile(stack, [0.5, 50, 99.5])
    mean, std = stack.mean(dtype=np.float64), stack.std(dtype=np.float64)
    values = (stack.min(), stack.max(), mean, std, low, middle, high)
    return CaseStatistics(*(float(v) for v in values))
