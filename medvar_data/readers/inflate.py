"""Inflate gzip files by ISA-L: one member or many, junk behind the last one passed over, damage told."""

import sys
import zlib

import numpy as np
from isal import igzip_lib

from medvar_data.errors import CaseRejected, Reason

GZIP_MAGIC, DEFLATE = b"\x1f\x8b", b"\x08"


HEADER_BYTES = 540  # NIfTI-2


MIN_HEADER_BYTES = 348  # NIfTI-1


PIECE_BYTES = 1 << 18  # taken in and given out at a time


MAX_DEFLATE_RATIO = 1032  # no deflate stream reaches more


def inflated_head(data: bytes) -> bytes:
    """The first bytes of a NIfTI file, inflated where they are gzip."""
    if data[:2] != GZIP_MAGIC:
        return data
    head, rest = b"", data
    while len(head) < HEADER_BYTES and rest[:2] == GZIP_MAGIC:  # a header may lie in several members
        inflater = zlib.decompressobj(wbits=31)
        try:
            head += inflater.decompress(rest, HEADER_BYTES - len(head))
        except zlib.error as error:
            raise CaseRejected(Reason.UNREADABLE, "the gzip stream is damaged; download the file again") from error
        if len(head) < MIN_HEADER_BYTES and not inflater.eof:
            raise CaseRejected(Reason.TRUNCATED, "the gzip stream ends within the header; download the file again")
        rest = inflater.unused_data
    return head


def inflate(data: bytes, most_bytes: int = sys.maxsize) -> memoryview:
    """Inflate gzip; other content comes back as it is. What goes on after `most_bytes` is cut off there, or a little later."""
    if data[:2] != GZIP_MAGIC:
        return memoryview(data)
    whole = _inflate_one_member(data, most_bytes)
    if whole is not None:
        return whole
    return memoryview(_inflate_members(data, most_bytes))


def _inflate_members(data: bytes, most_bytes: int) -> bytes:
    """Inflate one gzip member after the other; what follows the last and is no gzip is padding or junk.

    Raises:
        CaseRejected: a member ends early, or its bytes or checksum are wrong.
    """
    parts: list[bytes] = []
    at = n_members = total = 0
    while data[at : at + 2] == GZIP_MAGIC and (not n_members or data[at + 2 : at + 3] == DEFLATE):
        inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        try:
            while not inflater.eof and (at < len(data) or not inflater.needs_input):
                piece = data[at : at + PIECE_BYTES] if inflater.needs_input else b""
                at += len(piece)
                parts.append(inflater.decompress(piece, PIECE_BYTES))
                total += len(parts[-1])
                if total > most_bytes:
                    return b"".join(parts)
        except Exception as error:  # ISA-L raises its own class for broken deflate blocks
            raise CaseRejected(
                Reason.UNREADABLE, "the gzip stream is damaged (its blocks or its checksum fail); download it again"
            ) from error
        if not inflater.eof:
            raise CaseRejected(Reason.TRUNCATED, "the gzip stream ends early; download the file again")
        at -= len(inflater.unused_data)
        n_members += 1
    return b"".join(parts)


def _inflate_one_member(data: bytes, most_bytes: int) -> memoryview | None:
    """Inflate a plain gzip file into one array of the size that its last bytes name; None where anything is unusual.

    numpy asks for huge pages, Python's bytes do not: a fifth of the time goes to faulting small ones in.
    """
    size = int.from_bytes(data[-4:], "little")
    if size > min(most_bytes, MAX_DEFLATE_RATIO * len(data)):
        return None
    whole = np.empty(size, dtype=np.uint8).data
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    taken = filled = 0
    try:
        while not inflater.eof and (taken < len(data) or not inflater.needs_input):
            piece = data[taken : taken + PIECE_BYTES] if inflater.needs_input else b""
            taken += len(piece)
            out = inflater.decompress(piece, PIECE_BYTES)
            if filled + len(out) > size:
                return None
            whole[filled : filled + len(out)] = out
            filled += len(out)
    except Exception:  # `_inflate_members` says what is wrong
        return None
    return whole if inflater.eof and taken == len(data) and not inflater.unused_data and filled == size else None
