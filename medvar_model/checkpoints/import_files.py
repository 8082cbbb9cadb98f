"""Turn VAR's official files into checkpoints that every command takes.

In: an `ImportVar`. Out: a checkpoint's folder where the file holds one network; a run's folder (`last`, `tokenizer`) where it holds both, as
VAR's training checkpoints do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medvar_data.storage.store import file_digest
from medvar_model.checkpoints.checkpoint import Contents, write_checkpoint
from medvar_model.checkpoints.import_var import import_tokenizer, import_transformer, parts_of
from medvar_model.config import PAPER_SIDES, TokenizerConfig, TransformerConfig
from medvar_model.errors import ConfigMismatch, UnusableFolder
from medvar_model.machine.folders import check_writable
from medvar_model.networks.scales import ScaleSchedule
from medvar_model.networks.tokenizer import Tokenizer


@dataclass(frozen=True)
class ImportVar:
    """What to import, and how.

    Args:
        file: `vae_ch160v4096z32.pth`, `var_d16.pth` and the like, or a training checkpoint.
        out: folder to write; it must not exist, or be empty.
        image_channels: of the tokenizer: 1 folds three colours into one, exactly for grey images; 3 keeps them.
        scale_sides: sides of the token maps; empty takes those of VAR that fit the file.
        check: compare the folded tokenizer with the one in colour on a grey image of noise.
    """

    file: str
    out: str
    image_channels: int = 1
    scale_sides: tuple[int, ...] = ()
    check: bool = False


@dataclass(frozen=True)
class Imported:
    """One network that was written.

    Attributes:
        folder: its checkpoint.
        kind: tokenizer or transformer.
        parameters: how many.
        config: its configuration.
        notes: what must be known before it is used.
        difference: largest difference of a grey value, [0, 2], between colour and fold; None where it was not compared.
    """

    folder: Path
    kind: str
    parameters: int
    config: TokenizerConfig | TransformerConfig
    notes: tuple[str, ...] = ()
    difference: float | None = None


def import_var(spec: ImportVar) -> list[Imported]:
    """Read a file of VAR's, weights only, and write what it holds.

    Raises:
        MissingCheckpoint: the file is absent, unsafe, or holds neither of VAR's networks; the message says what it holds.
        ConfigMismatch: it is a variant that cannot be built here.
        UnusableFolder: the folder holds something.

    Example:
        >>> import_var(ImportVar("vae_ch160v4096z32.pth", "runs/var-tokenizer"))  # doctest: +SKIP
    """
    file, out = Path(spec.file), Path(spec.out)
    check_writable(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UnusableFolder(f"{out} is not empty; wanted a new folder. Name another with -o.")
    parts = parts_of(file)
    folders = {
        kind: out if len(parts) == 1 else out / ("tokenizer" if kind == "tokenizer" else "last") for kind in parts
    }
    run: dict[str, Any] = {"imported": {"path": file.name, "digest": file_digest(file)}}
    written = []
    if "tokenizer" in parts:
        tokenizer, difference = _tokenizer(spec, file)
        contents = Contents(tokenizer.state_dict(), tokenizer.config, run, {})
        write_checkpoint(folders["tokenizer"], contents)
        run = {**run, "tokenizer": {"path": spec.file, "digest": contents.digest}}
        written.append(_imported(folders["tokenizer"], tokenizer, tie_notes(tokenizer.config), difference))
    if "transformer" in parts:
        transformer = import_transformer(file, scale_sides=spec.scale_sides or None)
        conditions = class_names(transformer.config.n_conditions)
        contents = Contents(transformer.state_dict(), transformer.config, run, conditions)
        write_checkpoint(folders["transformer"], contents)
        note = f"Conditions are named class-0000 to {list(conditions)[-1]}, in the order of the file's rows."
        written.append(_imported(folders["transformer"], transformer, (note,)))
    return written


def class_names(count: int) -> dict[str, int]:
    """Name the rows of a table whose classes have no names."""
    return {f"class-{row:04d}": row for row in range(count)}


def tie_notes(config: TokenizerConfig) -> tuple[str, ...]:
    """Say which scales fall midway between two smoothers, where VAR's own choice depends on rounding."""
    ties = ScaleSchedule(config.scale_sides).smoother_ties(config.n_smoothers)
    if not ties:
        return ()
    names = ", ".join(str(k + 1) for k in ties)
    if (len(config.scale_sides), config.n_smoothers) == (10, 4):
        return (f"Scales {names} fall midway between two of the four smoothers; VAR's own choice is written out here.",)
    return (
        f"Scales {names} fall midway between two of {config.n_smoothers} smoothers: VAR's choice depends on rounding there, ours takes "
        "the coarser. Compare reconstructions (`medvar-model codebook`) with VAR's own before you rely on them.",
    )


def _tokenizer(spec: ImportVar, file: Path) -> tuple[Tokenizer, float | None]:
    sides = spec.scale_sides or PAPER_SIDES
    tokenizer = import_tokenizer(file, image_channels=spec.image_channels, scale_sides=sides)
    if not spec.check:
        return tokenizer, None
    if spec.image_channels != 1:
        raise ConfigMismatch(
            "--check compares a tokenizer of one channel with one of three. Leave out --image-channels."
        )
    return tokenizer, fold_difference(tokenizer, import_tokenizer(file, image_channels=3, scale_sides=sides))


@torch.no_grad()
def fold_difference(grey: Tokenizer, colour: Tokenizer) -> float:
    """Compare what both draw of one grey image, with the tokens of the first: largest difference, on a range of [-1, 1]."""
    side = grey.config.image_side
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = grey.encode(image)
    latents = (grey.latents(image) - colour.latents(image.expand(-1, 3, -1, -1))).abs().max().item()
    totals = (grey.pyramid.decode(tokens), colour.pyramid.decode(tokens))
    drawn = (grey.render(totals[0]) - colour.render(totals[1]).mean(1, keepdim=True)).abs().max().item()
    return float(max(latents, drawn))


def _imported(folder: Path, network: nn.Module, notes: tuple[str, ...], difference: float | None = None) -> Imported:
    config: Any = network.config
    kind = "tokenizer" if isinstance(config, TokenizerConfig) else "transformer"
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return replace(Imported(folder, kind, parameters, config), notes=notes, difference=difference)


def summary(one: Imported) -> Mapping[str, Any]:
    """Return what a person wants to know of an imported network."""
    return {"kind": one.kind, "folder": str(one.folder), "parameters": one.parameters, "difference": one.difference}
