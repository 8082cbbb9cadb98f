"""Small DICOM files that claim to be large cost no more than they weigh, and end in a sentence."""

import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless
from support.builders import write_files
from support.dicom_files import cohort_toml, enhanced, image, slices, structure_set, volume

from medvar_data.catalog.load import parse_collection
from medvar_data.errors import CaseRejected, Reason
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.dicom.bounds import check_code_stream
from medvar_data.readers.read import read_scan
from medvar_data.sources.tree import open_tree

MR = parse_collection(cohort_toml(), "test", own=True)
MOST_BYTES = 200 << 20


def ends(folder, files) -> list[Reason | str]:
    """How the series ends, and that no more memory was taken than a small scan may cost."""
    write_files(folder, files)
    tracemalloc.start()
    try:
        found = ingest(MR, open_tree(folder), b"salt")
        ways: list[Reason | str] = [reject.reason for reject in found.rejects]
        for case in found.cases:
            try:
                read_scan(case, MR)
                ways.append("read")
            except CaseRejected as error:
                ways.append(error.reason)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    return ways


def stored(data: bytes, syntax: str, pixels: bytes | None = None) -> bytes:
    dataset, stream = pydicom.dcmread(BytesIO(data)), BytesIO()
    dataset.file_meta.TransferSyntaxUID = syntax
    if pixels is not None:
        dataset.PixelData = pixels
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def deflated_bomb(data: bytes, n_mib: int) -> bytes:
    """A deflated file whose pixel data inflate to so many MiB of zeros."""
    raw = stored(data, "1.2.840.10008.1.2.1.99")
    end = 144 + struct.unpack("<I", raw[140:144])[0]
    plain = zlib.decompress(raw[end:], -15)
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    out = pack.compress(plain[: plain.rindex(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW"))])
    out += pack.compress(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, n_mib << 20))
    for _ in range(n_mib):
        out += pack.compress(bytes(1 << 20))
    return raw[:end] + out + pack.flush()


def test_a_deflated_file_is_read_as_any_other(tmp_path):
    pixels = volume(4)
    files = {name: stored(data, "1.2.840.10008.1.2.1.99") for name, data in slices(pixels).items()}
    assert ends(tmp_path, files) == ["read"]


@pytest.mark.parametrize("n_mib", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_deflated_files_that_inflate_without_end(tmp_path, n_mib):
    files = {name: deflated_bomb(data, n_mib) for name, data in slices(volume(3)).items()}
    (end,) = ends(tmp_path, files)
    assert end in (Reason.TRUNCATED, Reason.CONSTANT_IMAGE, "read")


def jpeg_2000(side: int) -> bytes:
    size = struct.pack(">HHHIIIIIIIIH", 0xFF51, 41, 0, side, side, 0, 0, side, side, 0, 0, 1) + bytes([15, 1, 1])
    return (
        b"\xff\x4f" + size + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1) + b"\xff\x93" + bytes(64) + b"\xff\xd9"
    )


def jpeg_ls(side: int) -> bytes:
    return b"\xff\xd8\xff\xf7" + struct.pack(">HBHHBBBB", 11, 16, side, side, 1, 1, 0x11, 0) + bytes(64) + b"\xff\xd9"


@pytest.mark.parametrize(("syntax", "make"), [(JPEG2000Lossless, jpeg_2000), (JPEGLSLossless, jpeg_ls)])
def test_a_code_stream_that_claims_another_size_than_its_header(tmp_path, syntax, make):
    files = {name: stored(data, syntax, encapsulate([make(60_000)])) for name, data in slices(volume(4)).items()}
    assert ends(tmp_path, files) == [Reason.TRUNCATED]
    check_code_stream(make(12), (12, 12))
    with pytest.raises(CaseRejected, match="60,000 rows of 60,000, but the header says 12 rows of 12"):
        check_code_stream(make(60_000), (12, 12))


def test_what_is_no_code_stream_is_left_to_the_decoder():
    for stream in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\0", b"\xff\x4f\xff\x51\0", bytes(99)):
        check_code_stream(stream, (12, 12))


@pytest.mark.parametrize("n_frames", [65_536, 40])
def test_more_frames_than_the_file_can_hold(tmp_path, n_frames):
    assert ends(tmp_path, {"x": image(volume(1)[0], (0, 0, 0), NumberOfFrames=str(n_frames))}) == [Reason.TRUNCATED]


@pytest.mark.slow
def test_many_frames_that_are_there(tmp_path):
    n = 600
    pixels = np.random.default_rng(0).integers(1, 9, (n, 4, 4)).astype(np.uint16)
    assert ends(tmp_path, {"x": enhanced(pixels, [(0, 0, float(k)) for k in range(n)], [{}] * n)}) == ["read"]


@pytest.mark.slow
def test_contours_without_end_at_one_height(tmp_path):
    square = np.array([[2, 2, 2.0], [8, 2, 2.0], [8, 8, 2.0], [2, 8, 2.0]])
    files = slices(volume(4)) | {"s": structure_set({"lung": [np.add(square, (n * 1e-3, 0, 0)) for n in range(4_200)]})}
    assert ends(tmp_path, files) == [Reason.LABEL_GEOMETRY]
