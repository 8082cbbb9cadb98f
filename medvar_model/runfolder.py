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

from medvar_model.checkpoint import find_last, kind_of, read_checkpoint
from medvar_model.config import to_dict
from medvar_model.dist import Place
from medvar_model.errors import ConfigMismatch, ShardSetMismatch
from medvar_model.loader import Loader
from medvar_model.recipe import Job

FREE = {
    "out", "tokenizer", "lpips_files", "data.shards", "data.cache", "data.cache_bytes", "data.workers",
    "loop.micro_batch", "loop.checkpoint_every", "loop.validate_every", "loop.log_every",
    "loop.validation_slices",
}  # fmt: skip
"""Settings that may change when a run goes on: places (their contents are compared by digest) and habits."""


def describe_run(spec: Any, loader: Loader, place: Place, command: tuple[str, ...]) -> dict[str, Any]:
    """Return what run.json says of a run.

    Args:
        spec: a `TrainTokenizer` or `TrainTransformer`.
        loader: of the training split.
        place: this process.
        command: the command line as typed; empty from Python.
    """
    packages = ("medvar", "torch", "numpy", "safetensors")
    return {
        "command": list(command),
        "seed": spec.loop.seed,
        "shard_set": {"shards": spec.data.shards, "digest": loader.digest, "train_slices": len(loader)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "processes": place.world,
        "device": place.device.type,
        "settings": plain(spec),
    }


def plain(spec: Any) -> dict[str, Any]:
    """Return a spec as JSON-ready values: dictionaries, lists, numbers, strings."""
    return json.loads(json.dumps(asdict(spec)))


def check_same_run(job: Job) -> None:
    """Compare a run that is to begin with the one its folder already holds.

    Raises:
        ShardSetMismatch: that one was trained on other slices or conditions.
        ConfigMismatch: it has another network, tokenizer or settings.
    """
    last = find_last(job.out)
    if last is None:
        return
    kept = read_checkpoint(last, kind_of(job.config))
    way_out = f"Repeat the command that began {job.out}, or write to another folder."
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
    _compare(job.out, "the settings", _flat(kept.run["settings"]), _flat(job.run["settings"]), way_out)


def _compare(out: Path, what: str, before: dict[str, Any], now: dict[str, Any], way_out: str) -> None:
    names = [name for name in sorted(before | now) if name not in FREE and before.get(name) != now.get(name)]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)}, now {now.get(name)}" for name in names)
        raise ConfigMismatch(f"{out} was begun with other values of {what}: {changes}. {way_out}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _names(conditions: Any) -> str:
    names = list(conditions)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
