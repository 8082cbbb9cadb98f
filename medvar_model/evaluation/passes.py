"""Take the passes over a shard set that evaluation needs: one over held-out slices, one over training slices.

In: networks, a loader, queries. Out: images, reconstructions, sums a scale, nearest training slices.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from medvar_model.evaluation.metrics.nearest import Nearest, Search, thumbnails
from medvar_model.loader import Examples, to_network
from medvar_model.networks.codebook import Usage, count_codes, usage
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.sample import to_uint8
from medvar_model.training.losses import next_scale_loss

Stack = UInt8[np.ndarray, "n side side"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What one pass over held-out slices gives.

    Attributes:
        images, reconstructions: the slices at the tokenizer's side, and as they come back from their tokens.
        keys: of the slices.
        rows: the transformer's row of each slice's condition.
        counts: how often each scale chose each code.
        cross_entropy, accuracy: of each scale, coarsest first, with the condition told: nats a token, [0, 1].
    """

    images: Stack
    reconstructions: Stack
    keys: tuple[str, ...]
    rows: Int64[np.ndarray, " n"]
    counts: Int64[Tensor, "scales vocabulary"]
    cross_entropy: Float64[np.ndarray, " scales"]
    accuracy: Float64[np.ndarray, " scales"]

    @property
    def usage(self) -> Usage:
        """How these slices use the codebook."""
        return usage(self.counts)

    @property
    def mean_cross_entropy(self) -> float:
        """Cross-entropy of all tokens alike, nats a token."""
        tokens = self.counts.sum(1).double().numpy()
        return float((self.cross_entropy * tokens).sum() / tokens.sum())

    @staticmethod
    def joined(parts: "Sequence[HeldOut]") -> "HeldOut":
        """Join passes over several splits; sums a scale become means over all their slices."""
        share = np.array([len(part.keys) for part in parts]) / sum(len(part.keys) for part in parts)
        return HeldOut(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.reconstructions for part in parts]),
            tuple(key for part in parts for key in part.keys),
            np.concatenate([part.rows for part in parts]),
            torch.stack([part.counts for part in parts]).sum(0),
            share @ np.stack([part.cross_entropy for part in parts]),
            share @ np.stack([part.accuracy for part in parts]),
        )


def overall_usage(counts: Int64[Tensor, "scales vocabulary"]) -> dict[str, float]:
    """Give share of used codes and perplexity over all scales together; see `codebook.usage`."""
    use = usage(counts.sum(0, keepdim=True))
    return {
        "share": use.share[0],
        "reachable": use.reachable[0],
        "uniform": use.uniform[0],
        "perplexity": use.perplexity[0],
    }


@torch.no_grad()
def held_out_pass(tokenizer: Tokenizer, transformer: Transformer, batches: Iterator[Examples]) -> HeldOut:
    """Code, draw again and predict every slice once."""
    config = tokenizer.config
    counts = torch.zeros(len(config.scale_sides), config.vocabulary, dtype=torch.int64)
    sums = torch.zeros(2, len(config.scale_sides), dtype=torch.float64)
    keys: list[str] = []
    images, drawn, rows = [], [], []
    for examples in batches:
        tokens = tokenizer.encode(examples.images)
        counts += count_codes(tokens, config.vocabulary).cpu()
        logits = transformer(examples.conditions, torch.cat(tokenizer.pyramid.inputs(tokens), 1))
        outcome = next_scale_loss(logits, tokens)
        sums += torch.stack([outcome.per_scale, outcome.accuracy]).double().cpu() * len(examples)
        images.append(to_uint8(examples.images).cpu().numpy())
        drawn.append(to_uint8(tokenizer.decode(tokens)).cpu().numpy())
        keys.extend(examples.keys)
        rows.append(examples.conditions.cpu().numpy())
    cross_entropy, accuracy = (sums / len(keys)).numpy()
    return HeldOut(
        np.concatenate(images),
        np.concatenate(drawn),
        tuple(keys),
        np.concatenate(rows),
        counts,
        cross_entropy,
        accuracy,
    )


@torch.no_grad()
def reconstructed(tokenizer: Tokenizer, images: Stack, device: torch.device) -> Stack:
    """Give images as they come back from their tokens."""
    parts = [
        to_uint8(
            tokenizer.decode(tokenizer.encode(to_network(torch.from_numpy(images[start : start + 64])).to(device)))
        )
        for start in range(0, len(images), 64)
    ]
    return torch.cat(parts).cpu().numpy() if parts else images


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training slice of each query.

    Attributes:
        nearest: places and distances.
        keys: of those slices.
        images: those slices.
    """

    nearest: Nearest
    keys: tuple[str, ...]
    images: Stack


@dataclass(eq=False)
class Fresh:
    """Some training slices of every condition, chosen by the digests of their keys: as good as at random, and the same
    whatever the order of reading.
    """

    per_condition: int
    kept: dict[int, list[tuple[str, str, np.ndarray]]] = field(default_factory=dict)

    def offer(self, key: str, row: int, image: np.ndarray) -> None:
        """Keep a slice if it is among the first of its condition."""
        mine = self.kept.setdefault(row, [])
        mine.append((hashlib.sha256(key.encode()).hexdigest(), key, image))
        if len(mine) >= 2 * self.per_condition:
            self._trim(mine)

    def offer_all(self, examples: Examples, images: Stack) -> None:
        """Offer a batch of slices, given as grey values."""
        for key, row, image in zip(examples.keys, examples.conditions.tolist(), images, strict=True):
            self.offer(key, row, image)

    def images(self, row: int) -> list[np.ndarray]:
        """Give the kept slices of a condition."""
        return [image for _, _, image in self._mine(row)]

    def keys(self, row: int) -> list[str]:
        """Give their keys."""
        return [key for _, key, _ in self._mine(row)]

    def _mine(self, row: int) -> list[tuple[str, str, np.ndarray]]:
        mine = self.kept.get(row, [])
        self._trim(mine)
        return mine

    def _trim(self, mine: list[tuple[str, str, np.ndarray]]) -> None:
        mine.sort(key=lambda item: item[:2])
        del mine[self.per_condition :]


def training_pass(queries: Stack, batches: Iterator[Examples], fresh: Fresh) -> Neighbours:
    """See every training slice once: find the queries' nearest, and fill `fresh`."""
    search = Search(thumbnails(queries))
    keys, images = np.array([""] * len(queries), dtype=object), np.zeros_like(queries)
    for examples in batches:
        stack = to_uint8(examples.images).cpu().numpy()
        place = search.see(thumbnails(stack))
        better = place >= 0
        keys[better] = np.array(examples.keys, dtype=object)[place[better]]
        images[better] = stack[place[better]]
        fresh.offer_all(examples, stack)
    return Neighbours(search.nearest, tuple(str(key) for key in keys), images)
