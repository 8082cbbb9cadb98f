"""Judge a trained run: reconstructions, codes, predictions, drawn images, copies, conditions.

In: an `Evaluate`. Out: a folder with `report.json`, `samples.parquet`, `held_out.parquet` and `pictures/`; every number
is kept with the digests of what it came from. The same call again returns the finished report.

A little over 300 lines: the one place where all inputs are opened, checked against each other and written down.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import UInt8

from medvar_model.checkpoints.checkpoint import Contents, build_tokenizer, build_transformer, read_checkpoint
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ShardSetMismatch
from medvar_model.evaluation.metrics.features import shrunk
from medvar_model.evaluation.passes import Fresh, HeldOut, Neighbours, held_out_pass, overall_usage, training_pass
from medvar_model.evaluation.pictures import Shown, write_pictures
from medvar_model.evaluation.scores import (
    Labelled,
    Stack,
    judge_conditions,
    judge_copies,
    judge_distribution,
    judge_reconstructions,
    mean_reconstructions,
)
from medvar_model.loader import DataSpec, Loader, to_network
from medvar_model.machine.folders import check_shard_set, check_writable
from medvar_model.machine.memory import told_when_memory_ends
from medvar_model.machine.processes import Process
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.sampling.sample import PAPER, SampleSettings, to_uint8
from medvar_model.sampling.sample_files import SampleFiles, check_samples, own_tokenizer, training_note, write_samples

NEARLY_GUESSING = 0.9  # of the cross-entropy of a guess


@dataclass(frozen=True)
class Evaluate:
    """What to judge.

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


@dataclass(frozen=True)
class Evaluation:
    """A finished report.

    Attributes:
        out: its folder.
        report: the content of report.json.
    """

    out: Path
    report: dict[str, Any]


def evaluate(spec: Evaluate, device: torch.device, report: Callable[[str], None] = lambda line: None) -> Evaluation:
    """Judge a run, or return the report that the same call left before.

    Args:
        spec: what to judge.
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
    with told_when_memory_ends(f"Judging {spec.batch_size} images at a time", "Give a smaller --batch-size."):
        return _Evaluation(spec, device, report).go()


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
        self.tokenizer_folder = _tokenizer_folder(spec)
        self.frozen = read_checkpoint(self.tokenizer_folder, "tokenizer")
        _check_pair(self.kept, self.frozen, spec)
        self.side: int = self.frozen.config.image_side  # type: ignore[union-attr]  # a tokenizer's has one
        sizes = split_sizes(spec.data.shards)
        self.held_out = [split for split in ("val", "test") if sizes.get(split, 0)]
        if not self.held_out:
            raise ShardSetMismatch(
                f"{spec.data.shards} has no val or test slices, so there is nothing unseen to judge by. Shard it again "
                "with larger held-out shares, or from more patients."
            )
        self.loader = self._loader("train")
        if self.loader.conditions != dict(self.kept.conditions):
            raise ShardSetMismatch(
                f"{spec.run} was trained with the conditions {', '.join(self.kept.conditions)}; {spec.data.shards} has "
                f"{', '.join(self.loader.conditions)}. Evaluate it on the set it was trained on."
            )
        self.names = {row: name for name, row in self.kept.conditions.items()}
        if spec.samples:
            _read_samples(Path(spec.samples))
        else:
            check_samples(self._drawing())

    def go(self) -> Evaluation:
        spec = self.spec
        inputs = {
            "shard_set": self.loader.digest,
            "transformer": self.kept.digest,
            "tokenizer": self.frozen.digest,
            "samples": _samples_digest(Path(spec.samples)) if spec.samples else asdict(spec.settings),
            "count": spec.count,
            "held_out": spec.held_out,
            "training": spec.training,
        }
        finished = self.out / "report.json"
        if finished.is_file() and (before := json.loads(finished.read_text()))["inputs"] == inputs:
            return Evaluation(self.out, before)
        self.out.mkdir(parents=True, exist_ok=True)
        finished.unlink(missing_ok=True)  # a report of other inputs must not stand beside new pictures
        samples, files = self._samples()
        tokenizer = build_tokenizer(self.frozen, str(self.tokenizer_folder)).to(self.device)
        held, splits, predictions = self._held_out_slices(tokenizer)
        truth = Labelled(held.images, tuple(self.names[row] for row in held.rows.tolist()))
        self.say("training slices: nearest to each sample")
        fresh_slices = Fresh(spec.count)
        near = training_pass(
            np.concatenate([samples.images, held.images]),
            self.loader.passes(spec.batch_size, spec.training),
            fresh_slices,
        )
        fresh = self._fresh(fresh_slices, samples)
        self.say("metrics")
        distance = near.nearest.distance
        mine, theirs = distance[: len(samples)], distance[len(samples) :]
        again = Labelled(_reconstructed(tokenizer, fresh.images, self.device), fresh.conditions)
        quality = judge_reconstructions(truth, held.reconstructions)
        verdict = judge_conditions(truth, [scan_of(key) for key in held.keys], samples, fresh, again.images)
        candidates = {"samples": samples, "fresh": fresh, "fresh_through_tokenizer": again}
        report = {
            "inputs": inputs,
            "settings": asdict(spec.settings),
            "sampled": sorted(set(samples.conditions)),
            "splits": {split: splits.count(split) for split in self.held_out},
            "reconstructions": mean_reconstructions(truth, quality),
            "scales": _scales(self.frozen, held),
            "predictions": predictions,
            "distribution": judge_distribution(truth, candidates),
            "copies": judge_copies(mine, samples, theirs, truth),
            "conditions": verdict.report,
        }
        report["notes"] = self._notes(report)
        self._write_rows(samples, files, verdict.named, held.keys, truth.conditions, splits, quality, near)
        write_pictures(self.out / "pictures", Shown(samples, truth, held.reconstructions, near), tokenizer, self.device)
        return Evaluation(self.out, _written(finished, report))

    def _notes(self, report: Mapping[str, Any]) -> list[str]:
        """Say in sentences what a reader must know before believing the numbers."""
        notes = [note for folder in (Path(self.spec.run), self.tokenizer_folder) if (note := training_note(folder))]
        guessing = report["scales"]["uniform_cross_entropy"]
        split, worst = max(((name, part["mean"]) for name, part in report["predictions"].items()), key=lambda x: x[1])
        if worst > NEARLY_GUESSING * guessing:
            notes.append(
                f"The transformer predicts the tokens of {split} hardly better than a guess ({worst:.2f} nats, a guess costs "
                f"{guessing:.2f}): it is hardly trained, or trained on other data."
            )
        sizes = report["distribution"]["n"]
        short = [
            f"{name} (needs {m['minimum']})"
            for name, m in report["distribution"]["metrics"].items()
            if m["samples"] is None
        ]
        if short:
            notes.append(
                f"Not given for too few images: {', '.join(short)}; after all sets are cut to the same mix of conditions there "
                f"are {sizes['samples']} samples and {sizes['held_out']} held-out slices. Draw more with -n."
            )
        return notes

    def _loader(self, split: str) -> Loader:
        alone = Process(1, 0, self.device)
        return Loader(self.spec.data, split, self.side, self.spec.batch_size, 0, alone)

    def _samples(self) -> tuple[Labelled, list[str]]:
        """Read the samples that were named, or draw them."""
        folder = Path(self.spec.samples) if self.spec.samples else self.out / "samples"
        if not self.spec.samples:
            self.say("samples")
            write_samples(self._drawing(), self.device)
        said = _read_samples(folder)
        if said.get("transformer_digest", self.kept.digest) != self.kept.digest:
            raise ConfigMismatch(
                f"{folder} holds samples of another transformer than {self.spec.run}. Name the run they were drawn "
                "with, or leave out the samples to draw new ones."
            )
        files = [str(image["file"]) for image in said["images"]]
        stack = np.stack([_read_png(folder / file) for file in files])
        return Labelled(shrunk(stack, self.side), tuple(str(image["condition"]) for image in said["images"])), files

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

    def _fresh(self, fresh: Fresh, samples: Labelled) -> Labelled:
        stack, names = [], []
        for row, name in self.names.items():
            mine = fresh.images(row)[: len(samples.places(name))]
            stack += mine
            names += [name] * len(mine)
        return Labelled(np.array(stack, dtype=np.uint8).reshape(-1, self.side, self.side), tuple(names))

    def _write_rows(
        self,
        samples: Labelled,
        files: Sequence[str],
        named: Sequence[str],
        keys: Sequence[str],
        conditions: Sequence[str],
        splits: Sequence[str],
        quality: Mapping[str, np.ndarray],
        near: Neighbours,
    ) -> None:
        """Write one row a sample and one a held-out slice."""
        n, distance = len(samples), near.nearest.distance
        self.out.mkdir(parents=True, exist_ok=True)
        rows = {
            "file": list(files), "condition": list(samples.conditions), "named": list(named),
            "nearest_key": list(near.keys[:n]), "nearest_distance": distance[:n],
        }  # fmt: skip
        pq.write_table(pa.table(rows), self.out / "samples.parquet")
        slices = {
            "key": list(keys), "split": list(splits), "condition": list(conditions), **quality,
            "nearest_key": list(near.keys[n:]), "nearest_distance": distance[n:],
        }  # fmt: skip
        pq.write_table(pa.table(slices), self.out / "held_out.parquet")


def split_sizes(shards: str) -> dict[str, int]:
    """Say how many slices each split of a shard set has."""
    check_shard_set(shards)
    try:
        with fsspec.open(f"{shards.rstrip('/')}/dataset.json") as file:
            return {name: int(split["slices"]) for name, split in json.load(file)["splits"].items()}
    except FileNotFoundError:
        raise ShardSetMismatch(
            f"{shards} holds no dataset.json; wanted a shard set, as `medvar-data shard` writes it."
        ) from None


def scan_of(key: str) -> str:
    """Give the part of a slice's key that names its scan.

    Example:
        >>> scan_of("acdc-patient001-frame01-z0004")
        'acdc-patient001-frame01'
    """
    return key.rpartition("-z")[0]


def _tokenizer_folder(spec: Evaluate) -> Path:
    return Path(spec.tokenizer) if spec.tokenizer else own_tokenizer(Path(spec.run))


def _check_pair(kept: Contents, frozen: Contents, spec: Evaluate) -> None:
    wanted = kept.run.get("tokenizer", {}).get("digest", frozen.digest)
    if frozen.digest != wanted:
        raise ConfigMismatch(
            f"{spec.run} was trained with a tokenizer of digest {wanted[:12]}, the one named has {frozen.digest[:12]}. "
            "Leave out --tokenizer to take the copy in the run's folder."
        )


def _read_samples(folder: Path) -> dict[str, Any]:
    """Read what `write_samples` said of its images."""
    try:
        said = json.loads((folder / "samples.json").read_text())
    except FileNotFoundError:
        raise MissingCheckpoint(
            f"{folder} holds no samples.json; wanted a folder that `medvar-model sample` wrote."
        ) from None
    except ValueError as error:
        raise MissingCheckpoint(f"{folder / 'samples.json'} is damaged ({error}). Draw the samples again.") from None
    if not said.get("finished", True):
        raise MissingCheckpoint(f"The drawing into {folder} was stopped before its end. Repeat that command first.")
    return dict(said)


def _samples_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for image in _read_samples(folder)["images"]:
        digest.update(f"{image['file']} {image['condition']}".encode())
        digest.update((folder / image["file"]).read_bytes())
    return digest.hexdigest()


def _read_png(path: Path) -> UInt8[np.ndarray, "side side"]:
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.shape[0] != pixels.shape[1]:
        raise ConfigMismatch(f"{path} is no square image. Take it out of samples.json, or write it again.")
    return pixels


@torch.no_grad()
def _reconstructed(tokenizer: Tokenizer, images: Stack, device: torch.device) -> Stack:
    parts = [
        to_uint8(
            tokenizer.decode(tokenizer.encode(to_network(torch.from_numpy(images[start : start + 64])).to(device)))
        )
        for start in range(0, len(images), 64)
    ]
    return torch.cat(parts).cpu().numpy() if parts else images


def _scales(frozen: Contents, held: HeldOut) -> dict[str, Any]:
    config = frozen.config
    return {
        "side": list(config.scale_sides),
        "vocabulary": config.vocabulary,
        "uniform_cross_entropy": math.log(config.vocabulary),
        **asdict(held.usage),
        "overall": overall_usage(held.counts),
    }


def _written(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Write beside, then rename: a report is whole or absent. Return it as it will be read."""
    text = json.dumps(value, indent=2)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)
    return dict(json.loads(text))
