"""Laws of ingest: everything found is kept or rejected with its reason, archives equal folders, no voxel is read."""

import re
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builders import (
    acdc_tree,
    brats_tree,
    chaos_members,
    msd_tree,
    nifti_bytes,
    pairs_spec,
    pairs_toml,
    scan,
    write_files,
    write_nifti,
    write_zip,
)

from medvar_data.catalog.describe import readable
from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.errors import Reason, SourceError
from medvar_data.ingest import case_lists as case_lists
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers import volume_scan as volume
from medvar_data.records import Ingested
from medvar_data.sources.tree import open_tree

SALT = bytes(32)
IMAGE, LABEL = scan((12, 10, 3))
GOOD = nifti_bytes(IMAGE)


def found(name: str, path: Path) -> Ingested:
    return ingest(load_collection(name), open_tree(path), SALT)


def own(root: Path, members: dict[str, bytes], **options: str) -> Ingested:
    write_files(root, members)
    return ingest(pairs_spec(suffix="nii", **options), open_tree(root), SALT)


def reasons(result: Ingested) -> list[Reason]:
    return sorted(r.reason for r in result.rejects)


class TestMatching:
    def test_acdc(self, tmp_path):
        result = found("acdc", acdc_tree(tmp_path, patients=2))
        assert [c.case for c in result.cases] == [f"patient{p:03d}-frame{f:02d}" for p in (1, 2) for f in (1, 10)]
        assert {c.group for c in result.cases} == {"acdc/patient001", "acdc/patient002"}
        case = result.cases[0]
        assert (case.modality, case.region, case.sequence, case.condition) == ("MR", "heart", "cine-bssfp", "acdc-mr")
        assert case.official_split == "train"
        assert case.label[0].endswith("patient001_frame01_gt.nii.gz")
        assert result.counts[0].found == 4
        assert result.counts[0].expected == 200
        assert result.rejects == ()

    def test_the_cine_stays_out(self, tmp_path):
        acdc_tree(tmp_path, patients=1)
        write_nifti(tmp_path / "database/training/patient001/patient001_4d.nii.gz", np.stack([IMAGE] * 2, axis=-1))
        assert len(found("acdc", tmp_path).cases) == 2

    def test_a_decathlon_channel_is_a_case_and_twins_are_ignored(self, tmp_path):
        result = found("msd-brain-tumour", msd_tree(tmp_path, cases=2))
        assert [c.case for c in result.cases[:4]] == [
            "brats-001-flair", "brats-001-t1", "brats-001-t1-contrast", "brats-001-t2",
        ]  # fmt: skip
        assert sorted({c.channel for c in result.cases}) == [0, 1, 2, 3]
        assert len({c.label for c in result.cases}) == 2
        assert (result.rejects, result.notes) == ((), ())

    def test_brats_sequences_share_a_label_and_time_points_a_patient(self, tmp_path):
        result = found("brats2023", brats_tree(tmp_path, patients=1, points=2))
        assert len(result.cases) == 8
        assert {c.group for c in result.cases} == {"brats/brats-gli-00000"}
        assert {c.sequence for c in result.cases} == {"T1", "T1 contrast", "T2", "T2 FLAIR"}
        assert len({c.label for c in result.cases}) == 2

    def test_a_dicom_stack_is_one_case(self, tmp_path):
        (case,) = found("chaos", write_files(tmp_path, chaos_members(n_slices=5))).cases
        assert len(case.image) == len(case.label) == 5
        assert list(case.image) == sorted(case.image)
        assert case.n_bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())

    def test_pairs_may_lie_at_any_depth(self, tmp_path):
        result = own(tmp_path, {"x/y/a_image.nii": GOOD, "z/a_label.nii": nifti_bytes(LABEL)})
        assert len(result.cases) == 1
        assert result.cases[0].label == ("z/a_label.nii",)

    def test_the_order_on_disk_does_not_matter(self, tmp_path):
        members = {f"{n}_image.nii": GOOD for n in ("b", "a", "c10", "c9")}
        one = own(tmp_path / "a", members)
        other = own(tmp_path / "b", dict(reversed(members.items())))
        assert [c.case for c in one.cases] == [c.case for c in other.cases]


class TestJudging:
    def test_a_label_without_image(self, tmp_path):
        result = own(tmp_path, {"a_image.nii": GOOD, "b_label.nii": nifti_bytes(LABEL)})
        assert len(result.cases) == 1
        assert reasons(result) == [Reason.LABEL_WITHOUT_IMAGE]

    def test_an_image_without_label_is_kept_and_counted(self, tmp_path):
        result = own(tmp_path, {"a_image.nii": GOOD})
        assert result.cases[0].label == ()
        assert result.counts[0].unlabelled == 1

    def test_two_files_for_one_case(self, tmp_path):
        result = own(tmp_path, {"a/x_image.nii": GOOD, "b/x_image.nii": GOOD})
        assert len(result.cases) == 1
        assert reasons(result) == [Reason.DUPLICATE_CASE]
        assert result.n_found == 2

    @pytest.mark.parametrize(
        "names",
        [("Case1", "case1"), ("患者1", "病人1"), ("größe", "grö-e"), ("a.b", "a_b"), ("x" * 60 + "1", "x" * 60 + "2")],
    )
    def test_names_that_differ_make_keys_that_differ(self, tmp_path, names):
        """In upper and lower case alone, beyond ASCII, in punctuation, or late; the key of one does not hang on the other."""
        files = {f"{name}_image.nii": GOOD for name in names} | {
            f"{name}_label.nii": nifti_bytes(LABEL) for name in names
        }
        spec = parse_collection(pairs_toml(suffix="nii", top='case_names = "published"\n'), "test", own=True)
        both = ingest(spec, open_tree(write_files(tmp_path / "both", files)), b"salt")
        assert not both.rejects
        assert len({case.case for case in both.cases}) == 2
        assert all(re.fullmatch(r"[a-z0-9-]{1,48}", case.case) for case in both.cases)
        assert all(case.label[0].split("_")[0] == case.image[0].split("_")[0] for case in both.cases)
        first = {name: files[name] for name in files if name.startswith(min(names))}
        alone = ingest(spec, open_tree(write_files(tmp_path / "one", first)), b"salt")
        assert alone.cases[0].case in {case.case for case in both.cases}

    def test_two_labels_for_one_case(self, tmp_path):
        label = nifti_bytes(LABEL)
        result = own(tmp_path, {"a/x_image.nii": GOOD, "a/x_label.nii": label, "b/x_label.nii": label})
        assert Reason.DUPLICATE_CASE in reasons(result)

    def test_headers_are_checked(self, tmp_path):
        members = {
            "shape_image.nii": GOOD, "shape_label.nii": nifti_bytes(LABEL[:, :, :2]),
            "text_image.nii": b"<html>" * 99,
            "empty_image.nii": b"",
            "flat_image.nii": nifti_bytes(np.stack([IMAGE] * 2, axis=-1)),
            "zero_image.nii": nifti_bytes(IMAGE, np.diag([0.0, 1, 1, 1])),
            "good_image.nii": GOOD,
        }  # fmt: skip
        result = own(tmp_path, members)
        assert len(result.cases) == 1
        wanted = [
            Reason.LABEL_SHAPE,
            Reason.NOT_AN_IMAGE,
            Reason.FILE_EMPTY,
            Reason.DIMENSIONS,
            Reason.SPACING_IMPLAUSIBLE,
        ]
        assert reasons(result) == sorted(wanted)
        assert result.n_found == 6

    def test_masks_of_another_number(self, tmp_path):
        members = chaos_members(n_slices=4)
        members.pop(next(name for name in members if name.endswith(".png")))
        result = found("chaos", write_files(tmp_path, members))
        assert reasons(result) == [Reason.SLICE_COUNT]

    def test_no_voxel_is_read(self, tmp_path, monkeypatch):
        acdc_tree(tmp_path, patients=1)
        write_files(tmp_path, chaos_members(n_slices=3))

        def never(*_: object) -> bytes:
            raise AssertionError("ingest read a whole file")

        monkeypatch.setattr(volume, "read_with_data", never)
        monkeypatch.setattr(case_lists, "read_bytes", never)
        monkeypatch.setattr("medvar_data.readers.dicom_scan.read_bytes", never)
        assert len(found("acdc", tmp_path).cases) == 2
        assert len(found("chaos", tmp_path).cases) == 1

    def test_a_big_file_is_checked_by_its_head(self, tmp_path):
        """Voxels cut off: ingest cannot know, harmonize will."""
        write_files(tmp_path, {"a_image.nii": GOOD[:400]})
        assert len(own(tmp_path, {}).cases) == 1


class TestDecathlonListing:
    def test_what_it_lists_and_the_disk_lacks(self, tmp_path):
        msd_tree(tmp_path, cases=3, channels=4)
        (tmp_path / "Task01_BrainTumour/imagesTr/BRATS_002.nii.gz").unlink()
        result = found("msd-brain-tumour", tmp_path)
        assert len(result.cases) == 8
        assert [(r.case, r.reason) for r in result.rejects] == [("brats-002", Reason.LABEL_WITHOUT_IMAGE)]
        (tmp_path / "Task01_BrainTumour/labelsTr/BRATS_002.nii.gz").unlink()
        result = found("msd-brain-tumour", tmp_path)
        assert [(r.case, r.reason) for r in result.rejects] == [("brats-002", Reason.FILE_MISSING)]

    def test_labels_that_differ_are_noted(self, tmp_path):
        msd_tree(tmp_path)
        listing = tmp_path / "Task01_BrainTumour/dataset.json"
        listing.write_text(listing.read_text().replace('"3": "enhancing tumour"', '"4": "enhancing tumour"'))
        assert "label values" in found("msd-brain-tumour", tmp_path).notes[0]

    @pytest.mark.parametrize("text", ["", "{", '{"training": 3}', '{"training": [], "labels": {"x": 1}}', "[]", "\xff"])
    def test_a_damaged_listing_is_noted(self, tmp_path, text):
        msd_tree(tmp_path)
        (tmp_path / "Task01_BrainTumour/dataset.json").write_bytes(text.encode("latin-1"))
        result = found("msd-brain-tumour", tmp_path)
        assert len(result.cases) == 8
        assert "dataset.json" in result.notes[0]

    def test_none_is_noted(self, tmp_path):
        msd_tree(tmp_path)
        (tmp_path / "Task01_BrainTumour/dataset.json").unlink()
        assert "no dataset.json" in found("msd-brain-tumour", tmp_path).notes[0]


def content(result: Ingested) -> list[tuple]:
    """Everything that does not depend on where the files lie."""
    tail = [tuple(p.split("!/")[-1] for p in (*c.image, *c.label)) for c in result.cases]
    plain = [replace(c, root="", image=(), label=(), modified_ns=0) for c in result.cases]
    return list(zip(plain, tail, strict=True)) + [(r, ()) for r in result.rejects]


class TestArchives:
    @pytest.mark.parametrize("kind", ["zip", "tar"])
    @pytest.mark.parametrize(("name", "tree"), [("acdc", acdc_tree), ("msd-brain-tumour", msd_tree)])
    def test_packed_equals_unpacked(self, tmp_path, kind, name, tree):
        root = tree(tmp_path / "folder")
        archive = Path(shutil.make_archive(str(tmp_path / "packed" / "download"), kind, root))
        plain = found(name, root)
        assert plain.cases
        assert content(found(name, archive.parent)) == content(plain)
        assert content(found(name, archive)) == content(plain)

    def test_a_damaged_archive_is_a_reject(self, tmp_path):
        acdc_tree(tmp_path, patients=1)
        whole = write_zip(tmp_path / "x.zip", chaos_members(n_slices=3)).read_bytes()
        for cut in (whole[: len(whole) // 2], b"", b"PK"):
            (tmp_path / "x.zip").write_bytes(cut)
            result = found("acdc", tmp_path)
            assert len(result.cases) == 2
            assert reasons(result) == [Reason.ARCHIVE_UNREADABLE]

    def test_a_truncated_tar_is_a_reject(self, tmp_path):
        root = acdc_tree(tmp_path / "a", patients=1)
        archive = Path(shutil.make_archive(str(tmp_path / "b" / "x"), "tar", root))
        data = archive.read_bytes()
        for kept in (100, 2000, 5000, len(data) // 2):
            archive.write_bytes(data[:kept])
            assert reasons(found("acdc", archive.parent)) == [Reason.ARCHIVE_UNREADABLE]

    @pytest.mark.parametrize("name", ["../escape_image.nii", "/absolute_image.nii", "a\\..\\b_image.nii"])
    def test_nothing_of_an_unsafe_zip_is_used(self, tmp_path, name):
        write_zip(tmp_path / "x.zip", {"good_image.nii": GOOD})
        with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
            archive.writestr(zipfile.ZipInfo(name), GOOD)
        result = own(tmp_path, {})
        assert reasons(result) == [Reason.UNSAFE_ARCHIVE]
        assert result.cases == ()

    def test_nothing_of_a_tar_with_links_is_used(self, tmp_path):
        (tmp_path / "good_image.nii").write_bytes(GOOD)
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / "good_image.nii", "inside_image.nii")
            link = tarfile.TarInfo("link_image.nii")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        result = own(tmp_path, {})
        assert reasons(result) == [Reason.UNSAFE_ARCHIVE]
        assert len(result.cases) == 1

    def test_a_member_that_inflates_without_bound(self, tmp_path, monkeypatch):
        monkeypatch.setattr("medvar_data.sources.archives.names.MEMBER_LIMIT", 100)
        write_zip(tmp_path / "x.zip", {"a_image.nii": GOOD})
        assert reasons(own(tmp_path, {})) == [Reason.UNSAFE_ARCHIVE]


class TestOwn:
    def test_names_are_hashed_with_the_salt(self, tmp_path):
        write_files(tmp_path, {"Jane Doe_image.nii": GOOD, "b_image.nii": b"x" * 400, "c_label.nii": GOOD})
        spec = pairs_spec(suffix="nii")
        one, other = (ingest(spec, open_tree(tmp_path), salt) for salt in (SALT, b"other"))
        shown = [c.case for c in one.cases] + [r.case for r in one.rejects]
        assert len(shown) == 3
        assert all(len(key) == 12 and set(key) <= set("0123456789abcdef") for key in shown)
        assert {c.case for c in one.cases}.isdisjoint({c.case for c in other.cases})

    def test_published_names_are_shown_as_slugs(self, tmp_path):
        spec = pairs_spec(suffix="nii", top='case_names = "published"\n')
        write_files(tmp_path, {"Scan 7.b_image.nii": GOOD, f"{'long' * 40}_image.nii": GOOD, "患者_image.nii": GOOD})
        keys = [c.case for c in ingest(spec, open_tree(tmp_path), SALT).cases]
        assert "scan-7-b" in keys
        assert all(0 < len(key) <= 48 and set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for key in keys)
        assert len(set(keys)) == 3

    def test_an_excluded_path_is_not_there(self, tmp_path):
        result = own(tmp_path, {"a_image.nii": GOOD, "old/b_image.nii": GOOD}, top='exclude = ["^old/"]\n')
        assert result.n_found == 1


class TestNothingFound:
    def test_it_says_what_was_wanted_and_what_is_there(self, tmp_path):
        write_files(tmp_path, {"a.dcm": b"", "b.dcm": b"", "c.nii.gz": b""})
        with pytest.raises(SourceError, match=r"2 \.dcm, 1 \.nii\.gz") as caught:
            found("acdc", tmp_path)
        assert "training/<patient>" in str(caught.value)

    def test_it_never_shows_file_names(self, tmp_path):
        write_files(tmp_path, {"DOE.JANE.1950.nii.gz": b"", "x.JANEDOE": b"", "1.2.840.777": b"", "noend": b""})
        with pytest.raises(SourceError) as caught:
            found("acdc", tmp_path)
        assert not {"JANE", "1950", "777", "noend"} & set(str(caught.value).replace(".", " ").split())
        assert "JANE" not in str(caught.value).upper()

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(SourceError, match="no files"):
            found("acdc", tmp_path)

    def test_paths_that_are_none(self, tmp_path):
        with pytest.raises(SourceError, match="does not exist"):
            open_tree(tmp_path / "nothing")
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(SourceError, match=r"no archive \(\.zip, \.tar"):
            open_tree(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        (
            r"(?:^|/)training/(?P<p>patient\d{3})/(?P=p)_frame(?P<frame>\d{2})\.nii(?:\.gz)?$",
            "training/<p>/<p>_frame<frame>.nii",
        ),
        (r"(?:^|/)case_(?P<case>\d{5})/imaging\.nii\.gz$", "case_<case>/imaging.nii.gz"),
    ],
)
def test_patterns_are_shown_as_people_write_them(pattern, shown):
    assert readable(pattern) == shown


def test_own_toml_of_the_tests_is_a_collection():
    assert "[[layout]]" in pairs_toml()
