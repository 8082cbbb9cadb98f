"""Series: what belongs together is found by headers, split by what differs, named by it, and left out with a reason."""

import struct
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from support.builders import write_files, write_zip
from support.dicom_files import cohort_toml, enhanced, image, item, segmentation, slices, structure_set, volume

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import find_collections, parse_collection
from medvar_data.errors import Reason, SourceError
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.dicom.headers import is_dicom
from medvar_data.readers.read import read_scan
from medvar_data.records import Ingested
from medvar_data.sources.tree import open_tree

SPEC = parse_collection(cohort_toml(), "test", own=True)
CT = parse_collection(cohort_toml(modality="CT"), "test", own=True)


def found(root: Path, files: dict[str, bytes], spec: CollectionSpec = SPEC) -> Ingested:
    result = ingest(spec, open_tree(write_files(root, files)), b"salt")
    assert result.n_found == len(result.cases) + len(result.rejects)
    return result


def upward(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Voxels [i, j, k] as pixels [slice, row, column], from the feet up."""
    stack = voxels.transpose(2, 1, 0)
    return stack if affine[2, 2] > 0 else stack[::-1]


def pixels_of(result: Ingested, spec: CollectionSpec = SPEC) -> list[np.ndarray]:
    images = [read_scan(case, spec).image for case in result.cases]
    return [upward(scan.voxels, scan.geometry.affine) for scan in images]


def test_names_and_numbers_say_nothing(tmp_path):
    """Files without extension in a shuffled order of names and numbers make one volume, in the order of their places."""
    pixels = volume(6)
    order = np.random.default_rng(1).permutation(6)
    files = {
        f"{'ab'[k % 2]}/IM{n:03d}": image(pixels[k], (0, 0, 3.0 * k), number=int(order[n])) for n, k in enumerate(order)
    }
    result = found(tmp_path, files)
    (got,) = pixels_of(result)
    assert np.array_equal(got, pixels)
    assert result.rejects == ()


def test_two_series_in_one_folder(tmp_path):
    a, b = volume(4, seed=1), volume(5, seed=2)
    files = slices(a, prefix="x", series=1) | slices(b, prefix="x0", series=2)
    got = sorted(pixels_of(found(tmp_path, files)), key=len)
    assert np.array_equal(got[0], a)
    assert np.array_equal(got[1], b)


def private(tag: tuple[int, int], creator: str, vr: str, value: object) -> dict[str, object]:
    return {"private": (tag, creator, vr, value)}


MARKS = [
    ("echo", {"EchoTime": "2.3"}, {"EchoTime": "4.6"}),
    ("echo number", {"EchoNumbers": 1}, {"EchoNumbers": 2}),
    ("inversion", {"InversionTime": "100"}, {"InversionTime": "900"}),
    ("flip", {"FlipAngle": "5"}, {"FlipAngle": "15"}),
    ("b", {"DiffusionBValue": 50.0}, {"DiffusionBValue": 800.0}),
    ("direction", {"DiffusionGradientOrientation": [1.0, 0, 0]}, {"DiffusionGradientOrientation": [0, 1.0, 0]}),
    ("time", {"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
    ("trigger", {"TriggerTime": "0"}, {"TriggerTime": "40"}),
    ("acquisition", {"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    ("part", {"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
    ("dixon", {"ImageType": ["DERIVED", "PRIMARY", "WATER"]}, {"ImageType": ["DERIVED", "PRIMARY", "FAT"]}),
    ("series", {"SeriesNumber": 3}, {"SeriesNumber": 4}),
    ("kernel", {"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
    ("acquired", {"AcquisitionTime": "101500.25"}, {"AcquisitionTime": "101900.00"}),
    ("sweeps", {}, {}),
]


@pytest.mark.parametrize(("name", "first", "second"), MARKS, ids=[mark[0] for mark in MARKS])
def test_a_series_is_split_by_what_differs(tmp_path, name, first, second):
    a, b = volume(5, seed=1), volume(5, seed=2)
    files = slices(a, prefix="a", **first) | slices(b, prefix="b", first=6, **second)
    result = found(tmp_path, files)
    assert len(result.cases) == 2
    assert len({case.case for case in result.cases}) == len({case.sequence for case in result.cases}) == 2
    assert len({case.case[:12] for case in result.cases}) == 1  # one series
    got = pixels_of(result)
    assert any(np.array_equal(got[i], a) and np.array_equal(got[1 - i], b) for i in (0, 1))


def renumbered(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same images, numbered from 1."""
    import pydicom

    renewed = {}
    for number, (name, data) in enumerate(files.items(), start=1):
        dataset = pydicom.dcmread(BytesIO(data))
        dataset.InstanceNumber = number
        out = BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        renewed[name] = out.getvalue()
    return renewed


@pytest.mark.parametrize(("name", "first", "second"), MARKS[:-1], ids=[mark[0] for mark in MARKS[:-1]])
def test_equal_numbers_are_told_apart_by_what_differs_whatever_the_file_names(tmp_path, name, first, second):
    a, b = volume(5, seed=1), volume(5, seed=2)
    files = [*slices(a, **first).values(), *renumbered(slices(b, first=6, **second)).values()]
    order = np.random.default_rng(3).permutation(len(files))
    result = found(tmp_path, {f"{place:03d}": files[n] for place, n in enumerate(order)})
    got = pixels_of(result)
    assert len(got) == 2
    assert any(np.array_equal(got[i], a) and np.array_equal(got[1 - i], b) for i in (0, 1))


def test_equal_numbers_that_nothing_tells_apart_are_never_blended(tmp_path):
    a, b = volume(5, seed=1), volume(5, seed=2)
    files = slices(a, prefix="a") | renumbered(slices(b, prefix="b", first=6))
    result = found(tmp_path, files)
    assert result.cases == ()
    assert [reject.reason for reject in result.rejects] == [Reason.DUPLICATE_POSITION]


@pytest.mark.parametrize("name", ["series", "kernel", "echo", "acquisition"])
def test_two_scans_between_each_other_are_two_volumes(tmp_path, name):
    first, second = next((first, second) for one, first, second in MARKS if one == name)
    a, b = volume(4, seed=1), volume(4, seed=2)
    files = slices(a, prefix="a", heights=(0, 4, 8, 12), **first)
    files |= slices(b, prefix="b", heights=(2, 6, 10, 14), first=5, **second)
    got = pixels_of(found(tmp_path, files))
    assert any(np.array_equal(got[i], a) and np.array_equal(got[1 - i], b) for i in (0, 1))


def test_two_scans_one_above_the_other_are_two_volumes(tmp_path):
    a, b = volume(4, seed=1), volume(4, seed=2)
    files = slices(a, prefix="a", heights=(0, 2, 4, 6), ConvolutionKernel="B30f")
    files |= slices(b, prefix="b", heights=(8, 10, 12, 14), first=5, ConvolutionKernel="B70f")
    got = pixels_of(found(tmp_path, files))
    assert any(np.array_equal(got[i], a) and np.array_equal(got[1 - i], b) for i in (0, 1))


@pytest.mark.parametrize(
    ("heights", "more"),
    [
        (((0, 4, 8, 12), (2, 6, 10, 14)), ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101530"})),
        (((0, 4, 8, 12), (2, 6, 10, 14)), ({"TriggerTime": "12"}, {"TriggerTime": "40"})),
        (((0, 2, 4, 6), (8, 10, 12, 14)), ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2})),  # slabs of one scan
    ],
)
def test_packages_of_one_scan_stay_one_volume(tmp_path, heights, more):
    whole = volume(8, seed=4)
    rank = np.argsort(np.argsort([*heights[0], *heights[1]]))
    files = slices(whole[rank[:4]], prefix="a", heights=heights[0], **more[0])
    files |= slices(whole[rank[4:]], prefix="b", heights=heights[1], first=5, **more[1])
    (got,) = pixels_of(found(tmp_path, files))
    assert np.array_equal(got, whole)


def test_volumes_are_named_by_what_differs(tmp_path):
    files = {}
    for n, b in enumerate((0.0, 50.0, 800.0)):
        files |= slices(volume(4, seed=n), prefix=f"{n}", first=1 + 4 * n, DiffusionBValue=b)
    assert {case.sequence for case in found(tmp_path, files).cases} == {"b0", "b50", "b800"}


@pytest.mark.parametrize(
    ("tag", "creator", "vr", "values"),
    [
        ((0x0019, 0x100C), "SIEMENS MR HEADER", "IS", ("50", "800")),
        ((0x0043, 0x1039), "GEMS_PARM_01", "IS", (["1000000050", "8"], ["1000000800", "8"])),
        ((0x2001, 0x1003), "Philips Imaging DD 001", "FL", (50.0, 800.0)),
    ],
)
def test_vendors_keep_the_b_value_in_places_of_their_own(tmp_path, tag, creator, vr, values):
    import pydicom

    files = {}
    for n, value in enumerate(values):
        for name, data in slices(volume(4, seed=n), prefix=f"{n}", first=1 + 4 * n).items():
            write_files(tmp_path / "x", {name: data})
            dataset = pydicom.dcmread(tmp_path / "x" / name)
            dataset.private_block(tag[0], creator, create=True).add_new(tag[1] & 0xFF, vr, value)
            dataset.save_as(tmp_path / "x" / name)
            files[name] = (tmp_path / "x" / name).read_bytes()
    assert {case.sequence for case in found(tmp_path / "y", files).cases} == {"b50", "b800"}


def test_two_marks_at_once(tmp_path):
    """Two echoes at each of three times are six volumes."""
    files, wanted = {}, []
    for n, (time, echo) in enumerate((t, e) for t in (1, 2, 3) for e in (2.0, 4.0)):
        wanted.append(volume(4, seed=n))
        files |= slices(wanted[-1], prefix=f"{n}", first=1 + 4 * n, EchoTime=echo, TemporalPositionIdentifier=time)
    result = found(tmp_path, files)
    assert {case.sequence for case in result.cases} == {f"echo{e} time{t}" for e in (1, 2) for t in (1, 2, 3)}
    got = pixels_of(result)
    assert all(any(np.array_equal(one, other) for other in got) for one in wanted)


def test_what_varies_from_slice_to_slice_tears_nothing(tmp_path):
    pixels = volume(6)
    files = {
        f"{k}": image(p, (0, 0, 2.0 * k), number=k, AcquisitionNumber=k, TriggerTime=str(10 * k), EchoTime=str(1 + k))
        for k, p in enumerate(pixels)
    }
    (got,) = pixels_of(found(tmp_path, files))
    assert np.array_equal(got, pixels)


def test_a_mark_that_varies_by_slice_is_no_reason_to_split_repeats_by_it(tmp_path):
    """Numbers that count on through both volumes leave the split to the next mark."""
    a, b = volume(4, seed=1), volume(4, seed=2)
    files = {}
    for n, (pixels, time) in enumerate(((a, 1), (b, 2))):
        for k, picture in enumerate(pixels):
            number = 1 + 4 * n + k
            files[f"{number}"] = image(
                picture, (0, 0, 2.0 * k), number=number, EchoTime=str(number), TemporalPositionIdentifier=time
            )
    assert {case.sequence for case in found(tmp_path, files).cases} == {"time1", "time2"}


def test_an_aborted_time_is_split_off_and_too_few(tmp_path):
    files = slices(volume(6, seed=1), prefix="a", TemporalPositionIdentifier=1)
    files |= slices(volume(2, seed=2), prefix="b", first=7, TemporalPositionIdentifier=2)
    result = found(tmp_path, files)
    assert [case.sequence for case in result.cases] == ["time1"]
    assert [reject.reason for reject in result.rejects] == [Reason.TOO_FEW_SLICES]


def test_orientations_in_one_series(tmp_path):
    """Three planes with enough slices each are three volumes; with two slices each a localizer."""
    for n, reason in ((4, None), (2, Reason.LOCALIZER)):
        files = slices(volume(n, seed=1), prefix="a")
        for k in range(n):
            files[f"b{k}"] = image(volume(1)[0], (2.0 * k, 0, 0), orientation=(0, 1, 0, 0, 0, -1), number=20 + k)
            files[f"c{k}"] = image(volume(1)[0], (0, 2.0 * k, 0), orientation=(1, 0, 0, 0, 0, -1), number=40 + k)
        result = found(tmp_path / str(n), files)
        assert len(result.cases) == (0 if reason else 3)
        assert [reject.reason for reject in result.rejects] == ([reason] * 3 if reason else [])


def frame_content(**values: object) -> dict[str, object]:
    return {"FrameContentSequence": [item(**values)]}


@pytest.mark.parametrize("attribute", ["TemporalPositionIndex", "StackID"])
def test_several_volumes_in_one_file(tmp_path, attribute):
    """Frames of two volumes in turns in one enhanced file: two cases of one file, told apart by their number."""
    a, b = volume(4, seed=1), volume(4, seed=2)
    pixels = np.stack([p for pair in zip(a, b, strict=True) for p in pair])
    positions = [(0, 0, 2.0 * k) for k in range(4) for _ in range(2)]
    values = [1, 2] if attribute.startswith("Temp") else ["1", "2"]
    groups = [frame_content(**{attribute: values[n % 2]}) for n in range(8)]
    result = found(tmp_path, {"e": enhanced(pixels, positions, groups)})
    assert [(case.channel, len(case.image)) for case in result.cases] == [(0, 1), (1, 1)]
    got = pixels_of(result)
    assert np.array_equal(got[0], a)
    assert np.array_equal(got[1], b)


def test_an_enhanced_file_with_one_volume_and_a_slope_a_frame(tmp_path):
    pixels = volume(5)
    groups = [
        {"PixelValueTransformationSequence": [item(RescaleSlope=f"{1 + k}", RescaleIntercept=f"{-k}")]}
        for k in range(5)
    ]
    order = [3, 0, 4, 1, 2]
    data = enhanced(pixels[order], [(0, 0, 2.0 * k) for k in order], [groups[k] for k in order])
    result = found(tmp_path, {"e": data})
    assert result.cases[0].channel == -1
    (got,) = pixels_of(result)
    wanted = pixels.astype(float) * np.arange(1, 6)[:, None, None] - np.arange(5)[:, None, None]
    assert np.allclose(got, wanted)


def unit(code: str) -> Sequence:
    return Sequence([item(MeasurementUnitsCodeSequence=[item(CodeValue=code, CodingSchemeDesignator="UCUM")])])


LEFT_OUT = [
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.LOCALIZER),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Reason.SECONDARY_CAPTURE),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, Reason.SECONDARY_CAPTURE),
    ({"BurnedInAnnotation": "YES"}, Reason.SECONDARY_CAPTURE),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Reason.SECONDARY_CAPTURE),
    ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, Reason.DERIVED_MAP),
    ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, Reason.DERIVED_MAP),
    ({"ImageType": ["DERIVED", "SECONDARY", "PE1"]}, Reason.DERIVED_MAP),
    ({"ImageType": ["DERIVED", "PRIMARY", "SER"]}, Reason.DERIVED_MAP),
    ({"ImageType": ["DERIVED", "PRIMARY", "DT1"]}, Reason.DERIVED_MAP),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "CBF"]}, Reason.DERIVED_MAP),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.30"}, Reason.DERIVED_MAP),
    ({"RealWorldValueMappingSequence": unit("um2/s")}, Reason.DERIVED_MAP),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, Reason.DIMENSIONS),
    ({"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}, Reason.WRONG_MODALITY),
    ({"Modality": "CT"}, Reason.WRONG_MODALITY),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, Reason.WRONG_MODALITY),
]


@pytest.mark.parametrize(("attributes", "reason"), LEFT_OUT)
def test_what_is_no_scan_is_left_out_with_its_reason(tmp_path, attributes, reason):
    """One reject a series, beside a good one that is kept."""
    files = slices(volume(4), prefix="good", series=1) | slices(volume(4), prefix="bad", series=2, **attributes)
    result = found(tmp_path, files)
    assert len(result.cases) == 1
    assert [reject.reason for reject in result.rejects] == [reason]
    assert "4 images" in result.rejects[0].detail


def test_what_is_original_is_not_derived_by_its_name(tmp_path):
    """MPR stands in the type of original images too; a trace image is what is looked at in diffusion."""
    files = slices(volume(4), prefix="a", series=1, ImageType=["ORIGINAL", "PRIMARY", "MPR"])
    files |= slices(volume(4), prefix="b", series=2, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"])
    files |= slices(volume(4), prefix="c", series=3, ImageType=["DERIVED", "SECONDARY"])
    files |= slices(volume(4), prefix="d", series=4, ImageType=["DERIVED", "PRIMARY", "W", "W", "DERIVED"])
    files |= slices(volume(4), prefix="e", series=5, RealWorldValueMappingSequence=unit("1"))
    assert len(found(tmp_path, files).cases) == 5


DERIVED = parse_collection(cohort_toml(more="derived = true\n"), "test", own=True)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]},
        {"ImageType": ["DERIVED", "SECONDARY", "PE1"]},
        {"ImageType": ["DERIVED", "SECONDARY"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"ImageType": ["DERIVED", "PRIMARY"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.30"},
    ],
)
def test_derived_images_on_demand(tmp_path, attributes):
    assert len(found(tmp_path, slices(volume(4), **attributes), DERIVED).cases) == 1


def test_a_capture_without_a_place_is_no_volume_even_on_demand(tmp_path):
    files = slices(volume(4), SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImagePositionPatient=None)
    assert [reject.reason for reject in found(tmp_path, files, DERIVED).rejects] == [Reason.SECONDARY_CAPTURE]


@pytest.mark.parametrize(
    ("heights", "reason"),
    [
        ((0, 2, 4, 8, 10), Reason.MISSING_SLICE),
        ((0, 2, 4, 4, 6), Reason.DUPLICATE_POSITION),
        ((0, 2, 4.7, 6, 8), Reason.UNEVEN_SPACING),
        ((0, 0, 0, 0), Reason.TOO_FEW_SLICES),
        ((0, 2), Reason.TOO_FEW_SLICES),
        ((0,), Reason.TOO_FEW_SLICES),
        ((0, 500, 1000), Reason.SPACING_IMPLAUSIBLE),
    ],
)
def test_stacks_that_are_none_are_known_before_a_pixel_is_read(tmp_path, heights, reason):
    result = found(tmp_path, slices(volume(len(heights)), heights=heights))
    assert [reject.reason for reject in result.rejects] == [reason]


def test_a_shifted_slice_and_one_without_a_place(tmp_path):
    files = slices(volume(5))
    shifted = {**files, "0003": image(volume(1)[0], (7, 0, 4), number=3)}
    assert [r.reason for r in found(tmp_path / "a", shifted).rejects] == [Reason.UNEVEN_SPACING]
    nowhere = {**files, "0003": image(volume(1)[0], (0, 0, 4), number=3, ImagePositionPatient=None)}
    assert [r.reason for r in found(tmp_path / "b", nowhere).rejects] == [Reason.MIXED_SERIES]


def test_copies_are_counted_once(tmp_path):
    files = slices(volume(4))
    result = found(tmp_path, files | {f"copy/{name}": data for name, data in files.items()})
    assert len(result.cases) == 1
    assert result.notes == ("files passed over since they are copies of others: 4",)


def test_a_copy_cut_short_does_not_hide_the_whole(tmp_path):
    pixels = volume(4)
    files = slices(pixels)
    result = found(tmp_path, files | {f"0/{name}": data[:-30] for name, data in files.items()})
    (got,) = pixels_of(result)
    assert np.array_equal(got, pixels)


def test_files_that_are_no_dicom(tmp_path):
    """A name that promises DICOM is a reject; whatever else lies about is counted in a note."""
    files = slices(volume(4)) | {"notes.txt": b"hello", "empty": b"", "a.dcm": b"hello" * 50, "b.dcm": b""}
    files["c.dcm"] = files["0002"][:400]
    result = found(tmp_path, files)
    wanted = {Reason.NOT_AN_IMAGE: 1, Reason.FILE_EMPTY: 1, Reason.TRUNCATED: 1}
    assert Counter(reject.reason for reject in result.rejects) == wanted
    assert len(result.cases) == 1
    assert "files passed over since they are no DICOM: 2" in result.notes


def test_nothing_there_is_said_so(tmp_path):
    with pytest.raises(SourceError, match="Looked for DICOM files"):
        ingest(SPEC, open_tree(write_files(tmp_path, {"notes.txt": b"x"})), b"salt")


def test_packed_as_unpacked(tmp_path):
    """The same cases under the same keys, and the same voxels, from a folder and from an archive."""
    files = {f"d/{name}": data for name, data in slices(volume(4)).items()}
    files |= {"d/seg": segmentation({"Lung": volume(4) > 400})}
    loose = found(tmp_path / "loose", files)
    write_zip(tmp_path / "packed" / "x.zip", files)
    packed = ingest(SPEC, open_tree(tmp_path / "packed"), b"salt")
    assert [c.case for c in loose.cases] == [c.case for c in packed.cases]
    a, b = (read_scan(result.cases[0], SPEC) for result in (loose, packed))
    assert np.array_equal(a.image.voxels, b.image.voxels)
    assert np.array_equal(a.label.voxels, b.label.voxels)
    assert (a.image.digest, a.label.digest) == (b.image.digest, b.label.digest)


def test_headers_longer_than_the_first_read(tmp_path):
    files = slices(volume(4), ImageComments="x" * 9000, PixelPaddingValue=0, DeidentificationMethodCodeSequence=[])
    long = {name: with_long_header(data) for name, data in files.items()}
    assert len(found(tmp_path, long).cases) == 1


def with_long_header(data: bytes) -> bytes:
    from io import BytesIO

    import pydicom

    dataset = pydicom.dcmread(BytesIO(data))
    dataset.private_block(0x0009, "LONG", create=True).add_new(1, "OB", bytes(200_000))
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_no_pixel_is_read_by_ingest(tmp_path, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("medvar_data.readers.dicom.pixels.decode_frames", never)
    monkeypatch.setattr("pydicom.pixels.utils.iter_pixels", never)
    assert len(found(tmp_path, slices(volume(4))).cases) == 1


class TestNames:
    def test_patients_by_their_id_and_never_in_clear(self, tmp_path):
        files = {}
        for n, patient in enumerate(("Anna", "Anna", "Bert")):
            files |= slices(volume(4), prefix=f"{n}", series=n, study=n + 1, patient=patient)
        groups = Counter(case.group for case in found(tmp_path, files).cases)
        assert sorted(groups.values()) == [1, 2]
        assert not any("anna" in group.lower() for group in groups)

    def test_without_a_patient_the_study(self, tmp_path):
        files = {}
        for n in range(4):
            files |= slices(volume(4), prefix=f"{n}", series=n, study=n // 2 + 1, patient="")
        assert sorted(Counter(case.group for case in found(tmp_path, files).cases).values()) == [2, 2]

    def test_keys_hang_on_the_salt_and_on_nothing_else(self, tmp_path):
        files = slices(volume(4)) | slices(volume(4), prefix="x", series=2)
        write_files(tmp_path / "a", files)
        write_files(tmp_path / "b", {f"other/{name}.dcm": data for name, data in files.items()})
        keys = [
            sorted(case.case for case in ingest(SPEC, open_tree(tmp_path / folder), salt).cases)
            for folder, salt in (("a", b"1"), ("b", b"1"), ("a", b"2"))
        ]
        assert keys[0] == keys[1]
        assert not set(keys[0]) & set(keys[2])

    def test_templates_name_cases_and_patients(self, tmp_path):
        more = 'case = "{patient}"\ngroup = "{patient}"\n'
        text = cohort_toml(more=more).replace("image = '.'", "image = '(?P<patient>p[0-9])/'")
        spec = parse_collection(text, "test")  # names as published
        files = slices(volume(4), prefix="p1/a") | slices(volume(4), prefix="p1/b", series=2)
        result = found(tmp_path, files, spec)
        assert {case.group for case in result.cases} == {"cohort/p1"}
        assert all(case.case.startswith("p1-") and len(case.case) == 9 for case in result.cases)

    def test_sequences_in_the_users_own_words(self, tmp_path):
        more = 'sequences = { "t2.*fs" = "T2 fat-saturated", "t2" = "T2" }\n'
        spec = parse_collection(cohort_toml(more=more), "test", own=True)
        files = slices(volume(4), prefix="a", SeriesDescription="ax T2 TSE FS of Mr Smith")
        files |= slices(volume(4), prefix="b", series=2, ProtocolName="T2 haste")
        files |= slices(volume(4), prefix="c", series=3, SeriesDescription="Mr Smith again")
        assert {case.sequence for case in found(tmp_path, files, spec).cases} == {"T2 fat-saturated", "T2", ""}

    def test_a_layout_a_modality(self, tmp_path):
        second = '\n[[layout]]\nid = "ct"\nreader = "dicom"\nmodality = "CT"\nimage = "."\n'
        spec = parse_collection(cohort_toml(more=second), "test", own=True)
        files = slices(volume(4), prefix="a") | slices(volume(4), prefix="b", series=2, modality="CT")
        result = found(tmp_path, files, spec)
        assert {(case.layout, case.modality, case.condition) for case in result.cases} == {
            ("all", "MR", "cohort-mr"), ("ct", "CT", "cohort-ct")
        }  # fmt: skip
        assert [(count.layout, count.found) for count in result.counts] == [("all", 1), ("ct", 1)]


class TestPairing:
    def mask(self) -> np.ndarray:
        mask = np.zeros((4, 12, 12), dtype=bool)
        mask[1:3, 3:7, 2:9] = True
        return mask

    def test_annotations_pair_by_reference_and_not_by_name(self, tmp_path):
        files = slices(volume(4), prefix="a/", series=1) | slices(volume(4), prefix="b/", series=2)
        files["a/annotation"] = segmentation({"Lung": self.mask()}, series=2)
        result = found(tmp_path, files)
        labelled = [case for case in result.cases if case.label]
        assert [len(case.label) for case in labelled] == [1]
        assert all(path.startswith("b/") for path in labelled[0].image)
        assert result.counts[0].unlabelled == 1

    def test_without_a_reference_the_frame_of_reference_where_it_is_plain(self, tmp_path):
        annotation = {"s": structure_set({"cord": []}, referenced=False)}
        one = found(tmp_path / "one", slices(volume(4)) | annotation)
        assert [len(case.label) for case in one.cases] == [1]
        two = found(tmp_path / "two", slices(volume(4)) | slices(volume(4), prefix="b", series=2) | annotation)
        assert [len(case.label) for case in two.cases] == [0, 0]
        assert [reject.reason for reject in two.rejects] == [Reason.LABEL_WITHOUT_IMAGE]

    def test_an_annotation_whose_images_are_not_here(self, tmp_path):
        result = found(tmp_path, slices(volume(4)) | {"s": segmentation({"Lung": self.mask()}, series=7)})
        assert [reject.reason for reject in result.rejects] == [Reason.LABEL_WITHOUT_IMAGE]
        assert result.cases[0].label == ()

    def test_an_annotation_of_images_left_out_is_a_reject_that_says_so(self, tmp_path):
        files = slices(volume(4), heights=(0, 2, 4, 8)) | {"s": segmentation({"Lung": self.mask()})}
        rejects = found(tmp_path, files).rejects
        assert [reject.reason for reject in rejects] == [Reason.MISSING_SLICE, Reason.LABEL_WITHOUT_IMAGE]
        assert "are here, but no case came of them" in rejects[1].detail

    @pytest.mark.parametrize("place", ["top", "derivation", "shared", "frame"])
    def test_by_the_images_it_was_derived_from(self, tmp_path, place):
        files = slices(volume(4), prefix="a/", series=1) | slices(volume(4), prefix="b/", series=2)
        files["a/annotation"] = segmentation({"Lung": self.mask()}, series=2, sources=place)
        result = found(tmp_path, files)
        assert [case.image[0][:2] for case in result.cases if case.label] == ["b/"]
        assert not result.rejects

    def test_of_images_in_another_part_of_the_series(self, tmp_path):
        """The annotation was drawn on images that are not here, though their series is."""
        files = slices(volume(4), series=2) | slices(volume(4), series=3, prefix="c")
        files["s"] = segmentation({"Lung": self.mask()}, series=2, sources="series", source_numbers=(50, 51))
        result = found(tmp_path, files)
        assert not any(case.label for case in result.cases)
        assert [reject.reason for reject in result.rejects] == [Reason.LABEL_WITHOUT_IMAGE]
        assert "not on any of those" in result.rejects[0].detail

    def test_a_volume_of_a_layout_that_asks_for_no_structure(self, tmp_path):
        second = '\n[[layout]]\nid = "ct"\nreader = "dicom"\nmodality = "CT"\nimage = "."\nlabelled = false\n'
        spec = parse_collection(cohort_toml(more=second), "test", own=True)
        files = slices(volume(4), prefix="a") | slices(volume(4), prefix="b", series=2, modality="CT")
        files["s"] = segmentation({"Lung": self.mask()}, series=2)
        result = found(tmp_path, files, spec)
        assert not any(case.label for case in result.cases)
        assert "no `roi` asks for them: 1" in result.notes[0]

    def test_a_collection_that_asks_for_no_structure(self, tmp_path):
        spec = parse_collection(cohort_toml().split("[[label]]")[0], "test", own=True)
        result = found(tmp_path, slices(volume(4)) | {"s": segmentation({"Lung": self.mask()})}, spec)
        assert result.cases[0].label == ()
        assert "no `roi` asks for them: 1" in result.notes[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("PixelSpacing", Reason.UNREADABLE), ("RescaleSlope", Reason.UNREADABLE), ("EchoTime", None), ("FlipAngle", None),
     ("InstanceNumber", None)],
)  # fmt: skip
def test_words_where_numbers_belong(tmp_path, name, reason):
    """What the geometry or the values need is named; what only helps to tell volumes apart is not asked for."""
    files = slices(volume(4), PixelSpacing=["1.25", "1.25"], RescaleSlope="1.25", EchoTime="1.25", FlipAngle="1.25")
    value = {"InstanceNumber": b"2 "}.get(name, b"1.25")
    tag = pydicom.datadict.tag_for_keyword(name)
    assert tag is not None
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    at = files["0002"].index(head) + 8
    files["0002"] = files["0002"][:at] + b"Smith"[: len(value)] + files["0002"][at + len(value) :]
    assert value in slices(volume(4), **{name: "1.25"} if len(value) > 2 else {})["0002"]
    result = found(tmp_path, files)
    if reason is None:
        assert len(result.cases) == 1
        return
    (reject,) = [reject for reject in result.rejects if reject.case.startswith("file-")]
    assert reject.reason is reason
    assert name in reject.detail
    assert "Smit" not in reject.detail
    assert reject.files == ("0002",)


COHORT = find_collections("dicom-cohort")[0]


@pytest.mark.parametrize(
    ("named", "region"),
    [({"BodyPartExamined": "CHEST"}, "chest"), ({"BodyPartExamined": "ABDOMEN_PELVIS"}, "abdomen"),
     ({"BodyPartExamined": "C SPINE"}, "spine"), ({"BodyPartExamined": "PROSTATE"}, "prostate"),
     ({"AnatomicRegionSequence": Sequence([item(CodeValue="12738006")])}, "brain"),
     ({"BodyPartExamined": "JOHN SMITH"}, "unknown"), ({}, "unknown")],
)  # fmt: skip
def test_the_region_is_what_the_header_says_or_asked_for(tmp_path, named, region):
    result = found(tmp_path, slices(volume(4), modality="CT", **named), COHORT)
    assert [case.region for case in result.cases] == [region]
    assert any("say it by `region`" in note for note in result.notes) == (region == "unknown")
    assert "SMITH" not in str(result.notes) + str(result.cases)


def test_slices_that_name_several_regions_name_none(tmp_path):
    files = slices(volume(4), modality="CT", BodyPartExamined="CHEST")
    files["0003"] = slices(volume(4), modality="CT", BodyPartExamined="ABDOMEN")["0003"]
    assert [case.region for case in found(tmp_path, files, COHORT).cases] == ["unknown"]


def test_a_region_that_the_description_says_holds(tmp_path):
    files = slices(volume(4), BodyPartExamined="CHEST")
    assert [case.region for case in found(tmp_path, files).cases] == ["body"]


@pytest.mark.parametrize(
    ("files", "n"),
    [
        (slices(volume(4), heights=(0, 2, 4, 8)), 4),
        (slices(volume(4), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), 4),
        (slices(volume(2)), 2),
        ({"a.dcm": b"no"}, 1),
        ({"a.dcm": b""}, 1),
        ({"s": structure_set({"cord": []}, series=7)}, 1),
    ],
)
def test_rejects_name_their_files(tmp_path, files, n):
    """In the workspace's table alone, so that a hashed key can be found again."""
    good = slices(volume(4), prefix="good/", series=5)
    (reject,) = found(tmp_path, files | good).rejects
    assert set(reject.files) == set(files)
    assert len(reject.files) == n


def test_a_modality_that_no_layout_wants_is_told_with_all_that_are(tmp_path):
    second = '\n[[layout]]\nid = "ct"\nreader = "dicom"\nmodality = "CT"\nimage = "."\n'
    spec = parse_collection(cohort_toml(more=second), "test", own=True)
    files = slices(volume(4)) | slices(volume(4), prefix="p", series=2, Modality="PT")
    (reject,) = found(tmp_path, files, spec).rejects
    assert "of modality PT; the collection wants CT or MR" in reject.detail


@pytest.mark.parametrize("step", [37, pytest.param(3, marks=pytest.mark.slow)])
def test_every_damaged_byte_is_a_case_or_a_reject(tmp_path, step):
    """Whatever one byte of a header becomes, ingest ends, and the other series is found."""
    files = slices(volume(3, side=4)) | slices(volume(3, side=4), prefix="good", series=2)
    whole = files["0002"]
    write_files(tmp_path, files)
    for at in range(132, len(whole) - 32, step):
        broken = bytearray(whole)
        broken[at] ^= 0x35
        (tmp_path / "0002").write_bytes(bytes(broken))
        result = ingest(SPEC, open_tree(tmp_path), b"salt")
        assert result.cases


def test_a_data_set_of_nothing_is_no_image(tmp_path):
    from support.dicom_files import file_bytes, identified

    report = identified("1.2.840.10008.5.1.4.1.1.88.11", "SR", 5, 1)
    assert isinstance(report, Dataset)
    result = found(tmp_path, slices(volume(4)) | {"report": file_bytes(report)})
    assert result.notes == ("DICOM objects passed over since they are no image that a layout takes: 1",)


def test_annotations_from_a_place_of_their_own(tmp_path):
    """With a `label` pattern only files that it takes are annotations, and no image is taken from there."""
    text = cohort_toml(more="label = '^drawn/'\ngroup = \"{patient}\"\n")
    spec = parse_collection(text.replace("image = '.'", "image = '^scans/(?P<patient>[^/]+)/'"), "test", own=True)
    mask = np.ones((4, 12, 12), dtype=bool)
    files = slices(volume(4), prefix="scans/p/") | slices(volume(4), prefix="drawn/", series=2)
    files |= {"drawn/s": segmentation({"Lung": mask}), "scans/p/s": segmentation({"Lung": mask}, number=801)}
    result = found(tmp_path, files, spec)
    assert [(case.group, case.label) for case in result.cases] == [("cohort/p", ("drawn/s",))]


def test_one_uid_for_everything_is_no_copy(tmp_path):
    """A tool that gave all images one UID has made no copies of one; nor are two patients one series."""
    files = {}
    for n in range(2):
        files |= slices(volume(4, seed=n), prefix=f"{n}", SOPInstanceUID="1.2.3", patient=f"P{n}")
    result = found(tmp_path, files)
    assert len(result.cases) == len({case.group for case in result.cases}) == 2


@pytest.mark.parametrize(
    "head", [b"\x08\x00\x77\x01junk" * 20, b"\x02\x00", b"", bytes(200), b"\x08\x00\x05\x00\xff\xff\xff\xff"]
)
def test_bytes_that_only_look_like_dicom(head):
    assert not is_dicom(head)


def test_dicom_without_its_preamble(tmp_path):
    """As scanners wrote it before files had a head: group 8 comes first, in implicit little endian."""
    from io import BytesIO

    import pydicom

    pixels = volume(4)
    files = {}
    for name, data in slices(pixels).items():
        dataset = pydicom.dcmread(BytesIO(data))
        out = BytesIO()
        dataset.preamble = None
        del dataset.file_meta
        pydicom.dcmwrite(out, dataset, implicit_vr=True, little_endian=True)
        files[name] = out.getvalue()
        assert files[name][128:132] != b"DICM"
    (got,) = pixels_of(found(tmp_path, files))
    assert np.array_equal(got, pixels)


def test_a_number_of_frames_that_no_file_holds(tmp_path):
    files = slices(volume(4)) | {"x": image(volume(1)[0], (0, 0, 0), series=2, NumberOfFrames="999999999")}
    assert [reject.reason for reject in found(tmp_path, files).rejects] == [Reason.UNREADABLE]
