"""A drawn picture as DICOM: readable, marked, nobody's, and the same bytes again."""

from io import BytesIO

import numpy as np
import pydicom
import pytest

from medvar_data.storage.synthetic_dicom import Origin, synthetic_dicom

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
ORIGIN = Origin("CT", "abc", 3, "synthetic acdc-ct", "checkpoint 0123")


@pytest.fixture
def read() -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(synthetic_dicom(PIXELS, ORIGIN)))


def test_the_pixels_come_back_and_the_file_says_that_they_are_synthetic(read):
    assert np.array_equal(read.pixel_array, PIXELS)
    assert read.SyntheticData == "YES"
    assert read.SOPClassUID.name == "Secondary Capture Image Storage"
    assert list(read.ImageType) == ["DERIVED", "SECONDARY"]
    assert (read.Modality, read.InstanceNumber) == ("CT", 3)


def test_it_is_nobodys(read):
    assert (str(read.PatientName), read.PatientID) == ("SYNTHETIC", "SYNTHETIC")
    for name in ("PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
        assert str(read[name].value) in ("", "None")
    assert "InstanceCreationDate" not in read


def test_the_same_picture_gives_the_same_bytes_and_another_one_another_identity():
    assert synthetic_dicom(PIXELS, ORIGIN) == synthetic_dicom(PIXELS, ORIGIN)
    uids = {
        pydicom.dcmread(BytesIO(synthetic_dicom(pixels, ORIGIN))).SOPInstanceUID for pixels in (PIXELS, 255 - PIXELS)
    }
    assert len(uids) == 2


def test_a_modality_that_is_none_is_written_as_other():
    origin = Origin("NONE", "abc", 1, "synthetic none", "checkpoint 0123")
    assert pydicom.dcmread(BytesIO(synthetic_dicom(PIXELS, origin))).Modality == "OT"
