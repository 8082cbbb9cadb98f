"""Labels in other grids, labels of several raters, cines with annotated frames, and headers that quarrel."""

import gzip
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import SimpleITK as sitk
from support.builders import case_of, nifti_bytes, pairs_spec, spaced, write_files, write_nifti

from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.errors import CaseRejected, Reason, SpecError
from medvar_data.harmonize.harmonize import label_table
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.labels import resample_label, vote
from medvar_data.readers.read import read_scan
from medvar_data.records import Geometry, Volume
from medvar_data.sources.tree import open_tree

IMAGE = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


class TestAnotherGrid:
    SPEC = replace(pairs_spec(suffix="nii"), label_grid="affine")

    def read(self, root, label, affine, spec=SPEC):
        write_nifti(root / "a_image.nii", IMAGE)
        write_nifti(root / "a_label.nii", label, affine)
        return read_scan(case_of(root, "a_image.nii", "a_label.nii"), spec).label

    def test_a_label_of_half_the_spacing_takes_the_voxel_under_each_centre(self, tmp_path):
        fine = np.zeros((12, 10, 8), dtype=np.uint8)
        fine[4:6, 2:4, 6:8] = 5  # the eight small voxels inside image voxel (2, 1, 3)
        affine = spaced(0.5, 0.5, 0.5)
        affine[:3, 3] = -0.25
        found = self.read(tmp_path, fine, affine)
        assert np.argwhere(found.voxels).tolist() == [[2, 1, 3]]
        assert found.steps == ("label_resampled",)

    def test_a_cropped_and_flipped_label_finds_its_place(self, tmp_path):
        whole = np.zeros(IMAGE.shape, dtype=np.uint8)
        whole[3:5, 1:3, 2] = 1
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = (5, 1, 2)
        crop = np.ascontiguousarray(whole[1:6, 1:4, 2:4][::-1])
        assert np.array_equal(self.read(tmp_path, crop, affine).voxels, whole)

    def test_the_same_grid_is_not_touched(self, tmp_path):
        label = (IMAGE > 100).astype(np.uint8)
        found = self.read(tmp_path, label, np.eye(4))
        assert np.array_equal(found.voxels, label)
        assert found.steps == ()

    def test_a_label_of_another_place_is_rejected(self, tmp_path):
        affine = np.eye(4)
        affine[:3, 3] = 500
        with pytest.raises(CaseRejected) as caught:
            self.read(tmp_path, np.ones((3, 3, 3), dtype=np.uint8), affine)
        assert caught.value.reason is Reason.EMPTY_LABEL

    def test_without_the_key_another_shape_is_rejected_at_ingest(self, tmp_path):
        write_nifti(tmp_path / "a_image.nii", IMAGE)
        write_nifti(tmp_path / "a_label.nii", np.ones((3, 3, 3), dtype=np.uint8))
        strict, by_affine = pairs_spec(suffix="nii"), self.SPEC
        assert [r.reason for r in ingest(strict, open_tree(tmp_path), b"s").rejects] == [Reason.LABEL_SHAPE]
        assert len(ingest(by_affine, open_tree(tmp_path), b"s").cases) == 1

    def test_any_rotation_there_and_back(self):
        rng = np.random.default_rng(3)
        label = rng.integers(0, 4, (7, 6, 5)).astype(np.uint8)
        for axes in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, list(axes)] * np.array([1, -1, 1])
            moved = Volume(label, Geometry(label.shape, affine), "d")
            i, j, k = np.meshgrid(*(np.arange(n) for n in label.shape), indexing="ij")
            places = np.einsum("ab,b...->a...", affine, np.stack([i, j, k, np.ones_like(i)]))[:3]
            low = places.reshape(3, -1).min(axis=1)
            grid = np.eye(4)
            grid[:3, 3] = low
            shape = tuple(int(n) for n in places.reshape(3, -1).max(axis=1) - low + 1)
            found = resample_label(moved, Geometry(shape, grid)).voxels
            at = (places - low[:, None, None, None]).astype(int)
            assert np.array_equal(found[tuple(at)], label)


class TestRaters:
    def test_the_vote_of_every_combination(self):
        for a in range(3):
            for b in range(3):
                for c in range(3):
                    for d in range(3):
                        ballots = [a, b, c, d]
                        won = vote([np.full((1, 1, 1), v, dtype=np.uint16) for v in ballots]).item()
                        if ballots.count(0) > 2:
                            assert won == 0
                        else:
                            most = max(ballots.count(v) for v in (1, 2))
                            assert won == min(v for v in (1, 2) if ballots.count(v) == most)

    def test_scgm_reads_all_four(self, tmp_path):
        raters = [np.zeros(IMAGE.shape, dtype=np.uint8) for _ in range(4)]
        for n, rater in enumerate(raters):
            rater[: n + 1, 0, 0] = 1  # voxel i is drawn by 4 - i raters
        write_nifti(tmp_path / "site1-sc01-image.nii.gz", IMAGE)
        for n, rater in enumerate(raters, start=1):
            write_nifti(tmp_path / f"site1-sc01-mask-r{n}.nii.gz", rater)
        spec = load_collection("scgm")
        (case,) = ingest(spec, open_tree(tmp_path), b"s").cases
        label = read_scan(case, spec).label
        assert len(case.label) == 4
        assert label.voxels[:, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]
        assert label.steps == ("voted_of_4",)

    def test_a_vote_without_raters_is_refused(self):
        text = """name = "x"\ntitle = "x"\nregion = "brain"\nmodality = "MR"\nslice_axis = "axial"\nlicense = "none"\n
[[layout]]\nid = "a"\nimage = '(?P<case>a)'\nlabel = '(?P<case>b)'\nvote = true\npair_on = ["case"]\ncase = "{case}"\ngroup = "{case}"\n"""
        with pytest.raises(SpecError, match="no group rater"):
            parse_collection(text, "test")


class TestMms:
    CSV = "External code,Vendor,Centre,ED,ES\nA0S9V9,A,1,1,3\nA1D0Q7,B,2,,\n"

    def tree(self, root, csv=CSV):
        cine = np.arange(4 * 4 * 3 * 5, dtype=np.int16).reshape(4, 4, 3, 5)
        label = np.zeros(cine.shape, dtype=np.uint8)
        label[1, 1, 1, 1], label[2, 2, 2, 3] = 1, 3
        for part, code, labelled in (
            ("Labeled", "A0S9V9", True),
            ("Labeled", "A1D0Q7", True),
            ("Unlabeled", "A1D9Z7", False),
        ):
            stem = root / "OpenDataset" / "Training" / part / code / f"{code}_sa"
            write_nifti(stem.with_name(f"{code}_sa.nii.gz"), cine)
            if labelled:
                write_nifti(stem.with_name(f"{code}_sa_gt.nii.gz"), label)
        if csv:
            path = root / "OpenDataset" / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
            path.write_text(csv)
        return ingest(load_collection("mms"), open_tree(root), b"s"), cine

    def test_two_frames_a_cine_each_with_its_own_label(self, tmp_path):
        found, cine = self.tree(tmp_path)
        assert [c.case for c in found.cases] == ["a0s9v9-ed", "a0s9v9-es", "a1d9z7-frame00"]
        assert [(r.case, r.reason) for r in found.rejects] == [("a1d0q7", Reason.FILE_MISSING)]
        spec = load_collection("mms")
        for case, frame, place, value in zip(found.cases, (1, 3), ((1, 1, 1), (2, 2, 2)), (1, 3), strict=False):
            scan = read_scan(case, spec)
            assert np.array_equal(scan.image.voxels, cine[..., frame])
            assert np.argwhere(scan.label.voxels).tolist() == [list(place)]
            assert label_table(spec, case.layout)[scan.label.voxels[place]] == value
        assert len({case.group for case in found.cases[:2]}) == 1
        assert np.array_equal(read_scan(found.cases[2], spec).image.voxels, cine[..., 0])

    def test_without_the_csv_no_case_is_lost_silently(self, tmp_path):
        found, _ = self.tree(tmp_path, csv="")
        assert {r.reason for r in found.rejects} == {Reason.FILE_MISSING}
        assert (len(found.cases), len(found.rejects)) == (1, 2)
        assert found.notes

    def test_a_frame_beyond_the_cine_is_rejected(self, tmp_path):
        found, _ = self.tree(tmp_path, csv="External code,ED,ES\nA0S9V9,1,77\nA1D0Q7,0,1\n")
        assert [(r.case, r.reason) for r in found.rejects] == [("a0s9v9-es", Reason.DIMENSIONS)]


class TestHeadersThatQuarrel:
    def steps(self, root, **options):
        data = nifti_bytes(IMAGE, options.pop("affine", spaced(1.0, 1.0, 2.0)), **options)
        write_files(root, {"a_image.nii": data})
        return read_scan(case_of(root, "a_image.nii"), pairs_spec(suffix="nii")).image

    def header(self, qform=None, **fields):
        data = bytearray(nifti_bytes(IMAGE, spaced(1.0, 1.0, 2.0)))
        import nibabel as nib

        header = nib.Nifti1Header.from_fileobj(__import__("io").BytesIO(bytes(data[:352])), check=False)
        if qform is not None:
            header.set_qform(qform, code=1)
        for name, value in fields.items():
            header[name] = value
        return header.binaryblock + bytes(data[348:])

    def read(self, root, data):
        write_files(root, {"a_image.nii": data})
        return read_scan(case_of(root, "a_image.nii"), pairs_spec(suffix="nii")).image

    def test_a_qform_that_agrees_says_nothing(self, tmp_path):
        assert self.read(tmp_path, self.header(qform=spaced(1.0, 1.0, 2.0))).steps == ()

    @pytest.mark.parametrize("axis", [0, 1])
    def test_the_sform_holds_over_a_flipped_qform(self, tmp_path, axis):
        flipped = spaced(1.0, 1.0, 2.0)
        flipped[axis, axis] *= -1
        flipped[2, 2] *= -1
        image = self.read(tmp_path, self.header(qform=flipped))
        assert image.steps == ("sform_over_qform",)
        assert np.array_equal(image.geometry.affine, spaced(1.0, 1.0, 2.0))

    def test_without_an_sform_the_qform_holds(self, tmp_path):
        turned = np.array([[0, -1.0, 0, 3], [1, 0, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
        image = self.read(tmp_path, self.header(qform=turned, sform_code=0))
        assert np.allclose(image.geometry.affine, turned, atol=1e-6)

    def test_one_millimetre_by_default_is_noted(self, tmp_path):
        assert self.steps(tmp_path, affine=np.eye(4), sform_code=0).steps == ("spacing_placeholder",)
        assert self.steps(tmp_path, affine=np.eye(4), sform_code=1).steps == ()

    def test_a_negative_pixdim_of_an_sform_is_its_size(self, tmp_path):
        image = self.steps(tmp_path, affine=np.diag([-1.0, 1.0, 2.0, 1.0]), pixdim=(-1.0, 1.0, 2.0))
        assert np.array_equal(image.geometry.affine, np.diag([-1.0, 1.0, 2.0, 1.0]))

    def test_a_negative_pixdim_of_a_qform_is_rejected(self, tmp_path):
        with pytest.raises(CaseRejected) as caught:
            self.read(
                tmp_path, self.header(qform=spaced(1.0, 1.0, 2.0), sform_code=0, pixdim=[1, -1, 1, 2, 0, 0, 0, 0])
            )
        assert caught.value.reason is Reason.SPACING_IMPLAUSIBLE

    def test_gzip_in_several_members_is_one_file(self, tmp_path):
        data = nifti_bytes(IMAGE)
        write_files(tmp_path, {"a_image.nii.gz": gzip.compress(data[:400]) + gzip.compress(data[400:])})
        image = read_scan(case_of(tmp_path, "a_image.nii.gz"), pairs_spec()).image
        assert np.array_equal(image.voxels, IMAGE)

    @pytest.mark.parametrize("trail", [b"\0" * 64, b"rubbish", b"\n"])
    def test_what_trails_a_complete_gzip_changes_nothing(self, tmp_path, trail):
        write_files(tmp_path, {"a_image.nii.gz": gzip.compress(nifti_bytes(IMAGE)) + trail})
        image = read_scan(case_of(tmp_path, "a_image.nii.gz"), pairs_spec()).image
        assert np.array_equal(image.voxels, IMAGE)

    @pytest.mark.parametrize(("off", "steps"), [(1e-5, ()), (0.5, ("affine_from_image",))])
    def test_a_label_half_a_voxel_off_takes_the_images_place_and_says_so(self, tmp_path, off, steps):
        moved = spaced(1.0, 1.0, 2.0)
        moved[0, 3] += off
        write_nifti(tmp_path / "a_image.nii", IMAGE, spaced(1.0, 1.0, 2.0))
        write_nifti(tmp_path / "a_label.nii", (IMAGE > 60).astype(np.uint8), moved)
        found = read_scan(case_of(tmp_path, "a_image.nii", "a_label.nii"), pairs_spec(suffix="nii")).label
        assert found.steps == steps
        assert np.array_equal(found.geometry.affine, spaced(1.0, 1.0, 2.0))

    def test_a_known_oddity_is_noted_in_the_row(self, tmp_path):
        hu = IMAGE - np.int16(100)
        write_files(tmp_path, {"volume-30.nii": nifti_bytes(hu), "volume-50.nii": nifti_bytes(hu)})
        spec = load_collection("lits")
        cases = {c.case: c for c in ingest(spec, open_tree(tmp_path), b"s").cases}
        assert "spacing_unknown" in read_scan(cases["30"], spec).image.steps
        assert "spacing_unknown" not in read_scan(cases["50"], spec).image.steps


class TestATurnedLabel:
    """A label on its image's grid with axes swapped or reversed lands on the anatomy, whatever the collection says of grids."""

    GRID = np.array([[0.9, 0.02, 0, -31.0], [-0.02, 0.9, 0, 17.5], [0, 0, 2.5, 100.0], [0, 0, 0, 1]])
    TRUTH = (np.arange(IMAGE.size).reshape(IMAGE.shape) % 7).astype(np.uint8)

    def read(self, root, label, affine, grid, name="a_label.nii", **header):
        write_nifti(root / "a_image.nii", IMAGE, self.GRID)
        if name.endswith(".nii"):
            (root / name).write_bytes(nifti_bytes(label, affine, **header))
        else:
            sitk.WriteImage(as_itk(label, affine), str(root / name))
        spec = replace(pairs_spec(suffix="nii"), label_grid=grid)
        return read_scan(case_of(root, "a_image.nii", name), spec).label

    @pytest.mark.parametrize("grid", ["image", "affine"])
    @pytest.mark.parametrize("name", ["a_label.nii", "a_label.mha", "a_label.nrrd"])
    @pytest.mark.parametrize("axes", list(permutations(range(3))))
    @pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1)])
    def test_every_turn_is_turned_back(self, tmp_path, axes, flips, name, grid):
        label, affine = turned(self.TRUTH, self.GRID, axes, flips)
        found = self.read(tmp_path, label, affine, grid, name)
        assert np.array_equal(found.voxels, self.TRUTH)
        assert found.steps == (() if axes == (0, 1, 2) and not any(flips) else ("label_reoriented",))
        assert np.allclose(found.geometry.affine, self.GRID, atol=1e-4)

    def test_a_turned_label_may_be_rounded(self, tmp_path):
        label, affine = turned(self.TRUTH, self.GRID, (0, 1, 2), (1, 1, 0))
        affine[:3] += np.random.default_rng(0).uniform(-0.01, 0.01, (3, 4))
        assert np.array_equal(self.read(tmp_path, label, affine, "image").voxels, self.TRUTH)

    @pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])
    @pytest.mark.parametrize("grid", ["image", "affine"])
    def test_a_header_that_says_nothing_takes_the_images_place(self, tmp_path, affine, grid):
        found = self.read(tmp_path, self.TRUTH, affine, grid)
        assert np.array_equal(found.voxels, self.TRUTH)
        assert found.steps == ("affine_from_image",)

    @pytest.mark.parametrize("grid", ["image", "affine"])
    def test_unset_codes_say_nothing(self, tmp_path, grid):
        found = self.read(tmp_path, self.TRUTH, self.GRID @ np.diag([-1.0, 1, 1, 1]), grid, sform_code=0)
        assert (found.steps, np.array_equal(found.voxels, self.TRUTH)) == (("affine_from_image",), True)

    def test_a_place_far_away_says_nothing(self, tmp_path):
        far = self.GRID.copy()
        far[:3, 3] += 900
        assert self.read(tmp_path, self.TRUTH, far, "image").steps == ("affine_from_image",)

    @pytest.mark.parametrize("moved_mm", [1.0, 2.0])
    def test_any_other_place_is_refused_or_resampled(self, tmp_path, moved_mm):
        moved = self.GRID.copy()
        moved[0, 3] += moved_mm
        with pytest.raises(CaseRejected, match="from its image's grid") as caught:
            self.read(tmp_path, self.TRUTH, moved, "image")
        assert caught.value.reason is Reason.LABEL_GEOMETRY
        found = self.read(tmp_path, self.TRUTH, moved, "affine")
        assert found.steps == ("label_resampled",)
        by = round(moved_mm / 0.9)
        assert np.array_equal(found.voxels[by:, 1:-1], self.TRUTH[:-by, 1:-1])


def turned(truth, affine, axes, flips):
    """The same truth stored with other axes: array and affine."""
    array, turn = truth.transpose(axes), np.zeros((4, 4))
    turn[3, 3] = 1
    for axis, source in enumerate(axes):
        turn[source, axis] = -1 if flips[axis] else 1
        turn[source, 3] = array.shape[axis] - 1 if flips[axis] else 0
    array = np.flip(array, [axis for axis in range(3) if flips[axis]])
    return np.ascontiguousarray(array), affine @ turn


def as_itk(array, affine):
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).reshape(-1).tolist())
    return image
