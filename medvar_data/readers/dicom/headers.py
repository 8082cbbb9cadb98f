"""Read the whitelisted attributes of one DICOM file, classic or enhanced, into frozen values: an `Instance` and its `Frame`s.

In: the bytes of a file, or its first ones. Out: numbers, closed words and the identities that are compared or hashed. Errors
and warnings of pydicom are dropped, since their texts can hold header values.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.dicom.attributes import HEADER, PIXELS, STRUCTURES, TEXTS, private_tags
from medvar_data.readers.dicom.bounds import HEADER_LIMIT, SLACK, check_frames, inflated
from medvar_data.readers.dicom.contrasts import Groups, contrasts_of
from medvar_data.readers.dicom.regions import region_of
from medvar_data.sources.tree import read_bytes, read_head

HEAD_BYTES = 1 << 16  # enough for the header of nearly every single image
PIXEL_TAGS = (
    b"\xe0\x7f\x08\x00",
    b"\xe0\x7f\x09\x00",
    b"\xe0\x7f\x10\x00",
)  # little-endian; else the file is read whole
FIRST_ELEMENTS = tuple(
    bytes((group, 0, element, 0)) for group in (0x02, 0x08) for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16, 0x18)
)
LONGEST_FIRST = 256  # bytes of such an element where its type is not written
PLAIN_UNITS = ("", "1", "[hnsf'U]", "[arb'U]", "{counts}", "NM")  # of a scan: none, HU, arbitrary (UCUM)
MOST_DEFLATED = 4 << 30  # bytes of pixels that a deflated file may hold
MAX_FRAMES = 1 << 16  # in one file; a header that asks for more is damaged


@dataclass(frozen=True)
class Frame:
    """One picture of a file, and where it lies (LPS, mm); `position_mm` and its like are empty where the file is silent."""

    path: str
    index: int  # within the file
    number: int  # InstanceNumber
    size: tuple[int, int]  # rows, columns
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_mm: tuple[float, ...]  # between rows, between columns
    stack: str
    kinds: tuple[str, ...]  # ImageType or FrameType, upper case
    contrasts: Mapping[str, float | str]  # what can set volumes of one series apart
    slope: float
    intercept: float
    segment: int = 0  # of a segmentation


@dataclass(frozen=True)
class Instance:
    """One DICOM file by its header. The identities stay in memory: they are compared, or hashed, and forgotten."""

    path: str
    sop_class: str
    modality: str
    sop: str
    series: str
    study: str
    frame_of_reference: str
    patient: str
    texts: tuple[str, ...]
    is_grey: bool
    is_burned_in: bool
    region: str  # of the closed vocabulary in `regions`
    is_quantity: bool  # its values have a unit of their own, as a map's have
    series_referenced: frozenset[str]
    instances_referenced: frozenset[str]
    frames: tuple[Frame, ...]


_ONE_AT_A_TIME = threading.RLock()  # what is silenced is the whole process's


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from saying anything: its warnings and errors quote header values."""
    with _ONE_AT_A_TIME, warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def read_instance(root: Path, path: str, *, n_bytes: int = 0, texts: bool = False) -> Instance | None:
    """Read a file's header; None where the file is no DICOM at all.

    Args:
        root: of the download.
        path: below root, or of an archive's member.
        n_bytes: of the file, which bounds its number of frames; 0 where that is not known.
        texts: parse the series' description too.

    Raises:
        CaseRejected: the file is DICOM, but damaged.
    """
    head = read_head(root, path, HEAD_BYTES)
    if not is_dicom(head):
        return None
    tags = (*HEADER, *TEXTS) if texts else HEADER
    dataset, is_whole = _parse_head(head, tags)
    if not is_whole:
        dataset, _ = _parse_head(read_bytes(root, path), tags)
    return instance_of(dataset, path, n_bytes)


def is_dicom(head: bytes) -> bool:
    """Tell DICOM by its magic word, or, where the preamble is missing, by a first element that a data set can start with."""
    if head[128:132] == b"DICM":
        return True
    if head[:4] not in FIRST_ELEMENTS or len(head) < 8:
        return False
    kind, length = head[4:6], int.from_bytes(head[4:8], "little")
    return (kind.isalpha() and kind.isupper()) or length <= LONGEST_FIRST


def parse(data: bytes, *, pixels: bool = True, structures: bool = False) -> Dataset:
    """Parse a whole file: header, and on demand pixels and the structures of segmentations and structure sets.

    Raises:
        CaseRejected: `not_an_image` or `truncated`.
    """
    tags = [*HEADER, *(PIXELS if pixels else ()), *((*STRUCTURES, *TEXTS) if structures else ())]
    if pixels and (head := inflated(data, HEADER_LIMIT)) is not data:  # deflated: as much as its header has pixels for
        data = inflated(data, HEADER_LIMIT + _pixel_bytes(_parse(BytesIO(head), list(HEADER), stop=True)))
    dataset = _parse(BytesIO(data), tags, stop=not pixels)
    if not _text(
        _meta(dataset), "TransferSyntaxUID"
    ):  # a file without a head: as its elements turned out to be written
        dataset.file_meta = FileMetaDataset()
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def _pixel_bytes(dataset: Dataset) -> int:
    size = (
        _whole(dataset, "Rows") * _whole(dataset, "Columns") * min(_whole(dataset, "NumberOfFrames") or 1, MAX_FRAMES)
    )
    return min(int(SLACK * size * (_whole(dataset, "BitsAllocated") or 16) / 8), MOST_DEFLATED)


def instance_of(dataset: Dataset, path: str, n_bytes: int = 0) -> Instance:
    """Take from a parsed file what its frames are and where they lie; `n_bytes` of the file bound their number.

    Raises:
        CaseRejected: `truncated` where an attribute holds what it may not.
    """
    try:
        with quiet():
            series, instances = _references(dataset)
            return Instance(
                path=path,
                sop_class=_text(dataset, "SOPClassUID") or _text(_meta(dataset), "MediaStorageSOPClassUID"),
                modality=_text(dataset, "Modality"),
                sop=_text(dataset, "SOPInstanceUID"),
                series=_text(dataset, "SeriesInstanceUID"),
                study=_text(dataset, "StudyInstanceUID"),
                frame_of_reference=_frame_of_reference(dataset),
                patient=_text(dataset, "PatientID"),
                texts=tuple(text for name in TEXTS if (text := _text(dataset, name))),
                is_grey=int(dataset.get("SamplesPerPixel") or 1) == 1
                and _text(dataset, "PhotometricInterpretation") in ("", "MONOCHROME1", "MONOCHROME2"),
                is_burned_in=_text(dataset, "BurnedInAnnotation").upper() == "YES",
                region=region_of(dataset),
                is_quantity=_is_quantity(dataset),
                series_referenced=series,
                instances_referenced=instances,
                frames=tuple(_frames(dataset, path, n_bytes)),
            )
    except (MemoryError, CaseRejected):
        raise
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a DICOM header is cut short or damaged") from error


def _parse_head(head: bytes, tags: Sequence[str]) -> tuple[Dataset, bool]:
    """Parse the start of a file; tells whether the header ended within it."""
    plain = inflated(head, HEADER_LIMIT)
    stream = BytesIO(plain)
    try:
        dataset = _parse(stream, tags, stop=True)
    except CaseRejected:
        if len(head) < HEAD_BYTES:
            raise
        return Dataset(), False
    reached = plain[stream.tell() : stream.tell() + 4] in PIXEL_TAGS
    return dataset, reached or len(head) != HEAD_BYTES


def _parse(stream: BytesIO, tags: Sequence[str], *, stop: bool) -> Dataset:
    wanted: list[Any] = [*tags, *private_tags()]
    try:
        with quiet():
            return pydicom.dcmread(stream, force=True, stop_before_pixels=stop, specific_tags=wanted)
    except InvalidDicomError as error:
        raise CaseRejected(Reason.NOT_AN_IMAGE, "a file is not DICOM, whatever the name says") from error
    except MemoryError:
        raise
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a DICOM header is cut short or damaged") from error


def _frames(dataset: Dataset, path: str, n_bytes: int) -> Iterator[Frame]:
    """One frame a picture; of an enhanced file each from its own functional groups, else from the shared ones."""
    size = (_whole(dataset, "Rows"), _whole(dataset, "Columns"))
    if not all(size):
        return
    number = int(Groups(Dataset(), Dataset(), dataset).hint("", "InstanceNumber") or 0)
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    common = next(iter(shared), Dataset())
    n_frames = _whole(dataset, "NumberOfFrames") or 1
    if not 0 < n_frames <= MAX_FRAMES:
        raise CaseRejected(Reason.UNREADABLE, f"NumberOfFrames is {n_frames}; wanted 1 to {MAX_FRAMES}")
    syntax = UID(_text(_meta(dataset), "TransferSyntaxUID"))
    is_packed = syntax.is_transfer_syntax and (syntax.is_encapsulated or syntax.is_deflated)
    check_frames(n_frames, size, 0 if is_packed else _whole(dataset, "BitsAllocated"), n_bytes)
    empty, known = Dataset(), dict[tuple[str, str], tuple[Any, ...]]()
    for index in range(n_frames):
        found = Groups(own[index] if index < len(own) else empty, common, dataset, known)
        kinds = found.values("MRImageFrameTypeSequence", "FrameType") or found.values("", "ImageType")
        segment = found.values("SegmentIdentificationSequence", "ReferencedSegmentNumber")
        slope, intercept = (
            found.number("PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept")
        )
        yield Frame(
            path=path,
            index=index,
            number=number,
            size=size,
            position_mm=found.numbers("PlanePositionSequence", "ImagePositionPatient", 3),
            orientation=found.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
            pixel_mm=found.numbers("PixelMeasuresSequence", "PixelSpacing", 2),
            stack="".join(str(v) for v in found.values("FrameContentSequence", "StackID")),
            kinds=tuple(str(kind).upper() for kind in kinds),
            contrasts=contrasts_of(found, tuple(str(kind).upper() for kind in kinds)),
            slope=1.0 if slope in (None, 0.0) else slope,
            intercept=intercept or 0.0,
            segment=int(segment[0]) if segment else 0,
        )


def _references(dataset: Dataset) -> tuple[frozenset[str], frozenset[str]]:
    """Series and instances that a segmentation (PS3.3 C.8.20.2) or structure set (C.8.8.5) says it was drawn on.

    Where no list of series names the instances, the images that each picture was derived from do (C.7.6.16.2.6).
    """
    series, instances = set(), set()
    items = list(dataset.get("ReferencedSeriesSequence") or ())
    for place in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in place.get("RTReferencedStudySequence") or ():
            items += list(study.get("RTReferencedSeriesSequence") or ())
    for item in items:
        series.add(_text(item, "SeriesInstanceUID"))
        for name in ("ReferencedInstanceSequence", "ContourImageSequence"):
            instances |= {_text(one, "ReferencedSOPInstanceUID") for one in item.get(name) or ()}
    if not instances - {""}:
        instances = set(_sources(dataset))
    return frozenset(series - {""}), frozenset(instances - {""})


def _is_quantity(dataset: Dataset) -> bool:
    """Tell by the unit of a real-world value mapping (PS3.3 C.7.6.16.2.11) whether the values are a quantity's."""
    units = (
        _text(unit, "CodeValue")
        for place in _places(dataset)
        for mapping in place.get("RealWorldValueMappingSequence") or ()
        for unit in mapping.get("MeasurementUnitsCodeSequence") or ()
    )
    return any(unit not in PLAIN_UNITS for unit in units)


def _frame_of_reference(dataset: Dataset) -> str:
    """Where an image or annotation lies; a structure set may say it of its references alone."""
    referenced = dataset.get("ReferencedFrameOfReferenceSequence") or ()
    places = (_text(dataset, "FrameOfReferenceUID"), *(_text(item, "FrameOfReferenceUID") for item in referenced))
    return next(filter(None, places), "")


def _sources(dataset: Dataset) -> Iterator[str]:
    """Instances that a file or its pictures name as what they were derived from."""
    for place in _places(dataset):
        derivations = place.get("DerivationImageSequence") or ()
        for item in (place, *derivations):
            for one in item.get("SourceImageSequence") or ():
                yield _text(one, "ReferencedSOPInstanceUID")


def _places(dataset: Dataset) -> tuple[Dataset, ...]:
    """Where an attribute may stand: the data set, and its shared and per-frame functional groups."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    return (dataset, *shared, *own)


def _whole(dataset: Dataset, name: str) -> int:
    """A whole number, 0 where the attribute is absent or empty.

    Raises:
        CaseRejected: `unreadable` where it holds something else; names the attribute alone, for it may hold anything.
    """
    try:
        return int(dataset.get(name) or 0)
    except (TypeError, ValueError, AttributeError) as error:
        raise CaseRejected(
            Reason.UNREADABLE, f"{name} holds no whole number; mend the header or export the file again"
        ) from error


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def _meta(dataset: Dataset) -> Dataset:
    return getattr(dataset, "file_meta", None) or Dataset()
