"""Read a recipe: every harmonization setting, from a TOML of the distribution or of the user.

A recipe may extend another. A wrong key is named in the error, and no recipe is half read.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from medvar_data.catalog.toml import build, manifests, one_of, read_text, read_toml, unknown_name
from medvar_data.errors import SpecError
from medvar_data.naming import is_name, printable

NORMALIZER_NAMES = ("window", "percentiles")  # keys of intensity.NORMALIZERS


@dataclass(frozen=True)
class Recipe:
    """Every harmonization setting, as a number or a word.

    Voxel and millimetre thresholds act together: a component goes only when it is below both.
    """

    name: str
    side: int  # pixels
    orientation: str  # canonical: permutation and flips only
    slices: str  # labelled: slices with annotation, and by body area where a case has no label
    body_threshold_hu: float
    body_mr_threshold_fraction: float  # of Li's threshold of the non-zero voxels
    body_opening_mm: float
    body_min_voxels: int
    body_min_mm3: float
    body_min_fraction: float  # of the largest component, CT only
    body_slice_min_pixels: int
    body_slice_min_mm2: float
    label_min_voxels: int
    label_min_mm3: float
    label_keep_largest: bool
    label_slice_min_pixels: int
    label_slice_min_mm2: float
    unlabelled_min_body_fraction: float  # of the slice's area
    ct_normalizer: str
    ct_level_hu: float
    ct_width_hu: float
    mr_normalizer: str
    mr_low_percentile: float
    mr_high_percentile: float
    slice_axis: str = "collection"  # as the collection says, or axial whatever it says
    aspect: str = "stretch"  # stretch to the square; pad: one scale for both axes, the rest black
    unlabelled: str = "keep"  # cases without a label: keep, or reject
    ct_windows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # region -> [level, width] in HU
    digest: str = ""


def load_recipe(name: str) -> Recipe:
    """Load a recipe of the distribution by name, or a user's own by the path of its TOML.

    Raises:
        SpecError: no such recipe, or a key that is missing, unknown, of the wrong type or out of its range.
    """
    return parse_recipe(_recipe_table(name, ()), f"recipe {name}")


def parse_recipe(table: Mapping[str, Any], where: str) -> Recipe:
    """Make a recipe from its table, such as the one in `dataset.json`.

    Raises:
        SpecError: a key is missing, unknown, of the wrong type or out of its range.
    """
    recipe = build(Recipe, {k: v for k, v in table.items() if k != "digest"}, where)
    _check_recipe(recipe, where)
    return dataclasses.replace(recipe, digest=sha256(repr(dataclasses.astuple(recipe)).encode()).hexdigest())


def recipe_names() -> list[str]:
    """List the recipes of the distribution, sorted."""
    return sorted(p.name.removesuffix(".toml") for p in manifests("recipes").iterdir() if p.name.endswith(".toml"))


def _recipe_table(name: str, extended_by: tuple[str, ...]) -> dict[str, Any]:
    """Keys of a recipe, with those of the recipe that it extends below them."""
    if name in extended_by:
        raise SpecError(f"recipe {extended_by[0]}: extends comes back to {name!r}; wanted a chain that ends.")
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise SpecError(f"No recipe file at {path}.")
        text, folder = read_text(path), path.parent
    else:
        entry = manifests("recipes") / f"{name}.toml"
        if not entry.is_file():
            raise SpecError(unknown_name("recipe", name, recipe_names()) + " Or give the path of your own TOML.")
        text, folder = entry.read_text(encoding="utf-8"), Path()
    table = read_toml(text, f"recipe {name}")
    if "extends" not in table:
        return table
    base = table.pop("extends")
    if not isinstance(base, str):
        raise SpecError(f"recipe {name}: extends is {base!r}; wanted the name of a recipe or the path of a TOML.")
    if "name" not in table:
        raise SpecError(f"recipe {name}: key 'name' is missing; a recipe that extends another needs a name of its own.")
    known = {f.name for f in dataclasses.fields(Recipe)} - {"digest"}
    for key in table:
        if key not in known:
            raise SpecError(f"recipe {name}: {unknown_name('key', key, sorted(known))}")
    return {**_recipe_table(str(folder / base) if base.endswith(".toml") else base, (*extended_by, name)), **table}


def _check_recipe(recipe: Recipe, where: str) -> None:
    if not is_name(recipe.name):
        raise SpecError(f"{where}: name is {printable(recipe.name)!r}; wanted lower-case letters, digits and hyphens.")
    if not 8 <= recipe.side <= 4096:
        raise SpecError(f"{where}: side is {recipe.side}; wanted 8 to 4096 pixels.")
    one_of(recipe.orientation, ("canonical",), f"{where}: orientation")
    one_of(recipe.slices, ("labelled",), f"{where}: slices")
    one_of(recipe.ct_normalizer, NORMALIZER_NAMES, f"{where}: ct_normalizer")
    one_of(recipe.mr_normalizer, NORMALIZER_NAMES, f"{where}: mr_normalizer")
    one_of(recipe.slice_axis, ("collection", "axial"), f"{where}: slice_axis")
    one_of(recipe.aspect, ("stretch", "pad"), f"{where}: aspect")
    one_of(recipe.unlabelled, ("keep", "reject"), f"{where}: unlabelled")
    _check_numbers(recipe, where)
    if not 0 <= recipe.mr_low_percentile < recipe.mr_high_percentile <= 100:
        raise SpecError(f"{where}: mr_low_percentile is not below mr_high_percentile; wanted 0 <= low < high <= 100.")


def _check_numbers(recipe: Recipe, where: str) -> None:
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        if f.type not in (int, float):
            continue
        if not math.isfinite(value):
            raise SpecError(f"{where}: {f.name} is {value}; wanted a finite number.")
        if value < 0 and not f.name.endswith("_hu"):
            raise SpecError(f"{where}: {f.name} is {value}; wanted 0 or more.")
    if not recipe.ct_width_hu > 0:
        raise SpecError(f"{where}: ct_width_hu is {recipe.ct_width_hu}; wanted a width above 0.")
    for region, window in recipe.ct_windows.items():
        if len(window) != 2 or not all(map(math.isfinite, window)) or not window[1] > 0:
            raise SpecError(
                f"{where}: ct_windows.{region} is {list(window)}; wanted [level, width] in HU with a width above 0."
            )
