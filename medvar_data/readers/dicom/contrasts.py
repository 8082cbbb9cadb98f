"""Take from one picture's attributes what can set volumes of one series apart: numbers, and words of a closed vocabulary.

In: the functional groups of a frame, its own and the shared ones, and the top of its file. Out: a table of them. Kernel and time of
acquisition are compared and ranked, and never shown; none of the others can hold free text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset

from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.dicom.attributes import PRIVATE_B_VALUES, in_block

MAX_B_VALUE = 5000  # s/mm²
GE_B_OFFSET = 10**9  # GE adds multiples of it
PARTS = {
    "M": "magnitude", "MAGNITUDE": "magnitude", "P": "phase", "PHASE": "phase", "R": "real", "REAL": "real",
    "I": "imaginary", "IMAGINARY": "imaginary",
}  # fmt: skip
DIXON = {
    "W": "water", "WATER": "water", "F": "fat", "FAT": "fat", "IP": "in-phase", "IN_PHASE": "in-phase",
    "OP": "out-of-phase", "OPP_PHASE": "out-of-phase", "OUT_PHASE": "out-of-phase", "FF": "fat-fraction",
}  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """A frame's attributes: in its own functional group, in the shared one, or at the top of a classic file."""

    own: Dataset
    shared: Dataset
    top: Dataset
    known: dict[tuple[str, str], tuple[Any, ...]] = field(default_factory=dict)  # what all frames of a file share

    def values(self, group: str, name: str) -> tuple[Any, ...]:
        """Whatever the attribute holds, as a tuple; empty where it is absent or empty."""
        items = self.own.get(group) if group and len(self.own) else None
        value = items[0].get(name) if items else None
        if value not in (None, ""):
            return _tuple(value)
        if (group, name) not in self.known:
            self.known[group, name] = self._shared_values(group, name)
        return self.known[group, name]

    def _shared_values(self, group: str, name: str) -> tuple[Any, ...]:
        items = self.shared.get(group) if group else None
        for place in (items[0] if items else Dataset(), self.top):
            value = place.get(name)
            if value not in (None, ""):
                return _tuple(value)
        return ()

    def numbers(self, group: str, name: str, count: int) -> tuple[float, ...]:
        """So many finite numbers, or none."""
        found = tuple(_number(name, v) for v in self.values(group, name))
        return found if len(found) == count and all(map(math.isfinite, found)) else ()

    def number(self, group: str, name: str) -> float | None:
        """The first number."""
        found = self.values(group, name)
        return _number(name, found[0]) if found else None

    def hint(self, group: str, name: str) -> float | None:
        """The first number; None where it is none, since it only helps to tell volumes apart."""
        try:
            return self.number(group, name)
        except CaseRejected:
            return None


def _number(name: str, value: Any) -> float:
    """A number, or a reject that names the attribute and not what it holds, which may be anything."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise CaseRejected(
            Reason.UNREADABLE, f"{name} holds no number; mend the header or export the file again"
        ) from error


def contrasts_of(found: Groups, kinds: tuple[str, ...]) -> dict[str, float | str]:
    """What can set volumes of one series apart: numbers, and words of a closed vocabulary."""
    first = {
        "echo": found.hint("MREchoSequence", "EffectiveEchoTime"),
        "echo number": found.hint("", "EchoNumbers"),
        "inversion": found.hint("MRModifierSequence", "InversionTimes"),
        "flip": found.hint("MRTimingAndRelatedParametersSequence", "FlipAngle"),
        "b": _b_value(found),
        "time": found.hint("FrameContentSequence", "TemporalPositionIndex"),
        "trigger": found.hint("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        "acquisition": found.hint("FrameContentSequence", "FrameAcquisitionNumber"),
    }
    second = {
        "echo": "EchoTime", "inversion": "InversionTime", "time": "TemporalPositionIdentifier", "trigger": "TriggerTime",
        "acquisition": "AcquisitionNumber",
    }  # fmt: skip
    numbers = {name: found.hint("", second[name]) if v is None and name in second else v for name, v in first.items()}
    contrasts: dict[str, float | str] = {name: round(v, 4) for name, v in numbers.items() if v is not None}
    part = found.values("MRImageFrameTypeSequence", "ComplexImageComponent")
    words = (str(part[0]).upper(), *kinds) if part else kinds
    contrasts["part"] = next((PARTS[word] for word in words if word in PARTS), "")
    contrasts["dixon"] = next((DIXON[word] for word in kinds if word in DIXON), "")
    contrasts["direction"] = _direction(found)
    contrasts["series"] = found.hint("", "SeriesNumber") or 0.0
    contrasts["kernel"] = " ".join(str(v) for v in found.values("CTReconstructionSequence", "ConvolutionKernel"))
    contrasts["acquired"] = str(next(iter(found.values("", "AcquisitionTime")), ""))
    return contrasts


def _b_value(found: Groups) -> float | None:
    """The b-value in s/mm², from its public place or a vendor's private one."""
    public = found.hint("MRDiffusionSequence", "DiffusionBValue")
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


def _direction(found: Groups) -> str:
    """The diffusion gradient as text, so that equal directions compare equal."""
    for place in (found.own, found.shared):
        items = place.get("MRDiffusionSequence")
        inner = items[0].get("DiffusionGradientDirectionSequence") if items else None
        if inner:
            return _rounded(inner[0].get("DiffusionGradientOrientation") or ())
    return _rounded(found.top.get("DiffusionGradientOrientation") or ())


def _rounded(values: Sequence[Any]) -> str:
    return " ".join(f"{float(v):.3f}" for v in values)


def _tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return (value,)
    return tuple(value)
