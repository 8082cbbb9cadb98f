"""Headers whose voxels lie in other files: read on disk and in archives, digested with them, never led astray."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support.builders import case_of, pairs_spec, scan, write_files
from support.packing import files_below, pack

from medvar_data.errors import CaseRejected, Reason
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.sources.archives import AccessSpec, open_access
from medvar_data.sources.detached import data_files
from medvar_data.sources.tree import open_tree

IMAGE, LABEL = scan((20, 18, 4), 1)
RAW = IMAGE.tobytes(order="F")
SPEC = pairs_spec(suffix="mhd")


def mhd(data: str) -> bytes:
    return (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = 1 1 3\nDimSize = 20 18 4\n"
        f"ElementType = MET_SHORT\nElementDataFile = {data}\n"
    ).encode()


def nhdr(data: str) -> bytes:
    return (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 20 18 4\n"
        "space directions: (1,0,0) (0,1,0) (0,0,3)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        f"space origin: (1,2,3)\ndata file: {data}\n"
    ).encode()


PLANES = [IMAGE[:, :, z].tobytes(order="F") for z in range(4)]
LISTED = {f"p{z}.raw": PLANES[z] for z in range(4)}
WAYS = {
    "mhd": {"a.mhd": mhd("a.raw"), "a.raw": RAW},
    "folder": {"a.mhd": mhd("sub/a.raw"), "sub/a.raw": RAW},
    "local": {"a.mhd": mhd("LOCAL") + RAW},
    "mha": {"a.mha": mhd("LOCAL") + RAW},
    "mha-detached": {"a.mha": mhd("a.raw"), "a.raw": RAW},
    "list": {"a.mhd": mhd("LIST\n" + "\n".join(LISTED)), **LISTED},
    "pattern": {"a.mhd": mhd("p%d.raw 0 3 1"), **LISTED},
    "nhdr": {"a.nhdr": nhdr("a.raw"), "a.raw": RAW},
    "nhdr-dot": {"a.nhdr": nhdr("./a.raw"), "a.raw": RAW},
    "nrrd": {"a.nrrd": nhdr("x").replace(b"data file: x\n", b"\n") + RAW},
}


def read(root: Path, name: str):
    with open_access(AccessSpec()):
        return read_scan(case_of(root, name), SPEC).image


@pytest.mark.parametrize("way", WAYS)
def test_the_voxels_wherever_it_lies(tmp_path, way):
    files = WAYS[way]
    header = next(iter(files))
    write_files(tmp_path / "d" / "in", files)
    plain = read(tmp_path / "d", f"in/{header}")
    assert np.array_equal(plain.voxels, IMAGE)
    assert np.allclose(plain.geometry.affine[:3, 3], [-1, -2, 3])
    for suffix in (".zip", ".tar", ".tar.gz", ".7z"):
        pack(tmp_path / f"x{suffix}", files_below(tmp_path / "d"))
        packed = read(tmp_path, f"x{suffix}!/in/{header}")
        assert np.array_equal(packed.voxels, IMAGE)
        assert packed.digest == plain.digest


@pytest.mark.parametrize("way", WAYS)
def test_the_digest_covers_every_byte(tmp_path, way):
    files = WAYS[way]
    header = next(iter(files))
    before = read(write_files(tmp_path / "a", files), header).digest
    for number, name in enumerate(files):
        data = bytearray(files[name])
        data[-1] ^= 1
        if name == header and len(files) > 1:
            data = bytearray(files[name]).replace(b"20 18 4", b"20  18 4")
        changed = write_files(tmp_path / f"b{number}", {**files, name: bytes(data)})
        assert read(changed, header).digest != before


@pytest.mark.parametrize("way", ["mhd", "list", "nhdr"])
def test_a_data_file_that_is_not_there(tmp_path, way):
    files = dict(WAYS[way])
    header, gone = next(iter(files)), list(files)[-1]
    del files[gone]
    write_files(tmp_path / "d", files)
    pack(tmp_path / "x.zip", files)
    for root, path in ((tmp_path / "d", header), (tmp_path, f"x.zip!/{header}")):
        with pytest.raises(CaseRejected, match="beside") as caught:
            read(root, path)
        assert caught.value.reason is Reason.FILE_MISSING


@pytest.mark.parametrize(
    "name", ["../secret.raw", "/etc/passwd", "sub/../../secret.raw", "C:\\secret.raw", "..\\secret.raw", "LIST\n../secret.raw",
             "../p%d.raw 0 3 1", "x.zip!/secret.raw"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["mhd", "mha", "nhdr", "nrrd"])
def test_nothing_outside_the_folder_is_read(tmp_path, name, kind):
    for place in (tmp_path, tmp_path / "d"):
        write_files(place, {"secret.raw": RAW, **LISTED})
    header = mhd(name) if kind.startswith("m") else nhdr(name)
    (tmp_path / "d" / f"a.{kind}").write_bytes(header)
    pack(tmp_path / "d" / "x.zip", {f"in/a.{kind}": header, "secret.raw": RAW})
    for path in (f"a.{kind}", f"x.zip!/in/a.{kind}"):
        with pytest.raises(CaseRejected, match="outside its own folder") as caught:
            read(tmp_path / "d", path)
        assert caught.value.reason is Reason.UNREADABLE
        assert "secret" not in caught.value.detail


def test_headers_that_make_no_sense(tmp_path):
    for text in ("", "%d.raw", "%d.raw 1 two", "p%d.raw 0 99999999 1", "%s%d.raw 1 2"):
        (tmp_path / "a.mhd").write_bytes(mhd(text))
        with pytest.raises(CaseRejected) as caught:
            data_files(tmp_path, "a.mhd")
        assert caught.value.reason is Reason.UNREADABLE


def test_ingest_counts_the_data_file_and_misses_it(tmp_path):
    label = sitk.GetImageFromArray((LABEL > 0).astype("u1").T)
    label.SetSpacing((1, 1, 3))
    sitk.WriteImage(label, str(tmp_path / "a_label.mhd"))
    write_files(tmp_path, {"a_image.mhd": mhd("a_image.raw"), "a_image.raw": RAW})
    (case,) = ingest(SPEC, open_tree(tmp_path), b"").cases
    assert case.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    (tmp_path / "a_image.raw").touch()
    later = ingest(SPEC, open_tree(tmp_path), b"").cases[0]
    assert later.modified_ns > case.modified_ns
    (tmp_path / "a_image.raw").unlink()
    result = ingest(SPEC, open_tree(tmp_path), b"")
    assert [r.reason for r in result.rejects] == [Reason.FILE_MISSING]
