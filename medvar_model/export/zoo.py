"""Compare trained models: a row a checkpoint, read off the checkpoints themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvar_model.checkpoints.checkpoint import find_checkpoint, read_checkpoint
from medvar_model.checkpoints.folder import load_json
from medvar_model.config import TokenizerConfig, TransformerConfig, tokenizer_parameters, transformer_parameters
from medvar_model.training.log import read_log


@dataclass(frozen=True)
class ZooRow:
    """What a checkpoint is.

    Attributes:
        path: as named by whoever asks.
        kind: tokenizer or transformer.
        size: such as d16 of a transformer; pixels a side of a tokenizer's images, such as 256.
        parameters: of its network.
        codes: of the vocabulary.
        conditions: that it tells apart; 0 of a tokenizer.
        samples: images that the weights have seen; 0 where that is not written down.
        finished: share of the run's steps that they have seen, 0 to 1.
        validation: lowest validation loss up to then; None where the run's log is not at hand or none was measured.
        digest: of configuration and weights.
    """

    path: str
    kind: str
    size: str
    parameters: int
    codes: int
    conditions: int
    samples: int
    finished: float
    validation: float | None
    digest: str


def zoo(paths: Sequence[str]) -> tuple[ZooRow, ...]:
    """Read a row for each run or checkpoint.

    Raises:
        MissingCheckpoint: a path holds none, or a damaged one.

    Example:
        >>> zoo(["runs/tokenizer", "runs/d16"])    # doctest: +SKIP
    """
    return tuple(_row(path) for path in paths)


def _row(path: str) -> ZooRow:
    folder = find_checkpoint(Path(path))
    kind = "tokenizer" if load_json(folder / "config.json").get("kind") == "tokenizer" else "transformer"
    kept = read_checkpoint(folder, kind)
    config, seen = kept.config, kept.run.get("progress", {})
    if isinstance(config, TransformerConfig):
        size, parameters, conditions = f"d{config.depth}", transformer_parameters(config), config.n_conditions
    else:
        assert isinstance(config, TokenizerConfig)
        size, parameters, conditions = str(config.image_side), tokenizer_parameters(config), 0
    return ZooRow(
        path=path,
        kind=kind,
        size=size,
        parameters=parameters,
        codes=config.vocabulary,
        conditions=conditions,
        samples=seen.get("samples", 0),
        finished=seen["step"] / seen["steps"] if seen.get("steps") else 0.0,
        validation=_lowest(folder.parent / "log.jsonl", seen.get("step", 0)),
        digest=kept.digest,
    )


def _lowest(log: Path, step: int) -> float | None:
    lines = [line for line in read_log(log) if line["step"] <= step and line.get("validation")]
    losses = [line["validation"]["loss"] for line in lines if line["validation"].get("loss") is not None]
    return min(losses, default=None)
