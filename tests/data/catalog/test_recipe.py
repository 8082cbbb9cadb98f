"""The recipes of the distribution and users' own: each does the one thing that it says, and nothing else."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from support.builders import SMALL_RECIPE, ball, case_of, nifti_bytes, pairs_spec, pairs_toml, scan, spaced, write_files

from medvar_data.catalog.load import load_collections, parse_collection
from medvar_data.catalog.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from medvar_data.errors import CaseRejected, Reason, SpecError
from medvar_data.geometry import pad_to_square, square_margins
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.readers.read import read_scan
from medvar_data.records import HarmonizedVolume
from medvar_data.workspace.workspace import Workspace

TO_SQUARE = {"by-region": "ct_windows", "keep-aspect": "aspect", "axial": "slice_axis", "labelled-only": "unlabelled"}


def small(recipe: str) -> Recipe:
    """A recipe of the distribution for scans of a few voxels."""
    import tomllib

    own = tomllib.loads(SMALL_RECIPE.format(side=32))
    numbers = {k: v for k, v in own.items() if k not in ("extends", "name")}
    return dataclasses.replace(load_recipe(recipe), **numbers)


def made(tmp_path, image, label, affine, recipe: Recipe, *, axis: str = "axial", **case) -> HarmonizedVolume:
    write_files(tmp_path, {"i.nii": nifti_bytes(image, affine), "l.nii": nifti_bytes(label, affine)})
    spec = parse_collection(pairs_toml(suffix="nii").replace('"axial"', f'"{axis}"'), "test", own=True)
    found = case_of(tmp_path, "i.nii", case.pop("labels", "l.nii"), **case)
    return harmonize(read_scan(found, spec), found, spec, recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_of_the_distribution_loads_and_survives_json(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(dataclasses.asdict(recipe), "again") == recipe


@pytest.mark.parametrize(("name", "key"), TO_SQUARE.items())
def test_a_recipe_changes_one_key_of_the_paper(name, key):
    paper, recipe = load_recipe("paper"), load_recipe(name)
    changed = {f.name for f in dataclasses.fields(Recipe) if getattr(paper, f.name) != getattr(recipe, f.name)}
    assert changed == {key, "name", "digest"}


def test_every_region_of_a_ct_collection_has_a_window():
    regions = {spec.region for spec in load_collections() if spec.modality == "CT"}
    assert regions <= set(load_recipe("by-region").ct_windows)


@pytest.mark.parametrize(
    ("region", "low", "high"), [("chest", -1350, 150), ("spine", -500, 1300), ("brain", 0, 80), ("toe", -160, 240)]
)
def test_by_region_takes_the_window_of_the_region(tmp_path, region, low, high):
    image, label = scan((24, 20, 4), 1)
    image = np.where(image > 0, image // 20, -1000).astype(np.int16)
    volume = made(tmp_path, image, (label > 0).astype("u1"), None, small("by-region"), modality="CT", region=region)
    assert (volume.case.normalizer, volume.case.low, volume.case.high) == ("window", low, high)
    paper = made(tmp_path, image, (label > 0).astype("u1"), None, small("paper"), modality="CT", region=region)
    same = all(np.array_equal(a.image, b.image) for a, b in zip(volume.slices, paper.slices, strict=True))
    assert same == (region == "toe")
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(volume.slices, paper.slices, strict=True))


def test_by_region_leaves_mr_as_it_is(tmp_path):
    image, label = scan((24, 20, 4), 1)
    volumes = [
        made(tmp_path, image, (label > 0).astype("u1"), None, small(r), region="chest") for r in ("by-region", "paper")
    ]
    assert volumes[0].case == volumes[1].case


@pytest.mark.parametrize("steps", [(1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (0.7, 0.7, 5.0)])
@pytest.mark.parametrize("shape", [(40, 24, 5), (24, 40, 5), (32, 32, 5)])
def test_keep_aspect_keeps_a_ball_round(tmp_path, shape, steps):
    """The same ball, on wide, tall and uneven grids: the mask's width and height differ by a pixel at most."""
    extent = min(n * s for n, s in zip(shape[:2], steps[:2], strict=True))
    inside = ball(shape, [(n - 1) / 2 for n in shape], 0.38 * extent, (*steps[:2], 1e-6))
    image = np.where(inside, 500, 100).astype(np.int16)
    recipe = small("keep-aspect")
    volume = made(tmp_path, image, inside.astype("u1"), spaced(*steps), recipe)
    longest = max(n * s for n, s in zip(shape[:2], steps[:2], strict=True))
    wanted = 2 * 0.38 * extent / longest * recipe.side
    for s in volume.slices:
        height, width = (np.count_nonzero(s.mask.any(axis=a)) for a in (1, 0))
        assert abs(height - width) <= 2.1 * max(1, recipe.side * max(steps[:2]) / longest / 2)
        assert abs(max(height, width) - wanted) <= 2.1
        middle = (recipe.side - 1) / 2
        rows, columns = np.nonzero(s.mask)
        assert abs(rows.mean() - middle) < 1
        assert abs(columns.mean() - middle) < 1


def test_keep_aspect_pads_with_black_and_no_label(tmp_path):
    image, label = scan((40, 20, 4), 2)
    volume = made(tmp_path, image + 50, (label > 0).astype("u1"), None, small("keep-aspect"))
    for s in volume.slices:
        assert s.image.shape == s.mask.shape == (32, 32)
        assert not s.image[:7].any()
        assert not s.image[-7:].any()
        assert not s.mask[:8].any()
        assert s.image[12:20].any()


def test_keep_aspect_of_a_square_is_the_paper(tmp_path):
    image, label = scan((24, 24, 4), 2)
    volumes = [made(tmp_path, image, (label > 0).astype("u1"), None, small(r)) for r in ("keep-aspect", "paper")]
    for a, b in zip(*(v.slices for v in volumes), strict=True):
        assert np.array_equal(a.image, b.image)


def test_margins_make_a_square_of_millimetres():
    for shape, steps in (((10, 20), (1.0, 1.0)), ((384, 15), (0.5, 4.0)), ((7, 9), (1.3, 0.9)), ((5, 5), (2.0, 2.0))):
        top, bottom, left, right = square_margins(shape, steps)
        height, width = (shape[0] + top + bottom) * steps[0], (shape[1] + left + right) * steps[1]
        assert abs(height - width) <= max(steps) / 2 + 1e-9
        assert 0 <= bottom - top <= 1
        assert 0 <= right - left <= 1
        assert pad_to_square(np.ones(shape), steps, -3.0).shape == (shape[0] + top + bottom, shape[1] + left + right)
        assert 0 in (top + bottom, left + right), "the longer side is not padded"


def test_axial_cuts_a_native_collection_along_the_body(tmp_path):
    image, label = scan((24, 20, 9), 3)
    affine = np.array([[0, 0, 3.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # stored as anterior, superior, right
    label = (label > 0).astype("u1")
    native = made(tmp_path, image, label, affine, small("paper"), axis="native")
    axial = made(tmp_path, image, label, affine, small("axial"), axis="native")
    assert (native.case.plane, axial.case.plane) == ("sagittal", "axial")
    assert (native.case.n_slices, axial.case.n_slices) == (9, 20)
    assert (axial.case.spacing_row_mm, axial.case.spacing_col_mm, axial.case.through_plane_mm) == (1.0, 3.0, 1.0)


def test_labelled_only_rejects_with_a_reason(tmp_path):
    image, label = scan((24, 20, 4), 4)
    write_files(tmp_path / "own", {
        "a_image.nii.gz": nifti_bytes(image), "a_label.nii.gz": nifti_bytes((label > 0).astype("u1")), "b_image.nii.gz": b"damaged",
    })  # fmt: skip
    (tmp_path / "own" / "b_image.nii.gz").write_bytes(nifti_bytes(image))
    (tmp_path / "own.toml").write_text(pairs_toml())
    workspace = Workspace(tmp_path / "work")
    list(run_ingest({str(tmp_path / "own.toml"): tmp_path / "own"}, workspace))
    summary = run_harmonize(workspace, small("labelled-only"), 1, lambda _: None)
    assert (summary.n_kept, summary.n_rejected) == (1, 1)
    assert [(r.reason, r.stage) for r in summary.rejects] == [(Reason.UNLABELLED, "harmonize")]
    assert "labelled cases alone" in summary.rejects[0].detail
    case = next(c for c in workspace.cases("own") if not c.label)
    with pytest.raises(CaseRejected, match="labelled cases alone"):
        harmonize(read_scan(case, pairs_spec()), case, pairs_spec(), small("labelled-only"))
    assert run_harmonize(workspace, small("paper"), 1, lambda _: None).n_kept == 2


class TestOwn:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ('aspect = "crop"', "aspect is 'crop'; wanted one of stretch, pad"),
            ('slice_axis = "coronal"', "slice_axis is 'coronal'; wanted one of collection, axial"),
            ('unlabelled = "drop"', "unlabelled is 'drop'"),
            ("aspekt = 1", "No key named 'aspekt'; nearest: aspect"),
            ("label_min_voxels = -1", "label_min_voxels is -1; wanted 0 or more"),
            ("label_min_mm3 = nan", "label_min_mm3 is nan; wanted a finite number"),
            ("ct_level_hu = inf", "ct_level_hu is inf"),
            ("ct_windows = [40, 400]", r"ct_windows is \[40, 400\]; wanted a table"),
            ("ct_windows = { chest = 40 }", "ct_windows.chest is 40; wanted a list of numbers"),
            ("ct_windows = { chest = [40] }", r"ct_windows.chest is \[40.0\]; wanted \[level, width\]"),
            ("ct_windows = { chest = [40, 0] }", "ct_windows.chest .* a width above 0"),
            ('ct_windows = { chest = ["a", 1] }', "ct_windows.chest"),
            ("extends = 3", "extends is 3"),
        ],
    )
    def test_a_wrong_key_is_named(self, tmp_path, line, says):
        path = tmp_path / "mine.toml"
        extends = "" if line.startswith("extends") else 'extends = "paper"\n'
        path.write_text(f'{extends}name = "mine"\n{line}\n')
        with pytest.raises(SpecError, match=says):
            load_recipe(str(path))

    def test_the_example_in_the_docs_loads(self, tmp_path):
        page = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
        (tmp_path / "liver.toml").write_text(page.split("```toml\n")[1].split("```")[0])
        recipe = load_recipe(str(tmp_path / "liver.toml"))
        assert (recipe.side, recipe.aspect, dict(recipe.ct_windows)) == (192, "pad", {"abdomen": (60.0, 200.0)})
        assert all(f"| `{name}` |" in page for name in recipe_names())

    def test_a_recipe_that_extends_another_needs_a_name(self, tmp_path):
        (tmp_path / "mine.toml").write_text('extends = "paper"\nside = 128\n')
        with pytest.raises(SpecError, match="key 'name' is missing"):
            load_recipe(str(tmp_path / "mine.toml"))

    def test_own_recipes_extend_each_other_by_path_but_not_in_a_circle(self, tmp_path):
        (tmp_path / "a.toml").write_text('extends = "by-region"\nname = "a"\nside = 128\n')
        (tmp_path / "b.toml").write_text(
            'extends = "a.toml"\nname = "b"\nct_level_hu = 50\n[ct_windows]\nchest = [0, 10]\n'
        )
        recipe = load_recipe(str(tmp_path / "b.toml"))
        assert (recipe.side, recipe.ct_level_hu, dict(recipe.ct_windows)) == (128, 50.0, {"chest": (0.0, 10.0)})
        assert math.isclose(recipe.ct_width_hu, 400)
        (tmp_path / "a.toml").write_text('extends = "b.toml"\nname = "a"\n')
        with pytest.raises(SpecError, match="extends comes back"):
            load_recipe(str(tmp_path / "b.toml"))
