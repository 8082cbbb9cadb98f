"""Laws of the archives: the standard library and webdataset read what we write, offsets are true, same bytes twice."""

import tarfile

import pytest
import webdataset

from medvar_data.errors import MedvarError
from medvar_data.storage.tar import read_tar, write_tar

MEMBERS = [("a-z0001.png", b"x" * 700), ("a-z0001.mask.png", b""), ("a-z0001.json", b'{"a":1}'), ("b.png", bytes(512))]


def test_standard_library_reads_it(tmp_path):
    write_tar(tmp_path / "a.tar", MEMBERS)
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [(m.name, archive.extractfile(m).read()) for m in archive.getmembers()] == MEMBERS
        for member in archive.getmembers():
            assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)
            assert member.mode == 0o444


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
def test_webdataset_reads_it(tmp_path):
    write_tar(tmp_path / "a.tar", MEMBERS[:3])
    data = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)
    (sample,) = list(data)
    assert sample["__key__"] == "a-z0001"
    assert {k: sample[k] for k in ("png", "mask.png", "json")} == {
        "png": b"x" * 700,
        "mask.png": b"",
        "json": b'{"a":1}',
    }


def test_offsets_point_at_the_data(tmp_path):
    path = tmp_path / "a.tar"
    written = write_tar(path, MEMBERS)
    data = path.read_bytes()
    for (name, content), member in zip(MEMBERS, written, strict=True):
        assert member.name == name
        assert data[member.offset : member.offset + member.size] == content
    assert read_tar(data) == written
    assert len(data) % 512 == 0


def test_same_members_same_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, iter(MEMBERS))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_empty_archive_is_one(tmp_path):
    write_tar(tmp_path / "a.tar", [])
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getmembers() == []


@pytest.mark.parametrize("name", ["x" * 100, "ä.png"])
def test_a_name_that_needs_another_format_is_refused(tmp_path, name):
    with pytest.raises(MedvarError, match="99"):
        write_tar(tmp_path / "a.tar", [(name, b"")])
    write_tar(tmp_path / "a.tar", [("x" * 99, b"1")])
