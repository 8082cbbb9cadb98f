"""Compare cures of codebook collapse: the same small tokenizer, images and number of images, one cure each.

    python bench/codebook.py --shards demo/shards-64 [--quick] [--samples 12000] [--only NAME ...]

Shards are those that `medvar-data demo` writes (synthetic scans, 64 x 64). Each cure trains the preset `demo` with the demo's own rates and no
perceptual loss; then training slices are coded once, and val slices drawn again. --quick takes 2,000 images a cure instead of 12,000.

Prints a row a cure: PSNR of val slices, and for each scale the share of codes used of those that so many tokens can reach; the last line
is one JSON object.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medvar_model.checkpoints.checkpoint import load_tokenizer
from medvar_model.config import TOKENIZERS
from medvar_model.demo import TOKENIZER_LOOP, one_thread
from medvar_model.evaluation.codebook import measure_codes
from medvar_model.loader import DataSpec, Loader
from medvar_model.machine.processes import Process
from medvar_model.networks.codebook import count_codes, usage
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.tokenizer import TrainTokenizer, train_tokenizer

ALONE = Process(1, 0, torch.device("cpu"))
RAW: dict[str, Any] = {"unquantized": 0.0, "codebook_images": 0, "revive_every": 0}
KEPT: dict[str, Any] = {"unquantized": 0.05, "codebook_images": 512, "revive_every": 800}
RARE: dict[str, Any] = {"dead_below": 0.01}
LAYER: dict[str, Any] = {"code_layer": True}
OWN: dict[str, Any] = {"codes_per_scale": True}
CURES: dict[str, dict[str, Any]] = {
    "none": RAW,
    "rotation": RAW | {"rotate": True},
    "linear layer": RAW | LAYER,
    "k-means": KEPT | {"revive_every": 0},
    "k-means, revival": KEPT,
    "k-means, revival, rotation": KEPT | {"rotate": True},
    "k-means, revival, linear layer": KEPT | LAYER,
    "k-means, revival, codes per scale": KEPT | OWN,
    "k-means, revival below 1 %": KEPT | RARE,
    "k-means, revival below 1 %, codes per scale": KEPT | OWN | RARE,
    "k-means, revival, scale dropout": KEPT | {"scale_dropout": 0.1},
}


def measured(cure: dict[str, Any], shards: str, samples: int) -> dict[str, Any]:
    """Train one tokenizer and look at its codes."""
    data = DataSpec(shards, workers=1)
    config = replace(TOKENIZERS["demo"], **{name: value for name, value in cure.items() if name in LAYER | OWN})
    loop = replace(TOKENIZER_LOOP, samples=samples, validate_every=0, checkpoint_every=samples)
    options = {name: value for name, value in cure.items() if name not in LAYER | OWN}
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        weights = TokenizerLossWeights(perceptual=0.0)
        train_tokenizer(TrainTokenizer(f"{folder}/run", data, config, loop, weights, **options), ALONE)
        seconds = time.process_time() - begun
        tokenizer = load_tokenizer(Path(folder) / "run" / "last")

    def passes(split: str, most: int) -> Any:
        return Loader(data, split, config.image_side, 32, 0, ALONE).passes(32, most)

    val = measure_codes(tokenizer, passes("val", 128))
    counts = sum(count_codes(tokenizer.encode(part.images), config.vocabulary) for part in passes("train", 1024))
    use = usage(counts)
    reached = [share / most for share, most in zip(use.share, use.uniform, strict=True)]
    return {
        "psnr": val.psnr[-1], "reached": reached, "uniform": use.uniform, "perplexity": use.perplexity, "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="what `medvar-data demo` left in shards-64")
    parser.add_argument("--quick", action="store_true", help="2,000 images a cure")
    parser.add_argument("--samples", type=int, default=12_000, help="images a cure")
    parser.add_argument("--only", nargs="*", default=list(CURES), choices=list(CURES), help="these cures alone")
    arguments = parser.parse_args()
    samples = 2_000 if arguments.quick else arguments.samples
    sides = TOKENIZERS["demo"].scale_sides
    print(f"torch {torch.__version__}, CPU, 1 thread; {samples:,} images a cure\n")
    print(
        f"{'cure':46} {'dB':>6} {'CPU s':>6}  codes used / used by uniform chance, by scale: {', '.join(f'{n} x {n}' for n in sides)}"
    )
    results = {}
    for name in arguments.only:
        with one_thread():
            row = measured(CURES[name], arguments.shards, samples)
        shares = "  ".join(f"{value:5.1%}" for value in row["reached"])
        print(f"{name:46} {row['psnr']:6.2f} {row['seconds']:6.0f}  {shares}", flush=True)
        results[name] = row
    print(json.dumps({"codebook_cures": {"samples": samples, "cures": results}}))


if __name__ == "__main__":
    main()
