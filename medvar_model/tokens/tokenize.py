"""Encode every slice of a shard set once, so that a transformer can train without encoding its images again and again.

In: a `Tokenize`. Out: a token cache (see `cache`). On a CPU each image is encoded by itself in float32, so that its ids depend on nothing but
its pixels and the tokenizer. Killed at any moment, the same call goes on from what is on the disk.

Training alters no image (there are no flips), so a slice has one set of ids; a cache says so in `view`.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import UInt16

from medvar_data.shardset.dataset import is_shard_set, read_dataset
from medvar_data.shardset.schema import SPLITS
from medvar_data.storage.store import Store, file_digest, telling_of_full_disk, write_json
from medvar_model.checkpoints.checkpoint import build_tokenizer, read_checkpoint
from medvar_model.config import TokenizerConfig
from medvar_model.errors import ConfigMismatch, UnusableFolder
from medvar_model.loader import DataSpec, Loader
from medvar_model.machine.folders import check_shard_set, check_writable, held
from medvar_model.machine.memory import told_when_memory_ends
from medvar_model.machine.processes import Process
from medvar_model.networks.tokenizer import Images, Tokenizer, channels_last
from medvar_model.tokens.cache import (
    FORMAT,
    ID_TYPE,
    PROGRESS_FILE,
    TOKENS_FILE,
    Agreement,
    Origin,
    Progress,
    SplitTokens,
    TokenCache,
    TokenNote,
    check_origin,
    is_token_cache,
    keys_digest,
    open_tokens,
    origin_of,
    read_progress,
    split_file,
)

BLOCK = 64  # slices read at a time; what is on the disk is a whole number of these, or a whole split
SAVE_SECONDS = 10.0  # between two notes of progress
ON_GPU = 64  # images encoded together
COMPARED = 256  # images encoded on the CPU too where the cache is not the CPU's own
LEAST_AGREEMENT = 0.999

Say = Callable[[int, int], None]


@dataclass(frozen=True)
class Tokenize:
    """What to encode, and into which folder.

    Args:
        out: the cache's folder.
        data: the shard set; every slice of every split is encoded, whatever `where` and `mixture` say.
        tokenizer: a tokenizer's checkpoint or run.
        together: images encoded at a time; 0 for one on a CPU, 64 on a GPU.
    """

    out: str
    data: DataSpec
    tokenizer: str
    together: int = 0


@dataclass(frozen=True, eq=False)
class _Work:
    """An opened `Tokenize`."""

    out: Path
    tokenizer: Tokenizer
    origin: Origin
    loaders: Mapping[str, Loader]
    device: torch.device

    @property
    def total(self) -> int:
        """Slices of all splits."""
        return sum(len(loader) for loader in self.loaders.values())

    @property
    def row_bytes(self) -> int:
        """Bytes of a slice's ids."""
        return self.origin.n_tokens * ID_TYPE.itemsize


def tokenize(spec: Tokenize, device: torch.device, say: Say = lambda done, total: None) -> TokenCache:
    """Make a token cache, or go on where the same call stopped; a finished one is left alone.

    Args:
        spec: what to encode.
        device: what to compute on.
        say: told slices done, and of how many.

    Raises:
        MissingCheckpoint: there is no such tokenizer, or the cache is damaged.
        ConfigMismatch, ShardSetMismatch: the folder holds tokens of something else; or ids of a GPU agree with the CPU's too rarely.
        UnusableFolder: the folder holds other things.
        MedvarError: a slice cannot be read, or the disk is full.

    Example:
        >>> spec = Tokenize("tokens", DataSpec("shards"), tokenizer="runs/tokenizer")
        >>> tokenize(spec, torch.device("cpu")).ids("train").shape                # doctest: +SKIP
        (438905, 680)
    """
    work = _opened(spec, device)
    with (
        held(work.out),
        telling_of_full_disk(work.out),
        told_when_memory_ends(f"Encoding {work.origin.together:,} images at a time", "Give a smaller --batch-size."),
    ):
        if not (work.out / TOKENS_FILE).is_file():
            agreement = _agreement(work)
            done = _begun(work)
            for split in work.loaders:
                _encode_split(work, split, done, say)
            _finish(work, agreement)
    return open_tokens(work.out)


def check_tokenize(spec: Tokenize, device: torch.device) -> tuple[Origin, int]:
    """Check what `tokenize` checks before it begins, and write nothing; return what the ids depend on, and how many slices there are.

    Raises:
        MedvarError: what stands in its way.
    """
    work = _opened(spec, device)
    return work.origin, work.total


def encode_each(tokenizer: Tokenizer, images: Images, together: int = 1) -> UInt16[np.ndarray, "images tokens"]:
    """Give the ids of all scales of images, `together` at a time, in float32 whatever the surrounding precision."""
    with (
        torch.inference_mode(),
        torch.autocast(images.device.type, enabled=False),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        parts = [torch.cat(tokenizer.encode(part), 1).cpu() for part in images.split(together)]
    return torch.cat(parts).numpy().astype(ID_TYPE)


def _opened(spec: Tokenize, device: torch.device) -> _Work:
    """Open everything, and refuse a folder that holds something else.

    Raises:
        MedvarError: see `tokenize`.
    """
    out = Path(spec.out)
    check_writable(out)
    check_shard_set(spec.data.shards)
    contents = read_checkpoint(Path(spec.tokenizer), "tokenizer")
    config = contents.config
    assert isinstance(config, TokenizerConfig)
    dataset = read_dataset(Store(spec.data.shards))
    together = spec.together or (1 if device.type == "cpu" else ON_GPU)
    origin = origin_of(contents.digest, config, dataset.digest, device.type, together)
    _check_folder(out, origin)
    data = DataSpec(
        spec.data.shards, cache=spec.data.cache, cache_bytes=spec.data.cache_bytes, workers=spec.data.workers
    )
    process = Process(1, 0, torch.device("cpu"))
    loaders = {
        split: Loader(data, split, config.image_side, BLOCK, 0, process)
        for split in SPLITS
        if dataset.splits[split].slices
    }
    tokenizer = channels_last(build_tokenizer(contents, spec.tokenizer).to(device))
    return _Work(out, tokenizer, origin, loaders, device)


def _check_folder(out: Path, origin: Origin) -> None:
    if not out.is_dir():
        return
    if not is_token_cache(out):
        others = [path.name for path in out.iterdir() if path.name != ".lock"]
        if others or is_shard_set(Store(str(out))):
            raise UnusableFolder(
                f"{out} holds other things ({others[0]}); wanted a new or empty folder. Name another with -o."
            )
        return
    there = open_tokens(out).note.origin if (out / TOKENS_FILE).is_file() else read_progress(out).origin
    check_origin(out, there, origin, tuple(asdict(origin)))


def _begun(work: _Work) -> dict[str, int]:
    """Return how many slices of each split are on the disk, after what was not noted of them is cut off."""
    progress = work.out / PROGRESS_FILE
    done = dict.fromkeys(work.loaders, 0)
    if progress.is_file():
        done |= read_progress(work.out).slices
    for split, slices in done.items():
        path, length = split_file(work.out, split), slices * work.row_bytes
        if (path.stat().st_size if path.is_file() else 0) < length:
            done[split] = 0
        with path.open("ab") as file:
            file.truncate(done[split] * work.row_bytes)
    _note(work, done)
    return done


def _encode_split(work: _Work, split: str, done: dict[str, int], say: Say) -> None:
    loader = work.loaders[split]
    noted = time.monotonic()
    with split_file(work.out, split).open("ab") as file, contextlib.ExitStack() as ends:
        ends.callback(lambda: _save(work, file, done))
        for examples in loader.passes(BLOCK, skip=-(-done[split] // BLOCK)):
            file.write(encode_each(work.tokenizer, examples.images.to(work.device), work.origin.together).tobytes())
            done[split] += len(examples)
            if time.monotonic() - noted > SAVE_SECONDS:
                _save(work, file, done)
                noted = time.monotonic()
            say(sum(done.values()), work.total)


def _save(work: _Work, file: BinaryIO, done: Mapping[str, int]) -> None:
    """Bring a file to the disk, then note how much of it counts."""
    file.flush()
    os.fsync(file.fileno())
    _note(work, done)


def _note(work: _Work, done: Mapping[str, int]) -> None:
    write_json(work.out / PROGRESS_FILE, asdict(Progress(work.origin, dict(done))))


def _finish(work: _Work, agreement: Agreement | None) -> None:
    splits = {
        split: SplitTokens(
            len(loader), file_digest(split_file(work.out, split)), keys_digest(loader.stream.shard_set.keys)
        )
        for split, loader in work.loaders.items()
    }
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("medvar", "torch", "numpy")}}
    write_json(work.out / TOKENS_FILE, asdict(TokenNote(FORMAT, work.origin, splits, versions, agreement)))
    (work.out / PROGRESS_FILE).unlink()


def _agreement(work: _Work) -> Agreement | None:
    """Encode some images as the cache's will be and as the CPU does one at a time, and compare.

    Raises:
        ConfigMismatch: fewer than 99.9 % of the ids agree.
    """
    if (work.origin.device, work.origin.together) == ("cpu", 1) or not work.loaders:
        return None
    same, images = 0.0, 0
    alone = deepcopy(work.tokenizer).cpu()
    largest = max(work.loaders.values(), key=len)
    for examples in largest.passes(BLOCK, COMPARED):
        ours = encode_each(work.tokenizer, examples.images.to(work.device), work.origin.together)
        same += float((ours == encode_each(alone, examples.images)).mean()) * len(examples)
        images += len(examples)
    share = same / images
    if share < LEAST_AGREEMENT:
        raise ConfigMismatch(
            f"Of the ids of {images} images only {share:.2%} are those that the CPU gives; wanted {LEAST_AGREEMENT:.1%}. Tokenize with "
            "--device cpu, or with --batch-size 1."
        )
    return Agreement(images, share)
