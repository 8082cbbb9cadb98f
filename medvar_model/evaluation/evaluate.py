"""Evaluate a trained run: reconstructions, codes, predictions, drawn images, copies, conditions.

In: an `Evaluate`. Out: a folder with `report.json`, `samples.parquet`, `held_out.parquet` and `pictures/`; every number
is kept with the digests of what it came from. The same call again returns the finished report.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvar_data.storage.html import assemble, write_section
from medvar_model.checkpoints.checkpoint import Contents, build_tokenizer, build_transformer, read_checkpoint
from medvar_model.errors import ConfigMismatch, ShardSetMismatch
from medvar_model.evaluation.comparison import FLOOR, REPLICATES, Grouped, compare, summary
from medvar_model.evaluation.extractors import opened_extractors, remembering
from medvar_model.evaluation.inputs import (
    SliceFacts,
    check_conditions,
    check_pair,
    held_out_collections,
    read_drawn,
    read_samples,
    samples_digest,
    scan_of,
    slice_facts,
    split_sizes,
)
from medvar_model.evaluation.notes import notes
from medvar_model.evaluation.outputs import REPORT, finished_report, write_report, write_rows
from medvar_model.evaluation.page import SECTION, model_section
from medvar_model.evaluation.passes import (
    Fresh,
    HeldOut,
    held_out_pass,
    overall_usage,
    reconstructed,
    training_pass,
)
from medvar_model.evaluation.pictures import Shown, write_pictures
from medvar_model.evaluation.reconstructions import (
    open_perceptual,
    perceptual_distances,
    reconstruction_distances,
    reconstruction_scores,
)
from medvar_model.evaluation.reference import fresh_slices
from medvar_model.evaluation.scores import (
    Labelled,
    mean_reconstructions,
    score_conditions,
    score_copies,
    score_reconstructions,
)
from medvar_model.loader import DataSpec, Loader
from medvar_model.machine.folders import check_shard_set, check_writable
from medvar_model.machine.memory import told_when_memory_ends
from medvar_model.machine.processes import Process
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.sampling.sample import PAPER, SampleSettings
from medvar_model.sampling.sample_files import SampleFiles, check_samples, own_tokenizer, write_samples
from medvar_model.training.perceptual import perceptual_source


@dataclass(frozen=True)
class Evaluate:
    """What to score.

    Args:
        out: folder for the report.
        data: the shard set; its val and test splits are the held-out slices.
        run: a transformer's run or checkpoint.
        tokenizer: a tokenizer's run or checkpoint; empty takes the copy in the transformer's run.
        samples: folder that `sample_files.write_samples` wrote; empty draws into `out`.
        count: images drawn of each condition, and training slices of each that they are compared with.
        settings: guidance, filters, seed of the drawing.
        batch_size: images at a time; changes nothing but speed and memory.
        held_out: at most so many slices of each held-out split, evenly spread; 0 takes all.
        training: at most so many training slices are searched for copies, evenly spread; 0 takes all.
        features: what distances between sets stand on, by name; empty is the learned ones where their weights are installed.
        replicates: of the intervals; 0 gives none.
        weights: name of features → weight file, or the folder it lies in, for features whose weights the user downloads.
        perceptual: kind of perceptual distance between slices and reconstructions, see `perceptual.KINDS`.
        lpips_files: weight files, where that is lpips.
    """

    out: str
    data: DataSpec
    run: str
    tokenizer: str = ""
    samples: str = ""
    count: int = 32
    settings: SampleSettings = PAPER
    batch_size: int = 64
    held_out: int = 2048
    training: int = 0
    features: tuple[str, ...] = ("", "radiomics")
    replicates: int = REPLICATES
    weights: Mapping[str, str] = field(default_factory=dict)
    perceptual: str = "none"
    lpips_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """A finished report.

    Attributes:
        out: its folder.
        report: the content of report.json.
        page: the same for people, `index.html`.
    """

    out: Path
    report: dict[str, Any]
    page: Path


def evaluate(spec: Evaluate, device: torch.device, report: Callable[[str], None] = lambda line: None) -> Evaluation:
    """Score a run and write its report and page, or return the report that the same call left before.

    Args:
        spec: what to score.
        device: what to compute on.
        report: told in a line of each stage that begins.

    Raises:
        MissingCheckpoint: the run, its tokenizer or the samples are not there.
        ShardSetMismatch: the set has no held-out slices, or other conditions than the run.
        ConfigMismatch: tokenizer or samples do not belong to the run.
        OutOfMemory: so many images at a time do not fit.

    Example:
        >>> evaluate(Evaluate("eval", DataSpec("shards"), "runs/d4"), torch.device("cpu"))  # doctest: +SKIP
    """
    with told_when_memory_ends(f"Scoring {spec.batch_size} images at a time", "Give a smaller --batch-size."):
        open_evaluation = _Evaluation(spec, device, report)
        result = open_evaluation.finished() or open_evaluation.measure()
    out = Path(spec.out)
    write_section(out, SECTION, model_section(result, "pictures"))
    page = assemble(out, "medvar evaluation", f"{spec.run}, scored on the held-out slices of {spec.data.shards}.")
    return Evaluation(out, result, page)


def check_evaluation(spec: Evaluate, device: torch.device) -> None:
    """Check what `evaluate` checks before it begins; write nothing.

    Raises:
        ModelError, MedvarError: what stands in its way.
    """
    _Evaluation(spec, device, lambda line: None)


class _Evaluation:
    """An open evaluation: networks, loaders, names."""

    def __init__(self, spec: Evaluate, device: torch.device, report: Callable[[str], None]) -> None:
        self.spec, self.device, self.say, self.out = spec, device, report, Path(spec.out)
        check_writable(self.out)
        check_shard_set(spec.data.shards)
        self.kept = read_checkpoint(Path(spec.run), "transformer")
        self.tokenizer_folder = Path(spec.tokenizer) if spec.tokenizer else own_tokenizer(Path(spec.run))
        self.frozen = read_checkpoint(self.tokenizer_folder, "tokenizer")
        check_pair(self.kept, self.frozen, spec.run)
        self.data = replace(spec.data, hold_out=held_out_collections(self.kept))
        self.side: int = self.frozen.config.image_side  # type: ignore[union-attr]  # a tokenizer's has one
        sizes = split_sizes(spec.data.shards)
        self.held_out = [split for split in ("val", "test") if sizes.get(split, 0)]
        if not self.held_out:
            raise ShardSetMismatch(
                f"{spec.data.shards} has no val or test slices, so there is nothing unseen to score by. Shard it again "
                "with larger held-out shares, or from more patients."
            )
        self.loader = self._loader("train")
        check_conditions(self.kept, spec.run, self.loader.conditions, spec.data.shards)
        self.extractors = [remembering(e) for e in opened_extractors(spec.features, device, spec.weights, self.side)]
        self.perceptual = open_perceptual(spec.perceptual, spec.lpips_files)
        self.source = perceptual_source(spec.perceptual, spec.lpips_files)
        self.names = {row: name for name, row in self.kept.conditions.items()}
        if spec.samples:
            read_samples(Path(spec.samples))
        else:
            check_samples(self._drawing())

    def finished(self) -> dict[str, Any] | None:
        """The report that the same evaluation left before, if it did."""
        return finished_report(self.out / REPORT, self._inputs())

    @cached_property
    def facts(self) -> SliceFacts:
        """Patients of slices, anatomy of conditions."""
        return slice_facts(self.spec.data.shards)

    def measure(self) -> dict[str, Any]:
        """Draw, pass over all slices, score; write report, rows and pictures. Returns the report."""
        spec = self.spec
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / REPORT).unlink(missing_ok=True)  # a report of other inputs must not stand beside new pictures
        samples, files = self._samples()
        tokenizer = build_tokenizer(self.frozen, str(self.tokenizer_folder)).to(self.device)
        held, splits, predictions = self._held_out_slices(tokenizer)
        truth = Labelled(held.images, tuple(self.names[row] for row in held.rows.tolist()))
        self.say("training slices: nearest to each sample")
        chosen = Fresh(spec.count)
        queries = np.concatenate([samples.images, held.images])
        near = training_pass(queries, self.loader.passes(spec.batch_size, spec.training), chosen)
        self.say("metrics")
        fresh, fresh_keys = fresh_slices(chosen, self.names, self.side, samples)
        again = Labelled(reconstructed(tokenizer, fresh.images, self.device), fresh.conditions)
        patients = [self.facts.patient[key] for key in held.keys]
        quality = score_reconstructions(truth, held.reconstructions) | self._perceptual(held)
        distances = reconstruction_distances(
            held.images, held.reconstructions, patients, self.extractors, spec.replicates
        )
        scores = reconstruction_scores(quality, patients, distances, spec.replicates)
        named = score_conditions(truth, [scan_of(key) for key in held.keys], samples, fresh, again.images)
        distance = near.nearest.distance
        report = {
            "inputs": self._inputs(),
            "settings": asdict(spec.settings),
            "sampled": sorted(set(samples.conditions)),
            "splits": {split: splits.count(split) for split in self.held_out},
            "reconstructions": mean_reconstructions(truth, quality)
            | {"distances": distances, "scores": [asdict(score) for score in scores]},
            "scales": _scales(self.frozen, held),
            "predictions": predictions,
            "distribution": self._distribution(held, truth, samples, (fresh, again, fresh_keys)),
            "copies": score_copies(distance[: len(samples)], samples, distance[len(samples) :], truth),
            "conditions": named.report,
        }
        report["notes"] = notes(report, [Path(spec.run), self.tokenizer_folder])
        slices = {"key": list(held.keys), "split": splits, "condition": list(truth.conditions), **quality}
        drawn = {"file": files, "condition": list(samples.conditions), "named": list(named.named)}
        write_rows(self.out, drawn, slices, near)
        write_pictures(self.out / "pictures", Shown(samples, truth, held.reconstructions, near), tokenizer, self.device)
        return write_report(self.out, report)

    def _inputs(self) -> dict[str, Any]:
        """Name everything that decides a report."""
        spec = self.spec
        return {
            "shard_set": self.loader.digest,
            "transformer": self.kept.digest,
            "tokenizer": self.frozen.digest,
            "samples": samples_digest(Path(spec.samples)) if spec.samples else asdict(spec.settings),
            "count": spec.count,
            "held_out": spec.held_out,
            "training": spec.training,
            "features": [{"name": e.name, **e.provenance} for e in self.extractors],
            "replicates": spec.replicates,
            "perceptual": asdict(self.source) if self.source else None,
        }

    def _perceptual(self, held: HeldOut) -> dict[str, Any]:
        distance = self.perceptual.to(self.device) if self.perceptual else None
        return perceptual_distances(distance, self.spec.perceptual, held.images, held.reconstructions, self.device)

    def _distribution(
        self, held: HeldOut, truth: Labelled, samples: Labelled, real: tuple[Labelled, Labelled, list[str]]
    ) -> dict[str, Any]:
        """Compare samples, and real slices for the floor (themselves, as coded, their keys), with held-out slices."""
        fresh, again, keys = real
        reference = Grouped(truth, tuple(self.facts.patient[key] for key in held.keys))
        patients = tuple(self.facts.patient[key] for key in keys)
        candidates = {
            "samples": Grouped.drawn(samples),
            FLOOR: Grouped(fresh, patients),
            f"{FLOOR}_through_tokenizer": Grouped(again, patients),
        }
        scores = compare(reference, candidates, self.extractors, self.facts.cell, self.spec.replicates)
        return summary(scores, self.extractors, reference, candidates)

    def _loader(self, split: str) -> Loader:
        alone = Process(1, 0, self.device)
        return Loader(self.data, split, self.side, self.spec.batch_size, 0, alone)

    def _samples(self) -> tuple[Labelled, list[str]]:
        """Read the samples that were named, or draw them."""
        folder = Path(self.spec.samples) if self.spec.samples else self.out / "samples"
        if not self.spec.samples:
            self.say("samples")
            write_samples(self._drawing(), self.device)
        said = read_samples(folder)
        if said.get("transformer_digest", self.kept.digest) != self.kept.digest:
            raise ConfigMismatch(
                f"{folder} holds samples of another transformer than {self.spec.run}. Name the run they were drawn "
                "with, or leave out the samples to draw new ones."
            )
        return read_drawn(folder, self.side)

    def _drawing(self) -> SampleFiles:
        spec, folder = self.spec, self.out / "samples"
        return SampleFiles(
            spec.run, str(folder), tuple(self.kept.conditions), spec.count, spec.settings, spec.batch_size,
            str(self.tokenizer_folder),
        )  # fmt: skip

    def _held_out_slices(self, tokenizer: Tokenizer) -> tuple[HeldOut, list[str], dict[str, Any]]:
        """Pass over val and test; join them, but keep what the transformer predicts apart."""
        transformer = build_transformer(self.kept, self.spec.run).to(self.device)
        parts, splits, predictions = [], [], {}
        for split in self.held_out:
            self.say(f"held-out slices: {split}")
            part = held_out_pass(
                tokenizer, transformer, self._loader(split).passes(self.spec.batch_size, self.spec.held_out)
            )
            parts.append(part)
            splits += [split] * len(part.keys)
            predictions[split] = {
                "cross_entropy": part.cross_entropy.tolist(),
                "accuracy": part.accuracy.tolist(),
                "mean": part.mean_cross_entropy,
            }
        return HeldOut.joined(parts), splits, predictions


def _scales(frozen: Contents, held: HeldOut) -> dict[str, Any]:
    config = frozen.config
    return {
        "side": list(config.scale_sides),
        "vocabulary": config.vocabulary,
        "uniform_cross_entropy": math.log(config.vocabulary),
        **asdict(held.usage),
        "overall": overall_usage(held.counts),
    }
