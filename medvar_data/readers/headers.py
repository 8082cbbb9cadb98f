"""What headers of volume files say in more than one way: the unit of length, and where the voxels begin.

Spacing and origin are millimetres everywhere in medvar; a file that says metres or micrometres is converted and says so in a step.
"""

import math
import re
from collections.abc import Iterable

import nibabel as nib
import numpy as np

from medvar_data.errors import CaseRejected, Reason

METRE, MICRON = "spacing_in_metres", "spacing_in_microns"
NIFTI_UNITS = {1: (1000.0, METRE), 3: (0.001, MICRON)}  # `xyzt_units`, low three bits; 2 is mm, 0 unknown
SPACE_BITS = 0x07
UNITS = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres", ""), (1.0, "")),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
                    (0.001, MICRON)),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), (1000.0, METRE)),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), (10.0, "spacing_in_centimetres")),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), (1e-6, "spacing_in_nanometres")),
}  # fmt: skip
TEXT_UNITS = {  # suffix -> the line that names units of length
    ".nrrd": rb"^space units:[ \t]*(.*)$",
    ".nhdr": rb"^space units:[ \t]*(.*)$",
    ".mha": rb"^DistanceUnits[ \t]*=[ \t]*(.*)$",
    ".mhd": rb"^DistanceUnits[ \t]*=[ \t]*(.*)$",
}
TEXT_BYTES = 1 << 16  # more than any header of text
EXTENSION_STEP = 16  # bytes: lengths of NIfTI extensions are multiples of it


def unit_mm(header: nib.Nifti1Header) -> float:
    """Millimetres in the unit of a NIfTI header; where it names none, millimetres are meant."""
    return NIFTI_UNITS.get(int(header["xyzt_units"]) & SPACE_BITS, (1.0, ""))[0]


def unit_steps(header: nib.Nifti1Header) -> tuple[str, ...]:
    """The step that tells of a unit other than millimetres."""
    found = NIFTI_UNITS.get(int(header["xyzt_units"]) & SPACE_BITS)
    return (found[1],) if found else ()


def mm_of(steps: Iterable[str]) -> float:
    """Millimetres in the unit that a reader's steps tell of."""
    return next((factor for factor, step in UNITS.values() if step and step in steps), 1.0)


def text_header_unit(path: str, head: bytes) -> tuple[float, str]:
    """Millimetres in the unit that an NRRD or MetaImage header names, and the step that tells of it.

    Raises:
        CaseRejected: `spacing_implausible` where the axes differ in it, or it is no length.
    """
    pattern = next((line for suffix, line in TEXT_UNITS.items() if path.lower().endswith(suffix)), None)
    text = re.split(rb"\r?\n\r?\n|^ElementDataFile", head[:TEXT_BYTES], maxsplit=1, flags=re.MULTILINE)[0]
    match = re.search(pattern, text, re.IGNORECASE | re.MULTILINE) if pattern else None
    if not match:
        return 1.0, ""
    named = match[1].decode("utf-8", "replace").strip()
    words = re.findall(r'"([^"]*)"', named) or [named]
    found = {UNITS.get(word.strip().lower()) for word in words if word != "???"} or {(1.0, "")}
    one = found.pop()
    if found or one is None:
        raise CaseRejected(
            Reason.SPACING_IMPLAUSIBLE,
            "the header's unit of space is no length, or not one for all axes; wanted mm, um, cm or m",
        )
    return one


def voxels_begin(header: nib.Nifti1Header, raw: memoryview, n_bytes: int) -> int:
    """The byte where the voxels of a NIfTI file begin.

    Nothing lies before the header's end and the four bytes after it, whatever `vox_offset` says; where it says less, or ignores
    extensions that are there, the size of the file decides.

    Args:
        header: as stored.
        raw: the whole file, inflated.
        n_bytes: of all voxels.
    """
    lowest = header.sizeof_hdr + 4
    stated = float(header["vox_offset"])
    after, room = _end_of_extensions(raw, lowest, header.endianness), len(raw) - n_bytes
    if not math.isfinite(stated) or stated < lowest:
        return lowest - 4 if room == lowest - 4 else after
    return after if int(stated) < after == room else int(stated)


def _end_of_extensions(raw: memoryview, start: int, endianness: str) -> int:
    """Where the header's extensions end; `start` where there are none, or none that can be followed."""
    at = start
    if len(raw) < start or not raw[start - 4]:
        return start
    while at + 8 <= len(raw):
        size = int(np.frombuffer(raw, f"{endianness}i4", count=1, offset=at)[0])
        if size < EXTENSION_STEP or size % EXTENSION_STEP or at + size > len(raw):
            break
        at += size
    return at
