"""Make DICOM files in code: classic and enhanced images, segmentations, structure sets; every voxel and contour known."""

from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

ROOT = "1.2.826.0.1.3680043.8.498"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
AXIAL = (1, 0, 0, 0, 1, 0)

TOML = """name = "{name}"
title = "A cohort in DICOM"
region = "body"
modality = "{modality}"
slice_axis = "axial"
license = "own data"

[[layout]]
id = "all"
reader = "dicom"
image = '.'
{more}
[[label]]
id = 2
name = "cord"
roi = "(spinal[ _-]?)?cord"

[[label]]
id = 1
name = "lung"
roi = "lung.*"
"""


def cohort_toml(name: str = "cohort", modality: str = "MR", more: str = "") -> str:
    return TOML.format(name=name, modality=modality, more=more)


def item(**attributes: Any) -> Dataset:
    found = Dataset()
    for name, value in attributes.items():
        setattr(
            found, name, Items(value) if isinstance(value, list) and value and isinstance(value[0], Dataset) else value
        )
    return found


def file_bytes(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def identified(kind: str, modality: str, series: int, number: int, study: int = 1, patient: str = "P1") -> Dataset:
    return item(
        SOPClassUID=kind, SOPInstanceUID=f"{ROOT}.{study}.{series}.{number}", SeriesInstanceUID=f"{ROOT}.{study}.{series}",
        StudyInstanceUID=f"{ROOT}.{study}", FrameOfReferenceUID=f"{ROOT}.{study}.99", Modality=modality, PatientID=patient,
        InstanceNumber=number,
    )  # fmt: skip


def with_pixels(dataset: Dataset, pixels: np.ndarray) -> Dataset:
    """Add [row, column] or [frame, row, column] unsigned 16-bit pixels."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    return dataset


def image(
    pixels: np.ndarray,
    position: Sequence[float],
    *,
    modality: str = "MR",
    series: int = 1,
    number: int = 1,
    study: int = 1,
    patient: str = "P1",
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.0, 1.0),
    syntax: str = ExplicitVRLittleEndian,
    **more: Any,
) -> bytes:
    """One classic slice at a position (LPS, mm)."""
    kind = {"CT": CTImageStorage, "MR": MRImageStorage}.get(modality, MRImageStorage)
    dataset = identified(kind, modality, series, number, study, patient)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.PixelSpacing = [float(v) for v in spacing]
    dataset.ImagePositionPatient = [float(v) for v in position]
    dataset.ImageOrientationPatient = [float(v) for v in orientation]
    if modality == "CT":
        dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    with_pixels(dataset, pixels)
    for name, value in more.items():
        setattr(dataset, name, value)
    return file_bytes(dataset, syntax)


def volume(n_slices: int = 5, side: int = 12, seed: int = 0) -> np.ndarray:
    """Random pixels [slice, row, column], from 1 upwards."""
    return np.random.default_rng(seed).integers(1, 900, (n_slices, side, side)).astype(np.uint16)


def slices(
    pixels: np.ndarray,
    step_mm: float = 2.0,
    first: int = 1,
    prefix: str = "",
    heights: Sequence[float] = (),
    **options: Any,
) -> dict[str, bytes]:
    """A stack along z, from the feet up: name -> file; numbers count from `first`."""
    places = list(heights) or [step_mm * k for k in range(len(pixels))]
    return {
        f"{prefix}{first + k:04d}": image(picture, (0, 0, z), number=first + k, **options)
        for k, (picture, z) in enumerate(zip(pixels, places, strict=True))
    }


def enhanced(
    pixels: np.ndarray,
    positions: Sequence[Sequence[float]],
    groups: Sequence[Mapping[str, Any]],
    *,
    series: int = 1,
    number: int = 1,
) -> bytes:
    """An enhanced MR file: frames [frame, row, column] with a position each and further functional groups."""
    dataset = identified(EnhancedMRImageStorage, "MR", series, number)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    dataset.NumberOfFrames = len(pixels)
    with_pixels(dataset, pixels)
    dataset.SharedFunctionalGroupsSequence = Items(
        [
            item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=[float(v) for v in AXIAL])],
                PixelMeasuresSequence=[item(PixelSpacing=[1.0, 1.0])],
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Items(
        [
            item(PlanePositionSequence=[item(ImagePositionPatient=[float(v) for v in place])], **group)
            for place, group in zip(positions, groups, strict=True)
        ]
    )
    return file_bytes(dataset)


def structure_set(
    rois: Mapping[str, Sequence[np.ndarray]],
    *,
    series: int = 1,
    study: int = 1,
    number: int = 900,
    referenced: bool = True,
    kind: str = "CLOSED_PLANAR",
) -> bytes:
    """A structure set: name -> closed contours, each [point, 3] in LPS mm."""
    dataset = identified(RTSTRUCT, "RTSTRUCT", 900 + series, number, study)
    dataset.StructureSetROISequence = Items([item(ROINumber=n, ROIName=name) for n, name in enumerate(rois, start=1)])
    dataset.ROIContourSequence = Items(
        [
            item(
                ReferencedROINumber=n,
                ContourSequence=[
                    item(
                        ContourGeometricType=kind,
                        NumberOfContourPoints=len(points),
                        ContourData=[f"{v:.6f}" for v in np.asarray(points).ravel()],
                    )
                    for points in contours
                ],
            )
            for n, contours in enumerate(rois.values(), start=1)
        ]
    )
    if referenced:
        drawn_on = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=f"{ROOT}.{study}.{series}")])
        dataset.ReferencedFrameOfReferenceSequence = Items(
            [item(FrameOfReferenceUID=f"{ROOT}.{study}.99", RTReferencedStudySequence=[drawn_on])]
        )
    return file_bytes(dataset)


def segmentation(
    segments: Mapping[str, np.ndarray],
    *,
    kind: str = "BINARY",
    step_mm: float = 2.0,
    spacing: Sequence[float] = (1.0, 1.0),
    origin: Sequence[float] = (0, 0, 0),
    orientation: Sequence[float] = AXIAL,
    series: int = 1,
    study: int = 1,
    number: int = 800,
    referenced: bool = True,
    sources: str = "",
    source_numbers: Sequence[int] = (1, 2, 3, 4),
) -> bytes:
    """A segmentation along z: name -> mask [slice, row, column]; one frame a slice and segment, in no order.

    `sources` names the images by their instances: at the "top", in a "derivation" there, in the "shared" group, in each
    "frame", or listed under their "series".
    """
    dataset = identified(SEG, "SEG", 800 + series, number, study)
    dataset.SegmentationType = kind
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SegmentSequence = Items(
        [
            item(SegmentNumber=n, SegmentLabel=name, SegmentedPropertyTypeCodeSequence=[item(CodeMeaning="Tissue")])
            for n, name in enumerate(segments, start=1)
        ]
    )
    frames = [(n, z, mask[z]) for n, mask in enumerate(segments.values(), start=1) for z in range(len(mask))]
    if kind == "LABELMAP":
        stacked = [
            sum(n * mask[z] for n, mask in enumerate(segments.values(), start=1))
            for z in range(len(next(iter(segments.values()))))
        ]
        frames = [(0, z, picture) for z, picture in enumerate(stacked)]
    np.random.default_rng(3).shuffle(frames := [*map(list, frames)])  # type: ignore[arg-type]
    pictures = np.stack([picture for _, _, picture in frames])
    dataset.NumberOfFrames = len(frames)
    with_pixels(dataset, pictures)
    if kind == "BINARY":
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
        dataset.PixelData = pack_bits(pictures.astype(np.uint8))
    else:
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        values = pictures * 255 if kind == "FRACTIONAL" else pictures
        dataset.MaximumFractionalValue = 255
        data = values.astype(np.uint8).tobytes()
        dataset.PixelData = data + bytes(len(data) % 2)
    dataset["PixelData"].VR = "OB"
    dataset.SharedFunctionalGroupsSequence = Items(
        [
            item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=[float(v) for v in orientation])],
                PixelMeasuresSequence=[item(PixelSpacing=[float(v) for v in spacing])],
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Items(
        [
            item(
                PlanePositionSequence=[
                    item(ImagePositionPatient=[float(origin[0]), float(origin[1]), origin[2] + step_mm * z])
                ],
                SegmentIdentificationSequence=[item(ReferencedSegmentNumber=n)] if n else [],
            )
            for n, z, _ in frames
        ]
    )
    images = [item(ReferencedSOPInstanceUID=f"{ROOT}.{study}.{series}.{n}") for n in source_numbers]
    if sources == "top":
        dataset.SourceImageSequence = Items(images)
    elif sources == "derivation":
        dataset.DerivationImageSequence = Items([item(SourceImageSequence=images)])
    elif sources == "shared":
        dataset.SharedFunctionalGroupsSequence[0].DerivationImageSequence = Items([item(SourceImageSequence=images)])
    elif sources == "frame":
        for n, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            group.DerivationImageSequence = Items([item(SourceImageSequence=[images[n % len(images)]])])
    elif referenced:
        listed = item(SeriesInstanceUID=f"{ROOT}.{study}.{series}")
        if sources == "series":
            listed.ReferencedInstanceSequence = Items(images)
        dataset.ReferencedSeriesSequence = Items([listed])
    return file_bytes(dataset)


TEXT_KINDS = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE"}
DATE_KINDS = {"DA": "", "DT": "120000", "AS": ""}
KEPT = ("SpecificCharacterSet", "SOPClass", "TransferSyntax", "PixelDataProviderURL")


def fill_identities(data: bytes, text: str, date: str, uid: str) -> bytes:
    """Fill every attribute of the data dictionary that can hold words, a date or a UID, and private ones, with a canary.

    UIDs that pair files stay different from file to file: they get the canary as a prefix.
    """
    dataset = pydicom.dcmread(BytesIO(data))

    def rename(_: Dataset, element: Any) -> None:
        if element.VR == "UI" and str(element.value).startswith(ROOT):
            element.value = ".".join([uid, *str(element.value).split(".")[-3:]])

    dataset.walk(rename)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for element in canaries(text, date, uid):
        if element.tag not in dataset:
            dataset[element.tag] = element
    dataset.PatientID = f"{text}-{dataset.get('PatientID', '')}"
    dataset.PatientBirthDate = date
    if "ImageType" in dataset:
        dataset.ImageType = [*dataset.ImageType, text.upper()]
    for creator, element, kind, value in (
        (text, 0x01, "LO", text),
        ("SIEMENS CSA HEADER", 0x10, "OB", text.encode() * 20),
        (f"{text} block", 0x02, "UT", f"{text} {date} {uid}"),
    ):
        dataset.private_block(0x0029, creator, create=True).add_new(element, kind, value)
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


@cache
def canaries(text: str, date: str, uid: str) -> Dataset:
    """Every attribute of groups 0008 to 0042 that can hold words, a date or a UID."""
    filler = Dataset()
    for tag, (kind, _, _, _, keyword) in DicomDictionary.items():
        if not keyword or not 0x0008 <= tag >> 16 <= 0x0042 or any(part in keyword for part in KEPT):
            continue
        if kind in TEXT_KINDS:
            filler.add_new(tag, kind, f"{text}^{tag:08x}"[:16] if kind in ("SH", "AE") else f"{text} {tag:08x}")
        elif kind in DATE_KINDS:
            filler.add_new(tag, kind, date + DATE_KINDS[kind] if kind != "AS" else "077Y")
        elif kind == "UI":
            filler.add_new(tag, kind, uid)
    return filler
