"""Archives: the same rows packed or unpacked, hostile ones kept out, passwords and scratch space that leave no trace."""

import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.builders import nifti_bytes, pairs_spec, pairs_toml, scan, small_recipe, spaced
from support.packing import (
    PASSWORD,
    files_below,
    gzip_of_zeros,
    pack,
    packed_bytes,
    seven_zip_named,
    seven_zip_symlink,
    special_member,
    tar_bytes,
    zip_crypto,
    zip_symlink,
    zip_with_false_size,
)

from medvar_data.demo.phantoms import write_phantoms
from medvar_data.errors import CaseRejected, Reason, SourceError
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.find_cases import ingest
from medvar_data.ingest.run import run_ingest
from medvar_data.sources.archives import AccessSpec, is_archive, open_access, read_passwords, split_path
from medvar_data.sources.archives.scratch import PREFIX, remove_stale
from medvar_data.sources.tree import open_tree, read_bytes, read_head
from medvar_data.workspace.workspace import Workspace

IMAGE, LABEL = scan((20, 18, 4), 1)
GOOD = nifti_bytes(IMAGE, spaced(1, 1, 3))
MEMBERS = {"a_image.nii": GOOD, "a_label.nii": nifti_bytes((LABEL > 0).astype("u1"), spaced(1, 1, 3))}
SPEC = pairs_spec(suffix="nii")
KINDS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z"]
STREAMED = [".tar.gz", ".tar.bz2", ".tar.xz", ".7z"]


def found(folder: Path, **access):
    """Ingest the user's own pairs below a folder, as one run does."""
    with open_access(AccessSpec(**access)):
        return ingest(SPEC, open_tree(folder), b"salt")


def reasons(result) -> list[Reason]:
    return [reject.reason for reject in result.rejects]


def rows(result) -> list:
    """What ingest found, without what differs by packing."""
    return [
        (replace(c, root="", image=(), label=(), modified_ns=0), [tuple(p.split("!/")[-1] for p in part) for part in (c.image, c.label)])
        for c in result.cases
    ] + [
        replace(r, case="" if r.case.startswith("archive") else r.case, files=tuple(p.split("!/")[-1] for p in r.files))
        for r in result.rejects
    ]  # fmt: skip


def slices(workspace: Workspace, recipe) -> dict:
    """Every byte that harmonize made of a workspace's cases, and why it left cases out."""
    made = {}
    for name in workspace.collections():
        for case in workspace.cases(name):
            table = pq.read_table(workspace.case_file(case))
            made[name, case.case] = table.replace_schema_metadata(None).to_pylist()
        made[name, "rejects"] = [(r.case, r.reason) for r in workspace.harmonize_rejects(name)]
    return made


def pipeline(sources: dict[str, Path], folder: Path, recipe, workers: int = 1, **access) -> tuple[list, dict]:
    """Ingest and harmonize; rows and slices."""
    workspace = Workspace(folder)
    workspace.set_salt(bytes(32))
    spec = AccessSpec(**access)
    results = list(run_ingest(sources, workspace, archives=spec))
    run_harmonize(workspace, recipe, workers, lambda _: None, archives=spec)
    return [rows(result) for result in results], slices(workspace, recipe)


class TestNames:
    def test_a_path_leads_through_archives(self):
        assert split_path("a/b.nii.gz") == ("a/b.nii.gz",)
        assert split_path("a.zip!/b.TAR.GZ!/c/d") == ("a.zip", "b.TAR.GZ", "c/d")
        assert split_path("odd!/a.zip!/b!/c") == ("odd!/a.zip", "b!/c")

    def test_volumes_are_no_archives(self):
        assert not any(map(is_archive, ("a.nii.gz", "a.gz", "a.zipped", "tar", "a.rar", "a.7z.txt")))
        assert all(is_archive(f"A{end.upper()}") for end in KINDS)


@pytest.fixture(scope="module", params=["two", pytest.param("all", marks=pytest.mark.slow)])
def phantoms(request, tmp_path_factory):
    """Two phantom collections, a NIfTI one and a MetaImage one, or all ten."""
    folder = tmp_path_factory.mktemp("packed-phantoms")
    return write_phantoms(folder, patients=1, cells=["heart-mr", "spine-mr"] if request.param == "two" else None)


@pytest.fixture(scope="module")
def plain(phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain-pipeline")
    return pipeline(phantoms, folder / "work", small_recipe(folder))


class TestPackedEqualsUnpacked:
    @pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
    def test_every_phantom_collection(self, phantoms, plain, tmp_path, suffix):
        packed = {name: pack(tmp_path / name / f"x{suffix}", files_below(folder)) for name, folder in phantoms.items()}
        assert pipeline(packed, tmp_path / "work", small_recipe(tmp_path), scratch_parent=tmp_path / "s") == plain
        assert len(plain[0]) == len(phantoms) in (2, 10)
        assert sum(bool(v) for (_, case), v in plain[1].items() if case != "rejects") >= 1.5 * len(phantoms)
        assert files_below(tmp_path / "s") == {}

    @pytest.mark.parametrize("outer", [".zip", ".tar.gz", ".7z"])
    @pytest.mark.parametrize("inner", KINDS)
    def test_archives_in_archives(self, tmp_path, outer, inner):
        data = packed_bytes(inner, MEMBERS, tmp_path / "inner")
        path = pack(tmp_path / "d" / f"x{outer}", {f"deep/y{inner}": data, "readme.txt": b"hello"})
        pack(tmp_path / "plain.zip", MEMBERS)
        assert rows(found(path)) == rows(found(tmp_path / "plain.zip"))
        assert rows(found(path))
        with open_access(AccessSpec()):
            assert read_bytes(path.parent, f"x{outer}!/deep/y{inner}!/a_image.nii") == GOOD

    def test_four_deep_and_no_deeper(self, tmp_path):
        data, depths = dict(MEMBERS), []
        for depth in range(1, 6):
            path = pack(tmp_path / str(depth) / "x.zip", data)
            depths.append(reasons(found(path)))
            data = {"x.zip": path.read_bytes()}
        assert depths == [[], [], [], [], [Reason.UNSAFE_ARCHIVE]]

    def test_the_content_tells_how_it_is_packed(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(tar_bytes(MEMBERS, "w:gz"))
        (tmp_path / "y").mkdir()
        (tmp_path / "y" / "y.tar.gz").write_bytes(tar_bytes({"b_image.nii": GOOD}))
        assert [c.image[0].split("!/")[1] for c in found(tmp_path).cases] == ["a_image.nii", "b_image.nii"]

    @pytest.mark.slow
    def test_one_worker_and_two(self, tmp_path):
        """Passwords and the place of the scratch folder reach other processes."""
        (tmp_path / "own.toml").write_text(pairs_toml(suffix="nii"))
        own = {
            f"{n}_{part}": data
            for n in "pqr"
            for part, data in (("image.nii", GOOD), ("label.nii", MEMBERS["a_label.nii"]))
        }
        source = {str(tmp_path / "own.toml"): pack(tmp_path / "d" / "x.7z", own, PASSWORD)}
        recipe = small_recipe(tmp_path)
        one = pipeline(source, tmp_path / "one", recipe, 1, passwords=(PASSWORD,))
        assert pipeline(source, tmp_path / "two", recipe, 2, passwords=(PASSWORD,)) == one
        assert sum(bool(v) for v in one[1].values()) == 3


class TestTars:
    def test_long_names_and_dots(self, tmp_path):
        folder = "/".join(["deep" * 20] * 3)
        for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
            (tmp_path / "member").write_bytes(GOOD)
            with tarfile.open(tmp_path / f"{number}.tar", "w", format=form) as archive:
                archive.add(tmp_path / "member", f"./{folder}/ü{number}_image.nii")
        (tmp_path / "member").unlink()
        result = found(tmp_path)
        assert sorted(c.image[0] for c in result.cases) == [f"{n}.tar!/{folder}/ü{n}_image.nii" for n in range(2)]
        assert all(read_bytes(tmp_path, case.image[0]) == GOOD for case in result.cases)

    def test_sparse_members(self, tmp_path):
        """GNU's old sparse header: 3,000 bytes, of which 512 at 1,024 and 100 at 2,900 are stored."""
        pieces = [(1024, b"a" * 512), (2900, b"b" * 100)]
        info = tarfile.TarInfo("sparse.bin")
        info.size = 612
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[156:157] = b"S"
        for number, (start, data) in enumerate(pieces):
            header[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (start, len(data))
        header[483:495] = b"%011o\0" % 3000
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        stored = b"".join(data for _, data in pieces)
        (tmp_path / "x.tar").write_bytes(bytes(header) + stored + bytes(-len(stored) % 512) + bytes(1024))
        wanted = bytearray(3000)
        for start, data in pieces:
            wanted[start : start + len(data)] = data
        with tarfile.open(tmp_path / "x.tar") as archive:  # the header is as tarfile understands it
            assert archive.extractfile("sparse.bin").read() == wanted
        assert open_tree(tmp_path).files[0].n_bytes == 3000
        assert read_bytes(tmp_path, "x.tar!/sparse.bin") == wanted
        for n_bytes in (0, 10, 1030, 2000, 2950, 5000):
            assert read_head(tmp_path, "x.tar!/sparse.bin", n_bytes) == wanted[:n_bytes]


class TestHostile:
    """One reject each, the good cases beside it unharmed, nothing written but in scratch, and that gone at the end."""

    @pytest.fixture(autouse=True)
    def _nothing_written(self, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "good_image.nii").write_bytes(GOOD)
        monkeypatch.chdir(tmp_path / "data")
        yield
        assert {p.name for p in tmp_path.iterdir()} <= {"data", "scratch", "make"}
        assert not list((tmp_path / "scratch").glob("*"))
        assert not list((tmp_path / "data").glob("*escape*"))

    def check(self, tmp_path, reason: Reason, **access) -> str:
        before = files_below(tmp_path / "data")
        result = found(tmp_path / "data", scratch_parent=tmp_path / "scratch", **access)
        assert reasons(result) == [reason]
        assert [len(c.image) for c in result.cases] == [1]
        assert files_below(tmp_path / "data") == before
        detail = result.rejects[0].detail
        assert not any(word in detail for word in ("_image", "/etc", str(tmp_path)))
        return detail

    @pytest.mark.parametrize("suffix", KINDS)
    @pytest.mark.parametrize("cut", [0.0, 0.02, 0.5, 0.98])
    def test_a_truncated_download(self, tmp_path, suffix, cut):
        path = pack(tmp_path / "data" / f"x{suffix}", {**MEMBERS, "b_image.nii": np.random.default_rng(0).bytes(9000)})
        whole = path.read_bytes()
        if suffix == ".tar" and cut == 0.98:
            cut = 0.75  # what follows are the empty blocks that fill the last record
        path.write_bytes(whole[: int(cut * len(whole))])
        assert "download it again" in self.check(tmp_path, Reason.ARCHIVE_UNREADABLE)

    @pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
    @pytest.mark.parametrize(
        "name", ["../escape_image.nii", "/tmp/escape_image.nii", "a/../../escape_image.nii", "C:\\escape_image.nii",
                 "C:escape_image.nii", "a\\..\\..\\escape_image.nii", "x.zip!/escape_image.nii"],
    )  # fmt: skip
    def test_a_path_that_escapes(self, tmp_path, suffix, name):
        path = tmp_path / "data" / f"x{suffix}"
        seven_zip_named(path, name, GOOD) if suffix == ".7z" else pack(path, {**MEMBERS, name: GOOD})
        assert "leads out" in self.check(tmp_path, Reason.UNSAFE_ARCHIVE)

    def test_a_zip_of_a_windows_program_that_writes_backslashes(self, tmp_path):
        path = tmp_path / "data" / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {"sub\\": b"", **{f"sub\\{name}": data for name, data in MEMBERS.items()}}.items():
                info = zipfile.ZipInfo("placeholder")
                info.filename = name
                archive.writestr(info, data)
        tree = open_tree(tmp_path / "data")
        assert {file.path for file in tree.files} - {"good_image.nii"} == {f"x.zip!/sub/{name}" for name in MEMBERS}
        assert not tree.broken
        assert all(read_bytes(tree.root, f"x.zip!/sub/{name}") == data for name, data in MEMBERS.items())

    @pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
    @pytest.mark.parametrize("kind", ["symlink", "hardlink", "device", "pipe"])
    def test_links_and_devices_in_a_tar(self, tmp_path, suffix, kind):
        mode = {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz"}[suffix]
        (tmp_path / "data" / f"x{suffix}").write_bytes(tar_bytes(MEMBERS, mode, special_member(kind)))
        assert "link or a device" in self.check(tmp_path, Reason.UNSAFE_ARCHIVE)

    def test_links_in_a_zip_and_in_a_7z(self, tmp_path):
        zip_symlink(tmp_path / "data" / "x.zip", MEMBERS)
        self.check(tmp_path, Reason.UNSAFE_ARCHIVE)
        (tmp_path / "data" / "x.zip").unlink()
        (tmp_path / "make").mkdir()
        seven_zip_symlink(tmp_path / "data" / "x.7z", MEMBERS, tmp_path / "make")
        self.check(tmp_path, Reason.UNSAFE_ARCHIVE)

    @pytest.mark.parametrize("suffix", KINDS)
    def test_a_declared_size_without_bound(self, tmp_path, suffix, monkeypatch):
        monkeypatch.setattr("medvar_data.sources.archives.names.MEMBER_LIMIT", 1000)
        pack(tmp_path / "data" / f"x{suffix}", MEMBERS)
        assert "beyond all measure" in self.check(tmp_path, Reason.UNSAFE_ARCHIVE)

    @pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".7z", ".zip"])
    def test_a_ratio_without_bound(self, tmp_path, suffix, monkeypatch):
        monkeypatch.setattr("medvar_data.sources.archives.names.RATIO_FREE", 1 << 20)
        monkeypatch.setattr("medvar_data.sources.archives.names.RATIO_LIMIT", 500)
        pack(tmp_path / "data" / f"x{suffix}", {"a_image.nii": bytes(20 << 20)})
        self.check(tmp_path, Reason.UNSAFE_ARCHIVE)

    def test_a_ratio_as_of_label_maps_is_none(self, tmp_path):
        pack(tmp_path / "data" / "x.tar.gz", {"zeros.bin": bytes(20 << 20)})
        assert reasons(found(tmp_path / "data")) == []

    def test_more_than_scratch_may_hold(self, tmp_path):
        (tmp_path / "data" / "x.tar.gz").write_bytes(gzip_of_zeros(64 << 20))
        detail = self.check(tmp_path, Reason.SCRATCH_FULL, scratch_limit_bytes=8 << 20)
        assert "--scratch-limit" in detail

    def test_a_member_larger_than_it_says(self, tmp_path):
        zip_with_false_size(tmp_path / "data" / "x.zip", GOOD + bytes(64 << 20), 500)
        result = found(tmp_path / "data")
        assert (
            reasons(result) == [Reason.ARCHIVE_UNREADABLE]
            or len(read_bytes(tmp_path / "data", "x.zip!/a_image.nii")) <= 500
        )

    @pytest.mark.parametrize("suffix", [".zip", ".7z"])
    @pytest.mark.parametrize("passwords", [(), (b"wrong",), (b"wrong", b"", b"Open Sesame")])
    def test_a_wrong_or_missing_password(self, tmp_path, suffix, passwords):
        pack(tmp_path / "data" / f"x{suffix}", MEMBERS, PASSWORD)
        detail = self.check(tmp_path, Reason.ARCHIVE_PASSWORD, passwords=passwords)
        assert "--password-file" in detail
        assert "esame" not in detail

    def test_openssl(self, tmp_path):
        (tmp_path / "data" / "x.tar.gz").write_bytes(b"U2FsdGVkX1" + bytes(100))
        assert "OpenSSL" in self.check(tmp_path, Reason.ARCHIVE_PASSWORD)

    def test_a_broken_archive_in_a_sound_one(self, tmp_path):
        pack(
            tmp_path / "data" / "x.zip",
            {**MEMBERS, "cut.zip": b"PK\x03\x04", "out.tar": tar_bytes({"../escape_image.nii": GOOD})},
        )
        result = found(tmp_path / "data")
        assert reasons(result) == [Reason.ARCHIVE_UNREADABLE, Reason.UNSAFE_ARCHIVE]
        assert len(result.cases) == 2

    def test_a_damaged_stream_rejects_its_cases_alone(self, tmp_path):
        """The archive breaks between ingest and harmonize."""
        (tmp_path / "make").mkdir()
        (tmp_path / "make" / "own.toml").write_text(pairs_toml(suffix="nii"))
        path = pack(tmp_path / "data" / "x.tar.gz", MEMBERS)
        workspace = Workspace(tmp_path / "make" / "work")
        spec = AccessSpec(scratch_parent=tmp_path / "scratch")
        list(run_ingest({str(tmp_path / "make" / "own.toml"): tmp_path / "data"}, workspace, archives=spec))
        path.write_bytes(path.read_bytes()[:-200])
        summary = run_harmonize(workspace, small_recipe(tmp_path / "make"), 1, lambda _: None, archives=spec)
        assert (summary.n_kept, summary.reasons) == (1, {"archive_unreadable": 1})


class TestReportedOnce:
    def test_in_a_family_and_over_collections(self, tmp_path):
        pack(tmp_path / "d" / "x.zip", {"Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz": GOOD})
        (tmp_path / "d" / "cut.tar").write_bytes(b"no tar")
        results = list(run_ingest({"msd": tmp_path / "d", "acdc": tmp_path / "d"}, Workspace(tmp_path / "w")))
        broken = [(r.collection, x.reason) for r in results for x in r.rejects if x.case.startswith("archive")]
        assert broken == [("msd-hippocampus", Reason.ARCHIVE_UNREADABLE)]
        assert Workspace(tmp_path / "w").collections() == ["msd-hippocampus"]

    def test_where_there_is_nothing_else(self, tmp_path):
        (tmp_path / "cut.tar").write_bytes(b"no tar")
        results = list(run_ingest({"msd": tmp_path}, Workspace(tmp_path / "w")))
        assert [len(r.rejects) for r in results] == [1] + [0] * (len(results) - 1)
        assert len(Workspace(tmp_path / "w").collections()) == 1


class TestPasswords:
    @pytest.mark.parametrize("suffix", [".zip", ".7z"])
    def test_the_right_one_among_several(self, tmp_path, suffix):
        pack(tmp_path / "d" / f"x{suffix}", MEMBERS, PASSWORD)
        pack(tmp_path / "plain.zip", MEMBERS)
        result = found(tmp_path / "d", passwords=(b"wrong", PASSWORD))
        assert rows(result) == rows(found(tmp_path / "plain.zip"))

    def test_zip_crypto(self, tmp_path):
        zip_crypto(tmp_path / "x.zip", "a_image.nii", GOOD, PASSWORD)
        result = found(tmp_path, passwords=(*(b"%d" % n for n in range(20)), PASSWORD))
        assert (len(result.cases), reasons(result)) == (1, [])
        with open_access(AccessSpec((*(b"%d" % n for n in range(300)), PASSWORD))):  # some pass the one-byte check
            assert read_bytes(tmp_path, "x.zip!/a_image.nii") == GOOD
        assert reasons(found(tmp_path)) == [Reason.ARCHIVE_PASSWORD]

    def test_an_encrypted_archive_within_another(self, tmp_path):
        inner = pack(tmp_path / "i" / "y.zip", MEMBERS, PASSWORD).read_bytes()
        path = pack(tmp_path / "d" / "x.tar.gz", {"y.zip": inner})
        assert len(found(path, passwords=(PASSWORD,)).cases) == 1
        assert reasons(found(path)) == [Reason.ARCHIVE_PASSWORD]

    @pytest.mark.parametrize("suffix", [".zip", ".7z"])
    def test_harmonize_asks_before_it_rejects(self, tmp_path, suffix):
        (tmp_path / "own.toml").write_text(pairs_toml(suffix="nii"))
        source = {str(tmp_path / "own.toml"): pack(tmp_path / "d" / f"x{suffix}", MEMBERS, PASSWORD)}
        workspace, recipe, given = Workspace(tmp_path / "w"), small_recipe(tmp_path), AccessSpec((PASSWORD,))
        list(run_ingest(source, workspace, archives=given))
        for spec in (AccessSpec(), AccessSpec((b"wrong",))):
            with pytest.raises(SourceError, match=r"own: the archive is encrypted .* --password-file"):
                run_harmonize(workspace, recipe, 1, lambda _: None, archives=spec)
        assert not list((tmp_path / "w" / "harmonized").rglob("*.parquet"))
        summary = run_harmonize(workspace, recipe, 1, lambda _: None, archives=given)
        assert (summary.n_kept, summary.n_rejected) == (1, 0)
        assert PASSWORD not in b"".join(files_below(tmp_path / "w").values())

    def test_the_file(self, tmp_path):
        (tmp_path / "p").write_bytes(b"one two\r\n\n three \n")
        assert read_passwords(tmp_path / "p") == (b"one two", b" three ")
        (tmp_path / "p").write_bytes(b"\n")
        for path in (tmp_path / "p", tmp_path / "absent"):
            with pytest.raises(SourceError, match="password file"):
                read_passwords(path)

    def test_are_not_shown(self):
        with open_access(AccessSpec((PASSWORD,))) as access:
            assert "sesame" not in repr(access) + repr(AccessSpec((PASSWORD,)))


class TestScratch:
    def test_is_private_and_names_nothing(self, tmp_path):
        pack(tmp_path / "d" / "x.tar.gz", MEMBERS)
        with open_access(AccessSpec(scratch_parent=tmp_path / "s")) as access:
            open_tree(tmp_path / "d")
            assert stat.S_IMODE(access.scratch.folder.stat().st_mode) == 0o700
            names = [p.name for p in access.scratch.folder.iterdir()]
            assert len(names) == 2
            assert not any("image" in name or "x.tar" in name for name in names)
        assert list((tmp_path / "s").iterdir()) == []

    def test_goes_after_an_error(self, tmp_path):
        pack(tmp_path / "x.7z", MEMBERS)

        def fails() -> None:
            with open_access(AccessSpec(scratch_parent=tmp_path / "s")):
                open_tree(tmp_path)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails()
        assert list((tmp_path / "s").iterdir()) == []

    def test_what_a_killed_run_left_goes_at_the_next(self, tmp_path):
        code = (
            "import sys,time; from pathlib import Path; from medvar_data.sources.archives import *\n"
            f"with open_access(AccessSpec(scratch_parent=Path({str(tmp_path)!r}))) as a:\n"
            "    (a.scratch.folder / 'left').write_bytes(bytes(100)); print('ready', flush=True); time.sleep(60)"
        )
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        with open_access(AccessSpec(scratch_parent=tmp_path)):  # the other one lives: hands off
            assert len(list(tmp_path.glob(f"{PREFIX}*/left"))) == 1
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert len(list(tmp_path.glob(f"{PREFIX}*/left"))) == 1
        with open_access(AccessSpec(scratch_parent=tmp_path)):
            assert list(tmp_path.glob(f"{PREFIX}*/left")) == []

    def test_hands_off_what_is_not_ours(self, tmp_path):
        (tmp_path / "other").mkdir()
        os.symlink(tmp_path / "other", tmp_path / f"{PREFIX}link")
        (tmp_path / f"{PREFIX}young").mkdir()
        (tmp_path / f"{PREFIX}file").write_text("")
        assert remove_stale(tmp_path) == 0
        old = time.time() - 3600
        os.utime(tmp_path / f"{PREFIX}young", (old, old))
        assert remove_stale(tmp_path) == 1
        assert (tmp_path / "other").is_dir()

    def test_without_one_the_sentence_says_so(self, tmp_path):
        pack(tmp_path / "x.tar.gz", MEMBERS)
        with pytest.raises(CaseRejected, match="no scratch folder is open") as caught:
            read_bytes(tmp_path, "x.tar.gz!/a_image.nii")
        assert caught.value.reason is Reason.SCRATCH_FULL

    def test_batches_keep_within_the_limit(self, tmp_path, monkeypatch):
        """Four archives of which scratch holds two: ingest wants a larger one, harmonize goes in batches."""
        (tmp_path / "own.toml").write_text(pairs_toml(suffix="nii"))
        for name in "pqrs":
            pack(
                tmp_path / "d" / f"{name}.tar.gz",
                {f"{name}_image.nii": GOOD, f"{name}_label.nii": MEMBERS["a_label.nii"]},
            )
        workspace, recipe = Workspace(tmp_path / "w"), small_recipe(tmp_path)
        source = {str(tmp_path / "own.toml"): tmp_path / "d"}
        list(run_ingest(source, workspace))
        one = next(iter(workspace.archive_notes().values())).scratch_bytes
        assert one > len(GOOD)
        peaks = []
        from medvar_data.harmonize import run as pipeline

        whole = pipeline._harmonize_case

        def watched(task):
            peaks.append(task.access.scratch.used_bytes())
            return whole(task)

        monkeypatch.setattr(pipeline, "_harmonize_case", watched)
        spec = AccessSpec(scratch_limit_bytes=2 * one + 100)
        summary = run_harmonize(workspace, recipe, 1, lambda _: None, archives=spec)
        assert (summary.n_kept, max(peaks)) == (4, 2 * one)
        workspace = Workspace(tmp_path / "w2")
        list(run_ingest(source, workspace))
        with pytest.raises(SourceError, match="scratch"):
            run_harmonize(workspace, recipe, 1, lambda _: None, archives=AccessSpec(scratch_limit_bytes=one - 1))


class TestDigests:
    def test_of_every_archive_once(self, tmp_path, monkeypatch):
        from hashlib import sha256

        from medvar_data.workspace import workspace as module

        paths = [pack(tmp_path / "d" / f"x{suffix}", MEMBERS) for suffix in (".zip", ".tar.gz")]
        (tmp_path / "d" / "cut.7z").write_bytes(b"7z")
        workspace = Workspace(tmp_path / "w")
        with open_access(AccessSpec()):
            workspace.note_archives(open_tree(tmp_path / "d"))
        notes = workspace.archive_notes()
        assert {p.name for p in notes} == {"x.zip", "x.tar.gz", "cut.7z"}
        assert all(notes[p].sha256 == sha256(p.read_bytes()).hexdigest() for p in paths)
        read = []
        real = module.file_digest
        monkeypatch.setattr(module, "file_digest", lambda path: read.append(path.name) or real(path))
        os.utime(paths[0])
        with open_access(AccessSpec()):
            workspace.note_archives(open_tree(tmp_path / "d"))
        assert read == ["x.zip"]
