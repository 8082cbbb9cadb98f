"""Tell from headers how many voxels a case has and how many bytes its files inflate to, so that its cost can be foreseen.

What no header tells is left at 0: a guess by the size of the files is the planner's.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from math import prod
from pathlib import Path

import pydicom

from medvar_data.errors import CaseRejected
from medvar_data.readers.dicom.headers import quiet
from medvar_data.readers.scan import Header
from medvar_data.records import Case
from medvar_data.sources.tree import read_head

HEAD_BYTES = 1 << 14
DICOM_TAGS = ["Rows", "Columns", "BitsAllocated", "NumberOfFrames", "SamplesPerPixel"]
# Names of voxel types in MetaImage and NRRD headers, by their bytes.
TYPE_BYTES = {
    **dict.fromkeys(("met_char", "met_uchar", "signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("met_short", "met_ushort", "short", "short int", "signed short", "signed short int", "int16", "int16_t",
                     "ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("met_int", "met_uint", "met_float", "int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32",
                     "uint32_t", "float"), 4),
    **dict.fromkeys(("met_double", "met_long_long", "met_ulong_long", "double", "longlong", "long long", "int64", "int64_t",
                     "ulonglong", "unsigned long long", "uint64", "uint64_t"), 8),
}  # fmt: skip
TEXT_HEADERS = {  # suffix -> patterns of the sizes and of the voxel type
    ".mha": (rb"(?mi)^DimSize *= *([\d ]+)", rb"(?mi)^ElementType *= *(\w+)"),
    ".mhd": (rb"(?mi)^DimSize *= *([\d ]+)", rb"(?mi)^ElementType *= *(\w+)"),
    ".nrrd": (rb"(?mi)^sizes: *([\d ]+)", rb"(?mi)^type: *([\w ]+)"),
}


def sized(case: Case, headers: Mapping[str, Header | CaseRejected | None]) -> Case:
    """Note the size of a case.

    Args:
        case: found, its files not read.
        headers: by path, those that ingest has read already.
    """
    n_voxels, image_bytes = _size(case, case.image, headers)
    _, label_bytes = _size(case, case.label, headers)
    known = n_voxels and (label_bytes or not case.label)
    return replace(case, n_voxels=n_voxels, inflated_bytes=image_bytes + label_bytes) if known else case


def _size(case: Case, paths: tuple[str, ...], headers: Mapping[str, Header | CaseRejected | None]) -> tuple[int, int]:
    """Voxels of the first volume, one channel, and bytes of all files; a stack is measured by its first file."""
    if not paths:
        return 0, 0
    if case.reader == "volume":
        sizes = [_known(headers.get(path)) or _peek(case.root, path) for path in paths]
        return (sizes[0][0], sum(n for _, n in sizes)) if all(n for _, n in sizes) else (0, 0)
    n_voxels, n_bytes = _peek(case.root, case.image[0])
    if paths is case.label:
        n_bytes = n_voxels * 2
    return n_voxels * len(paths), n_bytes * len(paths)


def _known(header: Header | CaseRejected | None) -> tuple[int, int] | None:
    if not isinstance(header, Header) or not header.voxel_bytes:
        return None
    n_voxels = prod(header.shape)
    return n_voxels, n_voxels * header.n_channels * header.voxel_bytes


def _peek(root: str, path: str) -> tuple[int, int]:
    """Voxels and bytes by the head of a file; zeros where it does not tell, which is no reason to leave a case out."""
    try:
        head = read_head(Path(root), path, HEAD_BYTES)
        suffix = Path(path).suffix.lower()
        return _text_header(head, *TEXT_HEADERS[suffix]) if suffix in TEXT_HEADERS else _dicom_header(head)
    except Exception:
        return 0, 0


def _text_header(head: bytes, sizes: bytes, kind: bytes) -> tuple[int, int]:
    found, named = re.search(sizes, head), re.search(kind, head)
    if not found or not named:
        return 0, 0
    n_voxels = prod(int(n) for n in found[1].split())
    return n_voxels, n_voxels * TYPE_BYTES[named[1].decode().strip().lower()]


def _dicom_header(head: bytes) -> tuple[int, int]:
    with quiet():
        header = pydicom.dcmread(BytesIO(head), stop_before_pixels=True, specific_tags=list(DICOM_TAGS))
    n_voxels = int(header.Rows) * int(header.Columns) * int(header.get("NumberOfFrames") or 1)
    return n_voxels, n_voxels * int(header.get("SamplesPerPixel") or 1) * int(header.BitsAllocated) // 8
