"""Laws of the search for copies: invariances of the match, exactness of the search, planted copies found, membership told."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.runs import run, tokenizer_spec, transformer_spec
from support.shard_sets import write_shard_set

from medvar_model.errors import ConfigMismatch
from medvar_model.evaluation.copies.audit import Audit, audit, calibrated
from medvar_model.evaluation.copies.index import Describer, Index, build_index, search
from medvar_model.evaluation.copies.match import FLIPS, best_scores, spectra, turned_spectra
from medvar_model.evaluation.copies.membership import Likelihoods, area, found, membership
from medvar_model.evaluation.copies.plants import PLANTS
from medvar_model.evaluation.copies.suspicion import Suspicion, suspect
from medvar_model.evaluation.extractors import hand64
from medvar_model.evaluation.metrics.features import shrunk
from medvar_model.loader import DataSpec

CPU = torch.device("cpu")
PATIENTS, SLICES = 40, 3


def slices(patient: int, count: int, side: int = 96) -> np.ndarray:
    """Slices of one patient: an outline common to all, with organs and texture of its own that change from slice to slice."""
    draw = np.random.default_rng((patient, 7))
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    body = ((rows / 0.42) ** 2 + (columns / 0.34) ** 2 < 1) * 90.0
    places, sizes, shades = (
        draw.uniform(-0.22, 0.22, (9, 2)),
        draw.uniform(0.03, 0.1, (9, 2)),
        draw.uniform(-60, 110, 9),
    )
    texture = cv2.GaussianBlur(draw.normal(0, 1, (side, side)), (0, 0), 2.0) * 60
    out = []
    for number in range(count):
        image = body + texture * (body > 0)
        for (y, x), (h, w), shade in zip(places + 0.01 * number, sizes, shades, strict=True):
            image = image + shade * (((rows - y) / h) ** 2 + ((columns - x) / w) ** 2 < 1)
        out.append(np.clip(image, 0, 255))
    return np.array(out).astype(np.uint8)


@pytest.fixture(scope="module")
def train():
    return np.concatenate([slices(patient, SLICES) for patient in range(PATIENTS)])


@pytest.fixture(scope="module")
def opened(train, tmp_path_factory):
    keys = [f"p{i // SLICES}-z{i % SLICES}" for i in range(len(train))]
    describer = Describer.fitted(hand64(), train)
    folder = tmp_path_factory.mktemp("index")
    batches = [(keys[i : i + 50], train[i : i + 50]) for i in range(0, len(train), 50)]
    return build_index(folder, batches, describer, lambda key: key.split("-")[0], {"v": 1}), describer, folder


@pytest.fixture(scope="module")
def threshold(opened):
    unseen = np.concatenate([slices(1000 + patient, 2) for patient in range(30)])
    return np.quantile(suspect(opened[0], opened[1], unseen).ratio, 0.01)


class TestMatch:
    image = slices(0, 1, 64)

    def score(self, query, other, flip=0):
        return float(best_scores(turned_spectra(query)[0], spectra(other), np.array([flip]))[0])

    def test_a_slice_fits_itself_fully_and_another_patient_less(self):
        assert self.score(self.image, self.image) == pytest.approx(1, abs=1e-5)
        assert self.score(self.image, slices(1, 1, 64)) < 0.8

    @pytest.mark.parametrize("flip", range(4))
    def test_it_sees_through_the_flip_that_it_is_told(self, flip):
        mirrored = np.ascontiguousarray(np.flip(self.image, FLIPS[flip])) if FLIPS[flip] else self.image
        assert self.score(mirrored, self.image, flip) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("by", [(3, 0), (-2, 4)])
    def test_it_sees_through_shifts_and_windows(self, by):
        moved = np.roll(self.image, by, (1, 2))
        dimmed = np.rint(moved * 0.5 + 40).astype(np.uint8)
        assert self.score(moved, self.image) > 0.95
        assert self.score(dimmed, self.image) > 0.95

    def test_nothing_fits_an_empty_slice(self):
        empty = np.zeros((1, 64, 64), np.uint8)
        assert self.score(empty, self.image) == self.score(self.image, empty) == 0
        assert self.score(empty, empty) == 0


class TestSearch:
    def test_it_is_exact_and_does_not_depend_on_the_blocks(self, monkeypatch):
        draw = np.random.default_rng(0)
        rows, queries = draw.normal(size=(300, 12)).astype(np.float32), draw.normal(size=(9, 12)).astype(np.float32)
        wanted = np.argsort(-(queries @ rows.T), axis=1)[:, :7]
        for block in (40, 1000):
            monkeypatch.setattr("medvar_model.evaluation.copies.index.BLOCK", block)
            values, places = search(rows.astype(np.float32), queries, 7)
            np.testing.assert_array_equal(places, wanted)
            np.testing.assert_allclose(values, np.take_along_axis(queries @ rows.T, wanted, 1), rtol=1e-5)

    def test_an_index_of_the_same_slices_is_opened_as_it_is(self, opened):
        index, describer, folder = opened

        def unread():
            raise AssertionError("the slices were read again")
            yield

        again = build_index(folder, unread(), describer, lambda key: key.split("-")[0], {"v": 1})
        assert list(again.keys) == list(index.keys)
        np.testing.assert_array_equal(again.thumbs, index.thumbs)
        with pytest.raises(AssertionError, match="read again"):
            build_index(folder, unread(), describer, str, {"v": 2})
        assert not (folder / "index.json").exists()  # what was begun is not taken for finished
        build_index(folder, [(list(index.keys), index.thumbs)], describer, str, {"v": 1})  # while it is open
        assert index.thumbs[0].any()


class TestPlants:
    def test_each_does_what_its_name_says(self, train):
        some, draw = train[:4], np.random.default_rng(0)
        moved = PLANTS["shifted"].change(some, 2.0, draw)
        assert any(
            (moved[0] == np.roll(some[0], by, (0, 1)))[8:-8, 8:-8].all() for by in [(2, 2), (2, -2), (-2, 2), (-2, -2)]
        )
        np.testing.assert_array_equal(PLANTS["flipped"].change(some, 1.0, draw), some[:, :, ::-1])
        np.testing.assert_array_equal(PLANTS["shifted"].change(some, 0.0, draw), some)
        assert 7 < (PLANTS["noised"].change(some, 16.0, draw)[some > 60].astype(float) - some[some > 60]).std() < 17
        mixed = PLANTS["blended"].change(some, 20.0, draw)
        assert np.abs(mixed - some * 0.8).max() <= 0.2 * 255 + 1
        assert np.abs(PLANTS["turned"].change(some, 5.0, draw).astype(float) - some).mean() > 1

    @pytest.mark.parametrize("kind", PLANTS)
    def test_copies_up_to_the_required_strength_are_found(self, kind, train, opened, threshold):
        plant, some = PLANTS[kind], train[:: SLICES * 2]
        for strength in [s for s in plant.strengths if s <= plant.required]:
            result = suspect(opened[0], opened[1], plant.change(some, strength, np.random.default_rng(0)))
            assert (result.ratio < threshold).mean() >= 0.8, (
                strength
            )  # of phantoms that share an outline; real slices: docs/bench.md

    def test_unseen_patients_are_not_accused(self, opened, threshold):
        unseen = np.concatenate([slices(2000 + patient, 2) for patient in range(20)])
        assert (suspect(opened[0], opened[1], unseen).ratio < threshold).mean() <= 0.05


def test_the_patient_of_a_copy_is_named_and_the_other_score_is_of_another(train, opened):
    index, describer, _ = opened
    result = suspect(index, describer, train[:6])
    assert [index.keys[place] for place in result.place] == list(index.keys[:6])
    assert (result.score > 0.99).all()
    assert (result.other < 0.95).all()


def test_an_index_of_one_patient_compares_with_nobody_else(train):
    describer = Describer.fitted(hand64(), train[:3])
    vectors = {name: rows.astype(np.float16) for name, rows in describer.of(train[:3]).items()}
    thumbs = shrunk(train[:3], 64)
    alone = suspect(Index(["a", "b", "c"], np.zeros(3, np.int64), vectors, thumbs), describer, train[:2])
    assert (alone.other == 0).all()
    assert isinstance(alone, Suspicion)


def test_the_threshold_keeps_to_its_rate_on_patients_it_was_not_made_of():
    draw = np.random.default_rng(0)
    ratio = draw.beta(8, 2, 2000)
    threshold, (alarms, n) = calibrated(ratio, [str(i // 10) for i in range(2000)], 0.05)
    assert (ratio < threshold).mean() == pytest.approx(0.05, abs=0.002)
    assert n == 2000
    assert 60 < alarms < 140


class TestMembership:
    def test_the_area_is_that_of_all_pairs(self):
        draw = np.random.default_rng(0)
        ours, theirs = draw.integers(0, 9, 40).astype(float), draw.integers(0, 7, 30).astype(float)
        pairs = ((ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)).mean()
        assert area(ours, theirs) == pytest.approx(pairs)
        assert found(np.array([5.0, 1.0]), np.arange(100.0) / 100) == 1
        assert found(np.array([0.5, 0.2]), np.arange(100.0) / 100) == 0

    def test_only_the_difference_tells_members_whose_slices_are_hard(self):
        """What a slice costs in itself varies far more than what the condition explains: it cancels in the difference."""
        draw = np.random.default_rng(0)
        hard = [draw.normal(0, 5, 300) for _ in range(2)]
        gains = [0.5 + 0.1 * draw.normal(size=300), 0.1 * draw.normal(size=300)]
        parts = [
            Likelihoods(tuple(f"{s}{i}" for i in range(300)), h + gain, h)
            for s, h, gain in zip("ab", hard, gains, strict=True)
        ]
        patients = {key: f"{key[0]}{int(key[1:]) // 10}" for part in parts for key in part.keys}
        said = membership(*parts, patients)
        assert said["difference"]["auc"] > 0.99
        assert said["difference"]["gap"] == pytest.approx(0.5, abs=0.03)
        low, high = said["difference"]["interval"]
        assert low < 0.5 < high
        assert 0.4 < said["likelihood"]["auc"] < 0.6
        json.dumps(said)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("audit")
    shards = write_shard_set(root / "S", {"train": 30, "val": 13, "test": 12})
    run(tokenizer_spec(shards, root / "tok", validate_every=0))
    run(transformer_spec(shards, root / "var", root / "tok", validate_every=0))
    return root


@pytest.mark.slow
def test_an_audit_of_a_run_writes_all_it_says(trained):
    data = DataSpec(str(trained / "S"), workers=0)
    spec = Audit(str(trained / "out"), data, str(trained / "var"), count=4, planted=6, features="hand64")
    result = audit(spec, CPU)
    out = trained / "out"
    assert json.loads((out / "copies.json").read_text()) == json.loads(json.dumps(result))
    rows = pq.read_table(out / "copies.parquet").to_pylist()
    assert len(rows) == result["copies"]["n"] == 12
    assert sum(row["copy"] for row in rows) == result["copies"]["hits"]
    assert len(pq.read_table(out / "planted.parquet")) == sum(len(plant.strengths) for plant in PLANTS.values())
    assert set(result["membership"]) == {"val", "test"}
    page = (out / "index.html").read_text()
    pointed = {part.split('"')[0] for part in page.split('src="')[1:]}
    assert len(pointed) == 13
    assert all((out / name).is_file() for name in pointed)
    again = audit(replace(spec, run="", images=str(out / "samples")), CPU)
    assert again["copies"] == result["copies"]
    assert again["membership"] is None
    with pytest.raises(ConfigMismatch, match="none is named"):
        audit(replace(spec, run=""), CPU)
