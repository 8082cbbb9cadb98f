"""Keep trained weights in folders that say what they are.

In: weights, a configuration, what they were made from. Out: a folder, written beside its place and renamed
into it:

    model.safetensors    the weights
    config.json          {"kind": "tokenizer" or "transformer", …the configuration}
    conditions.json      {name: row}; a transformer's only
    run.json             digests of shard set and tokenizer, versions, seed, command, settings
    state/               what only resuming needs: progress.json, and training.safetensors or, where each process
                         holds a part of the weights, shards/; `last` has it, `best` has not

A run's folder holds `last` and `best` (`last.previous` for a moment, while `last` is replaced); a transformer's run also
`tokenizer`; and `kept/`, where older checkpoints are to stay. Nothing is ever unpickled.

A little over 300 lines: what is written, what is read and what each damage is called are read side by side.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medvar_data.naming import Count, Name, printable
from medvar_data.storage.store import telling_of_full_disk
from medvar_model.checkpoints.folder import (
    RUN_CHECKPOINTS,
    SHARDS,
    ProgressNote,
    RunNote,
    damage,
    instead,
    load_json,
    missing_files,
)
from medvar_model.checkpoints.sharded import Make, on_cpu, read_shards
from medvar_model.config import (
    TokenizerConfig,
    TransformerConfig,
    from_dict,
    to_dict,
    tokenizer_parameters,
    transformer_parameters,
)
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.machine.folders import no_checkpoint
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer

Network = TypeVar("Network", bound=nn.Module)

LATER = (
    ("code_layer", False),
    ("codes_per_scale", False),
)  # fields that came later, and the values that say nothing: digests stay what they were
KINDS = {"tokenizer": TokenizerConfig, "transformer": TransformerConfig}


@dataclass(frozen=True, eq=False)
class Contents:
    """All that a checkpoint without a training state holds.

    Args:
        weights: name → tensor.
        config: what the weights fit into.
        run: where they came from, JSON-ready.
        conditions: name → row; empty for a tokenizer.
    """

    weights: Mapping[str, Tensor]
    config: TokenizerConfig | TransformerConfig
    run: Mapping[str, Any]
    conditions: Mapping[str, int]

    @property
    def kind(self) -> str:
        """Either tokenizer or transformer."""
        return kind_of(self.config)

    @property
    def digest(self) -> str:
        """SHA-256 over the configuration and every weight's name, type, shape and bytes."""
        named = {name: value for name, value in to_dict(self.config).items() if (name, value) not in LATER}
        digest = hashlib.sha256(json.dumps([self.kind, named], sort_keys=True).encode())
        for name in sorted(self.weights):
            tensor = self.weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What a run needs to go on as if it had never stopped.

    Args:
        tensors: name → tensor: optimizer, averages, raw weights.
        progress: a few numbers: step, best loss. All randomness is drawn from (seed, step), so there is no
            more to keep.
    """

    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]


def kind_of(config: TokenizerConfig | TransformerConfig) -> str:
    """Return what a configuration is of: tokenizer or transformer."""
    return next(kind for kind, candidate in KINDS.items() if isinstance(config, candidate))


def write_checkpoint(
    folder: Path,
    contents: Contents,
    state: TrainingState | None = None,
    shards: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint; a reader sees the old one or the new one, never half of either.

    Args:
        folder: of the checkpoint.
        contents: what it holds.
        state: what resuming needs; None writes none.
        shards: writes the state's tensors into a folder in place of `state.tensors`.

    Raises:
        MedvarError: the disk is full.
    """
    with telling_of_full_disk(folder.parent), replacing(folder) as partial:
        save_contents(partial, contents)
        if state is not None:
            (partial / "state").mkdir()
            if shards is None:
                _save_tensors(partial / "state" / "training.safetensors", state.tensors)
            else:
                (partial / "state" / SHARDS).mkdir()
                shards(partial / "state" / SHARDS)
            _save_json(partial / "state" / "progress.json", state.progress)


def save_contents(folder: Path, contents: Contents) -> None:
    """Write what a checkpoint holds but for its training state into a folder that is there."""
    _save_tensors(folder / "model.safetensors", contents.weights)
    _save_json(folder / "config.json", {"kind": contents.kind, **to_dict(contents.config)})
    _save_json(folder / "run.json", contents.run)
    if contents.kind == "transformer":
        _save_json(folder / "conditions.json", contents.conditions)


def read_checkpoint(path: Path, kind: str) -> Contents:
    """Read a checkpoint, or the best (else the last) one of a run's folder.

    Args:
        path: a checkpoint's or a run's folder.
        kind: tokenizer or transformer.

    Raises:
        MissingCheckpoint: there is none, it is damaged, or of the other kind.
    """
    folder = find_checkpoint(path)
    values = load_json(folder / "config.json")
    found = values.pop("kind", None)
    if found != kind:
        raise MissingCheckpoint(
            f"{path} holds a {found or 'thing of unknown kind'}; wanted a {kind}, so name its folder."
        )
    try:
        config: TokenizerConfig | TransformerConfig = from_dict(KINDS[kind], values)
    except ConfigMismatch as error:
        raise ConfigMismatch(f"{folder / 'config.json'} cannot be used: {error} {instead(folder)}") from None
    weights = _load_tensors(folder / "model.safetensors")
    _check_size(config, weights, folder)
    return Contents(
        weights=weights,
        config=config,
        run=read_run(folder),
        conditions=_load_conditions(folder, config) if isinstance(config, TransformerConfig) else {},
    )


def read_run(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint says it was made from: its run.json."""
    run: dict[str, Any] = load_json(folder / "run.json")
    try:
        msgspec.convert(run, RunNote)
    except msgspec.ValidationError as error:
        raise damage(folder / "run.json", f"{folder / 'run.json'} is damaged ({printable(str(error))}).") from None
    return run


def read_state(folder: Path, make: Make = on_cpu) -> TrainingState:
    """Read what `write_checkpoint` was given to resume from; `make` as `sharded.read_shards` takes it."""
    progress = load_json(folder / "state" / "progress.json", ProgressNote)
    if (shards := folder / "state" / SHARDS).is_dir():
        return TrainingState(read_shards(shards, make), progress)
    return TrainingState(_load_tensors(folder / "state" / "training.safetensors"), progress)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a folder is or, if it is a run's, holds: the best, else the last.

    Raises:
        MissingCheckpoint: there is none.
    """
    folder = _held_by(path)
    if folder is None:
        raise no_checkpoint(path, lambda below: _held_by(below) is not None)
    return folder


def _held_by(path: Path) -> Path | None:
    candidates = (path, *(path / name for name in RUN_CHECKPOINTS))
    return next((folder for folder in candidates if (folder / "config.json").is_file()), None)


def find_last(run: Path) -> Path | None:
    """Return the checkpoint to resume a run from, if there is one."""
    for folder in (run / "last", run / "last.previous"):
        if not missing_files(folder):
            return folder
    return None


def load_tokenizer(path: Path, device: torch.device | None = None) -> Tokenizer:
    """Build the tokenizer of a checkpoint or run, in evaluation mode."""
    return build_tokenizer(read_checkpoint(path, "tokenizer"), str(path)).to(device or "cpu")


def build_tokenizer(contents: Contents, name: str) -> Tokenizer:
    """Build the tokenizer that a checkpoint holds; `name` is for the error message."""
    assert isinstance(contents.config, TokenizerConfig)
    with torch.device("meta"):
        tokenizer = Tokenizer(contents.config)
    return _filled(tokenizer, contents, name)


def load_transformer(path: Path, device: torch.device | None = None) -> tuple[Transformer, dict[str, int]]:
    """Build a checkpoint's or run's transformer, in evaluation mode, and give its conditions (name → row)."""
    contents = read_checkpoint(path, "transformer")
    return build_transformer(contents, str(path)).to(device or "cpu"), dict(contents.conditions)


def build_transformer(contents: Contents, name: str) -> Transformer:
    """Build the transformer that a checkpoint holds; `name` is for the error message."""
    assert isinstance(contents.config, TransformerConfig)
    with torch.device("meta"):
        transformer = Transformer(contents.config)
    return _filled(transformer, contents, name)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Put weights into a module; every one must fit.

    Raises:
        ConfigMismatch: names or shapes differ; the first difference is named.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ConfigMismatch(
                f"{name}: weight {key} has shape {found.get(key, 'none')}, the configuration wants "
                f"{wanted.get(key, 'none')}. Its config.json and its weights do not belong together; take "
                "both from one checkpoint."
            )
    module.load_state_dict(weights, assign=any(value.is_meta for value in module.state_dict().values()))


def partial_of(folder: Path) -> Path:
    """Name the folder in which a checkpoint is made."""
    return folder.with_name(folder.name + ".partial")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of another when the block ends without an error.

    Two renames cannot be one step, so between them the old folder is called `….previous`; readers know of it.
    """
    partial, previous = partial_of(folder), folder.with_name(folder.name + ".previous")
    for leftover in (partial, *([previous] if folder.exists() else [])):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in sorted(partial.rglob("*")):
        _flush(path)
    _flush(partial)
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _filled(module: Network, contents: Contents, name: str) -> Network:
    load_weights(module, contents.weights, name)
    return module.eval().requires_grad_(False)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # which hides the system's error in its text
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def _save_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise damage(path, f"{path.parent} has no {path.name}, so it is incomplete.") from None
    except SafetensorError as error:
        raise damage(path, f"{path} is damaged ({error}).") from None


def _load_conditions(folder: Path, config: TransformerConfig) -> dict[str, int]:
    """Read name → row of the conditions: names that lead nowhere, each with a row of its own.

    Raises:
        MissingCheckpoint: the file is missing, damaged, or does not fit the configuration.
    """
    path = folder / "conditions.json"
    rows: dict[str, int] = load_json(path, dict[Name, Count])
    if len(set(rows.values())) != len(rows) or any(row >= config.n_conditions for row in rows.values()):
        raise damage(path, f"{path} is damaged (rows are wanted once each, below {config.n_conditions}).")
    return rows


def _check_size(config: TokenizerConfig | TransformerConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a configuration that asks for more numbers than the weights hold, before anything of it is built."""
    wanted = transformer_parameters(config) if isinstance(config, TransformerConfig) else tokenizer_parameters(config)
    found = sum(tensor.numel() for tensor in weights.values())
    if wanted > found:
        raise ConfigMismatch(
            f"{folder / 'config.json'} describes {wanted:,} weights, but model.safetensors holds {found:,}. {instead(folder)}"
        )
