"""Break files on purpose, the way downloads are broken, so that a run shows what is rejected and why.

In: the folder that `write_phantoms` filled. Out: a few more cases in some of its collections, and a record of each: which
case it is and which reason the pipeline has to give (None: kept, though the header looks wrong).
"""

import gzip
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from medvar_data.demo.phantoms.files import add_to_zip, nifti_bytes, write_nifti
from medvar_data.demo.phantoms.layouts import (
    LAYOUTS,
    Order,
    chaos_members,
    write_acdc_patient,
    write_amos_case,
    write_kits_case,
    write_mmwhs_case,
    write_msd,
    write_verse,
)
from medvar_data.errors import Reason

FIRST_PATIENT = 900_000  # far from every patient of an ordinary phantom set


@dataclass(frozen=True)
class BrokenFile:
    """One case broken on purpose.

    Attributes:
        collection: whose layout it lies in.
        case_hint: part of the case's name that no other case of the collection has.
        reason: what a run has to reject it for; None where it has to be kept.
        path: of the file that is broken, below the collection's folder; a member of an archive after `!/`.
    """

    collection: str
    case_hint: str
    reason: Reason | None
    path: str


def write_broken(
    root: Path, *, seed: int = 0, collections: Sequence[str] | None = None, canary: str | None = None
) -> list[BrokenFile]:
    """Add broken cases to the phantom collections below `root`.

    Args:
        root: as given to `write_phantoms`.
        seed: of the patients that are then broken.
        collections: which ones to add to; all where None.
        canary: text for the headers' free fields.

    Returns:
        One record for every broken case, in the order of `BREAKERS`.
    """
    chosen = tuple(LAYOUTS if collections is None else collections)
    records = []
    for number, (name, breaker) in enumerate(BREAKERS):
        if name in chosen:
            records.append(breaker(Order(root / name, FIRST_PATIENT + number, seed, canary)))
    return records


def truncated(order: Order) -> BrokenFile:
    """Cut a KiTS23 image short, as an interrupted download leaves it."""
    write_kits_case(order, "case_00588")
    path = order.folder / "dataset/case_00588/imaging.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(0.6 * len(content))])
    return _record("kits23", "00588", Reason.TRUNCATED, order, path)


def empty_label(order: Order) -> BrokenFile:
    """Leave a KiTS23 segmentation without a single foreground voxel."""
    write_kits_case(order, "case_00587")
    path = order.folder / "dataset/case_00587/segmentation.nii.gz"
    _edit(path, lambda voxels: np.zeros_like(voxels))
    return _record("kits23", "00587", Reason.EMPTY_LABEL, order, path)


def nan_voxels(order: Order) -> BrokenFile:
    """Put a block of NaN into an AMOS image."""
    write_amos_case(order, "amos_0599")
    path = order.folder / "amos22/imagesTr/amos_0599.nii.gz"

    def poison(voxels: np.ndarray) -> np.ndarray:
        voxels[10:14, 10:14, 5] = np.nan
        return voxels

    _edit(path, poison)
    return _record("amos", "0599", Reason.NAN_VOXELS, order, path)


def spacing_disagrees(order: Order) -> BrokenFile:
    """Let an AMOS header claim another spacing than its affine, where nothing says which of them holds."""
    write_amos_case(order, "amos_0600")
    path = order.folder / "amos22/imagesTr/amos_0600.nii.gz"
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    spacing = np.asarray(image.header.get_zooms()[:3]) * 1.4
    content = nifti_bytes(
        np.asarray(image.dataobj), image.affine, sform=2, qform=0, pixdim_mm=spacing, canary=order.canary
    )
    write_nifti(path, content)
    return _record("amos", "0600", Reason.SPACING_DISAGREES, order, path)


def spacing_forgiven(order: Order) -> BrokenFile:
    """Write an ACDC patient as published: the sform says 1 mm, pixdim the truth. ACDC's quirk keeps it."""
    write_acdc_patient(order, "training", "patient100")
    return _record(
        "acdc", "patient100", None, order, order.folder / "database/training/patient100/patient100_frame01.nii.gz"
    )


def label_shape(order: Order) -> BrokenFile:
    """Take a slice off an MSD Prostate label."""
    _msd(order, "Task05_Prostate", "prostate_47", "prostate-mr", "float32")
    path = order.folder / "Task05_Prostate/labelsTr/prostate_47.nii.gz"
    _edit(path, lambda voxels: np.ascontiguousarray(voxels[:, :, :-1]))
    return _record("msd-prostate", "47", Reason.LABEL_SHAPE, order, path)


def file_empty(order: Order) -> BrokenFile:
    """Leave an MSD Lung image with no byte."""
    _msd(order, "Task06_Lung", "lung_096", "chest-ct", "int16")
    path = order.folder / "Task06_Lung/imagesTr/lung_096.nii.gz"
    path.write_bytes(b"")
    return _record("msd-lung", "096", Reason.FILE_EMPTY, order, path)


def not_an_image(order: Order) -> BrokenFile:
    """Save the web page of a failed download under a VerSe image's name."""
    write_verse(order)
    found = sorted(order.folder.glob(f"*/rawdata/sub-verse{500 + order.patient}/*_ct.nii.gz"))
    found[0].write_text("<html><body>403 Forbidden</body></html>\n" * 20, encoding="utf-8")
    return _record("verse", str(500 + order.patient), Reason.NOT_AN_IMAGE, order, found[0])


def constant_image(order: Order) -> BrokenFile:
    """Fill an MM-WHS image with one value."""
    write_mmwhs_case(order, "ct_train_1020", labelled=True)
    path = order.folder / "ct_train/ct_train_1020_image.nii.gz"
    _edit(path, lambda voxels: np.full_like(voxels, -1024))
    return _record("mmwhs", "1020", Reason.CONSTANT_IMAGE, order, path)


def missing_slice(order: Order) -> BrokenFile:
    """Leave one slice, image and mask, out of a CHAOS series."""
    members = chaos_members(order, 30)
    gone = re.compile(r"/(i0011,0000b\.dcm|liver_GT_011\.png)$")
    add_to_zip(order.folder / "CHAOS_Train_Sets.zip", {k: v for k, v in members.items() if not gone.search(k)})
    path = order.folder / "CHAOS_Train_Sets.zip!" / "Train_Sets/CT/30/DICOM_anon/i0011,0000b.dcm"
    return _record("chaos", "30", Reason.MISSING_SLICE, order, path)


def _msd(order: Order, folder: str, case: str, cell: str, dtype: str) -> None:
    write_msd(order, folder, case, cell=cell, codes=("RAS",), test=False, dtype=dtype)


def _edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rewrite a volume with other voxels and the same header."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    voxels = change(np.array(image.dataobj, dtype=image.get_data_dtype()))
    changed = nibabel.Nifti1Image(voxels, image.affine, image.header)
    write_nifti(path, bytes(changed.to_bytes()))


def _record(collection: str, case_hint: str, reason: Reason | None, order: Order, path: Path) -> BrokenFile:
    return BrokenFile(collection, case_hint, reason, path.relative_to(order.folder).as_posix())


BREAKERS: Sequence[tuple[str, Callable[[Order], BrokenFile]]] = (
    ("acdc", spacing_forgiven),
    ("amos", nan_voxels),
    ("amos", spacing_disagrees),
    ("chaos", missing_slice),
    ("kits23", truncated),
    ("kits23", empty_label),
    ("mmwhs", constant_image),
    ("msd-lung", file_empty),
    ("msd-prostate", label_shape),
    ("verse", not_an_image),
)
