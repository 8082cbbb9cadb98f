"""Write the numbers of a tiny tokenizer and a tiny transformer, which must not drift: `python
tests/golden/rewrite_model.py`.

Run it only when numbers are meant to change, and read the difference.
"""

import json
from pathlib import Path

import torch

from medvar_model.config import TOKENIZERS, TransformerConfig, tokenizer_parameters, transformer_parameters
from medvar_model.networks.codebook import usage
from medvar_model.networks.pyramid import fit_codebook
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.sample import PAPER, image_seeds, sample
from medvar_model.training.losses import next_scale_loss, pixel_loss

PATH = Path(__file__).with_name("model_tiny.json")
STEPS = 10


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def phantoms(count: int) -> torch.Tensor:
    """Discs of several radii and brightnesses on black, in [-1, 1]."""
    axis = torch.linspace(-1, 1, 32)
    distance = (axis[:, None].square() + axis[None].square()).sqrt()
    radii = torch.linspace(0.2, 0.9, count)[:, None, None, None]
    levels = torch.linspace(1.0, 0.1, count)[:, None, None, None]
    return 2 * levels * (distance < radii) - 1


def numbers() -> dict[str, object]:
    """Train both for ten steps and sample; everything follows from the seeds."""
    images, condition = phantoms(8), torch.arange(8) % 3
    tokenizer = Tokenizer(TOKENIZERS["tiny"], seeded(1))
    fit_codebook(tokenizer.pyramid, tokenizer.latents(images).detach(), seeded(2))
    first_tokens = torch.cat(tokenizer.encode(images), 1)[:, :5]
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=2e-3, betas=(0.5, 0.9), weight_decay=0.005)
    tokenizer_losses = []
    for _ in range(STEPS):
        result = tokenizer(images)
        loss = pixel_loss(result.images, images) + result.vq_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tokenizer_losses.append(loss.item())

    config = TransformerConfig(2, 3, vocabulary=64, latent_channels=8, scale_sides=(1, 2, 3, 4), head_width=32)
    transformer = Transformer(config, seeded(3)).train()
    tokens = tokenizer.encode(images)
    inputs_BLC, dropping = torch.cat(tokenizer.pyramid.inputs(tokens), 1), seeded(4)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05)
    transformer_losses = []
    for _ in range(STEPS):
        draws_BU = torch.rand(len(condition), transformer.draws_per_image, generator=dropping)
        loss = next_scale_loss(transformer(condition, inputs_BLC, draws_BU=draws_BU), tokens).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        transformer_losses.append(loss.item())

    drawn = sample(transformer, tokenizer, torch.tensor([0, 1, -1]), PAPER, image_seeds(PAPER.seed, 0, 3))
    return {
        "tokenizer_parameters": tokenizer_parameters(tokenizer.config),
        "transformer_parameters": transformer_parameters(config),
        "coarse_tokens_after_fitting": first_tokens.tolist(),
        "tokenizer_losses": tokenizer_losses,
        "perplexity": list(usage(result.counts).perplexity),
        "transformer_losses": transformer_losses,
        "sampled_tokens": torch.cat(drawn.tokens, 1).tolist(),
        "sampled_image_means": drawn.images.float().mean((1, 2)).tolist(),
    }


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in numbers().items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {PATH}")
