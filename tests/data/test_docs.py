"""The documentation is true: tables are current, commands exist, examples run."""

import gc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.builders import nifti_bytes, scan, spaced, write_files
from support.dicom_files import slices, structure_set, volume
from support.shard_sets import rows_of
from typer.main import get_command

from medvar_data.catalog.load import load_conditions, parse_collection
from medvar_data.errors import Reason
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.shardset.schema import COLLECTION_COLUMNS
from medvar_data.sources.tree import open_tree
from medvar_data.storage.codec import PNG, pixel_digest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_generated_tables_are_current():
    result = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_reason_has_its_meaning():
    part = (ROOT / "docs/formats.md").read_text(encoding="utf-8").split("\n## Reasons\n")[1].split("\n## ")[0]
    meanings = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", part, re.MULTILINE))
    assert set(meanings) == {reason.value for reason in Reason}


def test_when_a_licence_was_read_is_described_as_a_month_or_a_day():
    read = next(column for column in COLLECTION_COLUMNS if column.name == "license_read")
    assert ("month" in read.meaning, "day" in read.meaning) == (True, True)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page):
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] not in (["medvar-data"], ["medvar-model"]):
            continue
        if words[0] == "medvar-model":
            pytest.importorskip("torch")
            from medvar_cli.model_commands import app
        else:
            from medvar_cli.data_commands import app
        command = get_command(app)
        rest = words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        assert not getattr(command, "commands", {}), f"no command in: {line}"
        known = {name for parameter in command.params for name in parameter.opts}
        assert {w.split("=")[0] for w in rest if w.startswith("-")} <= known, line


def test_own_data_example_ingests(tmp_path):
    toml, _ = blocks("docs/own-data.md", "toml")
    image, label = scan((20, 18, 6))
    write_files(
        tmp_path / "images",
        {"a_t1.nii.gz": nifti_bytes(image, spaced(1, 1, 3)), "a_t2.nii.gz": nifti_bytes(image, spaced(1, 1, 3))},
    )
    write_files(tmp_path / "labels", {"a.nii.gz": nifti_bytes((label > 0).astype("u1"), spaced(1, 1, 3))})
    spec = parse_collection(toml, "docs", own=True)
    found = ingest(spec, open_tree(tmp_path), b"salt")
    assert [len(found.cases), len(found.rejects)] == [2, 0]
    assert {case.sequence for case in found.cases} == {"t1", "t2"}
    assert all(case.label and case.condition not in load_conditions() for case in found.cases)


def test_own_data_example_of_a_dicom_cohort_ingests(tmp_path):
    """One folder with CT and MR of a patient, a structure set and a computed map, as the page describes it."""
    _, toml = blocks("docs/own-data.md", "toml")
    square = np.array([[2, 2, 2], [8, 2, 2], [8, 8, 2], [2, 8, 2]])
    files = slices(volume(4), series=1, modality="CT", prefix="a")
    files |= slices(volume(4), series=2, prefix="b", SeriesDescription="ax T2 SPIR")
    files |= slices(volume(4), series=3, prefix="c", ImageType=["DERIVED", "PRIMARY", "ADC"], ProtocolName="ep2d_ADC")
    files["s"] = structure_set({"Lung-Left": [square], "Spinal_Cord": [square], "GTV-1": [square]})
    spec = parse_collection(toml, "docs", own=True)
    found = ingest(spec, open_tree(write_files(tmp_path, files)), b"salt")
    assert {(case.layout, case.sequence, len(case.label)) for case in found.cases} == {
        ("ct", "", 1), ("mr", "T2 fat-saturated", 0), ("mr", "ADC", 0)
    }  # fmt: skip
    labelled = next(case for case in found.cases if case.label)
    assert set(np.unique(read_scan(labelled, spec).label.voxels)) == {0, 2}
    assert len({case.group for case in found.cases}) == 1


def run_blocks(codes: list[str], shards: Path, folder: Path) -> dict[str, Any]:
    """Run code of a page one block after the other, where `shards` lies beside it; gives what the names stand for."""
    (folder / "shards").symlink_to(shards)
    scope: dict[str, Any] = {}
    for code in codes:
        exec(code, scope)
    scope.pop("samples", None)
    gc.collect()  # the recipes' `break` leaves webdataset's file open until here
    return scope


@pytest.mark.filterwarnings("ignore")  # of the other readers
@pytest.mark.usefixtures("hugging_face", "croissant_cache")
class TestOtherReaders:
    """Every block of docs/other-readers.md, on a set with PNGs and, for the last, on one of codec zstd."""

    @pytest.fixture(autouse=True)
    def in_a_folder_of_its_own(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CROISSANT_CACHE", str(tmp_path))  # the page sets it too

    def holds_a_batch(self, scope: dict[str, Any], side: int) -> None:
        assert scope["images"].dtype == scope["masks"].dtype == np.uint8
        assert scope["images"].shape == scope["masks"].shape == (len(scope["conditions"]), side, side)
        assert scope["images"].any()
        assert scope["masks"].any()

    def test_python(self, pipeline, tmp_path):
        scope = run_blocks(blocks("docs/other-readers.md", "python")[:-1], pipeline.shards, tmp_path)
        slices, cases = (pq.read_table(pipeline.shards / f"{name}.parquet") for name in ("slices", "cases"))
        assert len(scope["table"]) == slices.num_rows
        assert len(scope["frame"]) == cases.num_rows
        assert sum(n for _, n, _ in scope["counts"]) == slices.num_rows
        assert pixel_digest(PNG.decode(scope["image"])) == scope["row"].image_sha256
        assert len(scope["rows"]) == slices.num_rows
        assert len(list(scope["slices"])) == slices.num_rows
        assert scope["picture"].size == (pipeline.recipe.side, pipeline.recipe.side)
        self.holds_a_batch(scope, pipeline.recipe.side)

    def test_webdataset_with_codec_zstd(self, pipeline, zstd_set, tmp_path):
        pictures = [code for code in blocks("docs/formats.md", "python") if "def read_mvz" in code]
        *_, usual, zstd = blocks("docs/other-readers.md", "python")
        imports = usual.partition("samples =")[0]
        scope = run_blocks([*pictures, imports, zstd], Path(zstd_set.url), tmp_path)
        self.holds_a_batch(scope, pipeline.recipe.side)

    def test_tar(self, pipeline, tmp_path):
        (tmp_path / "shards").symlink_to(pipeline.shards)
        for code in blocks("docs/other-readers.md", "sh"):
            subprocess.run(["bash", "-ec", code], cwd=tmp_path, check=True)
        keys = {path.name.partition(".")[0] for path in (tmp_path / "unpacked").iterdir()}
        assert keys == {
            row["key"] for row in rows_of(pipeline.shards, "slices.parquet") if row["shard"] == "train-000000.tar"
        }
