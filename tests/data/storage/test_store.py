"""Laws of the store: a name shows the whole of a file or nothing, in a folder and on an object store alike."""

import errno
import os
import subprocess
import time
import uuid

import pytest

from medvar_data.errors import WorkspaceError
from medvar_data.storage.store import (
    ABANDONED_SECONDS,
    PARTIAL_NAME,
    Store,
    atomic_path,
    canonical_json,
    file_digest,
    remove_partials,
    write_bytes,
    write_json,
)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return Store(str(tmp_path / "set") if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def local_file(tmp_path, content: bytes):
    path = tmp_path / uuid.uuid4().hex
    path.write_bytes(content)
    return path


def test_put_read_open_size_names_remove(store, tmp_path):
    assert store.names() == []
    assert store.size("b.tar") is None
    for name, content in (("b.tar", b"0123456789"), ("a.json", b"{}")):
        source = local_file(tmp_path, content)
        store.put(source, name)
        assert not source.exists()
    assert store.names() == ["a.json", "b.tar"]
    assert store.read("b.tar") == b"0123456789"
    assert store.size("b.tar") == 10
    with store.open("b.tar") as stream:
        stream.seek(4)
        assert stream.read(3) == b"456"
    store.put(local_file(tmp_path, b"new"), "b.tar")
    assert store.read("b.tar") == b"new"
    store.remove("b.tar")
    store.remove("b.tar")
    assert store.names() == ["a.json"]


def test_a_missing_name_is_an_os_error(store):
    with pytest.raises(OSError, match="nothing"):
        store.read("nothing.tar")


def test_an_unknown_filesystem_is_a_sentence():
    with pytest.raises(WorkspaceError, match="nosuch"):
        Store("nosuch://bucket/set").names()


def fail_while_writing(path):
    with atomic_path(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError


def test_an_exception_leaves_nothing(tmp_path):
    path = tmp_path / "folder" / "file"
    with pytest.raises(RuntimeError):
        fail_while_writing(path)
    assert list(path.parent.iterdir()) == []


def test_an_exception_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError):
        fail_while_writing(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_is_visible_before_the_end(tmp_path):
    path = tmp_path / "file"
    with atomic_path(path) as partial:
        partial.write_bytes(b"whole")
        assert not path.exists()
        assert partial.name.startswith(".")
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path):
    """The new content is another file that takes the name, not the old one overwritten."""
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"


def test_others_may_read_what_is_finished(tmp_path):
    write_bytes(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_partials_of_a_killed_run_go_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    with atomic_path(tmp_path / "deep" / "open.parquet") as alive:
        assert PARTIAL_NAME.fullmatch(alive.name)
        old, dead = time.time() - 2 * ABANDONED_SECONDS, subprocess.Popen(["true"])
        dead.wait()
        ours = alive.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-").replace("open", "ours")
        place = PARTIAL_NAME.fullmatch(alive.name)["place"]
        elsewhere = ours.replace(place, "0123abcd").replace("ours", "elsewhere")
        for name in (
            ours,
            elsewhere,
            elsewhere.replace("elsewhere", "abandoned"),
            ".nameless.partial",
            "notes.partial",
        ):
            (tmp_path / "deep" / name).write_bytes(b"half")
        for name in (elsewhere.replace("elsewhere", "abandoned"), "notes.partial"):
            os.utime(tmp_path / "deep" / name, (old, old))
        (tmp_path / "deep" / "case.parquet").write_bytes(b"whole")
        remove_partials(tmp_path)
        left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
        assert left == {alive.name, elsewhere, ".nameless.partial", "notes.partial", "case.parquet"}
    assert (tmp_path / "deep" / "open.parquet").exists()


def test_a_full_disk_is_a_sentence(tmp_path):
    def write() -> None:
        with atomic_path(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "No space left on device", "a path with a name")

    with pytest.raises(WorkspaceError, match=r"is full\. Free some space") as caught:
        write()
    assert "a path with a name" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_json_has_one_spelling(tmp_path):
    assert canonical_json({"b": 1.0, "a": ["ü"]}) == canonical_json({"a": ["ü"], "b": 1.0})
    write_json(tmp_path / "a", {"b": 1, "a": 2})
    assert (tmp_path / "a").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
