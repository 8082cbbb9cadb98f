"""Shard sets as they lie, through the tools that people have: tar, webdataset, Hugging Face datasets, pandas, polars, DuckDB.

`TestRules` holds what we write to the rules whose breach makes Hugging Face's loader lose or change values without a word.
"""

import gc
import json
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
import webdataset
from support.builders import nifti_bytes, pairs_toml, scan, spaced, write_files
from support.shard_sets import rows_of

from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.schema import SLICE_COLUMNS
from medvar_data.shardset.schema import TABLES as SET_TABLES
from medvar_data.storage.codec import CODECS, PNG, pixel_digest
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

FIRST = 5  # samples that Hugging Face's loader looks at
IN_SAMPLE = [column.name for column in SLICE_COLUMNS if column.in_sample]
TABLES = ["slices.parquet", "cases.parquet"]


def seed_that_begins_with(keys: list[str], begin: str) -> int:
    """A seed of the order of slices under which the samples that loaders look at are those of one case."""
    return next(
        seed
        for seed in range(100_000)
        if all(
            key.startswith(begin)
            for key in sorted(keys, key=lambda key: sha256(f"{seed}/{key}".encode()).digest())[: FIRST + 1]
        )
    )


@pytest.fixture(scope="session")
def late(pipeline, tmp_path_factory) -> Path:
    """A set that shows its variety late: first slices of a case without label and with spacings of whole millimetres."""
    folder = tmp_path_factory.mktemp("late")
    (image, _), (labelled, label) = scan((20, 18, 8), 1), scan((20, 18, 8), 2)
    members = {
        "a_image.nii.gz": nifti_bytes(image, spaced(1, 1, 3)),
        "b_image.nii.gz": nifti_bytes(labelled, spaced(0.7, 0.8, 2.5)),
        "b_label.nii.gz": nifti_bytes((label > 0).astype("u1"), spaced(0.7, 0.8, 2.5)),
    }
    write_files(folder / "own", members)
    (folder / "own.toml").write_text(pairs_toml(top='case_names = "published"\n'))
    workspace = Workspace(folder / "work")
    workspace.set_salt(bytes(32))
    list(run_ingest({str(folder / "own.toml"): folder / "own"}, workspace))
    run_harmonize(workspace, pipeline.recipe, 1, lambda _: None)
    keys = [f"own-{case}-z{z:04d}" for case in "ab" for z in range(8)]
    spec = replace(
        pipeline.spec,
        split=SplitSpec(val=0.0, test=0.0),
        slices_per_shard=100,
        seed=seed_that_begins_with(keys, "own-a-"),
    )
    write_shards(workspace, Store(str(folder / "shards")), spec, 1, lambda _: None)
    return folder / "shards"


@pytest.fixture(params=["png", "zstd", "late"])
def some_set(request, pipeline) -> Path:
    if request.param == "late":
        return request.getfixturevalue("late")
    return pipeline.shards if request.param == "png" else Path(request.getfixturevalue("zstd_set").url)


def samples_of(shard: Path) -> dict[str, dict[str, bytes]]:
    """Samples of a tar by key, grouped as webdataset and Hugging Face group: a key ends at the name's first dot."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
    return samples


def notes_of(folder: Path) -> Iterator[dict]:
    """JSON of every sample, in order."""
    for shard in sorted(folder.glob("*.tar")):
        yield from (json.loads(sample["json"]) for sample in samples_of(shard).values())


class TestRules:
    def test_the_late_set_is_what_it_is_for(self, late):
        rows = rows_of(late, "slices.parquet")
        assert [row["has_label"] for row in rows[: FIRST + 1]] == [False] * (FIRST + 1)
        assert {row["has_label"] for row in rows} == {True, False}
        spacings = [row["spacing_row_mm"] for row in rows]
        assert all(value == round(value) for value in spacings[: FIRST + 1])
        assert any(value != round(value) for value in spacings)

    def test_every_sample_has_the_same_members_from_the_first_on(self, some_set):
        kinds = {tuple(sample) for shard in some_set.glob("*.tar") for sample in samples_of(shard).values()}
        assert len(kinds) == 1
        suffix = "mvz" if next(iter(kinds))[0] == "mvz" else "png"
        assert kinds == {(suffix, f"mask.{suffix}", "json")}

    def test_json_has_the_same_keys_in_every_sample(self, some_set):
        assert {tuple(note) for note in notes_of(some_set)} == {tuple(sorted(IN_SAMPLE))}

    def test_every_key_of_json_has_one_type(self, some_set):
        """A float that begins as a whole number would make its column one of integers, and 1.5 would become 1."""
        types = {json.dumps({k: type(v).__name__ for k, v in note.items()}) for note in notes_of(some_set)}
        assert len(types) == 1
        found = json.loads(types.pop())
        wanted = {"string": "str", "double": "float", "int32": "int", "bool": "bool"}
        assert found == {column.name: wanted[str(column.type)] for column in SLICE_COLUMNS if column.in_sample}

    def test_no_nulls_and_nothing_nested(self, some_set):
        assert all(type(value) in (str, int, float, bool) for note in notes_of(some_set) for value in note.values())

    def test_keys_have_no_dots_and_names_are_lower_case(self, some_set):
        samples = [sample for shard in some_set.glob("*.tar") for sample in samples_of(shard).items()]
        names = [f"{key}.{ending}" for key, members in samples for ending in members]
        keys = {row["key"] for row in rows_of(some_set, "slices.parquet")}
        assert {key for key, _ in samples} == keys
        assert not any("." in key or "/" in key for key in keys)
        assert all(name == name.lower() for name in [*names, *IN_SAMPLE])
        assert not any("." in name for name in IN_SAMPLE)

    def test_json_says_what_the_row_says(self, some_set):
        rows = {row["key"]: row for row in rows_of(some_set, "slices.parquet")}
        notes = list(notes_of(some_set))
        assert len(notes) == len(rows) > FIRST
        assert all(note == {name: rows[note["key"]][name] for name in IN_SAMPLE} for note in notes)


@pytest.mark.filterwarnings("ignore")  # of the loader
class TestHuggingFace:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_every_value_of_every_sample(self, hugging_face, some_set, streaming):
        splits = {path.name.split("-")[0] for path in some_set.glob("*.tar")}
        files = {split: [str(p) for p in sorted(some_set.glob(f"{split}-*.tar"))] for split in splits}
        loaded = hugging_face.load_dataset("webdataset", data_files=files, streaming=streaming)
        rows = {row["key"]: row for row in rows_of(some_set, "slices.parquet")}
        for split in splits:
            for sample in loaded[split]:
                row = rows.pop(sample["__key__"])
                assert row["split"] == split
                assert sample["json"] == {name: row[name] for name in IN_SAMPLE}
                assert all(type(sample["json"][name]) is type(row[name]) for name in IN_SAMPLE)
                for ending, digest in (("", "image_sha256"), ("mask.", "mask_sha256")):
                    assert pixel_digest(self.pixels(sample, ending)) == row[digest]
        assert not rows

    def pixels(self, sample: dict, ending: str) -> np.ndarray:
        """Decoded by the loader where it knows the format, else by our reader."""
        if f"{ending}png" in sample:
            return np.asarray(sample[f"{ending}png"])
        return CODECS["zstd"].decode(sample[f"{ending}mvz"])

    def test_tables_without_their_maps(self, hugging_face, some_set):
        """Its Parquet reader knows no maps; every other column comes through pandas."""
        for name in TABLES:
            rows = rows_of(some_set, name)
            maps = [column.name for column in SET_TABLES[name] if pa.types.is_map(column.type)]
            loaded = hugging_face.Dataset.from_pandas(pandas.read_parquet(some_set / name).drop(columns=maps))
            assert list(loaded) == [{k: v for k, v in row.items() if k not in maps} for row in rows]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset(some_set):
    urls = [str(p) for p in sorted(some_set.glob("*.tar"))]
    rows = {row["key"]: row for row in rows_of(some_set, "slices.parquet")}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        row = rows.pop(sample["__key__"])
        codec = PNG if "png" in sample else CODECS["zstd"]
        members = (codec.suffix, f"mask.{codec.suffix}", "json")
        assert tuple(k for k in sample if not k.startswith("__")) == members
        assert pixel_digest(codec.decode(sample[members[0]])) == row["image_sha256"]
        assert pixel_digest(codec.decode(sample[members[1]])) == row["mask_sha256"]
        assert json.loads(sample["json"]) == {name: row[name] for name in IN_SAMPLE}
    assert not rows
    gc.collect()  # webdataset leaves files open


def test_tar_unpacks_a_set_into_files(some_set, tmp_path):
    for shard in some_set.glob("*.tar"):
        subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
    codec = PNG if list(tmp_path.glob("*.png")) else CODECS["zstd"]
    rows = rows_of(some_set, "slices.parquet")
    assert len(os.listdir(tmp_path)) == 3 * len(rows)
    for row in rows:
        image = (tmp_path / f"{row['key']}.{codec.suffix}").read_bytes()
        assert pixel_digest(codec.decode(image)) == row["image_sha256"]


class TestTables:
    """Equal counts and equal maps and lists from three readers of Parquet."""

    @pytest.mark.parametrize("table", TABLES)
    def test_every_value_of_every_column(self, some_set, table):
        path = some_set / table
        wanted = [self.plain(row) for row in rows_of(some_set, table)]
        assert [self.plain(row) for row in pandas.read_parquet(path).to_dict("records")] == wanted
        assert [self.plain(row) for row in polars.read_parquet(path).to_dicts()] == wanted
        found = duckdb.sql(f"SELECT * FROM '{path}'")
        assert [self.plain(dict(zip(found.columns, row, strict=True))) for row in found.fetchall()] == wanted

    def plain(self, row: dict) -> dict:
        """Maps as dictionaries, lists and arrays as lists, empty ones of either kind as None."""
        return {name: self.plain_value(value) for name, value in row.items()}

    def plain_value(self, value: object) -> object:
        if isinstance(value, dict):
            return value or None
        if not isinstance(value, list | tuple | np.ndarray):
            return value
        parts = [part.item() if isinstance(part, np.generic) else part for part in value]
        if parts and isinstance(parts[0], dict):  # polars before it had maps
            return {part["key"]: part["value"] for part in parts}
        return (dict(parts) if parts and isinstance(parts[0], tuple) else parts) or None

    def test_counts_by_condition(self, pipeline):
        path = pipeline.shards / "slices.parquet"
        wanted = Counter(row["condition"] for row in rows_of(pipeline.shards, "slices.parquet"))
        assert pandas.read_parquet(path)["condition"].value_counts().to_dict() == wanted
        assert dict(polars.read_parquet(path).group_by("condition").len().rows()) == wanted
        assert dict(duckdb.sql(f"SELECT condition, count(*) FROM '{path}' GROUP BY ALL").fetchall()) == wanted

    def test_a_map_is_asked_by_label_in_sql(self, pipeline):
        wanted = sum(dict(row["label_pixels"]).get(1, 0) for row in rows_of(pipeline.shards, "slices.parquet"))
        path = pipeline.shards / "slices.parquet"
        assert duckdb.sql(f"SELECT sum(label_pixels[1]) FROM '{path}'").fetchall() == [(wanted,)]
        assert wanted > 0
