"""Write a picture that no scanner took as DICOM, marked so that nobody can take it for a patient's.

In: 8-bit pixels and what made them. Out: a file of Secondary Capture with Synthetic Data (0008,001C) set to YES, Image Type DERIVED, and
no person: names, dates, numbers and times are empty. Its UIDs follow from the content, so the same picture gives the same bytes.
"""

from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

SYNTHETIC = "SYNTHETIC"
MODALITIES = {"CT": "CT", "MR": "MR"}
OTHER = "OT"


@dataclass(frozen=True)
class Origin:
    """What a synthetic picture says of itself.

    Attributes:
        modality: CT or MR; anything else is written as OT (other).
        series: what its pictures share, such as a digest of checkpoint and settings with the condition.
        number: of the picture in its series, from 1.
        description: for people, such as the condition's name; at most 64 characters.
        model: what drew it, such as a checkpoint's digest.
    """

    modality: str
    series: str
    number: int
    description: str
    model: str


def synthetic_dicom(pixels: UInt8[np.ndarray, "rows columns"], origin: Origin) -> bytes:
    """Give the bytes of a DICOM file.

    Args:
        pixels: [0, 255], 0 is black.
        origin: what to say of them.
    """
    content = sha256(pixels.tobytes()).hexdigest()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[origin.series, str(origin.number), content])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["medvar"])
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    _say_of_whom(data, origin)
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.SyntheticData = "YES"
    data.ConversionType = "SYN"
    data.BurnedInAnnotation = "NO"
    data.DerivationDescription = f"Drawn by a generative model, {origin.model[:200]}; shows no person."
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.WindowCenter, data.WindowWidth = 128, 256
    data.PixelData = pixels.tobytes() + bytes(pixels.size % 2)
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _say_of_whom(data: Dataset, origin: Origin) -> None:
    """Fill in patient, study, series and equipment: nobody's."""
    data.PatientName, data.PatientID = SYNTHETIC, SYNTHETIC
    data.PatientBirthDate, data.PatientSex = "", ""
    data.StudyInstanceUID = generate_uid(entropy_srcs=["study", origin.series])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=["series", origin.series])
    data.StudyDate, data.StudyTime, data.StudyID = "", "", ""
    data.AccessionNumber, data.ReferringPhysicianName = "", ""
    data.Modality = MODALITIES.get(origin.modality, OTHER)
    data.SeriesNumber, data.InstanceNumber = 1, origin.number
    data.SeriesDescription = origin.description[:64]
    data.Manufacturer, data.ManufacturerModelName = "medvar", origin.model[:64]
    data.PatientOrientation = ""
