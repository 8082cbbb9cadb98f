"""collections.parquet repeats what the descriptions say, in words that can be shown."""

from support.builders import pairs_toml
from support.runs_of_shards import rows_of

from medvar_data.catalog.load import load_collection, parse_collection
from medvar_data.records import LayoutCount
from medvar_data.shard.collections import collection_row
from medvar_data.shardset.schema import TERMS

SAME = (
    "title", "region", "modality", "homepage", "doi", "citation", "license", "license_url", "license_confirmed", "license_evidence",
    "license_read", "license_conflict", "n_expected", *TERMS,
)  # fmt: skip


def test_the_rows_are_those_of_the_descriptions(pipeline):
    rows = {row["collection"]: row for row in rows_of(pipeline.shards, "collections.parquet")}
    assert set(rows) == {"acdc", "chaos", "msd-brain-tumour", "own"}
    for name in ("acdc", "chaos", "msd-brain-tumour"):
        spec, row = load_collection(name), rows[name]
        assert {column: row[column] for column in SAME} == {column: getattr(spec, column) for column in SAME}
        assert dict(row["labels"]).keys() == {label.id for label in spec.labels}
        assert [o["collection"] for o in row["overlaps"]] == [o.collection for o in spec.overlaps]
        assert {o["layout"]: o["found"] for o in row["layouts"]} == {
            c.layout: c.found for c in pipeline.workspace.counts(name)
        }
        assert row["collection_sha256"] == spec.digest
    assert dict(rows["acdc"]["labels"]) == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    assert dict(rows["own"]["labels"]) == {1: "one", 2: "two"}
    assert (rows["own"]["n_found"], rows["own"]["n_kept"], rows["own"]["n_rejected"]) == (4, 3, 1)


def test_licences_agree_with_those_of_the_cases(pipeline):
    licenses = {row["collection"]: row["license"] for row in rows_of(pipeline.shards, "collections.parquet")}
    assert {(c["collection"], c["license"]) for c in rows_of(pipeline.shards, "cases.parquet")} == set(licenses.items())


def test_texts_can_be_shown():
    text = (
        pairs_toml().replace('"one"', '"on\\u001b[31me\\u202e"').replace('"Pairs of files"', '"Pairs\\u0007 of files"')
    )
    row = collection_row(parse_collection(text, "own", own=True), [LayoutCount("pairs", 3, 0, 1)])
    assert dict(row["labels"])[1] == "on[31me"
    assert row["title"] == "Pairs of files"
    assert row["layouts"] == [{"layout": "pairs", "found": 3, "expected": 0, "unlabelled": 1}]
