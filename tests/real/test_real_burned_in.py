"""No text is suspected in real scans, none of which has any: volumes as they are stored, and DICOM series."""

import zipfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medvar_data.geometry import plan_slices
from medvar_data.harmonize.burned_in import SUSPECTED, find_burned_in_text
from medvar_data.records import Geometry

REAL = Path(__file__).parents[3] / "shared" / "real"
LABEL_WORDS = ("_gt.", "seg", "label", "mask", "derivatives")
LEAST_SLICES, MOST_CHANNELS = 3, 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason="the real scans are not here"),
]


def volumes() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, voxels and affine of every NIfTI image."""
    for path in sorted(REAL.rglob("*.nii*")):
        if any(word in str(path).lower() for word in LABEL_WORDS) or not path.stat().st_size:
            continue
        try:
            image = nib.load(path)
            voxels = np.asarray(image.dataobj)
        except (nib.filebasedimages.ImageFileError, OSError, EOFError):
            continue
        channels = (
            [voxels] if voxels.ndim == 3 else [voxels[..., c] for c in range(min(MOST_CHANNELS, voxels.shape[-1]))]
        )
        yield from ((path.name, channel, image.affine) for channel in channels)


def series(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, voxels and a plain affine of every grey CT and MR series."""
    found: dict[tuple, list[tuple[int, str, Path]]] = defaultdict(list)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError, EOFError):
            continue
        if header.get("Modality") in ("CT", "MR") and header.get("SamplesPerPixel") == 1:
            key = (header.get("SeriesInstanceUID"), header.Rows, header.Columns)
            found[key].append((int(header.get("InstanceNumber") or 0), path.name, path))
    for files in found.values():
        try:
            pictures = [pydicom.dcmread(path).pixel_array for _, _, path in sorted(files)]
        except (AttributeError, ValueError, RuntimeError, NotImplementedError):
            continue
        stack = np.concatenate([p[None] if p.ndim == 2 else p for p in pictures])
        yield files[0][1], np.ascontiguousarray(stack.T), np.diag([1.0, 1.0, 5.0, 1.0])


def test_no_text_is_suspected_in_any_real_scan(tmp_path):
    folders = [REAL / "dicom"]
    for archive in (REAL / "dicom" / "LUNG1-001.zip", REAL / "chaos" / "CHAOS_Train_Sets.zip"):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(tmp_path / archive.stem)
        folders.append(tmp_path / archive.stem)
    suspected, n_scans = [], 0
    for name, voxels, affine in chain(volumes(), *map(series, folders)):
        if voxels.ndim != 3 or min(voxels.shape) < LEAST_SLICES:
            continue
        n_scans += 1
        if find_burned_in_text(voxels, plan_slices(Geometry(voxels.shape, affine), "native")) == SUSPECTED:
            suspected.append(name)
    assert n_scans > 150
    assert suspected == []
