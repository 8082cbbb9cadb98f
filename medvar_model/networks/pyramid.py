"""Write a latent map as a sum of token maps, coarse to fine: the project's one residual loop (VAR, algorithms 1, 2).

In: a latent map. Out: token maps, running sums, what a transformer is shown, the training losses.
Everything here is float32, whatever the precision around it.

Shapes: B batch, C length of a code, S largest side, N positions of a scale.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from medvar_model.config import TokenizerConfig
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.codebook import Codebook, k_means
from medvar_model.networks.scales import ScaleSchedule, TokenMaps, as_map, as_sequence

Latents = Float32[Tensor, "batch code side side"]


class Smoother(nn.Module):
    """(1 - r) h + r conv(h): softens what enlarging leaves behind (VAR's phi)."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h_BCSS: Latents) -> Latents:
        """Keep the shape."""
        return (1 - self.ratio) * h_BCSS + self.ratio * self.conv(h_BCSS)


@dataclass(frozen=True)
class Quantized:
    """The outcome of a training pass.

    Attributes:
        total: the sum of all scales; its gradient passes to the latent map unchanged (straight-through).
        tokens: ids of every scale.
        loss: mean over scales of |total_k - sg(map)|^2 + commitment |sg(total_k) - map|^2.
    """

    total: Latents
    tokens: TokenMaps
    loss: Float32[Tensor, ""]


class Pyramid(nn.Module):
    """The scales, their codebook, shared or of a book for each, and their smoothers."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.schedule = ScaleSchedule(config.scale_sides)
        self.commitment = config.commitment
        self.n_books = self.schedule.n if config.codes_per_scale else 1
        self.codebook = Codebook(config.vocabulary, config.latent_channels, layer=config.code_layer, books=self.n_books)
        self.smoothers = nn.ModuleList(
            Smoother(config.latent_channels, config.residual_ratio) for _ in range(config.n_smoothers)
        )
        self._smoother_of = self.schedule.smoothers(config.n_smoothers)

    def book(self, k: int) -> int:
        """Say which book of the codebook is scale k's."""
        return k % self.n_books

    def by_book(
        self, counts_KV: Int64[Tensor, "scales vocabulary"]
    ) -> Int64[Tensor, "books scales_of_a_book vocabulary"]:
        """View counts of the scales by book: those of a book are b, b + n_books, ..."""
        return counts_KV.unflatten(0, (-1, self.n_books)).movedim(1, 0)

    def shrink(self, k: int, map_BCSS: Latents) -> Float32[Tensor, "batch code n n"]:
        """Average a full map over the cells of scale k."""
        side = self.schedule.sides[k]
        return map_BCSS if map_BCSS.shape[-1] == side else F.adaptive_avg_pool2d(map_BCSS, side)

    def lift(self, k: int, ids_BN: Int64[Tensor, "batch n"]) -> Latents:
        """Look up scale k's codes, enlarge them to the full side, smooth.

        Raises:
            ConfigMismatch: there are not as many ids as scale k has positions.
        """
        if ids_BN.shape[1] != self.schedule.lengths[k]:
            raise ConfigMismatch(
                f"Scale {k} was given {ids_BN.shape[1]} tokens an image; wanted {self.schedule.lengths[k]}. "
                f"The tokens come from a tokenizer with other scales than {self.schedule.sides}."
            )
        with torch.autocast(ids_BN.device.type, enabled=False):
            h_BCSS = as_map(self.codebook.lookup(ids_BN, self.book(k)))
            if k < self.schedule.n - 1:
                h_BCSS = F.interpolate(h_BCSS, size=self.schedule.sides[-1], mode="bicubic")
            return self.smoothers[self._smoother_of[k]](h_BCSS)

    def descend(
        self, map_BCSS: Latents, before: Callable[[int, Tensor], None] = lambda k, wanted_BNC: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go down the scales: each codes what the sum of the coarser ones has not yet explained.

        Args:
            map_BCSS: latent maps.
            before: told of each scale and the vectors that are to be coded, before ids are chosen for them.

        Yields:
            For each scale, the vectors that were to be coded (B, N, C) and the ids chosen for them (B, N).
        """
        rest_BCSS = map_BCSS
        for k in range(self.schedule.n):
            wanted_BNC = as_sequence(self.shrink(k, rest_BCSS))
            before(k, wanted_BNC)
            ids_BN = self.codebook.nearest(wanted_BNC.flatten(0, 1), self.book(k)).view(wanted_BNC.shape[:2])
            yield wanted_BNC, ids_BN
            rest_BCSS = rest_BCSS - self.lift(k, ids_BN)

    @torch.no_grad()
    def encode(self, map_BCSS: Latents) -> TokenMaps:
        """Give the ids of every scale."""
        return [ids_BN for _, ids_BN in self.descend(map_BCSS)]

    @torch.no_grad()
    def wanted(self, map_BCSS: Latents) -> list[Float32[Tensor, "batch _ code"]]:
        """Give the vectors every scale had to code; codes that fit them all fit the map."""
        return [wanted_BNC for wanted_BNC, _ in self.descend(map_BCSS)]

    def add(self, k: int, total_BCSS: Latents, ids_BN: Int64[Tensor, "batch n"]) -> Latents:
        """Add scale k to the sum of the coarser ones."""
        return total_BCSS + self.lift(k, ids_BN)

    def blank(self, batch: int) -> Latents:
        """Give the sum of no scales."""
        side = self.schedule.sides[-1]
        return self.codebook.codes.new_zeros(batch, self.codebook.codes.shape[1], side, side)

    def grow(self, tokens: TokenMaps) -> Iterator[Latents]:
        """Give the sum after each scale: the picture coming up. Fewer token maps give fewer sums."""
        total_BCSS = self.blank(len(tokens[0]))
        for k, ids_BN in enumerate(tokens):
            total_BCSS = self.add(k, total_BCSS, ids_BN)
            yield total_BCSS

    def decode(self, tokens: TokenMaps) -> Latents:
        """Give the sum of all token maps."""
        *_, total_BCSS = self.grow(tokens)
        return total_BCSS

    def input(self, k: int, total_BCSS: Latents) -> Float32[Tensor, "batch n code"]:
        """Give what a transformer is shown before it predicts scale k: the sum so far, at that side."""
        return as_sequence(self.shrink(k, total_BCSS))

    @torch.no_grad()
    def inputs(self, tokens: TokenMaps) -> list[Float32[Tensor, "batch _ code"]]:
        """Give what a transformer is shown for every scale but the first: its `inputs_BLC`, in parts."""
        return [self.input(k + 1, total_BCSS) for k, total_BCSS in enumerate(self.grow(tokens[: self.schedule.n - 1]))]

    def forward(
        self, map_BCSS: Latents, kept_B: Int64[Tensor, " batch"] | None = None, rotate: bool = False
    ) -> Quantized:
        """Encode, sum up, and say how far every running sum is from the map (the training pass).

        Args:
            map_BCSS: latent maps.
            kept_B: how many scales of each image make up its sum; None takes all. The loss is always that of all scales.
            rotate: let gradients pass by rotation instead of unchanged; see `rotated`.
        """
        with torch.autocast(map_BCSS.device.type, enabled=False):
            fixed_BCSS = map_BCSS.detach()
            tokens = self.encode(fixed_BCSS)
            loss, sum_BCSS = map_BCSS.new_zeros(()), fixed_BCSS
            for k, total_BCSS in enumerate(self.grow(tokens)):
                loss = loss + F.mse_loss(total_BCSS, fixed_BCSS)
                loss = loss + self.commitment * F.mse_loss(total_BCSS.detach(), map_BCSS)
                within_B = None if kept_B is None else (kept_B > k)[:, None, None, None]
                sum_BCSS = total_BCSS if within_B is None else torch.where(within_B, total_BCSS, sum_BCSS)
            passed_BCSS = rotated(map_BCSS, sum_BCSS) if rotate else map_BCSS + (sum_BCSS - map_BCSS).detach()
            return Quantized(passed_BCSS, tokens, loss / self.schedule.n)


def rotated(map_BCSS: Latents, sum_BCSS: Latents) -> Latents:
    """Give the sums, with gradients that reach the map turned and scaled as the map's vectors were (rotation trick).

    Fifty et al. 2024 (arXiv 2410.06424), section 4.2: at each position q = s R e, where R is the rotation from e / |e| to q / |q|, s their
    ratio of lengths, and both are constants to the gradient. R e = e - 2 r (r.e) + 2 q' (e'.e) with r the bisector of the unit vectors
    e', q'. Where they point against each other, or one is zero, gradients pass unchanged.
    """
    with torch.no_grad():
        length_e, length_q = (x.norm(dim=1, keepdim=True) for x in (map_BCSS, sum_BCSS))
        unit_e, unit_q = map_BCSS / length_e.clamp(min=1e-6), sum_BCSS / length_q.clamp(min=1e-6)
        middle, scale = unit_e + unit_q, length_q / length_e.clamp(min=1e-6)
        turns = (middle.norm(dim=1, keepdim=True) > 1e-3) & (length_e > 1e-6) & (length_q > 1e-6)
        middle = F.normalize(middle, dim=1)
    along_middle, along_e = ((axis * map_BCSS).sum(1, keepdim=True) for axis in (middle, unit_e))
    turned = scale * (map_BCSS - 2 * middle * along_middle + 2 * unit_q * along_e)
    passed = torch.where(turns, turned, map_BCSS)
    return passed + (sum_BCSS - passed).detach()  # the sums themselves, to the last bit


@torch.no_grad()
def fit_codebook(
    pyramid: Pyramid,
    map_BCSS: Latents,
    generator: torch.Generator,
    rounds: int = 3,
    vectors_per_scale: int = 16384,
) -> Float32[Tensor, "rows code"]:
    """Find codes for a batch of latent maps by k-means over the vectors that all scales have to code.

    What a scale has to code depends on the codes, so codes and vectors are found in turns. Every scale gives
    equally many vectors if it has them: otherwise the finest scale alone would place the codes, and the
    coarse ones would collapse. Where each scale has a book of its own, they are found one after the other, coarsest first.

    Args:
        pyramid: whose codebook is set.
        map_BCSS: latent maps of a large batch.
        generator: draws vectors and first places.
        rounds: turns taken, where one book serves all scales.
        vectors_per_scale: the most vectors used of a scale.

    Returns:
        The codes, which the pyramid now holds.
    """
    book = pyramid.codebook

    def some(wanted_BNC: Tensor) -> Tensor:
        wanted_NC = wanted_BNC.flatten(0, 1)
        order = torch.randperm(len(wanted_NC), generator=generator, device=generator.device)
        return wanted_NC[order[:vectors_per_scale].to(wanted_NC.device)]

    if pyramid.n_books == 1:
        for _ in range(rounds):
            vectors_NC = torch.cat([some(wanted_BNC) for wanted_BNC in pyramid.wanted(map_BCSS)])
            book.place(k_means(vectors_NC, book.vocabulary, generator))
        return book.vectors.detach().clone()

    def place(k: int, wanted_BNC: Tensor) -> None:
        book.place(k_means(some(wanted_BNC), book.vocabulary, generator), book=k)

    deque(pyramid.descend(map_BCSS, place), maxlen=0)
    return book.vectors.detach().clone()
