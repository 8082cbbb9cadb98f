"""The pipeline on real scans, where they are: counts as published, values as measured, sets that verify."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from medvar_data.audit.trace import trace
from medvar_data.audit.verify import verify
from medvar_data.catalog.recipe import load_recipe
from medvar_data.harmonize.run import run_harmonize
from medvar_data.harmonize.summary import HarmonizeSummary
from medvar_data.ingest.run import run_ingest
from medvar_data.readers.read import read_scan
from medvar_data.records import Ingested
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import ShardSummary, write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.dataset import codec_of, read_pair
from medvar_data.storage.codec import CODECS
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

REAL = Path(__file__).parents[3] / "shared" / "real"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason="the real scans are not here"),
]

BRATS_2015 = """name = "glioma"
title = "Two gliomas, intensities normalised"
region = "brain"
modality = "MR"
slice_axis = "axial"

[[layout]]
id = "pairs"
image = '(?:^|/)(?P<case>brats_2013_pat\\d{4}_1)/(?P<seq>Flair|T1c)_subtrMeanDivStd\\.nii\\.gz$'
label = '(?:^|/)(?P<case>brats_2013_pat\\d{4}_1)/OTMultiClass\\.nii\\.gz$'
pair_on = ["case"]
case = "{case}-{seq}"
group = "{case}"
sequence = "{seq}"

[[label]]
value = [1, 4]
id = 1
name = "tumour"
"""

BRAIN_PAIRS = """name = "pairs"
title = "Two brains in NRRD"
region = "brain"
modality = "MR"
slice_axis = "axial"

[[layout]]
id = "pairs"
image = '(?:^|/)(?P<case>brain\\d)_image\\.nrrd$'
label = '(?:^|/)(?P<case>brain\\d)_label\\.nrrd$'
pair_on = ["case"]
case = "{case}"
group = "{case}"

[[label]]
value = 1
id = 1
name = "tumour"
"""


@dataclass(frozen=True)
class Pipeline:
    found: dict[str, Ingested]
    workspace: Workspace
    harmonized: HarmonizeSummary
    written: ShardSummary
    store: Store

    def cases(self, collection: str) -> list[dict]:
        rows = pq.read_table(Path(self.store.url) / "cases.parquet").to_pylist()
        return [row for row in rows if row["collection"] == collection]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("real")
    (folder / "glioma.toml").write_text(BRATS_2015)
    (folder / "pairs.toml").write_text(BRAIN_PAIRS)
    sources = {
        "acdc": REAL / "acdc", "msd-hippocampus": REAL / "msd", "chaos": REAL / "chaos", "brats2023": REAL / "brats",
        "kits23": REAL / "kits23", str(folder / "glioma.toml"): REAL / "brats-2015-normalised",
        str(folder / "pairs.toml"): REAL / "brain-pairs",
    }  # fmt: skip
    workspace, recipe, store = Workspace(folder / "work"), load_recipe("demo"), Store(str(folder / "shards"))
    found = {result.collection: result for result in run_ingest(sources, workspace)}
    harmonized = run_harmonize(workspace, recipe, 1, lambda _: None)
    written = write_shards(workspace, store, ShardSpec(recipe, SplitSpec(0.15, 0.15)), 1, lambda _: None)
    return Pipeline(found, workspace, harmonized, written, store)


def test_what_ingest_finds(pipeline):
    kept = {name: len(result.cases) for name, result in pipeline.found.items()}
    assert kept == {"acdc": 70, "msd-hippocampus": 90, "chaos": 1, "brats2023": 4, "kits23": 0, "glioma": 4, "pairs": 2}
    assert sum(not c.label for c in pipeline.found["msd-hippocampus"].cases) == 1
    lone = {r.case for r in pipeline.found["msd-hippocampus"].rejects}
    assert lone == {"hippocampus-010", "hippocampus-281"}
    assert {r.reason.value for r in pipeline.found["msd-hippocampus"].rejects} == {"label_without_image"}


def test_labels_alone_are_rejects_by_their_case(pipeline):
    rejects = pipeline.found["kits23"].rejects
    assert {r.case for r in rejects} == {"case-00000", "case-00002", "case-00003"}
    assert {r.reason.value for r in rejects} == {"label_without_image"}


def test_found_is_kept_plus_rejected(pipeline):
    summary = pipeline.harmonized
    assert (summary.n_cases, summary.n_kept, summary.n_rejected) == (176, 171, 5)
    assert summary.n_slices == sum(pipeline.written.n_slices.values())


def test_acdc_keeps_its_short_axis_and_its_pixdim(pipeline):
    cases = pipeline.cases("acdc")
    assert all(case["plane"] == "axial" and "spacing_from_pixdim" in case["steps"] for case in cases)
    assert {round(case["through_plane_mm"]) for case in cases} <= {5, 6, 7, 10}
    assert all(0.7 <= case["spacing_row_mm"] <= 1.95 for case in cases)
    assert len({case["patient"] for case in cases}) == 35
    assert {case["case"] for case in cases if "patient090" in case["case"]} == {
        "patient090-frame04",
        "patient090-frame11",
    }


def test_the_liver_is_where_the_mask_says(pipeline):
    """141 HU in the masked voxels of the source: pairing, order and rescale slope are right; a mirrored mask gives less."""
    spec, (case,) = pipeline.workspace.spec("chaos"), pipeline.workspace.cases("chaos")
    scan = read_scan(case, spec)
    inside = scan.label.voxels > 0
    assert scan.image.voxels[inside].mean() == pytest.approx(141, abs=5)
    assert scan.image.voxels[inside[:, :, ::-1]].mean() < 120
    (row,) = pipeline.cases("chaos")
    assert row["through_plane_mm"] == pytest.approx(2.0, abs=0.01)


def test_brats_without_labels_keeps_slices_by_body_area(pipeline):
    cases = pipeline.cases("brats2023")
    assert {case["sequence"] for case in cases} == {"T1", "T1 contrast", "T2", "T2 FLAIR"}
    assert len({case["patient"] for case in cases}) == 1
    assert all(not case["has_label"] and 80 < case["n_kept"] < 155 for case in cases)


def test_negative_intensities_and_nrrd_come_through(pipeline):
    glioma, pairs = pipeline.cases("glioma"), pipeline.cases("pairs")
    assert all(case["minimum"] < -3 and case["low"] < 0 < case["high"] for case in glioma)
    assert len({case["patient"] for case in glioma}) == len({case["patient"] for case in pairs}) == 2
    assert all(case["through_plane_mm"] == pytest.approx(6.5) for case in pairs)
    assert all(len(case["case"]) == 12 for case in (*glioma, *pairs))


def test_pictures_use_the_grey_scale(pipeline):
    """Mean of the body near the middle: neither black nor burnt out."""
    rows = pq.read_table(Path(pipeline.store.url) / "slices.parquet").to_pylist()
    from medvar_data.shardset.dataset import codec_of, read_pair

    for collection in ("acdc", "msd-hippocampus", "chaos", "brats2023", "glioma", "pairs"):
        mine = [row for row in rows if row["collection"] == collection][:5]
        pictures = np.stack([read_pair(pipeline.store, row, codec_of(pipeline.store))[0] for row in mine])
        assert 10 < pictures.mean() < 200, collection
        assert pictures.std() > 20, collection


def test_the_set_verifies_and_slices_can_be_made_again(pipeline):
    assert verify(pipeline.store).findings == ()
    rows = pq.read_table(Path(pipeline.store.url) / "slices.parquet").to_pylist()
    counts = Counter(row["collection"] for row in rows)
    assert set(counts) == {"acdc", "msd-hippocampus", "chaos", "brats2023", "glioma", "pairs"}
    for collection in ("acdc", "chaos", "pairs"):
        key = next(row["key"] for row in rows if row["collection"] == collection)
        assert trace(pipeline.store, key, pipeline.workspace)["source"]["same_pixels_when_made_again"]


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> list[np.ndarray]:
    """Every fourth slice of the same cases at the 256 pixels of the recipe `paper`, of which the sizes of codecs are told."""
    folder = tmp_path_factory.mktemp("full-size")
    workspace, recipe, store = Workspace(folder / "work"), load_recipe("paper"), Store(str(folder / "shards"))
    run_ingest({"acdc": REAL / "acdc", "msd-hippocampus": REAL / "msd", "brats2023": REAL / "brats"}, workspace)
    run_harmonize(workspace, recipe, 1, lambda _: None)
    write_shards(workspace, store, ShardSpec(recipe), 1, lambda _: None)
    rows = pq.read_table(Path(store.url) / "slices.parquet").to_pylist()[::4]
    return [read_pair(store, row, codec_of(store))[0] for row in rows]


@pytest.mark.parametrize("name", ["png", "zstd"])
def test_codecs_take_no_more_room_than_the_usual_png(full_size, name):
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    usual = sum(len(cv2.imencode(".png", image, options)[1]) for image in full_size)
    ours = sum(len(CODECS[name].encode(image)) for image in full_size)
    print(f"{name}: {ours / usual:.3f} of the usual PNG over {len(full_size)} slices")
    assert {image.shape for image in full_size} == {(256, 256)}
    assert ours < 1.05 * usual
