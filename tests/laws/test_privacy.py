"""The canary: a rare string where scanners and users write names is found in no output, table, picture, log or error."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk
from pydicom.config import disable_value_validation
from support.builders import (
    acdc_tree,
    chaos_members,
    ct_stack,
    nifti_bytes,
    pairs_toml,
    recipe_file,
    scan,
    write_files,
    write_zip,
)
from support.dicom_files import (
    cohort_toml,
    enhanced,
    fill_identities,
    image,
    segmentation,
    slices,
    structure_set,
    volume,
)

from medvar_data.catalog.recipe import load_recipe
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

DRIVER = """import json, sys
import pyarrow.parquet as pq
from medvar_cli.main import data
for arguments in json.loads(sys.argv.pop()):
    if arguments[-1] == "THE FIRST KEY":
        arguments[-1] = pq.read_table(arguments[-2] + "/slices.parquet")["key"][0].as_py()
    sys.argv[1:] = arguments
    try:
        data()
    except SystemExit as left:
        print(f"[{arguments[0]} left with {left.code}]")
"""
CANARY = "Zyxwquagga"
BIRTH = "19470913"
UID = "1.2.826.0.1.3680043.8.498.7391739173917"
PLACEHOLDER = "1234567890"  # as long as the canary, which no writer puts where a number belongs
SECRETS = (CANARY.lower(), BIRTH, UID, UID.rsplit(".", 1)[1])
DICOM_TAGS = {
    "PatientName": f"{CANARY}^Jane", "PatientID": f"{CANARY}-17", "PatientBirthDate": BIRTH, "InstitutionName": f"{CANARY} Hospital",
    "StudyDescription": f"{CANARY} liver", "SeriesDescription": f"{CANARY} series", "AccessionNumber": CANARY,
    "ReferringPhysicianName": f"{CANARY}^Doctor", "OperatorsName": CANARY, "PatientAddress": f"{CANARY} street",
    "StudyInstanceUID": UID, "SeriesInstanceUID": f"{UID}.1", "FrameOfReferenceUID": f"{UID}.2", "ImageComments": CANARY,
    "ProtocolName": CANARY, "StationName": CANARY, "DeviceSerialNumber": CANARY, "PatientComments": CANARY,
}  # fmt: skip
NIFTI_TEXTS = {"descrip": f"{CANARY} {BIRTH}".encode(), "aux_file": CANARY.encode(), "intent_name": CANARY.encode()}


@dataclass
class Run:
    """One canary pipeline: its folders and everything that the commands printed."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def do(self, *commands: tuple[str, ...]) -> list[str]:
        """Run commands one after the other in a process of their own; returns their exit codes."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(commands)], capture_output=True, text=True, timeout=240
        )
        self.said += [done.stdout, done.stderr]
        codes = re.findall(r"^\[\w+ left with (\w+)\]$", done.stdout, re.MULTILINE)
        assert len(codes) == len(commands), done.stderr
        return codes


def sources(root: Path) -> dict[str, Path]:
    """Downloads of every kind, sound and broken, with the canary wherever a name can stand."""
    acdc_tree(root / "acdc", patients=4, texts=NIFTI_TEXTS)
    (root / "acdc/database/training/patient001/Info.cfg").write_text(f"Name: {CANARY}\n")
    write_zip(root / "chaos" / "CHAOS_Train_Sets.zip", chaos_members(1, 5, extra=DICOM_TAGS))
    second = chaos_members(2, 5, extra=DICOM_TAGS)
    dicoms = sorted(n for n in second if n.endswith(".dcm"))
    second.pop(dicoms[2])
    second.pop(sorted(n for n in second if n.endswith(".png"))[2])
    third = chaos_members(3, 4, extra=DICOM_TAGS)
    third[sorted(n for n in third if n.endswith(".dcm"))[1]] = f"not DICOM {CANARY}".encode() * 50
    fourth = chaos_members(4, 4, extra={**DICOM_TAGS, "PixelSpacing": None})
    write_files(root / "chaos", {**second, **third, **fourth})

    image, label = scan((20, 18, 4), 1)
    ones = (label > 0).astype("u1")
    name = f"{CANARY}_{BIRTH}"
    good = nifti_bytes(image, texts=NIFTI_TEXTS)
    files = {
        f"{name}/{name}_a_image.nii": good, f"{name}/{name}_a_label.nii": nifti_bytes(ones, texts=NIFTI_TEXTS),
        f"{UID}_image.nii": good, f"{UID}_label.nii": nifti_bytes(ones),
        f"{name}_text_image.nii": f"{CANARY}".encode() * 99,
        f"{name}_empty_image.nii": b"",
        f"{name}_cut_image.nii": good[:2000],
        f"{name}_shape_image.nii": good, f"{name}_shape_label.nii": nifti_bytes(ones[:, :, :2]),
        f"{name}_value_image.nii": good, f"{name}_value_label.nii": nifti_bytes(ones * 77),
        f"{name}_lone_label.nii": nifti_bytes(ones),
        f"x/{name}_twice_image.nii": good, f"y/{name}_twice_image.nii": good,
    }  # fmt: skip
    write_files(root / "own", files)
    with zipfile.ZipFile(root / "own" / f"{name}.zip", "w") as archive:
        archive.writestr(f"../{name}_image.nii", good)
    (root / "own" / f"{name}_cut.zip").write_bytes(b"PK\x03\x04" + CANARY.encode())
    (root / "own.toml").write_text(pairs_toml(name="own", suffix="nii"))

    itk = sitk.GetImageFromArray(image.T.copy())
    itk.SetMetaData("PatientName", CANARY)
    itk.SetMetaData("comment", f"{CANARY} {BIRTH}")
    (root / "itk").mkdir()
    for suffix in ("mha", "nrrd"):
        sitk.WriteImage(itk, str(root / "itk" / f"{name}_{suffix}_image.{suffix}"))
    (root / "itk" / f"{name}_cut_image.mha").write_bytes((root / "itk" / f"{name}_mha_image.mha").read_bytes()[:900])
    (root / "itk" / f"{name}_text_image.nrrd").write_bytes(CANARY.encode() * 40)
    (root / "itk.toml").write_text(pairs_toml(name="itk", suffix="(?:mha|nrrd)"))
    write_cohort(root / "cohort")
    (root / "cohort.toml").write_text(cohort_toml(more='sequences = { "zyx" = "a scan" }\n', modality="CT"))
    return {
        "acdc": root / "acdc", "chaos": root / "chaos", str(root / "own.toml"): root / "own", str(root / "itk.toml"): root / "itk",
        str(root / "cohort.toml"): root / "cohort",
    }  # fmt: skip


def write_cohort(root: Path) -> None:
    """A hospital's export: every attribute that can hold words, a date or a UID holds the canary, and so do names of files."""
    mask = np.zeros((6, 32, 32), dtype=bool)
    mask[1:5, 8:24, 8:24] = True
    square = np.array([[8, 8], [24, 8], [24, 24], [8, 24]])
    body = ct_stack(6)[0]

    def scan_of(study: int, series: int, heights: Sequence[float] = (), **more: object) -> dict[str, bytes]:
        prefix = f"{study}-{series}-"
        return slices(body, study=study, series=series, modality="CT", prefix=prefix, heights=heights, **more)

    files = scan_of(1, 1) | scan_of(2, 1) | scan_of(3, 1) | scan_of(4, 1) | scan_of(5, 1)
    files["rt"] = structure_set(
        {
            "Lung-Left": [np.column_stack([square, np.full(4, 2.0 * k)]) for k in range(1, 5)],
            f"{CANARY} tumour": [],
            BIRTH: [],
        }
    )
    files["seg"] = segmentation({"cord": mask, f"{CANARY} node": ~mask}, study=2)
    files["rt3"] = structure_set({f"{CANARY} tumour": [np.column_stack([square, np.full(4, 2.0)])]}, study=3)
    files["seg4"] = segmentation({"cord": mask}, study=4, origin=(0.5, 0, 0))
    files["lone"] = segmentation({f"{CANARY} cord": mask}, study=1, series=77)
    files |= (
        scan_of(1, 2, (0, 2, 4, 8, 10, 12)) | scan_of(1, 3, (0, 2, 4, 4, 6, 8)) | scan_of(1, 4, (0, 2, 4.7, 6, 8, 9))
    )
    files |= scan_of(1, 5, ImageType=["DERIVED", "PRIMARY", "MPR"]) | scan_of(
        1, 6, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    files |= scan_of(1, 7, SOPClassUID="1.2.840.10008.5.1.4.1.1.7") | scan_of(1, 8, Modality="PT")
    files |= scan_of(1, 9, AcquisitionNumber=1) | {
        f"{name}b": data for name, data in slices(body, series=9, modality="CT", first=7, AcquisitionNumber=2).items()
    }
    files |= scan_of(1, 11, StudyInstanceUID=PLACEHOLDER) | scan_of(1, 12, EchoTime=PLACEHOLDER)
    files["one"] = image(body[0], (0, 0, 0), modality="CT", series=10)
    files["enhanced"] = enhanced(volume(4), [(0, 0, 2.0 * k) for k in range(4)], [{}] * 4, series=13)
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the canary is no valid URL
        filled = {name: fill_identities(data, CANARY, BIRTH, UID) for name, data in files.items()}
    sound = filled["1-1-0002"]
    filled["cut.dcm"] = sound[:9000]
    filled["text.dcm"] = CANARY.encode() * 40
    filled["empty.dcm"] = b""
    filled["notes.txt"] = CANARY.encode()
    for n in range(1, 7):  # numbers and UIDs that are words, of which pydicom says so aloud; and pixels cut short
        series, echo = filled[f"1-11-{n:04d}"], filled[f"1-12-{n:04d}"]
        filled[f"1-11-{n:04d}"] = series.replace(PLACEHOLDER.encode(), CANARY.encode())
        filled[f"1-12-{n:04d}"] = echo.replace(PLACEHOLDER.encode(), CANARY.encode())
        filled[f"cut{n}"] = filled.pop(f"5-1-{n:04d}")[:-900]
    write_files(root, {f"{CANARY}/{BIRTH}_{name}": data for name, data in filled.items()})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("canary")
    run = Run(folder)
    pairs = [f"{name}={path}" for name, path in sources(folder).items()]
    work, shards, recipe = str(folder / "work"), str(folder / "shards"), str(recipe_file(folder))
    for name in (f"{CANARY}.{BIRTH}.dat", f"a.{CANARY}", f"{UID}"):
        write_files(folder / "nothing", {name: b"x"})
    harmonize = ("harmonize", "-w", work, "--recipe", recipe, "--workers", "1")
    codes = run.do(
        ("ingest", *pairs, "-w", work),
        ("ingest", *pairs, "-w", work, "--json"),
        (*harmonize, "--dry-run"),
        harmonize,
        (*harmonize, "--json"),
        ("shard", "-w", work, shards, "--recipe", recipe, "--workers", "1"),
        ("stats", shards),
        ("stats", shards, "--json"),
        ("verify", shards),
        ("sheets", shards, str(folder / "sheets")),
        ("describe", str(folder / "own.toml")),
        ("trace", shards, "THE FIRST KEY"),
        ("trace", "--json", shards, "THE FIRST KEY"),
        ("ingest", f"acdc={folder / 'nothing'}", "-w", str(folder / "work2")),
    )
    assert codes == ["0"] * 13 + ["2"], run.said
    return run


def texts_of(path: Path) -> str:
    """All that can be read in a file: its bytes, its decompressed tables, its members and their names."""
    data = path.read_bytes()
    found = [path.name, data.decode("latin-1")]
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        found += [json.dumps(table.to_pylist(), default=str), str(table.schema.metadata)]
        out = io.StringIO()
        csv.writer(out).writerows(table.to_pandas().itertuples())
        found.append(out.getvalue())
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                found += [member.name, str(member.get_info()), archive.extractfile(member).read().decode("latin-1")]
    return "\n".join(found).lower()


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text.lower()]


def test_the_canary_is_in_the_sources(run):
    """Else the search below would prove nothing."""
    spilled = "\n".join(texts_of(p) for p in run.folder.rglob("*") if p.is_file() and "work" not in p.parts)
    assert leaks(spilled) == list(SECRETS)


def test_every_kind_of_reject_was_met(run):
    reasons = set(pq.read_table(run.folder / "shards" / "rejects.parquet")["reason"].to_pylist())
    wanted = {
        "not_an_image", "file_empty", "truncated", "label_shape", "label_values", "label_without_image", "duplicate_case",
        "unsafe_archive", "archive_unreadable", "missing_slice", "mixed_series", "unreadable", "duplicate_position",
        "uneven_spacing", "derived_map", "localizer", "secondary_capture", "wrong_modality", "too_few_slices", "label_geometry",
    }  # fmt: skip
    assert wanted <= reasons


def test_cases_of_every_source_were_kept(run):
    kept = pq.read_table(run.folder / "shards" / "cases.parquet")["collection"].to_pylist()
    assert set(kept) == {"acdc", "chaos", "own", "itk", "cohort"}


def test_nothing_in_the_shard_set(run):
    files = [p for p in (run.folder / "shards").rglob("*") if p.is_file()]
    assert len(files) >= 8
    for path in files:
        assert leaks(texts_of(path)) == [], path.name
        assert str(run.folder).lower() not in texts_of(path), path.name


def test_nothing_in_the_contact_sheets(run):
    files = list((run.folder / "sheets").iterdir())
    assert files
    for path in files:
        assert leaks(texts_of(path)) == []


def test_nothing_was_said(run):
    assert len("".join(run.said)) > 2000
    assert leaks("\n".join(run.said)) == []


def test_case_files_rejects_and_patients_in_the_workspace_are_hashed(run):
    """The workspace holds source paths and is private; but names of its files, keys and details must be shareable."""
    work = run.folder / "work"
    for path in work.rglob("*"):
        assert leaks(path.name) == []
        if path.name.endswith(".rejects.parquet"):
            assert leaks(texts_of(path)) == []
        if path.parent.parent.name == "harmonized":
            assert leaks(texts_of(path)) == []
            assert str(run.folder).lower() not in texts_of(path)


def test_of_a_dicom_header_nothing_but_paths_is_in_the_workspace(run):
    """The workspace says where a cohort's files lie, and that is all it takes from them."""
    work = run.folder / "work"
    rows = pq.read_table(work / "ingest" / "cohort.parquet").to_pylist()
    assert len(rows) >= 6
    assert {bool(row["label"]) for row in rows} == {True, False}
    for row in rows:
        assert leaks(json.dumps(row["image"])) != []
        assert leaks(json.dumps({k: v for k, v in row.items() if k not in ("root", "image", "label")})) == []
    for path in (work / "harmonized" / "cohort").iterdir():
        note = json.loads(pq.read_schema(path).metadata[b"medvar.case"])
        assert note["case"] in {row["case"] for row in rows}
        assert leaks(json.dumps(note)) == []
        assert leaks(json.dumps(pq.read_table(path).to_pylist(), default=str)) == []
    for path in (*(work / "ingest").glob("cohort.*json"), *(work / "ingest").glob("cohort.rejects*")):
        assert leaks(texts_of(path)) == []


def test_patients_are_salted(run, tmp_path):
    """The same sources in another workspace give other patients: without the salt nobody can test a guess."""
    patients = set(pq.read_table(run.folder / "shards" / "cases.parquet")["patient"].to_pylist())
    assert all(re.fullmatch(r"[0-9a-f]{16}", p) for p in patients)
    shutil.copytree(run.folder / "work", tmp_path / "work")
    (tmp_path / "work" / "salt").unlink()
    spec = ShardSpec(load_recipe(str(run.folder / "small.toml")))
    write_shards(Workspace(tmp_path / "work"), Store(str(tmp_path / "s")), spec, 1, lambda _: None)
    others = set(pq.read_table(tmp_path / "s" / "cases.parquet")["patient"].to_pylist())
    assert len(patients) == len(others)
    assert patients.isdisjoint(others)


def test_the_salt_is_for_its_owner_alone(run):
    assert (run.folder / "work" / "salt").stat().st_mode & 0o077 == 0
    salt = (run.folder / "work" / "salt").read_text().strip()
    for path in (run.folder / "shards").iterdir():
        assert salt not in texts_of(path)
    assert salt not in "\n".join(run.said)
