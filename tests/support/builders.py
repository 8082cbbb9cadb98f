"""Make tiny scans and downloads in code: deterministic, a few kilobytes each, every voxel known."""

import gzip
import json
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import parse_collection
from medvar_data.catalog.recipe import Recipe, load_recipe
from medvar_data.records import Case

SMALL_RECIPE = """extends = "paper"
name = "small"
side = {side}
body_min_voxels = 20
body_min_mm3 = 20.0
body_slice_min_pixels = 4
body_slice_min_mm2 = 4.0
body_opening_mm = 0.0
label_min_voxels = 3
label_min_mm3 = 3.0
label_slice_min_pixels = 2
label_slice_min_mm2 = 2.0
"""

PAIRS_TOML = """name = "{name}"
title = "Pairs of files"
region = "brain"
modality = "MR"
slice_axis = "axial"

[[layout]]
id = "pairs"
image = '(?:^|/)(?P<case>[^/]+)_image\\.{suffix}$'
label = '(?:^|/)(?P<case>[^/]+)_label\\.{suffix}$'
pair_on = ["case"]
case = "{{case}}"
group = "{{case}}"
{more}
[[label]]
value = 1
id = 1
name = "one"

[[label]]
value = [5, 6]
id = 2
name = "two"
"""


def ball(
    shape: Sequence[int], centre: Sequence[float], radius: float, step: Sequence[float] = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """Boolean ball; centre in voxels, radius and step in mm."""
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return sum(((a - c) * s) ** 2 for a, c, s in zip(axes, centre, step, strict=True)) <= radius**2


def scan(shape: Sequence[int] = (24, 20, 5), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A textured body in air with labels 1, 2, 3 side by side in it: int16 image and uint8 label, [i, j, k]."""
    rng = np.random.default_rng((seed, 7))
    i, j, _ = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    x, y = i / (shape[0] - 1) - 0.5, j / (shape[1] - 1) - 0.5
    body = (x / 0.45) ** 2 + (y / 0.42) ** 2 <= 1
    image = np.where(body, rng.integers(200, 900, size=tuple(shape)), 0).astype(np.int16)
    label = np.zeros(tuple(shape), dtype=np.uint8)
    heart = (x / 0.3) ** 2 + (y / 0.3) ** 2 <= 1
    label[heart] = 1
    label[heart & (x > -0.08)] = 2
    label[heart & (x > 0.1)] = 3
    return image, label


def nifti_bytes(
    voxels: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    pixdim: Sequence[float] | None = None,
    slope: float = 1.0,
    inter: float = 0.0,
    second: bool = False,
    big_endian: bool = False,
    sform_code: int = 1,
    texts: Mapping[str, bytes] | None = None,
) -> bytes:
    """NIfTI file content, written field by field so that nothing is repaired on the way."""
    affine = np.eye(4) if affine is None else affine
    order = ">" if big_endian else "<"
    header = (nib.Nifti2Header if second else nib.Nifti1Header)(endianness=order)
    stored = voxels.astype(voxels.dtype.newbyteorder(order))
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(voxels.shape)
    zooms = pixdim if pixdim is not None else np.linalg.norm(affine[:3, :3], axis=0)
    header["pixdim"][1:4] = zooms
    header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]
    header["sform_code"] = sform_code
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["vox_offset"] = 544 if second else 352
    for name, text in (texts or {}).items():
        header[name] = text
    return header.binaryblock + bytes(4) + stored.tobytes(order="F")


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, **options: Any) -> Path:
    """Write NIfTI; gzip without a time stamp where the name says so."""
    data = nifti_bytes(voxels, affine, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 6, mtime=0) if path.name.endswith(".gz") else data)
    return path


def spaced(*steps: float) -> np.ndarray:
    return np.diag([*steps, 1.0])


def acdc_tree(
    root: Path, patients: int = 4, shape: Sequence[int] = (24, 20, 5), texts: Mapping[str, bytes] | None = None
) -> Path:
    """The published ACDC folders, quirk of the one-millimetre sform included."""
    steps = (1.5, 1.5, 10.0)
    for patient in range(1, patients + 1):
        for frame in (1, 10):
            image, label = scan(shape, seed=100 * patient + frame)
            folder = root / "database" / "training" / f"patient{patient:03d}"
            stem = f"patient{patient:03d}_frame{frame:02d}"
            quirk = np.diag([-1.0, -1.0, 1.0, 1.0])
            write_nifti(folder / f"{stem}.nii.gz", image, quirk, pixdim=steps, texts=texts)
            write_nifti(folder / f"{stem}_gt.nii.gz", label, quirk, pixdim=steps, texts=texts)
    return root


def msd_tree(root: Path, cases: int = 2, shape: Sequence[int] = (16, 14, 6), channels: int = 4) -> Path:
    """Task01_BrainTumour of the Decathlon: four channels in the fourth dimension, AppleDouble twins, dataset.json."""
    task = root / "Task01_BrainTumour"
    rows = []
    for number in range(1, cases + 1):
        parts = [scan(shape, seed=number * 10 + c) for c in range(channels)]
        name = f"BRATS_{number:03d}.nii.gz"
        write_nifti(task / "imagesTr" / name, np.stack([image for image, _ in parts], axis=-1))
        write_nifti(task / "labelsTr" / name, parts[0][1])
        for folder in ("imagesTr", "labelsTr"):
            (task / folder / f"._{name}").write_bytes(b"\0\5\26\7" + bytes(100))
        rows.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    labels = {"0": "background", "1": "oedema", "2": "non-enhancing tumour", "3": "enhancing tumour"}
    listing = {"training": rows, "test": [], "labels": labels}
    (task / "dataset.json").write_text(json.dumps(listing))
    return root


def brats_tree(root: Path, patients: int = 2, points: int = 2, labelled: bool = True) -> Path:
    """BraTS 2023 folders: four sequences, one segmentation, several time points a patient."""
    base = root / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    for patient in range(patients):
        for point in range(points):
            case = f"BraTS-GLI-{patient:05d}-{point:03d}"
            for n, sequence in enumerate(("t1n", "t1c", "t2w", "t2f")):
                image, label = scan((16, 14, 6), seed=patient * 100 + point * 10 + n)
                write_nifti(base / case / f"{case}-{sequence}.nii.gz", image)
            if labelled:
                write_nifti(base / case / f"{case}-seg.nii.gz", label)
    return root


def dicom_bytes(
    pixels: np.ndarray,
    position: Sequence[float],
    *,
    number: int = 1,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: Sequence[float] = (1.0, 1.0),
    intercept: float = -1024.0,
    slope: float = 1.0,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """One CT slice as DICOM: [row, column] uint16 pixels at a position (LPS, mm)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.InstanceNumber = number
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelSpacing = [float(v) for v in spacing]
    dataset.ImagePositionPatient = [float(v) for v in position]
    dataset.ImageOrientationPatient = [float(v) for v in orientation]
    dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
    for name, value in (extra or {}).items():
        setattr(dataset, name, value)
    dataset.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def ct_stack(n_slices: int = 6, side: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [z, row, column] uint16 (HU + 1024) of a trunk with a liver of 140 HU, and the liver's mask."""
    rng = np.random.default_rng((seed, 11))
    rows, columns = np.mgrid[:side, :side] / (side - 1) - 0.5
    trunk = (rows / 0.35) ** 2 + (columns / 0.45) ** 2 <= 1
    pixels, masks = [], []
    for z in range(n_slices):
        liver = (rows / 0.2) ** 2 + ((columns + 0.15) / (0.12 + 0.01 * z)) ** 2 <= 1
        hu = np.where(trunk, 40, -1000) + np.where(liver, 100, 0) + rng.integers(-5, 6, trunk.shape)
        pixels.append(np.clip(hu + 1024, 0, None))
        masks.append(liver)
    return np.array(pixels, dtype=np.uint16), np.array(masks)


def png_bytes(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def chaos_members(case: int = 1, n_slices: int = 6, extra: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Files of one CHAOS CT case by their published path: z falls while the file's number rises."""
    pixels, masks = ct_stack(n_slices, seed=case)
    members = {}
    for z in range(n_slices):
        base = f"Train_Sets/CT/{case}"
        position = (-16.0, -16.0, 100.0 - 2.0 * z)
        members[f"{base}/DICOM_anon/i{z:04d},0000b.dcm"] = dicom_bytes(pixels[z], position, number=z, extra=extra)
        members[f"{base}/Ground/liver_GT_{z:03d}.png"] = png_bytes(masks[z].astype(np.uint8) * 255)
    return members


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def write_files(root: Path, members: Mapping[str, bytes]) -> Path:
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pairs_toml(name: str = "own", suffix: str = r"nii\.gz", more: str = "", top: str = "") -> str:
    """A user's own collection of `<case>_image` and `<case>_label` files; labels 1 -> 1 and 5, 6 -> 2."""
    text = PAIRS_TOML.format(name=name, suffix=suffix, more=more)
    return text.replace("\n[[layout]]", f"{top}\n[[layout]]", 1)


def pairs_spec(**options: str) -> CollectionSpec:
    return parse_collection(pairs_toml(**options), "test", own=True)


def recipe_file(folder: Path, side: int = 32) -> Path:
    """A recipe for scans of a few voxels."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.toml"
    path.write_text(SMALL_RECIPE.format(side=side))
    return path


def small_recipe(folder: Path, side: int = 32) -> Recipe:
    return load_recipe(str(recipe_file(folder, side)))


def case_of(root: Path, image: str | Sequence[str], label: str | Sequence[str] = (), **changes: Any) -> Case:
    """A case without ingest, for reader and harmonize tests."""
    values: dict[str, Any] = {
        "collection": "own", "case": "one", "group": "own/one", "modality": "MR", "region": "brain", "sequence": "",
        "official_split": "", "condition": "own-mr", "layout": "pairs", "reader": "volume", "root": str(root),
        "image": (image,) if isinstance(image, str) else tuple(image),
        "label": (label,) if isinstance(label, str) else tuple(label),
        "channel": -1, "n_bytes": 1, "modified_ns": 1,
    }  # fmt: skip
    return Case(**{**values, **changes})
