"""Write phantoms in the published layouts of ten public collections: same folders, names, axis orders and header conventions.

In: an `Order` (folder, patient, seed). Out: that patient's files. One function per collection, and where a collection has a
list of its cases, one that writes the list. Above 300 lines since ten layouts are one table, easiest read side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medvar_data.demo.phantoms.anatomy import CELLS, Phantom, synthesize
from medvar_data.demo.phantoms.files import (
    APPLE_DOUBLE,
    add_to_zip,
    bilevel_png,
    dicom_series,
    nifti_bytes,
    store_as,
    write_itk,
    write_json,
    write_nifti,
)

_CHAOS_FIRST = 100_000  # other people than KiTS23's, though of the same cell
_CHAOS_CT_IDS = (1, 2, 5, 6, 8, 10, 14, 16, 18, 19, *range(21, 30))  # 30 is kept for a broken case
_AMOS_CORONAL = (508, 510, 514, 518, 554, 557, 558, 578, 580, 582, 583, 586, 588, 589, 590, 592, 594, 596, 597)
_AMOS_MR = (
    507, 508, 510, 514, 517, 518, 522, 530, 532, 538, 540, 541, 548, 551, 554, 555, 557, 558, 570, 571, 578, 580, *range(582, 598)
)  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What one patient is made from: the collection's folder, the number of the patient, the seed, a privacy canary."""

    folder: Path
    patient: int
    seed: int
    canary: str | None = None

    def phantom(self, cell: str, *, moment: float = 0.0) -> Phantom:
        """Synthesize this patient."""
        return synthesize(cell, self.patient, self.seed, moment=moment)


@dataclass(frozen=True)
class Layout:
    """A collection's layout: which cell fills it, how a patient is written, how the whole is completed."""

    cell: str
    write: Callable[[Order], None]
    finish: Callable[[Path], None] = lambda folder: None


def write_volume(
    path: Path,
    voxels: Shaped[np.ndarray, "..."],
    phantom: Phantom,
    codes: str,
    dtype: str,
    *,
    order: Order,
    sform: int = 1,
    qform: int = 1,
) -> None:
    """Write a volume (or channels along a fourth axis) of a phantom as NIfTI in the given axis codes."""
    stored = store_as(voxels, phantom.affine, codes)
    rounded = np.rint(stored.voxels) if np.dtype(dtype).kind in "iu" else stored.voxels
    write_nifti(path, nifti_bytes(rounded.astype(dtype), stored.affine, sform=sform, qform=qform, canary=order.canary))


def pick(options: Sequence[str], order: Order) -> str:
    """Choose a patient's axis codes: every option occurs, in an order without a pattern."""
    return options[int(np.random.default_rng([order.seed, order.patient, 77]).integers(len(options)))]


def write_brats(order: Order) -> None:
    """BraTS 2023 GLI: four sequences and one label, L P S; every fifth patient comes back with a grown tumour."""
    folder = order.folder / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    for visit in range(2 if order.patient % 5 == 3 else 1):
        phantom = order.phantom("brain-mr", moment=float(visit))
        case = f"BraTS-GLI-{2 * order.patient:05d}-{visit:03d}"
        for sequence, volume in phantom.volumes.items():
            write_volume(folder / case / f"{case}-{sequence}.nii.gz", volume, phantom, "LPS", "int16", order=order)
        write_volume(folder / case / f"{case}-seg.nii.gz", phantom.label, phantom, "LPS", "uint8", order=order)


def write_acdc(order: Order) -> None:
    """ACDC: end diastole and end systole; the sform has lost spacing and obliquity, pixdim holds the true spacing."""
    testing = order.patient % 5 == 4
    number = 101 + order.patient // 5 if testing else 1 + order.patient - order.patient // 5
    write_acdc_patient(order, "testing" if testing else "training", f"patient{number:03d}")


def write_acdc_patient(order: Order, part: str, name: str) -> None:
    """Write one ACDC folder."""
    folder = order.folder / "database" / part / name
    last = 9 + order.patient % 7  # the frame of end systole
    phantom = order.phantom("heart-mr")
    for frame, moment in ((1, 0.0), (last, 1.0)):
        phantom = order.phantom("heart-mr", moment=moment)
        spacing = np.linalg.norm(phantom.affine[:3, :3], axis=0)
        for suffix, volume, dtype in (("", phantom.volumes["cine"], "int16"), ("_gt", phantom.label, "uint8")):
            voxels = np.rint(store_as(volume, phantom.affine, "LPS").voxels).astype(dtype)
            content = nifti_bytes(
                voxels, np.diag([-1.0, -1.0, 1.0, 1.0]), sform=2, qform=0, pixdim_mm=spacing, canary=order.canary
            )
            write_nifti(folder / f"{name}_frame{frame:02d}{suffix}.nii.gz", content)
    notes = phantom.notes
    (folder / "Info.cfg").write_text(
        f"ED: 1\nES: {last}\nGroup: {notes['group']}\nHeight: {notes['height']}\nNbFrame: {2 * last}\nWeight: {notes['weight']}\n",
        encoding="utf-8",
    )
    (folder / "MANDATORY_CITATION.md").write_text("Synthetic phantom in the layout of ACDC; no person was scanned.\n")


def write_kits(order: Order) -> None:
    """KiTS23: float64 images, axes slices-rows-columns (I P L), zero origin, sform code 2 and no qform."""
    case = order.patient if order.patient < 300 else order.patient + 100
    write_kits_case(order, f"case_{case:05d}")


def write_kits_case(order: Order, case: str) -> None:
    """Write one KiTS23 folder."""
    phantom = order.phantom("abdomen-ct")
    spacing = np.linalg.norm(phantom.affine[:3, :3], axis=0)
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = -spacing[0], -spacing[1], -spacing[2], 1
    label = np.where(phantom.label <= 3, phantom.label, 0)
    for name, volume, dtype in (("imaging", phantom.volumes["ct"], "float64"), ("segmentation", label, "uint8")):
        voxels = store_as(volume, phantom.affine, "IPL").voxels.astype(dtype)
        content = nifti_bytes(voxels, affine, sform=2, qform=0, canary=order.canary)
        write_nifti(order.folder / "dataset" / case / f"{name}.nii.gz", content)


def write_chaos(order: Order) -> None:
    """CHAOS CT: DICOM slices from the head down and 1-bit masks, inside the published archive."""
    add_to_zip(order.folder / "CHAOS_Train_Sets.zip", chaos_members(order, _CHAOS_CT_IDS[order.patient]))


def chaos_members(order: Order, number: int) -> dict[str, bytes]:
    """Make the files of one CHAOS CT case; the k-th image by name belongs to the k-th mask by name."""
    phantom = synthesize("abdomen-ct", _CHAOS_FIRST + order.patient, order.seed)
    texts = {"PatientName": f"CHAOS^CT_SET_{number}", "PatientID": "", "ProtocolName": "T2SPIR", "StudyTime": "133000"}
    if order.canary is not None:
        texts |= {
            "PatientName": order.canary, "PatientID": order.canary, "PatientBirthDate": "19010203", "InstitutionName": order.canary,
            "ReferringPhysicianName": order.canary, "StudyDescription": order.canary, "SeriesDescription": order.canary,
            "AccessionNumber": order.canary[:16], "StationName": order.canary[:16], "PatientComments": order.canary,
            "ImageComments": order.canary, "OperatorsName": order.canary,
        }  # fmt: skip
    step = float(np.linalg.norm(phantom.affine[:3, 2]))
    slices = dicom_series(
        phantom.volumes["ct"], phantom.affine, modality="CT", identity=f"medvar/{order.seed}/chaos/{number}", intercept=-1000,
        thickness_mm=1.6 * step, texts=texts,
    )  # fmt: skip
    liver = store_as(phantom.label == CELLS["abdomen-ct"].labels["liver"], phantom.affine, "LPS").voxels
    folder = f"Train_Sets/CT/{number}"
    members = {f"{folder}/DICOM_anon/i{k:04d},0000b.dcm": content for k, content in enumerate(slices)}
    for k in range(len(slices)):
        members[f"{folder}/Ground/liver_GT_{k:03d}.png"] = bilevel_png(liver[:, :, -1 - k].T)
    return members


def write_amos(order: Order) -> None:
    """AMOS 2022, the MR part: ids above 500, mixed orientations, one stack in eight coronal."""
    coronal = [n for n in _AMOS_MR if n in _AMOS_CORONAL]
    axial = [n for n in _AMOS_MR if n not in _AMOS_CORONAL]
    before = (order.patient + 5) // 8  # coronal patients with a lower number
    ids, place = (coronal, before) if order.patient % 8 == 2 else (axial, order.patient - before)
    number = ids[place] if place < len(ids) else 600 + order.patient
    write_amos_case(order, f"amos_{number:04d}")


def write_amos_case(order: Order, case: str) -> None:
    """Write one AMOS image with its label."""
    phantom = order.phantom("abdomen-mr")
    codes = pick(("LPS", "RAS", "LAS", "LIP" if phantom.notes["plane"] == "coronal" else "LPS"), order)
    (volume,) = phantom.volumes.values()
    write_volume(order.folder / "amos22/imagesTr" / f"{case}.nii.gz", volume, phantom, codes, "float32", order=order)
    write_volume(
        order.folder / "amos22/labelsTr" / f"{case}.nii.gz", phantom.label, phantom, codes, "uint8", order=order
    )


def write_msd(order: Order, folder: str, case: str, *, cell: str, codes: Sequence[str], test: bool, dtype: str) -> None:
    """Write one case of a Medical Segmentation Decathlon task, with the hidden twins that its tar brings along."""
    phantom = order.phantom(cell)
    axes = pick(codes, order)
    channels = list(phantom.volumes.values())
    stored = store_as(channels[0] if len(channels) == 1 else np.stack(channels, axis=3), phantom.affine, axes)
    content = nifti_bytes(np.rint(stored.voxels).astype(dtype), stored.affine, canary=order.canary)
    parts = {"imagesTs" if test else "imagesTr": content}
    if not test:
        label = store_as(phantom.label, phantom.affine, axes)
        parts["labelsTr"] = nifti_bytes(label.voxels.astype("uint8"), label.affine, canary=order.canary)
    for part, data in parts.items():
        write_nifti(order.folder / folder / part / f"{case}.nii.gz", data)
        (order.folder / folder / part / f"._{case}.nii.gz").write_bytes(APPLE_DOUBLE)


def write_msd_prostate(order: Order) -> None:
    """MSD Task05: channels along the fourth axis (0 T2, 1 ADC); every sixth case is an unlabelled test image."""
    write_msd(
        order, "Task05_Prostate", f"prostate_{order.patient:02d}", cell="prostate-mr", codes=("RAS", "LPS", "LAS"),
        test=order.patient % 6 == 5, dtype="float32",
    )  # fmt: skip


def write_msd_lung(order: Order) -> None:
    """MSD Task06: chest CT; every sixth case is an unlabelled test image."""
    write_msd(
        order, "Task06_Lung", f"lung_{order.patient + 1:03d}", cell="chest-ct", codes=("RAS", "LAS", "RPS"),
        test=order.patient % 6 == 5, dtype="int16",
    )  # fmt: skip


def write_mmwhs(order: Order) -> None:
    """MM-WHS CT: label values up to 850 as int16; every fourth case belongs to the unlabelled test part."""
    labelled = order.patient - (order.patient + 1) // 4
    if order.patient % 4 == 3 or labelled >= 19:  # 1020 is kept for a broken case
        write_mmwhs_case(order, f"ct_test_{2001 + order.patient:04d}", labelled=False)
    else:
        write_mmwhs_case(order, f"ct_train_{1001 + labelled:04d}", labelled=True)


def write_mmwhs_case(order: Order, case: str, *, labelled: bool) -> None:
    """Write one MM-WHS image, with its label where there is one."""
    phantom = order.phantom("heart-ct")
    codes = pick(("RAI", "LPS", "RAI", "LAS", "ASR"), order)
    folder = order.folder / case.rsplit("_", 1)[0]
    write_volume(folder / f"{case}_image.nii.gz", phantom.volumes["ct"], phantom, codes, "int16", order=order)
    if labelled:
        write_volume(folder / f"{case}_label.nii.gz", phantom.label, phantom, codes, "int16", order=order)


def write_verse(order: Order) -> None:
    """VerSe 2020, subject-based: any orientation, masks as uint8 or float64, centroids as JSON, all splits labelled."""
    part = {6: "dataset-02validation", 7: "dataset-03test"}.get(order.patient % 8, "dataset-01training")
    subject = f"sub-verse{500 + order.patient}"
    stem = subject + ("_dir-ax", "", "_dir-iso")[order.patient % 3]
    phantom = order.phantom("spine-ct")
    codes = pick(("PIR", "LPS", "RAS", "ASR", "LAS", "IPL"), order)
    raw, derived = order.folder / part / "rawdata" / subject, order.folder / part / "derivatives" / subject
    write_volume(
        raw / f"{stem}_ct.nii.gz", phantom.volumes["ct"], phantom, codes, "int16", order=order, sform=2, qform=0
    )
    dtype = "float64" if order.patient % 4 == 1 else "uint8"
    mask = derived / f"{stem}_seg-vert_msk.nii.gz"
    write_volume(mask, phantom.label, phantom, codes, dtype, order=order, sform=2, qform=0)
    inverse = np.linalg.inv(store_as(phantom.label, phantom.affine, codes).affine)
    centroids: list[dict[str, object]] = [{"direction": list(codes)}]
    for name, centre in phantom.centres_mm.items():
        x, y, z = (round(float(v), 1) for v in (inverse @ [*centre, 1])[:3])
        centroids.append({"label": CELLS["spine-ct"].labels[name], "X": x, "Y": y, "Z": z})
    write_json(derived / f"{stem}_seg-subreg_ctd.json", centroids)


def write_spider(order: Order) -> None:
    """SPIDER: sagittal T1 and T2 stacks of a patient as MetaImage, axes in varying order."""
    phantom = order.phantom("spine-mr")
    codes = pick(("RAS", "LPS", "PSR", "AIL"), order)
    number = order.patient + 1 if order.patient != 7 else 250  # published ids have gaps
    for sequence, volume in phantom.volumes.items():
        image = store_as(np.rint(volume).astype(np.int16), phantom.affine, codes)
        write_itk(order.folder / "images" / f"{number}_{sequence}.mha", image.voxels, image.affine)
        mask = store_as(phantom.label.astype(np.uint8), phantom.affine, codes)
        write_itk(order.folder / "masks" / f"{number}_{sequence}.mha", mask.voxels, mask.affine)


def finish_msd_prostate(folder: Path) -> None:
    """Write Task05's dataset.json, with the key `relase` misspelt as published."""
    _msd_json(
        folder / "Task05_Prostate",
        "PROSTATE",
        {"0": "T2", "1": "ADC"},
        {"0": "background", "1": "PZ", "2": "TZ"},
        "relase",
    )


def finish_msd_lung(folder: Path) -> None:
    """Write Task06's dataset.json."""
    _msd_json(folder / "Task06_Lung", "Lung", {"0": "CT"}, {"0": "background", "1": "cancer"}, "release")


def _msd_json(folder: Path, name: str, modality: Mapping[str, str], labels: Mapping[str, str], release: str) -> None:
    train, test = (
        [f"./{part}/{path.name}" for path in sorted((folder / part).glob("[!.]*.nii.gz"))]
        for part in ("imagesTr", "imagesTs")
    )
    write_json(
        folder / "dataset.json",
        {
            "name": name, "description": "Synthetic phantoms", "reference": "medvar phantoms", "licence": "Apache-2.0",
            release: "1.0", "tensorImageSize": "4D" if len(modality) > 1 else "3D", "modality": dict(modality),
            "labels": dict(labels), "numTraining": len(train), "numTest": len(test),
            "training": [{"image": p, "label": p.replace("imagesTr", "labelsTr")} for p in train], "test": test,
        },
    )  # fmt: skip


def finish_amos(folder: Path) -> None:
    """Write AMOS's dataset.json: `labels` maps id to name, `licence` is spelled so."""
    images = sorted((folder / "amos22/imagesTr").glob("*.nii.gz"))
    names = {"0": "background"} | {str(value): name for name, value in CELLS["abdomen-mr"].labels.items()}
    pairs = [{"image": f"./imagesTr/{p.name}", "label": f"./labelsTr/{p.name}"} for p in images]
    write_json(
        folder / "amos22/dataset.json",
        {
            "name": "AMOS",
            "licence": "Apache-2.0 (phantoms)",
            "modality": {"0": "MR"},
            "labels": names,
            "training": pairs,
        },
    )


LAYOUTS: Mapping[str, Layout] = {
    "acdc": Layout("heart-mr", write_acdc),
    "amos": Layout("abdomen-mr", write_amos, finish_amos),
    "brats2023": Layout("brain-mr", write_brats),
    "chaos": Layout("abdomen-ct", write_chaos),
    "kits23": Layout("abdomen-ct", write_kits),
    "mmwhs": Layout("heart-ct", write_mmwhs),
    "msd-lung": Layout("chest-ct", write_msd_lung, finish_msd_lung),
    "msd-prostate": Layout("prostate-mr", write_msd_prostate, finish_msd_prostate),
    "spider": Layout("spine-mr", write_spider),
    "verse": Layout("spine-ct", write_verse),
}
