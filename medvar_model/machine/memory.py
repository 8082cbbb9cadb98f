"""Say in a sentence that memory does not suffice: before the work where that is certain, else when it happens.

In: sizes and a device. Out: nothing, or an error that names what to make smaller.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator

import torch

from medvar_data.engine.memory import memory_limit
from medvar_model.config import TokenizerConfig, TransformerConfig
from medvar_model.errors import OutOfMemory

_TRIM, _LARGEST_REUSED = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_REFUSED = re.compile(r"out of memory|not enough memory|can't allocate memory|DefaultCPUAllocator", re.IGNORECASE)


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next tensors of this process, instead of giving it back; say whether it does.

    Fresh memory costs a page fault for each 4 KiB: a training step of d16 on a CPU spent 5 % of its time on them, the drawing of an image 6 %
    (`docs/bench.md`). The process then holds its peak until it ends. Nothing is changed where the C library has no such
    setting, or where the environment sets it (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_TRIM, -1)) and bool(mallopt(_LARGEST_REUSED, 1 << 30))


@contextlib.contextmanager
def told_when_memory_ends(what: str, advice: str) -> Iterator[None]:
    """Turn every way of running out of memory within a `with` block into one sentence.

    Args:
        what: what did not fit, such as "A step of 64 images".
        advice: what to do next.

    Raises:
        OutOfMemory: the memory of the CPU or GPU did not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{what} did not fit into memory. {advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out; torch uses RuntimeError for it on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_REFUSED.search(str(error)))


def memory_bytes(device: torch.device) -> int:
    """Return how much memory a device has in all; of the CPU, what this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_limit()


def least_training_bytes(config: TokenizerConfig | TransformerConfig, bytes_each: int) -> int:
    """Bound from below what one image of a training pass keeps for its gradients.

    Counted are, for a tokenizer, four maps of each residual block of the finest level; for a transformer, the logits,
    and of each block eight vectors a token (what its four linear layers read, and queries, keys and values).

    Args:
        config: of the network in training.
        bytes_each: of a number, 4 or 2.
    """
    if isinstance(config, TokenizerConfig):
        blocks = 2 * config.blocks_per_level + 1
        positions = (config.image_side // config.patch) ** 2
        return 4 * blocks * config.width * config.level_multipliers[0] * positions * bytes_each
    return config.n_tokens * (config.vocabulary + 8 * config.depth * config.width) * bytes_each


def check_memory(needed_bytes: int, device: torch.device, what: str, advice: str) -> None:
    """Refuse what cannot fit, before hours of waiting or the machine's end.

    Raises:
        OutOfMemory: more is needed than the device has in all.
    """
    there = memory_bytes(device)
    if needed_bytes > there:
        place = "this GPU" if device.type == "cuda" else "this machine"
        raise OutOfMemory(
            f"{what} would take at least {needed_bytes / 1e9:,.0f} GB, and {place} has {there / 1e9:,.1f} GB. {advice}"
        )
