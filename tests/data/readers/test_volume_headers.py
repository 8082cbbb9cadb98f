"""Headers that say little, or say it in another way: offsets, units, scaling, gzip members, axes of length 0."""

import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from support.builders import case_of, nifti_bytes, pairs_spec, spaced, write_files

from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.read import read_scan
from medvar_data.readers.volume_scan import read_volume_header

IMAGE = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
AFFINE = spaced(1.5, 1.5, 4.0)


def read(root, data, name="a_image.nii"):
    write_files(root, {name: data})
    return read_scan(case_of(root, name), pairs_spec(suffix="nii")).image


def reason(root, data, name="a_image.nii"):
    with pytest.raises(CaseRejected) as caught:
        read(root, data, name)
    return caught.value.reason, caught.value.detail


def patched(data, second=False, **fields):
    """Overwrite fields of a NIfTI header as stored."""
    cls, size = (nib.Nifti2Header, 540) if second else (nib.Nifti1Header, 348)
    header = cls(data[:size], check=False)
    for name, value in fields.items():
        if isinstance(value, dict):
            for at, one in value.items():
                header[name][at] = one
        else:
            header[name] = value
    return header.binaryblock + data[size:]


GOOD = nifti_bytes(IMAGE, AFFINE)


class TestWhereVoxelsBegin:
    @pytest.mark.parametrize("stated", [0, 1, 348, 351, -1, np.nan, np.inf, 352, 352.5])
    def test_never_before_byte_352(self, tmp_path, stated):
        assert np.array_equal(read(tmp_path, patched(GOOD, vox_offset=stated)).voxels, IMAGE)

    @pytest.mark.parametrize("stated", [0, 348, 352])
    def test_the_size_says_that_the_four_bytes_are_missing(self, tmp_path, stated):
        short = patched(GOOD, vox_offset=stated)
        short = short[:348] + short[352:]
        if stated == 352:
            assert reason(tmp_path, short)[0] is Reason.TRUNCATED
        else:
            assert np.array_equal(read(tmp_path, short).voxels, IMAGE)

    @pytest.mark.parametrize("stated", [0, 352, 352 + 48])
    def test_extensions_are_no_voxels(self, tmp_path, stated):
        chunk = np.array([16, 6], "<i4").tobytes() + bytes(8) + np.array([32, 4], "<i4").tobytes() + bytes(24)
        long = patched(GOOD, vox_offset=stated)
        long = long[:348] + b"\1\0\0\0" + chunk + long[352:]
        assert np.array_equal(read(tmp_path, long).voxels, IMAGE)

    @pytest.mark.parametrize("stated", [0, 352, 540, 544])
    def test_nifti_2(self, tmp_path, stated):
        data = patched(nifti_bytes(IMAGE, AFFINE, second=True), second=True, vox_offset=stated)
        assert np.array_equal(read(tmp_path, data).voxels, IMAGE)

    def test_a_place_beyond_the_file_is_named(self, tmp_path):
        why, detail = reason(tmp_path, patched(GOOD, vox_offset=5000))
        assert why is Reason.TRUNCATED
        assert "byte 5000" in detail


class TestUnits:
    @pytest.mark.parametrize(("code", "factor", "steps"), [(0, 1, ()), (2, 1, ()), (10, 1, ()), (3, 0.001, ("spacing_in_microns",)), (19, 0.001, ("spacing_in_microns",)), (1, 1000, ("spacing_in_metres",))])  # fmt: skip
    def test_nifti(self, tmp_path, code, factor, steps):
        affine = spaced(*(step / factor for step in (1.5, 1.5, 4.0)))
        affine[:3, 3] = np.array([5, -7, 30]) / factor
        data = patched(nifti_bytes(IMAGE, affine), xyzt_units=code)
        image = read(tmp_path, data)
        wanted = spaced(1.5, 1.5, 4.0)
        wanted[:3, 3] = (5, -7, 30)
        assert np.allclose(image.geometry.affine, wanted, rtol=1e-6)
        assert image.steps == steps
        head = read_volume_header(str(tmp_path), "a_image.nii", "")
        assert head.spacing_mm == pytest.approx((1.5, 1.5, 4.0))

    def test_both_transforms_in_microns_agree(self, tmp_path):
        header = nib.Nifti1Image(IMAGE, spaced(40, 40, 80))
        header.set_qform(spaced(40, 40, 80), 1)
        header.header["xyzt_units"] = 3
        assert read(tmp_path, header.to_bytes()).steps == ("spacing_in_microns",)

    def test_a_label_that_names_no_unit_lies_on_its_image(self, tmp_path):
        image = patched(nifti_bytes(IMAGE, spaced(40, 40, 80)), xyzt_units=3)
        label = patched(nifti_bytes((IMAGE > 60).astype(np.uint8), spaced(40, 40, 80)), xyzt_units=0)
        write_files(tmp_path, {"a_image.nii": image, "a_label.nii": label})
        found = read_scan(case_of(tmp_path, "a_image.nii", "a_label.nii"), pairs_spec(suffix="nii"))
        assert found.label.steps == ()
        assert np.allclose(found.label.geometry.affine, spaced(0.04, 0.04, 0.08))

    @pytest.mark.parametrize(("words", "factor"), [('"um" "um" "um"', 0.001), ('"mm" "mm" "mm"', 1), ('"m" "m" "m"', 1000), ('"cm" "cm" "cm"', 10)])  # fmt: skip
    def test_nrrd(self, tmp_path, words, factor):
        image = read(tmp_path, nrrd(words, 1.5 / factor), "a_image.nrrd")
        assert np.allclose(np.linalg.norm(image.geometry.affine[:3, :3], axis=0), 1.5)
        assert bool(image.steps) is (factor != 1)

    @pytest.mark.parametrize("words", ['"mm" "um" "mm"', '"pixel" "pixel" "pixel"'])
    def test_nrrd_units_that_are_no_length(self, tmp_path, words):
        assert reason(tmp_path, nrrd(words, 1.5), "a_image.nrrd")[0] is Reason.SPACING_IMPLAUSIBLE


def nrrd(words, step):
    head = (
        "NRRD0005\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
        f"space directions: ({step},0,0) (0,{step},0) (0,0,{step})\nspace units: {words}\n"
        "kinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    return head.encode() + IMAGE.tobytes(order="F")


class TestVoxels:
    @pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
    def test_complex_is_refused_whatever_its_slope(self, tmp_path, dtype):
        assert reason(tmp_path, nifti_bytes(IMAGE.astype(dtype), AFFINE, slope=2.0))[0] is Reason.DIMENSIONS

    @pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
    @pytest.mark.parametrize("inter", [0.0, np.nan, 7.0])
    def test_a_slope_that_is_none_scales_nothing(self, tmp_path, slope, inter):
        image = read(tmp_path, patched(GOOD, scl_slope=slope, scl_inter=inter))
        assert np.array_equal(image.voxels, IMAGE)
        assert image.steps == ()

    def test_an_intercept_that_is_no_number_is_named(self, tmp_path):
        why, detail = reason(tmp_path, patched(GOOD, scl_slope=2.0, scl_inter=np.nan))
        assert why is Reason.UNREADABLE
        assert "scl_inter" in detail
        assert "damaged" not in detail

    @pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.float64])
    def test_wide_numbers_are_scaled_exactly(self, tmp_path, dtype):
        stored = IMAGE.astype(dtype) + dtype(1_000_000_001)
        image = read(tmp_path, nifti_bytes(stored, AFFINE, slope=1.0, inter=-1_000_000_000.0))
        assert np.array_equal(image.voxels, IMAGE + 1)

    def test_small_steps_on_a_large_offset_are_refused(self, tmp_path):
        why, detail = reason(tmp_path, nifti_bytes(IMAGE.astype(np.int32) + 2**30, AFFINE))
        assert why is Reason.VALUE_RANGE
        assert "subtract the offset" in detail

    def test_wide_numbers_of_a_wide_range_are_kept(self, tmp_path):
        stored = IMAGE.astype(np.int32) * 17_000_001
        assert np.allclose(read(tmp_path, nifti_bytes(stored, AFFINE)).voxels, stored, rtol=1e-6)


class TestGeometryFields:
    def test_a_qfac_of_0_is_1(self, tmp_path):
        image = nib.Nifti1Image(IMAGE, AFFINE)
        image.set_sform(None, 0)
        image.set_qform(AFFINE, 1)
        data = patched(image.to_bytes(), pixdim={0: 0.0})
        assert np.allclose(read(tmp_path, data).geometry.affine, AFFINE)

    @pytest.mark.parametrize("n_axes", [4, 5, 7])
    def test_a_fourth_axis_of_length_0_is_none(self, tmp_path, n_axes):
        data = patched(GOOD, dim={0: n_axes, 4: 0, 5: 1, 6: 1, 7: 0})
        assert np.array_equal(read(tmp_path, data).voxels, IMAGE)
        assert read_volume_header(str(tmp_path), "a_image.nii", "").shape == IMAGE.shape

    def test_a_third_axis_of_length_0_is_named(self, tmp_path):
        why, detail = reason(tmp_path, patched(GOOD, dim={3: 0}))
        assert why is Reason.DIMENSIONS
        assert "6 x 5 x 0" in detail


class TestGzip:
    MEMBERS = (
        gzip.compress(GOOD) + b"\nOK\n",
        gzip.compress(GOOD) + b"\x1f\x8bjunk",
        gzip.compress(GOOD) + bytes(512) + b"x",
        gzip.compress(GOOD[:100]) + gzip.compress(GOOD[100:]),
        gzip.compress(b"") + gzip.compress(GOOD[:1]) + gzip.compress(GOOD[1:347]) + gzip.compress(GOOD[347:]),
        b"".join(gzip.compress(GOOD[i : i + 64]) for i in range(0, len(GOOD), 64)),
    )

    @pytest.mark.parametrize("data", MEMBERS)
    def test_all_of_it_is_read(self, tmp_path, data):
        assert np.array_equal(read(tmp_path, data, "a_image.nii.gz").voxels, IMAGE)
        assert read_volume_header(str(tmp_path), "a_image.nii.gz", "").shape == IMAGE.shape

    @pytest.mark.parametrize(
        "data", [gzip.compress(GOOD)[:-30], gzip.compress(GOOD[:300]) + gzip.compress(GOOD[300:])[:-12]]
    )
    def test_what_is_cut_is_not(self, tmp_path, data):
        assert reason(tmp_path, data, "a_image.nii.gz")[0] is Reason.TRUNCATED

    def test_a_second_member_that_is_damaged(self, tmp_path):
        tail = bytearray(gzip.compress(GOOD[300:]))
        tail[-6] ^= 1
        assert reason(tmp_path, gzip.compress(GOOD[:300]) + bytes(tail), "a_image.nii.gz")[0] is Reason.UNREADABLE

    def test_packed_twice(self, tmp_path):
        why, detail = reason(tmp_path, gzip.compress(gzip.compress(GOOD)), "a_image.nii.gz")
        assert (why, "twice" in detail) == (Reason.NOT_AN_IMAGE, True)


class TestFreeSurfer:
    @pytest.mark.parametrize("suffix", ["mgz", "mgh"])
    def test_an_image_with_its_label(self, tmp_path, suffix):
        affine = np.array([[-1.0, 0, 0, 60], [0, 0, 1.5, -50], [0, -1.25, 0, 70], [0, 0, 0, 1]])
        nib.save(nib.MGHImage(IMAGE, affine), tmp_path / f"a_image.{suffix}")
        nib.save(nib.MGHImage((IMAGE > 60).astype(np.uint8), affine), tmp_path / f"a_label.{suffix}")
        spec = replace(pairs_spec(suffix="nii"))
        scan = read_scan(case_of(tmp_path, f"a_image.{suffix}", f"a_label.{suffix}"), spec)
        assert np.array_equal(scan.image.voxels, IMAGE)
        assert np.array_equal(scan.label.voxels, IMAGE > 60)
        assert np.allclose(scan.image.geometry.affine, affine, atol=1e-4)
        assert scan.label.steps == ()
        assert read_volume_header(str(tmp_path), f"a_image.{suffix}", "").shape == IMAGE.shape

    def test_what_is_none(self, tmp_path):
        assert reason(tmp_path, b"rubbish" * 100, "a_image.mgh")[0] is Reason.NOT_AN_IMAGE
        nib.save(nib.MGHImage(IMAGE, AFFINE), tmp_path / "b.mgh")
        cut = (tmp_path / "b.mgh").read_bytes()[:400]
        assert reason(tmp_path, cut, "a_image.mgh")[0] is Reason.TRUNCATED


def test_a_cut_mha_is_told_by_its_bytes(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE), str(tmp_path / "b.mha"))
    why, detail = reason(tmp_path, (tmp_path / "b.mha").read_bytes()[:-50], "a_image.mha")
    assert why is Reason.UNREADABLE
    assert "end early" in detail
