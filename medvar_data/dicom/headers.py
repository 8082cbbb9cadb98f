"""Read the whitelisted attributes of one DICOM file, classic or enhanced, into frozen values: an `Instance` and its `Frame`s.

In: the bytes of a file, or its first ones. Out: numbers, closed words and the identities that are compared or hashed. Errors
and warnings of pydicom are dropped, since their texts can hold header values.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medvar_data.dicom.attributes import HEADER, PIXELS, PRIVATE_B_VALUES, STRUCTURES, TEXTS, in_block, private_tags
from medvar_data.errors import CaseRejected, Reason
from medvar_data.tree import read_bytes, read_head

HEAD_BYTES = 1 << 16  # enough for the header of nearly every single image
PIXEL_TAGS = (
    b"\xe0\x7f\x08\x00",
    b"\xe0\x7f\x09\x00",
    b"\xe0\x7f\x10\x00",
)  # little-endian; else the file is read whole
MAX_B_VALUE = 5000  # s/mm²
GE_B_OFFSET = 10**9  # GE adds multiples of it


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
    marks: Mapping[str, float | str]  # what can set volumes of one series apart
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
    series_referenced: frozenset[str]
    instances_referenced: frozenset[str]
    frames: tuple[Frame, ...]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from saying anything: its warnings and errors quote header values."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def read_instance(root: Path, path: str, *, texts: bool = False) -> Instance | None:
    """Read a file's header; None where the file is no DICOM at all.

    Args:
        root: of the download.
        path: below root, or of an archive's member.
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
    return instance_of(dataset, path)


def is_dicom(head: bytes) -> bool:
    """Tell DICOM by its magic word, or, where the preamble is missing, by a data set that starts with group 2 or 8."""
    return head[128:132] == b"DICM" or (
        head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) > 8
    )


def parse(data: bytes, *, pixels: bool = True, structures: bool = False) -> Dataset:
    """Parse a whole file: header, and on demand pixels and the structures of segmentations and structure sets.

    Raises:
        CaseRejected: `not_an_image` or `truncated`.
    """
    tags = [*HEADER, *(PIXELS if pixels else ()), *(STRUCTURES if structures else ())]
    return _parse(BytesIO(data), tags, stop=not pixels)


def instance_of(dataset: Dataset, path: str) -> Instance:
    """Take from a parsed file what its frames are and where they lie.

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
                frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
                patient=_text(dataset, "PatientID"),
                texts=tuple(text for name in TEXTS if (text := _text(dataset, name))),
                is_grey=int(dataset.get("SamplesPerPixel") or 1) == 1
                and _text(dataset, "PhotometricInterpretation") in ("", "MONOCHROME1", "MONOCHROME2"),
                is_burned_in=_text(dataset, "BurnedInAnnotation").upper() == "YES",
                series_referenced=series,
                instances_referenced=instances,
                frames=tuple(_frames(dataset, path)),
            )
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a DICOM header is cut short or damaged") from error


def _parse_head(head: bytes, tags: Sequence[str]) -> tuple[Dataset, bool]:
    """Parse the start of a file; tells whether the header ended within it."""
    stream = BytesIO(head)
    try:
        dataset = _parse(stream, tags, stop=True)
    except CaseRejected:
        if len(head) < HEAD_BYTES:
            raise
        return Dataset(), False
    reached = head[stream.tell() : stream.tell() + 4] in PIXEL_TAGS
    return dataset, reached or len(head) != HEAD_BYTES


def _parse(stream: BytesIO, tags: Sequence[str], *, stop: bool) -> Dataset:
    wanted: list[Any] = [*tags, *private_tags()]
    try:
        with quiet():
            return pydicom.dcmread(stream, force=True, stop_before_pixels=stop, specific_tags=wanted)
    except InvalidDicomError as error:
        raise CaseRejected(Reason.NOT_AN_IMAGE, "a file is not DICOM, whatever the name says") from error
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a DICOM header is cut short or damaged") from error


def _frames(dataset: Dataset, path: str) -> Iterator[Frame]:
    """One frame a picture; of an enhanced file each from its own functional groups, else from the shared ones."""
    size = (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    if not all(size):
        return
    number = int(dataset.get("InstanceNumber") or 0)
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    common = next(iter(shared), Dataset())
    for index in range(int(dataset.get("NumberOfFrames") or 1)):
        found = _Groups(own[index] if index < len(own) else Dataset(), common, dataset)
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
            marks=_marks(found, tuple(str(kind).upper() for kind in kinds)),
            slope=1.0 if slope in (None, 0.0) else slope,
            intercept=intercept or 0.0,
            segment=int(segment[0]) if segment else 0,
        )


@dataclass(frozen=True)
class _Groups:
    """A frame's attributes: in its own functional group, in the shared one, or at the top of a classic file."""

    own: Dataset
    shared: Dataset
    top: Dataset

    def values(self, group: str, name: str) -> tuple[Any, ...]:
        """Whatever the attribute holds, as a tuple; empty where it is absent or empty."""
        for place in (self.own, self.shared):
            items = place.get(group) if group else None
            value = items[0].get(name) if items else None
            if value not in (None, ""):
                return _tuple(value)
        value = self.top.get(name)
        return () if value in (None, "") else _tuple(value)

    def numbers(self, group: str, name: str, count: int) -> tuple[float, ...]:
        """So many finite numbers, or none."""
        found = tuple(float(v) for v in self.values(group, name))
        return found if len(found) == count and all(map(math.isfinite, found)) else ()

    def number(self, group: str, name: str) -> float | None:
        """The first number."""
        found = self.values(group, name)
        return float(found[0]) if found else None


def _marks(found: _Groups, kinds: tuple[str, ...]) -> dict[str, float | str]:
    """What can set volumes of one series apart: numbers, and words of a closed vocabulary."""
    first = {
        "echo": found.number("MREchoSequence", "EffectiveEchoTime"),
        "echo number": found.number("", "EchoNumbers"),
        "inversion": found.number("MRModifierSequence", "InversionTimes"),
        "flip": found.number("MRTimingAndRelatedParametersSequence", "FlipAngle"),
        "b": _b_value(found),
        "time": found.number("FrameContentSequence", "TemporalPositionIndex"),
        "trigger": found.number("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        "acquisition": found.number("FrameContentSequence", "FrameAcquisitionNumber"),
    }
    second = {
        "echo": "EchoTime", "inversion": "InversionTime", "time": "TemporalPositionIdentifier", "trigger": "TriggerTime",
        "acquisition": "AcquisitionNumber",
    }  # fmt: skip
    numbers = {name: found.number("", second[name]) if v is None and name in second else v for name, v in first.items()}
    marks: dict[str, float | str] = {name: round(v, 4) for name, v in numbers.items() if v is not None}
    part = found.values("MRImageFrameTypeSequence", "ComplexImageComponent")
    words = (str(part[0]).upper(), *kinds) if part else kinds
    marks["part"] = next((PARTS[word] for word in words if word in PARTS), "")
    marks["dixon"] = next((DIXON[word] for word in kinds if word in DIXON), "")
    marks["direction"] = _direction(found)
    return marks


PARTS = {
    "M": "magnitude", "MAGNITUDE": "magnitude", "P": "phase", "PHASE": "phase", "R": "real", "REAL": "real",
    "I": "imaginary", "IMAGINARY": "imaginary",
}  # fmt: skip
DIXON = {
    "W": "water", "WATER": "water", "F": "fat", "FAT": "fat", "IP": "in-phase", "IN_PHASE": "in-phase",
    "OP": "out-of-phase", "OPP_PHASE": "out-of-phase", "OUT_PHASE": "out-of-phase", "FF": "fat-fraction",
}  # fmt: skip


def _b_value(found: _Groups) -> float | None:
    """The b-value in s/mm², from its public place or a vendor's private one."""
    public = found.number("MRDiffusionSequence", "DiffusionBValue")
    if public is not None:
        return public
    for element, creator, name in PRIVATE_B_VALUES:
        tag = in_block(element)
        if tag in found.top and str(found.top.get(creator).value if creator in found.top else "").strip() == name:
            value = _private_number(found.top[tag].value)
            if value is not None and 0 <= value % GE_B_OFFSET <= MAX_B_VALUE:
                return value % GE_B_OFFSET
    return None


def _private_number(value: Any) -> float | None:
    """A number that a file of unknown private types may hold as bytes."""
    if isinstance(value, bytes):
        value = value.split(b"\\")[0].strip(b" \0")
    first = _tuple(value)[:1]
    try:
        return float(first[0]) if first else None
    except (TypeError, ValueError):
        return None


def _direction(found: _Groups) -> str:
    """The diffusion gradient as text, so that equal directions compare equal."""
    for place in (found.own, found.shared):
        items = place.get("MRDiffusionSequence")
        inner = items[0].get("DiffusionGradientDirectionSequence") if items else None
        if inner:
            return _rounded(inner[0].get("DiffusionGradientOrientation") or ())
    return _rounded(found.top.get("DiffusionGradientOrientation") or ())


def _rounded(values: Sequence[Any]) -> str:
    return " ".join(f"{float(v):.3f}" for v in values)


def _references(dataset: Dataset) -> tuple[frozenset[str], frozenset[str]]:
    """Series and instances that a segmentation (PS3.3 C.8.20.2) or structure set (C.8.8.5) says it was drawn on."""
    series, instances = set(), set()
    items = list(dataset.get("ReferencedSeriesSequence") or ())
    for place in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in place.get("RTReferencedStudySequence") or ():
            items += list(study.get("RTReferencedSeriesSequence") or ())
    for item in items:
        series.add(_text(item, "SeriesInstanceUID"))
        for name in ("ReferencedInstanceSequence", "ContourImageSequence"):
            instances |= {_text(one, "ReferencedSOPInstanceUID") for one in item.get(name) or ()}
    return frozenset(series - {""}), frozenset(instances - {""})


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def _meta(dataset: Dataset) -> Dataset:
    return getattr(dataset, "file_meta", None) or Dataset()


def _tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return (value,)
    return tuple(value)
