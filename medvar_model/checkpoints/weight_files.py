"""Open weight files of others without running code that may be in them.

In: the path of a `.safetensors` or PyTorch file. Out: what it holds, by name.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from medvar_data.storage.store import file_digest
from medvar_model.errors import MissingCheckpoint


def read_weights(path: Path) -> Mapping[str, object]:
    """Read a `.safetensors` file or a PyTorch file that holds nothing but weights; code in it is never run.

    Raises:
        MissingCheckpoint: the file is absent, unreadable, or holds more than weights.
    """
    if not path.is_file():
        raise MissingCheckpoint(f"There is no weight file {path}. Check the path.")
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        raise MissingCheckpoint(
            f"{path} could not be read as weights only ({type(error).__name__}). Give a .safetensors file, "
            "or a PyTorch file that holds a plain state dict."
        ) from error
    if not isinstance(content, Mapping):
        raise MissingCheckpoint(f"{path} holds a {type(content).__name__}; wanted a dictionary of weights.")
    return content


def check_named_digest(path: Path) -> None:
    """Compare a file with the start of the sha256 that its name ends in, as torchvision names its files (`vgg16-397923af.pth`).

    Raises:
        MissingCheckpoint: the file is another than its name says. Files that are absent or named otherwise pass.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if named and path.is_file() and not file_digest(path).startswith(named[1]):
        raise MissingCheckpoint(
            f"{path} is not the file that its name says: its sha256 does not begin with {named[1]}. Download it again."
        )
