"""Laws of utility: good images teach the task and bad ones do not, patients stay apart, numbers come again from the rows."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.pages import Page
from support.shard_sets import CONDITIONS, republished, rows_of, write_shard_set

from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ShardSetMismatch, UnknownCondition
from medvar_model.evaluation.copies.membership import area
from medvar_model.evaluation.utility.arms import BOTH, REAL, SYNTHETIC, Arm, Slices, arms, chosen, parts_of, task_of
from medvar_model.evaluation.utility.classifier import ConditionNetwork, Part, batches, log_chances, train_network
from medvar_model.evaluation.utility.page import arms_table, differences_table
from medvar_model.evaluation.utility.run import check_utility, measure_utility
from medvar_model.evaluation.utility.scores import Draws, recalls, scored, summary, weighted_area
from medvar_model.evaluation.utility.sets import network_side
from medvar_model.evaluation.utility.settings import Utility
from medvar_model.loader import DataSpec

CPU = torch.device("cpu")
NAMES = list(CONDITIONS)


def striped(condition, number, side):
    """Stripes along rows, along columns or both, of any place and strength: told apart by their direction alone."""
    rng = np.random.default_rng((number, 7))
    rows, columns = np.mgrid[:side, :side]
    along = {"alpha-ct": rows, "beta-mr": columns, "gamma-mr": rows + columns}[condition]
    waves = np.sin(2 * np.pi * along / 8 + rng.uniform(0, 6))
    return np.clip(128 + rng.uniform(30, 60) * waves + rng.normal(0, 25, (side, side)), 0, 255).astype(np.uint8)


def grouped(root, slices_of_each):
    """Let each patient have several slices, of one condition and split."""
    table = pq.read_table(root / "slices.parquet")
    seen, patients = {}, []
    for row in table.select(["condition", "split"]).to_pylist():
        place = seen[row["condition"], row["split"]] = seen.get((row["condition"], row["split"]), -1) + 1
        patients.append(f"{row['condition']} {row['split']} {place // slices_of_each}")
    at = table.schema.get_field_index("patient")
    pq.write_table(table.set_column(at, "patient", pa.array(patients)), root / "slices.parquet")
    return republished(root)


def write_images(folder, conditions, numbers, label=lambda condition, number: condition):
    for condition in conditions:
        for number in numbers:
            place = folder / label(condition, number)
            place.mkdir(parents=True, exist_ok=True)
            image = striped(condition, 50_000 + number, 32)
            (place / f"{condition}-{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("utility") / "S"
    return grouped(write_shard_set(root, {"train": 120, "val": 48, "test": 48}, image_of=striped), 2)


@pytest.fixture(scope="module")
def spec(shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("measured")
    images = write_images(root / "drawn", NAMES, range(12))
    data = DataSpec(str(shards), workers=0)
    return Utility(
        str(root / "out"), data, images=images, shares=(1.0, 0.2), seeds=2, steps=40, batch_size=16, replicates=50
    )


@pytest.fixture(scope="module")
def result(spec):
    return measure_utility(spec, CPU)


def of(result, name, share, metric="balanced_accuracy"):
    (found,) = [arm for arm in result["arms"] if (arm["name"], arm["share"]) == (name, share)]
    return found["scores"][metric]


class TestWhatImagesTeach:
    def test_images_that_show_their_condition_teach_as_well_as_real_ones(self, result):
        for name, share in ((REAL, 1.0), (SYNTHETIC, 0.0), (BOTH, 1.0)):
            assert of(result, name, share)["value"] > 0.9
            assert of(result, name, share, "auroc")["value"] > 0.97

    def test_images_under_shuffled_names_teach_nothing(self, spec, tmp_path):
        images = write_images(tmp_path / "drawn", NAMES, range(12), lambda c, n: NAMES[(NAMES.index(c) + n) % 3])
        shuffled = replace(spec, images=images, out=str(tmp_path / "out"), shares=(1.0,))
        result = measure_utility(shuffled, CPU)
        assert of(result, SYNTHETIC, 0.0)["value"] == pytest.approx(1 / 3, abs=0.2)
        assert of(result, SYNTHETIC, 0.0, "auroc")["value"] == pytest.approx(1 / 2, abs=0.2)
        assert of(result, REAL, 1.0)["value"] > 0.9
        (row,) = [r for r in result["differences"] if (r["arm"], r["metric"]) == (SYNTHETIC, "balanced_accuracy")]
        assert row["high"] < -0.3
        fit = {arm["name"]: np.mean(arm["fit"]) for arm in result["arms"]}
        assert fit[REAL] > 0.9 > fit[SYNTHETIC]
        assert any(f"synthetic {100 * fit[SYNTHETIC]:.0f} %" in note for note in result["notes"])

    def test_floors_are_what_is_known_without_training(self, result):
        floors = result["floors"]
        assert floors["chance"]["balanced_accuracy"] == pytest.approx(1 / 3)
        assert floors["majority"] == {"class": "alpha-ct", "accuracy": 0.5}
        assert floors["thumbnails"]["balanced_accuracy"]["value"] < 0.9  # stripes of any phase are not linear


class TestNumbers:
    def test_the_same_call_gives_the_same_numbers(self, spec, tmp_path):
        lines, short = [], replace(spec, shares=(0.5,), steps=6)
        one, two = (measure_utility(replace(short, out=str(tmp_path / name)), CPU, lines.append) for name in "ab")
        assert one == two
        assert len([line for line in lines if line.startswith("training on")]) == 2 * 3 * 2
        for name in ("named.parquet", "utility.parquet", "utility.png", "index.html"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_a_finished_result_is_read_again_and_that_of_other_inputs_is_not(self, spec, tmp_path):
        lines = []
        short = replace(spec, out=str(tmp_path), shares=(0.2,), steps=1)
        first = measure_utility(short, CPU)
        one, two = of(first, REAL, 0.2, "auroc")["by_seed"]
        assert one != two
        assert measure_utility(short, CPU, lines.append) == first
        assert not lines
        assert measure_utility(replace(short, seeds=1), CPU, lines.append)["inputs"] != first["inputs"]
        assert lines

    def test_scores_can_be_counted_again_from_the_rows(self, spec, result, tmp_path):
        rows = rows_of(tmp_path / spec.out, "named.parquet")
        for arm in result["arms"]:
            for seed in range(spec.seeds):
                mine = [r for r in rows if (r["arm"], r["share"], r["seed"]) == (arm["name"], arm["share"], seed)]
                recall = [np.mean([r["named"] == c for r in mine if r["class"] == c]) for c in NAMES]
                assert arm["scores"]["balanced_accuracy"]["by_seed"][seed] == pytest.approx(np.mean(recall))
                assert arm["scores"]["recall beta-mr"]["by_seed"][seed] == pytest.approx(recall[1])

    def test_the_table_holds_what_the_result_holds(self, spec, result, tmp_path):
        rows = rows_of(tmp_path / spec.out, "utility.parquet")
        assert len(rows) == 5 * 6 + 4 * 6  # arms and differences, three means and three recalls each
        for row in rows:
            if not row["minus"]:
                assert of(result, row["arm"], row["share"], row["metric"])["value"] == row["value"]
        gain = {(r["arm"], r["share"]): r["by_seed"] for r in rows if r["minus"] and r["metric"] == "auroc"}
        ours, theirs = (of(result, name, 0.2, "auroc")["by_seed"] for name in (BOTH, REAL))
        assert gain[BOTH, 0.2] == pytest.approx(np.subtract(ours, theirs))

    def test_every_arm_sees_as_many_images_and_says_of_how_many_patients(self, spec, result):
        assert result["network"]["images_seen"] == spec.steps * spec.batch_size
        counts = {(arm["name"], arm["share"]): (arm["patients"], arm["images"]) for arm in result["arms"]}
        assert counts == {
            (REAL, 0.2): ([12, 12], [24, 24]), (REAL, 1.0): ([60, 60], [120, 120]), (SYNTHETIC, 0.0): ([0, 0], [36, 36]),
            (BOTH, 0.2): ([12, 12], [60, 60]), (BOTH, 1.0): ([60, 60], [156, 156]),
        }  # fmt: skip


class TestPatients:
    def test_no_tested_slice_is_of_a_patient_that_was_trained_on(self, spec, shards, tmp_path):
        splits = {row["key"]: row["split"] for row in rows_of(shards, "slices.parquet")}
        tested = {row["key"] for row in rows_of(tmp_path / spec.out, "named.parquet")}
        assert tested == {key for key, split in splits.items() if split != "train"}

    def test_patients_in_two_splits_are_refused(self, spec, tmp_path):
        root = write_shard_set(tmp_path / "S", {"train": 12, "val": 12})
        table = pq.read_table(root / "slices.parquet")
        at, patients = table.schema.get_field_index("patient"), table["patient"].to_pylist()
        patients[-1] = patients[0]
        pq.write_table(table.set_column(at, "patient", pa.array(patients)), root / "slices.parquet")
        republished(root)
        with pytest.raises(ShardSetMismatch, match="1 patients have slices both in train and"):
            measure_utility(replace(spec, data=DataSpec(str(root), workers=0), out=str(tmp_path / "out")), CPU)

    def test_a_share_takes_whole_patients_of_every_class_and_larger_shares_hold_smaller_ones(self):
        patients = [f"{name}{i // 3}" for name, n in (("a", 30), ("b", 6), ("c", 3)) for i in range(n)]
        target = np.array(["abc".index(name[0]) for name in patients])
        real = Slices(Part(np.zeros((39, 4, 4), np.uint8), target), tuple(map(str, range(39))), tuple(patients))
        for seed in range(3):
            few, some, every = (chosen(real, share, seed) for share in (0.1, 0.5, 1.0))
            assert [len({p for p, kept in zip(patients, few, strict=True) if kept and p[0] == c}) for c in "abc"] == [
                1,
                1,
                1,
            ]
            assert [some[target == c].sum() for c in range(3)] == [15, 3, 3]
            assert every.all()
            assert (few <= some).all()
            for patient in set(patients):
                assert len({bool(kept) for p, kept in zip(patients, some, strict=True) if p == patient}) == 1
        assert any((chosen(real, 0.5, 0) != chosen(real, 0.5, seed)).any() for seed in range(1, 5))

    def test_both_takes_the_patients_that_real_takes(self):
        patients = tuple(f"p{i}" for i in range(20))
        images = np.arange(20, dtype=np.uint8)[:, None, None] + np.zeros((20, 4, 4), np.uint8)
        real = Slices(Part(images, np.arange(20) % 2), patients, patients)
        drawn = Slices(Part(images + 100, np.arange(20) % 2), patients, patients)
        (alone,), people = parts_of(Arm(REAL, 0.3), real, drawn, 5)
        (beside, added), same = parts_of(Arm(BOTH, 0.3), real, drawn, 5)
        assert people == same == 6
        assert (alone.images == beside.images).all()
        assert added is drawn.part
        assert [arm.share for arm in arms((1.0, 0.3, 1.0))] == [0.3, 1.0, 0.0, 0.3, 1.0]


class TestScores:
    def test_the_area_is_the_share_of_pairs_ranked_right_with_ties_and_weights(self):
        rng = np.random.default_rng(0)
        score, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
        weights = np.stack([np.ones(40), rng.integers(0, 3, 40)]).astype(float)
        whole, weighted = weighted_area(score, positive, weights)
        assert whole == pytest.approx(area(score[positive], score[~positive]))
        repeated = np.repeat(np.arange(40), weights[1].astype(int))
        again, kind = score[repeated], positive[repeated]
        assert weighted == pytest.approx(area(again[kind], again[~kind]))

    def test_a_guess_by_size_has_no_balanced_accuracy(self):
        target = np.array([0] * 90 + [1] * 10)
        draws = Draws.of(target, [str(i) for i in range(100)], 1, 0)
        assert recalls(np.zeros(100, dtype=np.int64), draws).tolist() == [[1.0, 0.0]]

    def test_slices_of_a_patient_count_as_one_witness(self):
        """Ten times as many slices that say the same leave score and interval as they are; as patients they would narrow it."""
        rng = np.random.default_rng(1)
        target = np.arange(40) % 2
        rows = np.stack([rng.normal(0, 1, 40) - target, np.zeros(40)], axis=1)
        patients = [str(i) for i in range(40)]
        many, people = np.repeat(target, 10), np.repeat(patients, 10).tolist()

        def ends(target, patients, rows):
            draws = Draws.of(target, patients, 1, 200)
            score = summary(scored([rows], draws, ["a", "b"])["balanced_accuracy"], draws)
            return score["value"], score["low"], score["high"]

        once, tenfold = ends(target, patients, rows), ends(many, people, np.repeat(rows, 10, axis=0))
        assert once == pytest.approx(tenfold)
        assert once[1] < once[0] < once[2]
        _, low, high = ends(many, [str(i) for i in range(400)], np.repeat(rows, 10, axis=0))
        assert high - low < (once[2] - once[1]) / 2

    def test_intervals_over_patients_hold_the_truth_and_those_over_slices_do_not(self):
        """A hundred studies of 60 patients, of whose ten slices each has a share of her own that is named right; 0.75 on average."""
        target, patients = np.repeat(np.arange(60) % 2, 10), np.repeat(np.arange(60), 10)

        def holds(named, who):
            draws = Draws.of(target, [str(number) for number in who], 1, 100)
            score = summary(scored([np.eye(2)[named]], draws, "ab")["balanced_accuracy"], draws)
            return score["low"] <= 0.75 <= score["high"]

        held = []
        for study in range(100):
            rng = np.random.default_rng(study)
            right = rng.random(600) < np.repeat(rng.beta(1.5, 0.5, 60), 10)
            named = np.where(right, target, 1 - target)
            held.append((holds(named, patients), holds(named, np.arange(600))))
        by_patient, by_slice = np.mean(held, axis=0)
        assert 0.87 <= by_patient <= 0.99
        assert by_slice < 0.8

    def test_a_difference_is_paired_by_patient(self):
        """Two classifiers that fail on the same patients, but for one of them: the difference is sure although either is not."""
        target = np.arange(100) % 2
        draws = Draws.of(target, [str(i) for i in range(100)], 1, 200)
        wrong = np.random.default_rng(2).random(100) < 0.3
        named = np.where(wrong, 1 - target, target)
        better = named.copy()
        better[np.flatnonzero(wrong)[0]] = target[np.flatnonzero(wrong)[0]]
        ours, theirs = (scored([np.eye(2)[n]], draws, "ab")["balanced_accuracy"] for n in (better, named))
        gain, alone = summary(ours - theirs, draws), summary(ours, draws)
        assert gain["value"] == pytest.approx(0.01)
        assert gain["low"] >= 0
        assert gain["high"] - gain["low"] < (alone["high"] - alone["low"]) / 3

    def test_seeds_that_disagree_widen_the_interval(self):
        target = np.arange(60) % 2
        draws = Draws.of(target, [str(i) for i in range(60)], 4, 200)
        right, half = np.eye(2)[target], np.eye(2)[np.where(np.arange(60) % 4 < 2, target, 1 - target)]
        mixed = summary(scored([right, half, right, half], draws, "ab")["balanced_accuracy"], draws)
        assert mixed["by_seed"] == [1.0, 0.5, 1.0, 0.5]
        assert mixed["spread"] == pytest.approx(np.std([1, 0.5, 1, 0.5], ddof=1))
        assert mixed["low"] < 0.65
        assert mixed["high"] > 0.85

    def test_fewer_than_ten_patients_give_no_interval(self):
        target = np.arange(36) % 2
        draws = Draws.of(target, [str(i % 9) for i in range(36)], 1, 50)
        score = summary(scored([np.eye(2)[target]], draws, "ab")["auroc"], draws)
        assert (score["value"], score["low"], score["spread"]) == (1.0, None, None)


class TestTraining:
    def test_a_batch_holds_all_classes_and_both_sources_alike(self):
        def part(first, sizes):
            target = np.repeat(np.arange(2), sizes)
            return Part(
                (first + target)[:, None, None].astype(np.uint8) + np.zeros((len(target), 4, 4), np.uint8), target
            )

        parts = [part(10, (1, 99)), part(20, (500, 5))]
        ((images, target),) = batches(parts, 2, 1, 4000, np.random.default_rng(0))
        grey = images[:, 0, 0]
        assert torch.equal(grey % 10, target)
        for value in (10, 11, 20, 21):
            assert (grey == value).double().mean() == pytest.approx(0.25, abs=0.03)

    def test_images_are_moved_by_a_sixteenth_of_their_side_and_not_more(self):
        image = np.zeros((1, 32, 32), np.uint8)
        image[0, 16, 16] = 255
        ((images, _),) = batches([Part(image, np.zeros(1, np.int64))], 1, 1, 500, np.random.default_rng(0))
        found = images.nonzero()[:, 1:]
        assert len(found) == 500
        assert [found.min().item(), found.max().item()] == [14, 18]

    def test_a_seed_gives_one_network_whatever_was_drawn_before(self):
        rng = np.random.default_rng(0)
        part = Part(rng.integers(0, 256, (8, 16, 16)).astype(np.uint8), np.arange(8) % 2)
        rows = []
        for seed in (3, 3, 4):
            torch.rand(7)
            rows.append(log_chances(train_network([part], 2, 3, 4, seed, CPU), part.images, CPU))
        assert (rows[0] == rows[1]).all()
        assert (rows[0] != rows[2]).any()
        np.testing.assert_allclose(np.exp(rows[0]).sum(1), 1)

    def test_the_network_is_as_small_as_it_says(self):
        n = sum(weights.numel() for weights in ConditionNetwork(9, torch.Generator()).parameters())
        assert round(n, -3) == 99_000

    def test_the_side_is_a_whole_fraction_of_the_sets(self):
        assert [network_side(side) for side in (256, 512, 96, 32, 127)] == [64, 64, 48, 32, 127]


class TestWhatIsShown:
    def test_the_page_points_to_pictures_that_exist_and_says_all_notes(self, spec, result, tmp_path):
        folder = tmp_path / spec.out
        page = Page((folder / "index.html").read_text())
        assert not page.unclosed
        sources = {element.attributes["src"] for element in page.all("img")}
        assert sources == {"utility.png", "pictures/shown.png"}
        assert all((folder / source).stat().st_size for source in sources)
        said = [element.text for element in page.all("p")]
        assert all(any(note in text for text in said) for note in result["notes"])

    def test_tables_have_a_row_for_every_arm_floor_and_difference(self, result):
        columns, rows = arms_table(result)
        assert {len(row) for row in rows} == {len(columns)}
        assert [row[0] for row in rows] == [
            "real, 20 % of patients", "real, 100 % of patients", "synthetic", "both, 20 % of patients", "both, 100 % of patients",
            "16 × 16 pixels, linear", "nothing: always alpha-ct",
        ]  # fmt: skip
        columns, rows = differences_table(result)
        assert {len(row) for row in rows} == {len(columns)}
        assert [row[0] for row in rows] == [
            f"{arm} − real, {share} % of patients" for share in (20, 100) for arm in (SYNTHETIC, BOTH)
        ]

    def test_copies_of_training_slices_are_noticed(self, spec, result, tmp_path):
        assert result["copies"]["closer"]["share"] < 0.2
        for number, name in enumerate(["alpha-ct"] * 3 + ["beta-mr"] * 2 + ["gamma-mr"]):
            (tmp_path / "copied" / name).mkdir(parents=True, exist_ok=True)
            image = striped(name, number, 32)
            (tmp_path / "copied" / name / f"{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        copied = replace(spec, images=str(tmp_path / "copied"), out=str(tmp_path / "out"), steps=1, seeds=1)
        found = measure_utility(copied, CPU)
        assert found["copies"]["closer"]["share"] == 1
        assert any(note.startswith("100.0 % of the synthetic images lie closer") for note in found["notes"])

    def test_what_is_missing_is_left_out_and_said(self, spec, tmp_path):
        images = write_images(tmp_path / "drawn", NAMES[1:], range(3))
        short = replace(spec, images=images, out=str(tmp_path / "out"), shares=(1.0,), steps=1, seeds=1, held_out=12)
        result = measure_utility(short, CPU)
        assert result["task"]["classes"] == NAMES[1:]
        said = " ".join(result["notes"])
        assert "alpha-ct (no synthetic images)" in said
        few = {name: row["held_out_patients"] for name, row in result["counts"].items() if row["held_out_patients"] < 5}
        assert few
        assert all(f"{name} ({patients})" in said for name, patients in few.items())
        assert "Give more --seeds" in said
        assert "A generator that was trained" not in said  # no reduced share of patients

    def test_anatomy_joins_conditions_that_show_the_same(self, spec, tmp_path):
        joined = replace(spec, task="anatomy", out=str(tmp_path / "out"), steps=1, seeds=1)
        result = measure_utility(joined, CPU)
        assert result["task"]["classes"] == ["chest ct", "chest mr"]
        assert result["counts"]["chest mr"]["synthetic"] == 24


class TestWhatIsRefused:
    def refused(self, spec, error, match, **changes):
        with pytest.raises(error, match=match):
            measure_utility(replace(spec, **changes), CPU)

    def test_sets_that_cannot_be_compared(self, spec, tmp_path):
        out = str(tmp_path / "out")
        bare = write_shard_set(tmp_path / "bare", {"train": 6})
        self.refused(spec, ShardSetMismatch, "no val or test slices", data=DataSpec(str(bare)), out=out)
        self.refused(spec, ShardSetMismatch, "There is no folder", data=DataSpec(str(tmp_path / "nothing")), out=out)
        one = write_shard_set(tmp_path / "one", {"train": 6, "val": 6}, conditions={"alpha-ct": 1})
        images = write_images(tmp_path / "alpha", NAMES[:1], range(2))
        changes = {"data": DataSpec(str(one), workers=0), "images": images, "out": out}
        self.refused(spec, ShardSetMismatch, r"Found 1 conditions .* wanted two at least", **changes)
        assert not (tmp_path / "out" / "utility.json").exists()

    def test_folders_of_images_that_cannot_be_used(self, spec, tmp_path):
        self.refused(spec, MissingCheckpoint, "holds no images", images=str(tmp_path))
        self.refused(spec, MissingCheckpoint, "holds no images", images=str(tmp_path / "nowhere"))
        (tmp_path / "wide" / "alpha-ct").mkdir(parents=True)
        wide = cv2.imencode(".png", np.zeros((32, 40), np.uint8))[1].tobytes()
        (tmp_path / "wide" / "alpha-ct" / "0.png").write_bytes(wide)
        self.refused(spec, ConfigMismatch, "no square image", images=str(tmp_path / "wide"))
        (tmp_path / "wide" / "alpha-ct").rename(tmp_path / "wide" / "delta-ct")
        self.refused(spec, UnknownCondition, "'delta-ct'", images=str(tmp_path / "wide"))
        rows = [{"file": "0.png", "condition": "delta-ct", "seed": 0}]
        (tmp_path / "wide" / "samples.json").write_text(json.dumps({"images": rows}))
        self.refused(spec, UnknownCondition, "'delta-ct'", images=str(tmp_path / "wide"))

    def test_a_dry_run_finds_it_too_and_writes_nothing(self, spec, tmp_path):
        with pytest.raises(MissingCheckpoint, match="holds no images"):
            check_utility(replace(spec, images=str(tmp_path), out=str(tmp_path / "out")), CPU)
        check_utility(replace(spec, out=str(tmp_path / "out")), CPU)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"run": "runs/d4"}, "either a run to draw from or --images"),
            ({"images": ""}, "either a run to draw from or --images"),
            ({"shares": (0.5, 0.0)}, "--share is 0.5, 0.0"),
            ({"shares": (1.1,)}, "--share is 1.1"),
            ({"shares": ()}, "--share is empty"),
            ({"seeds": 0}, "--seeds is 0; wanted at least 1"),
            ({"steps": 0}, "--steps is 0"),
            ({"replicates": -1}, "--intervals is -1; wanted 0 or more"),
            ({"task": "organ"}, "no --task 'organ'"),
        ],
    )
    def test_numbers_out_of_range(self, spec, changes, said):
        with pytest.raises(ConfigMismatch, match=said):
            replace(spec, **changes)

    def test_the_classes_of_a_task_are_those_that_every_set_has(self):
        of = {name: name for name in "abc"}
        task = task_of(of, {"training patients": "abc", "held-out patients": "abb", "synthetic images": "ba"})
        assert task.classes == ("a", "b")
        assert task.left_out == {"c": "no held-out patients and no synthetic images"}
        with pytest.raises(ShardSetMismatch, match="synthetic images: a"):
            task_of(of, {"training patients": "abc", "synthetic images": "a"})
