"""The attributes that are ever read from a DICOM file. Whatever is not named here is never parsed.

None of them is written anywhere as it stands: technical ones decide and are then forgotten, identities are compared or go
through a salted hash, texts are matched against a user's own patterns. PS3.15 Annex E (basic profile) is the measure of
what names a person.
"""

GEOMETRY = (
    "Rows", "Columns", "NumberOfFrames", "BitsAllocated", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip
KIND = (
    "SOPClassUID", "Modality", "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "BurnedInAnnotation",
    "BodyPartExamined", "AnatomicRegionSequence",
)  # fmt: skip
CONTRAST = (
    "EchoTime", "EchoNumbers", "InversionTime", "FlipAngle", "DiffusionBValue", "DiffusionGradientOrientation",
    "TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber", "InstanceNumber", "ComplexImageComponent",
    "SeriesNumber", "ConvolutionKernel", "AcquisitionTime",
)  # fmt: skip
VALUES = (
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "RealWorldValueMappingSequence",
)  # fmt: skip
FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

IDENTITIES = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID")
"""Compared with each other, or hashed with the workspace's salt."""

REFERENCES = (
    "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "SourceImageSequence", "DerivationImageSequence",
)  # fmt: skip
"""Which images a segmentation or structure set belongs to: UIDs alone are taken from them."""

TEXTS = ("SeriesDescription", "ProtocolName")
"""Matched against the patterns of a user's `sequences`; only the user's own words come out."""

PIXELS = (
    "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
)  # fmt: skip

STRUCTURES = (
    "SegmentationType", "SegmentSequence", "MaximumFractionalValue", "StructureSetROISequence", "ROIContourSequence",
)  # fmt: skip
"""Names of structures are matched against a collection's `roi` patterns; only the collection's own words come out."""

PRIVATE_B_VALUES = (
    (0x0019000C, 0x00190010, "SIEMENS MR HEADER"),
    (0x00430039, 0x00430010, "GEMS_PARM_01"),
    (0x20010003, 0x20010010, "Philips Imaging DD 001"),
)
"""Where vendors keep the b-value: (tag in block 0x10, tag of the block's creator, creator's name). Numbers, all of them."""

HEADER = (*KIND, *GEOMETRY, *CONTRAST, *VALUES, *FRAMES, *IDENTITIES, *REFERENCES)
"""All that decides which images make a volume."""


def private_tags() -> list[int]:
    """Tags of the vendors' b-values and of the block creators that say whose they are."""
    return [tag for element, creator, _ in PRIVATE_B_VALUES for tag in (in_block(element), creator)]


def in_block(element: int) -> int:
    """Tag of a private element as it stands in the first block, 0x10 (PS3.5, 7.8.1)."""
    return element | 0x1000
