"""Laws of the plan: exactly what a change touches is done again, it says why, and what it expects comes true."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.builders import (
    SMALL_RECIPE,
    acdc_tree,
    case_of,
    chaos_members,
    nifti_bytes,
    pairs_spec,
    pairs_toml,
    scan,
    spaced,
    write_files,
)

from medvar_data.catalog.recipe import Recipe, load_recipe
from medvar_data.engine.engine import Engine, Part
from medvar_data.errors import SourceError
from medvar_data.harmonize.dependencies import (
    NORMALIZER_IDLE,
    RECIPE_ALONE,
    RECIPE_CT,
    RECIPE_LABELLED,
    RECIPE_MR,
    RECIPE_UNLABELLED,
    wanted_inputs,
)
from medvar_data.harmonize.expect import (
    CALIBRATION_CASES,
    PEAK_BYTES_PER_VOXEL,
    Calibration,
    expect,
    peak_bytes,
    read_calibration,
    work_bytes,
)
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.harmonize.plan import plan_harmonize
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.readers.read import read_scan
from medvar_data.workspace.case_file import why_to_do, write_kept
from medvar_data.workspace.workspace import Workspace


def quiet(_) -> None:
    pass


def recipe_of(folder: Path, more: str = "", name: str = "small") -> Recipe:
    path = folder / f"{name}.toml"
    path.write_text(SMALL_RECIPE.format(side=32).replace('"small"', f'"{name}"') + more)
    return load_recipe(str(path))


def own_files(seed: int = 1) -> dict[str, bytes]:
    files = {}
    for n, name in enumerate(("ann", "bob", "cy")):
        image, label = scan((20, 18, 4), seed + n)
        files[f"{name}_image.nii.gz"] = nifti_bytes(image, spaced(1, 1, 3))
        if name != "cy":
            files[f"{name}_label.nii.gz"] = nifti_bytes((label > 0).astype("u1"), spaced(1, 1, 3))
    return files


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of `work` and a copy of it as it was when all was finished."""
    root = tmp_path_factory.mktemp("plan")
    folder, kept = root / "folder", root / "kept"
    folder.mkdir()
    (folder / "own.toml").write_text(pairs_toml())
    acdc_tree(folder / "acdc", patients=2)
    write_files(folder / "chaos", chaos_members())
    write_files(folder / "own", own_files())
    workspace = Workspace(folder / "work")
    ingest(workspace)
    run_harmonize(workspace, recipe_of(folder), 1, quiet)
    shutil.copytree(folder, kept)
    return folder, kept


@pytest.fixture
def work(finished) -> Workspace:
    """Three kinds of cases, all finished: MR with labels, CT with labels, MR of a user, one of them unlabelled.

    Always at the same place, since cases name their files' places.
    """
    folder, kept = finished
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    return Workspace(folder / "work")


def ingest(workspace: Workspace) -> None:
    folder = workspace.path.parent
    sources = {"acdc": folder / "acdc", "chaos": folder / "chaos", str(folder / "own.toml"): folder / "own"}
    list(run_ingest(sources, workspace, bytes(32)))


def why(workspace: Workspace, more: str = "", name: str = "small") -> dict[str, dict[str, int]]:
    """Cases to do by collection and reason."""
    plan = plan_harmonize(workspace, recipe_of(workspace.path.parent, more, name))
    found: dict[str, dict[str, int]] = {}
    for todo in plan.todo:
        of = found.setdefault(todo.collection, {})
        of[todo.why] = of.get(todo.why, 0) + 1
    assert plan.n_todo + plan.n_finished == 4 + 1 + 3
    return found


class TestChange:
    def test_nothing_changed(self, work):
        assert why(work) == {}

    def test_another_name_for_the_same_recipe(self, work):
        assert why(work, name="other") == {}

    @pytest.mark.parametrize(
        ("line", "touches"),
        [
            ("side = 40", {"acdc": 4, "chaos": 1, "own": 3}),
            ("ct_level_hu = 60.0", {"chaos": 1}),
            ("mr_high_percentile = 99.0", {"acdc": 4, "own": 3}),
            ("body_min_fraction = 0.5", {"chaos": 1}),
            ("unlabelled_min_body_fraction = 0.5", {"own": 1}),
            ('unlabelled = "reject"', {"own": 1}),
            ("label_keep_largest = false", {"acdc": 4, "chaos": 1, "own": 2}),
            ('aspect = "pad"', {"acdc": 4, "chaos": 1, "own": 3}),
            ('slice_axis = "axial"', {"acdc": 4}),
            ("ct_windows = { chest = [1, 2] }", {}),
            ("ct_windows = { abdomen = [60, 400] }", {"chaos": 1}),
            ("ct_windows = { abdomen = [40, 400] }", {}),
        ],
    )
    def test_a_recipe_touches_the_cases_that_hang_on_it(self, work, line, touches):
        text = SMALL_RECIPE.format(side=32)
        key = line.split(" ")[0]
        kept = "\n".join(row for row in text.splitlines() if not row.startswith(f"{key} "))
        path = work.path.parent / "changed.toml"
        path.write_text(f"{kept}\n{line}\n")
        plan = plan_harmonize(work, load_recipe(str(path)))
        assert plan.todo_by_collection == touches
        assert plan.todo_by_reason == ({"recipe changed": sum(touches.values())} if touches else {})

    @pytest.mark.parametrize(
        ("old", "new", "touches"),
        [
            ('title = "Pairs of files"', 'title = "Other"\nnotes = "x"\nlicense = "other"', {}),
            ('name = "two"', 'name = "second"', {}),
            ('region = "brain"', 'region = "head"', {}),
            ('id = "pairs"', 'id = "pairs"\nexpected = 9', {}),
            ("value = [5, 6]", "value = [5, 7]", {"own": {"collection changed": 2}}),
            ('slice_axis = "axial"', 'slice_axis = "native"', {"own": {"collection changed": 3}}),
            ('modality = "MR"', 'modality = "CT"', {"own": {"source changed, recipe changed": 3}}),
        ],
    )
    def test_a_description_touches_the_cases_that_hang_on_it(self, work, old, new, touches):
        path = work.path.parent / "own.toml"
        path.write_text(pairs_toml().replace(old, new, 1))
        ingest(work)
        assert why(work) == touches

    def test_a_source_touches_its_case(self, work):
        folder = work.path.parent
        label = folder / "own" / "bob_label.nii.gz"
        os.utime(label, ns=(1, label.stat().st_mtime_ns + 10**9))
        write_files(folder / "own", {"dan_image.nii.gz": own_files(9)["ann_image.nii.gz"]})
        ingest(work)
        plan = plan_harmonize(work, recipe_of(folder))
        assert plan.todo_by_reason == {"source changed": 1, "new": 1}

    def test_moved_sources_are_the_same(self, work):
        folder = work.path.parent
        (folder / "acdc").rename(folder / "moved")
        list(run_ingest({"acdc": folder / "moved"}, work))
        assert why(work) == {}

    def test_a_damaged_and_a_missing_result(self, work):
        first, second, *_ = sorted((work.path / "harmonized" / "acdc").iterdir())
        first.write_bytes(first.read_bytes()[:100])
        second.unlink()
        assert why(work) == {"acdc": {"result damaged": 1, "new": 1}}

    def test_another_version_of_the_code(self, work, monkeypatch):
        monkeypatch.setattr("medvar_data.harmonize.dependencies.PIPELINE_VERSION", 999)
        assert why(work)["chaos"] == {"code version changed": 1}

    def test_what_is_done_again_is_what_was_announced(self, work):
        recipe = recipe_of(work.path.parent, "ct_level_hu = 60.0\n")
        before = {p: p.stat().st_mtime_ns for p in (work.path / "harmonized").rglob("*.parquet")}
        seen = []
        summary = run_harmonize(work, recipe, 1, seen.append)
        changed = {p.parent.name for p, t in before.items() if p.stat().st_mtime_ns != t}
        assert changed == {"chaos"}
        assert (summary.n_skipped, [p.status for p in seen]) == (7, ["skipped", "kept"])


IDLE = {
    "alone": RECIPE_ALONE - {"digest"},
    "CT": RECIPE_CT,
    "MR": RECIPE_MR,
    "labelled": RECIPE_LABELLED,
    "unlabelled": RECIPE_UNLABELLED,
}


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("labelled", [True, False])
def test_keys_that_are_said_not_to_matter_do_not(tmp_path, modality, labelled):
    """Each idle key is changed to something extreme: the case must come out the same to the last number."""
    image, label = scan((24, 20, 6), 3)
    image = image - 600 if modality == "CT" else image
    write_files(tmp_path, {"i.nii": nifti_bytes(image), "l.nii": nifti_bytes((label > 0).astype("u1"))})
    case = case_of(tmp_path, "i.nii", "l.nii" if labelled else (), modality=modality)
    spec, recipe = pairs_spec(suffix="nii"), recipe_of(tmp_path)
    seen = read_scan(case, spec)
    wanted, made = wanted_inputs(case, spec, recipe), harmonize(seen, case, spec, recipe)
    idle = IDLE["MR" if modality == "CT" else "CT"] | IDLE["unlabelled" if labelled else "labelled"]
    idle |= NORMALIZER_IDLE["window" if modality == "CT" else "percentiles"]
    checked = 0
    for key in idle:
        value = getattr(recipe, key)
        if isinstance(value, str):
            continue
        other = dataclasses.replace(
            recipe, **{key: not value if isinstance(value, bool) else type(value)(value / 2 + 7)}
        )
        assert wanted_inputs(case, spec, other) == wanted, key
        again = harmonize(seen, case, spec, other)
        assert again.case == made.case, key
        for a, b in zip(made.slices, again.slices, strict=True):
            assert np.array_equal(a.image, b.image), key
            assert np.array_equal(a.mask, b.mask), key
        checked += 1
    assert checked >= 4


class TestExpectation:
    def test_headers_tell_the_size(self, work):
        sizes = {name: {(c.n_voxels, c.inflated_bytes) for c in work.cases(name)} for name in work.collections()}
        assert sizes["acdc"] == {(24 * 20 * 5, 24 * 20 * 5 * 3)}
        assert sizes["own"] == {(20 * 18 * 4, 20 * 18 * 4 * 3), (20 * 18 * 4, 20 * 18 * 4 * 2)}
        assert sizes["chaos"] == {(32 * 32 * 6, 32 * 32 * 6 * 4)}

    @pytest.mark.parametrize("suffix", ["mha", "nrrd"])
    def test_text_headers_tell_the_size(self, tmp_path, suffix):
        import SimpleITK as sitk

        image, _ = scan((20, 18, 4))
        (tmp_path / "d").mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(image.T.copy()), str(tmp_path / "d" / f"a_image.{suffix}"), True)
        (tmp_path / "own.toml").write_text(pairs_toml(suffix=suffix))
        workspace = Workspace(tmp_path / "work")
        list(run_ingest({str(tmp_path / "own.toml"): tmp_path / "d"}, workspace))
        (case,) = workspace.cases("own")
        assert (case.n_voxels, case.inflated_bytes) == (20 * 18 * 4, 20 * 18 * 4 * 2)

    def test_without_headers_the_files_tell(self, tmp_path):
        case = case_of(tmp_path, "x.nii", n_bytes=1000)
        assert work_bytes(case) == 4000
        assert peak_bytes(case) > 250e6

    def test_defaults_then_the_workspace(self, work, tmp_path):
        cases = work.cases("acdc")
        known = read_calibration(work)
        assert known.n_cases == 8
        assert known.seconds > 0
        assert known.written_bytes == sum(p.stat().st_size for p in (work.path / "harmonized").rglob("*.parquet"))
        assert expect(cases, Calibration(n_cases=CALIBRATION_CASES - 1), 1).basis == "defaults measured by medvar"
        found = expect(cases, known, 2)
        assert found.basis == "8 finished cases of this workspace"
        assert found.wall_seconds == pytest.approx(found.core_seconds / 2)
        assert found.peak_bytes == peak_bytes(cases[0])
        run_harmonize(work, recipe_of(tmp_path), 1, quiet)
        assert read_calibration(work) == known, "a run that had nothing to do adds nothing"

    def test_the_disk_comes_out_as_expected(self, work, tmp_path):
        plan = plan_harmonize(work, recipe_of(tmp_path, "mr_high_percentile = 99.0\nct_level_hu = 41.0\n"))
        assert plan.n_todo == 8
        there = sum(p.stat().st_size for p in (work.path / "harmonized").rglob("*.parquet"))
        assert plan.expected.written_bytes == pytest.approx(there, rel=0.01)

    def test_a_giant_is_the_longest_pole(self, tmp_path):
        cases = [case_of(tmp_path, "x.nii", n_voxels=n, inflated_bytes=3 * n) for n in (10**9, 10**6)]
        found = expect(cases, Calibration(), 8)
        assert found.wall_seconds > 0.95 * found.core_seconds
        assert found.peak_bytes > PEAK_BYTES_PER_VOXEL * 10**9


class TestParts:
    def test_a_part_leaves_the_rest_and_counts_it(self, work, tmp_path):
        shutil.rmtree(work.path / "harmonized")
        recipe = recipe_of(tmp_path)
        plans = [plan_harmonize(work, recipe, None, Engine(part=Part(i, 3))) for i in (1, 2, 3)]
        assert sum(p.n_todo for p in plans) == 8
        assert all(p.n_todo + p.n_elsewhere == 8 for p in plans)
        first = run_harmonize(work, recipe, Engine(part=Part(1, 3)), quiet)
        assert (first.n_kept, first.n_elsewhere) == (plans[0].n_todo, plans[0].n_elsewhere)
        assert first.n_cases == first.n_kept + first.n_rejected + first.n_elsewhere == 8

    def test_a_case_that_another_run_finished_is_not_made_twice(self, work, tmp_path, monkeypatch):
        from medvar_data.harmonize import run as pipeline

        recipe = recipe_of(tmp_path, "side = 40\n".replace("side", "# side"))
        shutil.rmtree(work.path / "harmonized")
        made, wait = [], pipeline.harmonize

        def other_run_first(scan, case, spec, chosen):
            made.append(case.case)
            volume = wait(scan, case, spec, chosen)
            for other in work.cases(case.collection):  # what another run would leave behind meanwhile
                path = work.case_file(other)
                if why_to_do(path, wanted_inputs(other, spec, chosen)):
                    write_kept(
                        path,
                        wait(read_scan(other, spec), other, spec, chosen),
                        other,
                        wanted_inputs(other, spec, chosen),
                    )
            return volume

        monkeypatch.setattr(pipeline, "harmonize", other_run_first)
        summary = run_harmonize(work, recipe, 1, quiet)
        assert len(made) == 3, "one a collection; the others were there when their turn came"
        assert (summary.n_kept, summary.n_cases) == (8, 8)


def test_a_failed_ingest_leaves_nothing_behind(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="Nothing here"):
        list(run_ingest({"acdc": tmp_path / "empty"}, Workspace(tmp_path / "work")))
    with pytest.raises(SourceError, match="does not exist"):
        list(run_ingest({"acdc": tmp_path / "none"}, Workspace(tmp_path / "work"), bytes(32)))
    assert not (tmp_path / "work").exists()


def test_two_workers_ingest_the_same(tmp_path):
    sources = {"acdc": acdc_tree(tmp_path / "acdc", patients=2), "chaos": tmp_path / "chaos"}
    write_files(tmp_path / "chaos", chaos_members())
    for name, engine in (("a", 1), ("b", 2)):
        found = list(run_ingest(sources, Workspace(tmp_path / name), bytes(32), engine))
        assert {r.collection for r in found} == {"acdc", "chaos"}
    for path in (tmp_path / "a" / "ingest").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "ingest" / path.name).read_bytes()
