"""The same scan found again although it was changed; other scans are left apart; and through the real commands."""

import itertools

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medvar_data.harmonize.histogram import count, is_countable
from medvar_data.harmonize.signature import CELLS, make_thumbnail, thumbnail_shape
from medvar_data.shard.near_duplicates.candidates import describe, find_candidates
from medvar_data.shard.near_duplicates.fit import ORIENTATIONS, Prepared
from medvar_data.shard.near_duplicates.memory import read_comparisons
from medvar_data.shard.near_duplicates.parts import WHOLE
from medvar_data.shard.near_duplicates.proof import Likeness, can_be_proved, compare
from medvar_data.shard.near_duplicates.search import near_pairs


def scan(seed: int, shape=(24, 60, 64)) -> np.ndarray:
    """A smooth body with details of several sizes, as int16."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    volume = 400.0 * (((x - 0.1) ** 2 / 0.7 + (y + 0.05) ** 2 / 0.5 + z**2 / 4) < 1)
    for _ in range(60):
        at, size, value = rng.uniform(-0.8, 0.8, 3), rng.uniform(0.08, 0.35), rng.uniform(-300, 500)
        volume += value * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2) / size**2)
    return (volume + rng.normal(0, 5, shape)).astype(np.int16)


def thumbnail(voxels: np.ndarray) -> np.ndarray:
    stack = np.ascontiguousarray(voxels)
    return make_thumbnail(stack, count(stack) if is_countable(stack.dtype) else None)


def resampled(voxels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    planes = np.stack([cv2.resize(p.astype(np.float32), shape[:0:-1], interpolation=cv2.INTER_AREA) for p in voxels])
    flat = cv2.resize(planes.reshape(len(planes), -1), (shape[1] * shape[2], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.rint(flat.reshape(shape)).astype(np.int16)


CHANGES = {
    "nothing": lambda v: v,
    "laid otherwise": lambda v: v.transpose(2, 0, 1)[::-1, :, ::-1],
    "cropped": lambda v: v[4:18],
    "cropped and padded across": lambda v: np.pad(v[:, 3:, :-3], ((0, 0), (0, 0), (3, 0)), constant_values=v.min()),
    "resampled": lambda v: resampled(v, (36, 45, 48)),
    "shifted": lambda v: v + np.int16(1024),
    "scaled": lambda v: v.astype(np.float32) * 0.37 - 11,
    "windowed": lambda v: (np.clip((v.astype(np.float32) + 100) / 900, 0, 1) * 255).astype(np.uint8),
    "curved": lambda v: np.sqrt(v.astype(np.float32) - v.min()),
    "cropped, laid, resampled": lambda v: resampled(v[3:20].transpose(1, 0, 2)[::-1], (50, 22, 50)),
}


@pytest.fixture(scope="module")
def originals() -> dict[int, np.ndarray]:
    return {seed: thumbnail(scan(seed)) for seed in range(8)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_a_candidate_and_proved(originals, change):
    copy = thumbnail(CHANGES[change](scan(3)))
    rows = np.stack([*map(describe, originals.values()), describe(copy)])
    assert (3, len(originals)) in find_candidates(rows, np.arange(len(rows)))
    assert compare(Prepared.of(originals[3]), Prepared.of(copy)).is_one_scan


def test_different_scans_are_left_apart(originals):
    prepared = [Prepared.of(t) for t in originals.values()]
    found = [compare(a, b) for a, b in itertools.combinations(prepared, 2)]
    assert not any(likeness.is_one_scan for likeness in found)


def test_a_scan_in_which_something_moved_is_another_scan():
    one = scan(3)
    other = one.copy()
    other[:, 20:40, 24:44] = np.roll(one[:, 20:40, 24:44], 4, axis=2)
    likeness = compare(Prepared.of(thumbnail(one)), Prepared.of(thumbnail(other)))
    assert likeness.similarity > 0.8
    assert not likeness.is_one_scan


@pytest.mark.parametrize("voxels", [np.zeros((9, 9, 9), np.int16), np.full((1, 40, 40), 7, np.float32)])
def test_a_scan_without_content_is_like_none(originals, voxels):
    empty = Prepared.of(thumbnail(voxels))
    assert not compare(empty, empty).is_one_scan
    assert not compare(empty, Prepared.of(originals[0])).is_one_scan


def test_blocks_that_lose_alike_are_a_copy_and_one_that_loses_more_is_not():
    assert Likeness(0.97, 0.91, 0.97).is_one_scan
    assert not Likeness(0.99, 0.93, 0.995).is_one_scan


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (10, 216, 256), (35, 51, 35), (134, 512, 512), (3, 5, 4000), (1, 900, 900)]
)
def test_a_thumbnail_keeps_what_is_coarse_and_is_small(shape):
    made = thumbnail_shape(shape)
    assert np.prod(made) <= CELLS
    assert all(1 <= n <= m for n, m in zip(made, shape, strict=True))


def test_ranks_do_not_change_under_rising_maps():
    voxels = scan(1)
    assert np.array_equal(thumbnail(voxels), thumbnail(voxels + np.int16(1000)))
    assert np.abs(thumbnail(voxels).astype(int) - thumbnail(voxels.astype(np.float32) * 2)).max() <= 1


def test_every_orientation_is_undone():
    volume = np.arange(24).reshape(2, 3, 4)
    for lay in ORIENTATIONS:
        back, _ = lay.undo(WHOLE)
        assert np.array_equal(back.of(lay.of(volume)), volume)


def test_pairs_of_files_but_not_of_those_that_are_joined(tmp_path, originals):
    files = []
    for number, made in enumerate([originals[0], originals[1], thumbnail(scan(0)[:, ::-1]), originals[2]]):
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], made)
    found = list(near_pairs(files, np.arange(4), 1, read=np.load))
    assert [pair[:2] for pair in found] == [(0, 2)]
    assert found[0][2] > 0.98
    assert list(near_pairs(files, np.array([0, 1, 0, 2]), 1, read=np.load)) == []


class TestMemory:
    @pytest.fixture
    def files(self, tmp_path, originals):
        paths = [tmp_path / f"{number}.npy" for number in range(3)]
        for path, made in zip(paths, [originals[0], originals[1], thumbnail(scan(0)[:, ::-1])], strict=True):
            np.save(path, made)
        return paths

    def test_what_was_compared_is_not_compared_again(self, files, tmp_path, monkeypatch):
        memory = tmp_path / "comparisons.parquet"
        found = list(near_pairs(files, np.arange(3), 1, memory, np.load))
        assert set(read_comparisons(memory).values()) == {None, found[0][2]}
        monkeypatch.setattr("medvar_data.shard.near_duplicates.search.compare", None)
        assert list(near_pairs(files, np.arange(3), 1, memory, np.load)) == found
        with pytest.raises(TypeError):
            list(near_pairs(files, np.arange(3), 1, None, np.load))

    def test_a_changed_thumbnail_is_compared(self, files, tmp_path, originals):
        memory = tmp_path / "comparisons.parquet"
        assert list(near_pairs(files, np.arange(3), 1, memory, np.load))
        np.save(files[2], originals[3])
        assert list(near_pairs(files, np.arange(3), 1, memory, np.load)) == []

    @pytest.mark.parametrize("damage", ["cut off", "of another version", "of other columns"])
    def test_a_memory_that_cannot_be_used_is_made_again(self, files, tmp_path, damage):
        memory = tmp_path / "comparisons.parquet"
        found = list(near_pairs(files, np.arange(3), 1, memory, np.load))
        good, table = memory.read_bytes(), pq.read_table(memory)
        if damage == "cut off":
            memory.write_bytes(good[:-20])
        elif damage == "of another version":
            emptied = table.set_column(2, "similarity", pa.nulls(len(table), pa.float64()))
            pq.write_table(emptied.replace_schema_metadata({"medvar.proof": "0"}), memory)
        else:
            pq.write_table(table.drop_columns(["similarity"]), memory)
        assert list(near_pairs(files, np.arange(3), 1, memory, np.load)) == found
        assert memory.read_bytes() == good


def test_scans_too_small_for_a_proof_are_not_compared(tmp_path, monkeypatch):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", thumbnail(scan(0, (4, 18, 20))))
    monkeypatch.setattr("medvar_data.shard.near_duplicates.search.describe", None)
    assert list(near_pairs([tmp_path / "0.npy", tmp_path / "1.npy"], np.arange(2), 1, read=np.load)) == []
    assert [can_be_proved(shape) for shape in ((4, 18, 20), (4, 28, 18), (16, 16, 16))] == [False, True, True]
