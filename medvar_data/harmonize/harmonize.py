"""Harmonize one scan: canonical orientation, cleanup, slices with foreground, resize, 8 bit. MedVAR section 3.2.

In: a `Scan`, its collection and a recipe. Out: a `HarmonizedCase` with every parameter that made its pixels, and the
slices. A pure function: the same scan and recipe give the same bytes wherever it runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from medvar_data.catalog.collection import CollectionSpec, LabelSpec, labels_of
from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import (
    SlicePlan,
    finished_pixel_mm2,
    pad_to_square,
    picture_stack,
    plan_slices,
    resize_image,
    resize_mask,
)
from medvar_data.harmonize.body import Body, BodyParams, apply_body, find_body, fit_body, removed_mm3, spurious
from medvar_data.harmonize.burned_in import find_burned_in_text
from medvar_data.harmonize.components import bounding_box
from medvar_data.harmonize.dependencies import recipe_for, slice_axis
from medvar_data.harmonize.histogram import Histogram, count, count_picture, is_countable, moments, percentiles
from medvar_data.harmonize.intensity import FIXED_BOUNDS, NORMALIZERS, IntensityParams, Values, apply_intensity
from medvar_data.harmonize.label_dust import CleanLabels, labels_to_spare, remove_label_dust, remove_slice_dust
from medvar_data.harmonize.measure import bin_counts, clipped_shares, slice_histograms, values_inside
from medvar_data.harmonize.signature import make_thumbnail
from medvar_data.readers.scan import Scan
from medvar_data.records import Case, CaseMeasures, CaseStatistics, HarmonizedCase, HarmonizedSlice, HarmonizedVolume
from medvar_data.shardset.histograms import edges_of_case

PLANES = ("sagittal", "coronal", "axial")
SHOWN_PERCENTILES = (0.5, 50.0, 99.5)
MAX_VALUES_SHOWN = 5


@dataclass(frozen=True)
class _Clean:
    """A scan on its slice stack, cleaned in 3D: what slices are cut from."""

    plan: SlicePlan
    stack: Shaped[np.ndarray, "z h w"]
    counts: Histogram | None  # of the stack, where its type can be counted
    annotated: Values  # of the source, inside the published label
    labels: CleanLabels
    label_counts: Int64[np.ndarray, "256"]  # voxels of each id before the cleanup
    spared: frozenset[int]  # labels that would vanish if their small parts were taken slice by slice
    body: Body
    body_params: BodyParams


def harmonize(scan: Scan, case: Case, spec: CollectionSpec, recipe: Recipe) -> HarmonizedVolume:
    """Harmonize one scan.

    Raises:
        CaseRejected: `label_values`, `constant_image`, or `no_foreground` where the cleanup leaves nothing to keep;
            `unlabelled` where the recipe takes labelled cases alone.
    """
    recipe = recipe_for(case, recipe)
    clean = _clean(scan, case, spec, recipe, None)
    params = _fit_intensity(clean, case, recipe)
    keep = _slices_to_keep(clean, scan.label is not None, recipe)
    removed = dict(clean.labels.removed_mm3)
    slices = []
    for z in keep:
        finished, dust_mm3 = _finish(clean, z, params, recipe)
        for label, mm3 in dust_mm3.items():
            removed[label] = removed.get(label, 0.0) + mm3
        if scan.label is None or finished.foreground_pixels:  # else dust, or too thin to survive the resize
            slices.append(finished)
    if not slices:
        raise CaseRejected(Reason.NO_FOREGROUND, _why_nothing_is_left(clean, scan.label is not None, removed, recipe))
    record = _record(scan, clean, params, keep, slices, removed)
    record = replace(record, measures=_measures(clean, params, slices, case.modality, recipe))
    return HarmonizedVolume(record, tuple(slices), make_thumbnail(clean.stack, clean.counts))


def _why_nothing_is_left(clean: _Clean, has_label: bool, removed_mm3: Mapping[int, float], recipe: Recipe) -> str:
    """Name the threshold that no slice passed, and how near the case came."""
    if not has_label:
        fullest = float(clean.body.mask.mean(axis=(1, 2)).max())
        return (
            f"the body fills at most {fullest:.2%} of a slice; wanted {recipe.unlabelled_min_body_fraction:.2%} "
            "(unlabelled_min_body_fraction of the recipe)"
        )
    n_voxels = int(clean.label_counts[1:].sum())
    annotated_mm3 = n_voxels * float(np.prod(clean.plan.spacing_mm))
    return (
        f"of {n_voxels} annotated voxels ({annotated_mm3:.4g} mm³) nothing is left: the recipe's thresholds for small components "
        f"({recipe.label_min_voxels} voxels and {recipe.label_min_mm3:g} mm³, {recipe.label_slice_min_pixels} pixels and "
        f"{recipe.label_slice_min_mm2:g} mm² a slice) took {sum(removed_mm3.values()):.4g} mm³, and what stayed is too thin for "
        f"{recipe.side} x {recipe.side} pixels"
    )


def _record(
    scan: Scan,
    clean: _Clean,
    params: IntensityParams,
    keep: Sequence[int],
    slices: Sequence[HarmonizedSlice],
    removed_label_mm3: dict[int, float],
) -> HarmonizedCase:
    """Record all that was decided and measured on a case."""
    plan, voxel_mm3 = clean.plan, float(np.prod(clean.plan.spacing_mm))
    seen = {label for s in slices for label in s.label_pixels}
    present = [int(v) for v in np.flatnonzero(clean.label_counts) if v > 0]
    return HarmonizedCase(
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
        body_threshold=clean.body_params.threshold,
        body_fill=clean.body_params.fill,
        n_slices=plan.n_slices,
        n_kept=len(slices),
        n_without_foreground=plan.n_slices - len(keep),
        n_emptied_by_cleanup=len(keep) - len(slices),
        removed_body_mm3=removed_mm3(clean.stack, clean.body, clean.labels.voxels, clean.body_params, plan.spacing_mm),
        removed_label_mm3=removed_label_mm3,
        label_mm3={v: float(clean.label_counts[v]) * voxel_mm3 for v in present},
        vanished_labels=tuple(v for v in present if v not in seen),
        statistics=_statistics(clean),
        burned_in_text=find_burned_in_text(scan.image.voxels, plan_slices(scan.image.geometry, "native")),
    )


@dataclass(frozen=True)
class RecordedParams:
    """What was fitted to a case, as its row records it: all that `replay` needs beside the scan and the recipe."""

    body: BodyParams
    intensity: IntensityParams


def recorded_params(row: Mapping[str, Any]) -> RecordedParams:
    """Take the fitted parameters out of a row of cases.parquet, or of the fields of a `HarmonizedCase`."""
    body = BodyParams(row["body_threshold"], row["body_fill"])
    return RecordedParams(body, IntensityParams(row["normalizer"], row["low"], row["high"]))


def replay(
    scan: Scan, case: Case, spec: CollectionSpec, recipe: Recipe, params: RecordedParams, kept: Sequence[int]
) -> tuple[HarmonizedSlice, ...]:
    """Make slices again from what their rows recorded; nothing is fitted to the scan a second time.

    Args:
        scan: as read from the source.
        case: as ingested.
        spec: its collection.
        recipe: that the case was harmonized by.
        params: threshold and fill of the body, bounds of the intensities, as recorded.
        kept: `z` of the slices wanted.

    >>> volume = harmonize(scan, case, spec, recipe)
    >>> again = replay(scan, case, spec, recipe, recorded_params(vars(volume.case)), [s.z for s in volume.slices])
    """
    clean = _clean(scan, case, spec, recipe, params.body)
    return tuple(_finish(clean, z, params.intensity, recipe)[0] for z in kept)


def _clean(scan: Scan, case: Case, spec: CollectionSpec, recipe: Recipe, body_params: BodyParams | None) -> _Clean:
    """Bring a scan onto its slice stack and clean it in 3D, with recorded parameters where there are any."""
    plan = plan_slices(scan.image.geometry, slice_axis(spec, recipe))
    stack = picture_stack(scan.image.voxels, plan)
    labels, label_counts, annotated = _clean_labels(scan, stack, plan, labels_of(spec, case.layout), recipe)
    counts = count(scan.image.voxels) if is_countable(stack.dtype) else None
    body_params = body_params or fit_body(stack, case.modality, recipe)
    body = find_body(stack, body_params, plan.spacing_mm, case.modality, recipe)
    spared = labels_to_spare(labels.voxels, np.flatnonzero(label_counts).tolist(), plan.spacing_mm, recipe)
    return _Clean(plan, stack, counts, annotated, labels, label_counts, spared, body, body_params)


def _clean_labels(
    scan: Scan, stack: Shaped[np.ndarray, "z h w"], plan: SlicePlan, rows: Sequence[LabelSpec], recipe: Recipe
) -> tuple[CleanLabels, Int64[np.ndarray, "256"], Values]:
    """Bring the label onto the slice stack with contiguous ids, without dust; before that, count the ids' voxels and take the image's."""
    labels, counts = np.zeros(stack.shape, dtype=np.uint8), np.zeros(256, dtype=np.int64)
    stored = None if scan.label is None else picture_stack(scan.label.voxels, plan)
    box = None if stored is None else bounding_box(stored)
    if stored is None or box is None:
        return CleanLabels(labels), counts, np.empty(0, dtype=stack.dtype)
    crop = np.ascontiguousarray(stored[box])
    table, published = _table(rows), count(crop)
    values = np.flatnonzero(published.n)
    unknown = [int(v) for v in values if v and not table[v]]
    if unknown:
        shown = ", ".join(map(str, unknown[:MAX_VALUES_SHOWN])) + (" …" if len(unknown) > MAX_VALUES_SHOWN else "")
        raise CaseRejected(
            Reason.LABEL_VALUES, f"the label holds the values {shown}, which the collection does not define"
        )
    np.add.at(counts, table[values], published.n[values])
    same = crop.dtype == np.uint8 and np.array_equal(table[values], values)
    clean = remove_label_dust(crop if same else table.take(crop), plan.spacing_mm, recipe)
    labels[box] = clean.voxels
    return CleanLabels(labels, clean.removed_mm3), counts, values_inside(stack[box], crop)


def label_table(spec: CollectionSpec, layout: str) -> UInt8[np.ndarray, "65536"]:
    """Look-up table from a layout's label value to contiguous id; 0 where the collection defines nothing."""
    return _table(labels_of(spec, layout))


def _table(rows: Sequence[LabelSpec]) -> UInt8[np.ndarray, "65536"]:
    table = np.zeros(65536, dtype=np.uint8)
    for label in rows:
        table[label.low : label.high + 1] = label.id
    return table


def _slices_to_keep(clean: _Clean, has_label: bool, recipe: Recipe) -> list[int]:
    """Slices with annotation; for a case without labels, those that the body fills enough."""
    if has_label:
        return [int(z) for z in np.flatnonzero(clean.labels.voxels.max(axis=(1, 2)))]
    filled = clean.body.mask.mean(axis=(1, 2))
    return [int(z) for z in np.flatnonzero(filled >= recipe.unlabelled_min_body_fraction)]


def _fit_intensity(clean: _Clean, case: Case, recipe: Recipe) -> IntensityParams:
    """Choose the bounds of the 8-bit scale; spurious foreground has no say."""
    normalizer = recipe.ct_normalizer if case.modality == "CT" else recipe.mr_normalizer
    fit, body, counts = NORMALIZERS[normalizer], clean.body, clean.counts
    dirty = [] if normalizer in FIXED_BOUNDS else [int(z) for z in np.flatnonzero(body.n_spurious)]
    if not dirty:
        return fit(counts or clean.stack, recipe)
    if counts:
        lost = [
            clean.stack[z][spurious(clean.stack[z], body.hull[z], clean.labels.voxels[z], clean.body_params)]
            for z in dirty
        ]
        return fit(counts.replaced(np.concatenate(lost), int(clean.body_params.fill)), recipe)
    voxels = clean.stack.copy()
    for z in dirty:
        voxels[z] = _without_spurious(clean, z)
    return fit(voxels, recipe)


def _without_spurious(clean: _Clean, z: int) -> Shaped[np.ndarray, "h w"]:
    """One picture without spurious foreground; row and column in the radiological convention, z the canonical index."""
    if not clean.body.n_spurious[z]:
        return clean.stack[z]
    return apply_body(clean.stack[z], clean.body.hull[z], clean.labels.voxels[z], clean.body_params)


def _finish(clean: _Clean, z: int, params: IntensityParams, recipe: Recipe) -> tuple[HarmonizedSlice, dict[int, float]]:
    """Make the square slice of one picture, and tell the dust removed from its label, mm³."""
    tidy = remove_slice_dust(clean.labels.voxels[z], clean.plan.spacing_mm, recipe, clean.spared)
    picture, mask, body = _without_spurious(clean, z), tidy.voxels[0], clean.body.mask[z]
    if recipe.aspect == "pad":  # black is what lies at the lower bound
        steps_mm = clean.plan.spacing_mm[:2]
        picture = pad_to_square(picture, steps_mm, float(np.floor(params.low)))
        mask, body = (pad_to_square(layer, steps_mm, 0.0) for layer in (mask, body))
    square = resize_mask(mask, recipe.side)
    counts = count_picture(square)
    pixels = {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v > 0}
    image = _resizable(picture, params)
    finished = HarmonizedSlice(
        z=z,
        source_index=clean.plan.source_index(z),
        image=apply_intensity(resize_image(image, recipe.side), params),
        mask=square,
        body_pixels=int(np.count_nonzero(resize_mask(body, recipe.side))),
        foreground_pixels=sum(pixels.values()),
        label_pixels=pixels,
    )
    return finished, tidy.removed_mm3


def _resizable(image: Shaped[np.ndarray, "h w"], params: IntensityParams) -> Shaped[np.ndarray, "h w"]:
    """Resample whole HU as int16, where rounding costs a third of a grey level at most; anything else as float32."""
    exact_enough = image.dtype == np.int16 and params.normalizer == "window"
    return image if exact_enough else image.astype(np.float32)


def _measures(
    clean: _Clean, params: IntensityParams, slices: Sequence[HarmonizedSlice], modality: str, recipe: Recipe
) -> CaseMeasures:
    """Measure sizes, areas and histograms of a case; whole numbers over whole numbers."""
    source: Values = clean.counts or clean.stack
    edges = edges_of_case(modality, params.low, params.high)
    clipped_low, clipped_high = clipped_shares(source, params.low, params.high)
    finished, n_pixels = slice_histograms(slices), sum(s.image.size for s in slices)
    shape, steps_mm = (clean.stack.shape[1], clean.stack.shape[2]), clean.plan.spacing_mm[:2]
    pixel_mm2 = finished_pixel_mm2(shape, steps_mm, recipe.side, padded=recipe.aspect == "pad")
    return CaseMeasures(
        source_rows=shape[0],
        source_columns=shape[1],
        body_fraction=sum(s.body_pixels for s in slices) / n_pixels,
        foreground_fraction=sum(s.foreground_pixels for s in slices) / n_pixels,
        body_mm2_median=float(np.median([s.body_pixels for s in slices])) * pixel_mm2,
        foreground_mm2_median=float(np.median([s.foreground_pixels for s in slices])) * pixel_mm2,
        clipped_low=clipped_low,
        clipped_high=clipped_high,
        histogram_source=tuple(bin_counts(source, edges).tolist()),
        histogram_source_foreground=tuple(bin_counts(clean.annotated, edges).tolist()),
        histogram_slices=tuple(finished.every.tolist()),
        histogram_slices_foreground=tuple(finished.foreground.tolist()),
    )


def _statistics(clean: _Clean) -> CaseStatistics:
    if clean.counts:
        found, shown = moments(clean.counts), percentiles(clean.counts, SHOWN_PERCENTILES)
        return CaseStatistics(found.minimum, found.maximum, found.mean, found.std, *shown)
    voxels = clean.stack
    values = (voxels.min(), voxels.max(), voxels.mean(dtype=np.float64), voxels.std(dtype=np.float64))
    return CaseStatistics(*(float(v) for v in values), *percentiles(voxels, SHOWN_PERCENTILES))
