"""Laws of the shard set: the same bytes whatever the workers, nothing lost, patients pure. Other loaders: test_readers_elsewhere."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builders import pairs_toml, small_recipe
from support.runs_of_shards import bytes_of, quiet, rows_of

from medvar_data.errors import WorkspaceError
from medvar_data.harmonize.plan import plan_harmonize
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.storage.codec import PNG, pixel_digest
from medvar_data.storage.store import Store
from medvar_data.workspace.case_file import read_case_file, read_pictures, read_slice_index
from medvar_data.workspace.workspace import Workspace


def test_two_workers_write_the_same_bytes_as_one(pipeline, tmp_path):
    workspace = Workspace(tmp_path / "work")
    workspace.set_salt(pipeline.workspace.salt())
    list(run_ingest(pipeline.sources, workspace))
    run_harmonize(workspace, pipeline.recipe, 2, quiet)
    write_shards(workspace, Store(str(tmp_path / "shards")), pipeline.spec, 2, quiet)
    assert bytes_of(tmp_path / "shards") == bytes_of(pipeline.shards)
    for file in (workspace.path / "harmonized").rglob("*.parquet"):
        assert file.read_bytes() == (pipeline.workspace.path / file.relative_to(workspace.path)).read_bytes()


def test_the_same_command_again_reuses_everything(pipeline):
    before = {p: p.stat().st_mtime_ns for p in pipeline.shards.glob("*.tar")}
    digests = bytes_of(pipeline.shards)
    summary = run_harmonize(pipeline.workspace, pipeline.recipe, 1, quiet)
    assert summary.n_skipped == summary.n_cases - summary.reasons.get("not_an_image", 0)
    shards = write_shards(pipeline.workspace, pipeline.store, pipeline.spec, 1, quiet)
    assert shards.n_reused == shards.n_shards > 3
    assert {p: p.stat().st_mtime_ns for p in pipeline.shards.glob("*.tar")} == before
    assert bytes_of(pipeline.shards) == digests


def test_a_lost_shard_is_written_again_to_the_same_bytes(pipeline, tmp_path):
    shutil.copytree(pipeline.workspace.path, tmp_path / "work")
    store = Store(str(tmp_path / "shards"))
    first = write_shards(Workspace(tmp_path / "work"), store, pipeline.spec, 1, quiet)
    digests = bytes_of(Path(store.url))
    assert digests == bytes_of(pipeline.shards)
    (Path(store.url) / "train-000000.tar").unlink()
    again = write_shards(Workspace(tmp_path / "work"), store, pipeline.spec, 1, quiet)
    assert (again.n_reused, again.digest) == (first.n_shards - 1, first.digest)
    assert bytes_of(Path(store.url)) == digests


def test_found_is_kept_plus_rejected(pipeline):
    summary = run_harmonize(pipeline.workspace, pipeline.recipe, 1, quiet)
    assert summary.n_cases == summary.n_kept + summary.n_rejected
    cases, rejects = rows_of(pipeline.shards, "cases.parquet"), rows_of(pipeline.shards, "rejects.parquet")
    found = sum(
        len(pipeline.workspace.cases(n)) + len(pipeline.workspace.ingest_rejects(n))
        for n in pipeline.workspace.collections()
    )
    assert found == len(cases) + len(rejects)
    assert [r["reason"] for r in rejects] == ["not_an_image"]
    assert Counter(c["collection"] for c in cases) == {"acdc": 10, "msd-brain-tumour": 12, "own": 3, "chaos": 1}


def test_every_harmonized_slice_is_in_exactly_one_shard(pipeline):
    wanted = {}
    for name in pipeline.workspace.collections():
        for case in pipeline.workspace.cases(name):
            path = pipeline.workspace.case_file(case)
            if read_case_file(path).harmonized:
                for row in read_slice_index(path):
                    wanted[f"{name}-{case.case}-z{row['z']:04d}"] = (row["image_sha256"], row["mask_sha256"])
    rows = rows_of(pipeline.shards, "slices.parquet")
    assert {r["key"]: (r["image_sha256"], r["mask_sha256"]) for r in rows} == wanted
    assert len(rows) == len(wanted)


def test_rows_point_at_their_bytes_and_are_sorted(pipeline):
    rows = rows_of(pipeline.shards, "slices.parquet")
    order = {"train": 0, "val": 1, "test": 2}
    places = [(order[r["split"]], r["shard"], r["image_offset"]) for r in rows]
    assert places == sorted(places)
    for row in rows:
        data = (pipeline.shards / row["shard"]).read_bytes()
        image, mask, text = (
            data[row[f"{n}_offset"] : row[f"{n}_offset"] + row[f"{n}_size"]] for n in ("image", "mask", "json")
        )
        assert pixel_digest(PNG.decode(image)) == row["image_sha256"]
        assert pixel_digest(PNG.decode(mask)) == row["mask_sha256"]
        assert json.loads(text)["key"] == row["key"]


def test_no_patient_is_in_two_splits_and_all_splits_are_filled(pipeline):
    cases = rows_of(pipeline.shards, "cases.parquet")
    splits: dict[str, set[str]] = {}
    for case in cases:
        splits.setdefault(case["patient"], set()).add(case["split"])
    assert all(len(s) == 1 for s in splits.values())
    frames = {c["case"]: c["patient"] for c in cases if c["collection"] == "acdc"}
    assert frames["patient001-frame01"] == frames["patient001-frame10"] != frames["patient002-frame01"]
    assert {c["split"] for c in cases if c["collection"] == "acdc"} == {"train", "val", "test"}
    assert {r["patient"] for r in rows_of(pipeline.shards, "slices.parquet")} == set(splits)


def test_slices_are_shuffled_across_collections_and_cases(pipeline):
    first = [r["collection"] for r in rows_of(pipeline.shards, "slices.parquet") if r["shard"] == "train-000000.tar"]
    assert len(set(first)) >= 3


def test_shards_are_nearly_equal(pipeline):
    dataset = json.loads((pipeline.shards / "dataset.json").read_text())
    for split in dataset["splits"].values():
        sizes = [s["slices"] for s in split["shards"]]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= pipeline.spec.slices_per_shard
        assert split["slices"] == sum(sizes)


def test_dataset_json_says_what_it_is(pipeline):
    dataset = json.loads((pipeline.shards / "dataset.json").read_text())
    assert dataset["conditions"] == {"acdc-mr": 0, "chaos-ct": 4, "msd-brain-tumour-mr": 9, "own-mr": 1000}
    assert (dataset["schema_version"], dataset["image_side"], dataset["codec"]) == (5, 32, "png")
    for name, digest in dataset["tables"].items():
        assert hashlib.sha256((pipeline.shards / name).read_bytes()).hexdigest() == digest
    for entry in (e for s in dataset["splits"].values() for e in s["shards"]):
        data = (pipeline.shards / entry["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_statistics_agree_with_the_rows(pipeline):
    stats, slices = rows_of(pipeline.shards, "stats.parquet"), rows_of(pipeline.shards, "slices.parquet")
    assert sum(s["slices"] for s in stats) == len(slices)
    assert sum(s["cases"] for s in stats) == len(rows_of(pipeline.shards, "cases.parquet"))
    for row in stats:
        mine = [
            s for s in slices if all(s[k] == row[k] for k in ("collection", "modality", "region", "sequence", "split"))
        ]
        assert row["slices"] == len(mine)
        assert row["labelled_slices"] == sum(s["has_label"] for s in mine)
        assert row["foreground_fraction_mean"] == pytest.approx(np.mean([s["foreground_pixels"] for s in mine]) / 32**2)
        assert row["patients"] == len({s["patient"] for s in mine})


def test_a_case_without_label_says_so(pipeline):
    rows = [r for r in rows_of(pipeline.shards, "slices.parquet") if r["collection"] == "own"]
    unlabelled = [r for r in rows if not r["has_label"]]
    assert len({r["case"] for r in unlabelled}) == 1
    assert all(r["foreground_pixels"] == 0 and r["label_pixels"] == [] for r in unlabelled)
    assert all(r["foreground_pixels"] > 0 for r in rows if r["has_label"])


class TestRefusals:
    def test_a_foreign_folder(self, pipeline, tmp_path):
        folder = tmp_path / "other"
        folder.mkdir()
        (folder / "train-000099.tar").write_bytes(b"somebody's")
        with pytest.raises(WorkspaceError, match=r"train-000099\.tar"):
            write_shards(pipeline.workspace, Store(str(folder)), pipeline.spec, 1, quiet)
        assert [p.name for p in folder.iterdir()] == ["train-000099.tar"]
        assert (folder / "train-000099.tar").read_bytes() == b"somebody's"

    def test_cases_that_are_not_harmonized(self, pipeline, tmp_path):
        other = replace(pipeline.spec, recipe=small_recipe(tmp_path, side=16))
        with pytest.raises(WorkspaceError, match="26 cases are not harmonized"):
            write_shards(pipeline.workspace, Store(str(tmp_path / "s")), other, 1, quiet)
        assert not (tmp_path / "s").exists()
        assert plan_harmonize(pipeline.workspace, other.recipe).n_todo == 26

    def test_an_empty_workspace(self, pipeline, tmp_path):
        with pytest.raises(WorkspaceError, match="ingest"):
            write_shards(Workspace(tmp_path / "none"), Store(str(tmp_path / "s")), pipeline.spec, 1, quiet)


class TestChange:
    """What changes in the source or its description reaches the shards, and nothing stale stays."""

    def begin(self, pipeline, folder: Path) -> tuple[Workspace, dict[str, Path], Store]:
        shutil.copytree(next(p for n, p in pipeline.sources.items() if n.endswith("own.toml")), folder / "own")
        (folder / "own.toml").write_text(pairs_toml())
        workspace, store = Workspace(folder / "work"), Store(str(folder / "shards"))
        sources = {str(folder / "own.toml"): folder / "own"}
        self.go(workspace, sources, pipeline.recipe)
        write_shards(workspace, store, pipeline.spec, 1, quiet)
        return workspace, sources, store

    def go(self, workspace, sources, recipe) -> None:
        list(run_ingest(sources, workspace))
        run_harmonize(workspace, recipe, 1, quiet)

    def test_other_label_ids_rewrite_masks_though_the_pictures_are_equal(self, pipeline, tmp_path):
        workspace, sources, store = self.begin(pipeline, tmp_path)
        before = rows_of(Path(store.url), "slices.parquet")
        text = (
            pairs_toml()
            .replace("value = 1\nid = 1", "value = 1\nid = 9")
            .replace("id = 2", "id = 1")
            .replace("id = 9", "id = 2")
        )
        Path(next(iter(sources))).write_text(text)
        self.go(workspace, sources, pipeline.recipe)
        digest = json.loads(store.read("dataset.json"))["digest"]
        summary = write_shards(workspace, store, pipeline.spec, 1, quiet)
        after = rows_of(Path(store.url), "slices.parquet")
        assert [r["image_sha256"] for r in after] == [r["image_sha256"] for r in before]
        assert summary.digest != digest
        for row in after:
            data = store.read(row["shard"])
            mask = PNG.decode(data[row["mask_offset"] : row["mask_offset"] + row["mask_size"]])
            assert set(np.unique(mask)) <= {0, 2}
            assert pixel_digest(mask) == row["mask_sha256"]

    def test_a_changed_description_wants_harmonize_first(self, pipeline, tmp_path):
        workspace, sources, store = self.begin(pipeline, tmp_path)
        Path(next(iter(sources))).write_text(pairs_toml().replace("value = 1\n", "value = [1, 2]\n"))
        list(run_ingest(sources, workspace))
        with pytest.raises(WorkspaceError, match="2 cases are not harmonized"):
            write_shards(workspace, store, pipeline.spec, 1, quiet)

    def test_own_ids_stay_when_another_set_comes(self, pipeline, tmp_path):
        workspace, sources, _ = self.begin(pipeline, tmp_path)
        (tmp_path / "aaa.toml").write_text(pairs_toml(name="aaa"))
        sources[str(tmp_path / "aaa.toml")] = tmp_path / "own"
        list(run_ingest(sources, workspace))
        assert workspace.condition_ids({"own-mr", "aaa-mr", "acdc-mr"}) == {
            "aaa-mr": 1001,
            "acdc-mr": 0,
            "own-mr": 1000,
        }

    def test_a_description_with_published_names_and_no_license_works_to_the_end(self, pipeline, tmp_path):
        shutil.copytree(next(p for n, p in pipeline.sources.items() if n.endswith("own.toml")), tmp_path / "own")
        (tmp_path / "own.toml").write_text(pairs_toml(top='case_names = "published"\n'))
        workspace = Workspace(tmp_path / "work")
        self.go(workspace, {str(tmp_path / "own.toml"): tmp_path / "own"}, pipeline.recipe)
        write_shards(workspace, Store(str(tmp_path / "s")), pipeline.spec, 1, quiet)
        assert {c["case"] for c in rows_of(tmp_path / "s", "cases.parquet")} == {"ann", "bob", "cy"}

    def test_everything_rejected_is_an_empty_set(self, pipeline, tmp_path):
        for name in ("a", "b"):
            (tmp_path / "own").mkdir(exist_ok=True)
            (tmp_path / "own" / f"{name}_image.nii.gz").write_bytes(b"no image")
        (tmp_path / "own.toml").write_text(pairs_toml())
        workspace = Workspace(tmp_path / "work")
        self.go(workspace, {str(tmp_path / "own.toml"): tmp_path / "own"}, pipeline.recipe)
        summary = write_shards(workspace, Store(str(tmp_path / "s")), pipeline.spec, 1, quiet)
        assert (summary.n_cases, summary.n_shards, summary.n_rejected) == (0, 0, 2)
        assert rows_of(tmp_path / "s", "stats.parquet") == []


def test_a_memory_store_holds_the_same_set(pipeline):
    store = Store("memory://shardtest")
    write_shards(pipeline.workspace, store, pipeline.spec, 1, quiet)
    assert {n: hashlib.sha256(store.read(n)).hexdigest() for n in store.names()} == bytes_of(pipeline.shards)


def test_another_salt_changes_patients_and_nothing_else(pipeline, tmp_path):
    shutil.copytree(pipeline.workspace.path, tmp_path / "work")
    (tmp_path / "work" / "salt").write_text("ab" * 32 + "\n")
    write_shards(Workspace(tmp_path / "work"), Store(str(tmp_path / "s")), pipeline.spec, 1, quiet)
    one, other = rows_of(pipeline.shards, "slices.parquet"), rows_of(tmp_path / "s", "slices.parquet")
    stable = ("key", "split", "shard", "image_sha256", "mask_sha256", "condition_id")
    assert [[r[k] for k in stable] for r in one] == [[r[k] for k in stable] for r in other]
    assert not {r["patient"] for r in one} & {r["patient"] for r in other}


def test_pictures_in_the_shards_are_the_case_files_bytes(pipeline):
    rows = {r["key"]: r for r in rows_of(pipeline.shards, "slices.parquet")}
    case = pipeline.workspace.cases("acdc")[0]
    path = pipeline.workspace.case_file(case)
    for n, (image, _) in read_pictures(path, [0, 1]).items():
        row = rows[f"acdc-{case.case}-z{read_slice_index(path)[n]['z']:04d}"]
        data = (pipeline.shards / row["shard"]).read_bytes()
        assert data[row["image_offset"] : row["image_offset"] + row["image_size"]] == image


def test_another_seed_moves_slices_and_patients(pipeline, tmp_path):
    spec = ShardSpec(pipeline.recipe, SplitSpec(0.2, 0.2, seed=5), seed=5, slices_per_shard=20)
    write_shards(pipeline.workspace, Store(str(tmp_path / "s")), spec, 1, quiet)
    one, other = rows_of(pipeline.shards, "slices.parquet"), rows_of(tmp_path / "s", "slices.parquet")
    assert [r["key"] for r in one] != [r["key"] for r in other]
    assert {r["key"]: r["image_sha256"] for r in one} == {r["key"]: r["image_sha256"] for r in other}
