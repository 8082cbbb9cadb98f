"""What happens between two features: sources that come and go, headers that lie, layouts and sources that overlap."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from support.builders import acdc_tree, nifti_bytes, pairs_toml, scan, small_recipe, write_files
from support.dicom_files import cohort_toml, image, slices, structure_set, volume

from medvar_cli.data_feedback import show_harmonized
from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.catalog.recipe import load_recipe
from medvar_data.errors import CaseRejected, Reason, SourceError, SpecError, WorkspaceError
from medvar_data.geometry import pad_to_square
from medvar_data.harmonize.plan import pending_cases
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.case_lists import find_msd
from medvar_data.ingest.find_cases import ingest
from medvar_data.ingest.run import run_ingest
from medvar_data.readers.dicom.headers import quiet as silence
from medvar_data.readers.read import read_scan
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.sources.tree import open_tree
from medvar_data.storage.store import Store
from medvar_data.workspace.case_file import PASSING, read_case_file
from medvar_data.workspace.workspace import Workspace


def quiet(_: object) -> None:
    pass


class TestSourcesThatComeAndGo:
    def pipeline(self, root):
        workspace = Workspace(root / "work")
        list(run_ingest({"acdc": acdc_tree(root / "data", patients=2)}, workspace))
        return workspace, small_recipe(root)

    def test_a_folder_that_is_away_rejects_nothing(self, tmp_path):
        workspace, recipe = self.pipeline(tmp_path)
        (tmp_path / "data").rename(tmp_path / "away")
        with pytest.raises(SourceError, match="nothing was rejected"):
            run_harmonize(workspace, recipe, 1, quiet)
        (tmp_path / "away").rename(tmp_path / "data")
        assert run_harmonize(workspace, recipe, 1, quiet).n_kept == 4

    def test_a_file_that_was_away_is_tried_again_and_others_are_not(self, tmp_path):
        workspace, recipe = self.pipeline(tmp_path)
        file = next((tmp_path / "data").rglob("patient001_frame01.nii.gz"))
        file.rename(tmp_path / "held")
        first = run_harmonize(workspace, recipe, 1, quiet)
        assert (first.n_kept, first.reasons) == (3, {"file_missing": 1})
        assert [task.why for task in pending_cases(workspace, recipe).tasks] == [("source or memory was short",)]
        (tmp_path / "held").rename(file)
        again = run_harmonize(workspace, recipe, 1, quiet)
        assert (again.n_kept, again.n_rejected, again.n_skipped) == (4, 0, 3)
        assert not pending_cases(workspace, recipe).tasks

    def test_what_a_scheduler_logs_of_a_task_names_nobody(self, tmp_path):
        workspace, recipe = self.pipeline(tmp_path)
        shown = repr(pending_cases(workspace, recipe).tasks)
        assert "patient001" not in shown
        assert str(tmp_path) not in shown

    def test_only_passing_reasons_are_tried_again(self, tmp_path):
        workspace, recipe = self.pipeline(tmp_path)
        next((tmp_path / "data").rglob("patient001_frame01.nii.gz")).write_bytes(b"rubbish" * 100)
        list(run_ingest({"acdc": tmp_path / "data"}, workspace))
        run_harmonize(workspace, recipe, 1, quiet)
        assert not pending_cases(workspace, recipe).tasks
        passing = {"file_missing", "not_fetched", "not_permitted", "source_error", "worker_killed"}
        assert passing == PASSING

    def test_memory_that_runs_out_is_no_fault_of_the_file(self, tmp_path, monkeypatch):
        workspace, _ = self.pipeline(tmp_path)

        def starve(*_: object) -> bytes:
            raise MemoryError

        monkeypatch.setattr("medvar_data.readers.volume_scan.inflate", starve)
        with pytest.raises(MemoryError):
            read_scan(workspace.cases("acdc")[0], load_collection("acdc"))


def test_one_collection_from_two_sources_is_refused(tmp_path):
    sources = {}
    for n in (1, 2):
        voxels, label = scan((12, 10, 4), n)
        files = {f"c{n}_image.nii.gz": nifti_bytes(voxels), f"c{n}_label.nii.gz": nifti_bytes((label > 0).astype("u1"))}
        write_files(tmp_path / str(n), files)
        (tmp_path / f"{n}.toml").write_text(pairs_toml())
        sources[str(tmp_path / f"{n}.toml")] = tmp_path / str(n)
    with pytest.raises(SourceError, match="two of the sources"):
        list(run_ingest(sources, Workspace(tmp_path / "work")))


class TestDicom:
    SPEC = parse_collection(cohort_toml(modality="CT"), "test", own=True)

    def cases(self, root, files, spec=SPEC):
        result = ingest(spec, open_tree(write_files(root, files)), b"salt")
        assert result.n_found == len(result.cases) + len(result.rejects)
        return result

    @pytest.mark.parametrize(("name", "value"), [("PixelPaddingValue", "three"), ("RescaleIntercept", "1e12")])
    def test_a_header_that_lies_is_a_reason_or_nothing(self, tmp_path, name, value):
        with silence():
            for key, data in slices(volume(4), modality="CT").items():
                (tmp_path / key).write_bytes(data)
                dataset = dcmread(tmp_path / key)
                if name == "PixelPaddingValue":
                    dataset.add_new(0x00280120, "US", [1, 2, 3])
                else:
                    setattr(dataset, name, value)
                dataset.save_as(tmp_path / key)
        cases = ingest(self.SPEC, open_tree(tmp_path), b"salt").cases
        assert cases
        for case in cases:
            with suppress(CaseRejected):
                read_scan(case, self.SPEC)

    def test_contours_that_are_no_numbers_are_a_reason(self, tmp_path):
        square = np.array([[2, 2, 2.0], [8, 2, 2.0], [8, np.nan, 2.0], [2, 8, 2.0]])
        with silence():
            files = slices(volume(4), modality="CT") | {"rt": structure_set({"cord": [square]})}
        for case in self.cases(tmp_path, files).cases:
            with pytest.raises(CaseRejected):
                read_scan(case, self.SPEC)

    def test_an_empty_region_beside_one_with_a_contour_outside(self, tmp_path):
        inside = np.array([[2, 2, 2.0], [8, 2, 2.0], [8, 8, 2.0], [2, 8, 2.0]])
        files = slices(volume(4), modality="CT")
        files["rt"] = structure_set({"cord": [inside, inside + np.array([0, 0, 90])], "spinal cord": []})
        (case,) = self.cases(tmp_path, files).cases
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("medvar_data.readers.hounsfield.FAT_HU", 10_000)
            assert read_scan(case, self.SPEC).label.voxels.any()

    def test_a_series_over_two_layouts(self, tmp_path):
        text = cohort_toml(modality="CT").replace("image = '.'", "image = '^a/'", 1)
        second = (
            text[text.index("[[layout]]") : text.index("[[label]]")].replace("^a/", "^b/").replace('id = "', 'id = "x')
        )
        spec = parse_collection(text.replace("[[label]]", second + "\n[[label]]", 1), "test", own=True)
        files = {
            f"{'ab'[n % 2]}/{name}": data for n, (name, data) in enumerate(slices(volume(6), modality="CT").items())
        }
        self.cases(tmp_path, files, spec)

    def test_one_reject_a_reason(self, tmp_path):
        files = {
            "1": image(
                volume(1)[0], (0, 0, 0), modality="CT", BurnedInAnnotation="YES", ImageType=["DERIVED", "SECONDARY"]
            ),
            "2": image(
                volume(1)[0], (0, 0, 1), modality="CT", number=2, ConversionType="WSD", BurnedInAnnotation="YES"
            ),
        }
        result = self.cases(tmp_path, files)
        keys = [reject.case for reject in result.rejects]
        assert len(keys) == len(set(keys))


class TestFinders:
    def test_two_copies_of_a_cine_without_csv_are_both_accounted_for(self, tmp_path):
        cine = nifti_bytes(np.ones((4, 4, 3, 2), dtype=np.int16))
        for top in ("one", "two"):
            stem = f"{top}/Training/Labeled/A0S9V9/A0S9V9_sa"
            write_files(tmp_path, {f"{stem}.nii.gz": cine, f"{stem}_gt.nii.gz": cine})
        result = ingest(load_collection("mms"), open_tree(tmp_path), b"s")
        assert not result.cases
        assert {r.reason for r in result.rejects} == {Reason.FILE_MISSING, Reason.DUPLICATE_CASE}

    @pytest.mark.parametrize("csv", ["", "External code,ED,ES\nA0S9V9," + "9" * 5000 + ",1\n", "\0\0"])
    def test_a_csv_that_is_none_ends_no_run(self, tmp_path, csv):
        cine = nifti_bytes(np.ones((4, 4, 3, 2), dtype=np.int16))
        stem = "Training/Labeled/A0S9V9/A0S9V9_sa"
        table = {"M&Ms_Dataset_information.csv": csv.encode()}
        write_files(tmp_path, {f"{stem}.nii.gz": cine, f"{stem}_gt.nii.gz": cine} | table)
        assert [r.reason for r in ingest(load_collection("mms"), open_tree(tmp_path), b"s").rejects] == [
            Reason.FILE_MISSING
        ]

    def test_a_finder_and_hidden_names_exclude_each_other(self):
        with pytest.raises(SpecError, match="case_list works on published names"):
            parse_collection(pairs_toml(top='case_list = "msd"\n'), "own.toml", own=True)

    def test_a_title_of_one_word(self, tmp_path):
        spec = replace(load_collection("msd-heart"), title="Heart")
        assert find_msd(spec, open_tree(tmp_path), []).notes


def test_texts_that_are_not_utf_8_are_one_sentence(tmp_path):
    for name, load in (
        ("c.toml", lambda p: list(run_ingest({p: tmp_path}, Workspace(tmp_path / "w")))),
        ("r.toml", load_recipe),
    ):
        (tmp_path / name).write_bytes('name = "Zürich"'.encode("utf-16"))
        with pytest.raises(SpecError, match="UTF-8"):
            load(str(tmp_path / name))


def test_a_number_that_is_none_is_in_no_split(tmp_path):
    text = (
        pairs_toml(suffix="nii", more='splits = { train = "1-3" }')
        .replace("(?P<case>", "(?P<number>")
        .replace("{case}", "{number}")
    )
    spec = parse_collection(text.replace('pair_on = ["case"]', 'pair_on = ["number"]'), "own.toml", own=True)
    write_files(
        tmp_path, {"doe_image.nii": nifti_bytes(scan((12, 10, 4))[0]), "2_image.nii": nifti_bytes(scan((12, 10, 4))[0])}
    )
    assert sorted(case.official_split for case in ingest(spec, open_tree(tmp_path), b"s").cases) == ["", "train"]


def test_padding_stays_within_the_pictures_type():
    padded = pad_to_square(np.ones((4, 8), dtype=np.int16), (1.0, 1.0), -35_000.0)
    assert (padded.shape, int(padded.min())) == ((8, 8), -32_768)


def test_a_case_file_tells_its_reason(tmp_path):
    workspace = Workspace(tmp_path / "work")
    list(run_ingest({"acdc": acdc_tree(tmp_path / "data", patients=1)}, workspace))
    next((tmp_path / "data").rglob("*frame01.nii.gz")).unlink()
    run_harmonize(workspace, small_recipe(tmp_path), 1, quiet)
    reject = read_case_file(workspace.case_file(workspace.cases("acdc")[0])).reject
    assert reject is not None
    assert json.dumps(reject.detail).count("run the command again") == 1


class TestWhatATrialFound:
    def test_linked_folders_are_followed_once(self, tmp_path):
        acdc_tree(tmp_path / "elsewhere", patients=2)
        (tmp_path / "mix").mkdir()
        (tmp_path / "mix" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
        assert len(ingest(load_collection("acdc"), open_tree(tmp_path / "mix"), b"s").cases) == 4

    def test_an_ingest_that_drops_earlier_cases_says_so(self, tmp_path):
        workspace = Workspace(tmp_path / "work")
        list(run_ingest({"acdc": acdc_tree(tmp_path / "a", patients=3)}, workspace))
        (again,) = run_ingest({"acdc": acdc_tree(tmp_path / "b", patients=1)}, workspace)
        assert "4 cases of an earlier ingest" in again.notes[-1]
        (same,) = run_ingest({"acdc": tmp_path / "b"}, workspace)
        assert not same.notes

    def test_images_that_no_pattern_takes_are_told(self, tmp_path):
        write_files(
            tmp_path, {f"{n}.nii": nifti_bytes(scan((12, 10, 4))[0]) for n in ("a_image", "Zed-Ann_t1", "extra")}
        )
        spec = parse_collection(pairs_toml(suffix="nii"), "own.toml", own=True)
        assert ingest(spec, open_tree(tmp_path), b"s").notes[-1].startswith("2 image files are taken by no pattern")

    def test_a_set_of_another_workspace_and_the_workspace_itself_are_no_place_for_shards(self, tmp_path):
        recipe = small_recipe(tmp_path)
        for name in "ab":
            list(run_ingest({"acdc": acdc_tree(tmp_path / name, patients=2)}, Workspace(tmp_path / f"w{name}")))
            run_harmonize(Workspace(tmp_path / f"w{name}"), recipe, 1, quiet)
        write_shards(Workspace(tmp_path / "wa"), Store(str(tmp_path / "s")), ShardSpec(recipe), 1, quiet)
        with pytest.raises(WorkspaceError, match="another workspace"):
            write_shards(Workspace(tmp_path / "wb"), Store(str(tmp_path / "s")), ShardSpec(recipe), 1, quiet)
        for inside in (tmp_path / "wa", tmp_path / "wa" / "s"):
            with pytest.raises(WorkspaceError, match="private"):
                write_shards(Workspace(tmp_path / "wa"), Store(str(inside)), ShardSpec(recipe), 1, quiet)

    def test_a_label_that_no_case_holds_is_told(self, tmp_path):
        voxels, label = scan((20, 18, 4), 1)
        write_files(
            tmp_path, {"c_image.nii": nifti_bytes(voxels), "c_label.nii": nifti_bytes((label > 0).astype("u1"))}
        )
        (tmp_path / "own.toml").write_text(pairs_toml(suffix="nii"))
        workspace = Workspace(tmp_path / "work")
        list(run_ingest({str(tmp_path / "own.toml"): tmp_path}, workspace))
        assert run_harmonize(workspace, small_recipe(tmp_path), 1, quiet).never_met == {"own": ("two",)}

    def test_ingests_that_begin_a_workspace_at_once_share_its_salt(self, tmp_path):
        with ThreadPoolExecutor(16) as pool:
            salts = set(pool.map(lambda _: Workspace(tmp_path / "work").salt(), range(64)))
        assert salts == {Workspace(tmp_path / "work").salt()}
        with pytest.raises(WorkspaceError, match="holds another salt"):
            Workspace(tmp_path / "work").set_salt(bytes(32))

    def test_a_label_that_loses_much_to_the_thresholds_is_told(self, tmp_path, capsys):
        """Of label 2, six voxels of 306 are small parts in one case, 60 of 360 in the other."""
        files = {}
        for name, n_lost in (("c", 6), ("d", 60)):
            label = np.zeros((40, 40, 6), dtype=np.uint8)
            label[2:12, 2:12, 1:5], label[20:30, 20:30, 1:4] = 1, 5
            label[32 + 2 * (np.arange(n_lost) // 20), 2 * (np.arange(n_lost) % 20), 2] = 5  # apart from each other
            files |= {f"{name}_image.nii": nifti_bytes(scan((40, 40, 6))[0]), f"{name}_label.nii": nifti_bytes(label)}
        write_files(tmp_path, files)
        (tmp_path / "own.toml").write_text(pairs_toml(suffix="nii"))
        workspace = Workspace(tmp_path / "work")
        list(run_ingest({str(tmp_path / "own.toml"): tmp_path}, workspace))
        recipe = replace(small_recipe(tmp_path), label_min_voxels=9, label_min_mm3=99.0)
        summary = run_harmonize(workspace, recipe, 1, quiet)
        (shrunk,) = summary.shrunk
        assert (shrunk.collection, shrunk.label, shrunk.n_cases, shrunk.n_shrunk) == ("own", "two", 2, 1)
        show_harmonized(summary, as_json=False)
        assert "two loses more than a tenth of its volume" in " ".join(capsys.readouterr().out.split())

    def test_the_workspace_names_the_files_that_harmonize_rejects(self, tmp_path):
        image, label = scan((20, 18, 4), 1)
        write_files(
            tmp_path, {"doe_image.nii": nifti_bytes(image), "doe_label.nii": nifti_bytes((label > 0).astype("u1") * 9)}
        )
        (tmp_path / "own.toml").write_text(pairs_toml(suffix="nii"))
        workspace = Workspace(tmp_path / "work")
        list(run_ingest({str(tmp_path / "own.toml"): tmp_path}, workspace))
        summary = run_harmonize(workspace, small_recipe(tmp_path), 1, quiet)
        (row,) = json.loads((tmp_path / "work" / "rejected" / "own.harmonize.json").read_text())
        assert (row["case"], row["reason"]) == (summary.rejects[0].case, "label_values")
        assert row["files"] == ["doe_image.nii", "doe_label.nii"]
        assert summary.rejects[0].files == ()

    def test_the_workspace_alone_names_the_files_of_a_reject(self, tmp_path):
        files = {
            "doe_image.nii": b"no image",
            "roe_label.nii": nifti_bytes(scan((12, 10, 4))[1]),
            "poe.zip": b"PK broken",
        }
        write_files(tmp_path / "data", files)
        (tmp_path / "own.toml").write_text(pairs_toml(suffix="nii"))
        workspace = Workspace(tmp_path / "work")
        (result,) = run_ingest({str(tmp_path / "own.toml"): tmp_path / "data"}, workspace)
        noted = json.loads((tmp_path / "work" / "rejected" / "own.json").read_text())
        assert sorted(file for row in noted for file in row["files"]) == ["doe_image.nii", "poe.zip", "roe_label.nii"]
        assert "doe" not in repr(result.rejects)
        assert all(not reject.files for reject in workspace.ingest_rejects("own"))
        run_harmonize(workspace, small_recipe(tmp_path), 1, quiet)
        write_shards(workspace, Store(str(tmp_path / "s")), ShardSpec(small_recipe(tmp_path)), 1, quiet)
        assert "files" not in pq.read_schema(tmp_path / "s" / "rejects.parquet").names
