"""Open a transformer's run with the tokenizer that belongs to it, to draw or to look inside.

In: folders and names of conditions. Out: an `OpenedRun`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medvar_model.checkpoints.checkpoint import (
    Contents,
    build_tokenizer,
    build_transformer,
    find_checkpoint,
    read_checkpoint,
    read_run,
)
from medvar_model.config import TransformerConfig
from medvar_model.errors import ConfigMismatch, MissingCheckpoint, UnknownCondition
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.sampler import Sampler

NO_CONDITION = "none"
LITTLE = 0.5  # share of a run below which people are told how much of it its weights have seen


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """Networks as kept on disk.

    Attributes:
        run: as the user wrote it.
        kept: the transformer.
        frozen: its tokenizer.
        frozen_folder: where that lies.
        rows: the transformer's row of each wanted condition, [0, N]; N is no condition.
    """

    run: str
    kept: Contents
    frozen: Contents
    frozen_folder: Path
    rows: tuple[int, ...]

    def networks(self, device: torch.device) -> tuple[Transformer, Tokenizer]:
        """Build both on a device."""
        transformer = build_transformer(self.kept, self.run).to(device)
        return transformer, build_tokenizer(self.frozen, str(self.frozen_folder)).to(device)

    def sampler(self, device: torch.device, precision: str = "auto") -> Sampler:
        """Build both and what draws with them."""
        return Sampler(*self.networks(device), precision)


def open_run(run: str, tokenizer: str = "", conditions: Sequence[str] = ()) -> OpenedRun:
    """Read a run and its tokenizer.

    Args:
        run: a transformer's run or checkpoint.
        tokenizer: a tokenizer's run or checkpoint; empty takes the copy in the transformer's run.
        conditions: names; `none` means no condition.

    Raises:
        UnknownCondition: the run knows no such condition.
        MissingCheckpoint: the run or its tokenizer is not there.
        ConfigMismatch: the tokenizer is not the one the transformer was trained with.
    """
    kept = read_checkpoint(Path(run), "transformer")
    frozen_folder = Path(tokenizer) if tokenizer else own_tokenizer(Path(run))
    frozen = read_checkpoint(frozen_folder, "tokenizer")
    wanted = kept.run.get("tokenizer", {}).get("digest", frozen.digest)
    if frozen.digest != wanted:
        raise ConfigMismatch(
            f"{run} was trained with a tokenizer of digest {wanted[:12]}, {frozen_folder} has "
            f"{frozen.digest[:12]}; its tokens mean other things. Leave out --tokenizer to take the copy in the "
            "run's folder."
        )
    assert isinstance(kept.config, TransformerConfig)
    rows = [condition_row(name, kept.conditions, kept.config.n_conditions) for name in conditions]
    return OpenedRun(run, kept, frozen, frozen_folder, tuple(rows))


def training_note(run: Path) -> str:
    """Say how much of its training a run's weights have seen, where that is little; else nothing.

    Args:
        run: a checkpoint's or a run's folder.
    """
    folder = find_checkpoint(run)
    seen = read_run(folder).get("progress")
    if not seen or seen["step"] >= LITTLE * seen["steps"]:
        return ""
    total = seen["samples"] * seen["steps"] // max(1, seen["step"])
    of = f" of the {total:,} images of their run" if seen["step"] else " images: they are random"
    return (
        f"The weights in {folder} had seen {seen['samples']:,}{of} ({100 * seen['step'] / seen['steps']:.0f} % of its steps) "
        "when they were kept: take what they draw as unfinished."
    )


def own_tokenizer(run: Path) -> Path:
    """Find the copy of the tokenizer that a transformer's run or checkpoint has beside it.

    Raises:
        MissingCheckpoint: there is none.
    """
    folder = find_checkpoint(run)
    for candidate in (run / "tokenizer", folder.parent / "tokenizer"):
        if candidate.is_dir():
            return candidate
    raise MissingCheckpoint(f"There is no tokenizer beside {run}; name the one it was trained with (--tokenizer).")


def condition_row(name: str, conditions: Mapping[str, int], n_conditions: int) -> int:
    """Give a condition's row; of no condition, the last.

    Raises:
        UnknownCondition: the run knows no such condition.
    """
    if name != NO_CONDITION and name not in conditions:
        raise UnknownCondition(
            f"The run knows no condition {name!r}; it was trained with {', '.join(conditions)}. Name one of them, or "
            f"{NO_CONDITION} for no condition."
        )
    return conditions.get(name, n_conditions)
