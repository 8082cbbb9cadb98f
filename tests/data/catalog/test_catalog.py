"""Every TOML of the distribution loads and holds together; a wrong one is answered with the key that is wrong."""

import json
import re
from pathlib import Path

import pytest
from support.builders import pairs_toml

from medvar_data.catalog.checks import CASE_LIST_NAMES, READER_NAMES
from medvar_data.catalog.collection import CollectionSpec, condition_name, labels_of, license_of, license_text
from medvar_data.catalog.describe import describe_collection, readable
from medvar_data.catalog.load import (
    OWN_CONDITION_IDS,
    collection_names,
    collection_text,
    find_collections,
    load_collection,
    load_collections,
    load_conditions,
    load_shared_cases,
    parse_collection,
    same_scans,
)
from medvar_data.catalog.recipe import load_recipe
from medvar_data.errors import SpecError
from medvar_data.ingest.case_lists import CASE_LISTS
from medvar_data.readers.read import READERS
from medvar_data.records import LICENSE_TERMS

GOLDEN = Path(__file__).parents[2] / "golden" / "conditions.json"


@pytest.mark.parametrize("name", collection_names())
def test_a_collection_of_the_distribution_is_whole(name):
    spec = load_collection(name)
    assert spec.name == name
    assert spec.case_list == "" or spec.case_list in CASE_LISTS
    assert spec.license
    assert spec.commercial in ("yes", "no", "unknown")
    assert not ("NC" in spec.license and spec.commercial == "yes"), spec.license
    assert spec.title
    assert spec.citation
    assert spec.homepage.startswith("http")
    assert len(spec.digest) == 64
    assert len({layout.id for layout in spec.layouts}) == len(spec.layouts)
    for layout in spec.layouts:
        assert layout.reader in READERS
        assert bool(layout.label) == layout.labelled
        assert readable(layout.image)
    page = describe_collection(spec)
    assert spec.license in page
    assert f"ingest {name}=" in page


# May it be used for profit, what is made of it be passed on, must that carry the same licence, may it be passed on as it is.
TERMS = ("commercial", "derivatives", "share_alike", "redistribute")
STRICTEST_LAST = {"commercial": ("yes", "unknown", "no"), "derivatives": ("yes", "unknown", "no"),
                  "share_alike": ("no", "unknown", "yes"), "redistribute": ("yes", "unknown", "no")}  # fmt: skip
CREATIVE_COMMONS = {
    "CC-BY-4": ("yes", "yes", "no", "yes"), "CC-BY-SA": ("yes", "yes", "yes", "yes"), "CC-BY-NC-SA": ("no", "yes", "yes", "yes"),
    "CC-BY-NC-ND": ("no", "no", "no", "yes"),
}  # fmt: skip


def strictness(spec: CollectionSpec) -> tuple[int, ...]:
    return tuple(STRICTEST_LAST[term].index(getattr(spec, term)) for term in TERMS)


def declared(spec: CollectionSpec) -> tuple[int, ...]:
    """What the licence alone says, 0 where it is none that is known by name."""
    terms = next((terms for name, terms in CREATIVE_COMMONS.items() if spec.license.startswith(name)), None)
    return tuple(STRICTEST_LAST[t].index(v) for t, v in zip(TERMS, terms, strict=True)) if terms else (0, 0, 0, 0)


@pytest.mark.parametrize("name", collection_names())
def test_terms_are_those_of_the_licence_or_stricter(name):
    """Where they are stricter, the conflict is stated; evidence says where it was read, and when."""
    spec = load_collection(name)
    assert all(ours >= said for ours, said in zip(strictness(spec), declared(spec), strict=True))
    if any(declared(spec)) or spec.license.startswith("CC-BY-4"):
        assert spec.license_url.startswith("https://creativecommons.org/licenses/")
        assert spec.license_conflict or strictness(spec) == declared(spec) or not spec.license_confirmed
    assert spec.license_evidence
    assert re.fullmatch(r"20\d\d-\d\d", spec.license_read)


@pytest.mark.parametrize("name", collection_names())
def test_the_same_scans_have_one_answer(name):
    """The strictest holds on both sides, and whoever shares scans is named on both sides."""
    spec = load_collection(name)
    for overlap in spec.overlaps:
        if not overlap.collection:
            continue
        other = load_collection(overlap.collection)
        assert any(back.collection == name for back in other.overlaps), overlap
        if overlap.certainty != "unconfirmed":
            assert spec.commercial == other.commercial, overlap
            assert all(ours >= said for ours, said in zip(strictness(spec), declared(other), strict=True)), overlap


def test_shared_cases_are_the_same_from_both_sides():
    for spec in load_collections():
        for overlap in spec.overlaps:
            pairs = load_shared_cases(spec.name, overlap)
            assert bool(pairs) == bool(overlap.pairs)
            if pairs:
                other = load_collection(overlap.collection)
                (back,) = [one for one in other.overlaps if one.collection == spec.name]
                mirrored = {(row.their_case, row.case) for row in load_shared_cases(other.name, back)}
                assert {(row.case, row.their_case) for row in pairs} == mirrored
                assert all(re.fullmatch(r"[a-z0-9-]+", row.case) for row in pairs)


def test_an_overlap_knows_its_cases():
    lits = {overlap.collection: overlap for overlap in load_collection("lits").overlaps}
    assert lits["msd-liver"].holds_for("130")
    assert not lits["msd-liver"].holds_for("131")
    assert not lits["msd-liver"].holds_for("test-12")
    assert lits["msd-liver"].their_case("12") == "liver-12"
    assert lits["ctspine1k"].holds_for("12") is None
    (word,) = [overlap for overlap in load_collection("word").overlaps if overlap.collection == "lits"]
    assert word.holds_for("lits-57")
    assert word.their_case("lits-57") == "57"
    assert not word.holds_for("57")


def test_same_scans_are_named_case_by_case():
    """By a table of pairs and by the form of the keys, for the cases that are there."""
    found = set(same_scans(load_collection("abdomenct1k"), ["case-00002", "case-99999"]))
    assert found == {("case-00002", "kits23", "case-00004"), ("case-00002", "kits19", "case-00004")}
    assert ("case-00002", "abdomenct1k") in {
        (theirs, other) for _, other, theirs in same_scans(load_collection("kits23"), ["case-00004"])
    }
    lits = set(same_scans(load_collection("lits"), ["57", "131", "test-57"]))
    assert {("57", "msd-liver", "liver-57"), ("57", "word", "lits-57")} <= lits
    assert not {ours for ours, *_ in lits} & {"131", "test-57"}
    stray = parse_collection(
        pairs_toml(more='\n[[overlap]]\ncollection = "lits"\npairs = "none.csv"\n'), "test", own=True
    )
    with pytest.raises(SpecError, match=r"pairs names none\.csv, which"):
        list(same_scans(stray, ["a"]))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ('collection = "lits"\ntitle = "LiTS"', "either the name of a collection"),
        ('title = "LiTS"\ncertainty = "sure"', "certainty"),
        ('title = "LiTS"\nnumbers = "1 to 3"', "numbers and ranges"),
        ('collection = "lits"\ntheirs = "{case}-{name}"', "theirs names {name}"),
        ('collection = "lits"\ntheirs = "{case:>99999}"', "cannot be filled in"),
        ('collection = "lits"\npairs = "../own.csv"', "name of a table"),
    ],
)
def test_an_overlap_that_cannot_be_understood(row, wanted):
    with pytest.raises(SpecError, match=wanted):
        parse_collection(pairs_toml(more=f"\n[[overlap]]\n{row}\n"), "test", own=True)


@pytest.mark.parametrize(
    ("stated", "shown"),
    [
        ("", "not stated (unconfirmed)"),
        ('license = "own data"', "own data"),
        ('license = "internal"', "internal (unconfirmed)"),
    ],
)
def test_nobody_confirms_a_licence_but_the_user(stated, shown):
    spec = parse_collection(pairs_toml(top=stated + "\n"), "test", own=True)
    assert license_text(spec.license, spec.license_confirmed) == shown
    (cohort,) = find_collections("dicom-cohort")
    assert not cohort.license_confirmed


@pytest.mark.parametrize(
    ("name", "terms", "shown"),
    [
        ("CC-BY-4.0", "no yes no yes", "CC-BY-4.0, but commercial use: no"),
        ("CC-BY-4.0", "yes yes no yes", "CC-BY-4.0"),
        (
            "CC-BY-4.0",
            "unknown yes yes no",
            "CC-BY-4.0, but commercial use: unknown, share alike: yes, redistribution: no",
        ),
        ("CC-BY-NC-SA-4.0", "no yes yes yes", "CC-BY-NC-SA-4.0"),
        ("CC-BY-NC-SA (version not stated)", "no no yes yes", "CC-BY-NC-SA (version not stated), but derivatives: no"),
        ("CC-BY-NC-ND-4.0", "no no yes yes", "CC-BY-NC-ND-4.0"),
        ("CC0-1.0", "no yes no yes", "CC0-1.0, but commercial use: no"),
        ("CC-BY-NONE", "no no yes no", "CC-BY-NONE"),
        ("BTCV challenge terms", "no no yes no", "BTCV challenge terms"),
    ],
)
def test_terms_stricter_than_the_licences_name_are_told(name, terms, shown):
    answers = dict(zip(LICENSE_TERMS, terms.split(), strict=True))
    assert license_text(name, True, answers) == shown
    assert license_text(name, False, answers) == f"{shown} (unconfirmed)"


def test_amos_is_not_shown_as_free():
    (amos,) = find_collections("amos")
    assert license_of(amos) == "CC-BY-4.0, but commercial use: no (unconfirmed)"


def test_conditions_cover_all_collections_and_modalities():
    wanted = {
        condition_name(spec, layout.modality or spec.modality) for spec in load_collections() for layout in spec.layouts
    }
    assert wanted <= set(load_conditions())


def test_the_catalog_knows_every_reader_and_finder():
    assert set(READER_NAMES) == set(READERS)
    assert set(CASE_LIST_NAMES) == {"", *CASE_LISTS}


def test_condition_ids_are_append_only():
    golden = json.loads(GOLDEN.read_text())
    now = load_conditions()
    assert {name: now.get(name) for name in golden} == golden, "an id that was given once may never change"
    new = {name: i for name, i in now.items() if name not in golden}
    assert all(i > max(golden.values()) for i in new.values())
    assert not set(now.values()) & set(OWN_CONDITION_IDS)


def test_families_and_names_resolve():
    assert [s.name for s in find_collections("acdc")] == ["acdc"]
    msd = find_collections("msd")
    assert len(msd) == 10
    assert {s.family for s in msd} == {"msd"}


def test_an_unknown_name_gets_the_nearest():
    for find in (find_collections, load_collection):
        with pytest.raises(SpecError, match="acdc"):
            find("acdd")


@pytest.mark.parametrize(
    ("quirk", "words"),
    [
        ('cases = "verse400 to 417"', "without skip or step"),
        ('cases = "old Case"\nskip = true', "patterns on case names"),
        ('cases = ""\nstep = "odd"', "patterns on case names"),
        ('cases = "p1  p2_a"\nstep = "odd"', "patterns on case names"),
    ],
)
def test_cases_of_a_quirk_are_patterns_and_words_have_their_own_key(quirk, words):
    text = collection_text("acdc")
    with pytest.raises(SpecError, match=words):
        parse_collection(f'{text}\n[[quirk]]\nid = "x"\naction = "none"\n{quirk}\n', "test")
    kept = parse_collection(f'{text}\n[[quirk]]\nid = "x"\naction = "none"\nwhich = "old Case"\n', "test")
    assert "x (old Case): none" in describe_collection(kept)


class TestRecipes:
    def test_paper_holds_the_published_numbers(self):
        paper = load_recipe("paper")
        assert (paper.side, paper.ct_level_hu, paper.ct_width_hu) == (256, 40.0, 400.0)
        assert (paper.mr_low_percentile, paper.mr_high_percentile) == (0.5, 99.5)

    def test_extends_changes_what_it_names_and_the_digest(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text('extends = "paper"\nname = "mine"\nside = 128\n')
        mine, paper = load_recipe(str(path)), load_recipe("paper")
        assert (mine.side, mine.name, mine.aspect) == (128, "mine", paper.aspect)
        assert mine.digest != paper.digest
        assert mine.digest == load_recipe(str(path)).digest

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ('side = "big"', "side"),
            ("side = 0", "side"),
            ("side = true", "side"),
            ("sides = 3", "sides"),
            ('slices = "all"', "slices"),
            ('orientation = "stored"', "orientation"),
            ('ct_normalizer = "zscore"', "ct_normalizer"),
            ('mr_normalizer = "zscore"', "mr_normalizer"),
            ("ct_width_hu = 0.0", "ct_width_hu"),
            ("mr_low_percentile = 99.9", "mr_low_percentile"),
        ],
    )
    def test_a_wrong_key_is_named(self, tmp_path, line, key):
        path = tmp_path / "mine.toml"
        path.write_text(f'extends = "paper"\nname = "mine"\n{line}\n')
        with pytest.raises(SpecError, match=key):
            load_recipe(str(path))

    def test_a_missing_key_is_named(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text('name = "mine"\nside = 64\n')
        with pytest.raises(SpecError, match="'orientation' is missing"):
            load_recipe(str(path))

    def test_missing_files_and_names_are_sentences(self, tmp_path):
        with pytest.raises(SpecError, match=r"nothing\.toml"):
            load_recipe(str(tmp_path / "nothing.toml"))
        with pytest.raises(SpecError, match="paper"):
            load_recipe("papers")


class TestOwnCollections:
    def test_defaults_hide_names(self, tmp_path):
        path = tmp_path / "own.toml"
        path.write_text(pairs_toml())
        (spec,) = find_collections(str(path))
        assert (spec.case_names, spec.license) == ("hash", "not stated")
        assert [(v.low, v.high, v.id) for v in spec.labels] == [(1, 1, 1), (5, 6, 2)]
        assert collection_text(str(path)) == path.read_text()
        assert condition_name(spec, "MR") == "own-mr"

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ('region = "brain"', 'regions = "brain"', "regions"),
            ('region = "brain"', "", "'region' is missing"),
            ('region = "brain"', "region = 3", "region is 3"),
            ('modality = "MR"', 'modality = "PET"', "modality is 'PET'"),
            ('slice_axis = "axial"', 'slice_axis = "coronal"', "slice_axis"),
            ('name = "own"', 'name = "My Data"', "name"),
            ('pair_on = ["case"]', 'pair_on = ["patient"]', "patient"),
            ('pair_on = ["case"]', 'pair_on = "case"', "pair_on"),
            ('pair_on = ["case"]', "pair_on = [1]", "pair_on"),
            ('case = "{case}"', 'case = "{patient}"', "patient"),
            ("(?P<case>[^/]+)_image", "(?P<case>[^/+_image", "image is not a regular expression"),
            ("[[layout]]", "[layout]", r"\[\[layout\]\]"),
            ("id = 2", "id = 3", "label ids"),
            ("id = 2", 'id = "two"', "id is 'two'"),
            ("id = 2\n", "", "'id' is missing"),
            ('name = "two"', 'title = "two"', "title"),
            ("value = 1\n", "value = 0\n", "value is 0"),
            ("value = 1\n", 'value = "1"\n', "value is '1'"),
            ("value = 1\n", "value = true\n", "value is True"),
            ("value = [5, 6]", "value = [6, 5]", "value is"),
            ("value = [5, 6]", "value = [5]", "value is"),
            ("value = [5, 6]", "value = [1, 6]", "value 1 is given twice"),
            ('id = "pairs"', 'id = "pairs"\nreader = 5', "reader is 5"),
            ('id = "pairs"', 'id = "pairs"\nreader = "magic"', "reader"),
            ('id = "pairs"', 'id = "pairs"\nsequences = "x"', "sequences"),
            ('title = "Pairs of files"', 'title = "x"\ncase_list = "magic"', "case_list"),
            ('title = "Pairs of files"', 'title = "x"\nexclude = ["("]', "exclude"),
            ('title = "Pairs of files"', 'title = "x"\ncase_names = "plain"', "case_names"),
            ('title = "Pairs of files"', 'title = "x"\nspacing_from = "guess"', "spacing_from"),
            ('title = "Pairs of files"', "title = ", "not valid TOML"),
        ],
    )
    def test_what_is_wrong_is_named(self, old, new, says):
        text = pairs_toml()
        assert old in text
        with pytest.raises(SpecError, match=says):
            parse_collection(text.replace(old, new, 1), "own.toml", own=True)

    def test_labels_by_name_and_by_layout(self):
        """A row by name needs no value; two rows by name may share an id; values may mean other things in other layouts."""
        two = '[[layout]]\nid = "b"\nreader = "dicom"\nimage = "."\n\n'
        rows = (
            '[[label]]\nid = 1\nname = "lung"\nroi = "left"\n\n[[label]]\nid = 1\nname = "lung"\nroi = "right"\n\n'
            '[[label]]\nid = 2\nname = "cord"\nvalue = 7\nlayouts = ["b"]\n\n'
            '[[label]]\nid = 3\nname = "liver"\nvalue = 7\nlayouts = ["pairs"]\n'
        )
        text = pairs_toml().split("[[label]]")[0] + two + rows
        spec = parse_collection(text, "own.toml", own=True)
        assert [(row.low, row.id, row.roi) for row in labels_of(spec, "b")] == [
            (1, 1, "left"),
            (1, 1, "right"),
            (7, 2, ""),
        ]
        assert [row.id for row in labels_of(spec, "pairs")] == [1, 1, 3]
        for old, new, says in (
            ('layouts = ["pairs"]', 'layouts = ["c"]', "layouts of label liver is 'c'"),
            ('layouts = ["pairs"]', 'layouts = ["b"]', "value 7 is given twice"),
            ('roi = "left"', 'roi = "("', "roi of label lung is not a regular expression"),
            ('roi = "left"', "", "value is None"),
            ('reader = "dicom"', "", "'case' is missing"),
            (
                'reader = "dicom"',
                'reader = "dicom"\nsequences = { "(" = "T2" }',
                "sequences is not a regular expression",
            ),
        ):
            with pytest.raises(SpecError, match=says):
                parse_collection(text.replace(old, new, 1), "own.toml", own=True)

    def test_a_missing_file_is_a_sentence(self):
        with pytest.raises(SpecError, match="No collection file"):
            find_collections("/nowhere/own.toml")
