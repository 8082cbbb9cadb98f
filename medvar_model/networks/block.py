"""Build one block of the transformer: attention and feed-forward, steered by the condition (VAR, appendix A).

In: positions of a sequence and what the condition says of this block. Out: the positions, changed.

Shapes: B batch, L positions, D width, H heads, E head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvar_model.config import TransformerConfig

NORM_EPSILON = 1e-6
LOG_SCALE_INIT = math.log(4)
LOG_SCALE_LIMIT = math.log(100)


class Block(nn.Module):
    """Attention and feed-forward, each normalised, scaled, shifted and gated by the condition (AdaLN)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.modulation = Linear(config.width, 6 * config.width)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = FeedForward(config.width, config.mlp_ratio)

    def modulate(self, condition_BD: Tensor) -> Tensor:
        """Give the condition's gate, gate, scale, scale, shift, shift: B, 6, D (VAR's order, not DiT's)."""
        return self.modulation(F.silu(condition_BD)).unflatten(1, (6, -1))

    def forward(
        self,
        x_BLD: Tensor,
        modulation_B6D: Tensor,
        visible_LL: Tensor | None = None,
        memory: Tensor | None = None,
        seen: int = 0,
        keep_2B: Tensor | None = None,
        pieces: tuple[int, ...] = (),
    ) -> Tensor:
        """Add both branches to the stream; `keep_2B` multiplies each (drop-path), None keeps all."""
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = modulation_B6D[:, :, None].unbind(1)
        if keep_2B is not None:
            gate_1, gate_2 = gate_1 * keep_2B[0, :, None, None], gate_2 * keep_2B[1, :, None, None]
        x_BLD = x_BLD + gate_1 * self.attention(
            normalised(x_BLD) * (1 + scale_1) + shift_1, visible_LL, memory, seen, pieces
        )
        return x_BLD + gate_2 * self.feed_forward(normalised(x_BLD) * (1 + scale_2) + shift_2)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; each head learns its temperature."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))  # keys have none: a softmax does not see it
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((heads,), LOG_SCALE_INIT))
        self.output = Linear(width, width)

    def project(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values (each B, H, L, E); the former two normalised, in float32."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = F.linear(x_BLD, self.query_key_value.weight, bias)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = self.log_scale.float().clamp(max=LOG_SCALE_LIMIT).exp()[:, None, None]
        q = F.normalize(q.float(), dim=-1) * scale
        k = F.normalize(k.float(), dim=-1)
        return q.to(v.dtype), k.to(v.dtype), v

    def forward(
        self,
        x_BLD: Tensor,
        visible_LL: Tensor | None,
        memory: Tensor | None,
        seen: int,
        pieces: tuple[int, ...] = (),
    ) -> Tensor:
        """Attend within a masked sequence, or to `seen` remembered positions and the given ones.

        Args:
            x_BLD: the given positions.
            visible_LL: which position may attend to which; None for all.
            memory: room for keys and values (2, B, H, L_max, E); the given positions are written after the
                `seen` first.
            seen: positions already in memory.
            pieces: ends of pieces of the sequence that are computed by themselves, see `ScaleSchedule.pieces`; empty: all at once.
        """
        q, k, v = self.project(x_BLD)
        if memory is not None:
            end = seen + x_BLD.shape[1]
            memory[0, :, :, seen:end], memory[1, :, :, seen:end] = k, v
            k, v = memory[:, :, :, :end]
        out = (
            in_pieces(q, k, v, visible_LL, pieces)
            if visible_LL is not None and len(pieces) > 1
            else F.scaled_dot_product_attention(q, k, v, attn_mask=visible_LL, scale=1.0)
        )
        return self.output(out.transpose(1, 2).flatten(2))


def in_pieces(q: Tensor, k: Tensor, v: Tensor, visible_LL: Tensor, ends: tuple[int, ...]) -> Tensor:
    """Attend piece by piece, each to everything up to its end; the first by its mask.

    What a mask would hide is not computed at all: with the paper's scales 63 % of all pairs are left, and all but a few of them go to the
    kernel without a mask.
    """
    out, start = [], 0
    for end in ends:
        mask = visible_LL[:end, :end] if start == 0 else None
        seen_k, seen_v = k[:, :, :end], v[:, :, :end]
        out.append(F.scaled_dot_product_attention(q[:, :, start:end], seen_k, seen_v, attn_mask=mask, scale=1.0))
        start = end
    return torch.cat(out, dim=2)


class FeedForward(nn.Module):
    """Widen, bend, narrow."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.widen = Linear(width, ratio * width)
        self.narrow = Linear(ratio * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Map every position on its own."""
        return self.narrow(F.gelu(self.widen(x_BLD), approximate="tanh"))


class Linear(nn.Linear):
    """A linear layer that leaves its weights to `Transformer.initialise`: two billion are not drawn twice."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


def normalised(x_BLD: Tensor) -> Tensor:
    """Give every position mean 0 and variance 1 (layer normalisation without weights)."""
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=NORM_EPSILON)
