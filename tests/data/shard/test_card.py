"""README.md and CITATION.bib: readers of cards and of bibliographies take them, no text of others means more than itself, obligations come first."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medvar_data.audit.verify import verify
from medvar_data.records import LICENSE_TERMS
from medvar_data.shard.card import (
    CARD_FILE,
    CARD_VERSION,
    Stated,
    card_text,
    documents,
    reasons_of,
)
from medvar_data.shard.citations import CITATION_FILE, citations_bytes
from medvar_data.shard.collections import with_column
from medvar_data.shard.datasheet import Origin, official_test_elsewhere
from medvar_data.shardset.dataset import read_dataset

yaml = pytest.importorskip("yaml")
HOSTILE = 'a | b <script>alert(1)</script> [x](http://e.vil) `c` *d* _e_ {f} "g" \\ # ---\n& %'


@pytest.fixture
def stated(pipeline) -> Stated:
    tables = [pq.read_table(pipeline.shards / f"{name}.parquet") for name in ("cases", "collections", "rejects")]
    return Stated(tables[0], tables[1], reasons_of(tables[2]))


def card_of(pipeline, stated: Stated, **changes: str) -> str:
    return card_text(replace(read_dataset(pipeline.store), **changes), stated)


def with_terms(stated: Stated, **terms: str) -> Stated:
    cases = stated.cases
    for name in LICENSE_TERMS:
        cases = with_column(cases, name, [terms.get(name, "yes")] * cases.num_rows)
    return replace(stated, cases=cases)


def test_a_publishers_test_scans_that_lie_elsewhere_are_counted(pipeline, stated):
    n = stated.cases.num_rows
    cases = with_column(stated.cases, "official_split", ["test"] * 3 + [""] * (n - 3))
    cases = with_column(cases, "split", ["train", "test", "val"] + ["train"] * (n - 3))
    cases = with_column(cases, "collection", ["acdc"] * n)
    assert official_test_elsewhere(cases) == [
        "The publisher's own test scans of acdc are not all in test here: 1 in train, 1 in val. Do not compare with published "
        "results on that test set; the option --respect-official-splits keeps it apart."
    ]
    assert official_test_elsewhere(with_column(cases, "split", ["test"] * n)) == []
    assert "The publisher's own test scans of acdc" in card_of(pipeline, replace(stated, cases=cases))


class TestFrontMatter:
    def test_a_yaml_parser_and_the_hub_read_it(self, pipeline):
        card = (pipeline.shards / CARD_FILE).read_text(encoding="utf-8")
        head = yaml.safe_load(card.split("---\n")[1])
        assert head["license"] == "other"
        assert head["size_categories"] == ["n<1K"]
        assert {"ct", "mr", "heart"} <= set(head["tags"])
        [config] = head["configs"]
        splits = read_dataset(pipeline.store).splits
        for entry in config["data_files"]:
            split = {"validation": "val"}.get(entry["split"], entry["split"])
            assert {p.name for p in pipeline.shards.glob(entry["path"])} == {s.name for s in splits[split].shards}
        hub = pytest.importorskip("huggingface_hub")
        assert hub.DatasetCard.load(pipeline.shards / CARD_FILE).data.to_dict() == head

    def test_one_licence_that_the_hub_knows_is_named(self, pipeline, stated):
        rows = stated.collections
        for column, value in (("license", "CC-BY-SA-4.0"), ("license_confirmed", True)):
            rows = with_column(rows, column, [value] * rows.num_rows)
        assert 'license: "cc-by-sa-4.0"\n' in card_of(pipeline, replace(stated, collections=rows))
        rows = with_column(rows, "license_confirmed", [False] * rows.num_rows)
        assert 'license: "other"\n' in card_of(pipeline, replace(stated, collections=rows))

    @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    def test_hugging_face_loads_the_splits_by_it(self, pipeline, hugging_face):
        datasets = pytest.importorskip("datasets")
        for split, ours in (("train", "train"), ("validation", "val"), ("test", "test")):
            slices = datasets.load_dataset(str(pipeline.shards), split=split, streaming=True)
            keys = [sample["__key__"] for sample in slices]
            assert len(keys) == read_dataset(pipeline.store).splits[ours].slices


class TestObligations:
    @pytest.mark.parametrize(
        ("terms", "wanted"),
        [
            (
                {"redistribute": "no"},
                "**Do not publish this set**: passing it on is forbidden by the terms of acdc, chaos",
            ),
            (
                {"redistribute": "unknown"},
                "**Do not publish this set**: whether it may be passed on is not known of acdc",
            ),
            ({"commercial": "no"}, "**Non-commercial use only**, because of acdc"),
            ({"derivatives": "no"}, "**No derivatives**"),
            ({"share_alike": "yes"}, "**Share alike**"),
        ],
    )
    def test_the_strictest_is_named_with_its_collections(self, pipeline, stated, terms, wanted):
        assert wanted in card_of(pipeline, with_terms(stated, **{"share_alike": "no", **terms}))

    def test_nothing_is_forbidden_that_is_allowed(self, pipeline, stated):
        card = card_of(pipeline, with_terms(stated, share_alike="no"))
        for sentence in ("It may be passed on", "Commercial use is allowed", "may carry another licence"):
            assert sentence in card
        assert "**" not in card

    def test_one_scan_that_may_not_be_passed_on_is_enough(self, pipeline, stated):
        free = with_terms(stated, share_alike="no").cases
        answers = ["no", *["yes"] * (free.num_rows - 1)]
        card = card_of(pipeline, replace(stated, cases=with_column(free, "redistribute", answers)))
        assert f"forbidden by the terms of {free['collection'][0].as_py()}." in card


def test_no_text_of_others_means_more_than_itself(pipeline, stated):
    rows = stated.collections
    for column in ("title", "license", "license_evidence", "license_url", "citation", "access"):
        rows = with_column(rows, column, [HOSTILE] * rows.num_rows)
    card = card_of(pipeline, replace(stated, collections=rows), where="z > 1 OR '`x`' = '<b>'")
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    html = markdown.render(card.split("---\n", 2)[2])
    assert "<script" not in html
    assert 'href="http://e.vil' not in html
    assert len(set(re.findall(r"<h2>([^<]*)</h2>", html))) == 11
    assert "<em>" not in html


@pytest.mark.parametrize("title", ["100% of R&D {x} $y_1$ ~ ^ \\ #", "unbalanced } {{ braces", "Ä ö — 漢"])
def test_every_entry_is_balanced_and_holds_its_text(title):
    origins = [
        Origin(
            name="a",
            title=title,
            license="x",
            license_confirmed=True,
            doi="10.1/a_b%}c",
            citation=f"Someone. {title}, 2021.",
        ),
        Origin(name="b", title="no doi, no citation", license="x", license_confirmed=True),
    ]
    text = citations_bytes(origins).decode()
    assert "@misc{a,\n" in text
    assert "{b," not in text
    assert "doi = {10.1/a_b%25%7Dc}" in text
    assert "year = {2021}" in text
    plain = re.sub(r"\\[{}%&$#_]", "", text)
    depth = 0
    for letter in plain:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0


class TestVerify:
    def test_the_same_tables_give_the_same_bytes(self, pipeline, stated):
        made = documents(read_dataset(pipeline.store), stated)
        assert {name: (pipeline.shards / name).read_bytes() for name in made} == made

    @pytest.mark.parametrize("name", [CARD_FILE, CITATION_FILE])
    def test_an_edited_document_is_found(self, damaged, name):
        path = Path(damaged.url) / name
        path.write_text(path.read_text() + "Free for all.\n")
        found = "\n".join(verify(damaged).findings)
        assert f"{name} does not have the digest" in found
        assert f"{name} does not say what the tables give" in found
        path.unlink()
        assert f"{name} is missing" in "\n".join(verify(damaged).findings)

    @pytest.mark.parametrize("version", [0, CARD_VERSION + 1, "1", None])
    def test_a_version_that_nobody_knows_is_found(self, damaged, version):
        path = Path(damaged.url) / "dataset.json"
        found = json.loads(path.read_text())
        found["versions"]["card"] = version
        path.write_text(json.dumps(found))
        assert "the data card has the version" in "\n".join(verify(damaged).findings)


def test_reshard_writes_the_card_of_what_is_left(pipeline, tmp_path):
    from medvar_data.shard.reshard import ReshardSpec, reshard
    from medvar_data.storage.store import Store

    store = Store(str(tmp_path / "part"))
    reshard(pipeline.store, store, ReshardSpec(where="collection = 'acdc'"), 1, lambda _: None)
    card = store.read(CARD_FILE).decode()
    assert "| acdc | MR | heart |" in card
    assert "because of acdc" in card
    assert "chaos" not in store.read(CITATION_FILE).decode()
    assert verify(store).findings == ()
