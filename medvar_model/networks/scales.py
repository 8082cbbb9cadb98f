"""Lay the token maps of an image one after the other.

In: the sides of the maps, coarsest first. Out: lengths, starts, each position's level, the block-causal mask, and
which smoother each scale uses.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from medvar_model.config import check_sides

TokenMaps = list[Int64[Tensor, "batch _"]]
"""Code ids of an image batch, one tensor a scale, coarsest first: int64, batch x side^2 (row-major), [0,
vocabulary)."""


OWN_PIECE = 64  # positions from which on a scale's attention is computed by itself


@dataclass(frozen=True)
class ScaleSchedule:
    """The sides of an image's token maps, coarsest first.

    Example:
        >>> ScaleSchedule((1, 2, 3)).starts
        (0, 1, 5)
    """

    sides: tuple[int, ...]

    def __post_init__(self) -> None:
        check_sides(self.sides)

    @property
    def n(self) -> int:
        """Number of scales, K."""
        return len(self.sides)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each scale, n_k^2."""
        return tuple(side * side for side in self.sides)

    @property
    def starts(self) -> tuple[int, ...]:
        """Position of each scale's first token in the sequence."""
        return tuple(accumulate(self.lengths, initial=0))[:-1]

    @property
    def total(self) -> int:
        """Tokens of an image, L."""
        return sum(self.lengths)

    def levels(self, device: torch.device | None = None) -> Int64[Tensor, " tokens"]:
        """Give the scale of every position, [0, K)."""
        runs = [torch.full((length,), k, device=device) for k, length in enumerate(self.lengths)]
        return torch.cat(runs)

    def visible(self, device: torch.device | None = None) -> Bool[Tensor, "tokens tokens"]:
        """Say which positions (columns) a position (row) may attend to: its own scale's and all coarser."""
        level_L = self.levels(device)
        return level_L[:, None] >= level_L[None, :]

    def pieces(self) -> tuple[int, ...]:
        """Say where to cut the sequence so that attention needs no mask, but for the first piece: the ends of the pieces.

        Each scale of at least `OWN_PIECE` positions is a piece, which sees everything up to its end; the coarser ones, which cost little, are
        one piece together.

        >>> ScaleSchedule((1, 2, 3, 4, 8)).pieces(), ScaleSchedule((1, 2, 3)).pieces()
        ((30, 94), (14,))
        """
        ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
        coarse = sum(length < OWN_PIECE for length in self.lengths)  # lengths grow
        return tuple(ends[max(0, coarse - 1) :])

    def split(self, sequence_BL: Int64[Tensor, "batch tokens"]) -> TokenMaps:
        """Cut a sequence of ids into token maps; `torch.cat(maps, 1)` is the way back."""
        return list(sequence_BL.split(self.lengths, dim=1))

    def smoothers(self, n_smoothers: int) -> tuple[int, ...]:
        """Say which of the shared smoothers each scale uses.

        Scale k stands at k / (K - 1) and takes the nearest of n ticks spread over [0, 1] (VAR,
        `PhiPartiallyShared`). For ten scales and four smoothers two scales fall exactly between ticks, where
        rounding would decide; the released weights were trained with the table below, so it is written out.
        """
        if n_smoothers == 1:
            return (0,) * self.n
        if (self.n, n_smoothers) == (10, 4):
            return (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
        # Ties go to the coarser smoother; nine digits keep rounding out of the decision.
        return tuple(
            min(range(n_smoothers), key=lambda i: (row[i], i)) for row in self._smoother_distances(n_smoothers)
        )

    def smoother_ties(self, n_smoothers: int) -> tuple[int, ...]:
        """Say which scales fall midway between two smoothers."""
        rows = self._smoother_distances(n_smoothers) if n_smoothers > 1 else []
        return tuple(k for k, row in enumerate(rows) if row.count(min(row)) > 1)

    def _smoother_distances(self, n_smoothers: int) -> list[list[float]]:
        """Give each scale's distance to each tick, to nine digits."""
        margin = 1 / 3 / n_smoothers if n_smoothers == 4 else 1 / 2 / n_smoothers
        ticks = [margin + (1 - 2 * margin) * i / (n_smoothers - 1) for i in range(n_smoothers)]
        return [[round(abs(tick - k / (self.n - 1)), 9) for tick in ticks] for k in range(self.n)]


def as_sequence(
    map_BCSS: Float[Tensor, "batch channels side side"],
) -> Float[Tensor, "batch length channels"]:
    """Read a square map row by row."""
    return map_BCSS.flatten(2).transpose(1, 2)


def as_map(sequence_BLC: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch channels side side"]:
    """Put a sequence of side^2 vectors back on its square; the inverse of `as_sequence`."""
    side = round(sequence_BLC.shape[1] ** 0.5)
    return sequence_BLC.transpose(1, 2).unflatten(2, (side, side))
