"""Every TOML of the distribution loads and holds together; a wrong one is answered with the key that is wrong."""

import json
from pathlib import Path

import pytest
from support.builders import pairs_toml

from medvar_data.catalog.checks import CASE_LIST_NAMES, READER_NAMES
from medvar_data.catalog.collection import condition_name, labels_of
from medvar_data.catalog.describe import describe_collection, readable
from medvar_data.catalog.load import (
    OWN_CONDITION_IDS,
    collection_names,
    collection_text,
    find_collections,
    load_collection,
    load_collections,
    load_conditions,
    parse_collection,
)
from medvar_data.catalog.recipe import load_recipe
from medvar_data.errors import SpecError
from medvar_data.ingest.case_lists import CASE_LISTS
from medvar_data.readers.read import READERS

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
        assert (mine.side, mine.name, mine.codec) == (128, "mine", paper.codec)
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
            ('codec = "jpg"', "codec"),
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
        assert (spec.case_names, spec.license) == ("hash", "own data")
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
