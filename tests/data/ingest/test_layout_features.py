"""Features that single collections need: labels in several files, splits by number, cases known to be bad."""

from pathlib import Path

import numpy as np
import pytest
from support.builders import case_of, nifti_bytes, spaced, write_nifti

from medvar_data.catalog.collection import parse_numbers
from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.errors import CaseRejected, Reason, SpecError
from medvar_data.harmonize.harmonize import label_table
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.sources.tree import open_tree

TOML = """name = "parts"
title = "One file a structure"
region = "heart"
modality = "MR"
slice_axis = "axial"
license = "none"

[[layout]]
id = "all"
image = '(?:^|/)p(?P<number>\\d+)/image\\.nii$'
label = '(?:^|/)p(?P<number>\\d+)/(?P<structure>wall|cavity)\\.nii$'
pair_on = ["number"]
case = "p{number}"
group = "{number}"
label_files = { cavity = 7, wall = 3 }
splits = { train = "1-2 9", test = "3" }

[[label]]
value = 3
id = 1
name = "wall"

[[label]]
value = 7
id = 2
name = "cavity"

[[quirk]]
id = "noise"
cases = "p4 p5*"
skip = true
action = "nothing but noise"
"""
SHAPE = (6, 5, 4)


def write_case(root: Path, number: int, structures: dict[str, np.ndarray]) -> None:
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    write_nifti(root / f"p{number}" / "image.nii", image)
    for name, voxels in structures.items():
        write_nifti(root / f"p{number}" / f"{name}.nii", voxels)


def ball(*at: int) -> np.ndarray:
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[at[0] : at[0] + 3, 1:4, 1:3] = 255
    return voxels


def test_files_are_painted_in_the_order_of_the_table(tmp_path):
    cavity, wall = ball(0), ball(1)
    write_case(tmp_path, 1, {"cavity": cavity, "wall": wall})
    spec = parse_collection(TOML, "test")
    (case,) = ingest(spec, open_tree(tmp_path), b"").cases
    assert [Path(path).name for path in case.label] == ["cavity.nii", "wall.nii"]
    scan = read_scan(case, spec)
    wanted = np.where(wall > 0, 3, np.where(cavity > 0, 7, 0))
    assert np.array_equal(scan.label.voxels, wanted)
    assert scan.label.steps == ("merged_labels",)
    assert set(np.unique(label_table(spec, "all")[scan.label.voxels])) == {0, 1, 2}


def test_an_empty_file_is_a_structure_that_the_patient_lacks(tmp_path):
    write_case(tmp_path, 1, {"cavity": ball(0), "wall": np.zeros(SHAPE, dtype=np.uint8)})
    spec = parse_collection(TOML, "test")
    (case,) = ingest(spec, open_tree(tmp_path), b"").cases
    assert set(np.unique(read_scan(case, spec).label.voxels)) == {0, 7}


def test_all_files_empty_is_an_empty_label(tmp_path):
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    write_case(tmp_path, 1, {"cavity": nothing, "wall": nothing})
    spec = parse_collection(TOML, "test")
    (case,) = ingest(spec, open_tree(tmp_path), b"").cases
    with pytest.raises(CaseRejected) as error:
        read_scan(case, spec)
    assert error.value.reason is Reason.EMPTY_LABEL


def test_the_digest_hangs_on_every_file(tmp_path):
    spec = parse_collection(TOML, "test")
    digests = set()
    for number, (cavity, wall) in enumerate([(ball(0), ball(1)), (ball(0), ball(2)), (ball(1), ball(0))], start=1):
        write_case(tmp_path, number, {"cavity": cavity, "wall": wall})
        folder = f"p{number}"
        case = case_of(tmp_path, f"{folder}/image.nii", (f"{folder}/cavity.nii", f"{folder}/wall.nii"), layout="all")
        digests.add(read_scan(case, spec).label.digest)
    assert len(digests) == 3


def test_one_file_of_two_is_a_reject_and_none_an_unlabelled_case(tmp_path):
    write_case(tmp_path, 1, {"cavity": ball(0)})
    write_case(tmp_path, 2, {})
    result = ingest(parse_collection(TOML, "test"), open_tree(tmp_path), b"")
    assert [(case.case, case.label) for case in result.cases] == [("p2", ())]
    assert [(reject.case, reject.reason) for reject in result.rejects] == [("p1", Reason.FILE_MISSING)]
    assert "cavity, wall" in result.rejects[0].detail


def test_a_second_label_file_of_another_shape_is_found_by_its_header(tmp_path):
    write_case(tmp_path, 1, {"cavity": ball(0)})
    write_nifti(tmp_path / "p1" / "wall.nii", np.ones((6, 5, 3), dtype=np.uint8))
    result = ingest(parse_collection(TOML, "test"), open_tree(tmp_path), b"")
    assert [reject.reason for reject in result.rejects] == [Reason.LABEL_SHAPE]


def test_splits_go_by_number_and_the_rest_has_none(tmp_path):
    for number in (1, 2, 3, 9, 10):
        write_case(tmp_path, number, {})
    result = ingest(parse_collection(TOML, "test"), open_tree(tmp_path), b"")
    assert {case.case: case.official_split for case in result.cases} == {
        "p1": "train", "p2": "train", "p3": "test", "p9": "train", "p10": ""
    }  # fmt: skip


def test_a_folder_tells_the_split_and_may_call_it_otherwise(tmp_path):
    text = TOML.replace("(?:^|/)p(?P<number>", "(?:^|/)(?:(?P<part>tr|va)/)?p(?P<number>", 1)
    text = text.replace('splits = { train = "1-2 9", test = "3" }', 'split = "{part}"\nsplit_names = { tr = "train" }')
    for part, number in (("tr", 1), ("va", 2), (".", 3)):
        write_case(tmp_path / part, number, {})
    cases = ingest(parse_collection(text, "test"), open_tree(tmp_path), b"").cases
    assert {case.case: case.official_split for case in cases} == {"p1": "train", "p2": "va", "p3": ""}


def test_a_label_serves_the_layout_that_has_its_image_and_is_one_reject_where_none_has(tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"case_0000{number}"
        write_nifti(folder / "segmentation.nii.gz", np.ones(SHAPE, dtype=np.uint8))
    write_nifti(tmp_path / "images" / "case_00001.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    result = ingest(load_collection("kits23"), open_tree(tmp_path), b"")
    assert [(case.case, case.layout, len(case.label)) for case in result.cases] == [("case-00001", "hugging-face", 1)]
    assert [(r.case, r.reason) for r in result.rejects] == [("case-00002", Reason.LABEL_WITHOUT_IMAGE)]


def test_known_bad_cases_are_rejects_and_never_opened(tmp_path):
    write_case(tmp_path, 1, {})
    for number in (4, 50, 51):
        (tmp_path / f"p{number}").mkdir()
        (tmp_path / f"p{number}" / "image.nii").write_bytes(b"no image at all")
    result = ingest(parse_collection(TOML, "test"), open_tree(tmp_path), b"")
    assert [case.case for case in result.cases] == ["p1"]
    assert [(reject.case, reject.reason) for reject in result.rejects] == [
        (name, Reason.KNOWN_BAD) for name in ("p4", "p50", "p51")
    ]
    assert {reject.detail for reject in result.rejects} == {"nothing but noise"}
    assert result.n_found == 4


def test_a_users_hashed_names_can_be_left_out_too(tmp_path):
    write_case(tmp_path, 4, {})
    own = parse_collection(TOML, "test", own=True)
    (reject,) = ingest(own, open_tree(tmp_path), b"salt").rejects
    assert reject.reason is Reason.KNOWN_BAD
    assert reject.case != "p4"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cavity = 7", "cavity = 8", r"gives the values \[8\], which no \[\[label\]\] defines"),
        ("cavity = 7", 'cavity = "7"', "wanted a table of whole numbers"),
        ("(?P<structure>wall|cavity)", "(?:wall|cavity)", "label has no group structure"),
        ("splits = {", 'split = "{part}"\nsplits = {', r"template '\{part\}' uses \['part'\]"),
        ('test = "3"', 'test = "2-3"', "gives number 2 twice"),
        ('test = "3"', 'test = "three"', "wanted numbers such as"),
        ('group = "{number}"', 'group = "x"\nvariant_of = "other"', "variant_of is 'other'"),
    ],
)
def test_mistakes_are_named(old, new, message):
    assert old in TOML
    with pytest.raises(SpecError, match=message):
        parse_collection(TOML.replace(old, new), "test")


def test_splits_need_a_number():
    text = TOML.replace("(?P<number>", "(?P<name>").replace("{number}", "{name}").replace('["number"]', '["name"]')
    with pytest.raises(SpecError, match="image has no group number"):
        parse_collection(text, "test")


@pytest.mark.parametrize("text", ["1-3 7", "7 1 2 3", " 1-1 2-3  7"])
def test_numbers_and_ranges(text):
    assert parse_numbers(text) == {1, 2, 3, 7}


def test_a_scale_factor_that_is_not_a_number_counts_as_one(tmp_path):
    """KiPA22 stores NaN as scl_slope and scl_inter."""
    voxels = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
    data = nifti_bytes(voxels, spaced(0.6, 0.6, 0.6), slope=float("nan"), inter=float("nan"))
    (tmp_path / "0.nii").write_bytes(data)
    scan = read_scan(case_of(tmp_path, "0.nii"), load_collection("kipa22"))
    assert np.array_equal(scan.image.voxels, voxels)


def test_the_split_of_ctspine1k_is_the_published_one():
    counts: dict[str, int] = {}
    for layout in load_collection("ctspine1k").layouts:
        if layout.splits and layout.id in ("colonography", "neck"):  # the other lists are ranges with gaps
            for name, text in layout.splits.items():
                counts[name] = counts.get(name, 0) + len(parse_numbers(text))
    assert counts == {"train": 480 + 20, "test_public": 118 + 5, "test_private": 152 + 6}
