"""What stands in a checkpoint's folder beside the tensors: which files, what their JSON says, and a sentence for what is damaged.

In: a folder. Out: typed values, or a `MissingCheckpoint` that says what can be used in its place.
"""

from pathlib import Path
from typing import Any, TypedDict

from medvar_data.naming import Count
from medvar_data.storage.documents import read_json
from medvar_model.errors import MissingCheckpoint

RUN_CHECKPOINTS = ("best", "last", "last.previous")
SHARDS = "shards"  # in state/, where each process wrote a part
RESUMABLE = ("model.safetensors", "config.json", "run.json", "state/training.safetensors", "state/progress.json")


class SetNote(TypedDict):
    """The shard set that a run was trained on."""

    shards: str
    digest: str
    train_slices: Count


class WeightsNote(TypedDict):
    """Weights that a run took from elsewhere."""

    path: str
    digest: str


class RunNote(TypedDict, total=False):
    """What run.json says that is read back; imported weights say less."""

    shard_set: SetNote
    tokenizer: WeightsNote
    init_from: WeightsNote
    perceptual: WeightsNote
    settings: dict[str, Any]
    progress: dict[str, Any]


class ProgressNote(TypedDict):
    """What state/progress.json says: steps taken, best loss, steps left out for want of finite numbers."""

    step: Count
    best: float | None
    skipped: Count
    skipped_in_a_row: Count


def load_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Read a JSON file of a checkpoint; `kind` is what it should be and what comes back.

    Raises:
        MissingCheckpoint: it is missing or damaged.
    """
    try:
        return read_json(path, kind, MissingCheckpoint, instead(_checkpoint_of(path)))
    except OSError:
        raise damage(path, f"{path.parent} has no {path.name} that can be read, so it is incomplete.") from None


def missing_files(folder: Path) -> list[str]:
    """Name the files that resuming needs and a checkpoint lacks."""
    lacking = [name for name in RESUMABLE if not (folder / name).is_file()]
    if (folder / "state" / SHARDS / "index.json").is_file():
        lacking = [name for name in lacking if name != "state/training.safetensors"]
    return lacking


def damage(path: Path, found: str) -> MissingCheckpoint:
    """What is said of a damaged file of a checkpoint: what was found, and what can be used in its place."""
    return MissingCheckpoint(f"{found} {instead(_checkpoint_of(path))}")


def _checkpoint_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "state" else path.parent


def instead(folder: Path) -> str:
    """Say what can be used in place of a damaged checkpoint."""
    others = [folder.parent / name for name in RUN_CHECKPOINTS if folder.parent / name != folder]
    whole = [str(other) for other in others if not set(missing_files(other)) & set(RESUMABLE[:3])]
    if folder.name not in RUN_CHECKPOINTS or not whole:
        return "No other checkpoint lies beside it; restore it from a copy, or train again in another folder."
    return (
        f"{' and '.join(whole)} beside it can be used in its place (to sample, to evaluate, or with --init-from); to resume "
        "the run, restore this one from a copy."
    )
