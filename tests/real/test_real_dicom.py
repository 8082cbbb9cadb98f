"""DICOM of real scanners beside dcm2niix: the same voxels at the same places; what is broken ends with the reason it should.

docs/dicom.md holds the table of what is compared, and explains every difference.
"""

import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from support.dicom_files import cohort_toml

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.errors import CaseRejected, Reason
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.readers.scan import Scan
from medvar_data.records import Ingested
from medvar_data.sources.tree import open_tree

REAL = Path(__file__).parents[3] / "shared" / "real"
DICOM = REAL / "dicom"
AFFINE_MM = 1e-3

pytestmark = [pytest.mark.real, pytest.mark.skipif(not DICOM.is_dir(), reason="the real scans are not here")]

BOTH = parse_collection(
    cohort_toml(more='\n[[layout]]\nid = "ct"\nreader = "dicom"\nmodality = "CT"\nimage = "."\n')
    .replace('roi = "lung.*"', 'roi = "lung.*|liver|purple"')
    .replace('roi = "(spinal', 'roi = "green|(spinal'),
    "test",
    own=True,
)
CT = parse_collection(cohort_toml(modality="CT"), "test", own=True)
VENDORS = [
    "ge/anatomical/001", "siemens/anatomical/001", "philips/anatomical/001", "philips_enhanced/anatomical/001",
    "hitachi/anatomical/001", "hyperfine/anatomical/001", "generic/anatomical/001", "generic/anatomical/002_non_isotropic",
    "generic/compressed/001", "generic/compressed_j2k/001", "generic/compressed_jpeg/001", "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
]  # fmt: skip


@dataclass(frozen=True)
class Theirs:
    """A volume of dcm2niix in canonical orientation."""

    voxels: np.ndarray
    affine: np.ndarray


def found(folder: Path, spec: CollectionSpec = BOTH) -> Ingested:
    return ingest(spec, open_tree(folder), b"salt")


def reasons(folder: Path, spec: CollectionSpec = BOTH) -> list[Reason]:
    return [reject.reason for reject in found(folder, spec).rejects]


def converted(folder: Path, out: Path) -> list[Theirs]:
    """Every volume that dcm2niix makes of a folder; of Philips by the standard's rescaling, not by its private one."""
    program = pytest.importorskip("dcm2niix").bin_path
    command = [str(program), "-z", "n", "-b", "n", "-f", "%s_%t_%e", "-o", str(out)]
    command += ["-p", "n"] if "philips" in str(folder) else []
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    volumes = []
    for path in sorted(out.glob("*.nii")):
        image = nib.as_closest_canonical(nib.load(path))
        voxels = np.asarray(image.dataobj, dtype=np.float64)
        volumes += [Theirs(v, image.affine) for v in (np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else [voxels])]
    return volumes


def canonical(scan: Scan) -> Theirs:
    image = nib.Nifti1Image(scan.image.voxels.astype(np.float64), scan.image.geometry.affine)
    image = nib.as_closest_canonical(image)
    return Theirs(np.asarray(image.dataobj), image.affine)


def assert_same(mine: list[Theirs], theirs: list[Theirs]) -> None:
    """One volume for one volume, in whatever order, voxel for voxel and within a thousandth of a millimetre."""
    assert len(mine) == len(theirs)
    for one in mine:
        alike = [
            other
            for other in theirs
            if other.voxels.shape == one.voxels.shape and np.allclose(one.voxels, other.voxels, rtol=1e-5, atol=1e-3)
        ]
        assert alike, "dcm2niix has no such voxels"
        assert min(np.abs(one.affine - other.affine).max() for other in alike) < AFFINE_MM


@pytest.mark.parametrize("name", VENDORS)
def test_vendors_as_dcm2niix_reads_them(tmp_path, name):
    result = found(DICOM / "vendors" / name)
    assert result.rejects == ()
    assert_same(
        [canonical(read_scan(case, BOTH)) for case in result.cases], converted(DICOM / "vendors" / name, tmp_path)
    )


@pytest.mark.parametrize("name", ["dcm_qa_nih/In/20180918GE", "dcm_qa_philips/In"])
def test_time_series_as_dcm2niix_reads_them(tmp_path, name):
    """GE numbers its sweeps and says nothing of time; Philips says the time."""
    result = found(DICOM / name)
    assert [case.sequence for case in result.cases] == [f"time{n}" for n in range(1, len(result.cases) + 1)]
    assert_same([canonical(read_scan(case, BOTH)) for case in result.cases], converted(DICOM / name, tmp_path))


def test_prostate_as_dcm2niix_reads_it(tmp_path):
    """T2 and the calculated high-b trace are kept, ADC only on demand; dcm2niix converts all three."""
    folder = DICOM / "prostatex" / "ProstateX-0000"
    result = found(folder)
    assert len(result.cases) == 2
    assert len({case.group for case in result.cases}) == 1
    assert [reject.reason for reject in result.rejects] == [Reason.DERIVED_MAP]
    spec = parse_collection(cohort_toml(more="derived = true\n"), "test", own=True)
    again = found(folder, spec)
    assert_same([canonical(read_scan(case, spec)) for case in again.cases], converted(folder, tmp_path))


def test_ct_but_for_its_padding(tmp_path):
    """-3024 HU outside the field of view becomes -1024; every other voxel is dcm2niix's."""
    folder = DICOM / "dcmqi-seg" / "ct-3slice"
    (case,) = found(folder).cases
    scan = read_scan(case, BOTH)
    assert scan.image.steps == ("padding_replaced",)
    (theirs,) = converted(folder, tmp_path)
    assert (theirs.voxels == -3024).any()
    theirs.voxels[theirs.voxels == -3024] = -1024
    assert_same([canonical(scan)], [theirs])


def test_a_leaning_gantry_is_straightened_onto_a_grid_of_the_same_size(tmp_path):
    """Pixels are noise here; tests/data/test_dicom_voxels.py holds a ball against the truth."""
    folder = DICOM / "vendors" / "failing" / "gantrytilting"
    (case,) = found(folder).cases
    scan = read_scan(case, BOTH)
    assert scan.image.steps == ("untilted",)
    straight = [v for v in converted(folder, tmp_path) if v.voxels.shape == canonical(scan).voxels.shape]
    assert len(straight) == 1
    assert np.allclose(canonical(scan).affine[:3, :3], straight[0].affine[:3, :3], atol=AFFINE_MM)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vendors/failing/sliceincrement", [Reason.MISSING_SLICE]),
        ("vendors/failing/slicecount", [Reason.TOO_FEW_SLICES]),
        ("vendors/failing/notavolume", [Reason.TOO_FEW_SLICES]),
        ("vendors/failing/sliceorientation", [Reason.LOCALIZER] * 2),
        ("vendors/ge/anatomical/001_single_slice", [Reason.TOO_FEW_SLICES]),
        ("dupe-positions", [Reason.DUPLICATE_POSITION]),
        ("prostatex/ProstateX-missing-slice", [Reason.MISSING_SLICE]),
        ("dcm_qa_nih/In/20180918Si", [Reason.DIMENSIONS] * 4),
    ],
)
def test_what_is_broken_ends_with_its_reason(name, wanted):
    result = found(DICOM / name)
    assert [reject.reason for reject in result.rejects] == wanted
    assert result.cases == ()


def test_an_mr_that_calls_itself_ct():
    """Asked for MR it is of another modality; asked for CT its values give it away."""
    mr = parse_collection(cohort_toml(), "test", own=True)
    assert reasons(DICOM / "wrong-modality-tag", mr) == [Reason.WRONG_MODALITY]
    (case,) = found(DICOM / "wrong-modality-tag", CT).cases
    with pytest.raises(CaseRejected) as caught:
        read_scan(case, CT)
    assert caught.value.reason is Reason.NOT_HU


def test_segmentations_equal_the_label_maps_they_were_made_from():
    """dcmqi made its SEG objects from NRRD files; two of the five overlapping segments are asked for."""
    folder = DICOM / "dcmqi-seg"
    (case,) = found(folder).cases
    assert len(case.label) == 2
    label = read_scan(case, BOTH).label.voxels
    parts = {
        name: sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}.nrrd"))).transpose(2, 1, 0)
        for name in ("liver_seg", "partial_overlaps-1", "partial_overlaps-2", "partial_overlaps-3")
    }
    ours = [label, label[:, :, ::-1]]  # along z either way
    liver = parts["liver_seg"] > 0
    overlaps = [parts[f"partial_overlaps-{n}"] for n in (1, 2, 3)]
    green, purple = (np.any([part == value for part in overlaps], axis=0) for value in (1, 3))
    wanted = np.where(green, 2, np.where(liver | purple, 1, 0))
    assert any(np.array_equal(one, wanted) for one in ours)


@pytest.mark.slow
def test_a_chest_from_its_archive_with_its_structure_set():
    """LUNG1-001: lungs of a plausible size that hold air, a cord that holds none; GTV-1 is not asked for."""
    (case,) = found(DICOM / "LUNG1-001.zip", CT).cases
    assert (len(case.image), len(case.label)) == (134, 1)
    scan = read_scan(case, CT)
    assert scan.image.geometry.shape == (512, 512, 134)
    litre = np.abs(np.linalg.det(scan.image.geometry.affine[:3, :3])) / 1e6
    lung, cord = (scan.label.voxels == value for value in (1, 2))
    assert 4.0 < lung.sum() * litre < 6.5
    assert 0.02 < cord.sum() * litre < 0.08
    assert scan.image.voxels[lung].mean() < -700
    assert 0 < scan.image.voxels[cord].mean() < 80


def unpacked(archive: Path, folder: Path, suffix: str) -> Path:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if name.endswith(suffix):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(file.read(name))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LUNG1-001.zip", "CHAOS_Train_Sets.zip"])
def test_full_ct_as_dcm2niix_reads_it(tmp_path, name):
    archive = DICOM / name if name.startswith("LUNG") else REAL / "chaos" / name
    spec = CT if name.startswith("LUNG") else load_collection("chaos")
    (case,) = ingest(spec, open_tree(archive), b"salt").cases
    folder = unpacked(archive, tmp_path / "in", ".dcm")
    (tmp_path / "out").mkdir()
    assert_same([canonical(read_scan(case, spec))], converted(folder, tmp_path / "out"))


def test_the_masked_liver_of_chaos():
    """141 +/- 34 HU, as measured elsewhere in file-name order; a mirrored or reversed mask gives less and spreads more."""
    spec = load_collection("chaos")
    (case,) = ingest(spec, open_tree(REAL / "chaos"), b"").cases
    scan = read_scan(case, spec)
    liver = scan.image.voxels[scan.label.voxels > 0]
    assert liver.mean() == pytest.approx(141, abs=1)
    assert liver.std() == pytest.approx(34, abs=1)
