"""Files as VAR's authors publish them, made from the published table of names and shapes, with random numbers."""

from collections.abc import Iterator
from pathlib import Path

import torch

SIDES = (1, 2, 3, 4)


def autoencoder_shapes(width: int, vocabulary: int, latent: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in VAR's autoencoder file."""

    def conv(name: str, c_in: int, c_out: int, side: int = 3):
        yield f"{name}.weight", (c_out, c_in, side, side)
        yield f"{name}.bias", (c_out,)

    def norm(name: str, c: int):
        yield f"{name}.weight", (c,)
        yield f"{name}.bias", (c,)

    def residual(name: str, c_in: int, c_out: int):
        yield from norm(f"{name}.norm1", c_in)
        yield from conv(f"{name}.conv1", c_in, c_out)
        yield from norm(f"{name}.norm2", c_out)
        yield from conv(f"{name}.conv2", c_out, c_out)
        if c_in != c_out:
            yield from conv(f"{name}.nin_shortcut", c_in, c_out, 1)

    def attention(name: str, c: int):
        yield from norm(f"{name}.norm", c)
        yield from conv(f"{name}.qkv", c, 3 * c, 1)
        yield from conv(f"{name}.proj_out", c, c, 1)

    widths = [width * m for m in (1, 1, 2, 2, 4)]
    for half, c_first, c_last in (("encoder", 3, latent), ("decoder", latent, 3)):
        encoding = half == "encoder"
        last = widths[-1] if encoding else widths[0]
        yield from conv(f"{half}.conv_in", c_first, widths[0] if encoding else widths[-1])
        yield from residual(f"{half}.mid.block_1", widths[-1], widths[-1])
        yield from attention(f"{half}.mid.attn_1", widths[-1])
        yield from residual(f"{half}.mid.block_2", widths[-1], widths[-1])
        c_in = widths[0] if encoding else widths[-1]
        for level in range(5) if encoding else reversed(range(5)):
            stem, c = f"{half}.{'down' if encoding else 'up'}.{level}", widths[level]
            for block in range(2 if encoding else 3):
                yield from residual(f"{stem}.block.{block}", c_in if block == 0 else c, c)
                if level == 4:
                    yield from attention(f"{stem}.attn.{block}", c)
            if level != (4 if encoding else 0):
                yield from conv(f"{stem}.{'down' if encoding else 'up'}sample.conv", c, c)
            c_in = c
        yield from norm(f"{half}.norm_out", last)
        yield from conv(f"{half}.conv_out", last, c_last)
    yield from conv("quant_conv", latent, latent)
    yield from conv("post_quant_conv", latent, latent)
    yield "quantize.embedding.weight", (vocabulary, latent)
    for i in range(4):
        yield from conv(f"quantize.quant_resi.qresi_ls.{i}", latent, latent)
    yield "quantize.ema_vocab_hit_SV", (10, vocabulary)


def transformer_shapes(depth: int, sides: tuple[int, ...], conditions: int, vocabulary: int, latent: int):
    """Names and shapes in VAR's transformer file."""
    c, tokens = 64 * depth, sum(side**2 for side in sides)

    def linear(name: str, c_in: int, c_out: int):
        yield f"{name}.weight", (c_out, c_in)
        yield f"{name}.bias", (c_out,)

    yield "pos_start", (1, 1, c)
    yield "pos_1LC", (1, tokens, c)
    yield "lvl_1L", (1, tokens)
    yield "attn_bias_for_masking", (1, 1, tokens, tokens)
    yield from linear("word_embed", latent, c)
    yield "class_emb.weight", (conditions + 1, c)
    yield "lvl_embed.weight", (len(sides), c)
    for i in range(depth):
        yield from linear(f"blocks.{i}.ada_lin.1", c, 6 * c)
        yield f"blocks.{i}.attn.scale_mul_1H11", (1, depth, 1, 1)
        for bias in ("q_bias", "v_bias", "zero_k_bias"):
            yield f"blocks.{i}.attn.{bias}", (c,)
        yield f"blocks.{i}.attn.mat_qkv.weight", (3 * c, c)
        yield from linear(f"blocks.{i}.attn.proj", c, c)
        yield from linear(f"blocks.{i}.ffn.fc1", c, 4 * c)
        yield from linear(f"blocks.{i}.ffn.fc2", 4 * c, c)
    yield from linear("head_nm.ada_lin.1", c, 2 * c)
    yield from linear("head", c, vocabulary)


def filled(shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes:
        spread = 0.5 if len(shape) < 2 else (1 / torch.Size(shape[1:]).numel()) ** 0.5
        state[name] = spread * torch.randn(shape, generator=generator)
    return state


def autoencoder() -> dict[str, torch.Tensor]:
    return filled(autoencoder_shapes(width=32, vocabulary=64, latent=8))


def transformer() -> dict[str, torch.Tensor]:
    return filled(transformer_shapes(2, SIDES, conditions=6, vocabulary=64, latent=8))


def write_var_files(folder: Path) -> Path:
    """Write vae.pth, var.pth, and both in the wrapping of VAR's own trainer."""
    torch.save(autoencoder(), folder / "vae.pth")
    torch.save(transformer(), folder / "var.pth")
    wrapped = {"epoch": 3, "iter": 0, "args": {"depth": 2}}
    wrapped["trainer"] = {"var_wo_ddp": transformer(), "vae_local": autoencoder(), "var_opt": {"state": {}}}
    torch.save(wrapped, folder / "ar-ckpt-last.pth")
    return folder
