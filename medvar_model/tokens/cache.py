"""Keep the token ids of all slices of a shard set in a folder, and find them there again.

    tokens.json      what they were made from, and a digest of each file; written last, so that a folder without it is not finished
    train.u16 …      a split's ids in the order of its rows in slices.parquet: uint16, little-endian, slices × tokens, coarsest scale first
    progress.json    only while they are being made: what they are made from, and how many slices of each split are on the disk

In: a folder. Out: a `TokenCache` whose ids are mapped into memory, or a sentence that says what differs and what to do.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import UInt16

from medvar_data.naming import Count, Digest
from medvar_data.storage.documents import read_json
from medvar_data.storage.store import file_digest
from medvar_model.config import TokenizerConfig
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, ShardSetMismatch

TOKENS_FILE, PROGRESS_FILE = "tokens.json", "progress.json"
FORMAT = 1
MOST_CODES = 1 << 16
AS_STORED = "as stored"
Split = Annotated[str, msgspec.Meta(pattern=r"^(train|val|test)\Z")]  # nothing else may become part of a path
ID_TYPE = np.dtype("<u2")
AGAIN = "Run `medvar-model tokenize` again, in a new folder (-o)"


@dataclass(frozen=True)
class Origin:
    """What a cache's ids depend on.

    Args:
        tokenizer: digest of its configuration and weights.
        shard_set: digest of the set.
        image_side: pixels a side as the tokenizer takes them; those of the set are averaged down to it.
        scale_sides: side of each token map, coarsest first.
        vocabulary: number of codes; ids are below it.
        device: kind of what they were computed on, cpu or cuda.
        together: images encoded at a time; with 1 no id depends on another image.
        view: which picture of each slice was encoded; as yet only the stored one, neither flipped nor otherwise altered.
    """

    tokenizer: Digest
    shard_set: Digest
    image_side: Count
    scale_sides: tuple[int, ...]
    vocabulary: Count
    device: str = "cpu"
    together: Count = 1
    view: str = AS_STORED

    @property
    def n_tokens(self) -> int:
        """Tokens of an image."""
        return sum(side * side for side in self.scale_sides)


@dataclass(frozen=True)
class SplitTokens:
    """One split's file: slices, sha256 of its bytes, and of the slices' keys, each with a newline behind it."""

    slices: Count
    sha256: Digest
    keys_sha256: Digest


@dataclass(frozen=True)
class Agreement:
    """How ids that were computed otherwise compare with those of the CPU, one image at a time.

    Args:
        images: that were encoded both ways.
        share: of their ids that are the same.
    """

    images: Count
    share: float


@dataclass(frozen=True)
class TokenNote:
    """The content of tokens.json; `agreement` is None where the ids are the CPU's own."""

    format: int
    origin: Origin
    splits: dict[Split, SplitTokens]
    versions: dict[str, str]
    agreement: Agreement | None = None


@dataclass(frozen=True)
class Progress:
    """The content of progress.json."""

    origin: Origin
    slices: dict[Split, Count]


@dataclass(frozen=True, eq=False)
class TokenCache:
    """An opened cache."""

    folder: Path
    note: TokenNote

    def ids(self, split: str) -> UInt16[np.ndarray, "slices tokens"]:
        """Map a split's ids into memory."""
        shape = (self.note.splits[split].slices, self.note.origin.n_tokens)
        if not shape[0]:
            return np.empty(shape, dtype=ID_TYPE)
        return np.memmap(split_file(self.folder, split), dtype=ID_TYPE, mode="r", shape=shape)


def split_file(folder: Path, split: str) -> Path:
    """Name the file of a split."""
    return folder / f"{split}.u16"


def keys_digest(keys: pa.ChunkedArray) -> str:
    """Sha256 of keys in their order, each with a newline behind it."""
    digest = sha256()
    for chunk in keys.chunks:
        digest.update("".join(f"{key}\n" for key in chunk.to_pylist()).encode())
    return digest.hexdigest()


def is_token_cache(folder: Path) -> bool:
    """Tell whether a folder holds a cache, finished or not."""
    return (folder / TOKENS_FILE).is_file() or (folder / PROGRESS_FILE).is_file()


def open_tokens(folder: Path) -> TokenCache:
    """Open a finished cache and compare every file with its digest.

    Raises:
        MissingCheckpoint: there is none, it is not finished, or it is damaged.
    """
    if not (folder / TOKENS_FILE).is_file():
        if (folder / PROGRESS_FILE).is_file():
            done = sum(read_progress(folder).slices.values())
            raise MissingCheckpoint(
                f"{folder} holds the tokens of {done:,} slices only: tokenizing was stopped. Run the same `medvar-model tokenize` again; "
                "it goes on from there."
            )
        raise MissingCheckpoint(
            f"{folder} holds no tokens.json; wanted a folder that `medvar-model tokenize` wrote. Check the path."
        )
    note: TokenNote = read_json(folder / TOKENS_FILE, TokenNote, MissingCheckpoint, f"{AGAIN}.")
    if note.format != FORMAT or note.origin.view != AS_STORED:
        raise MissingCheckpoint(
            f"{folder} holds tokens of format {note.format} and view {note.origin.view!r}; this medvar reads format {FORMAT} of slices "
            f"{AS_STORED}. {AGAIN}."
        )
    for split in note.splits:
        _check_file(folder, split, note)
    return TokenCache(folder, note)


def read_progress(folder: Path) -> Progress:
    """Read how far a cache in the making is."""
    return read_json(folder / PROGRESS_FILE, Progress, MissingCheckpoint, f"Delete {folder} and tokenize again.")


def _check_file(folder: Path, split: str, note: TokenNote) -> None:
    path, entry = split_file(folder, split), note.splits[split]
    wanted = entry.slices * note.origin.n_tokens * ID_TYPE.itemsize
    found = path.stat().st_size if path.is_file() else -1
    if found != wanted:
        there = f"has {found:,} bytes" if found >= 0 else "is missing"
        raise MissingCheckpoint(
            f"{path} {there}; wanted {wanted:,} ({entry.slices:,} slices of {note.origin.n_tokens} tokens). Restore it from a copy, or "
            f"delete {folder} and tokenize again."
        )
    if file_digest(path) != entry.sha256:
        raise MissingCheckpoint(
            f"{path} is not the file that tokens.json was written with (its sha256 differs). Restore it from a copy, or delete {folder} "
            "and tokenize again."
        )


def check_origin(folder: Path, there: Origin, wanted: Origin, names: Sequence[str]) -> None:
    """Compare what a cache was made from with what is wanted, in the named fields of `Origin`.

    Raises:
        ShardSetMismatch: another shard set.
        ConfigMismatch: anything else differs.
    """
    differing = [name for name in names if getattr(there, name) != getattr(wanted, name)]
    if not differing:
        return
    said = "; ".join(f"{WORDS[name]} is {_said(there, name)} there, {_said(wanted, name)} here" for name in differing)
    error = ShardSetMismatch if differing == ["shard_set"] else ConfigMismatch
    raise error(
        f"{folder} holds tokens of something else: {said}. Name the tokenizer and the shard set that it was made from, or tokenize into "
        "a new folder (`medvar-model tokenize … -o NEW`)."
    )


OF_TOKENIZER = ("tokenizer", "image_side", "scale_sides", "vocabulary")  # what training compares, beside the shard set
WORDS = {
    "tokenizer": "the tokenizer's digest", "shard_set": "the shard set's digest", "image_side": "the side of an image",
    "scale_sides": "the schedule of scales", "vocabulary": "the vocabulary", "device": "the device", "together": "the batch",
    "view": "the view",
}  # fmt: skip


def origin_of(
    tokenizer: str, config: TokenizerConfig, shard_set: str, device: str = "cpu", together: int = 1
) -> Origin:
    """Say what the ids of a tokenizer and a shard set depend on.

    Raises:
        ConfigMismatch: the tokenizer has more codes than 16 bits number.
    """
    if config.vocabulary > MOST_CODES:
        raise ConfigMismatch(
            f"The tokenizer has {config.vocabulary:,} codes; a token cache holds ids of 16 bits, so at most {MOST_CODES:,}. Train from images, "
            "without --tokens."
        )
    return Origin(
        tokenizer, shard_set, config.image_side, config.scale_sides, config.vocabulary, device=device, together=together
    )


def _said(origin: Origin, name: str) -> str:
    value: Any = getattr(origin, name)
    return value[:12] if name in ("tokenizer", "shard_set") else json.dumps(value)
