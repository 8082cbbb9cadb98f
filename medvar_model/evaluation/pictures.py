"""Write the pictures of an evaluation: samples, reconstructions, a slice coming up, the closest to training.

In: images with their conditions. Out: PNGs in one folder; `page` puts them on a page.

    samples-<condition>.png          what was drawn
    real-<condition>.png             held-out slices, for comparison
    reconstructions-<condition>.png  held-out slices above, what comes back from their tokens below
    scales-<condition>.png           a held-out slice as each of its token maps is added
    closest.png                      the samples nearest to a training slice above, those slices below
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medvar_model.evaluation.passes import Neighbours
from medvar_model.evaluation.scores import Labelled, Stack
from medvar_model.loader import to_network
from medvar_model.mosaic import mosaic, spread_out
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.sampling.sample import to_uint8

KINDS = ("samples-", "real-", "reconstructions-", "scales-")
ACROSS = 10  # images in a row
SAMPLES_ACROSS, REAL_ACROSS = 8, 4  # the same where both stand side by side


@dataclass(frozen=True, eq=False)
class Shown:
    """What there is to show.

    Attributes:
        samples: the drawn images.
        held_out: real slices.
        reconstructions: those after coding.
        neighbours: of the samples first, then of the held-out slices.
    """

    samples: Labelled
    held_out: Labelled
    reconstructions: Stack
    neighbours: Neighbours


def write_pictures(folder: Path, shown: Shown, tokenizer: Tokenizer, device: torch.device) -> list[Path]:
    """Write all pictures; see the head of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, bytes] = {}
    for name in sorted(set(shown.samples.conditions)):
        places = shown.samples.places(name)
        pictures[f"samples-{name}"] = mosaic([shown.samples.images[places[:SAMPLES_ACROSS]]])
    for name in sorted(set(shown.held_out.conditions)):
        mine = shown.held_out.places(name)
        places = [mine[i] for i in spread_out(len(mine), ACROSS)]
        real = shown.held_out.images[places]
        few = [mine[i] for i in spread_out(len(mine), REAL_ACROSS)]
        pictures[f"real-{name}"] = mosaic([shown.held_out.images[few]])
        pictures[f"reconstructions-{name}"] = mosaic([real, shown.reconstructions[places]])
        pictures[f"scales-{name}"] = mosaic([_coming_up(tokenizer, real[len(real) // 2], device)])
    pictures["closest"] = _closest(shown.samples, shown.neighbours)
    for path in folder.glob("*.png"):  # of an earlier evaluation, perhaps of conditions that are no more
        if path.stem not in pictures and (path.stem == "closest" or path.stem.startswith(KINDS)):
            path.unlink()
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    return [folder / f"{name}.png" for name in pictures]


def write_closest(folder: Path, samples: Labelled, neighbours: Neighbours) -> Path:
    """Write `closest.png` alone; `neighbours` are of the samples first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "closest.png").write_bytes(_closest(samples, neighbours))
    return folder / "closest.png"


def _closest(samples: Labelled, neighbours: Neighbours) -> bytes:
    closest = np.argsort(neighbours.nearest.distance[: len(samples)], kind="stable")[:ACROSS]
    return mosaic([samples.images[closest], neighbours.images[closest]])


@torch.no_grad()
def _coming_up(tokenizer: Tokenizer, image: np.ndarray, device: torch.device) -> Stack:
    """Give a slice after each scale, and the slice itself last."""
    tokens = tokenizer.encode(to_network(torch.from_numpy(image[None])).to(device))
    stages = [to_uint8(stage).cpu().numpy() for stage in tokenizer.progressive(tokens)]
    return np.concatenate([*stages, image[None]])
