"""Write a trained model as one folder that says what it is, in the form of a Hugging Face model repository.

In: a transformer's or a tokenizer's run. Out:

    README.md               the model card; its front matter is the hub's
    config.json, model.safetensors, conditions.json
    run.json                what the weights were made from, by digests; no path, no command
    generation_config.json  how to sample; a transformer's only
    tokenizer/              the tokenizer that a transformer belongs to

The folder is a checkpoint too: every command that takes a run takes it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvar_data.storage.documents import read_json
from medvar_model.checkpoints.checkpoint import (
    Contents,
    find_checkpoint,
    read_checkpoint,
    replacing,
    save_contents,
)
from medvar_model.checkpoints.folder import load_json
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnusableFolder
from medvar_model.export.card import CardSpec, collections_of, model_card
from medvar_model.machine.folders import check_writable
from medvar_model.sampling.sample import PAPER, SampleSettings
from medvar_model.sampling.sample_files import own_tokenizer

CARD = "README.md"
SAMPLER = "generation_config.json"
OURS = {CARD, SAMPLER, "config.json", "model.safetensors", "conditions.json", "run.json", "tokenizer"}
PLACES = {"out", "tokenizer", "init_from", "lpips_files", "shards", "cache", "tokens"}
"""Settings that name a place on the machine of whoever trained; digests stand in run.json in their stead."""


@dataclass(frozen=True)
class ExportSpec:
    """What to export.

    Args:
        run: a run or checkpoint, of a transformer or a tokenizer.
        out: the folder to write.
        settings: how images are to be drawn from a transformer.
        shards: the shard set that it was trained on, for the card's table of collections and licences; may be left out.
        name: of the model, for the card; empty takes the folder's.
        license: identifier of the licence that you give the weights, as the hub spells it.
    """

    run: str
    out: str
    settings: SampleSettings = PAPER
    shards: str = ""
    name: str = ""
    license: str = "other"


def export(spec: ExportSpec) -> Path:
    """Write the folder, read it back, and give its path.

    Raises:
        MissingCheckpoint: there is no run, or no tokenizer beside a transformer.
        ConfigMismatch: `shards` is not the set that the run was trained on, or the tokenizer not the run's.
        UnusableFolder: `out` may not be written, or holds something else.
        ShardSetError: `shards` cannot be read.

    Example:
        >>> export(ExportSpec("runs/d16", "medvar-d16", shards="shards"))    # doctest: +SKIP
    """
    out = Path(spec.out)
    check_free_for_export(out)
    kept = _read(Path(spec.run))
    frozen = read_checkpoint(own_tokenizer(Path(spec.run)), "tokenizer") if kept.kind == "transformer" else None
    wanted = kept.run.get("tokenizer", {}).get("digest")
    if frozen and wanted not in (None, frozen.digest):
        raise ConfigMismatch(
            f"{spec.run} was trained with a tokenizer of digest {wanted[:12]}, the one beside it has {frozen.digest[:12]}. "
            "Put the right one there, or export the run from its own folder."
        )
    trained_on = kept.run.get("shard_set", {}).get("digest", "")
    collections = collections_of(spec.shards, trained_on) if spec.shards else ()
    card = model_card(kept, frozen, CardSpec(spec.name or out.name, spec.license, spec.settings, collections))
    with replacing(out) as partial:
        save_contents(partial, _publishable(kept))
        if frozen:
            (partial / "tokenizer").mkdir()
            save_contents(partial / "tokenizer", _publishable(frozen))
            (partial / SAMPLER).write_text(json.dumps(asdict(spec.settings), indent=2) + "\n")
        (partial / CARD).write_text(card, encoding="utf-8")
    _check_written(out, kept, frozen)
    return out


def exported_settings(run: Path) -> SampleSettings | None:
    """How an exported model is to be sampled; None where a folder is no export of a transformer.

    Raises:
        MissingCheckpoint: the file is damaged.
        ConfigMismatch: a setting is outside its range.
    """
    file = run / SAMPLER
    if not file.is_file():
        return None
    way_on = "Export the model again, or delete the file."
    settings: SampleSettings = read_json(file, SampleSettings, MissingCheckpoint, way_on)
    return settings


def check_free_for_export(out: Path) -> None:
    """Refuse a folder that cannot be written, or that holds anything but an earlier export.

    Raises:
        UnusableFolder: so it is.
    """
    check_writable(out)
    if not out.exists():
        return
    others = sorted(path.name for path in out.iterdir() if path.name not in OURS)
    if others or (any(out.iterdir()) and not (out / CARD).is_file()):
        found = f"{others[0]}, which no export holds" if others else "a checkpoint that is no export"
        raise UnusableFolder(f"{out} holds {found}; wanted an empty folder or an earlier export. Name another with -o.")


def without_places(run: Mapping[str, Any]) -> dict[str, Any]:
    """Leave of run.json what may be published: settings, digests, versions; no path and no command line."""

    def bare(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: bare(inner) for name, inner in value.items() if name not in PLACES and name != "path"}

    kept = {name: bare(value) for name, value in run.items() if name not in ("command", "device")}
    if "shard_set" in run:  # keys that every reader asks for stay, without what they named
        kept["shard_set"] = {**bare(run["shard_set"]), "shards": ""}
    for name in ("tokenizer", "init_from", "perceptual"):
        if isinstance(run.get(name), Mapping):
            kept[name] = {**bare(run[name]), "path": ""}
    return kept


def _publishable(contents: Contents) -> Contents:
    return Contents(contents.weights, contents.config, without_places(contents.run), contents.conditions)


def _read(run: Path) -> Contents:
    kind = load_json(find_checkpoint(run) / "config.json").get("kind")
    return read_checkpoint(run, "tokenizer" if kind == "tokenizer" else "transformer")


def _check_written(out: Path, kept: Contents, frozen: Contents | None) -> None:
    """Read the folder as a stranger would; what comes back must be what was exported."""
    assert read_checkpoint(out, kept.kind).digest == kept.digest, "the export reads back otherwise than it was written"
    if frozen:
        assert read_checkpoint(out / "tokenizer", "tokenizer").digest == frozen.digest
