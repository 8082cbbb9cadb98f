"""Images of any model: read from folders and tables, scored as a run's samples are, held to a gate, compared over settings."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.runs import PROCESS, run, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnknownCondition
from medvar_model.evaluation import extractors
from medvar_model.evaluation.comparison import FLOOR, Grouped, compare, same_mix
from medvar_model.evaluation.extractors import hand64, inception
from medvar_model.evaluation.gate import failures, read_gate
from medvar_model.evaluation.grid import Grid, try_settings
from medvar_model.evaluation.images import ScoreImages, score_images
from medvar_model.evaluation.metrics import SETS
from medvar_model.evaluation.outputs import latex
from medvar_model.evaluation.page import images_section
from medvar_model.evaluation.scores import Labelled
from medvar_model.loader import DataSpec, Loader
from medvar_model.sampling.sample import to_uint8

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("images") / "S", {"train": 150, "val": 90, "test": 60})


def split(shards, name):
    loader = Loader(DataSpec(str(shards), workers=0), name, 32, 200, 0, PROCESS)
    (part,) = loader.passes(999)
    names = {row: name for name, row in loader.conditions.items()}
    return to_uint8(part.images).numpy(), [names[row] for row in part.conditions.tolist()]


def write_folder(root, images, conditions):
    for i, (image, name) in enumerate(zip(images, conditions, strict=True)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return root


@pytest.fixture(scope="module")
def spec(shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    images, names = split(shards, "test")
    folder = write_folder(root / "drawn", 255 - images, names)  # negatives: far from real
    data = DataSpec(str(shards), workers=0)
    return ScoreImages(str(root / "out"), data, str(folder), features=("hand64",), replicates=4)


@pytest.fixture(scope="module")
def result(spec):
    return score_images(spec, CPU)


def value(report, metric, candidate, cell="all"):
    (found,) = [
        s
        for s in report["distribution"]["scores"]
        if (s["metric"], s["candidate"], s["cell"]) == (metric, candidate, cell)
    ]
    return found


def test_the_report_holds_every_metric_cell_and_the_floor(result):
    report = result.report
    cells = {score["cell"] for score in report["distribution"]["scores"]}
    assert cells == {"all", "chest ct", "chest mr"}
    assert value(report, "kid_hand64", "samples")["value"] > 5 * abs(value(report, "kid_hand64", FLOOR)["value"])
    assert value(report, "kid_hand64", "samples")["low"] > value(report, "kid_hand64", FLOOR)["high"]
    assert value(report, "fd_hand64", "samples")["value"] is None  # thirty of each: fewer than 130
    assert "needs 130 images" in value(report, "fd_hand64", "samples")["warning"]


def test_tables_hold_what_the_report_holds(result):
    rows = pq.read_table(result.out / "metrics.parquet").to_pylist()
    assert rows == result.report["distribution"]["scores"]
    text = (result.out / "metrics.tex").read_text()
    assert text == latex(rows)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert r"kid\_hand64 $\downarrow$" in text
    assert len(pq.read_table(result.out / "samples.parquet")) == 60


def test_the_page_points_to_pictures_that_exist(result):
    html = images_section(result.report, "pictures")
    pointed = {part.split('"')[0] for part in html.split('src="pictures/')[1:]}
    assert pointed == {"closest.png", "cells-kid_hand64.png"}
    assert all((result.out / "pictures" / name).stat().st_size for name in pointed)


def test_a_table_of_files_gives_the_same_report_as_sub_folders(spec, result, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    with (folder / "images.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["file", "condition"])
        for path in sorted((tmp_path / spec.images).glob("*/*.png")):
            (folder / path.name).write_bytes(path.read_bytes())
            rows.writerow([path.name, path.parent.name])
    again = score_images(replace(spec, images=str(folder), out=str(tmp_path / "out")), CPU).report
    for part in ("distribution", "copies", "conditions"):
        assert again[part] == result.report[part]
    assert again["inputs"]["images"] != result.report["inputs"]["images"]


def test_training_slices_are_called_copies_and_larger_images_are_shrunk(spec, shards, tmp_path):
    images, names = split(shards, "train")
    twice = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    folder = write_folder(tmp_path / "copied", twice[:40], names[:40])
    report = score_images(replace(spec, images=str(folder), out=str(tmp_path / "out")), CPU).report
    assert report["copies"]["closer"]["share"] == 1


def test_folders_that_cannot_be_scored_are_refused_in_a_sentence(spec, tmp_path):
    with pytest.raises(MissingCheckpoint, match="holds no images"):
        score_images(replace(spec, images=str(tmp_path)), CPU)
    write_folder(tmp_path / "other", np.zeros((1, 32, 32), np.uint8), ["delta-ct"])
    with pytest.raises(UnknownCondition, match="'delta-ct'"):
        score_images(replace(spec, images=str(tmp_path / "other")), CPU)
    (tmp_path / "images.csv").write_text("file,condition\n../x.png,alpha-ct\n")
    with pytest.raises(ConfigMismatch, match="below the folder"):
        score_images(replace(spec, images=str(tmp_path)), CPU)


def inception_on_hand64(monkeypatch):
    """Stand in for Inception: its names, and features that need no weights."""
    named = replace(hand64(), name="inception", metrics=inception.METRICS)
    monkeypatch.setitem(extractors.EXTRACTORS, "inception", lambda device, given: named)


def test_only_inceptions_distance_is_called_fid(spec, result, tmp_path, monkeypatch):
    inception_on_hand64(monkeypatch)
    again = score_images(replace(spec, features=("inception", "radiomics"), out=str(tmp_path)), CPU)
    metrics = again.report["distribution"]["metrics"]
    assert {"fid", "fid_inf", "kid_inception", "coverage_inception", "frd_style"} <= set(metrics)
    assert "fd_inception" not in metrics
    assert metrics["kid_inception"]["samples"] == result.report["distribution"]["metrics"]["kid_hand64"]["samples"]
    assert (tmp_path / "pictures" / "cells-kid_inception.png").stat().st_size
    assert "but for fid, on as many images of the same slices" in images_section(again.report, "pictures")
    assert "but for fid" not in images_section(result.report, "pictures")


class TestComparison:
    def test_all_sets_are_cut_to_one_mix(self):
        kept = same_mix({"a": ["x"] * 5 + ["y"] * 2, "b": ["y"] * 3 + ["x"] * 4 + ["z"]})
        assert kept["a"] == [0, 4, 5, 6]
        assert [("y" if i < 3 else "x") for i in kept["b"]] == ["x"] * 3 + ["y"] * 3

    def test_few_patients_are_warned_of_and_get_no_interval(self):
        images = np.random.default_rng(0).integers(0, 256, (80, 16, 16)).astype(np.uint8)
        part = Labelled(images[:40], ("c",) * 40)
        reference = Grouped(part, tuple(str(i // 8) for i in range(40)))  # five patients
        scores = compare(
            reference, {"samples": Grouped.drawn(Labelled(images[40:], ("c",) * 40))}, [hand64()], {"c": "chest ct"}
        )
        (kid,) = [score for score in scores if score.metric == "kid_hand64"]
        assert kid.low is None
        assert (kid.patients, kid.n_reference) == (5, 40)
        assert "5 patients, wanted 10" in kid.warning


class TestGate:
    def gate(self, tmp_path, text):
        (tmp_path / "gate.toml").write_text(text)
        return read_gate(tmp_path / "gate.toml")

    def test_bounds_that_are_kept_say_nothing(self, result, tmp_path):
        gate = self.gate(
            tmp_path, "obeyed = 0.0\n[[bound]]\nmetric = 'kid_hand64'\nat_least = 0\n[copies]\nat_most = 1.0\n"
        )
        assert failures(gate, result.report) == []

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[[bound]]\nmetric = 'kid_hand64'\nat_most = 0.0", "kid_hand64 of samples (all) is"),
            ("[[bound]]\nmetric = 'kid_hand64'\ncell = 'chest mr'\ntimes_floor = 1.0", "(chest mr) is"),
            ("[[bound]]\nmetric = 'coverage_hand64'\nat_least = 0.99", "wanted at least 0.99"),
            ("[[bound]]\nmetric = 'fd_hand64'\nat_most = 9.0", "is not given: needs 130 images"),
            ("[obeyed_of]\nalpha-ct = 1.01", "alpha-ct: "),
            ("[copies]\nat_most = -0.1", "are closer to training slices"),
        ],
    )
    def test_each_that_is_not_says_so(self, result, tmp_path, text, said):
        missed = failures(self.gate(tmp_path, f"obeyed = 0.0\n{text}"), result.report)
        assert len(missed) == 1
        assert said in missed[0]

    @pytest.mark.parametrize(
        "text",
        [
            "obeyed = ",
            "obeid = 0.5",
            "[[bound]]\nmetric = 'x'",
            "[[bound]]\nmetric = 'x'\nat_mots = 1",
            "obeyed = 'much'",
            "bound = 3",
        ],
    )
    def test_what_is_no_gate_is_refused(self, tmp_path, text):
        with pytest.raises(ConfigMismatch, match=r"docs/evaluation\.md"):
            self.gate(tmp_path, text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards):
    root = tmp_path_factory.mktemp("trained")
    run(tokenizer_spec(shards, root / "tok", validate_every=0))
    run(transformer_spec(shards, root / "var", root / "tok", validate_every=0))
    return root / "var"


def test_efficiency_weighs_fid_with_the_seconds(tmp_path, shards, trained, monkeypatch):
    inception_on_hand64(monkeypatch)
    monkeypatch.setitem(SETS, "fd", replace(SETS["fd"], minimum=20))
    data = DataSpec(str(shards), workers=0)
    spec = Grid(str(tmp_path), data, str(trained), (0.0,), (0,), (0.9,), 12, features="inception")
    drawn, real = try_settings(spec, CPU)
    assert drawn["efficiency"] == pytest.approx(drawn["fid"] * np.log10(1 + drawn["seconds"]) ** 0.1)
    assert real["fid"] < drawn["fid"]
    assert real["efficiency"] is None


def test_a_grid_scores_every_combination_and_draws_each_once(tmp_path, shards, trained):
    data = DataSpec(str(shards), workers=0)
    spec = Grid(str(tmp_path / "grid"), data, str(trained), (0.0, 1.0), (0, 5), (0.9,), 12, features="hand64")
    rows = try_settings(spec, CPU)
    assert [(row["guidance"], row["top_k"]) for row in rows[:-1]] == [(0.0, 0), (0.0, 5), (1.0, 0), (1.0, 5)]
    assert rows[-1]["guidance"] is None
    assert all(row["kid_hand64"] is not None and row["seconds"] > 0 for row in rows[:-1])
    assert abs(rows[-1]["kid_hand64"]) < rows[0]["kid_hand64"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "grid" / "samples").rglob("*.png")}
    assert len(kept) == 4 * (3 * 12 + 1)
    assert try_settings(spec, CPU) == rows
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    said = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert said["rows"] == rows
    assert said["inputs"]["count"] == 12
    assert (tmp_path / "grid" / "grid.png").stat().st_size
    assert (tmp_path / "grid" / "grid.tex").read_text().count(r"\\") == 6
