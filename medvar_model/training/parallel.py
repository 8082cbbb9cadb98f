"""Prepare a network for its training: less memory, compiled blocks, several processes.

In: a network and settings. Out: the same network, changed in place (no weight changes its name), and what a step calls.

- `ddp`: every process holds the whole network, and gradients are averaged (DistributedDataParallel).
- `fsdp`: every process holds a part of each weight, of its gradient and of its moments, and a block's weights come together only while
  they are needed (FSDP2, `fully_shard`). The arithmetic is the same up to the order of sums.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from medvar_model.errors import ConfigMismatch
from medvar_model.machine import processes
from medvar_model.machine.processes import Process
from medvar_model.networks.block import Block
from medvar_model.networks.conv import ResidualBlock
from medvar_model.training.objective import Batch, Draw, Objective
from medvar_model.training.settings import LoopSettings

Replica = Callable[[Batch, Draw], dict[str, Tensor]]
UNITS = (Block, ResidualBlock)  # what is computed again, or compiled, as one


def prepare(network: nn.Module, settings: LoopSettings) -> None:
    """Let each block keep its input alone (`recompute`), and compile each (`compile`), as the settings say."""
    for unit in [module for module in network.modules() if isinstance(module, UNITS)]:
        if settings.recompute:
            unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)  # type: ignore[method-assign]
        if settings.compile:
            unit.compile(dynamic=False)


def shard(network: nn.Module, process: Process) -> None:
    """Split a transformer's weights over all processes, block by block; each must hold the same weights.

    Raises:
        ConfigMismatch: this process is alone.
    """
    if not processes.is_joined():
        raise ConfigMismatch(
            "--parallel fsdp splits the weights over several processes, and this one is alone. Start it with `python -m "
            "medvar_cli.launch --nproc-per-node 8 train …`, or leave the option out."
        )
    from torch.distributed.device_mesh import init_device_mesh  # slow to import
    from torch.distributed.fsdp import fully_shard

    # Nothing is added in place to what a network or a block returns, of which torch warns at each call.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(process.device.type, (process.world,))
    for block in [module for module in network.modules() if isinstance(module, Block)]:
        fully_shard(block.modulation, mesh=mesh)  # which is called before the block itself
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


@contextlib.contextmanager
def together(network: nn.Module) -> Iterator[None]:
    """Bring the weights of a split network together for the length of a `with` block, without gradients.

    In the block no process waits for another, so they may call the network unequally often, as a validation does.
    """
    if not is_sharded(network):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(part is not network, recurse=False)


def is_sharded(network: nn.Module) -> bool:
    """Tell whether a network's weights are split over processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in network.parameters())


def replica(objective: Objective, process: Process) -> Replica:
    """Give what a pass calls: the objective itself, or one that averages gradients over all processes."""
    if not processes.is_joined() or is_sharded(objective.network):
        return objective
    devices = [process.device] if process.device.type == "cuda" else None
    return DistributedDataParallel(objective, devices, find_unused_parameters=objective.skips_parameters)


def exchange_gradients(replica: Replica, network: Any, wanted: bool) -> None:
    """Let gradients travel between processes in the coming pass, or keep them for a later one."""
    if isinstance(replica, DistributedDataParallel):
        replica.require_backward_grad_sync = wanted
    elif is_sharded(network):
        network.set_requires_gradient_sync(wanted)


def whole(values: Tensor) -> Tensor:
    """Give a tensor whole, where every process holds a part of it; all processes must ask."""
    full = getattr(values, "full_tensor", None)
    return values if full is None else full()


def like(values: Tensor, pattern: Tensor) -> Tensor:
    """Give this process's part of a whole tensor, split as `pattern` is."""
    if getattr(pattern, "full_tensor", None) is None:
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    return distribute_tensor(values.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)
