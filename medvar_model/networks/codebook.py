"""Hold the code vectors: find the nearest, start them from data, replace dead ones, measure their use.

In: vectors. Out: ids, vectors, counts. The codebook knows nothing of images.

Shapes: N vectors, C their length, V codes, K scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from medvar_model.errors import ConfigMismatch

ROWS_AT_ONCE = 8192  # vectors compared with all codes at a time: 256 MiB of float64 distances at 4096 codes
LEAST_EXPECTED = 3.0  # hits of a code under uniform use; with fewer, 1 in 20 is missed by chance (exp -3)
NEAR = 0.1  # how far from a vector a second code is put: as a part of the vectors' standard deviation
USAGE_MARGIN = 0.08  # a code counts as used when hit this often, as a fraction of uniform use (VAR)


class Codebook(nn.Module):
    """One or several books of V code vectors: one for all scales, or one for each.

    The books' vectors lie one book after the other, so a parameter has books x V rows. With a layer, the code vectors are fixed vectors times one learnt matrix, so that every gradient moves all codes together and none is
    left behind (SimVQ: Zhu et al. 2024, arXiv 2411.02038).

    Args:
        vocabulary: number of codes of a book, V.
        channels: length of a code, C.
        generator: draws the first codes from U(-a, a), a = 1 / (36 sqrt(C)); None: torch's global generator.
        layer: fix the codes and learn a matrix, at first the identity, in their place.
        books: how many.
    """

    def __init__(
        self,
        vocabulary: int,
        channels: int,
        generator: torch.Generator | None = None,
        layer: bool = False,
        books: int = 1,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.codes = nn.Parameter(torch.empty(books * vocabulary, channels), requires_grad=not layer)
        self.layer = nn.Parameter(torch.empty(channels, channels)) if layer else None
        self.initialise(generator)

    def rows(self, book: int) -> slice:
        """Say which rows of `codes` and `vectors` are a book's."""
        return slice(book * self.vocabulary, (book + 1) * self.vocabulary)

    @property
    def vectors(self) -> Float[Tensor, "rows channels"]:
        """The code vectors of all books."""
        return self._vectors(slice(None))

    def of(self, book: int) -> Float[Tensor, "vocabulary channels"]:
        """The code vectors of one book."""
        return self._vectors(self.rows(book))

    def _vectors(self, rows: slice) -> Float[Tensor, "_ channels"]:
        return self.codes[rows] if self.layer is None else self.codes[rows] @ self.layer

    @torch.no_grad()
    def place(
        self,
        vectors_VC: Float[Tensor, "vocabulary channels"],
        rows_V: Bool[Tensor, " vocabulary"] | None = None,
        book: int = 0,
    ) -> None:
        """Set the code vectors of a book, or some rows of them, to given ones."""
        wanted_VC = vectors_VC.to(self.codes.dtype)
        if self.layer is not None:  # what the matrix will turn into them
            wanted_VC = torch.linalg.lstsq(self.layer.T, wanted_VC.T).solution.T
        codes_VC = self.codes[self.rows(book)]
        codes_VC.copy_(wanted_VC if rows_V is None else torch.where(rows_V[:, None], wanted_VC, codes_VC))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw the codes; see the class."""
        if not self.codes.is_meta:
            bound = self.codes.shape[1] ** -0.5 / 36
            self.codes.uniform_(-bound, bound, generator=generator)
            if self.layer is not None:
                self.layer.copy_(torch.eye(len(self.layer)))

    @torch.no_grad()
    def nearest(self, vectors_NC: Float[Tensor, "n channels"], book: int = 0) -> Int64[Tensor, " n"]:
        """Give the id of a book's code with the smallest squared Euclidean distance, [0, V); the lowest id wins a tie.

        |z - e|^2 = |z|^2 - 2 z.e + |e|^2, of which |z|^2 does not matter. The other two terms nearly cancel,
        so the float32 values are compared in float64: neither TF32 nor autocast touches that type, and a
        token does not depend on the machine.
        """
        codes_CV = self.of(book).double().T
        square_V = codes_CV.square().sum(0)
        parts = vectors_NC.double().split(ROWS_AT_ONCE)
        return torch.cat([torch.addmm(square_V, z_NC, codes_CV, alpha=-2).argmin(1) for z_NC in parts])

    def lookup(self, ids: Int64[Tensor, "*shape"], book: int = 0) -> Float[Tensor, "*shape channels"]:
        """Give the code vectors of a book's ids."""
        return F.embedding(ids, self.of(book))


@torch.no_grad()
def k_means(
    vectors_NC: Float32[Tensor, "n channels"], n_codes: int, generator: torch.Generator, iterations: int = 10
) -> Float32[Tensor, "codes channels"]:
    """Process codes where the vectors are (Lloyd's algorithm).

    A code that no vector is nearest to moves to a random vector.

    Args:
        vectors_NC: what is to be coded.
        n_codes: how many codes; more codes than vectors are allowed, the surplus repeats vectors.
        generator: draws the first places and those of lost codes.
        iterations: rounds of assigning and averaging.
    """
    book = Codebook(n_codes, vectors_NC.shape[1], generator).to(vectors_NC.device)
    book.codes.copy_(_pick(vectors_NC, n_codes, generator))
    for _ in range(iterations):
        ids_N = book.nearest(vectors_NC)
        hits_V = ids_N.bincount(minlength=n_codes)
        sum_VC = torch.zeros_like(book.codes).index_add_(0, ids_N, vectors_NC)
        lost_V1 = (hits_V == 0)[:, None]
        mean_VC = sum_VC / hits_V.clamp(min=1)[:, None]
        book.codes.copy_(torch.where(lost_V1, _pick(vectors_NC, n_codes, generator), mean_VC))
    return book.codes.detach().clone()


@dataclass(frozen=True)
class Revival:
    """The outcome of `revive`.

    Attributes:
        codes: the codes with the dead ones replaced.
        dead: which were replaced; their optimizer state should start anew.
        judged: whether there were hits enough to tell the dead; if not, hits should be counted on.
    """

    codes: Float32[Tensor, "codes channels"]
    dead: Bool[Tensor, " codes"]
    judged: bool


@torch.no_grad()
def revive(
    codes_VC: Float[Tensor, "codes channels"],
    hits_KV: Int64[Tensor, "scales codes"],
    candidates_NC: Float[Tensor, "n channels"],
    generator: torch.Generator,
    threshold: float = 0.01,
) -> Revival:
    """Move codes that are hardly used onto vectors that are to be coded, or near them where there are fewer vectors than codes.

    A coarse scale gives few vectors, and what it has to code moves while the encoder learns: all its dead codes must follow. Two codes at
    one place would be one, since the lower id wins every tie.

    Args:
        codes_VC: the present codes.
        hits_KV: how often each scale chose each code lately.
        candidates_NC: vectors to move to, such as those of a scale of `pyramid.wanted(latents)`.
        generator: picks the candidates.
        threshold: a code is dead below this fraction of uniform use; see `relative_use`. None is dead while all were chosen less than
            `LEAST_EXPECTED` times on average, since chance alone then leaves many out.
    """
    dead_V = relative_use(hits_KV) < threshold
    judged = float(hits_KV.sum()) >= LEAST_EXPECTED * len(codes_VC)
    if not judged:
        dead_V = torch.zeros_like(dead_V)
    fresh_VC = _pick(candidates_NC.float(), len(codes_VC), generator)
    spread_C = NEAR * candidates_NC.float().std(0, correction=0)
    noise_VC = torch.randn(fresh_VC.shape, generator=generator, device=generator.device).to(fresh_VC.device)
    fresh_VC[len(candidates_NC) :] += (spread_C * noise_VC)[len(candidates_NC) :]
    return Revival(torch.where(dead_V[:, None], fresh_VC, codes_VC.float()), dead_V, judged)


def relative_use(hits_KV: Int64[Tensor, "scales codes"]) -> Float[Tensor, " codes"]:
    """Give each code's use as a multiple of uniform use, mean over the scales: 1 where all codes are used alike.

    A scale of T tokens is expected to choose each of V codes T / V times; h hits are h V / T of that. So the number does not depend on
    how many images were counted, and a code that only a coarse scale uses, which has few tokens, is not taken for a dead one.
    """
    expected_K1 = hits_KV.sum(1, keepdim=True).double().clamp(min=1) / hits_KV.shape[1]
    return (hits_KV / expected_K1).mean(0)


def count_codes(tokens: Sequence[Int64[Tensor, "batch _"]], vocabulary: int) -> Int64[Tensor, "scales vocabulary"]:
    """Count for each scale how often each code was chosen."""
    return torch.stack([ids.flatten().bincount(minlength=vocabulary) for ids in tokens])


@dataclass(frozen=True)
class Usage:
    """How a codebook is used, per scale, coarsest first.

    Attributes:
        share: fraction of all codes hit at least 0.08 times as often as under uniform use, [0, 1].
        reachable: the most `share` could be with as many tokens as were counted, [0, 1].
        uniform: what `share` would be on average if each token took any code with equal chance, [0, 1]: chance leaves codes out
            where tokens are few (exact in the limit of many codes, where hits follow Poisson's distribution).
        perplexity: exp of the entropy of the hits, [1, V]: as many codes, used alike, would be as varied.
    """

    share: tuple[float, ...]
    reachable: tuple[float, ...]
    uniform: tuple[float, ...]
    perplexity: tuple[float, ...]


def usage(counts_KV: Int64[Tensor, "scales vocabulary"]) -> Usage:
    """Score the counts of `count_codes`; sum the counts of several batches or processes before.

    The margin follows each scale's own number of tokens: 0.08 B n_k^2 / V for B images. (One margin for all,
    taken from the finest scale, calls a coarse scale unused however well it is.)
    """
    tokens_K = counts_KV.sum(1)
    if (tokens_K == 0).any():
        raise ConfigMismatch(
            "A scale has no counted tokens, so its use cannot be scored. Count at least one batch first."
        )
    vocabulary = counts_KV.shape[1]
    margin_K = (USAGE_MARGIN * tokens_K / vocabulary).ceil().clamp(min=1)  # a code that nobody hit is not used
    chance_KV = counts_KV.double() / tokens_K[:, None]
    entropy_K = -torch.special.xlogy(chance_KV, chance_KV).sum(1)
    return Usage(
        share=tuple((counts_KV >= margin_K[:, None]).double().mean(1).tolist()),
        reachable=tuple(((tokens_K // margin_K).clamp(max=vocabulary) / vocabulary).tolist()),
        uniform=tuple(torch.special.gammainc(margin_K.double(), tokens_K.double() / vocabulary).tolist()),
        perplexity=tuple(entropy_K.exp().tolist()),
    )


def _pick(vectors_NC: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pick vectors at random, each once before any twice."""
    n = len(vectors_NC)
    rounds = [torch.randperm(n, generator=generator, device=generator.device) for _ in range(-(-count // n))]
    return vectors_NC[torch.cat(rounds)[:count].to(vectors_NC.device)]
