"""croissant.json: mlcroissant finds nothing wrong with it and loads the set by it; it says nothing that is not the set's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.builders import pairs_toml
from support.shard_sets import rows_of

from medvar_data.audit.verify import verify
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.card import DOCUMENTS
from medvar_data.shard.croissant import CONTEXT, croissant_bytes
from medvar_data.shard.datasheet import Origin, contents_of
from medvar_data.shard.run import write_shards
from medvar_data.shardset.dataset import codec_of, read_dataset, read_pair
from medvar_data.shardset.schema import TABLES
from medvar_data.storage.codec import CODECS
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

mlcroissant = pytest.importorskip("mlcroissant")
pytestmark = [
    pytest.mark.usefixtures("croissant_cache"),
    # mlcroissant leaves the files open that it reads, and calls rdflib and pandas by older names.
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning",
        "ignore:ConjunctiveGraph:DeprecationWarning", "ignore:The inplace keyword",
    ),
]  # fmt: skip


def opened(store: Store) -> "mlcroissant.Dataset":
    """The set as mlcroissant sees it; nothing about it may be wrong or missing."""
    dataset = mlcroissant.Dataset(jsonld=Path(store.url) / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert (issues.errors, issues.warnings) == (set(), set())
    return dataset


def document(store: Store) -> dict:
    return json.loads(store.read("croissant.json"))


def plain(value: object) -> object:
    """A value of mlcroissant's as PyArrow would give it: text for bytes, pairs for records of label and value, structs for other records."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        named = {key.rpartition("/")[2]: plain(part) for key, part in value.items()}
        return tuple(named.values()) if set(named) == {"label", "value"} else named
    return [plain(part) for part in value] if isinstance(value, list) else value


class TestLoading:
    @pytest.mark.parametrize("table", TABLES)
    def test_every_table_with_all_its_columns(self, pipeline, table):
        name = table.removesuffix(".parquet")
        found = [
            {key.removeprefix(f"{name}/"): plain(value) for key, value in record.items()}
            for record in opened(pipeline.store).records(name)
        ]
        assert found == rows_of(pipeline.shards, table)
        assert found or table == "edges.parquet"  # no scan is there twice

    @pytest.mark.parametrize(("records", "member"), [("images", 0), ("masks", 1)])
    def test_pictures_by_key(self, pipeline, records, member):
        wanted = {r["key"]: r for r in rows_of(pipeline.shards, "slices.parquet")}
        codec = codec_of(pipeline.store)
        for record in opened(pipeline.store).records(records):
            row = wanted.pop(record[f"{records}/key"].decode())
            ours = read_pair(pipeline.store, row, codec)[member]
            np.testing.assert_array_equal(np.asarray(record[f"{records}/content"]), ours)
        assert not wanted

    @pytest.mark.parametrize(("records", "digest"), [("images", "image"), ("masks", "mask")])
    def test_codec_zstd_gives_the_bytes_of_its_members(self, zstd_set, records, digest):
        wanted = {r["key"]: r for r in rows_of(Path(zstd_set.url), "slices.parquet")}
        for record in opened(zstd_set).records(records):
            row = wanted.pop(record[f"{records}/key"].decode())
            data, start = zstd_set.read(row["shard"]), row[f"{digest}_offset"]
            assert record[f"{records}/content"] == data[start : start + row[f"{digest}_size"]]
            CODECS["zstd"].decode(record[f"{records}/content"])
        assert not wanted

    def test_a_shard_that_was_altered_is_refused(self, damaged):
        path = Path(damaged.url) / "train-000000.tar"
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
        with pytest.raises(mlcroissant.GenerationError) as refused:
            list(opened(damaged).records("images"))
        assert "train-000000.tar is not identical" in str(refused.value.__cause__)

    def test_an_empty_set(self, pipeline, tmp_path):
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "a_image.nii.gz").write_bytes(b"no image")
        (tmp_path / "own.toml").write_text(pairs_toml())
        workspace, store = Workspace(tmp_path / "work"), Store(str(tmp_path / "s"))
        list(run_ingest({str(tmp_path / "own.toml"): tmp_path / "own"}, workspace))
        run_harmonize(workspace, pipeline.recipe, 1, lambda _: None)
        write_shards(workspace, store, pipeline.spec, 1, lambda _: None)
        dataset = mlcroissant.Dataset(jsonld=tmp_path / "s" / "croissant.json")
        assert not dataset.metadata.ctx.issues.errors
        assert [record["rejects/reason"] for record in dataset.records("rejects")] == [b"not_an_image"]
        assert verify(store).findings == ()


class TestContent:
    def test_every_file_with_digest_and_size(self, pipeline):
        files = {f["name"]: f for f in document(pipeline.store)["distribution"] if f["@type"] == "cr:FileObject"}
        dataset = read_dataset(pipeline.store)
        shards = {s.name: s.sha256 for split in dataset.splits.values() for s in split.shards}
        assert {name: file["sha256"] for name, file in files.items()} == {
            **shards,
            **dataset.tables,
            **dataset.documents,
        }
        formats = {
            "tar": "application/x-tar",
            "parquet": "application/x-parquet",
            "md": "text/markdown",
            "bib": "application/x-bibtex",
        }
        for name, file in files.items():
            assert file["contentSize"] == f"{(pipeline.shards / name).stat().st_size} B"
            assert file["contentUrl"] == name
            assert file["encodingFormat"] == formats[name.rpartition(".")[2]]

    def test_every_column_is_described_as_the_table_describes_it(self, pipeline):
        sets = {records["@id"]: records["field"] for records in document(pipeline.store)["recordSet"]}
        for name, columns in TABLES.items():
            fields = sets[name.removesuffix(".parquet")]
            assert [f["name"] for f in fields] == [column.name for column in columns]
            assert all(f["description"].startswith(c.meaning) for f, c in zip(fields, columns, strict=True))

    def test_collections_with_licence_citation_and_terms(self, pipeline):
        found = document(pipeline.store)
        based = {source["alternateName"]: source for source in found["isBasedOn"]}
        assert set(based) == {"acdc", "chaos", "msd-brain-tumour", "own"}
        assert based["acdc"]["identifier"] == "https://doi.org/10.1109/TMI.2018.2837502"
        assert based["own"]["license"] == "not stated (unconfirmed)"
        assert {licence["name"] for licence in found["license"]} == {
            "CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0 (unconfirmed)", "CC-BY-SA-4.0", "not stated (unconfirmed)",
        }  # fmt: skip
        assert "Bernard O, Lalande A" in found["citeAs"]
        assert "acdc: CC-BY-NC-SA-4.0 (unconfirmed); commercial no, derivatives yes" in found["usageInfo"]

    def test_counts_are_those_of_the_tables(self, pipeline):
        found = document(pipeline.store)
        slices = rows_of(pipeline.shards, "slices.parquet")
        for split in ("train", "val", "test"):
            assert f"{sum(r['split'] == split for r in slices)} {split}" in found["description"]
        assert "1 scan found and left out" in found["rai:dataCollectionMissingData"]
        assert "25 of 26 scans with an annotation" in found["rai:dataCollectionMissingData"]
        assert "acdc, MR of the heart: 10 scans of 5 patients, 50 slices." in found["rai:dataBiases"]
        assert "chaos, CT of the abdomen: 1 scan of 1 patient, 6 slices." in found["rai:dataBiases"]

    def test_responsible_use_is_known_to_mlcroissant(self, pipeline):
        known = opened(pipeline.store).metadata
        for name in (
            "data_collection", "data_collection_type", "data_collection_raw_data", "data_collection_missing_data",
            "data_preprocessing_protocol", "data_annotation_protocol", "data_limitations", "data_biases", "data_use_cases",
            "personal_sensitive_information", "data_release_maintenance_plan",
        ):  # fmt: skip
            assert getattr(known, name), name

    def test_nothing_private(self, pipeline):
        text = pipeline.store.read("croissant.json").decode()
        salt = pipeline.workspace.salt_digest()
        patients = {row["patient"] for row in rows_of(pipeline.shards, "cases.parquet")}
        groups = {case.group for name in pipeline.workspace.collections() for case in pipeline.workspace.cases(name)}
        for secret in (
            str(pipeline.workspace.path),
            str(pipeline.shards),
            salt,
            *patients,
            *(g for g in groups if len(g) > 3),
        ):
            assert secret not in text

    def test_the_context_is_the_one_of_the_specification(self, pipeline, caplog):
        opened(pipeline.store)
        assert "not standard" not in caplog.text
        found = document(pipeline.store)
        assert found["@context"].pop("samplingRate") == CONTEXT["samplingRate"]
        mlcroissant.Dataset(jsonld=found)
        assert "not standard" in caplog.text

    def test_bytes_depend_on_what_is_given_alone(self, pipeline):
        dataset = read_dataset(pipeline.store)
        cases = pq.read_table(pipeline.shards / "cases.parquet")
        sizes = {name: (pipeline.shards / name).stat().st_size for name in (*TABLES, *DOCUMENTS)}
        origins = [Origin(name="a", title="A", license="CC0-1.0", license_confirmed=True)]
        first, again = (croissant_bytes(dataset, contents_of(cases, 3), sizes, origins) for _ in range(2))
        assert first == again
        backwards = cases.take(list(range(cases.num_rows))[::-1])
        assert croissant_bytes(dataset, contents_of(backwards, 3), sizes, origins) == first
        other = replace(dataset, digest="f" * 64)
        assert croissant_bytes(other, contents_of(cases, 3), sizes, origins) != first


class TestVerify:
    def findings(self, store: Store, change) -> str:
        found = document(store)
        change(found)
        (Path(store.url) / "croissant.json").write_text(json.dumps(found))
        return "\n".join(verify(store).findings)

    def test_a_publishers_words_are_their_own(self, damaged):
        change = {"name": "our-slices", "url": "https://example.org/ours", "datePublished": "2030-01-01"}
        assert self.findings(damaged, lambda found: found.update(change)) == ""

    def test_another_digest(self, damaged):
        def change(found):
            found["distribution"][0]["sha256"] = "0" * 64

        assert "gives slices.parquet another digest than dataset.json" in self.findings(damaged, change)

    def test_a_file_too_few_and_one_too_many(self, damaged):
        def change(found):
            found["distribution"] = [f for f in found["distribution"] if f["name"] != "val-000000.tar"]
            found["distribution"].append({"name": "val-000099.tar", "sha256": "0" * 64})

        found = self.findings(damaged, change)
        assert "does not list val-000000.tar" in found
        assert "lists val-000099.tar, which dataset.json does not" in found

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"distribution": 3}', b"\xff"])
    def test_damage_is_a_finding(self, damaged, content):
        (Path(damaged.url) / "croissant.json").write_bytes(content)
        assert "croissant.json is damaged" in "\n".join(verify(damaged).findings)

    def test_a_lost_file_is_a_finding(self, damaged):
        (Path(damaged.url) / "croissant.json").unlink()
        assert "croissant.json is missing" in "\n".join(verify(damaged).findings)


def test_an_earlier_sets_description_does_not_stay(pipeline, tmp_path):
    """A set written over an unfinished one describes itself."""
    shutil.copytree(pipeline.shards, tmp_path / "set")
    (tmp_path / "set" / "croissant.json").write_text("{}")
    write_shards(pipeline.workspace, Store(str(tmp_path / "set")), pipeline.spec, 1, lambda _: None)
    assert (tmp_path / "set" / "croissant.json").read_bytes() == pipeline.store.read("croissant.json")
