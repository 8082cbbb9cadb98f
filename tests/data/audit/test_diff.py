"""Two sets are compared: equal ones are equal, and whatever differs is told by name and number."""

import shutil
from dataclasses import replace
from pathlib import Path

from support.tampering import edit_dataset, edit_licence_everywhere, paint, refit, remove_case, remove_reject, rows_of

from medvar_data.audit.diff import diff
from medvar_data.shard.reshard import ReshardSpec, reshard
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store


def quiet(_: object) -> None:
    pass


def tampered(pipeline, tmp_path: Path, *how) -> Store:
    shutil.copytree(pipeline.shards, tmp_path / "other")
    for change in how:
        change(tmp_path / "other")
    refit(tmp_path / "other")
    return Store(str(tmp_path / "other"))


def test_a_set_is_equal_to_itself_and_to_its_copy(pipeline, tmp_path):
    assert not diff(pipeline.store, pipeline.store)
    assert not diff(pipeline.store, tampered(pipeline, tmp_path))


def test_another_codec_and_size_change_what_dataset_json_says_alone(pipeline, tmp_path):
    other = Store(str(tmp_path / "s"))
    reshard(pipeline.store, other, ReshardSpec("zstd", 7, 5), 1, quiet)
    found = diff(pipeline.store, other)
    assert set(found.dataset) == {"codec", "made_from", "seed", "versions.encoder"}
    assert found.dataset["codec"] == ("png", "zstd")
    assert not any((found.cases, found.slices, found.statistics, found.collections, found.rejects))


def test_fewer_slices(pipeline, tmp_path):
    other = Store(str(tmp_path / "s"))
    write_shards(pipeline.workspace, other, replace(pipeline.spec, where="z <> 1 AND collection <> 'own'"), 1, quiet)
    found = diff(pipeline.store, other)
    rows = rows_of(pipeline.shards, "slices")
    gone = [row for row in rows if row["z"] == 1 or row["collection"] == "own"]
    assert set(found.dataset) == {"where", *(name for name in found.dataset if name.startswith("conditions."))}
    assert sum(found.slices.only_first.values()) == len(gone)
    assert found.slices.only_first["own"] == sum(row["collection"] == "own" for row in rows)
    assert found.slices.only_second == found.slices.changed == {}
    assert len(found.slices.shown["only_first"]) == 10
    assert set(found.slices.shown["only_first"]) <= {row["key"] for row in gone}
    assert found.cases.only_first == {"own": 3}
    for name in found.slices.only_first:
        assert all(key.startswith(f"{name}-") for key in found.slices.shown[f"only_first {name}"])
    assert {"n_kept", "n_not_selected"} == set(found.cases.changed)
    assert found.rejects["own shard not_selected"] == (0, 3)
    back = diff(other, pipeline.store)
    assert (back.slices.only_second, back.slices.only_first) == (found.slices.only_first, {})


def test_another_recipe_is_told_parameter_by_parameter(pipeline, tmp_path):
    other = tampered(
        pipeline, tmp_path, lambda folder: edit_dataset(folder, lambda d: d["recipe"].update(ct_width_hu=401.0))
    )
    assert diff(pipeline.store, other).dataset == {"recipe.ct_width_hu": (400.0, 401.0)}


def test_pixels_licences_rejects_and_cases(pipeline, tmp_path):
    other = tampered(pipeline, tmp_path, remove_case, remove_reject, edit_licence_everywhere, paint)
    found = diff(pipeline.store, other)
    assert found.slices.changed["image_sha256"] == 1
    assert len(found.slices.shown["image_sha256"]) == 1
    assert "mask_sha256" not in found.slices.changed
    assert sum(found.cases.only_first.values()) == 1
    assert found.collections.changed["license"] == len(rows_of(pipeline.shards, "collections"))
    assert len(found.rejects) == 1
    assert {"cases", "slices", "license"} <= set(found.statistics.changed)
    assert found
