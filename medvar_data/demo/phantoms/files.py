"""Write volumes as files whose bytes depend on their content alone: NIfTI, MetaImage, a DICOM series, PNG masks, JSON.

In: arrays [i, j, k] = R A S with their affine, and the stored orientation wanted. Out: bytes, or a file. gzip carries no
time, zip members carry 1980, DICOM UIDs come from a hash.
"""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pydicom
import SimpleITK
from jaxtyping import Float64, Shaped, UInt8
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ImplicitVRLittleEndian, MRImageStorage

APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X".ljust(16) + bytes(139)
"""What macOS leaves beside every file in a tar: `._name`, never an image."""


@dataclass(frozen=True)
class Stored:
    """Voxels as a file holds them: the axes permuted and flipped to an orientation, the affine adapted."""

    voxels: Shaped[np.ndarray, "i j k *channels"]
    affine: Float64[np.ndarray, "4 4"]


def store_as(voxels: Shaped[np.ndarray, "i j k *channels"], affine: Float64[np.ndarray, "4 4"], codes: str) -> Stored:
    """Turn an R, A, S volume, or channels of one along a fourth axis, to other axis codes, for instance "LPS" or "PIR"."""
    wanted = nibabel.orientations.axcodes2ornt(tuple(codes))
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt(("R", "A", "S")), wanted)
    turned = np.ascontiguousarray(nibabel.orientations.apply_orientation(voxels, turn))
    return Stored(turned, affine @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape[:3]))


def nifti_bytes(
    voxels: Shaped[np.ndarray, "..."],
    affine: Float64[np.ndarray, "4 4"],
    *,
    sform: int = 1,
    qform: int = 1,
    pixdim_mm: Sequence[float] | Shaped[np.ndarray, "3"] | None = None,
    scale: tuple[float, float] | None = None,
    canary: str | None = None,
) -> bytes:
    """Make a NIfTI-1 file in memory.

    Args:
        voxels: as stored; their dtype is the file's.
        affine: of the stored axes.
        sform: code of the sform; 0 leaves it out.
        qform: code of the qform; 0 leaves it out.
        pixdim_mm: spacing to claim in the header where it shall differ from the affine's.
        scale: scl_slope and scl_inter to claim; the voxels are stored as they are given.
        canary: text for the free-text fields.
    """
    image = nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.set_sform(affine, code=sform) if sform else image.set_sform(None, code=0)
    image.set_qform(affine, code=qform) if qform else image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    if pixdim_mm is not None:
        image.header["pixdim"][1:4] = pixdim_mm
    if canary is not None:
        image.header["descrip"] = canary[:79]
        image.header["aux_file"] = canary[:23]
        image.header["intent_name"] = canary[:15]
    content = bytearray(image.to_bytes())
    if scale is not None:  # nibabel sets both by itself while it writes
        content[112:120] = struct.pack("<2f", *scale)
    return bytes(content)


def write_nifti(path: Path, content: bytes) -> None:
    """Compress a NIfTI file to `path`, a `.nii.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))


def write_itk(
    path: Path, voxels: Shaped[np.ndarray, "i j k"], affine: Float64[np.ndarray, "4 4"], *, compressed: bool = True
) -> None:
    """Write MetaImage or NRRD, as the name says; ITK counts millimetres to the Left, Posterior and Superior.

    Beside a `.mhd` its voxels come to lie, as `.zraw` where they are compressed, else as `.raw`.
    """
    to_lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    spacing = np.linalg.norm(to_lps[:, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in to_lps[:, 3]])
    image.SetDirection([float(d) for d in (to_lps[:, :3] / spacing).ravel()])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=compressed, compressionLevel=1)


def dicom_series(
    voxels: Shaped[np.ndarray, "i j k"],
    affine: Float64[np.ndarray, "4 4"],
    *,
    modality: str,
    identity: str,
    intercept: int,
    thickness_mm: float,
    texts: Mapping[str, str],
) -> list[bytes]:
    """Make a CT or MR series, one classic object per slice, from the head down.

    Args:
        voxels: HU or the scanner's unit, R A S, on an upright grid.
        affine: of `voxels`.
        modality: "CT" or "MR".
        identity: what the UIDs are derived from.
        intercept: RescaleIntercept; stored values are voxels minus it, at least 0.
        thickness_mm: SliceThickness, which need not be the distance between slices.
        texts: keyword -> text for further attributes.
    """
    stored = store_as(voxels, affine, "LPS")
    spacing = np.linalg.norm(stored.affine[:3, :3], axis=0)
    kind = {"CT": CTImageStorage, "MR": MRImageStorage}[modality]
    series = []
    for number, k in enumerate(reversed(range(stored.voxels.shape[2])), 1):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = kind
        meta.MediaStorageSOPInstanceUID = UID(_uid(identity, f"instance {number}"))
        meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID = _uid(identity, "study")
        dataset.SeriesInstanceUID = _uid(identity, "series")
        dataset.FrameOfReferenceUID = _uid(identity, "frame")
        dataset.Modality = modality
        dataset.ImageType = ["ORIGINAL", "PRIMARY", *(["AXIAL", "HELIX"] if modality == "CT" else ["M"])]
        for keyword, text in texts.items():
            setattr(dataset, keyword, text)
        dataset.SliceThickness = f"{thickness_mm:.1f}"
        dataset.PatientPosition = "FFS"
        dataset.SeriesNumber, dataset.InstanceNumber = 4, number
        corner = stored.affine @ [0, 0, k, 1]
        dataset.ImagePositionPatient = [f"{-corner[0]:.4f}", f"{-corner[1]:.4f}", f"{corner[2]:.4f}"]
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = stored.voxels.shape[1], stored.voxels.shape[0]
        dataset.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.WindowCenter, dataset.WindowWidth = "50", "400"
        dataset.RescaleIntercept, dataset.RescaleSlope = str(intercept), "1"
        pixels = np.clip(stored.voxels[:, :, k].T - intercept, 0, 65535).astype("<u2")
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
        series.append(buffer.getvalue())
    return series


def _uid(identity: str, what: str) -> str:
    """Derive a UID under the root for UUIDs, 2.25 (DICOM PS3.5, B.2)."""
    return f"2.25.{int.from_bytes(sha256(f'{identity}/{what}'.encode()).digest()[:15], 'big')}"


def grey_png(mask: UInt8[np.ndarray, "rows columns"]) -> bytes:
    """Encode a mask as an 8-bit grey PNG."""
    return bytes(cv2.imencode(".png", mask)[1].tobytes())


def bilevel_png(mask: Shaped[np.ndarray, "rows columns"]) -> bytes:
    """Encode a mask as a 1-bit grey PNG."""
    picture: UInt8[np.ndarray, "rows columns"] = np.where(mask > 0, 255, 0).astype(np.uint8)
    return bytes(cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes())


def add_to_zip(path: Path, members: Mapping[str, bytes]) -> None:
    """Append members to an archive, which is made when it is not there; members that it has are left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        present = set(archive.namelist())
        for name, content in members.items():
            if name in present:
                continue
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED, 1)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as the collections do, indented by one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
