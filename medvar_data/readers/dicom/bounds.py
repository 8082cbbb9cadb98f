"""Hold DICOM files to what they can hold before anything large is made of them: deflated files, numbers of frames, and the size
that a compressed picture claims for itself.

A file of a few kilobytes can claim gigabytes. What a header and the length of its file allow is the bound, and a picture's own
code stream has to agree with its header before it is decoded.
"""

import re
import struct
import zlib

from medvar_data.errors import CaseRejected, Reason

DEFLATED = b"1.2.840.10008.1.2.1.99"
META_START, META_FIXED = 132, 144  # where the file meta information begins, and where what follows its length does
HEADER_LIMIT = 16 << 20  # bytes of a header, inflated
SLACK = 1.1  # of the bytes that pixels take: padding and what follows them
LEAST_FRAME_BYTES = 10  # a compressed picture takes no less: the head of an item and a byte or two
MOST_PIXELS = 1 << 28  # 16,384 x 16,384, of one picture
PLAIN_META = (
    struct.pack("<HH2sHI", 2, 0, b"UL", 4, 28) + struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
)


def inflated(data: bytes, limit: int) -> bytes:
    """A deflated file as a plain one, cut off after `limit` bytes; any other file as it is."""
    if data[128:132] != b"DICM" or len(data) < META_FIXED:
        return data
    (length,) = struct.unpack("<I", data[140:144])
    end = META_FIXED + length
    if length > len(data) or DEFLATED not in data[META_START:end]:
        return data
    try:
        plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[end:], limit)
    except zlib.error as error:
        raise CaseRejected(Reason.TRUNCATED, "a deflated DICOM file is cut short or damaged") from error
    return data[:META_START] + PLAIN_META + plain


def check_frames(n_frames: int, size: tuple[int, int], bits: int, n_bytes: int) -> None:
    """Refuse more frames than a file can hold.

    Args:
        n_frames: as the header says.
        size: rows and columns.
        bits: of a pixel as stored; 0 where pixels are compressed.
        n_bytes: of the file; 0 where that is not known.

    Raises:
        CaseRejected: `truncated`.
    """
    each = max(LEAST_FRAME_BYTES, bits * size[0] * size[1] // 8) if bits != 1 else size[0] * size[1] / 8
    if n_bytes and n_frames > 1 and n_frames * each > n_bytes:
        raise CaseRejected(
            Reason.TRUNCATED,
            f"NumberOfFrames is {n_frames:,}, which takes {int(n_frames * each):,} bytes or more, but the file has {n_bytes:,}; "
            "export it again",
        )


def check_code_stream(stream: bytes, size: tuple[int, int]) -> None:
    """Compare the size that a JPEG, JPEG-LS or JPEG 2000 picture has in its own code stream with its header's.

    Args:
        stream: of one frame.
        size: rows and columns, as the header says.

    Raises:
        CaseRejected: `truncated` where they differ.
    """
    found = _jpeg_2000_size(stream) or _jpeg_size(stream)
    if found and found != size:
        raise CaseRejected(
            Reason.TRUNCATED,
            f"a picture is compressed as {found[0]:,} rows of {found[1]:,}, but the header says {size[0]:,} rows of {size[1]:,}; "
            "export it again",
        )


def _jpeg_2000_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns by the SIZ marker (ISO 15444-1 A.5.1), which follows the start of the code stream."""
    start = stream.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    if start < 0 or len(stream) < start + 24:
        return None
    columns, rows, left, top = struct.unpack(">IIII", stream[start + 8 : start + 24])
    return rows - top, columns - left


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns by the start of the frame (ISO 10918-1 B.2.2; JPEG-LS: ISO 14495-1 C.2.2)."""
    if stream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if re.fullmatch(rb"[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]", bytes((marker,))):
            rows, columns = struct.unpack(">HH", stream[at + 5 : at + 9])
            return rows, columns
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
