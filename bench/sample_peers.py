"""The peers of bench/sample.py: VAR's own sampler with our weights, and diffusion models of the paper's sizes (`diffusers`).

In: a checkout of VAR, or the name of a model. Out: functions that draw a batch. Weights are random: time does not depend on them.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from var_equality import var_modules

from medvar_model.checkpoints.import_var import (
    rename_tokenizer,
    rename_transformer,
    tokenizer_config_of,
    transformer_config_of,
)
from medvar_model.config import PAPER_SIDES
from medvar_model.networks.fast_decoder import FastDecoder
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer

Draw = Callable[[], object]
CLASSES = 1000
WEIGHTS = "weights.pt"
Network = TypeVar("Network", Transformer, Tokenizer)
CONDITIONS = 32


def var_rival(
    checkout: Path, depth: int, batches: Sequence[int], device: torch.device, folder: Path
) -> dict[str, Draw]:
    """Build VAR's model of the released size, write its weights for `same_networks`, and give its draws of each batch."""
    with var_modules(checkout) as models:
        torch.manual_seed(0)  # VAR's constructors draw from the global generator
        with contextlib.redirect_stdout(io.StringIO()):  # they print what they are
            vae = models.VQVAE(4096, 32, ch=160, v_patch_nums=PAPER_SIDES, test_mode=True)
            var = models.VAR(vae, CLASSES, depth, 64 * depth, depth, attn_l2_norm=True, patch_nums=PAPER_SIDES)
            var.init_weights(init_adaln=0.5, init_adaln_gamma=0.5, init_head=1, init_std=-1)  # no branch is shut
        with torch.no_grad():  # codes as large as a latent map, or the features would be the same for every token
            vae.quantize.embedding.weight.normal_(0, 1)
        torch.save((rename_transformer(var.state_dict()), rename_tokenizer(vae.state_dict())), folder / WEIGHTS)
        vae.to(device)
        var.eval().requires_grad_(False).to(device)
    draws = {}
    for batch in batches:
        draws[f"var_{batch}"] = var_draw(var, batch, False)
        draws[f"var_autocast_{batch}"] = var_draw(var, batch, True)
    return draws


def same_networks(folder: Path, device: torch.device) -> tuple[Transformer, Tokenizer]:
    """Build our networks with the weights that `var_rival` wrote."""
    state, tokenizer_state = torch.load(folder / WEIGHTS, weights_only=True)
    tokenizer = Tokenizer(tokenizer_config_of(tokenizer_state, PAPER_SIDES))
    tokenizer.load_state_dict(tokenizer_state)
    transformer = Transformer(transformer_config_of(state, PAPER_SIDES))
    transformer.load_state_dict(state)
    return ready(transformer, device), ready(tokenizer, device)


def ready(network: Network, device: torch.device) -> Network:
    """Freeze a network for drawing."""
    return network.eval().requires_grad_(False).to(device)


def var_draw(var: Any, batch: int, low: bool) -> Draw:
    """Draw as VAR's demonstration does: guidance 4, top-k 900, top-p 0.95; `low` runs under autocast in bfloat16."""
    device = next(var.parameters()).device
    labels = torch.arange(batch, device=device) % CLASSES

    def draw() -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=True):
            return var.autoregressive_infer_cfg(batch, labels, g_seed=0, cfg=4.0, top_k=900, top_p=0.95)

    return draw


def diffusion_draw(name: str, steps: int, decoder: FastDecoder, device: torch.device, dtype: torch.dtype) -> Draw:
    """Draw one image by DDIM with guidance: both branches as one batch; latents are drawn by the same decoder as ours.

    The models are of the sizes that the paper names, 330 and 600 million parameters, which it does not describe further.
    """
    from diffusers import DDIMScheduler

    model = MODELS[name]().eval().requires_grad_(False).to(device, dtype)
    pixels = name.endswith("_px")
    shape = (1, 1, 256, 256) if pixels else (1, 32, 16, 16)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", clip_sample=False, timestep_spacing="trailing"
    )
    labels = torch.tensor([3, CONDITIONS - 1], device=device)

    def draw() -> Tensor:
        scheduler.set_timesteps(steps)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        with torch.inference_mode():
            for step in scheduler.timesteps:
                both, times = torch.cat([x, x]), torch.full((2,), int(step), device=device)
                c, u = model(both, times, class_labels=labels).sample[:, : shape[1]].chunk(2)
                x = scheduler.step(c + 4.0 * (c - u), step, x).prev_sample
            return x if pixels else decoder(x)

    return draw


def parameters(name: str) -> int:
    """Count a diffusion model's parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MODELS[name]().parameters())


def _unet(width: int, multipliers: tuple[int, ...], attention: int, side: int, channels: int) -> Any:
    from diffusers import UNet2DModel

    plain = len(multipliers) - attention
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(width * multiplier for multiplier in multipliers),
        layers_per_block=2,
        norm_num_groups=16,
        attention_head_dim=32 if width % 32 == 0 else 16,
        num_class_embeds=CONDITIONS,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention,
        up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",) * plain,
    )


def _dit(layers: int, head: int) -> Any:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=head,
        in_channels=32,
        out_channels=32,
        num_layers=layers,
        sample_size=16,
        patch_size=1,
        num_embeds_ada_norm=CONDITIONS,
    )


MODELS: dict[str, Callable[[], Any]] = {
    "ddpm_s": lambda: _unet(224, (1, 2, 4, 4), 3, 16, 32),
    "ddpm_l": lambda: _unet(304, (1, 2, 4, 4), 2, 16, 32),
    "dit_s": lambda: _dit(16, 64),
    "dit_l": lambda: _dit(28, 66),
    "ddpm_s_px": lambda: _unet(208, (1, 1, 2, 2, 4, 4), 2, 256, 1),
    "ddpm_l_px": lambda: _unet(288, (1, 1, 2, 2, 4, 4), 2, 256, 1),
}
