"""The report on codes: counts, rows for unseen patients and unseen collections, heat maps, pictures."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.runs import PROCESS, run, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_data.errors import SpecError
from medvar_model.checkpoints.checkpoint import load_tokenizer, read_checkpoint
from medvar_model.errors import ShardSetMismatch
from medvar_model.evaluation.codebook import CodeMeasures, measure_codes
from medvar_model.evaluation.codebook_plots import heat_map
from medvar_model.evaluation.codebook_report import CodebookReport, report_codebook, summary_rows
from medvar_model.loader import DataSpec, Loader
from medvar_model.networks.codebook import usage

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 24, "val": 7, "test": 6})


def without_beta(spec):
    return replace(spec, data=replace(spec.data, hold_out=("beta",)))


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tok"
    run(without_beta(tokenizer_spec(shards, out)))
    return out


def loader(shards, split="val"):
    return Loader(DataSpec(str(shards), workers=1), split, 32, 4, 0, PROCESS)


def test_measures_are_those_of_the_tokens_and_images(shards, tokenizer):
    network = load_tokenizer(tokenizer)
    one = measure_codes(network, loader(shards).passes(4))
    assert one.images == 7
    assert one.counts.sum(1).tolist() == [7 * n * n for n in (1, 2, 3, 4)]
    assert sum(int(hits.sum()) for hits in one.by_condition.values()) == 7 * 30
    images = torch.cat([part.images for part in loader(shards).passes(4)])
    last = network.decode(network.encode(images))
    error = (((last + 1) * 127.5).round() - (images + 1) * 127.5).square().mean((1, 2, 3))
    assert one.psnr[-1] == pytest.approx(float((10 * torch.log10(255**2 / error)).mean()), abs=0.05)
    assert one.residual[-1] < one.residual[0] < 1.5
    assert all(np.isnan(one.perceptual))


def test_joined_measures_are_those_of_all_slices(shards, tokenizer):
    network = load_tokenizer(tokenizer)
    parts = [measure_codes(network, loader(shards, split).passes(4)) for split in ("val", "test")]
    both = CodeMeasures.joined(parts)
    assert both.images == 13
    assert torch.equal(both.counts, parts[0].counts + parts[1].counts)
    assert both.psnr[-1] == pytest.approx((7 * parts[0].psnr[-1] + 6 * parts[1].psnr[-1]) / 13)
    assert len(both.shown[0]) == len(both.shown[1]) == 8


def test_a_code_counts_as_used_by_what_its_own_scale_expects():
    counts = torch.zeros(2, 100, dtype=torch.int64)
    counts[0, :50], counts[1, :] = 1, 100
    counts[1, 0] = 7  # below 8 % of the 99 that each is expected to have
    assert usage(counts).share == pytest.approx((0.5, 0.99))
    assert usage(counts).reachable == pytest.approx((0.5, 1.0))


def test_the_heat_map_of_4096_codes_is_64_by_64_in_units_of_uniform_use():
    assert heat_map(torch.ones(4096)).shape == (64, 64)
    assert np.nanmean(heat_map(torch.arange(4096))) == pytest.approx(1)
    grid = heat_map(torch.tensor([0, 3, 0]))
    assert grid[0, 1] == 3
    assert np.isnan(grid[1, 1])


@pytest.mark.slow
def test_the_report_has_a_row_for_unseen_patients_and_for_unseen_collections(shards, tokenizer, tmp_path):
    spec = CodebookReport(str(tmp_path / "out"), DataSpec(str(shards), workers=1), str(tokenizer), slices=0)
    report = report_codebook(spec, CPU)
    assert list(report["tokenizers"]) == ["trained", "untrained"]
    assert report["inputs"]["held_out_collections"] == ["beta"]
    groups = {part["collection"]: part for part in report["tokenizers"]["trained"]["groups"]}
    assert {name: part["kind"] for name, part in groups.items()} == {
        "alpha": "patients", "beta": "collection", "gamma": "patients",
    }  # fmt: skip
    assert groups["beta"]["splits"] == ["train", "val", "test"]
    assert groups["beta"]["images"] == 12
    assert set(report["tokenizers"]["trained"]["conditions"]) == {"alpha-ct", "beta-mr", "gamma-mr"}
    rows = summary_rows(report)
    assert [row[:2] for row in rows[:4]] == [("trained", name) for name in ("alpha", "beta", "gamma", "all")]
    trained, untrained = (report["tokenizers"][name]["psnr"][-1] for name in ("trained", "untrained"))
    assert trained > untrained
    for name in ("usage-trained", "conditions-untrained", "scales", "reconstructions-trained"):
        assert cv2.imread(str(tmp_path / "out" / f"{name}.png")) is not None
    assert (tmp_path / "out" / "scales.svg").read_text().startswith("<?xml")


def test_a_set_without_anything_unseen_is_refused(tmp_path, tokenizer):
    shards = write_shard_set(tmp_path / "set", {"train": 6}, conditions={"alpha-ct": 3})
    with pytest.raises(ShardSetMismatch, match="nothing unseen"):
        report_codebook(CodebookReport(str(tmp_path / "out"), DataSpec(str(shards)), str(tokenizer)), CPU)


def test_a_held_out_collection_reaches_no_split_and_has_no_condition(shards):
    data = DataSpec(str(shards), where="modality = 'MR' OR modality = 'CT'", hold_out=("beta",), workers=1)
    part = Loader(data, "train", 32, 4, 0, PROCESS)
    assert part.conditions == {"alpha-ct": 0, "gamma-mr": 1}
    seen = [
        (key, row) for batch in part.passes(4) for key, row in zip(batch.keys, batch.conditions.tolist(), strict=True)
    ]
    assert len(seen) == len(part) == 16
    assert all(key.startswith("alpha-ct" if row == 0 else "gamma-mr") for key, row in seen)
    assert len(Loader(data, "val", 32, 4, 0, PROCESS)) == 5
    with pytest.raises(SpecError, match=r"no collection 'delta'; it has alpha, beta, gamma"):
        Loader(replace(data, hold_out=("delta",)), "train", 32, 4, 0, PROCESS)
    with pytest.raises(SpecError, match="no other collections"):
        Loader(replace(data, hold_out=("alpha", "beta", "gamma")), "train", 32, 4, 0, PROCESS)


def test_a_transformer_has_no_row_for_a_held_out_collection_and_says_so(shards, tokenizer, tmp_path):
    run(without_beta(transformer_spec(shards, tmp_path / "run", tokenizer, samples=8)))
    kept = read_checkpoint(tmp_path / "run", "transformer")
    assert dict(kept.conditions) == {"alpha-ct": 0, "gamma-mr": 1}
    assert kept.run["settings"]["data"]["hold_out"] == ["beta"]
