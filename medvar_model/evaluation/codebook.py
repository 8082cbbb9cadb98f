"""Look at a tokenizer's codes: how they are used at each scale and condition, and what each further scale adds to the image.

In: a tokenizer and slices. Out: counts and means; nothing is read or written here.

For images of n tokens at a scale, B images give T = B n tokens, and uniform use gives each of V codes T / V hits. A code counts as used with
at least 0.08 T / V hits, but never with none. Where T < V not all codes can be used: at most T of V, the share that is reachable.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from medvar_model.evaluation.metrics.quality import psnr, ssim
from medvar_model.loader import Examples
from medvar_model.networks.codebook import Usage, count_codes, usage
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.sampling.sample import to_uint8
from medvar_model.training.perceptual import PerceptualDistance

SHOWN = 8  # slices kept to be looked at


@dataclass(frozen=True, eq=False)
class CodeMeasures:
    """How a tokenizer codes some slices.

    Attributes:
        images: how many slices.
        counts: hits of each code at each scale.
        by_condition: the same for each condition, summed over the scales; condition's row → hits.
        residual: share of the latent map's energy (mean square) that is left after each scale.
        psnr, ssim, perceptual: means over slices drawn from the first k scales, k = 1 … K; dB, [-1, 1], and the perceptual distance (NaN
            without one).
        shown: some slices, and what all scales make of them.
    """

    images: int
    counts: Int64[Tensor, "scales vocabulary"]
    by_condition: dict[int, Int64[Tensor, " vocabulary"]]
    residual: tuple[float, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    perceptual: tuple[float, ...]
    shown: tuple[UInt8[np.ndarray, "n side side"], UInt8[np.ndarray, "n side side"]]

    @staticmethod
    def joined(parts: "Sequence[CodeMeasures]") -> "CodeMeasures":
        """Join the measures of several groups of slices."""
        images = sum(part.images for part in parts)
        share = np.array([part.images for part in parts]) / images
        means = {
            name: tuple(float(value) for value in share @ np.array([getattr(part, name) for part in parts]))
            for name in ("residual", "psnr", "ssim", "perceptual")
        }
        rows = sorted({row for part in parts for row in part.by_condition})
        by_condition = {
            row: torch.stack([part.by_condition[row] for part in parts if row in part.by_condition]).sum(0)
            for row in rows
        }
        each = max(1, SHOWN // len(parts))
        shown = tuple(np.concatenate([part.shown[n][:each] for part in parts])[:SHOWN] for n in (0, 1))
        return CodeMeasures(
            images=images, counts=torch.stack([part.counts for part in parts]).sum(0), by_condition=by_condition,
            shown=(shown[0], shown[1]), **means,
        )  # fmt: skip

    @property
    def usage(self) -> Usage:
        """Use of each scale."""
        return usage(self.counts)

    @property
    def overall(self) -> Usage:
        """Use over all scales together, a single row."""
        return usage(self.counts.sum(0, keepdim=True))


@torch.no_grad()
def measure_codes(
    tokenizer: Tokenizer, batches: Iterator[Examples], perceptual: PerceptualDistance | None = None
) -> CodeMeasures:
    """Code every slice once, and draw it again from ever more scales.

    Args:
        tokenizer: whose codes.
        batches: slices at the tokenizer's side; an imported tokenizer of three channels is shown grey ones three times.
        perceptual: measures distances too; None gives NaN.
    """
    sums = _Sums(tokenizer, perceptual)
    for examples in batches:
        if len(examples):
            sums.add(examples)
    return sums.means()


@dataclass(eq=False)
class _Sums:
    """What has been added up so far."""

    tokenizer: Tokenizer
    perceptual: PerceptualDistance | None
    images: int = 0
    by_condition: dict[int, Tensor] = field(default_factory=dict)
    quality: list[Float64[np.ndarray, "four scales"]] = field(default_factory=list)
    real: list[np.ndarray] = field(default_factory=list)
    drawn: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.tokenizer.config
        self.counts = torch.zeros(len(config.scale_sides), config.vocabulary, dtype=torch.int64)

    def add(self, examples: Examples) -> None:
        tokenizer, grey = self.tokenizer, examples.images
        vocabulary = tokenizer.config.vocabulary
        images = grey.expand(-1, tokenizer.config.image_channels, -1, -1)
        latents = tokenizer.latents(images)
        tokens = tokenizer.pyramid.encode(latents)
        self.counts += count_codes(tokens, vocabulary).cpu()
        together = torch.cat(tokens, 1)
        for row in examples.conditions.unique().tolist():
            mine = together[examples.conditions == row].flatten().bincount(minlength=vocabulary).cpu()
            self.by_condition[row] = self.by_condition.get(row, 0) + mine
        real = to_uint8(grey).cpu().numpy()
        columns = []
        for total in tokenizer.pyramid.grow(tokens):
            back = tokenizer.render(total).float().clamp(-1, 1).mean(1, keepdim=True)
            left = ((latents - total).square().mean((1, 2, 3)) / latents.square().mean((1, 2, 3))).sum().item()
            drawn = to_uint8(back).cpu().numpy()
            distance = math.nan if self.perceptual is None else self.perceptual.each(back, grey).sum().item()
            columns.append((left, psnr(real, drawn).sum(), ssim(real, drawn).sum(), distance))
        self.quality.append(np.array(columns, dtype=np.float64).T)
        self.images += len(examples)
        if sum(map(len, self.real)) < SHOWN:
            self.real.append(real)
            self.drawn.append(drawn)

    def means(self) -> CodeMeasures:
        residual, decibels, similarity, distance = (
            tuple(float(value) for value in row) for row in np.sum(self.quality, 0) / self.images
        )
        shown = (np.concatenate(self.real)[:SHOWN], np.concatenate(self.drawn)[:SHOWN])
        return CodeMeasures(
            self.images, self.counts, self.by_condition, residual, decibels, similarity, distance, shown
        )
