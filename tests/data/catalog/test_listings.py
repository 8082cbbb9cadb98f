"""Hold every collection against hand-written lists of published file names: no file exists, names alone are matched.

A listing in tests/listings says where its names come from, how many images there are in full, and what must be found in
the excerpt below. Every path must be taken by some layout, but for those that say `# ignored:`.
"""

from collections import Counter
from pathlib import Path

import pytest
from support.published import LISTINGS, read_listing

from medvar_data.catalog.load import collection_names, load_collection
from medvar_data.ingest.match_paths import Matched, match_files
from medvar_data.records import SourceFile
from medvar_data.shard.splits import SplitSpec, assign_splits
from medvar_data.sources.tree import Tree, is_junk

NAMES = collection_names()


def counted(text: str) -> dict[str, int]:
    parts = [part.rpartition(" ") for part in text.split(", ") if part]
    return {"" if name == "none" else name: int(number) for name, _, number in parts}


def match(name: str, paths: tuple[str, ...], prefix: str = "") -> Matched:
    files = [SourceFile(prefix + path, 1) for path in paths if not is_junk(path)]
    return match_files(load_collection(name), Tree(Path("/nowhere"), tuple(files)), b"")


def shape_of(matched: Matched) -> dict[str, object]:
    cases = matched.candidates
    return {
        "cases": len(cases),
        "unlabelled": sum(not case.label for case in cases),
        "patients": len({case.group for case in cases}),
        "splits": dict(Counter(case.official_split for case in cases)),
        "sequences": dict(Counter(case.sequence for case in cases)),
        "modalities": dict(Counter(case.modality for case in cases)),
        "rejects": dict(Counter(reject.reason.value for reject in matched.rejects)),
        "keys": sorted(case.case for case in cases),
    }


def test_every_collection_has_a_listing_and_every_listing_a_collection():
    assert sorted(path.stem for path in LISTINGS.glob("*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_listing_gives_what_it_says(name):
    listing = read_listing(name)
    found = shape_of(match(name, listing.paths + listing.ignored))
    wanted = {key: int(listing.expected[key]) for key in ("cases", "unlabelled", "patients")}
    wanted["rejects"] = counted(listing.expected.get("rejects", ""))
    wanted |= {
        key: counted(listing.expected[key]) for key in ("splits", "sequences", "modalities") if key in listing.expected
    }
    assert "splits" in wanted
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_no_published_path_is_left_over_and_no_other_is_taken(name):
    listing = read_listing(name)
    matched = match(name, listing.paths + listing.ignored)
    assert sorted(matched.claimed) == sorted(listing.paths)


@pytest.mark.parametrize("name", NAMES)
def test_the_full_number_is_the_collections(name):
    listing = read_listing(name)
    assert listing.sources
    assert load_collection(name).n_expected == int(listing.expected["full"])


@pytest.mark.parametrize("prefix", ["Down loads/X (1)/X (1)/", "everything.zip!/", "a.b/c.tar!/"])
@pytest.mark.parametrize("name", NAMES)
def test_depth_and_packing_change_nothing(name, prefix):
    listing = read_listing(name)
    assert shape_of(match(name, listing.paths, prefix)) == shape_of(match(name, listing.paths))


@pytest.mark.parametrize("name", NAMES)
def test_every_case_but_bad_ones_pairs_with_its_label(name):
    """Leaving out one label leaves one case less with a label, never one case less."""
    listing = read_listing(name)
    whole = match(name, listing.paths)
    labels = sorted({case.label for case in whole.candidates if case.label})
    for label in labels[:3]:
        users = sum(case.label == label for case in whole.candidates)
        less = match(name, tuple(path for path in listing.paths if path not in label))
        assert len(less.candidates) == len(whole.candidates)
        assert sum(not c.label for c in less.candidates) == users + sum(not c.label for c in whole.candidates)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_copy_of_everything_is_all_duplicates(name):
    listing = read_listing(name)
    once = match(name, listing.paths)
    files = tuple(SourceFile(prefix + path, 1) for prefix in ("", "copy/") for path in listing.paths)
    twice = match_files(load_collection(name), Tree(Path("/nowhere"), files), b"")
    assert [c.case for c in twice.candidates] == [c.case for c in once.candidates]


def test_variants_are_not_held_to_a_number_twice():
    paths = ("verse014.nii.gz", "verse014_seg.nii.gz")
    assert [(c.layout, c.found, c.expected) for c in match("verse", paths).counts] == [("bids", 0, 0), ("miccai", 1, 0)]
    nothing = [(c.layout, c.expected) for c in match("verse", ()).counts]
    assert nothing == [("bids", 374), ("miccai", 0)]


@pytest.mark.parametrize(
    "paths",
    [
        {
            "msd-liver": "Task03_Liver/imagesTr/liver_2.nii.gz",
            "lits": "Training Batch 1/volume-2.nii",
            "ctspine1k": "data/liver/liver_2.nii.gz",
            "word": "addition_validation_from_LiTS/imagesTs/liver_2_word_image.nii.gz",
        },
        {
            "covid19-20": "COVID-19-20_v2/Train/volume-covid19-A-0202_0_ct.nii.gz",
            "ctspine1k": "data/COVID-19/volume-covid19-A-0202_0_ct.nii.gz",
        },
        {"kits19": "kits19/data/case_00007/imaging.nii.gz", "kits23": "kits23/dataset/case_00007/imaging.nii.gz"},
    ],
)
def test_one_scan_in_several_collections_is_one_patient(paths):
    groups = {name: match(name, (path,)).candidates[0].group for name, path in paths.items()}
    assert len(set(groups.values())) == 1, groups
    splits = assign_splits(list(groups.items()), SplitSpec())
    assert len(splits) == 1
