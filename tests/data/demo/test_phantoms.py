"""Phantoms keep their promises: the same bytes for the same seed, published names, known truth, and breakage as claimed."""

import gzip
import io
import re
import zipfile
from functools import cache
from hashlib import sha256

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from medvar_data.demo import phantoms
from medvar_data.demo.phantoms import CELLS, LAYOUTS, layouts, write_broken, write_phantoms
from medvar_data.demo.phantoms.cine import short_axis
from medvar_data.demo.phantoms.files import APPLE_DOUBLE, store_as
from medvar_data.demo.phantoms.layouts import Order, pick
from medvar_data.demo.phantoms.scanner import paint
from medvar_data.demo.phantoms.shapes import Grid, ellipsoid, field, rotation, space
from medvar_data.demo.phantoms.tissues import mr_table
from medvar_data.errors import Reason, SpecError

SEED = 5
PATIENTS = 2
TWICE = ("heart-mr", "abdomen-mr", "abdomen-ct")  # cells of which two patients are written; one of the others

# The published names, as the reference pages of the collections give them.
NAMES = {
    "acdc": [
        r"^(?:.*/)?(?P<split>training|testing)/(?P<case>patient\d{3})/(?P=case)_frame(?P<frame>\d{2})\.nii(?:\.gz)?$",
        r"^(?:.*/)?(?P<split>training|testing)/(?P<case>patient\d{3})/(?P=case)_frame(?P<frame>\d{2})_gt\.nii(?:\.gz)?$",
        r"^(?:.*/)?(?P<split>training|testing)/(?P<case>patient\d{3})/(?:Info\.cfg|MANDATORY_CITATION\.md)$",
    ],
    "kits23": [
        r"(?:^|/)case_(?P<case>\d{5})/imaging\.nii\.gz$",
        r"(?:^|/)case_(?P<case>\d{5})/segmentation\.nii\.gz$",
    ],
    "chaos": [
        r"(?:^|/)(?P<split>Train|Test)_Sets/CT/(?P<case>\d+)/DICOM_anon/i\d{4},0000b\.dcm$",
        r"(?:^|/)(?P<split>Train|Test)_Sets/CT/(?P<case>\d+)/Ground/liver_GT_\d{3}\.png$",
    ],
    "amos": [
        r"(?:^|/)images(?P<split>Tr|Va|Ts)/amos_(?P<case>0[56]\d{2})\.nii\.gz$",
        r"(?:^|/)labels(?P<split>Tr|Va|Ts)/amos_(?P<case>0[56]\d{2})\.nii\.gz$",
        r"amos22/dataset\.json$",
    ],
    "msd-prostate": [
        r"^(?:.*/)?Task05_Prostate/imagesT[rs]/(?:\._)?(?P<case>[A-Za-z]+_\d+)\.nii\.gz$",
        r"^(?:.*/)?Task05_Prostate/labelsTr/(?:\._)?(?P<case>[A-Za-z]+_\d+)\.nii\.gz$",
        r"Task05_Prostate/dataset\.json$",
    ],
    "msd-lung": [
        r"^(?:.*/)?Task06_Lung/imagesT[rs]/(?:\._)?(?P<case>[A-Za-z]+_\d+)\.nii\.gz$",
        r"^(?:.*/)?Task06_Lung/labelsTr/(?:\._)?(?P<case>[A-Za-z]+_\d+)\.nii\.gz$",
        r"Task06_Lung/dataset\.json$",
    ],
    "mmwhs": [
        r"^(?:.*/)?(?P<mod>ct|mr)_(?P<split>train)/(?P=mod)_(?P=split)_(?P<case>\d{4})_image\.nii(?:\.gz)?$",
        r"^(?:.*/)?(?P<mod>ct|mr)_(?P<split>train)/(?P=mod)_(?P=split)_(?P<case>\d{4})_label\.nii(?:\.gz)?$",
        r"^(?:.*/)?(?P<mod>ct|mr)_(?P<split>test)/(?P=mod)_(?P=split)_(?P<case>\d{4})_image\.nii(?:\.gz)?$",
    ],
    "verse": [
        r"^(?:.*/)?rawdata/sub-(?P<subject>(?:verse|gl)\d+)/sub-(?P=subject)(?:_dir-(?P<dir>ax|sag|cor|iso))?_ct\.nii\.gz$",
        r"^(?:.*/)?derivatives/sub-(?P<subject>verse\d+)/sub-(?P=subject)(?:_dir-(?:ax|sag|cor|iso))?_seg-vert_msk\.nii\.gz$",
        r"^(?:.*/)?derivatives/sub-(?P<subject>verse\d+)/sub-(?P=subject)(?:_dir-(?:ax|sag|cor|iso))?_seg-subreg_ctd\.json$",
    ],
    "spider": [
        r"^(?:.*/)?images/(?P<case>\d+)_(?P<seq>t1|t2|t2_SPACE)\.mha$",
        r"^(?:.*/)?masks/(?P<case>\d+)_(?P<seq>t1|t2|t2_SPACE)\.mha$",
    ],
    "brats2023": [
        r"^(?:.*/)?(?P<case>BraTS-(?P<chal>GLI|MEN)-(?P<patient>\d{5})-(?P<tp>\d{3}))/(?P=case)-(?P<seq>t1n|t1c|t2w|t2f)\.nii\.gz$",
        r"^(?:.*/)?(?P<case>BraTS-(?P<chal>GLI|MEN)-(?P<patient>\d{5})-(?P<tp>\d{3}))/(?P=case)-seg\.nii\.gz$",
    ],
}
FIRST_LABELS = {  # label file of patient 0 and its image, for every collection that writes NIfTI with its true place
    "amos": ("amos22/labelsTr/amos_0507.nii.gz", "amos22/imagesTr/amos_0507.nii.gz"),
    "brats2023": tuple(
        f"ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-000/BraTS-GLI-00000-000-{part}.nii.gz"
        for part in ("seg", "t2f")
    ),
    "mmwhs": ("ct_train/ct_train_1001_label.nii.gz", "ct_train/ct_train_1001_image.nii.gz"),
    "msd-lung": ("Task06_Lung/labelsTr/lung_001.nii.gz", "Task06_Lung/imagesTr/lung_001.nii.gz"),
    "msd-prostate": ("Task05_Prostate/labelsTr/prostate_00.nii.gz", "Task05_Prostate/imagesTr/prostate_00.nii.gz"),
    "verse": (
        "dataset-01training/derivatives/sub-verse500/sub-verse500_dir-ax_seg-vert_msk.nii.gz",
        "dataset-01training/rawdata/sub-verse500/sub-verse500_dir-ax_ct.nii.gz",
    ),
}


@cache
def synthesize(cell, patient, seed, *, moment=0.0):
    """Patients are asked for again and again; none of these tests changes one."""
    return phantoms.synthesize(cell, patient, seed, moment=moment)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Made from the very patients that the tests ask for: to synthesize one costs the most."""
    root = tmp_path_factory.mktemp("phantoms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "synthesize", synthesize)
        folders = write_phantoms(root, seed=SEED, patients=1, broken=False)
        write_phantoms(root, seed=SEED, patients=PATIENTS, cells=TWICE, broken=False)
    return root, folders


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "synthesize", synthesize)
        return root, write_broken(root, seed=SEED)


def members(folder):
    """Content of every file below a folder; archives are opened."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                found |= {f"{name}!/{m}": sha256(archive.read(m)).hexdigest() for m in archive.namelist()}
        else:
            found[name] = sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize(
    ("cells", "patients"),
    [(("heart-mr",), 1), *(pytest.param(c, n, marks=pytest.mark.slow) for c, n in ((TWICE, 1), (None, PATIENTS)))],
    ids=["fewer of one cell", "fewer of three cells", "more of all"],
)
def test_same_seed_same_bytes_whatever_the_number_of_patients(written, tmp_path, cells, patients):
    write_phantoms(tmp_path, seed=SEED, patients=patients, cells=cells, broken=False)
    fewer, more = sorted((members(tmp_path), members(written[0])), key=len)
    for name in fewer:
        if not name.endswith("dataset.json"):  # lists its cases
            assert fewer[name] == more[name], name
    assert 5 < len(fewer) < len(more)


def test_workers_do_not_change_bytes(written, tmp_path):
    _, folders = written
    write_phantoms(tmp_path, seed=SEED, patients=PATIENTS, cells=["heart-mr"], broken=False, workers=2)
    assert members(tmp_path / "acdc") == members(folders["acdc"])


def test_another_seed_or_patient_is_another_person():
    first = synthesize("heart-mr", 0, SEED)
    for other in (synthesize("heart-mr", 0, SEED + 1), synthesize("heart-mr", 5, SEED)):
        assert first.truth != other.truth
        assert not np.array_equal(first.volumes["cine"], other.volumes["cine"])


def test_every_name_is_a_published_name(written, broken):
    for root in (written[0], broken[0]):
        for collection, patterns in NAMES.items():
            names = [n for n in members(root / collection) if n != "CHAOS_Train_Sets.zip"]
            hits = {pattern: sum(bool(re.search(pattern, name)) for name in names) for pattern in patterns}
            for name in names:
                assert sum(bool(re.search(p, name)) for p in patterns) == 1, (collection, name)
            if root == written[0]:
                assert all(hits[p] for p in patterns if "split>test" not in p), (collection, hits)
    assert set(NAMES) == set(LAYOUTS) == set(written[1])


@pytest.mark.parametrize("collection", sorted(FIRST_LABELS))
def test_stored_labels_hold_the_truth(written, collection):
    """Volume and place of each structure, read back through the header, are what was synthesized."""
    label_name, image_name = FIRST_LABELS[collection]
    label = nibabel.load(written[1][collection] / label_name)
    image = nibabel.load(written[1][collection] / image_name)
    cell = CELLS[LAYOUTS[collection].cell]
    phantom = synthesize(LAYOUTS[collection].cell, 0, SEED)
    voxels = np.asarray(label.dataobj)
    assert image.shape[:3] == voxels.shape
    np.testing.assert_allclose(image.affine, label.affine, atol=1e-6)
    voxel_mm3 = abs(np.linalg.det(label.affine[:3, :3]))
    assert set(np.unique(voxels)) - {0} == {cell.labels[name] for name in phantom.truth}
    for name, volume_mm3 in phantom.truth.items():
        inside = voxels == cell.labels[name]
        assert inside.sum() * voxel_mm3 == pytest.approx(volume_mm3, abs=voxel_mm3)
        middle = label.affine @ [*(axis.mean() for axis in np.nonzero(inside)), 1]
        np.testing.assert_allclose(middle[:3], phantom.centres_mm[name], atol=0.01)


def test_spider_masks_hold_the_truth_in_itk_millimetres(written):
    phantom = synthesize("spine-mr", 0, SEED)
    mask = SimpleITK.ReadImage(str(written[1]["spider"] / "masks/1_t2.mha"))
    image = SimpleITK.ReadImage(str(written[1]["spider"] / "images/1_t2.mha"))
    assert image.GetSize() == mask.GetSize()
    np.testing.assert_allclose(image.GetDirection(), mask.GetDirection())
    voxels = SimpleITK.GetArrayFromImage(mask)
    for name in ("vertebra 2", "canal", "disc 2"):
        z, y, x = (axis.mean() for axis in np.nonzero(voxels == CELLS["spine-mr"].labels[name]))
        left, posterior, superior = mask.TransformContinuousIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose((-left, -posterior, superior), phantom.centres_mm[name], atol=0.01)


def test_acdc_lost_its_sform_spacing_and_kept_pixdim(written):
    phantom = synthesize("heart-mr", 0, SEED)
    label = nibabel.load(written[1]["acdc"] / "database/training/patient001/patient001_frame01_gt.nii.gz")
    np.testing.assert_array_equal(label.affine, np.diag([-1, -1, 1, 1]))
    spacing = np.asarray(label.header["pixdim"][1:4])
    np.testing.assert_allclose(spacing, np.linalg.norm(phantom.affine[:3, :3], axis=0), rtol=1e-6)
    for name, value in CELLS["heart-mr"].labels.items():
        volume_mm3 = (np.asarray(label.dataobj) == value).sum() * spacing.prod()
        assert volume_mm3 == pytest.approx(phantom.truth[name], rel=1e-5)
    info = (written[1]["acdc"] / "database/training/patient001/Info.cfg").read_text()
    assert re.search(r"^ED: 1\nES: \d+\nGroup: (NOR|DCM|HCM|MINF|RV)\n", info)


def test_the_left_ventricle_contracts():
    relaxed, contracted = (synthesize("heart-mr", 0, SEED, moment=m).truth for m in (0.0, 1.0))
    ejected = 1 - contracted["left ventricle"] / relaxed["left ventricle"]
    assert 0.4 < ejected < 0.85  # patient 0 is of the group NOR
    assert contracted["myocardium"] == pytest.approx(relaxed["myocardium"], rel=0.25)


def test_a_second_visit_has_the_same_brain_and_a_larger_tumour():
    first, second = (synthesize("brain-mr", 3, SEED, moment=m) for m in (0.0, 1.0))
    assert sum(second.truth.values()) > 1.2 * sum(first.truth.values())
    np.testing.assert_array_equal(first.affine, second.affine)


def test_kits_is_stored_slices_first(written):
    folder = written[1]["kits23"] / "dataset/case_00000"
    image, label = nibabel.load(folder / "imaging.nii.gz"), nibabel.load(folder / "segmentation.nii.gz")
    phantom = synthesize("abdomen-ct", 0, SEED)
    assert nibabel.aff2axcodes(image.affine) == ("I", "P", "L")
    assert image.get_data_dtype() == np.float64
    assert int(image.header["qform_code"]) == 0
    assert not image.affine[:3, 3].any()
    canonical = np.asarray(nibabel.as_closest_canonical(image).dataobj)
    np.testing.assert_array_equal(canonical, phantom.volumes["ct"])
    canonical = np.asarray(nibabel.as_closest_canonical(label).dataobj)
    np.testing.assert_array_equal(canonical, np.where(phantom.label <= 3, phantom.label, 0))


def test_chaos_pairs_by_name_while_z_falls(written):
    with zipfile.ZipFile(written[1]["chaos"] / "CHAOS_Train_Sets.zip") as archive:
        names = sorted(n for n in archive.namelist() if "/CT/1/DICOM_anon/" in n)
        slices = [pydicom.dcmread(io.BytesIO(archive.read(n))) for n in names]
        masks = [
            cv2.imdecode(np.frombuffer(archive.read(n), np.uint8), cv2.IMREAD_UNCHANGED)
            for n in sorted(n for n in archive.namelist() if "/CT/1/Ground/" in n)
        ]
    heights = [float(s.ImagePositionPatient[2]) for s in slices]
    steps = np.diff(heights)
    assert (steps < 0).all()
    assert np.ptp(steps) < 0.001
    assert float(slices[0].SliceThickness) > 1.2 * abs(steps[0])  # the thickness is not the step
    assert {float(s.RescaleIntercept) for s in slices} == {-1000.0}
    assert len({s.SOPInstanceUID for s in slices}) == len(slices) == len(masks)
    assert len({s.SeriesInstanceUID for s in slices}) == 1
    hu = np.stack([s.pixel_array.astype(float) - 1000 for s in slices])
    liver = np.stack(masks) > 0
    assert 70 < hu[liver].mean() < 135
    assert hu[liver].std() < 60
    assert hu[::-1][liver].std() > 100  # the masks in the other order lie beside the liver


def test_oblique_and_flipped_grids_occur(written):
    codes = set()
    for collection, (label_name, _) in FIRST_LABELS.items():
        codes.add(nibabel.aff2axcodes(nibabel.load(written[1][collection] / label_name).affine))
    assert len(codes) >= 2
    options = ("RAS", "LPS", "PIR", "LAS")
    chosen = [pick(options, Order(written[0], patient, 0)) for patient in range(24)]
    assert set(chosen) == set(options)
    tilts = [np.abs(synthesize("prostate-mr", p, SEED).affine[:3, :3]) for p in (0, 1)]
    assert all(np.sort(t, axis=None)[:6].max() > 0.005 for t in tilts)
    assert not np.allclose(tilts[0], tilts[1])


def test_coronal_stacks_lie_under_published_coronal_ids(tmp_path):
    LAYOUTS["amos"].write(Order(tmp_path / "amos", 2, SEED, None))
    coronal = nibabel.load(tmp_path / "amos/amos22/imagesTr/amos_0508.nii.gz")
    axes = [c for c, mm in zip(nibabel.aff2axcodes(coronal.affine), coronal.header.get_zooms(), strict=True) if mm > 4]
    assert axes in (["A"], ["P"])


def test_ct_values_are_hounsfield_units():
    abdomen, heart, chest = (synthesize(cell, 1, SEED) for cell in ("abdomen-ct", "heart-ct", "chest-ct"))
    for phantom in (abdomen, heart, chest):
        hu = phantom.volumes["ct"]
        assert hu.min() >= -1024
        assert hu.max() <= 3071
        np.testing.assert_array_equal(hu, np.rint(hu))
    hu = abdomen.volumes["ct"]
    assert 70 < hu[abdomen.label == CELLS["abdomen-ct"].labels["liver"]].mean() < 135
    assert 90 < np.median(hu[abdomen.label == CELLS["abdomen-ct"].labels["kidney"]]) < 220
    assert hu[0, 0, 0] == -1024  # outside the circle of reconstruction
    assert abs(np.median(hu[:10, 60:80]) + 1000) < 15  # air beside the patient
    labels = CELLS["heart-ct"].labels
    blood = heart.volumes["ct"][heart.label == labels["left ventricle"]].mean()
    muscle = heart.volumes["ct"][heart.label == labels["left ventricular myocardium"]].mean()
    assert 200 < blood < 480
    assert 60 < muscle < 150
    lung = chest.volumes["ct"]
    assert 0.08 < ((lung > -950) & (lung < -650)).mean() < 0.6


def test_mr_is_not_negative_and_skull_stripped_background_is_zero():
    for cell in (name for name, kind in CELLS.items() if kind.modality == "MR"):
        phantom = synthesize(cell, 0, SEED)
        for volume in phantom.volumes.values():
            assert volume.min() >= 0
            assert np.isfinite(volume).all()
            assert volume.dtype == np.float32
    brain = synthesize("brain-mr", 0, SEED)
    outside = brain.volumes["t1n"] == 0
    assert outside[0, 0, 0]
    assert 0.4 < outside.mean() < 0.85
    assert all(np.array_equal(volume == 0, outside) for volume in brain.volumes.values())
    assert not (outside & (brain.label > 0)).any()


def test_each_break_is_what_it_claims(broken):
    root, records = broken
    claims = {
        Reason.TRUNCATED: _cut_short,
        Reason.EMPTY_LABEL: lambda path: not np.asarray(nibabel.load(path).dataobj).any(),
        Reason.NAN_VOXELS: lambda path: np.isnan(nibabel.load(path).get_fdata()).any(),
        Reason.SPACING_DISAGREES: _spacing_disagrees,
        Reason.LABEL_SHAPE: lambda path: _shape(path) != _shape(path.parent.parent / "imagesTr" / path.name),
        Reason.FILE_EMPTY: lambda path: path.stat().st_size == 0,
        Reason.NOT_AN_IMAGE: lambda path: path.read_bytes().startswith(b"<html>"),
        Reason.CONSTANT_IMAGE: lambda path: np.ptp(np.asarray(nibabel.load(path).dataobj)) == 0,
        Reason.MISSING_SLICE: _gap,
        None: _spacing_disagrees,
    }
    assert {record.reason for record in records} == set(claims)
    for record in records:
        assert record.case_hint in record.path
        assert claims[record.reason](root / record.collection / record.path), record


def _cut_short(path):
    with pytest.raises(EOFError):
        gzip.decompress(path.read_bytes())
    return True


def _shape(path):
    return nibabel.load(path).shape[:3]


def _spacing_disagrees(path):
    image = nibabel.load(path)
    return not np.allclose(np.linalg.norm(image.affine[:3, :3], axis=0), image.header["pixdim"][1:4], rtol=0.05)


def _gap(path):
    archive_path, member = str(path).split("!/")
    with zipfile.ZipFile(archive_path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(member.rsplit("/", 1)[0]))
        heights = [float(pydicom.dcmread(io.BytesIO(archive.read(n))).ImagePositionPatient[2]) for n in names]
        masks = [n for n in archive.namelist() if n.startswith(member.split("/DICOM_anon")[0] + "/Ground/")]
    steps = np.abs(np.diff(heights))
    return member not in names and len(masks) == len(names) and steps.max() == pytest.approx(2 * steps.min(), rel=1e-3)


def test_the_canary_reaches_headers_only_when_asked(written, tmp_path):
    canary = "CANARY^MARY"
    write_phantoms(tmp_path, seed=SEED, patients=1, cells=["abdomen-ct"], broken=False, canary=canary)
    with zipfile.ZipFile(tmp_path / "chaos/CHAOS_Train_Sets.zip") as archive:
        dataset = pydicom.dcmread(io.BytesIO(archive.read("Train_Sets/CT/1/DICOM_anon/i0000,0000b.dcm")))
    assert dataset.PatientName == canary
    assert dataset.InstitutionName == canary
    path = "kits23/dataset/case_00000/imaging.nii.gz"
    assert canary.encode() in gzip.decompress((tmp_path / path).read_bytes())
    assert canary.encode() not in gzip.decompress((written[0] / path).read_bytes())


def test_hidden_twins_are_apple_double(written):
    twin = written[1]["msd-lung"] / "Task06_Lung/imagesTr/._lung_001.nii.gz"
    assert twin.read_bytes() == APPLE_DOUBLE
    assert APPLE_DOUBLE[:4] == b"\x00\x05\x16\x07"


def test_a_finer_grid_shows_the_same_heart():
    """Anatomy is a function of millimetres: halving the pixels changes volumes by partial volume only."""
    kind = CELLS["heart-mr"]
    volumes = []
    for factor in (1, 2):
        shape = (kind.shape[0] * factor, kind.shape[1] * factor, kind.shape[2])
        spacing = np.array([kind.spacing_mm[0] / factor, kind.spacing_mm[1] / factor, kind.spacing_mm[2]])
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
        grid, rng = Grid(shape, affine), np.random.default_rng(SEED)
        at = space(grid, rng, warp_mm=2.0)
        layers = short_axis(at, kind.labels, 0.0, "NOR", rng)
        label = paint(layers, grid, {"cine": mr_table("cine", rng)}, rng, multiply=True).label
        volumes.append({name: (label == value).sum() * spacing.prod() for name, value in kind.labels.items()})
    for name in kind.labels:
        assert volumes[1][name] == pytest.approx(volumes[0][name], rel=0.05)


def test_an_ellipsoid_has_its_volume_and_its_distance():
    spacing = np.array([1.0, 1.0, 2.0])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * 39.5
    affine[:3, :3] = rotation((4, -3, 8)) @ affine[:3, :3]
    at = space(Grid((80, 80, 80), affine), np.random.default_rng(0))
    radii = (20.0, 12.0, 25.0)
    for angles in ((0.0, 0.0, 0.0), (20.0, 10.0, -35.0)):
        distance = ellipsoid(at, (1.0, -2.0, 3.0), radii, angles=angles)
        volume = (distance < 0).sum() * spacing.prod()
        assert volume == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.01)
    ball = ellipsoid(at, (0.0, 0.0, 0.0), (15.0, 15.0, 15.0))
    exact = np.sqrt(at.x**2 + at.y**2 + at.z**2) - 15
    np.testing.assert_allclose(ball, exact, atol=0.01)


def test_a_field_is_smooth_of_unit_size_and_independent_of_the_grid():
    coarse, fine = (Grid((40 * f, 40 * f, 20 * f), np.diag([4.0 / f, 4.0 / f, 6.0 / f, 1.0])) for f in (1, 2))
    a, b = (field(grid, np.random.default_rng(3), 18.0) for grid in (coarse, fine))
    assert abs(a.mean()) < 0.3
    assert 0.8 < a.std() < 1.2
    average = b.reshape(40, 2, 40, 2, 20, 2).mean(axis=(1, 3, 5))
    assert np.abs(average - a).max() < 0.12


def test_storing_in_other_axes_keeps_every_voxel_in_place():
    phantom = synthesize("prostate-mr", 0, SEED)
    for codes in ("LPS", "PIR", "ASL"):
        stored = store_as(phantom.label, phantom.affine, codes)
        assert nibabel.aff2axcodes(stored.affine) == tuple(codes)
        index = np.argwhere(stored.voxels)[7]
        position = stored.affine @ [*index, 1]
        back = np.rint(np.linalg.inv(phantom.affine) @ position)[:3].astype(int)
        assert phantom.label[tuple(back)] == stored.voxels[tuple(index)]


def test_labels_are_what_the_cell_names():
    for name in CELLS:
        phantom = synthesize(name, 0, SEED)
        assert phantom.label.max() > 0
        assert set(phantom.truth) <= set(CELLS[name].labels)
        assert phantom.truth.keys() == phantom.centres_mm.keys()
        assert all(volume.shape == phantom.label.shape for volume in phantom.volumes.values())


def test_unknown_cells_are_named(tmp_path):
    with pytest.raises(SpecError, match="knee-mr"):
        write_phantoms(tmp_path, cells=["knee-mr"])
    with pytest.raises(SpecError, match="no patients"):
        write_phantoms(tmp_path, patients=0)


@pytest.mark.parametrize("patient", [6, 7, 9, 31])
def test_a_chest_that_does_not_fill_its_grid_can_be_made(patient: int) -> None:
    assert np.isfinite(next(iter(synthesize("chest-ct", patient, 0).volumes.values()))).all()


@pytest.mark.slow
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_forty_patients_of_every_cell_can_be_made(cell: str) -> None:
    for patient in range(40):
        phantom = synthesize(cell, patient, 0)
        assert phantom.label.any()
        assert all(np.isfinite(voxels).all() for voxels in phantom.volumes.values())
