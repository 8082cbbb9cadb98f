"""Voxels of DICOM: decoded, rescaled slice by slice, inverted, straightened; segmentations and contours on their grid."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless, RLELossless
from support.builders import png_bytes, write_files
from support.dicom_files import cohort_toml, file_bytes, image, segmentation, slices, structure_set, volume

from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.errors import CaseRejected, Reason
from medvar_data.harmonize.harmonize import label_table
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.dicom.pixels import untilt
from medvar_data.readers.read import read_scan
from medvar_data.readers.scan import Scan
from medvar_data.sources.tree import open_tree

MR = parse_collection(cohort_toml(), "test", own=True)
CT = parse_collection(cohort_toml(modality="CT"), "test", own=True)


def read(root: Path, files: dict[str, bytes], spec=MR) -> Scan:
    (case,) = ingest(spec, open_tree(write_files(root, files)), b"salt").cases
    return read_scan(case, spec)


def rejected(root: Path, files: dict[str, bytes], spec=MR) -> Reason:
    with pytest.raises(CaseRejected) as caught:
        read(root, files, spec)
    return caught.value.reason


def upward(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Voxels [i, j, k] as pixels [slice, row, column], from the feet up."""
    stack = voxels.transpose(2, 1, 0)
    return stack if affine[2, 2] > 0 else stack[::-1]


def image_of(scan: Scan) -> np.ndarray:
    return upward(scan.image.voxels, scan.image.geometry.affine)


def label_of(scan: Scan) -> np.ndarray:
    return upward(scan.label.voxels, scan.image.geometry.affine)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_as_plain(tmp_path, syntax):
    pixels = volume(4)
    assert np.array_equal(image_of(read(tmp_path, slices(pixels, syntax=syntax))), pixels)


def test_slope_and_intercept_of_each_slice(tmp_path):
    pixels = volume(4)
    files = {
        f"{k}": image(p, (0, 0, 2.0 * k), number=k, RescaleSlope=f"{1 + k / 4}", RescaleIntercept=f"{10 * k}")
        for k, p in enumerate(pixels)
    }
    steps = np.arange(4)[:, None, None]
    assert np.allclose(image_of(read(tmp_path, files)), pixels * (1 + steps / 4) + 10 * steps)


def test_monochrome1_is_turned_over_in_mr_and_means_nothing_for_hu(tmp_path):
    pixels = volume(4)
    mr = read(tmp_path / "mr", slices(pixels, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(image_of(mr), int(pixels.max()) - pixels.astype(int))
    assert mr.image.steps == ("inverted",)
    ct = read(tmp_path / "ct", slices(pixels, modality="CT", PhotometricInterpretation="MONOCHROME1"), CT)
    assert np.array_equal(image_of(ct), pixels.astype(int) - 1024)
    assert ct.image.steps == ()


@pytest.mark.parametrize(("padding", "representation"), [(-2000, 1), (63536, 1)])
def test_what_lies_outside_the_field_of_view_is_air(tmp_path, padding, representation):
    """-2000, in some files spelt 63536, less 1024 would be -3024 HU."""
    pixels = volume(4).astype(np.int16)
    pixels[:, 0] = -2000
    stored = pixels.view(np.uint16)
    files = {}
    for name, data in slices(stored, modality="CT").items():
        files[name] = signed(data, padding, representation)
    scan = read(tmp_path, files, CT)
    wanted = pixels.astype(int) - 1024
    wanted[:, 0] = -1024
    assert np.array_equal(image_of(scan), wanted)
    assert scan.image.steps == ("padding_replaced",)


def signed(data: bytes, padding: int, representation: int, limit: int | None = None) -> bytes:
    from io import BytesIO

    import pydicom

    dataset = pydicom.dcmread(BytesIO(data))
    dataset.PixelRepresentation = representation
    dataset.add_new(0x00280120, "SS" if padding < 0 else "US", padding)
    if limit is not None:
        dataset.add_new(0x00280121, "SS" if limit < 0 else "US", limit)
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("modality", "padding", "limit", "representation"),
    [
        ("CT", 63536, None, 0), ("CT", 4095, None, 0), ("CT", 65535, None, 0), ("CT", -2000, -1500, 1), ("MR", 65535, None, 0),
        ("MR", 32767, None, 1), ("MR", -32768, None, 1), ("MR", -100, -50, 1),
    ],
)  # fmt: skip
def test_padding_above_or_below_all_the_rest_is_background(tmp_path, modality, padding, limit, representation):
    pixels = (volume(4) % 900).astype(np.int32)
    pixels[:, 0], pixels[:, 1] = padding, padding if limit is None else limit
    files = {}
    for name, data in slices(pixels.astype(np.uint32).astype(np.uint16), modality=modality).items():
        files[name] = signed(data, padding, representation, limit)
    scan = read(tmp_path, files, CT if modality == "CT" else MR)
    wanted = pixels - (1024 if modality == "CT" else 0)
    wanted[:, :2] = -1024 if modality == "CT" else 0
    assert np.array_equal(image_of(scan), wanted)
    assert scan.image.steps == ("padding_replaced",)


def test_padding_amid_measured_values_is_left_and_told(tmp_path):
    pixels = volume(4).astype(np.uint16)
    pixels[:, 0] = int(np.median(pixels))
    scan = read(tmp_path, slices(pixels, PixelPaddingValue=int(np.median(pixels))))
    assert np.array_equal(image_of(scan), pixels)
    assert scan.image.steps == ("padding_kept",)


def test_padding_that_may_be_a_measured_value_is_left(tmp_path):
    pixels = volume(4)
    pixels[:, 0] = 0
    scan = read(tmp_path, slices(pixels, PixelPaddingValue=0))
    assert np.array_equal(image_of(scan), pixels)
    assert scan.image.steps == ()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("stored", "high"), [(12, 15), (12, 13), (12, 11), (10, 15), (8, 15)])
def test_values_that_do_not_begin_at_the_lowest_bit(tmp_path, stored, high, signed):
    """Other bits of the cell hold noise, as overlays once did."""
    rng = np.random.default_rng(stored)
    wanted = rng.integers(0, 1 << stored, (4, 12, 12)) - (1 << stored - 1) * signed
    below = high + 1 - stored
    cells = (wanted & ((1 << stored) - 1)) << below
    cells |= rng.integers(0, 1 << below, cells.shape) if below else 0
    cells |= rng.integers(0, 1 << 15 - high, cells.shape) << (high + 1) if high < 15 else 0
    files = slices(cells.astype(np.uint16), BitsStored=stored, HighBit=high, PixelRepresentation=int(signed))
    assert np.array_equal(image_of(read(tmp_path, files)), wanted)


@pytest.mark.parametrize(("offset", "intercept"), [(3_000_000_000, "-3000000000"), (0, "0"), (70_000, "-70000")])
def test_values_of_32_bits(tmp_path, offset, intercept):
    wanted = volume(4)
    files = {}
    for name, data in slices(wanted).items():
        dataset = pydicom.dcmread(BytesIO(data))
        cells = dataset.pixel_array.astype(np.uint32) + np.uint32(offset)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 32, 31
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", intercept
        dataset.PixelData = cells.tobytes()
        files[name] = file_bytes(dataset)
    assert np.array_equal(image_of(read(tmp_path, files)), wanted)


def test_a_ct_without_fat_or_air_holds_no_hu(tmp_path):
    assert rejected(tmp_path, slices(volume(4) + 2000, modality="CT"), CT) is Reason.NOT_HU


class TestMaskPictures:
    """A structure stored as a series of Secondary Capture pictures that names no images."""

    SPEC = parse_collection(
        cohort_toml(more="derived = true\n").replace('roi = "lung.*"', 'roi = "mask ?tumou?r"'), "test", own=True
    )

    def masks(self, n: int = 5, first: int = 0, value: int = 1, **more: Any) -> tuple[np.ndarray, dict[str, bytes]]:
        mask = np.zeros((n, 12, 12), dtype=np.uint16)
        mask[1:-1, 2:6, 7:11] = value
        heights = [2.0 * (first + k) for k in range(n)]
        options = {"series": 9, "ImageType": ["DERIVED", "SECONDARY"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}
        described = {"SeriesDescription": "MaskTumor"}
        return mask, slices(mask, heights=heights, prefix="m", **(options | described | more))

    @pytest.mark.parametrize("value", [1, 255])
    def test_they_are_the_label(self, tmp_path, value):
        mask, files = self.masks(value=value)
        scan = read(tmp_path, slices(volume(5)) | files, self.SPEC)
        assert np.array_equal(label_of(scan), (mask > 0).astype(np.uint8))

    def test_of_some_of_the_slices(self, tmp_path):
        mask, files = self.masks(n=3, first=2, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR")
        label = label_of(read(tmp_path, slices(volume(6)) | files, self.SPEC))
        assert np.array_equal(label[2:5], mask)
        assert not label[:2].any()
        assert not label[5:].any()

    def test_beside_two_series_they_may_be_of_either(self, tmp_path):
        files = slices(volume(5)) | slices(volume(5), series=2, prefix="b") | self.masks()[1]
        result = ingest(self.SPEC, open_tree(write_files(tmp_path, files)), b"salt")
        assert [len(case.label) for case in result.cases] == [0, 0]
        assert [reject.reason for reject in result.rejects] == [Reason.LABEL_WITHOUT_IMAGE]
        assert "2 volumes lie where it lies" in result.rejects[0].detail

    def test_between_the_slices_they_are_of_none(self, tmp_path):
        files = slices(volume(5)) | self.masks(first=0.5)[1]
        result = ingest(self.SPEC, open_tree(write_files(tmp_path, files)), b"salt")
        assert [reject.reason for reject in result.rejects] == [Reason.LABEL_WITHOUT_IMAGE]

    def test_a_scan_of_that_name_is_a_scan(self, tmp_path):
        files = slices(volume(5)) | slices(volume(5), series=2, prefix="b", SeriesDescription="mask tumor")
        result = ingest(self.SPEC, open_tree(write_files(tmp_path, files)), b"salt")
        assert len(result.cases) == 2

    def test_not_asked_for_they_are_pictures_of_pictures(self, tmp_path):
        result = ingest(MR, open_tree(write_files(tmp_path, slices(volume(5)) | self.masks()[1])), b"salt")
        assert [reject.reason for reject in result.rejects] == [Reason.SECONDARY_CAPTURE]


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.3.4", "no standard"),
    ],
)
def test_a_compression_that_nothing_decodes_is_no_damage(tmp_path, syntax, named):
    files = {}
    for name, data in slices(volume(4)).items():
        dataset = pydicom.dcmread(BytesIO(data))
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([b"no picture"])
        stream = BytesIO()
        pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
        files[name] = stream.getvalue()
    with pytest.raises(CaseRejected, match=named) as caught:
        read(tmp_path, files)
    assert caught.value.reason is Reason.UNREADABLE


def test_pixels_cut_short(tmp_path):
    files = slices(volume(4))
    assert rejected(tmp_path, {**files, "0002": files["0002"][:-40]}) is Reason.TRUNCATED


class TestTilt:
    """A ball seen by a leaning gantry is a ball again, at its place and of its size."""

    CENTRE, RADIUS = np.array([4.0, -3.0, 30.0]), 14.0
    STEP, SIDE, N = 3.0, 48, 21

    def stack(self, degrees: float) -> tuple[np.ndarray, np.ndarray, list[tuple[float, ...]]]:
        """Pixels, orientation and positions of slices whose rows and columns lean while the table moves along z."""
        down = np.array([0, np.cos(np.radians(degrees)), -np.sin(np.radians(degrees))])
        orientation = np.array([1, 0, 0, *down])
        places, pictures = [], []
        rows, columns = np.mgrid[: self.SIDE, : self.SIDE]
        for k in range(self.N):
            corner = np.array([-24.0, -24.0, self.STEP * k])
            at = corner + columns[..., None] * np.array([1.0, 0, 0]) + rows[..., None] * down
            inside = np.clip(self.RADIUS + 0.5 - np.linalg.norm(at - self.CENTRE, axis=-1), 0, 1)
            pictures.append((1000 * inside).astype(np.uint16))
            places.append(tuple(corner))
        return np.array(pictures), orientation, places

    def files(self, degrees: float) -> dict[str, bytes]:
        pixels, orientation, places = self.stack(degrees)
        return {
            f"{k}": image(p, at, number=k, modality="CT", orientation=tuple(orientation))
            for k, (p, at) in enumerate(zip(pixels, places, strict=True))
        }

    @pytest.mark.parametrize("degrees", [-20.0, 14.0, 30.0])
    def test_a_ball(self, tmp_path, degrees):
        scan = read(tmp_path, self.files(degrees), CT)
        assert scan.image.steps == ("untilted",)
        affine = scan.image.geometry.affine
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        assert np.abs(directions.T @ directions - np.eye(3)).max() < 1e-6
        weight = (scan.image.voxels.astype(float) + 1024) / 1000
        mm3 = weight.sum() * abs(np.linalg.det(affine[:3, :3]))
        assert mm3 == pytest.approx(4 / 3 * np.pi * self.RADIUS**3, rel=0.02)
        index = np.stack([axis.ravel() for axis in np.indices(weight.shape)])
        centre = affine[:3, :3] @ (index * weight.ravel()).sum(axis=1) / weight.sum() + affine[:3, 3]
        assert np.allclose(centre, self.CENTRE * [-1, -1, 1], atol=0.1)
        spread = np.sqrt(
            ((affine[:3, :3] @ index + affine[:3, 3:] - centre[:, None]) ** 2 @ weight.ravel()) / weight.sum()
        )
        assert np.allclose(spread, self.RADIUS / np.sqrt(5), rtol=0.02)  # of a ball, alike along every axis

    def test_the_label_leans_back_with_its_image(self, tmp_path):
        pixels, orientation, places = self.stack(14.0)
        contours = []
        for picture, at in zip(pixels, places, strict=True):
            rows, columns = np.nonzero(picture > 500)
            if len(rows):
                radius, middle = np.sqrt(len(rows) / np.pi), (rows.mean(), columns.mean())
                angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
                r, c = middle[0] + radius * np.sin(angle), middle[1] + radius * np.cos(angle)
                contours.append(np.array(at) + c[:, None] * orientation[:3] + r[:, None] * orientation[3:])
        scan = read(tmp_path, self.files(14.0) | {"s": structure_set({"cord": contours})}, CT)
        inside, ball = scan.label.voxels == 2, scan.image.voxels > -524
        assert (inside & ball).sum() * 2 / (inside.sum() + ball.sum()) > 0.97

    def test_leaning_too_far(self, tmp_path):
        result = ingest(CT, open_tree(write_files(tmp_path, self.files(50.0))), b"")
        assert [reject.reason for reject in result.rejects] == [Reason.NONORTHONORMAL]

    def test_an_upright_stack_is_itself(self):
        voxels = volume(4).astype(np.int16)
        same, affine = untilt(voxels, np.diag([2.0, 3.0, 4.0, 1.0]), nearest=False)
        assert np.array_equal(same, voxels)
        assert np.array_equal(affine, np.diag([2.0, 3.0, 4.0, 1.0]))


def circle(centre: Sequence[float], radius: float, height: float, n: int = 90) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.column_stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), np.full(n, height)])


class TestStructureSets:
    N, SIDE = 20, 48

    def read(self, root: Path, rois: dict[str, list[np.ndarray]]) -> np.ndarray:
        files = slices(volume(self.N, self.SIDE), spacing=(1.0, 1.0))
        return label_of(read(root, files | {"s": structure_set(rois)}))

    def test_a_ball_has_its_volume(self, tmp_path):
        centre, radius = (23.3, 22.6, 19.1), 15.0
        chords = [(z, radius**2 - (z - centre[2]) ** 2) for z in np.arange(self.N) * 2.0]
        contours = [circle(centre, np.sqrt(square), z) for z, square in chords if square > 0]
        label = self.read(tmp_path, {"Spinal-Cord": contours})
        assert set(np.unique(label)) == {0, 2}
        assert (label == 2).sum() * 2.0 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
        z, row, column = (axis.mean() for axis in np.nonzero(label))
        assert (column, row, 2 * z) == pytest.approx(centre, abs=0.1)

    def test_pixels_belong_by_their_centres(self, tmp_path):
        """A rectangle from 10.4 to 20.6 holds the pixels 11 to 20, and not one more."""
        corners = np.array([[10.4, 5.4, 8], [20.6, 5.4, 8], [20.6, 9.6, 8], [10.4, 9.6, 8]])
        z, rows, columns = np.nonzero(self.read(tmp_path, {"cord": [corners]}))
        assert set(z) == {4}
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 9, 11, 20)

    def test_holes(self, tmp_path):
        """One contour within another and one keyhole are the same ring; a contour drawn twice counts once."""
        outer, inner = circle((24, 24), 15, 10), circle((24, 24), 6, 10)
        nested = self.read(tmp_path / "a", {"lung": [outer, inner]})
        keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])
        joined = self.read(tmp_path / "b", {"lung": [keyhole]})
        twice = self.read(tmp_path / "c", {"lung": [outer, inner, inner]})
        ring = np.pi * (15**2 - 6**2)
        assert np.count_nonzero(nested) == pytest.approx(ring, rel=0.03)
        assert np.count_nonzero(nested != joined) <= 12  # along the key's way
        assert np.array_equal(nested, twice)

    def test_overlapping_contours_unite(self, tmp_path):
        label = self.read(tmp_path, {"lung": [circle((18, 24), 10, 10), circle((28, 24), 10, 10)]})
        lens = 2 * 100 * np.arccos(0.5) - 5 * np.sqrt(300)
        assert np.count_nonzero(label) == pytest.approx(2 * np.pi * 100 - lens, rel=0.03)
        assert label[5, 24, 23] == 1

    def test_heights_a_little_apart_are_one_picture(self, tmp_path):
        label = self.read(tmp_path, {"lung": [circle((24, 24), 15, 10.04), circle((24, 24), 6, 9.96)]})
        assert label[5, 24, 24] == 0
        assert label[5, 24, 34] == 1

    def test_a_contour_drawn_again_from_another_corner_counts_once(self, tmp_path):
        outer, inner = circle((24, 24), 15, 10), circle((24, 24), 6, 10)
        again = np.roll(inner[::-1], 7, axis=0) + np.array([0.001, 0, 0])
        once = self.read(tmp_path / "a", {"lung": [outer, inner]})
        assert np.array_equal(once, self.read(tmp_path / "b", {"lung": [outer, inner, again]}))

    def test_an_island_in_a_hole(self, tmp_path):
        label = self.read(tmp_path, {"lung": [circle((24, 24), r, 10) for r in (6, 15, 10)]})
        assert [label[5, 24, 24 + step] for step in (0, 8, 12)] == [1, 0, 1]

    @pytest.mark.parametrize("kind", ["CLOSEDPLANAR_XOR", "CLOSEDPLANARXOR"])
    def test_declared_exclusive_or(self, tmp_path, kind):
        rois = {"lung": [circle((18, 24), 10, 10), circle((28, 24), 10, 10)]}
        files = slices(volume(self.N, self.SIDE), spacing=(1.0, 1.0)) | {"s": structure_set(rois, kind=kind)}
        label = label_of(read(tmp_path, files))
        assert [label[5, 24, column] for column in (12, 23, 34)] == [1, 0, 1]

    @pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR", "CLOSED PLANAR", ""])
    def test_kinds_as_vendors_write_them(self, tmp_path, kind):
        files = slices(volume(self.N, self.SIDE), spacing=(1.0, 1.0))
        files |= {"s": structure_set({"lung": [circle((24, 24), 10, 10)]}, kind=kind)}
        assert np.count_nonzero(label_of(read(tmp_path, files))) == pytest.approx(np.pi * 100, rel=0.03)

    def test_what_is_left_out_is_counted(self, tmp_path):
        line = np.array([[4.0, 4, 10], [9, 9, 10]])
        rois = {"lung": [circle((24, 24), 10, 10), circle((24, 24), 10, 300), line], "GTV": [line]}
        files = slices(volume(self.N, self.SIDE), spacing=(1.0, 1.0)) | {"s": structure_set(rois)}
        steps = read(tmp_path, files).label.steps
        assert steps == (
            "painted_structures",
            "contours_outside=1",
            "contours_without_area=1",
            "structures_not_meant=1",
        )

    def test_slices_between_the_contours_of_a_thicker_grid_are_filled(self, tmp_path):
        """Contours at every second slice of 2 mm: a cone's slices between hold the mean radius."""
        rois = {"lung": [circle((24, 24), 4 + z / 2, z) for z in (8.0, 12.0, 16.0)]}
        files = slices(volume(self.N, self.SIDE), spacing=(1.0, 1.0)) | {"s": structure_set(rois)}
        scan = read(tmp_path, files)
        label = label_of(scan)
        assert sorted(set(np.nonzero(label)[0])) == [4, 5, 6, 7, 8]
        for k in (5, 7):
            assert np.count_nonzero(label[k]) == pytest.approx(np.pi * (4 + k) ** 2, rel=0.06)
        assert "slices_between_contours=2" in scan.label.steps

    def test_contours_whose_distance_is_no_whole_number_of_slices(self, tmp_path):
        """Every 5 mm on slices of 2 mm; a gap of 14 mm stays a gap."""
        rois = {"lung": [circle((24, 24), 8, z) for z in (4.0, 9.0, 14.0, 28.0)]}
        scan = read(tmp_path, slices(volume(16, self.SIDE), spacing=(1.0, 1.0)) | {"s": structure_set(rois)})
        assert sorted(set(np.nonzero(label_of(scan))[0])) == [2, 3, 4, 5, 6, 7, 14]
        assert "slices_between_contours=3" in scan.label.steps

    @pytest.mark.parametrize(
        ("column", "step"), [(400, "contours_outside=1"), (-90, "contours_outside=1"), (46, "contours_cut=1")]
    )
    def test_contours_beside_or_over_the_edge_of_the_picture_are_told(self, tmp_path, column, step):
        rois = {"lung": [circle((24, 24), 8, 4.0), circle((column, 24), 8, 6.0)]}
        scan = read(tmp_path, slices(volume(8, self.SIDE), spacing=(1.0, 1.0)) | {"s": structure_set(rois)})
        assert step in scan.label.steps

    def test_contours_all_beside_the_picture(self, tmp_path):
        files = slices(volume(8, self.SIDE)) | {"s": structure_set({"lung": [circle((400, 24), 8, 4.0)]})}
        assert rejected(tmp_path, files) is Reason.LABEL_GEOMETRY

    def test_of_contours_finer_than_the_slices_the_nearest_holds(self, tmp_path):
        fine = self.read(tmp_path, {"lung": [circle((24, 24), 10, 10.0), circle((24, 24), 9, 10.5)]})
        assert np.count_nonzero(fine) == pytest.approx(np.pi * 100, rel=0.03)

    @pytest.mark.parametrize("names", [("CORD", "Lung-Left"), ("Lung-Left", "CORD")])
    def test_the_first_row_wins_where_structures_overlap(self, tmp_path, names):
        """Whatever the order in the file: cord comes before lung in the collection."""
        sizes = {"CORD": 5, "Lung-Left": 10}
        label = self.read(tmp_path, {name: [circle((24, 24), sizes[name], 10)] for name in names})
        assert label[5, 24, 24] == 2
        assert label[5, 24, 32] == 1

    def test_names_that_nobody_means(self, tmp_path):
        files = slices(volume(self.N, self.SIDE)) | {"s": structure_set({"Mr Smith": [circle((9, 9), 5, 10)]})}
        with pytest.raises(CaseRejected) as caught:
            read(tmp_path, files)
        assert caught.value.reason is Reason.LABEL_VALUES
        assert "Smith" not in caught.value.detail

    def test_a_lung_that_is_not_drawn_is_empty(self, tmp_path):
        assert rejected(tmp_path, slices(volume(4)) | {"s": structure_set({"lung": []})}) is Reason.EMPTY_LABEL

    @pytest.mark.parametrize("height", [-300.0, 300.0])
    def test_contours_outside_the_image(self, tmp_path, height):
        files = slices(volume(4)) | {"s": structure_set({"lung": [circle((5, 5), 3, height)]})}
        assert rejected(tmp_path, files) is Reason.LABEL_GEOMETRY

    def test_contours_across_the_slices(self, tmp_path):
        standing = circle((5, 5), 3, 2)[:, [0, 2, 1]]
        assert (
            rejected(tmp_path, slices(volume(4)) | {"s": structure_set({"lung": [standing]})}) is Reason.LABEL_GEOMETRY
        )

    def test_two_files_are_painted_together(self, tmp_path):
        files = slices(volume(self.N, self.SIDE))
        files |= {"s": structure_set({"lung": [circle((15, 15), 5, 10)]}, number=900)}
        files |= {"t": structure_set({"cord": [circle((35, 35), 5, 10)]}, number=901)}
        assert set(np.unique(label_of(read(tmp_path, files)))) == {0, 1, 2}


class TestSegmentations:
    def masks(self) -> dict[str, np.ndarray]:
        lung, cord = (np.zeros((5, 12, 12), dtype=bool) for _ in range(2))
        lung[1:4, 2:6, 3:11] = True
        cord[2:5, 5:8, 1:5] = True
        return {"Lung left": lung, "nobody": ~lung, "Spinal cord": cord}

    def wanted(self) -> np.ndarray:
        masks = self.masks()
        return np.where(masks["Spinal cord"], 2, np.where(masks["Lung left"], 1, 0))

    @pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
    def test_the_masks_that_were_written(self, tmp_path, kind):
        files = slices(volume(5)) | {"s": segmentation(self.masks(), kind=kind)}
        assert np.array_equal(label_of(read(tmp_path, files)), self.wanted())

    def test_a_label_map(self, tmp_path):
        masks = {"lung": self.masks()["Lung left"], "cord": self.masks()["Spinal cord"] & ~self.masks()["Lung left"]}
        files = slices(volume(5)) | {"s": segmentation(masks, kind="LABELMAP")}
        assert np.array_equal(
            label_of(read(tmp_path, files)), np.where(masks["cord"], 2, np.where(masks["lung"], 1, 0))
        )

    def test_fewer_slices_than_the_image_and_turned_over(self, tmp_path):
        """Rows from the back to the front, as in the other style: the same voxels of the patient."""
        masks = {"lung": self.masks()["Lung left"][1:4, ::-1]}
        flipped = (1, 0, 0, 0, -1, 0)
        data = segmentation(masks, origin=(0, 11, 2.0), orientation=flipped)
        label = label_of(read(tmp_path, slices(volume(5)) | {"s": data}))
        assert np.array_equal(label > 0, self.masks()["Lung left"])

    def test_by_the_meaning_of_its_code(self, tmp_path):
        text = cohort_toml().replace('roi = "lung.*"', 'roi = "tissue"')
        spec = parse_collection(text, "test", own=True)
        files = slices(volume(5)) | {"s": segmentation({"7": self.masks()["Lung left"]})}
        assert np.array_equal(label_of(read(tmp_path, files, spec)) == 1, self.masks()["Lung left"])

    @pytest.mark.parametrize("options", [{"spacing": (2.0, 2.0)}, {"origin": (0.5, 0, 0)}, {"step_mm": 3.0}])
    def test_another_grid(self, tmp_path, options):
        files = slices(volume(5)) | {"s": segmentation(self.masks(), **options)}
        assert rejected(tmp_path, files) is Reason.LABEL_GEOMETRY

    def test_cut_short(self, tmp_path):
        data = segmentation(self.masks())
        assert rejected(tmp_path, slices(volume(5)) | {"s": data[:-100]}) is Reason.TRUNCATED


@pytest.mark.parametrize("bytes_tried", [30, pytest.param(360, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["set", "segmentation"])
def test_every_damaged_byte_of_an_annotation_is_a_case_or_a_reject(tmp_path, kind, bytes_tried):
    """Whatever one byte becomes, ingest ends, and reading gives a label or a reason that quotes nothing."""
    mask = np.zeros((3, 12, 12), dtype=bool)
    mask[:, 2:8, 2:8] = True
    whole = structure_set({"lung": [circle((5, 5), 3, 2, 6)]}) if kind == "set" else segmentation({"lung": mask})
    write_files(tmp_path, slices(volume(3)))
    for at in range(132, len(whole), max(1, len(whole) // bytes_tried)):
        broken = bytearray(whole)
        broken[at] ^= 0x2B
        (tmp_path / "annotation").write_bytes(bytes(broken))
        (case,) = ingest(MR, open_tree(tmp_path), b"salt").cases
        try:
            read_scan(case, MR)
        except CaseRejected as error:
            assert error.detail  # noqa: PT017


class TestChaosMr:
    """Three series a patient; T1's masks carry the names of its in-phase images; grey values are the publisher's."""

    GREYS = (63, 126, 189, 252)

    def files(self) -> tuple[dict[str, bytes], np.ndarray]:
        masks = np.zeros((4, 32, 32), dtype=np.uint8)
        for n, grey in enumerate(self.GREYS):
            masks[:, 8 * (n // 2) + 4 : 8 * (n // 2) + 10, 12 * (n % 2) + 4 : 12 * (n % 2) + 10] = grey
        masks[0, 4, 4], masks[1, 4, 5] = 55, 70  # the range that the publisher allows for 63
        masks[3] = 0
        base, files = "Train_Sets/MR/7", {}
        kinds = (("T1DUAL/DICOM_anon/InPhase", 2, "T1DUAL/Ground"), ("T1DUAL/DICOM_anon/OutPhase", 1, ""))
        for series, (folder, first, ground) in enumerate((*kinds, ("T2SPIR/DICOM_anon", 1, "T2SPIR/Ground"))):
            pixels = np.stack([np.where(mask > 0, 500 + mask.astype(np.uint16), 100) for mask in masks]).astype(
                np.uint16
            )
            for k, picture in enumerate(pixels):
                stem = f"IMG-0004-{first + 2 * k:05d}"
                files[f"{base}/{folder}/{stem}.dcm"] = image(picture, (0, 0, -5.0 * k), series=series, number=k)
                if ground:
                    files[f"{base}/{ground}/{stem}.png"] = png_bytes(masks[k])
        return files, masks

    def test_every_series_has_its_masks(self, tmp_path):
        files, masks = self.files()
        spec = load_collection("chaos")
        result = ingest(spec, open_tree(write_files(tmp_path, files)), b"")
        assert {case.case: (case.sequence, len(case.label)) for case in result.cases} == {
            "mr-7-t1-in": ("T1 in-phase", 4), "mr-7-t1-out": ("T1 out-of-phase", 4), "mr-7-t2": ("T2 SPIR", 4),
        }  # fmt: skip
        assert {case.condition for case in result.cases} == {"chaos-mr"}
        assert len({case.group for case in result.cases}) == 1
        for case in result.cases:
            scan = read_scan(case, spec)
            ids = label_table(spec, case.layout)[scan.label.voxels]
            assert np.array_equal(label_of(scan)[::-1], masks)
            assert set(np.unique(ids)) == {0, 1, 2, 3, 4}
            assert np.array_equal(ids > 0, scan.image.voxels >= 500)

    def test_grey_values_mean_other_things_in_ct(self):
        spec = load_collection("chaos")
        assert label_table(spec, "ct-train")[list(self.GREYS)].tolist() == [1, 1, 1, 1]
        assert label_table(spec, "mr-t2-train")[list(self.GREYS)].tolist() == [1, 2, 3, 4]
        assert label_table(spec, "mr-t2-train")[[54, 71, 100, 150, 230]].tolist() == [0] * 5
