"""Say how much arithmetic a training step is, and how much of the device's it uses (MFU, model FLOPs utilisation).

In: a configuration; a device. Out: floating-point operations of an image, and the device's peak, measured.

Counted are the network's multiplications and additions, forward once and backward twice. What is done beside it, such as encoding the
images or computing blocks again, does not count as use.
"""

import time
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from medvar_model.config import TokenizerConfig, TransformerConfig
from medvar_model.networks.tokenizer import Tokenizer

SIDE_CPU, SIDE_GPU = 1024, 8192  # of the matrices whose product is timed
REPEATS = 3


@cache
def training_flops(config: TokenizerConfig | TransformerConfig) -> int:
    """Count the operations of one image in training, forward and backward: a multiplication and its addition are two.

    Example:
        >>> from medvar_model.config import TOKENIZERS, transformer_config
        >>> round(training_flops(transformer_config("d16", TOKENIZERS["paper"], 30)) / 1e9)
        930
    """
    return 3 * (_transformer_flops(config) if isinstance(config, TransformerConfig) else _tokenizer_flops(config))


def _transformer_flops(config: TransformerConfig) -> int:
    """Count one image's forward pass: linear layers, attention over all pairs of positions, modulations of the condition."""
    tokens, width = config.n_tokens, config.width
    position = (4 + 2 * config.mlp_ratio) * width**2 * config.depth + config.vocabulary * width
    shown = (tokens - 1) * config.latent_channels * width
    condition = (6 * config.depth + 2) * width**2
    return 2 * (tokens * position + shown + condition) + 4 * tokens**2 * width * config.depth


def _tokenizer_flops(config: TokenizerConfig) -> int:
    """Count one image's way through encoder and decoder, by running them without numbers (on torch's meta device)."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tokenizer, side = Tokenizer(config), config.image_side
        tokenizer.render(tokenizer.latents(torch.empty(1, config.image_channels, side, side)))
    return int(counter.get_total_flops())


@cache
def measured_peak(device: torch.device, dtype: torch.dtype | None) -> float:
    """Time products of large matrices on a device: operations a second, the best of three; None is float32."""
    side = SIDE_GPU if device.type == "cuda" else SIDE_CPU
    a, b = (torch.ones(side, side, device=device, dtype=dtype or torch.float32) for _ in range(2))
    seconds = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            _synchronise(device)
            started = time.perf_counter()
            torch.mm(a, b)
            _synchronise(device)
            seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
