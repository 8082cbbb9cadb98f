"""Every bad file becomes its reason and never another exception; every good one the same voxels in whatever format."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support.builders import (
    case_of,
    chaos_members,
    ct_stack,
    dicom_bytes,
    nifti_bytes,
    pairs_spec,
    png_bytes,
    scan,
    spaced,
    write_files,
    write_zip,
)

from medvar_data.catalog.load import load_collection
from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.read import read_scan
from medvar_data.readers.volume_scan import read_volume_header

IMAGE, LABEL = scan()
LABEL = np.where(LABEL > 1, 5, LABEL).astype(np.uint8)
SPEC = pairs_spec()
CHAOS = load_collection("chaos")


def read(folder: Path, image: bytes, label: bytes | None = None, name: str = "a.nii", **changes):
    (folder / name).write_bytes(image)
    members = {}
    if label is not None:
        (folder / "label.nii").write_bytes(label)
        members["label"] = "label.nii"
    return read_scan(case_of(folder, name, **members, **changes), SPEC)


def reason(folder: Path, image: bytes, label: bytes | None = None, name: str = "a.nii", **changes) -> Reason:
    with pytest.raises(CaseRejected) as caught:
        read(folder, image, label, name, **changes)
    assert caught.value.detail
    assert str(folder) not in caught.value.detail
    assert name not in caught.value.detail
    return caught.value.reason


def header_reason(folder: Path, data: bytes, name: str = "h.nii") -> Reason | None:
    """What ingest's look at the header says of the same bytes; never another exception."""
    (folder / name).write_bytes(data)
    try:
        read_volume_header(str(folder), name, "reject")
    except CaseRejected as error:
        return error.reason
    return None


GOOD = nifti_bytes(IMAGE, spaced(1.5, 1.5, 4.0))
PACKED = gzip.compress(GOOD, mtime=0)


class TestDamage:
    @pytest.mark.parametrize("kept", [12, 60, len(PACKED) // 2, len(PACKED) - 9, len(PACKED) - 4, len(PACKED) - 1])
    def test_truncated_gzip(self, tmp_path, kept):
        assert reason(tmp_path, PACKED[:kept], name="a.nii.gz") is Reason.TRUNCATED
        assert header_reason(tmp_path, PACKED[:kept], "h.nii.gz") in (Reason.TRUNCATED, None)

    @pytest.mark.parametrize("kept", [348, 352, 400, len(GOOD) - 1])
    def test_truncated_plain(self, tmp_path, kept):
        assert reason(tmp_path, GOOD[:kept]) is Reason.TRUNCATED
        assert header_reason(tmp_path, GOOD[:kept]) is None

    def test_every_cut_has_a_reason(self, tmp_path):
        for kept in range(1, len(PACKED), 97):
            reason(tmp_path, PACKED[:kept], name="a.nii.gz")
            header_reason(tmp_path, PACKED[:kept], "h.nii.gz")

    def test_checksum_damage(self, tmp_path):
        broken = bytearray(PACKED)
        broken[-6] ^= 0xFF
        assert reason(tmp_path, bytes(broken), name="a.nii.gz") is Reason.UNREADABLE

    def test_every_flipped_byte_has_a_reason_or_the_same_voxels(self, tmp_path):
        for at in range(0, len(PACKED), 61):
            broken = bytearray(PACKED)
            broken[at] ^= 0x55
            header_reason(tmp_path, bytes(broken), "h.nii.gz")
            try:
                found = read(tmp_path, bytes(broken), name="a.nii.gz")
            except CaseRejected:
                continue
            assert np.array_equal(found.image.voxels, IMAGE)

    @pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
    def test_every_damaged_header_field_has_a_reason_or_a_volume(self, tmp_path, step):
        for at in range(0, 348, step):
            for value in (0x00, 0xFF):
                broken = bytearray(GOOD)
                broken[at] = value
                header_reason(tmp_path, bytes(broken))
                try:
                    read(tmp_path, bytes(broken))
                except CaseRejected as error:
                    assert error.detail  # noqa: PT017

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
    def test_empty_file(self, tmp_path, name):
        assert reason(tmp_path, b"", name=name) is Reason.FILE_EMPTY

    @pytest.mark.parametrize(
        "data",
        [
            b"<html>Access denied</html>" * 40,
            gzip.compress(b"hello" * 999, mtime=0),
            gzip.compress(b"hi", mtime=0),
            b"x",
        ],
    )
    def test_text_with_an_image_name(self, tmp_path, data):
        assert reason(tmp_path, data, name="a.nii.gz") is Reason.NOT_AN_IMAGE
        assert header_reason(tmp_path, data, "h.nii.gz") is Reason.NOT_AN_IMAGE

    @pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.mhd"])
    def test_text_with_an_itk_name(self, tmp_path, name):
        assert reason(tmp_path, b"<html>Access denied</html>" * 40, name=name) is Reason.UNREADABLE

    def test_a_file_that_is_gone(self, tmp_path):
        with pytest.raises(CaseRejected) as caught:
            read_scan(case_of(tmp_path, "nothing.nii"), SPEC)
        assert caught.value.reason is Reason.FILE_MISSING


class TestVoxels:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_a_number(self, tmp_path, bad):
        image = IMAGE.astype(np.float32)
        image[3, 3, 3] = bad
        assert reason(tmp_path, nifti_bytes(image)) is Reason.NAN_VOXELS

    def test_beyond_32_bit_floats(self, tmp_path):
        image = IMAGE.astype(np.float64)
        image[3, 3, 3] = 1e300
        assert reason(tmp_path, nifti_bytes(image)) is Reason.NAN_VOXELS

    @pytest.mark.parametrize("value", [0, 7])
    def test_constant(self, tmp_path, value):
        assert reason(tmp_path, nifti_bytes(np.full((5, 6, 7), value, dtype=np.int16))) is Reason.CONSTANT_IMAGE

    def test_colour_and_complex(self, tmp_path):
        colour = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        colour["R"][0] = 3
        for voxels in (colour, IMAGE.astype(np.complex64)):
            assert reason(tmp_path, nifti_bytes(voxels)) is Reason.DIMENSIONS

    @pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    @pytest.mark.parametrize("big_endian", [False, True])
    def test_whole_numbers_become_int16_in_every_type_and_byte_order(self, tmp_path, dtype, big_endian):
        image = (IMAGE % 100).astype(dtype)
        voxels = read(tmp_path, nifti_bytes(image, big_endian=big_endian)).image.voxels
        assert voxels.dtype == np.int16
        assert np.array_equal(voxels, IMAGE % 100)

    def test_numbers_beyond_int16_and_fractions_become_float32(self, tmp_path):
        for image in (IMAGE.astype(np.int32) + 40000, IMAGE * 0.5, (IMAGE.astype(np.int32) + 60000).astype(np.uint16)):
            voxels = read(tmp_path, nifti_bytes(image)).image.voxels
            assert voxels.dtype == np.float32
            assert np.array_equal(voxels, image.astype(np.float32))

    @pytest.mark.parametrize(("slope", "inter"), [(0.0, 0.0), (np.nan, np.nan), (1.0, 0.0), (0.0, 9.0)])
    def test_a_slope_that_means_nothing_changes_nothing(self, tmp_path, slope, inter):
        found = read(tmp_path, nifti_bytes(IMAGE, slope=slope, inter=inter)).image
        assert np.array_equal(found.voxels, IMAGE)
        assert "scaled" not in found.steps

    def test_a_slope_is_applied(self, tmp_path):
        found = read(tmp_path, nifti_bytes(IMAGE, slope=2.0, inter=-5.0)).image
        assert np.array_equal(found.voxels, IMAGE * 2 - 5)
        assert found.voxels.dtype == np.int16
        assert "scaled" in found.steps

    def test_nifti_2_and_big_endian_read_the_same(self, tmp_path):
        affine = spaced(1.5, 1.5, 4.0)
        for options in ({"second": True}, {"big_endian": True}, {"second": True, "big_endian": True}):
            found = read(tmp_path, nifti_bytes(IMAGE, affine, **options)).image
            assert np.array_equal(found.voxels, IMAGE)
            assert np.allclose(found.geometry.affine, affine)
            assert header_reason(tmp_path, nifti_bytes(IMAGE, affine, **options)) is None

    def test_packing_changes_nothing_but_the_digest(self, tmp_path):
        plain, packed = read(tmp_path, GOOD).image, read(tmp_path, PACKED, name="a.nii.gz").image
        assert np.array_equal(plain.voxels, packed.voxels)
        assert plain.digest != packed.digest


class TestDimensions:
    def test_one_picture_is_a_volume_of_one_slice(self, tmp_path):
        found = read(tmp_path, nifti_bytes(IMAGE[:, :, 2])).image
        assert found.voxels.shape == (*IMAGE.shape[:2], 1)

    def test_a_fourth_dimension_of_one_is_squeezed(self, tmp_path):
        found = read(tmp_path, nifti_bytes(IMAGE[..., None])).image
        assert np.array_equal(found.voxels, IMAGE)
        assert found.steps == ("squeezed",)

    def test_channels_nobody_names(self, tmp_path):
        assert reason(tmp_path, nifti_bytes(np.stack([IMAGE] * 3, axis=-1))) is Reason.DIMENSIONS

    def test_a_channel_by_number(self, tmp_path):
        data = nifti_bytes(np.stack([IMAGE, IMAGE + 1, IMAGE + 2], axis=-1))
        for channel in range(3):
            assert np.array_equal(read(tmp_path, data, channel=channel).image.voxels, IMAGE + channel)
        assert reason(tmp_path, data, channel=3) is Reason.DIMENSIONS

    @pytest.mark.parametrize("shape", [(24,), (4, 5, 6, 1, 2), (4, 5, 6, 2, 2)])
    def test_other_dimensions(self, tmp_path, shape):
        data = nifti_bytes(np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
        assert reason(tmp_path, data) is Reason.DIMENSIONS
        assert header_reason(tmp_path, data) is Reason.DIMENSIONS


class TestGeometry:
    def test_shear(self, tmp_path):
        sheared = np.eye(4)
        sheared[0, 1] = 0.5
        data = nifti_bytes(IMAGE, sheared)
        assert reason(tmp_path, data) is Reason.NONORTHONORMAL
        assert header_reason(tmp_path, data) is Reason.NONORTHONORMAL

    @pytest.mark.parametrize("steps", [(0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (500.0, 1.0, 1.0), (np.nan, 1.0, 1.0)])
    def test_implausible_spacing(self, tmp_path, steps):
        data = nifti_bytes(IMAGE, spaced(*steps), pixdim=steps)
        assert reason(tmp_path, data) in (Reason.SPACING_IMPLAUSIBLE, Reason.SPACING_DISAGREES)
        assert header_reason(tmp_path, data) in (Reason.SPACING_IMPLAUSIBLE, Reason.SPACING_DISAGREES)

    def test_zero_spacing_without_any_matrix(self, tmp_path):
        assert reason(tmp_path, nifti_bytes(IMAGE, pixdim=(0, 0, 0), sform_code=0)) is Reason.SPACING_IMPLAUSIBLE

    def test_affine_against_pixdim(self, tmp_path):
        data = nifti_bytes(IMAGE, np.eye(4), pixdim=(1.5, 1.5, 10.0))
        assert reason(tmp_path, data) is Reason.SPACING_DISAGREES
        assert header_reason(tmp_path, data) is Reason.SPACING_DISAGREES

    def test_the_images_affine_holds_for_its_label(self, tmp_path):
        found = read(tmp_path, GOOD, nifti_bytes(LABEL, np.eye(4)))
        assert np.array_equal(found.label.geometry.affine, found.image.geometry.affine)
        assert found.label.steps == ("affine_from_image",)
        same = read(tmp_path, GOOD, nifti_bytes(LABEL, spaced(1.5, 1.5, 4.0)))
        assert same.label.steps == ()


class TestLabels:
    def test_a_good_one(self, tmp_path):
        for dtype in ("u1", "i2", "f4", "f8"):
            found = read(tmp_path, GOOD, nifti_bytes(LABEL.astype(dtype)))
            assert found.label.voxels.dtype == np.uint8
            assert np.array_equal(found.label.voxels, LABEL)

    def test_almost_whole_numbers_are_whole(self, tmp_path):
        almost = LABEL.astype(np.float32) + np.float32(4e-4)
        assert np.array_equal(read(tmp_path, GOOD, nifti_bytes(almost)).label.voxels, LABEL)

    @pytest.mark.parametrize("value", [1.5, 0.02, -1.0, 70000.0, np.nan, np.inf])
    def test_a_value_that_is_no_label(self, tmp_path, value):
        label = LABEL.astype(np.float64)
        label[0, 0, 0] = value
        assert reason(tmp_path, GOOD, nifti_bytes(label)) is Reason.LABEL_VALUES

    def test_empty(self, tmp_path):
        assert reason(tmp_path, GOOD, nifti_bytes(np.zeros_like(LABEL))) is Reason.EMPTY_LABEL

    @pytest.mark.parametrize("label", [LABEL[:, :, :-1], LABEL.swapaxes(0, 1), LABEL[:, :, 0]])
    def test_another_shape(self, tmp_path, label):
        assert reason(tmp_path, GOOD, nifti_bytes(label)) is Reason.LABEL_SHAPE

    def test_several_channels(self, tmp_path):
        assert reason(tmp_path, GOOD, nifti_bytes(np.stack([LABEL] * 2, axis=-1))) is Reason.DIMENSIONS

    def test_damage(self, tmp_path):
        assert reason(tmp_path, GOOD, nifti_bytes(LABEL)[:-3]) is Reason.TRUNCATED
        assert reason(tmp_path, GOOD, b"no label" * 99) is Reason.NOT_AN_IMAGE


class TestItk:
    affine = np.array([[-0.9, 0, 0, 12], [0, -0.7, 0, 5], [0, 0, 2.5, -30], [0, 0, 0, 1]], dtype=float)

    def image(self, voxels: np.ndarray) -> sitk.Image:
        image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine
        steps = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(steps.tolist())
        image.SetDirection((lps[:3, :3] / steps).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        return image

    @pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.mhd", "A.NRRD"])
    def test_equal_to_nifti_with_the_same_content(self, tmp_path, name):
        sitk.WriteImage(self.image(IMAGE), str(tmp_path / name))
        wanted = read(tmp_path, nifti_bytes(IMAGE, self.affine), name="b.nii").image
        found = read_scan(case_of(tmp_path, name), SPEC).image
        assert np.array_equal(found.voxels, wanted.voxels)
        assert np.allclose(found.geometry.affine, wanted.geometry.affine, atol=1e-5)

    def test_from_an_archive(self, tmp_path):
        sitk.WriteImage(self.image(IMAGE), str(tmp_path / "a.mha"))
        write_zip(tmp_path / "x.zip", {"deep/a.mha": (tmp_path / "a.mha").read_bytes()})
        found = read_scan(case_of(tmp_path, "x.zip!/deep/a.mha"), SPEC).image
        assert np.array_equal(found.voxels, IMAGE)

    @pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
    def test_truncated(self, tmp_path, name):
        sitk.WriteImage(self.image(IMAGE), str(tmp_path / "whole.mha"))
        sitk.WriteImage(self.image(IMAGE), str(tmp_path / "whole.nrrd"))
        data = (tmp_path / f"whole{Path(name).suffix}").read_bytes()
        for kept in (len(data) - 1, len(data) // 2, 50):
            assert reason(tmp_path, data[:kept], name=name) in (Reason.TRUNCATED, Reason.UNREADABLE)

    def test_an_axis_of_no_length(self, tmp_path):
        sitk.WriteImage(self.image(IMAGE), str(tmp_path / "whole.mha"))
        sizes = b"DimSize = " + " ".join(map(str, IMAGE.shape)).encode()
        data = (tmp_path / "whole.mha").read_bytes()
        assert sizes in data
        none = data.replace(sizes, b"DimSize = 0 " + sizes.split(b" ", 3)[3])
        assert reason(tmp_path, none, name="a.mha") in (Reason.DIMENSIONS, Reason.UNREADABLE)

    def test_vector_images(self, tmp_path):
        image = sitk.Compose(self.image(IMAGE), self.image(IMAGE))
        sitk.WriteImage(image, str(tmp_path / "v.nrrd"))
        with pytest.raises(CaseRejected) as caught:
            read_scan(case_of(tmp_path, "v.nrrd"), SPEC)
        assert caught.value.reason is Reason.DIMENSIONS


class TestDicom:
    def write(self, root: Path, members: dict[str, bytes], with_label: bool = True, order=sorted):
        write_files(root, members)
        images = order(name for name in members if name.endswith(".dcm"))
        labels = order(name for name in members if name.endswith(".png")) if with_label else ()
        return case_of(root, images, labels, reader="dicom_png", modality="CT")

    def stack(self, heights, **options) -> dict[str, bytes]:
        pixels, _ = ct_stack(len(heights))
        return {
            f"{n:03d}.dcm": dicom_bytes(picture, (0, 0, height), number=n, **options)
            for n, (picture, height) in enumerate(zip(pixels, heights, strict=True))
        }

    def reason(self, root: Path, members: dict[str, bytes], **options) -> Reason:
        with pytest.raises(CaseRejected) as caught:
            read_scan(self.write(root, members, **options), CHAOS)
        assert caught.value.detail
        return caught.value.reason

    def test_values_and_place(self, tmp_path):
        """Against the voxels that were written: HU, RAS+ affine, mask on the slice it was made for."""
        pixels, masks = ct_stack(6, seed=1)
        found = read_scan(self.write(tmp_path, chaos_members(1, 6)), CHAOS)
        hu = pixels.astype(int) - 1024
        assert found.image.geometry.shape == (32, 32, 6)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ found.image.geometry.affine
        for z, row, column in ((0, 3, 20), (5, 16, 9), (2, 30, 1)):
            place = np.array([-16.0 + column, -16.0 + row, 100.0 - 2.0 * z, 1])
            at = tuple(np.rint(np.linalg.inv(affine) @ place).astype(int)[:3])
            assert found.image.voxels[at] == hu[z, row, column]
            assert found.label.voxels[at] == masks[z, row, column] * 255

    def test_file_order_does_not_matter(self, tmp_path):
        members = chaos_members(1, 6)
        orders = (sorted, lambda names: sorted(names, reverse=True), lambda names: sorted(names, key=hash))
        scans = [read_scan(self.write(tmp_path, members, with_label=False, order=o), CHAOS).image for o in orders]
        for found in scans[1:]:
            assert np.array_equal(found.voxels, scans[0].voxels)
            assert np.array_equal(found.geometry.affine, scans[0].geometry.affine)
            assert found.digest == scans[0].digest

    def test_z_rising_or_falling_with_the_number_is_the_same_scan(self, tmp_path):
        pixels, _ = ct_stack(5)
        up = {f"{n}.dcm": dicom_bytes(p, (0, 0, 2.0 * n)) for n, p in enumerate(pixels)}
        down = {f"{4 - n}.dcm": data for n, data in enumerate(up.values())}
        a = read_scan(self.write(tmp_path / "a", up), CHAOS).image
        b = read_scan(self.write(tmp_path / "b", down), CHAOS).image
        assert np.array_equal(a.voxels, b.voxels)
        assert np.array_equal(a.geometry.affine, b.geometry.affine)

    def test_one_slice_is_a_volume(self, tmp_path):
        found = read_scan(self.write(tmp_path, self.stack([5.0])), CHAOS).image
        assert found.geometry.shape == (32, 32, 1)

    def test_slope_and_intercept(self, tmp_path):
        pixels, _ = ct_stack(2)
        members = {f"{n}.dcm": dicom_bytes(p, (0, 0, n), slope=0.5, intercept=-200.25) for n, p in enumerate(pixels)}
        found = read_scan(self.write(tmp_path, members), CHAOS).image
        at_zero = int(np.rint((np.linalg.inv(found.geometry.affine) @ [0, 0, 0, 1])[2]))
        assert np.allclose(found.voxels[:, :, at_zero].T, pixels[0] * 0.5 - 200.25)

    @pytest.mark.parametrize(
        ("heights", "why"),
        [
            ([0, 2, 4, 8, 10], Reason.MISSING_SLICE),
            ([0, 2, 4, 10, 12], Reason.MISSING_SLICE),
            ([0, 2, 4, 4, 6], Reason.DUPLICATE_POSITION),
            ([0, 0, 0], Reason.DUPLICATE_POSITION),
            ([0, 2, 4.7, 6, 8], Reason.UNEVEN_SPACING),
            ([0, 500.0], Reason.SPACING_IMPLAUSIBLE),
        ],
    )
    def test_stacks_that_are_none(self, tmp_path, heights, why):
        assert self.reason(tmp_path, self.stack(heights)) is why

    def test_a_shifted_slice_is_uneven(self, tmp_path):
        members = self.stack([0, 2, 4, 6])
        pixels, _ = ct_stack(4)
        members["002.dcm"] = dicom_bytes(pixels[2], (30, 0, 4))
        assert self.reason(tmp_path, members) in (Reason.UNEVEN_SPACING, Reason.MIXED_SERIES)

    @pytest.mark.parametrize(
        "options", [{"spacing": (1.0, 1.1)}, {"orientation": (0, 1, 0, 0, 0, -1)}, {"orientation": (1, 0, 0, 0, -1, 0)}]
    )
    def test_one_slice_of_another_series(self, tmp_path, options):
        members = self.stack([0, 2, 4])
        members["001.dcm"] = dicom_bytes(ct_stack(3)[0][1], (0, 0, 2), **options)
        assert self.reason(tmp_path, members) is Reason.MIXED_SERIES

    def test_one_slice_of_another_size(self, tmp_path):
        members = self.stack([0, 2, 4])
        members["001.dcm"] = dicom_bytes(np.zeros((16, 16), dtype=np.uint16), (0, 0, 2))
        assert self.reason(tmp_path, members) is Reason.MIXED_SERIES

    def test_not_dicom_and_empty(self, tmp_path):
        members = self.stack([0, 2])
        assert self.reason(tmp_path, {**members, "001.dcm": b"hello" * 99}) is Reason.NOT_AN_IMAGE
        assert self.reason(tmp_path, {**members, "001.dcm": b""}) is Reason.FILE_EMPTY

    def test_every_cut_has_a_reason(self, tmp_path):
        members = self.stack([0, 2])
        whole = members["001.dcm"]
        for kept in range(1, len(whole), 37):
            assert self.reason(tmp_path, {**members, "001.dcm": whole[:kept]}) in (
                Reason.NOT_AN_IMAGE, Reason.TRUNCATED, Reason.MIXED_SERIES,
            )  # fmt: skip

    @pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
    def test_every_damaged_byte_of_the_header_has_a_reason_or_a_volume(self, tmp_path, step):
        members = self.stack([0, 2])
        whole = members["001.dcm"]
        for at in range(132, len(whole) - 2048, step):
            broken = bytearray(whole)
            broken[at] ^= 0x3F
            case = self.write(tmp_path, {**members, "001.dcm": bytes(broken)})
            try:
                read_scan(case, CHAOS)
            except CaseRejected as error:
                assert error.detail  # noqa: PT017

    @pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
    def test_a_slice_without_a_place(self, tmp_path, name):
        members = self.stack([0, 2])
        members["001.dcm"] = dicom_bytes(ct_stack(2)[0][1], (0, 0, 2), extra={name: None})
        assert self.reason(tmp_path, members) is Reason.MIXED_SERIES

    def test_several_frames(self, tmp_path):
        members = self.stack([0, 2])
        members["001.dcm"] = dicom_bytes(ct_stack(2)[0][1], (0, 0, 2), extra={"NumberOfFrames": "2"})
        assert self.reason(tmp_path, members) is Reason.DIMENSIONS

    def test_masks(self, tmp_path):
        members = chaos_members(1, 4)
        names = sorted(name for name in members if name.endswith(".png"))
        assert self.reason(tmp_path / "a", {k: v for k, v in members.items() if k != names[0]}) is Reason.SLICE_COUNT
        for data, why in (
            (b"no picture", Reason.NOT_AN_IMAGE),
            (png_bytes(np.zeros((16, 16), dtype=np.uint8)), Reason.LABEL_SHAPE),
            (png_bytes(np.zeros((32, 32, 3), dtype=np.uint8)), Reason.NOT_AN_IMAGE),
        ):
            assert self.reason(tmp_path / "b", {**members, names[1]: data}) is why
        empty = png_bytes(np.zeros((32, 32), dtype=np.uint8))
        assert self.reason(tmp_path / "c", {**members, **dict.fromkeys(names, empty)}) is Reason.EMPTY_LABEL

    def test_from_a_zip_as_from_a_folder(self, tmp_path):
        members = chaos_members(1, 4)
        write_zip(tmp_path / "x.zip", members)
        folder = read_scan(self.write(tmp_path, members), CHAOS)
        images = sorted(f"x.zip!/{n}" for n in members if n.endswith(".dcm"))
        labels = sorted(f"x.zip!/{n}" for n in members if n.endswith(".png"))
        packed = read_scan(case_of(tmp_path, images, labels, reader="dicom_png"), CHAOS)
        assert np.array_equal(folder.image.voxels, packed.image.voxels)
        assert np.array_equal(folder.label.voxels, packed.label.voxels)
        assert (folder.image.digest, folder.label.digest) == (packed.image.digest, packed.label.digest)


class TestArchives:
    def test_a_damaged_member(self, tmp_path):
        path = write_zip(tmp_path / "x.zip", {"a.nii": GOOD})
        data = bytearray(path.read_bytes())
        for at in range(60, 2000, 200):
            broken = bytearray(data)
            broken[at] ^= 0xFF
            path.write_bytes(broken)
            with pytest.raises(CaseRejected) as caught:
                read_scan(case_of(tmp_path, "x.zip!/a.nii"), SPEC)
            assert caught.value.reason is Reason.ARCHIVE_UNREADABLE
            with pytest.raises(CaseRejected):
                read_volume_header(str(tmp_path), "x.zip!/b.nii", "reject")

    def test_an_encrypted_member(self, tmp_path):
        path = write_zip(tmp_path / "x.zip", {"a.nii": GOOD})
        data = bytearray(path.read_bytes())
        data[6] |= 1  # the flag in the member's own header and in the directory
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
        with pytest.raises(CaseRejected) as caught:
            read_scan(case_of(tmp_path, "x.zip!/a.nii"), SPEC)
        assert caught.value.reason is Reason.ARCHIVE_PASSWORD
        assert "a.nii" not in caught.value.detail
