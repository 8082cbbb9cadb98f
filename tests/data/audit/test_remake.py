"""Slices made again from their sources: a sound set passes, and what was changed in it is named with whoever is to blame."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builders import acdc_tree
from support.tampering import edit_geometry_everywhere, edit_rows, mirror, paint, refit, remove_case, remove_reject

from medvar_data.audit.remake import RemakeSpec, changed_columns, disagreement
from medvar_data.audit.verify import verify
from medvar_data.errors import SpecError
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.reshard import ReshardSpec, reshard
from medvar_data.shard.run import write_shards
from medvar_data.storage.codec import pixel_digest
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

EVERY = 10_000


def findings(store: Store, workspace: Workspace, count: int = EVERY, seed: int = 0) -> str:
    return "\n".join(verify(store, remake=RemakeSpec(workspace, count, seed)).findings)


def tampered(store: Store, *how) -> Store:
    for change in how:
        change(Path(store.url))
    refit(Path(store.url))
    return store


def test_every_slice_of_a_sound_set(pipeline, zstd_set):
    assert findings(pipeline.store, pipeline.workspace) == ""
    assert findings(zstd_set, pipeline.workspace) == ""


def test_a_part_of_a_set_and_its_reshard_in_another_codec(pipeline, tmp_path):
    part, other = Store(str(tmp_path / "part")), Store(str(tmp_path / "other"))
    spec = replace(pipeline.spec, where="z <> 1 AND collection <> 'own'")
    write_shards(pipeline.workspace, part, spec, 1, lambda _: None)
    reshard(part, other, ReshardSpec("zstd", 7, 3, "z <> 2"), 1, lambda _: None)
    assert findings(part, pipeline.workspace) == findings(other, pipeline.workspace) == ""


def test_the_draw_is_of_so_many_slices_and_follows_the_seed(pipeline):
    def drawn(seed: int) -> list[str]:
        seen = []
        verify(pipeline.store, lambda p: seen.append(p.name), remake=RemakeSpec(pipeline.workspace, 4, seed))
        keys = verify(pipeline.store, remake=RemakeSpec(pipeline.workspace, 4, seed)).remade
        names = [name for name in seen if "/" in name]
        assert len(keys) == 4
        assert {key.rsplit("-z", 1)[0] for key in keys} == {name.replace("/", "-") for name in names}
        return names

    assert 1 <= len(drawn(0)) <= 4
    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


def test_painted_pixels_and_a_mirrored_mask_whose_digests_fit(pipeline, damaged):
    store = tampered(damaged, paint, mirror)
    assert verify(store).findings == ()
    found = findings(store, pipeline.workspace)
    assert "the image is another than its source gives, and its row fits it (" in found
    assert "the mask is another than its source gives, and its row fits it (" in found
    assert "cases.parquet does not say what its source gives: histogram_slices" in found
    assert len(found.splitlines()) == 3


def test_cases_and_rejects_that_are_gone(pipeline, damaged):
    store = tampered(damaged, remove_case, remove_reject)
    assert verify(store).findings == ()
    found = findings(store, pipeline.workspace, 1)
    assert "the workspace holds the case, the set neither keeps nor rejects it" in found
    assert "rejects.parquet lacks 1 rows" in found


def test_geometry_and_counts_that_the_source_does_not_give(pipeline, damaged):
    store = tampered(
        damaged,
        edit_geometry_everywhere,
        lambda folder: edit_rows(folder, "slices", lambda row: row.update(body_pixels=row["body_pixels"] + 1)),
    )
    found = findings(store, pipeline.workspace)
    assert "cases.parquet does not say what its source gives: source_affine" in found
    assert "its row does not say what its source gives: body_pixels" in found


def test_bytes_that_the_codec_does_not_write(pipeline, damaged):
    import cv2
    from support.tampering import edit_member

    def other_writer(data: bytes) -> bytes:
        from medvar_data.storage.codec import PNG

        return cv2.imencode(".png", PNG.decode(data), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()

    store = tampered(damaged, lambda folder: edit_member(folder, "png", other_writer))
    assert "its bytes are not those that the codec writes" in findings(store, pipeline.workspace)


def test_another_workspace_and_a_source_that_is_gone(pipeline, tmp_path):
    other = Workspace(tmp_path / "other")
    list(run_ingest({"acdc": acdc_tree(tmp_path / "acdc", patients=2)}, other))
    assert "another salt" in findings(pipeline.store, other)
    shutil.copytree(pipeline.workspace.path, tmp_path / "work")
    (tmp_path / "work" / "collections" / "own.toml").unlink()
    assert "own/" in findings(pipeline.store, Workspace(tmp_path / "work"))


def test_the_order_of_labels_in_a_map_says_nothing():
    assert changed_columns({"label_mm3": [(10, 3.0), (2, 1.0)]}, {"label_mm3": [(2, 1.0), (10, 3.0)]}) == []
    assert changed_columns({"label_mm3": [(10, 3.0)]}, {"label_mm3": [(10, 4.0)]}) == ["label_mm3"]


def test_who_stands_alone():
    one, two, three = (np.full((4, 4), n, dtype=np.uint8) for n in (1, 2, 3))
    assert disagreement("image", one, one, pixel_digest(one)) == ""
    assert "shard and source agree" in disagreement("image", one, one, pixel_digest(two))
    assert "another than its row and its source give (16 pixels differ)" in disagreement(
        "image", one, two, pixel_digest(two)
    )
    assert "its row fits it" in disagreement("image", one, two, pixel_digest(one))
    assert "three different versions" in disagreement("mask", one, two, pixel_digest(three))


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1)])
def test_a_draw_that_is_none(pipeline, count, seed):
    with pytest.raises(SpecError, match="wanted 1 or more"):
        RemakeSpec(pipeline.workspace, count, seed)
