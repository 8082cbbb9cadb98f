"""Keep tensors of which each process holds a part: a file a process, read back by any number of processes.

torch.distributed.checkpoint plans who writes and reads what; the files are safetensors, so nothing is unpickled. `index.json` names them
and their lengths, and is written last.

In: name → tensor, split (DTensor) or whole. Out: a folder; and the same tensors, split as the reader wants them.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvar_data.naming import Count
from medvar_data.storage.documents import read_json
from medvar_data.storage.store import write_json
from medvar_model.errors import MissingCheckpoint
from medvar_model.machine import processes

INDEX = "index.json"
WAY_ON = "Restore it from a copy, or begin another run in a new folder with -o and --init-from."

Make = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


def on_cpu(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make a whole tensor to be filled."""
    return torch.zeros(shape, dtype=dtype)


def write_shards(folder: Path, tensors: Mapping[str, Tensor], is_main: bool) -> None:
    """Write tensors; every process calls it, and the first one writes the index.

    Args:
        folder: must be there.
        tensors: split over the processes, or the same on all.
        is_main: whether this is the first process.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # slow to import
    from torch.distributed.checkpoint.state_dict_saver import save

    flat = {name: value.reshape(1) if value.ndim == 0 else value for name, value in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        save(flat, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    processes.wait_for_all()
    if is_main:
        write_json(folder / INDEX, {path.name: path.stat().st_size for path in folder.glob("*.safetensors")})


def read_shards(folder: Path, make: Make) -> dict[str, Tensor]:
    """Read tensors; each process its parts of those that are split.

    Args:
        folder: as `write_shards` left it.
        make: from name, shape and type to the tensor that is to be filled, split or whole; numbers without axes have the shape (1,).

    Raises:
        MissingCheckpoint: a file is missing or cut short.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    _check_files(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = HuggingFaceStorageReader(str(folder))
        known: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        tensors = {name: make(name, tuple(entry.size), entry.properties.dtype) for name, entry in known.items()}
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _check_files(folder: Path) -> None:
    wanted: dict[str, int] = read_json(folder / INDEX, dict[str, Count], MissingCheckpoint, WAY_ON)
    found = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    for name in sorted(wanted | found):
        if wanted.get(name) != found.get(name):
            raise MissingCheckpoint(
                f"{folder / name} has {found.get(name, 'no')} bytes; wanted {wanted.get(name, 'no such file')}. {WAY_ON}"
            )
