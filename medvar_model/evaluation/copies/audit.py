"""Audit a model for memorised training slices: an index of all of them, a calibrated search, planted copies, membership.

In: an `Audit`. Out: a folder with

    copies.json        rates with intervals, thresholds, recall of planted copies, membership, digests
    copies.parquet     a row an image: best training slice, scores, suspicion
    planted.parquet    a row a kind and strength of planted copy
    recall.png         recall of planted copies over their strength
    index.html         the same for people, with the closest pairs
    index/             the training slices' descriptors, which the next audit of the same set takes as they are
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from medvar_data.storage.store import write_bytes
from medvar_model.checkpoints.checkpoint import build_tokenizer, build_transformer, read_checkpoint
from medvar_model.errors import ConfigMismatch
from medvar_model.evaluation.copies.index import Describer, Index, build_index
from medvar_model.evaluation.copies.membership import likelihoods, membership
from medvar_model.evaluation.copies.page import write_page
from medvar_model.evaluation.copies.plants import PLANTS
from medvar_model.evaluation.copies.suspicion import ALPHA, Suspicion, suspect
from medvar_model.evaluation.extractors import Extractor, opened_extractors
from medvar_model.evaluation.images import read_images
from medvar_model.evaluation.inputs import read_drawn, samples_digest, slice_facts
from medvar_model.evaluation.metrics.features import shrunk
from medvar_model.evaluation.metrics.proportion import proportion
from medvar_model.evaluation.plots import plot_curves
from medvar_model.evaluation.reference import Reference
from medvar_model.evaluation.scores import Labelled
from medvar_model.loader import DataSpec
from medvar_model.machine.folders import check_writable
from medvar_model.sampling.sample import PAPER, SampleSettings, to_uint8
from medvar_model.sampling.sample_files import SampleFiles, own_tokenizer, write_samples

FEATURE_SIDE = 96  # pixels at which slices are described for the search: enough to find candidates, five times as fast
FITTED = 1024  # slices that the descriptors' components are found on


@dataclass(frozen=True)
class Audit:
    """What to audit.

    Args:
        out: folder for report, page and index.
        data: the shard set whose training slices may have been memorised.
        run: a transformer's run or checkpoint; empty audits images alone, without membership.
        images: folder of images, as `images.ScoreImages` takes them, or one that `medvar-model sample` wrote; empty draws new ones.
        count: images drawn of each condition.
        settings: of the drawing.
        held_out: at most so many slices of each held-out split calibrate the threshold; 0 takes all.
        planted: copies planted of each kind and strength.
        members: at most so many slices of each split are asked for membership.
        alpha: share of unseen slices that may be called copies.
        features: what candidates are found by; empty is the default.
        batch_size: slices read at a time.
        weights: name of features → weight file, as in `evaluate.Evaluate`.
    """

    out: str
    data: DataSpec
    run: str = ""
    images: str = ""
    count: int = 32
    settings: SampleSettings = PAPER
    held_out: int = 1024
    planted: int = 100
    members: int = 1024
    alpha: float = ALPHA
    features: str = ""
    batch_size: int = 64
    weights: Mapping[str, str] = field(default_factory=dict)


def audit(spec: Audit, device: torch.device, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Audit and write everything; see the head of the file. Returns the content of copies.json.

    Raises:
        ModelError: run, images or set cannot be used.
        ConfigMismatch: neither a run nor images are named.

    Example:
        >>> audit(Audit("copies", DataSpec("S"), "runs/d4"), torch.device("cpu"))  # doctest: +SKIP
    """
    return _Open(spec, device, report).measure()


class _Open:
    """An open audit."""

    def __init__(self, spec: Audit, device: torch.device, report: Callable[[str], None]) -> None:
        if not spec.run and not spec.images:
            raise ConfigMismatch("Wanted a run, a folder of images, or both, to look for copies in; none is named.")
        self.spec, self.device, self.say, self.out = spec, device, report, Path(spec.out)
        check_writable(self.out)
        self.kept = read_checkpoint(Path(spec.run), "transformer") if spec.run else None
        self.frozen = read_checkpoint(own_tokenizer(Path(spec.run)), "tokenizer") if spec.run else None
        side = self.frozen.config.image_side if self.frozen else 0  # type: ignore[union-attr]  # a tokenizer's has one
        self.reference = Reference(spec.data, device, side, spec.held_out, spec.batch_size)
        self.patients = slice_facts(spec.data.shards).patient
        (self.features,) = opened_extractors([spec.features], device, spec.weights, self.reference.train.image_side)

    def measure(self) -> dict[str, Any]:
        spec = self.spec
        images, files, digest = self._images()
        self.say("index of the training slices")
        describer, index, inputs = self._index()
        held, keys = self.reference.held
        self.say(f"threshold from {len(keys)} held-out slices")
        unseen = suspect(index, describer, held.images)
        threshold, alarms = calibrated(unseen.ratio, [self.patients[key] for key in keys], spec.alpha)
        self.say(f"{len(images)} images against {len(index.keys)} training slices")
        found = suspect(index, describer, images.images)
        planted = self._planted(index, describer, threshold)
        called = found.ratio < threshold
        result: dict[str, Any] = {
            "inputs": {**inputs, "images": digest, "transformer": self.kept.digest if self.kept else None},
            "alpha": spec.alpha,
            "threshold": threshold,
            "false_alarms": _share(*alarms),
            "held_out": {"n": len(keys), "patients": len({self.patients[key] for key in keys})},
            "copies": _share(int(called.sum()), len(called)),
            "per_condition": {
                name: _share(int(called[images.places(name)].sum()), len(images.places(name)))
                for name in sorted(set(images.conditions))
            },
            "planted": planted,
            "membership": self._membership(),
        }
        self._write(result, (images, files), found, index)
        return result

    def _images(self) -> tuple[Labelled, list[str], str]:
        spec, folder = self.spec, Path(self.spec.images)
        if spec.images and not (folder / "samples.json").is_file():
            return read_images(folder, self.reference.train)
        if not spec.images:
            assert self.kept
            self.say("samples")
            folder = self.out / "samples"
            write_samples(
                SampleFiles(spec.run, str(folder), tuple(self.kept.conditions), spec.count, spec.settings), self.device
            )
        return *read_drawn(folder, self.reference.train.image_side), samples_digest(folder)

    def _index(self) -> tuple[Describer, Index, dict[str, Any]]:
        train = self.reference.train
        some = np.concatenate([to_uint8(part.images).cpu().numpy() for part in train.passes(64, FITTED)])
        describer = Describer.fitted(_at_96(self.features), some)
        inputs = {
            "shard_set": train.digest, "side": train.image_side,
            "features": {"name": self.features.name, **self.features.provenance, "input": f"{FEATURE_SIDE} pixels a side"},
        }  # fmt: skip
        batches = (
            (list(part.keys), to_uint8(part.images).cpu().numpy()) for part in train.passes(self.spec.batch_size)
        )
        index = build_index(self.out / "index", batches, describer, self.patients.__getitem__, inputs)
        return describer, index, inputs

    def _planted(self, index: Index, describer: Describer, threshold: float) -> list[dict[str, Any]]:
        """Plant copies of training slices, evenly spread, and count which are found."""
        train = self.reference.train
        images = np.concatenate([to_uint8(part.images).cpu().numpy() for part in train.passes(64, self.spec.planted)])
        rows = []
        for kind, plant in PLANTS.items():
            self.say(f"planted copies: {kind}")
            for number, strength in enumerate(plant.strengths):
                changed = plant.change(images, strength, np.random.default_rng((number, 1)))
                hits = int((suspect(index, describer, changed).ratio < threshold).sum())
                required = strength <= plant.required
                rows.append(
                    {
                        "kind": kind,
                        "strength": strength,
                        "unit": plant.unit,
                        "required": required,
                        **_share(hits, len(images)),
                    }
                )
        return rows

    def _membership(self) -> dict[str, Any] | None:
        if not (self.kept and self.frozen):
            return None
        self.say("membership")
        tokenizer = build_tokenizer(self.frozen, self.spec.run).to(self.device)
        transformer = build_transformer(self.kept, self.spec.run).to(self.device)
        parts = {}
        for split in ("train", *self.reference.splits):
            batches = self.reference.loader(split).passes(self.spec.batch_size, self.spec.members)
            parts[split] = likelihoods(tokenizer, transformer, batches)
        return {split: membership(parts["train"], parts[split], self.patients) for split in self.reference.splits}

    def _write(self, result: dict[str, Any], drawn: tuple[Labelled, list[str]], found: Suspicion, index: Index) -> None:
        images, files = drawn
        keys = [index.keys[place] for place in found.place]
        rows = {
            "file": files, "condition": list(images.conditions), "nearest_key": keys, "score": found.score,
            "score_of_other_patient": found.other, "suspicion": found.ratio, "copy": found.ratio < result["threshold"],
        }  # fmt: skip
        pq.write_table(pa.table(rows), self.out / "copies.parquet")
        pq.write_table(pa.Table.from_pylist(result["planted"]), self.out / "planted.parquet")
        curves = {}
        for kind, plant in PLANTS.items():
            mine = [row for row in result["planted"] if row["kind"] == kind]
            curves[kind] = ([row["strength"] / plant.required for row in mine], [row["share"] for row in mine])
        plot_curves(
            self.out / "recall.png",
            curves,
            "strength, over the strongest that must be found",
            "recall of planted copies",
        )
        closest = np.argsort(found.ratio, kind="stable")[:24]
        pairs = [(images.images[i], np.asarray(index.thumbs[found.place[i]])) for i in closest]
        write_page(self.out, result, [{name: column[i] for name, column in rows.items()} for i in closest], pairs)
        write_bytes(self.out / "copies.json", (json.dumps(result, indent=2) + "\n").encode())


def calibrated(ratio: np.ndarray, patients: list[str], alpha: float, folds: int = 5) -> tuple[float, tuple[int, int]]:
    """Give the alpha quantile of unseen slices' suspicion, and how many of how many slices of patients that a threshold was not made
    of lie below it (patients are dealt to folds): the false alarms to expect.
    """
    names = sorted(set(patients))
    fold = np.array([names.index(name) % folds for name in patients])
    alarms = 0
    for number in np.unique(fold):
        inside = fold == number
        if (~inside).any():
            alarms += int((ratio[inside] < np.quantile(ratio[~inside], alpha, method="lower")).sum())
    return float(np.quantile(ratio, alpha, method="lower")), (alarms, len(ratio))


def _at_96(found: Extractor) -> Extractor:
    """Describe slices at a small side."""
    inner = found.of
    return replace(found, of=lambda images: inner(shrunk(images, FEATURE_SIDE))) if found.learned else found


def _share(hits: int, n: int) -> dict[str, Any]:
    return {
        name: None if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in asdict(proportion(hits, n)).items()
    }
