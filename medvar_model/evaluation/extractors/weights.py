"""Find the weight files of feature networks on this machine, check them, and fill networks with them. Nothing is fetched.

In: what is published under which name, and perhaps a path. Out: the file; a network with its weights.

A path that the user gives goes first; then the folders in which the publisher's own tools keep the file.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medvar_data.storage.store import file_digest
from medvar_model.checkpoints.weight_files import check_named_digest, read_weights
from medvar_model.errors import MissingCheckpoint

OPTION = "--feature-weights"
UNUSED = "num_batches_tracked"  # counts training steps; nothing that the network computes depends on it


@dataclass(frozen=True)
class Published:
    """Weights as somebody publishes them.

    Attributes:
        features: name of the features that need them, as in the option.
        files: names of the file, the usual one first.
        where: where they are published, with their size, in words that complete "published at".
        sha256: of the file, hex; empty where the publisher states none.
    """

    features: str
    files: tuple[str, ...]
    where: str
    sha256: str = ""


def torch_cache() -> Path:
    """Say where torch.hub keeps downloaded files: `$TORCH_HOME/hub/checkpoints`, by default below ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hugging_face_cache(repository: str) -> Path:
    """Say where the Hugging Face libraries keep a repository's newest snapshot, there or not.

    Args:
        repository: such as `openai/clip-vit-large-patch14-336`.
    """
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    root = Path(os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")).expanduser()
    folder = root / f"models--{repository.replace('/', '--')}"
    newest = folder / "refs" / "main"
    if newest.is_file():
        return folder / "snapshots" / newest.read_text().strip()
    found = sorted((folder / "snapshots").glob("*"))
    return found[-1] if found else folder / "snapshots" / "main"


def find_weights(published: Published, given: str, cache: Path) -> Path:
    """Find a weight file.

    Args:
        published: what is looked for.
        given: the user's file, or the folder that holds it; empty looks in the cache.
        cache: the folder in which the publisher's tools keep it.

    Raises:
        MissingCheckpoint: it is not there. The message says where it is published and which option names it.
    """
    place = Path(given).expanduser() if given else cache
    if given and place.is_file():
        return place
    found = next((place / file for file in published.files if (place / file).is_file()), None)
    if found is None:
        names = " or ".join(published.files)
        missing = f"{given} is no file and no folder with one" if given else f"it is not in {cache}"
        raise MissingCheckpoint(
            f"The features {published.features} need the weight file {names}, and {missing}. It is published at "
            f"{published.where}. Download it and put it into that folder, or name it with {OPTION} {published.features}=PATH."
        )
    return found


def read_published(published: Published, path: Path) -> Mapping[str, object]:
    """Read a weight file, weights only, after its digest was compared with the published one and with its name.

    Raises:
        MissingCheckpoint: the file has another digest, or holds more than weights.
    """
    check_named_digest(path)
    if published.sha256 and (digest := file_digest(path)) != published.sha256:
        raise MissingCheckpoint(
            f"{path} has the sha256 {digest[:12]}…; wanted {published.sha256[:12]}…, the published file {published.files[0]}. "
            f"Download it again: it is published at {published.where}."
        )
    return read_weights(path)


def fill(network: nn.Module, content: Mapping[str, object], path: Path, published: Published) -> None:
    """Give a network the weights of a file, in float32; both must have the same layers in the same shapes.

    Args:
        network: takes the weights.
        content: layers under the network's own names; parts that the network does not have are taken out before.
        path: of the file, for messages.
        published: the file that is wanted, for messages.

    Raises:
        MissingCheckpoint: a layer is missing, is not the network's, or has another shape.
    """
    wanted = {name: old for name, old in network.state_dict().items() if not name.endswith(UNUSED)}
    found = {name: new for name, new in content.items() if isinstance(new, Tensor) and not name.endswith(UNUSED)}
    missing, strange = _without(wanted, found), _without(found, wanted)
    source = f"Wanted {' or '.join(published.files)}, published at {published.where}."
    if missing:
        held = f"; instead it holds {_some(strange)}" if strange else ""
        raise MissingCheckpoint(
            f"{path} lacks {len(missing)} of the {len(wanted)} layers of {published.features}: {_some(missing)}{held}. {source}"
        )
    if strange:
        raise MissingCheckpoint(
            f"{path} holds {len(strange)} layers that {published.features} does not have: {_some(strange)}. {source}"
        )
    for name, old in wanted.items():
        if found[name].shape != old.shape:
            raise MissingCheckpoint(
                f"{path}: the layer {name} has the shape {tuple(found[name].shape)}; {published.features} has "
                f"{tuple(old.shape)}. {source}"
            )
    network.load_state_dict({name: found[name].float() for name in wanted}, strict=False)


def _without(names: Mapping[str, object], others: Mapping[str, object]) -> list[str]:
    return [name for name in names if name not in others]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
