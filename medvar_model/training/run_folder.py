"""Say what a run is made from, and refuse to go on with another one in its folder.

In: a training spec and its loader. Out: the content of run.json. It names what the user typed, and digests;
no path of the machine's own.
"""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medvar_data.shardset.dataset import is_shard_set
from medvar_data.storage.store import Store
from medvar_model.checkpoints.checkpoint import (
    Contents,
    find_last,
    kind_of,
    read_checkpoint,
)
from medvar_model.checkpoints.folder import RESUMABLE, RUN_CHECKPOINTS, missing_files
from medvar_model.config import to_dict
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ShardSetMismatch, UnusableFolder
from medvar_model.loader import Loader
from medvar_model.machine.folders import check_writable
from medvar_model.machine.processes import Process
from medvar_model.training.log import read_log
from medvar_model.training.reports import Job
from medvar_model.training.settings import option_of

FREE = {
    "out", "tokenizer", "tokens", "lpips_files", "data.shards", "data.cache", "data.cache_bytes", "data.workers", "data.skip_bad",
    "loop.micro_batch", "loop.checkpoint_every", "loop.validate_every", "loop.log_every",
    "loop.validation_slices", "loop.precision", "loop.parallel", "loop.recompute", "loop.compile", "loop.checkpoint_minutes", "loop.keep",
    "loop.keep_every", "loop.peak_tflops", "loop.wandb",
}  # fmt: skip
"""Settings that may change when a run goes on: places (their contents are compared by digest), what is written when, and precision,
which is then another rounding of the same training."""

OPTIONS = {
    "data.mixture": "--mix", "data.window_shards": "--window-shards", "data.where": "--where", "data.mix_by": "--mix-by",
    "data.temperature": "--temperature", "size": "--size", "init_from": "--init-from",
    "weights.perceptual": "--no-lpips (weight of the perceptual loss)", "perceptual": "--perceptual",
    "adversary.weight": "--adversary", "adversary.start": "--adversary-start", "rotate": "--rotate", "scale_dropout": "--scale-dropout",
    "config.code_layer": "--code-layer", "config.codes_per_scale": "--codes-per-scale", "data.hold_out": "--hold-out-collection",
    "scale_power": "--scale-power", "prefix_token": "--no-prefix-token",
}  # fmt: skip
"""What sets a field that `settings.option_of` does not know."""


def describe_run(spec: Any, loader: Loader, process: Process, command: tuple[str, ...]) -> dict[str, Any]:
    """Return what run.json says of a run.

    Args:
        spec: a `TrainTokenizer` or `TrainTransformer`.
        loader: of the training split.
        process: this process.
        command: the command line as typed; empty from Python.
    """
    packages = ("medvar", "torch", "numpy", "safetensors")
    return {
        "command": list(command),
        "seed": spec.loop.seed,
        "shard_set": {"shards": spec.data.shards, "digest": loader.digest, "train_slices": len(loader)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "processes": process.world,
        "device": process.device.type,
        "settings": plain(spec),
    }


def plain(spec: Any) -> dict[str, Any]:
    """Return a spec as JSON-ready values: dictionaries, lists, numbers, strings."""
    return json.loads(json.dumps(asdict(spec)))


def check_folder(out: Path, shards: str) -> None:
    """Refuse a folder that cannot become a run's, or can no longer go on as one.

    Raises:
        UnusableFolder: it is a file, may not be written, or is a shard set or a checkpoint.
        MissingCheckpoint: a run is in it, but not what resuming it needs.
    """
    check_writable(out)
    same = "://" not in shards and out.exists() and Path(shards).exists() and out.samefile(shards)
    if same or is_shard_set(Store(str(out))):
        raise UnusableFolder(f"{out} is a shard set; wanted a folder for the run. Name another folder with -o.")
    if (out / "config.json").is_file():
        raise UnusableFolder(f"{out} is a checkpoint; wanted the folder of a run, or a new one. Name it with -o.")
    if find_last(out) is not None:
        return
    found = [name for name in RUN_CHECKPOINTS if (out / name).is_dir()]
    logged = len(read_log(out / "log.jsonl"))
    if not found and not logged:
        return
    there = ", ".join([*found, *([f"a log of {logged} lines"] if logged else [])])
    lacking = ", ".join(f"last/{name}" for name in missing_files(out / "last"))
    usable = [name for name in found if not set(RESUMABLE[:3]) & set(missing_files(out / name))]
    begin = f", there with --init-from {out / usable[0]} to begin with these weights" if usable else ""
    raise MissingCheckpoint(
        f"{out} holds a run ({there}) that cannot be resumed: {lacking} missing. It was not begun anew, since that would "
        f"overwrite what is left. Restore what is missing from a copy; or begin another run in a new folder with -o"
        f"{begin}; or delete {out} to begin again in its place."
    )


def check_same_run(job: Job) -> None:
    """Compare a run that is to begin with the one its folder already holds.

    Raises:
        ShardSetMismatch: that one was trained on other slices or conditions.
        ConfigMismatch: it has another network, tokenizer or settings.
        MissingCheckpoint: its checkpoint is damaged.
    """
    kept = kept_run(job)
    if kept is None:
        return
    way_out = f"Repeat the command that began {job.out}, or write to another folder."
    if not {"shard_set", "settings"} <= kept.run.keys():
        raise MissingCheckpoint(
            f"{job.out}: run.json of its last checkpoint does not say what the run was made from. Restore it from a copy, "
            f"or begin another run in a new folder with -o and --init-from {job.out}."
        )
    _compare(job.out, "the network", to_dict(kept.config), to_dict(job.config), way_out)
    if dict(kept.conditions) != dict(job.conditions):
        raise ShardSetMismatch(
            f"{job.out} was begun with the conditions {_names(kept.conditions)}, the shard set now has "
            f"{_names(job.conditions)}. {way_out}"
        )
    before, now = kept.run["shard_set"], job.run["shard_set"]
    if before["digest"] != now["digest"]:
        raise ShardSetMismatch(
            f"{job.out} was begun on a shard set of {before['train_slices']} training slices (digest "
            f"{before['digest'][:12]}); {now['shards']} has {now['train_slices']} (digest "
            f"{now['digest'][:12]}). {way_out}"
        )
    tokenizers = [run.get("tokenizer", {}) for run in (kept.run, job.run)]
    if tokenizers[0].get("digest") != tokenizers[1].get("digest"):
        raise ConfigMismatch(
            f"{job.out} was begun with tokenizer {tokenizers[0]['path']} (digest "
            f"{tokenizers[0]['digest'][:12]}), now {tokenizers[1]['path']} has digest "
            f"{tokenizers[1]['digest'][:12]}; it was trained on since or is another. Pass --tokenizer "
            f"{job.out / 'tokenizer'}, the copy that was kept, or write to another folder."
        )
    _check_perceptual(kept, job, way_out)
    before, now = (
        {k: v for k, v in _flat(run["settings"]).items() if "config." not in k} for run in (kept.run, job.run)
    )
    if before.get("loop.samples") != now.get("loop.samples"):
        way_out = (
            "The learning rate's whole course depends on the number of samples, so a run keeps it. To train on, begin "
            f"another run with -o NEW_FOLDER --init-from {job.out}; otherwise repeat the command that began {job.out}."
        )
    _compare(job.out, "the settings", before, now, way_out)


def kept_run(job: Job) -> Contents | None:
    """Read the checkpoint from which a run would go on; None where it would be fresh."""
    last = find_last(job.out)
    return None if last is None else read_checkpoint(last, kind_of(job.config))


def _check_perceptual(kept: Contents, job: Job, way_out: str) -> None:
    before, now = (run.get("perceptual", {}).get("digest") for run in (kept.run, job.run))
    if before != now:
        raise ConfigMismatch(
            f"{job.out} was begun with other weights of the perceptual loss (--lpips-weights) than those given now. {way_out}"
        )


def _compare(out: Path, what: str, before: dict[str, Any], now: dict[str, Any], way_out: str) -> None:
    names = [name for name in sorted(before | now) if name not in FREE and before.get(name) != now.get(name)]
    if names:
        changes = "; ".join(
            f"{_option(name)} was {_said(before.get(name))}, now {_said(now.get(name))}" for name in names
        )
        raise ConfigMismatch(f"{out} was begun with other values of {what}: {changes}. {way_out}")


def _option(name: str) -> str:
    return option_of(name.removeprefix("loop.")) if name.startswith("loop.") else OPTIONS.get(name, name)


def _said(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "not given" if value in (None, "", []) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _names(conditions: Any) -> str:
    names = list(conditions)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
