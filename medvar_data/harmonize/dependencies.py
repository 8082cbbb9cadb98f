"""Tell what a recipe and a collection mean for one case: its window, its slice axis, and which of their keys it depends on.

A case is made again when a choice that it depends on changes, and left alone when any other does: a CT case knows nothing of
the percentiles of MR, and no case of the collection's title.
"""

import dataclasses
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from medvar_data.catalog.collection import CollectionSpec, Layout, labels_of
from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import CaseRejected, Reason
from medvar_data.records import Case, Inputs
from medvar_data.shardset.schema import SCHEMA_VERSION

# What harmonize never looks at; whatever is not listed here counts, so that a new key is never forgotten.
CASE_ALONE = {"collection", "case", "group", "region", "sequence", "official_split", "condition", "layout", "root",
              "n_voxels", "inflated_bytes"}  # fmt: skip
COLLECTION_ALONE = {"name", "title", "region", "modality", "license", "layouts", "labels", "family", "homepage", "doi", "citation",
                    "license_url", "commercial", "derivatives", "share_alike", "redistribute", "license_confirmed", "license_evidence",
                    "license_read", "license_conflict", "access", "download", "notes", "overlaps", "quirks", "repairs",
                    "exclude", "case_list", "case_names", "condition", "digest"}  # fmt: skip
LAYOUT_ALONE = {"id", "image", "case", "group", "volume", "label", "pair_on", "split", "split_names", "splits", "modality", "region", "sequence",
                "sequences", "reader", "stack", "channels", "labelled", "expected", "variant_of", "patients_of",
                "confirmed", "derived"}  # fmt: skip
RECIPE_ALONE = {"name", "digest", "ct_windows", "slice_axis", "unlabelled"}
RECIPE_CT = {"body_threshold_hu", "body_opening_mm", "body_min_fraction", "ct_normalizer"}
RECIPE_MR = {"body_mr_threshold_fraction", "mr_normalizer"}
NORMALIZER_IDLE = {"window": {"mr_low_percentile", "mr_high_percentile"}, "percentiles": {"ct_level_hu", "ct_width_hu"}}
RECIPE_LABELLED = {"label_min_voxels", "label_min_mm3", "label_keep_largest", "label_slice_min_pixels",
                   "label_slice_min_mm2"}  # fmt: skip
RECIPE_UNLABELLED = {"unlabelled_min_body_fraction"}


def recipe_for(case: Case, recipe: Recipe) -> Recipe:
    """Settle the recipe for one case: the window of its region is the window.

    Raises:
        CaseRejected: `unlabelled` where the recipe takes labelled cases alone.
    """
    if recipe.unlabelled == "reject" and not case.label:
        raise CaseRejected(Reason.UNLABELLED, "the case has no label, and the recipe takes labelled cases alone")
    if case.region not in recipe.ct_windows:
        return recipe
    level, width = recipe.ct_windows[case.region]
    return dataclasses.replace(recipe, ct_level_hu=level, ct_width_hu=width)


def slice_axis(spec: CollectionSpec, recipe: Recipe) -> str:
    """Settle the slice axis: `axial` or `native`."""
    return spec.slice_axis if recipe.slice_axis == "collection" else recipe.slice_axis


def inputs_of(case: Case, spec: CollectionSpec, recipe: Recipe, code: str) -> Inputs:
    """Name everything that a case's result depends on.

    Args:
        case: its files' names, sizes and times count, where they lie does not.
        spec: labels, slice axis and what else reading looks at.
        recipe: the keys that this case's modality and label make matter.
        code: version of the code that makes pixels.
    """
    return Inputs(
        source=_digest(_without(case, CASE_ALONE)),
        collection=_digest(_collection(case, spec)),
        recipe=_digest(_recipe(case, spec, recipe)),
        code=code,
    )


def _collection(case: Case, spec: CollectionSpec) -> dict[str, Any]:
    layout: Layout | None = next((layout for layout in spec.layouts if layout.id == case.layout), None)
    return {
        **_without(spec, COLLECTION_ALONE),
        "labels": [(v.low, v.high, v.id, v.roi) for v in labels_of(spec, case.layout)] if case.label else [],
        "repairs": [dataclasses.astuple(repair) for repair in spec.repairs if repair.holds_for(case.case)],
        "steps": [quirk.step for quirk in spec.quirks if quirk.step and quirk.holds_for(case.case)],
        "layout": _without(layout, LAYOUT_ALONE) if layout else {},
    }


def _recipe(case: Case, spec: CollectionSpec, recipe: Recipe) -> dict[str, Any]:
    if recipe.unlabelled == "reject" and not case.label:
        return {"unlabelled": recipe.unlabelled}
    normalizer = recipe.ct_normalizer if case.modality == "CT" else recipe.mr_normalizer
    idle = RECIPE_MR if case.modality == "CT" else RECIPE_CT
    idle = idle | (RECIPE_UNLABELLED if case.label else RECIPE_LABELLED) | NORMALIZER_IDLE.get(normalizer, set())
    overruled = slice_axis(spec, recipe) != spec.slice_axis
    return {**_without(recipe_for(case, recipe), RECIPE_ALONE | idle), "overruled": overruled}


def _without(noun: Any, names: set[str]) -> dict[str, Any]:
    return {f.name: getattr(noun, f.name) for f in dataclasses.fields(noun) if f.name not in names}


def _digest(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def wanted_inputs(case: Case, spec: CollectionSpec, recipe: Recipe) -> Inputs:
    """Name everything that a case's result depends on, this version of the code included."""
    return inputs_of(case, spec, recipe, f"{PIPELINE_VERSION}/{SCHEMA_VERSION}")


PIPELINE_VERSION = 3  # of the pixels: raised whenever the same scan and recipe give other pixels
