"""Score images that any model drew: a folder with a sub-folder a condition, or with a table of files and conditions.

In: a `ScoreImages`. Out: the same report, rows and page as of a run of ours, without what only our own networks can tell.

    folder/acdc-mr/*.png            a sub-folder is named by its condition
    folder/images.csv               or: columns `file` and `condition`; files lie below the folder
"""

import csv
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvar_data.storage.html import assemble, write_section
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnknownCondition
from medvar_model.evaluation.comparison import REPLICATES
from medvar_model.evaluation.evaluate import Evaluation
from medvar_model.evaluation.extractors import opened_extractors
from medvar_model.evaluation.inputs import read_png, scan_of
from medvar_model.evaluation.metrics.features import shrunk
from medvar_model.evaluation.notes import distribution_notes
from medvar_model.evaluation.outputs import write_report, write_rows
from medvar_model.evaluation.page import SECTION, images_section
from medvar_model.evaluation.passes import Fresh, Neighbours, training_pass
from medvar_model.evaluation.pictures import write_closest
from medvar_model.evaluation.reference import Reference
from medvar_model.evaluation.scores import Labelled, score_conditions, score_copies
from medvar_model.loader import DataSpec, Loader
from medvar_model.machine.folders import check_writable

TABLE = "images.csv"
SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # lossless: JPEG changes what the metrics see


@dataclass(frozen=True)
class ScoreImages:
    """What to score.

    Args:
        out: folder for the report.
        data: the shard set; its val and test splits are the reference, its training slices the floor.
        images: folder of images; see the head of the file. They are brought to the set's side.
        batch_size: slices read at a time.
        held_out: at most so many slices of each held-out split, evenly spread; 0 takes all.
        training: at most so many training slices are searched for copies, evenly spread; 0 takes all.
        features, replicates, weights: as in `evaluate.Evaluate`.
    """

    out: str
    data: DataSpec
    images: str
    batch_size: int = 64
    held_out: int = 2048
    training: int = 0
    features: tuple[str, ...] = ("", "radiomics")
    replicates: int = REPLICATES
    weights: Mapping[str, str] = field(default_factory=dict)


def score_images(
    spec: ScoreImages, device: torch.device, report: Callable[[str], None] = lambda line: None
) -> Evaluation:
    """Score a folder of images and write report, rows, tables and page.

    Args:
        spec: what to score.
        device: what to compute on.
        report: told in a line of each stage that begins.

    Raises:
        MissingCheckpoint: the folder holds no images.
        UnknownCondition: a sub-folder or row names a condition that the set does not have.
        ShardSetMismatch: the set has no held-out slices.

    Example:
        >>> score_images(ScoreImages("report", DataSpec("S"), "drawn"), torch.device("cpu"))  # doctest: +SKIP
    """
    out = Path(spec.out)
    check_writable(out)
    reference = Reference(spec.data, device, 0, spec.held_out, spec.batch_size)
    extractors = opened_extractors(spec.features, device, spec.weights, reference.train.image_side)
    samples, files, digest = read_images(Path(spec.images), reference.train)
    report(f"{len(samples)} images of {len(set(samples.conditions))} conditions")
    held, keys = reference.held
    report("training slices: nearest to each image")
    fresh = Fresh(max(samples.conditions.count(name) for name in set(samples.conditions)))
    queries = np.concatenate([samples.images, held.images])
    near = training_pass(queries, reference.train.passes(spec.batch_size, spec.training), fresh)
    report("metrics")
    real, _ = reference.floor(fresh, samples)
    named = score_conditions(held, [scan_of(key) for key in keys], samples, real, real.images)
    named.report.pop("right_through_tokenizer")
    distance, n = near.nearest.distance, len(samples)
    result: dict[str, Any] = {
        "inputs": {
            "shard_set": reference.train.digest,
            "images": digest,
            "held_out": spec.held_out,
            "training": spec.training,
            "features": [{"name": e.name, **e.provenance} for e in extractors],
            "replicates": spec.replicates,
        },
        "sampled": sorted(set(samples.conditions)),
        "distribution": reference.compared({"samples": samples}, fresh, extractors, spec.replicates),
        "copies": score_copies(distance[:n], samples, distance[n:], held),
        "conditions": named.report,
    }
    result["notes"] = distribution_notes(result["distribution"])
    return _written(spec, result, (samples, files, named.named), (held, keys), near)


def read_images(folder: Path, loader: Loader) -> tuple[Labelled, list[str], str]:
    """Read a folder of images; give them at the loader's side with conditions, their files, and a digest of both.

    Raises:
        MissingCheckpoint: there are none.
        UnknownCondition: one is of a condition that the set does not have.
        ConfigMismatch: a file is no square image.
    """
    rows = _listed(folder)
    unknown = sorted({name for _, name in rows} - set(loader.conditions))
    if unknown:
        raise UnknownCondition(
            f"{folder} names the condition {unknown[0]!r}; the shard set has {', '.join(loader.conditions)}. Name the sub-folders, or the "
            f"column `condition` of {TABLE}, after those."
        )
    digest, stack = hashlib.sha256(), []
    for file, name in rows:
        data = (folder / file).read_bytes()
        digest.update(f"{file} {name} ".encode() + hashlib.sha256(data).digest())
        stack.append(shrunk(read_png(folder / file)[None], loader.image_side)[0])
    return Labelled(np.stack(stack), tuple(name for _, name in rows)), [file for file, _ in rows], digest.hexdigest()


def _listed(folder: Path) -> list[tuple[str, str]]:
    """List file and condition of every image, from the table or from the sub-folders."""
    table = folder / TABLE
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as lines:
            found = [(row.get("file") or "", row.get("condition") or "") for row in csv.DictReader(lines)]
        for file, name in found:
            if not file or not name or Path(file).is_absolute() or ".." in Path(file).parts:
                raise ConfigMismatch(
                    f"{table} has the row {file!r}, {name!r}; wanted a file below the folder, and its condition, in columns `file` and "
                    "`condition`."
                )
    else:
        paths = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
        found = [(f"{path.parent.name}/{path.name}", path.parent.name) for path in paths]
    if not found:
        raise MissingCheckpoint(
            f"{folder} holds no images; wanted a sub-folder for each condition with {', '.join(SUFFIXES)} files, or {TABLE} with "
            "columns `file` and `condition`."
        )
    return found


def _written(
    spec: ScoreImages,
    result: dict[str, Any],
    drawn: tuple[Labelled, list[str], tuple[str, ...]],
    held: tuple[Labelled, tuple[str, ...]],
    near: Neighbours,
) -> Evaluation:
    """Write report, rows and page."""
    out, (samples, files, named) = Path(spec.out), drawn
    out.mkdir(parents=True, exist_ok=True)
    rows = {"file": files, "condition": list(samples.conditions), "named": list(named)}
    write_rows(out, rows, {"key": list(held[1]), "condition": list(held[0].conditions)}, near)
    write_closest(out / "pictures", samples, near)
    result = write_report(out, result)
    write_section(out, SECTION, images_section(result, "pictures"))
    page = assemble(out, "medvar evaluation", f"{spec.images}, scored on the held-out slices of {spec.data.shards}.")
    return Evaluation(out, result, page)
