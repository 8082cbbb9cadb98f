"""Report how tokenizers use their codes on the same slices: a trained one, the same untrained, and an imported one.

In: a `CodebookReport`. Out: a folder with `codebook.json` and pictures. Slices are of two kinds, and rows are given for each collection:

    patients     val and test slices of the collections that were trained on: other patients than in training
    collection   all slices of a collection that was held out as a whole (`--hold-out-collection` when training)
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from medvar_data.shardset.dataset import read_dataset, read_table
from medvar_data.storage.store import Store, write_bytes
from medvar_model.checkpoints.checkpoint import build_tokenizer, read_checkpoint
from medvar_model.checkpoints.import_var import import_tokenizer
from medvar_model.config import TokenizerConfig
from medvar_model.errors import ShardSetMismatch
from medvar_model.evaluation.codebook import CodeMeasures, measure_codes
from medvar_model.evaluation.codebook_plots import write_plots
from medvar_model.evaluation.inputs import held_out_collections
from medvar_model.loader import DataSpec, Examples, Loader
from medvar_model.machine.folders import check_shard_set, check_writable
from medvar_model.machine.processes import Process
from medvar_model.networks.codebook import Usage, usage
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.training.perceptual import load_perceptual

REPORT = "codebook.json"
HELD_OUT_SPLITS = ("val", "test")


@dataclass(frozen=True)
class CodebookReport:
    """What to look at.

    Args:
        out: folder for the report.
        data: the shard set.
        run: a tokenizer's run or checkpoint.
        imported: another tokenizer to compare with: a run, a checkpoint, or one of VAR's official files; empty for none.
        slices: at most so many of each collection and split, evenly spread; 0 takes all.
        perceptual: kind of perceptual distance to measure, see `perceptual.KINDS`; none leaves it out.
        lpips_files: weight files, where that is lpips.
        batch_size: images at a time; changes nothing but speed and memory.
    """

    out: str
    data: DataSpec
    run: str
    imported: str = ""
    slices: int = 512
    perceptual: str = "none"
    lpips_files: tuple[str, ...] = ()
    batch_size: int = 32


@dataclass(frozen=True)
class Group:
    """Slices that are measured together: a collection, and which of its splits."""

    collection: str
    kind: str
    splits: tuple[str, ...]


def report_codebook(
    spec: CodebookReport, device: torch.device, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure, draw and write; return the report.

    Args:
        spec: what to look at.
        device: what to compute on.
        say: told in a line of each stage that begins.

    Raises:
        ModelError: a tokenizer, the set or the perceptual weights are not there, or do not fit each other.

    Example:
        >>> report_codebook(CodebookReport("codes", DataSpec("shards"), "runs/tok"), torch.device("cpu"))  # doctest: +SKIP
    """
    out = Path(spec.out)
    check_writable(out)
    tokenizers, digests, held = open_tokenizers(spec)
    groups = groups_of(spec.data.shards, held)
    perceptual = load_perceptual(spec.perceptual, spec.lpips_files)
    if perceptual is not None:
        perceptual.to(device)
    measures: dict[str, dict[Group, CodeMeasures]] = {}
    conditions: dict[int, str] = {}
    for name, tokenizer in tokenizers.items():
        tokenizer.to(device).eval()
        measures[name] = {}
        for group in groups:
            say(f"{name}: {group.collection}")
            batches, conditions = slices_of(spec, group, tokenizer.config, device)
            measures[name][group] = measure_codes(tokenizer, batches, perceptual)
    together = {name: CodeMeasures.joined(list(parts.values())) for name, parts in measures.items()}
    report = {
        "inputs": {**digests, "perceptual": spec.perceptual, "slices": spec.slices, "held_out_collections": list(held)},
        "tokenizers": {
            name: {
                "scale_sides": list(tokenizers[name].config.scale_sides),
                **described(one),
                "groups": [asdict(group) | described(part) for group, part in measures[name].items()],
                "conditions": {conditions[row]: _used(hits) for row, hits in one.by_condition.items()},
            }
            for name, one in together.items()
        },
    }
    sides = {name: tokenizer.config.scale_sides for name, tokenizer in tokenizers.items()}
    write_plots(out, together, sides, conditions)
    text = json.dumps(report, indent=2)
    write_bytes(out / REPORT, (text + "\n").encode())
    return dict(json.loads(text))


def open_tokenizers(spec: CodebookReport) -> tuple[dict[str, Tokenizer], dict[str, str], tuple[str, ...]]:
    """Give the tokenizers by name, their digests, and the collections that the trained one never saw."""
    kept = read_checkpoint(Path(spec.run), "tokenizer")
    assert isinstance(kept.config, TokenizerConfig)
    tokenizers = {"trained": build_tokenizer(kept, spec.run)}
    tokenizers["untrained"] = Tokenizer(kept.config, torch.Generator().manual_seed(0))
    digests = {"trained": kept.digest}
    if spec.imported and Path(spec.imported).is_file():
        tokenizers["imported"] = import_tokenizer(Path(spec.imported))
    elif spec.imported:
        other = read_checkpoint(Path(spec.imported), "tokenizer")
        tokenizers["imported"], digests["imported"] = build_tokenizer(other, spec.imported), other.digest
    return tokenizers, digests, held_out_collections(kept)


def groups_of(shards: str, held: tuple[str, ...]) -> list[Group]:
    """Say which slices are measured: those of other patients, and those of whole collections that were held out.

    Raises:
        ShardSetMismatch: there are none.
    """
    check_shard_set(shards)
    store = Store(shards)
    table = read_table(store, "slices.parquet", read_dataset(store), columns=["collection", "split"])
    there: dict[str, set[str]] = {}
    for pair in table.group_by(["collection", "split"]).aggregate([]).to_pylist():
        there.setdefault(pair["collection"], set()).add(pair["split"])
    groups = []
    for collection, splits in sorted(there.items()):
        kind = "collection" if collection in held else "patients"
        wanted = ("train", *HELD_OUT_SPLITS) if kind == "collection" else HELD_OUT_SPLITS
        if mine := tuple(split for split in wanted if split in splits):
            groups.append(Group(collection, kind, mine))
    if not groups:
        raise ShardSetMismatch(
            f"{shards} has no val or test slices, and no collection that was held out, so there is nothing unseen to measure "
            "by. Shard it again with larger held-out shares."
        )
    return groups


def slices_of(
    spec: CodebookReport, group: Group, config: TokenizerConfig, device: torch.device
) -> tuple[Iterator[Examples], dict[int, str]]:
    """Give a group's slices at a tokenizer's side, and the names of the rows of conditions.

    Where the set's images are smaller than the tokenizer's, as with VAR's at 256 pixels, they are enlarged (bicubic).
    """
    quoted = group.collection.replace("'", "''")
    data = replace(spec.data, where=f"collection = '{quoted}'")
    set_side = read_dataset(Store(spec.data.shards)).image_side
    side = min(config.image_side, set_side)
    alone = Process(1, 0, device)
    loaders = [Loader(data, split, side, spec.batch_size, 0, alone) for split in group.splits]

    def batches() -> Iterator[Examples]:
        for loader in loaders:
            for examples in loader.passes(spec.batch_size, spec.slices):
                yield examples if side == config.image_side else _enlarged(examples, config.image_side)

    return batches(), {row: name for name, row in loaders[0].conditions.items()}


def _enlarged(examples: Examples, side: int) -> Examples:
    return replace(examples, images=F.interpolate(examples.images, size=side, mode="bicubic").clamp(-1, 1))


def described(one: CodeMeasures) -> dict[str, Any]:
    """Return measures as JSON-ready values; a number that could not be measured is None."""
    return {
        "images": one.images,
        "scales": asdict(one.usage),
        "overall": _first(one.overall),
        "residual": list(one.residual),
        "psnr": list(one.psnr),
        "ssim": list(one.ssim),
        "perceptual": [value if value == value else None for value in one.perceptual],
    }


def _first(use: Usage) -> dict[str, float]:
    return {name: values[0] for name, values in asdict(use).items()}


def _used(hits: torch.Tensor) -> dict[str, Any]:
    return {"tokens": int(hits.sum()), **_first(usage(hits[None]))}


def summary_rows(report: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Give a row for each tokenizer and each collection: what people read."""
    rows = []
    for name, one in report["tokenizers"].items():
        for part in [*one["groups"], {"collection": "all", "kind": "", **one}]:
            use, distance = part["overall"], part["perceptual"][-1]
            rows.append(
                (
                    name, part["collection"], part["kind"], part["images"], f"{100 * use['share']:.1f} %",
                    f"{100 * use['share'] / use['uniform']:.1f} %", round(use["perplexity"]), f"{part['psnr'][-1]:.2f}",
                    f"{part['ssim'][-1]:.3f}", "" if distance is None else f"{distance:.3f}",
                    f"{100 * part['residual'][-1]:.1f} %",
                )
            )  # fmt: skip
    return rows
