"""Train a small convolutional network that names what a slice shows; real and synthetic images in equal parts where both are given.

In: sets of images with the number of each one's class, a seed. Out: a network, and what it says of other images.

Every training takes the same number of steps. An image of a batch is drawn so: its class, each alike; its set, each alike; then one of
the images that the set has of the class. So neither frequent classes nor the larger set weigh more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor, nn

from medvar_model.loader import to_network

WIDTHS = (16, 32, 64, 128)  # channels; each level halves the side
GROUPS = 8
LEARNING_RATE = 2e-3  # at the first step; falls to 0 along a half cosine
SHIFT = 1 / 16  # of the side: the most that a training image is moved each way
AT_A_TIME = 512  # images named at once


@dataclass(frozen=True, eq=False)
class Part:
    """Training images from one source.

    Attributes:
        images: grey values, [0, 255].
        target: number of each image's class, [0, classes).
    """

    images: UInt8[np.ndarray, "n side side"]
    target: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.target)


class ConditionNetwork(nn.Module):
    """Four convolutions of stride 2, the mean over what remains, and one linear layer: 99,000 parameters for nine classes.

    Args:
        n_classes: classes to tell apart.
        generator: of the weights, on the CPU.
    """

    def __init__(self, n_classes: int, generator: torch.Generator):
        super().__init__()
        pairs = list(zip((1, *WIDTHS), WIDTHS, strict=False))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, b) for _, b in pairs)
        self.head = nn.Linear(WIDTHS[-1], n_classes)
        for layer in (*self.convolutions, self.head):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Float32[Tensor, "batch 1 side side"]) -> Float[Tensor, "batch classes"]:
        """Give logits of images in [-1, 1]."""
        x = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return self.head(x.mean((2, 3)))


def train_network(
    parts: Sequence[Part], n_classes: int, steps: int, batch_size: int, seed: int, device: torch.device
) -> ConditionNetwork:
    """Train a network with Adam and cross-entropy.

    Args:
        parts: one source, or two that are mixed half and half; each has images of every class.
        n_classes: classes to tell apart.
        steps: batches.
        batch_size: images of each.
        seed: of weights, draws and shifts; the same seed and parts give the same network on one CPU.
        device: what to compute on.
    """
    network = ConditionNetwork(n_classes, torch.Generator().manual_seed(seed)).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for images, target in batches(parts, n_classes, steps, batch_size, np.random.default_rng((seed, 1))):
            loss = F.cross_entropy(network(to_network(images.to(device))), target.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def log_chances(
    network: ConditionNetwork, images: UInt8[np.ndarray, "n side side"], device: torch.device
) -> Float64[np.ndarray, "n classes"]:
    """Give the logarithm of each class's probability, (-inf, 0], of every image."""
    rows = [
        network(to_network(torch.from_numpy(images[start : start + AT_A_TIME]).to(device))).double().log_softmax(1)
        for start in range(0, len(images), AT_A_TIME)
    ]
    return torch.cat(rows).cpu().numpy()


def batches(
    parts: Sequence[Part], n_classes: int, steps: int, batch_size: int, draw: np.random.Generator
) -> Iterator[tuple[UInt8[Tensor, "batch side side"], Int64[Tensor, " batch"]]]:
    """Draw batches as the head of the file says, each image shifted by up to a sixteenth of its side.

    Args:
        parts: each has images of every class.
        n_classes: classes.
        steps: batches.
        batch_size: images of each.
        draw: decides everything; as many numbers are taken for every batch.

    Yields:
        Images, [0, 255], and the number of each one's class.
    """
    places = [[np.flatnonzero(part.target == number) for number in range(n_classes)] for part in parts]
    for _ in range(steps):
        target = draw.integers(n_classes, size=batch_size)
        source = draw.integers(len(parts), size=batch_size)
        share = draw.random(batch_size)
        images = []
        for number, part, where in zip(target, source, share, strict=True):
            mine = places[part][number]
            images.append(parts[part].images[mine[int(where * len(mine))]])
        yield torch.from_numpy(_shifted(np.stack(images), draw)), torch.from_numpy(target)


def _shifted(images: UInt8[np.ndarray, "n side side"], draw: np.random.Generator) -> UInt8[np.ndarray, "n side side"]:
    """Move each image by a few pixels of its own; the edge is repeated where nothing is left."""
    n, side, _ = images.shape
    most = round(SHIFT * side)
    down, right = draw.integers(-most, most + 1, size=(2, n, 1))
    rows, columns = (np.clip(np.arange(side) + by, 0, side - 1) for by in (down, right))
    return images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
