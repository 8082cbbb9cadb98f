"""Keep every training slice as a thumbnail and two short descriptors, and find candidates for a copy among them.

In: batches of slices. Out: a folder of flat files, read through the operating system's page cache, so that memory is bounded
whatever the number of slices; and for each query the most promising slices of several patients.

    learned.f16   128 principal components of the extractor's features, length 1
    spectrum.f16  128 principal components of the band-passed pixels' amplitudes at low frequencies, which no shift changes
    thumbs.u8     64 x 64 pixels
    index.json    keys, and what the files were made of

The search is faiss's exact one, a block of slices at a time: nothing is trained, and nothing can be missed but by the descriptors.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from medvar_data.storage.store import write_bytes
from medvar_model.evaluation.copies.match import FLIPS, SIDE, spectra
from medvar_model.evaluation.extractors import Extractor
from medvar_model.evaluation.metrics.features import shrunk

COMPONENTS = 128
LOW = 12  # frequencies along either axis, of 32
BLOCK = 65_536  # slices of a block
NEAREST = 48  # of each descriptor and flip
OF_A_PATIENT = 2
CANDIDATES = 12  # of each descriptor
FILE = "index.json"

Images = UInt8[np.ndarray, "n side side"]
Vectors = Float32[np.ndarray, "n d"]


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of rows, each divided by the root of its standard deviation.

    Attributes:
        mean: of the rows.
        axes: rows x components.
    """

    mean: Float32[np.ndarray, " rows"]
    axes: Float32[np.ndarray, "rows components"]

    @staticmethod
    def fitted(rows: np.ndarray) -> "Components":
        """Find them; columns of any units enter alike."""
        scale = 1 / np.maximum(rows.std(0), 1e-3 * rows.std() + 1e-9)
        _, values, axes = np.linalg.svd((rows - rows.mean(0)) * scale, full_matrices=False)
        count = min(COMPONENTS, len(values))
        kept = (axes[:count] * scale).T / np.sqrt(np.maximum(values[:count], 1e-6 * values[0] + 1e-9))
        return Components(rows.mean(0).astype(np.float32), kept.astype(np.float32))

    def of(self, rows: np.ndarray) -> Vectors:
        """Give the components of rows, of length 1."""
        return _unit((rows.astype(np.float32) - self.mean) @ self.axes)


@dataclass(frozen=True, eq=False)
class Describer:
    """Turns slices into both descriptors.

    Attributes:
        extractor: gives features.
        learned, spectrum: components of features, and of amplitudes.
    """

    extractor: Extractor
    learned: Components
    spectrum: Components

    @staticmethod
    def fitted(extractor: Extractor, images: Images) -> "Describer":
        """Find the components of some slices."""
        found = Components.fitted(amplitudes(shrunk(images, SIDE)))
        return Describer(extractor, Components.fitted(extractor.of(images)), found)

    def of(self, images: Images) -> dict[str, Vectors]:
        """Describe slices, by the descriptors' names."""
        return {
            "learned": self.learned.of(self.extractor.of(images)),
            "spectrum": self.spectrum.of(amplitudes(shrunk(images, SIDE))),
        }

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of each descriptor."""
        return {"learned": self.learned.axes.shape[1], "spectrum": self.spectrum.axes.shape[1]}


def amplitudes(thumbnails: UInt8[np.ndarray, "n 64 64"]) -> Float32[np.ndarray, "n 276"]:
    """Give square roots of the amplitudes of a band-passed slice at 23 x 12 low frequencies."""
    values = spectra(thumbnails).abs()[:, :, :LOW].sqrt()
    return torch.cat([values[:, :LOW], values[:, 1 - LOW :]], 1).flatten(1).numpy()


@dataclass(frozen=True, eq=False)
class Index:
    """An open index.

    Attributes:
        keys: of the slices.
        patients: number of each slice's patient.
        vectors: both descriptors of all slices, float16, by name.
        thumbs: all slices.
    """

    keys: Sequence[str]
    patients: Int64[np.ndarray, " n"]
    vectors: Mapping[str, np.ndarray]
    thumbs: np.ndarray


def build_index(
    folder: Path,
    batches: Iterable[tuple[Sequence[str], np.ndarray]],
    describer: Describer,
    patient_of: Callable[[str], str],
    made_of: dict[str, Any],
) -> Index:
    """Describe every slice and write the files; files of the same `made_of` are opened as they are.

    Args:
        folder: where the files go.
        batches: keys and slices; not read where the files are there.
        describer: of the slices.
        patient_of: key → patient.
        made_of: digests that decide the content.
    """
    said = json.loads((folder / FILE).read_text()) if (folder / FILE).is_file() else {}
    if said.get("made_of") != made_of:
        said = {"made_of": made_of, "keys": _written(folder, batches, describer), "widths": describer.widths}
        write_bytes(folder / FILE, json.dumps(said).encode())
    keys, n = said["keys"], len(said["keys"])
    vectors = {
        name: np.memmap(folder / f"{name}.f16", np.float16, "r", shape=(n, width))
        for name, width in said["widths"].items()
    }
    thumbs = np.memmap(folder / "thumbs.u8", np.uint8, "r", shape=(n, SIDE, SIDE))
    numbers = {name: i for i, name in enumerate(sorted({patient_of(key) for key in keys}))}
    return Index(keys, np.array([numbers[patient_of(key)] for key in keys], dtype=np.int64), vectors, thumbs)


def _written(folder: Path, batches: Iterable[tuple[Sequence[str], np.ndarray]], describer: Describer) -> list[str]:
    """Write descriptors and thumbnails beside, then rename: an index that another process has open stays whole. Returns the keys."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    keys: list[str] = []
    names = ("learned.f16", "spectrum.f16", "thumbs.u8")
    with ExitStack() as files:
        opened = {name: files.enter_context((folder / f"{name}.partial").open("wb")) for name in names}
        for some, images in batches:
            for name, rows in describer.of(images).items():
                opened[f"{name}.f16"].write(rows.astype(np.float16).tobytes())
            opened["thumbs.u8"].write(shrunk(images, SIDE).tobytes())
            keys += some
    for name in names:
        (folder / f"{name}.partial").replace(folder / name)
    return keys


def search(
    index: np.ndarray, queries: Float32[np.ndarray, "q d"], k: int = NEAREST
) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Find the k rows of largest product with each query, exactly, a block of rows at a time: products and places, best first."""
    import faiss  # takes a quarter of a second to import; only this search needs it

    kept: tuple[np.ndarray, np.ndarray] | None = None
    for start in range(0, len(index), BLOCK):
        rows = np.ascontiguousarray(index[start : start + BLOCK], dtype=np.float32)
        values, places = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        found = (values, places + start)
        if kept:
            both = [np.hstack((kept[part], found[part])) for part in (0, 1)]
            order = np.argsort(-both[0], axis=1, kind="stable")[:, :k]
            found = (np.take_along_axis(both[0], order, 1), np.take_along_axis(both[1], order, 1))
        kept = found
    assert kept, "an index without slices"
    return kept[0], kept[1].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may have been copied into one query.

    Attributes:
        place: numbers of slices in the index.
        flip: under which flip of the query each was found.
    """

    place: Int64[np.ndarray, " c"]
    flip: Int64[np.ndarray, " c"]


def candidates(index: Index, describer: Describer, images: Images) -> list[Candidates]:
    """Find candidates of every image: by both descriptors, under every flip, at most two slices of a patient by each."""
    n = len(images)
    flipped = [describer.of(np.ascontiguousarray(np.flip(images, axes)) if axes else images) for axes in FLIPS]
    queries = {name: np.concatenate([part[name] for part in flipped]) for name in flipped[0]}
    found = {name: search(index.vectors[name], rows) for name, rows in queries.items()}  # one reading for all flips
    chosen = []
    for i in range(n):
        picked: dict[tuple[int, int], None] = {}
        for values, places in found.values():
            mine, where = values[i::n].ravel(), places[i::n].ravel()
            flips = np.repeat(np.arange(len(FLIPS)), values.shape[1])
            for at in _best_of_patients(mine, index.patients[where]):
                picked[int(where[at]), int(flips[at])] = None
        place, flip = np.array(list(picked), dtype=np.int64).T
        chosen.append(Candidates(place, flip))
    return chosen


def _best_of_patients(values: np.ndarray, patients: np.ndarray) -> list[int]:
    """Say which entries to keep: the best, but few of a patient, so that several patients are met."""
    counts: dict[int, int] = {}
    kept = []
    for at in np.argsort(-values, kind="stable").tolist():
        who = int(patients[at])
        if counts.get(who, 0) < OF_A_PATIENT:
            counts[who] = counts.get(who, 0) + 1
            kept.append(at)
        if len(kept) == CANDIDATES:
            break
    return kept


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), dtype=np.float32)
