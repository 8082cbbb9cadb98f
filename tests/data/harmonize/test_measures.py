"""What harmonize measures of a case equals plain counting in its source and its slices; files of earlier versions are made again."""

import dataclasses
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.builders import case_of, scan, small_recipe, spaced

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import load_collection
from medvar_data.catalog.volumes import volume_name
from medvar_data.harmonize.dependencies import wanted_inputs
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.readers.scan import Scan
from medvar_data.records import Geometry, LabelVolume, Volume
from medvar_data.shardset.histograms import edges_of_case
from medvar_data.workspace.case_file import read_case_file, why_to_do, write_kept

ACDC = load_collection("acdc")
IMAGE, LABEL = scan((30, 26, 7), seed=3)
KINDS = {"int16": IMAGE.astype(np.int16), "float32": IMAGE.astype(np.float32) * np.float32(1.37) - np.float32(0.21)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return small_recipe(tmp_path_factory.mktemp("recipe"))


def make(image: np.ndarray, label: np.ndarray | None) -> Scan:
    geometry = Geometry(image.shape, spaced(1.5, 1.25, 4.0))
    labels = None if label is None else LabelVolume(label.astype(np.uint8), geometry, "l" * 64)
    return Scan(Volume(image, geometry, "i" * 64), labels)


def bins_of(voxels: np.ndarray, edges: np.ndarray) -> list[int]:
    reached = [int((voxels.astype(np.float64) >= edge).sum()) for edge in edges]
    return (-np.diff([voxels.size, *reached, 0])).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_they_equal_plain_counting(kind, modality, recipe):
    image = KINDS[kind]
    volume = harmonize(make(image, LABEL), case_of(Path("/"), "x.nii", modality=modality), ACDC, recipe)
    case, found, slices = volume.case, volume.case.measures, volume.slices
    edges = edges_of_case(modality, case.low, case.high)
    assert list(found.histogram_source) == bins_of(image, edges)
    assert list(found.histogram_source_foreground) == bins_of(image[LABEL > 0], edges)
    assert found.clipped_low == (image.astype(np.float64) < case.low).sum() / image.size
    assert found.clipped_high == (image.astype(np.float64) > case.high).sum() / image.size
    pictures, masks = (np.stack([getattr(s, name) for s in slices]) for name in ("image", "mask"))
    assert list(found.histogram_slices) == np.bincount(pictures.reshape(-1), minlength=256).tolist()
    assert list(found.histogram_slices_foreground) == np.bincount(pictures[masks > 0], minlength=256).tolist()
    assert found.foreground_fraction == (masks > 0).sum() / masks.size
    pixel_mm2 = (
        (found.source_rows * case.spacing_row_mm) * (found.source_columns * case.spacing_col_mm) / recipe.side**2
    )
    assert found.foreground_mm2_median == pytest.approx(np.median((masks > 0).sum(axis=(1, 2))) * pixel_mm2, rel=1e-12)
    assert {found.source_rows, found.source_columns} == {30, 26}


def test_a_case_without_label_has_no_foreground(recipe):
    recipe = dataclasses.replace(recipe, unlabelled="keep", unlabelled_min_body_fraction=0.0)
    volume = harmonize(make(KINDS["int16"], None), case_of(Path("/"), "x.nii", label=()), ACDC, recipe)
    found = volume.case.measures
    assert (sum(found.histogram_source_foreground), sum(found.histogram_slices_foreground)) == (0, 0)
    assert (found.foreground_fraction, found.foreground_mm2_median) == (0.0, 0.0)


def test_a_case_file_of_an_earlier_version_is_made_again(tmp_path, recipe):
    case = case_of(tmp_path, "x.nii")
    wanted = wanted_inputs(case, ACDC, recipe)
    path = tmp_path / "case.parquet"
    write_kept(path, harmonize(make(KINDS["int16"], LABEL), case, ACDC, recipe), case, wanted)
    assert why_to_do(path, wanted) == ()
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[b"medvar.case"])
    del note["harmonized"]["measures"]
    note["inputs"]["code"] = "3/4"
    text = json.dumps(note, sort_keys=True).encode()
    digest = sha256(text).hexdigest().encode()
    earlier = table.drop_columns(["image_size", "mask_size"])
    pq.write_table(earlier.replace_schema_metadata({b"medvar.case": text, b"medvar.case_sha256": digest}), path)
    assert read_case_file(path).harmonized.measures is None
    assert why_to_do(path, wanted) == ("code version changed",)


def named(spec: CollectionSpec, layout: str, image: str, **changes) -> str:
    return volume_name(case_of(Path("/"), image, collection=spec.name, layout=layout, **changes), spec)


class TestVolumes:
    def test_sequences_and_frames_of_one_scan_share_a_name(self):
        place = "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00001-{0}/BraTS-GLI-00001-{0}-{1}.nii.gz"
        brats = load_collection("brats2023")
        names = [
            [named(brats, "training", place.format(time, seq)) for seq in ("t1n", "t2f")] for time in ("000", "001")
        ]
        assert names == [["BraTS-GLI-00001-000"] * 2, ["BraTS-GLI-00001-001"] * 2]
        frames = [named(ACDC, "training", f"training/patient001/patient001_frame{n}.nii.gz") for n in ("01", "12")]
        assert frames == ["patient001"] * 2
        chaos = load_collection("chaos")
        inside = named(chaos, "mr-t1-in-train", "Train_Sets/MR/1/T1DUAL/DICOM_anon/InPhase/a.dcm", reader="dicom_png")
        other = named(chaos, "mr-t2-train", "Train_Sets/MR/1/T2SPIR/DICOM_anon/a.dcm", reader="dicom_png")
        assert inside == other == "mr-1"

    def test_channels_of_one_file_share_a_name_and_a_dicom_series_has_its_own(self):
        prostate = load_collection("msd-prostate")
        image = "Task05_Prostate/imagesTr/prostate_00.nii.gz"
        assert {named(prostate, "training", image, channel=n, case=f"c{n}") for n in (0, 1)} == {"prostate_00"}
        assert named(prostate, "training", image, reader="dicom", case="series-1") == "series-1"
        assert named(prostate, "gone", image, case="other-1") == "other-1"
