"""Speak between the processes of one training run; alone, every function here does nothing or gives back its
argument.

In: torchrun's variables, as a mapping. Out: a `Process`, and sums, means and copies over all
processes.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as group
from torch import Tensor

from medvar_model.errors import ConfigMismatch
from medvar_model.machine.memory import keep_freed_memory

KNOWN_DEVICES = "auto, cpu, cuda or cuda:N"


@dataclass(frozen=True)
class Process:
    """This process: its number among how many, and its device.

    Args:
        world: number of processes.
        rank: this one's number, [0, world).
        device: what it computes on.
    """

    world: int
    rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @staticmethod
    def alone(device: str = "auto") -> "Process":
        """Give a process that works by itself; see `joined` for the device."""
        return Process(1, 0, device_of(device))


@contextlib.contextmanager
def joined(environment: Mapping[str, str], device: str = "auto") -> Iterator[Process]:
    """Join the other processes for the length of a `with` block.

    Args:
        environment: where torchrun's RANK, WORLD_SIZE and LOCAL_RANK are looked up; without them this process
            is alone.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Raises:
        ConfigMismatch: this machine has no such device.
    """
    world, rank = int(environment.get("WORLD_SIZE", "1")), int(environment.get("RANK", "0"))
    process = Process(world, rank, device_of(device, int(environment.get("LOCAL_RANK", "0"))))
    if world == 1:
        yield process
        return
    group.init_process_group("nccl" if process.device.type == "cuda" else "gloo")
    try:
        yield process
    finally:
        group.destroy_process_group()


def is_joined() -> bool:
    """Say whether there are other processes."""
    return group.is_available() and group.is_initialized()


def mean(values: Tensor) -> Tensor:
    """Average a tensor of equal shape over the processes."""
    return total(values) / group.get_world_size() if is_joined() else values


def total(values: Tensor) -> Tensor:
    """Sum a tensor of equal shape over the processes."""
    if not is_joined():
        return values
    summed = values.clone()
    group.all_reduce(summed)
    return summed


def gathered(values: Tensor) -> Tensor:
    """Join a tensor of equal shape from all processes along its first axis, in the order of ranks."""
    if not is_joined():
        return values
    parts = [torch.empty_like(values) for _ in range(group.get_world_size())]
    group.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def copy_from_main(values: Tensor) -> None:
    """Overwrite a tensor with the first process's, in place."""
    if is_joined():
        group.broadcast(values, 0)


def wait_for_all() -> None:
    """Let no process go on before all are here."""
    if is_joined():
        group.barrier()


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """Find the device that a name means; make a GPU the one in use, and let a CPU keep freed memory (`memory.keep_freed_memory`).

    Args:
        name: auto (a GPU if there is one), cpu, cuda (the one of this process) or cuda:N.
        local_rank: number of this process on its machine.

    Raises:
        ConfigMismatch: the name is none of these, or this machine has no such GPU.
    """
    number = re.fullmatch(r"cuda:(\d+)", name)
    if name not in ("auto", "cpu", "cuda") and not number:
        raise ConfigMismatch(f"There is no device {name!r}; wanted {KNOWN_DEVICES}.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not gpus):
        keep_freed_memory()
        return torch.device("cpu")
    if not gpus:
        raise ConfigMismatch(
            f"There is no CUDA here, so --device {name} cannot be used; wanted {KNOWN_DEVICES}. Take --device auto or "
            "cpu, or install a torch with CUDA on a machine with an NVIDIA GPU."
        )
    index = int(number[1]) if number else local_rank
    if index >= gpus:
        raise ConfigMismatch(
            f"There is no GPU {index} here, only {', '.join(map(str, range(gpus)))}. Name one of these, or start at most "
            f"{gpus} processes on this machine."
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
