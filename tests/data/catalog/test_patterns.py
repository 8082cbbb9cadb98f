"""A description that a stranger wrote can be wrong, but can neither hang the program nor fill its memory."""

import time

import pytest
from support.builders import nifti_bytes, pairs_toml, scan, write_files

from medvar_data.catalog.load import parse_collection
from medvar_data.catalog.patterns import SECONDS, fullmatch, search
from medvar_data.errors import SpecError
from medvar_data.ingest.find_cases import ingest
from medvar_data.sources.tree import open_tree

ENDLESS = [r"(?:a|a)+$", r"^(a|aa)+$"]
ENDLESS_FOR_OTHERS = [r"^(a+)+$", r"(.*a){25}$", r"^(\w+\s?)*$", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(x+x+)+y"]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_would_never_end_is_a_sentence(pattern):
    started = time.monotonic()
    with pytest.raises(SpecError, match="Write it more plainly"):
        search(pattern, "a" * 60 + "!")
    assert time.monotonic() - started < 10 * SECONDS


@pytest.mark.parametrize("pattern", ENDLESS_FOR_OTHERS)
def test_patterns_that_other_programs_hang_on_end(pattern):
    started = time.monotonic()
    assert not search(pattern, "a" * 60 + "!")
    assert time.monotonic() - started < 10 * SECONDS


def test_patterns_mean_what_they_mean_elsewhere():
    match = search(r"(?:^|/)(?P<case>\d+)/(?P=case)_t1\.nii$", "x/12/12_t1.nii")
    assert match.groupdict() == {"case": "12"}
    assert fullmatch("lung.*", "LUNG left", ignore_case=True)
    assert not fullmatch("lung", "lung left")


def test_an_ingest_with_such_a_pattern_ends(tmp_path):
    name = "a" * 60
    text = pairs_toml(suffix="nii").replace("(?P<case>[^/]+)_image", "(?P<case>(?:a|a)+)x_image")
    spec = parse_collection(text, "test", own=True)
    folder = write_files(tmp_path, {f"{name}_image.nii": nifti_bytes(scan((6, 6, 3))[0])})
    with pytest.raises(SpecError, match="takes more than"):
        ingest(spec, open_tree(folder), b"salt")


@pytest.mark.parametrize(
    "template",
    ["{case:>1000000000}", "{case!r}", "{case.__class__}", "{case[0]}", "{0}", "{", "{}", "{other}", "x" * 501],
)
def test_templates_hold_plain_names_alone(template):
    text = pairs_toml().replace('case = "{case}"', f'case = "{template}"')
    with pytest.raises(SpecError, match="template"):
        parse_collection(text, "test", own=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("x = " + "9" * 10_000, "not valid TOML"),
        ("a = 1\n" * 700_000, "letters; wanted"),
    ],
    ids=["depth", "digits", "length"],
)
def test_toml_beyond_all_measure(text, words):
    with pytest.raises(SpecError, match=words):
        parse_collection(text, "test", own=True)


def test_a_pattern_of_great_length():
    text = pairs_toml().replace("(?P<case>[^/]+)_image", "(?P<case>[^/]+)" + "a?" * 2000)
    with pytest.raises(SpecError, match="letters; wanted at most"):
        parse_collection(text, "test", own=True)
