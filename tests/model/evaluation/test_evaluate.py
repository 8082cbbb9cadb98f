"""Laws of evaluation: what is reported can be computed again from the rows, and nothing belongs to another run."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.runs import PROCESS, run, tokenizer_spec, transformer_spec
from support.shard_sets import CONDITIONS, write_shard_set

from medvar_model.checkpoints.checkpoint import load_tokenizer
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ShardSetMismatch
from medvar_model.evaluation.evaluate import Evaluate, evaluate
from medvar_model.evaluation.gate import Bound, Gate, failures
from medvar_model.evaluation.inputs import scan_of, split_sizes
from medvar_model.evaluation.metrics.quality import psnr
from medvar_model.evaluation.page import Curve, chart, model_section
from medvar_model.evaluation.passes import Fresh
from medvar_model.loader import DataSpec, Loader, to_network
from medvar_model.sampling.sample import SampleSettings, to_uint8
from medvar_model.sampling.sample_files import SampleFiles, write_samples
from medvar_model.training.perceptual import VGG_INDICES, vgg_trunk

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    shards = write_shard_set(root / "S", {"train": 30, "val": 13, "test": 12})
    run(tokenizer_spec(shards, root / "tok"))
    run(transformer_spec(shards, root / "var", root / "tok"))
    return root


@pytest.fixture(scope="module")
def spec(trained):
    settings = SampleSettings(guidance=1.0, top_k=0, top_p=0.0, seed=3)
    data = DataSpec(str(trained / "S"), workers=0)
    return Evaluate(
        str(trained / "report"), data, str(trained / "var"), count=12, settings=settings, batch_size=7, replicates=4
    )


@pytest.fixture(scope="module")
def result(spec):
    return evaluate(spec, CPU)


def table(result, name):
    return pq.read_table(result.out / f"{name}.parquet").to_pydict()


def test_every_slice_and_every_sample_has_a_row(result, trained):
    held_out, samples = table(result, "held_out"), table(result, "samples")
    wanted = pq.read_table(trained / "S" / "slices.parquet").to_pylist()
    assert sorted(held_out["key"]) == sorted(row["key"] for row in wanted if row["split"] != "train")
    assert {name: samples["condition"].count(name) for name in CONDITIONS} == dict.fromkeys(CONDITIONS, 12)
    assert set(held_out["nearest_key"]) <= {row["key"] for row in wanted if row["split"] == "train"}


def test_the_report_is_the_mean_of_the_rows(result):
    held_out, samples = table(result, "held_out"), table(result, "samples")
    drawn = result.report["reconstructions"]
    assert drawn["psnr"] == pytest.approx(np.mean(held_out["psnr"]))
    alpha = [value for value, name in zip(held_out["ssim"], held_out["condition"], strict=True) if name == "alpha-ct"]
    assert drawn["per_condition"]["alpha-ct"]["ssim"] == pytest.approx(np.mean(alpha))
    right = [a == b for a, b in zip(samples["named"], samples["condition"], strict=True)]
    assert result.report["conditions"]["right"]["share"] == pytest.approx(np.mean(right))
    closer = np.array(samples["nearest_distance"]) < result.report["copies"]["threshold"]
    assert result.report["copies"]["closer"]["hits"] == closer.sum()


def test_reconstructions_are_the_tokenizers(result, trained):
    held_out = table(result, "held_out")
    tokenizer = load_tokenizer(trained / "tok")
    (examples,) = Loader(DataSpec(str(trained / "S"), workers=0), "val", 32, 4, 0, PROCESS).passes(99)
    again = psnr(
        to_uint8(examples.images).numpy(), to_uint8(tokenizer.decode(tokenizer.encode(examples.images))).numpy()
    )
    mine = [held_out["psnr"][held_out["key"].index(key)] for key in examples.keys]
    np.testing.assert_allclose(mine, again, atol=0.02)  # another batch size may round a pixel otherwise


def test_reconstructions_have_perceptual_and_set_distances(spec, result, tmp_path):
    """With LPIPS of random weights, in the layout of a single file; too few slices for the set's distance, which is said."""
    torch.manual_seed(0)
    stages, layers = vgg_trunk(shift_tolerant=False), {}
    for stage, indices in enumerate(VGG_INDICES):
        for conv, index in zip(stages[stage].convs, indices, strict=True):
            layers |= {f"net.slice{stage + 1}.{index}.{part}": getattr(conv, part).data for part in ("weight", "bias")}
        layers[f"lin{stage}.model.1.weight"] = torch.rand(1, stages[stage].width, 1, 1)
    torch.save(layers, tmp_path / "lpips.pth")
    files = (str(tmp_path / "lpips.pth"),)
    again = evaluate(replace(spec, out=str(tmp_path / "out"), count=1, perceptual="lpips", lpips_files=files), CPU)
    drawn, each = again.report["reconstructions"], table(again, "held_out")["lpips"]
    assert drawn["lpips"] == pytest.approx(np.mean(each))
    assert min(each) > 0
    assert again.report["inputs"]["perceptual"]["kind"] == "lpips"
    assert "<th>LPIPS</th>" in model_section(again.report, "pictures")
    assert result.report["inputs"]["perceptual"] is None
    assert "lpips" not in result.report["reconstructions"]
    rows = {
        r["metric"]: r
        for r in pq.read_table(again.out / "metrics.parquet").to_pylist()
        if r["candidate"] == "reconstructions"
    }
    assert rows["lpips"]["value"] == pytest.approx(np.mean(each))
    assert rows["lpips"]["better"] == "lower"
    assert rows["psnr"]["value"] == pytest.approx(drawn["psnr"])
    assert (rows["psnr"]["n_candidate"], rows["psnr"]["better"]) == (25, "higher")
    assert "reconstructions & 25" in (again.out / "metrics.tex").read_text()
    bounds = [Bound("psnr", candidate="reconstructions", at_least=drawn["psnr"] + 1)]
    bounds.append(Bound("lpips", candidate="reconstructions", times_floor=2.0))
    bounds.append(Bound("psnr", candidate="reconstructions", at_least=drawn["psnr"] - 1))
    first, second = failures(Gate(obeyed=0.0, bound=bounds), again.report)
    assert "psnr of reconstructions (all) is" in first
    assert "has no floor" in second
    (row,) = result.report["reconstructions"]["distances"]
    assert row["metric"] == f"rfd_{result.report['distribution']['features'][0]['name']}"
    assert (row["value"], row["n"]) == (None, 25)
    assert "needs 130 images, has 25" in model_section(result.report, "pictures")


def test_cross_entropy_is_what_training_validated(result, trained):
    """Two routes to one number: the trainer's own validation and the evaluation of the same weights."""
    lines = [json.loads(line) for line in (trained / "var" / "log.jsonl").read_text().splitlines()]
    best = min(line["validation"]["loss"] for line in lines if "validation" in line)
    assert result.report["predictions"]["val"]["mean"] == pytest.approx(best, rel=1e-5)


def test_cross_entropy_of_splits_and_scales_agrees(result):
    scales = result.report["scales"]
    tokens = np.array(scales["side"]) ** 2
    for part in result.report["predictions"].values():
        assert part["mean"] == pytest.approx((np.array(part["cross_entropy"]) * tokens).sum() / tokens.sum())


def test_the_same_call_returns_the_finished_report_and_another_does_not(spec, result, trained, tmp_path):
    lines = []
    again = evaluate(spec, CPU, lines.append)
    assert again.report == json.loads((result.out / "report.json").read_text())
    assert not lines
    other = evaluate(replace(spec, out=str(tmp_path / "other"), count=2), CPU, lines.append)
    assert lines
    assert other.report["inputs"] != again.report["inputs"]


def test_samples_that_were_drawn_before_give_the_same_report(spec, result, trained, tmp_path):
    drawing = SampleFiles(spec.run, str(tmp_path / "drawn"), tuple(CONDITIONS), spec.count, spec.settings, 5)
    write_samples(drawing, CPU)
    again = evaluate(replace(spec, out=str(tmp_path / "again"), samples=drawing.out), CPU).report
    for part in ("reconstructions", "distribution", "copies", "conditions", "scales"):
        assert again[part] == result.report[part]


def test_a_report_says_why_numbers_are_missing_or_must_not_be_believed(result, spec, trained, tmp_path):
    """Thirty-six samples are too few for the Fréchet distance, and eight steps are hardly a training."""
    metrics = result.report["distribution"]["metrics"]
    assert metrics["fd_effnetlite0"]["samples"] is None
    missing = [note for note in result.report["notes"] if "fd_effnetlite0 (needs 130)" in note]
    assert len(missing) == 1
    assert "Draw more with -n" in missing[0]
    html = model_section(result.report, "pictures")
    assert "<td>needs 130 images, has " in html
    assert missing[0] in html
    guesses = [note for note in result.report["notes"] if "hardly better than a guess" in note]
    worst = max(part["mean"] for part in result.report["predictions"].values())
    assert bool(guesses) == (worst > 0.9 * np.log(64))
    assert not any("unfinished" in note for note in result.report["notes"])
    stopped = replace(transformer_spec(trained / "S", tmp_path / "var", trained / "tok", validate_every=0))
    run(stopped, stop=lambda: True)
    early = evaluate(replace(spec, run=stopped.out, out=str(tmp_path / "early"), count=1), CPU).report["notes"]
    assert any("had seen 4 of the 32 images of their run (12 % of its steps)" in note for note in early)


def test_another_evaluation_leaves_no_pictures_of_the_first(spec, trained, tmp_path):
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    for name in ("samples-gone-ct.png", "scales-gone-ct.png", "mine.png"):
        (out / "pictures" / name).write_bytes(b"")
    (out / "report.json").write_text('{"inputs": {}}')
    evaluate(replace(spec, out=str(out), count=1), CPU)
    left = {path.name for path in (out / "pictures").iterdir()}
    assert "mine.png" in left
    assert "samples-alpha-ct.png" in left
    assert not any("gone" in name for name in left)


def test_a_drawing_that_was_stopped_is_not_scored_and_can_be_drawn_again(spec, tmp_path):
    drawing = SampleFiles(spec.run, str(tmp_path / "drawn"), tuple(CONDITIONS), 2, spec.settings)

    def report(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(drawing, CPU, report)
    with pytest.raises(MissingCheckpoint, match="stopped before its end"):
        evaluate(replace(spec, samples=drawing.out, out=str(tmp_path / "out")), CPU)
    assert not (tmp_path / "out").exists()
    write_samples(replace(drawing, count=1), CPU)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 4  # three conditions and the grid


def test_copies_of_training_slices_are_caught(spec, trained, tmp_path):
    """A folder of training slices, offered as samples."""
    folder = tmp_path / "copied"
    folder.mkdir()
    (examples,) = Loader(spec.data, "train", 32, 4, 0, PROCESS).passes(99)
    names = {row: name for name, row in Loader(spec.data, "train", 32, 4, 0, PROCESS).conditions.items()}
    images = []
    for key, row, image in zip(
        examples.keys, examples.conditions.tolist(), to_uint8(examples.images).numpy(), strict=True
    ):
        (folder / f"{key}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        images.append({"file": f"{key}.png", "condition": names[row], "seed": 0})
    (folder / "samples.json").write_text(json.dumps({"images": images}))
    report = evaluate(replace(spec, out=str(tmp_path / "out"), samples=str(folder)), CPU)
    samples = table(report, "samples")
    assert report.report["copies"]["closer"]["share"] == 1
    assert [f"{key}.png" for key in samples["nearest_key"]] == samples["file"]


def test_a_condition_without_held_out_slices_is_counted_and_not_scored(tmp_path):
    """The third condition comes once in six slices, so four held-out slices have none of it."""
    shards = write_shard_set(tmp_path / "S", {"train": 30, "val": 5, "test": 5})
    run(tokenizer_spec(shards, tmp_path / "tok", validate_every=0))
    run(transformer_spec(shards, tmp_path / "var", tmp_path / "tok", validate_every=0))
    data = DataSpec(str(shards), workers=0)
    report = evaluate(Evaluate(str(tmp_path / "out"), data, str(tmp_path / "var"), count=3), CPU).report
    assert report["conditions"]["conditions"] == ["alpha-ct", "beta-mr"]
    assert report["conditions"]["unscored"] == report["copies"]["unscored"] == 3
    assert report["conditions"]["right"]["n"] == report["copies"]["closer"]["n"] == 6
    assert "not scored" in model_section(report, "pictures")


def test_what_does_not_belong_together_is_refused(spec, trained, tmp_path):
    bare = write_shard_set(tmp_path / "bare", {"train": 6})
    other = write_shard_set(tmp_path / "other", {"train": 6, "val": 6}, conditions={"delta-ct": 1})
    out = str(tmp_path / "o")
    with pytest.raises(ShardSetMismatch, match="no val or test"):
        evaluate(replace(spec, data=DataSpec(str(bare)), out=out), CPU)
    with pytest.raises(ShardSetMismatch, match="trained with the conditions"):
        evaluate(replace(spec, data=DataSpec(str(other)), out=out), CPU)
    with pytest.raises(ShardSetMismatch, match="There is no folder"):
        split_sizes(str(tmp_path / "nothing"))
    with pytest.raises(MissingCheckpoint, match=r"no samples\.json"):
        evaluate(replace(spec, samples=str(tmp_path), out=out), CPU)
    run(tokenizer_spec(trained / "S", tmp_path / "tok2", seed=9, validate_every=0))
    with pytest.raises(ConfigMismatch, match="digest"):
        evaluate(replace(spec, tokenizer=str(tmp_path / "tok2"), out=out), CPU)


def test_pictures_exist_for_all_that_the_page_points_to(result, trained):
    html = model_section(result.report, "pictures", trained / "tok", trained / "var")
    pointed = {part.split('"')[0] for part in html.split('src="pictures/')[1:]}
    assert pointed
    assert pointed <= {path.name for path in (result.out / "pictures").iterdir()}
    assert html.count("<svg") == 4


def test_fresh_slices_do_not_hang_on_the_order_of_reading():
    image = np.zeros((2, 2), np.uint8)
    kept = []
    for order in (range(50), reversed(range(50))):
        fresh = Fresh(5)
        for number in order:
            fresh.offer(f"slice-{number}", 0, image + number)
        kept.append([int(found[0, 0]) for found in fresh.images(0)])
    assert kept[0] == kept[1]
    assert len(set(kept[0])) == 5
    assert fresh.images(1) == []


def test_the_scan_of_a_key():
    assert scan_of("own-set-case-z-odd-z0012") == "own-set-case-z-odd"


class TestChart:
    def test_a_point_lands_where_it_belongs(self):
        svg = chart("a", [Curve("validation", (0.0, 10.0), (1.0, 3.0))], "images")
        assert 'points="52.0,164.0 528.0,12.0"' in svg

    def test_flat_single_and_empty_lines_are_drawn_or_left_out(self):
        assert "polyline" in chart("a", [Curve("x", (1.0,), (2.0,))], "images")
        assert chart("a", [Curve("x", (), ())], "images") == ""

    def test_names_are_escaped(self):
        line = Curve("<b>", (1.0, 2.0), (2.0, 2.0))
        assert "<b>" not in chart("<b>", [line, line], "images")

    def test_only_several_lines_are_named_in_the_picture(self):
        one, two = Curve("first", (1.0, 2.0), (2.0, 3.0)), Curve("second", (1.0, 2.0), (3.0, 2.0))
        assert "first</text>" not in chart("a", [one], "images")
        assert all(f"{name}</text>" in chart("a", [one, two], "images") for name in ("first", "second"))


def test_uint8_round_trip_through_the_networks_range():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(to_uint8(to_network(grey)), grey)
