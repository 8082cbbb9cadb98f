"""Measure sampling latency and training throughput of the model's sizes on this machine's device.

    python bench/model_speed.py --quick                                    # a laptop: the demo's sizes
    python bench/model_speed.py --sizes d16 d20 d24 d30 --batches 1 64     # a GPU: the paper's sizes at 256 x 256

Untrained weights suffice for speed. Latency is an image's: median over repeats, warm, synchronised, decoder included, with
guidance 4, top-k 900, top-p 0.95. The last line is one JSON object of figures.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from medvar_model.config import TOKENIZERS, transformer_config
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.sample import PAPER, sample
from medvar_model.training.losses import next_scale_loss

CONDITIONS = 30


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["d16"])
    parser.add_argument("--tokenizer", default="paper")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="the demo's sizes, few repeats")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.tokenizer, args.batches, args.train_batch, args.repeats = ["d4"], "demo", [1, 8], 16, 3
    device = torch.device(args.device)
    tokenizer = Tokenizer(TOKENIZERS[args.tokenizer]).to(device).eval()
    figures = {}
    print(f"device {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'}, torch {torch.__version__}")
    for size in args.sizes:
        transformer = Transformer(transformer_config(size, tokenizer.config, CONDITIONS)).to(device)
        for batch in args.batches:
            rows = torch.arange(batch) % CONDITIONS
            transformer.eval()
            draw = partial(sample, transformer, tokenizer, rows, PAPER, range(batch))
            seconds = _median(draw, args.repeats, device)
            figures[f"{size}_sample_ms_batch{batch}"] = {"value": 1000 * seconds / batch, "unit": "ms an image"}
            print(f"{size:4} sample, batch {batch:3}: {1000 * seconds / batch:9.2f} ms an image")
        transformer.train()
        rate = args.train_batch / _median(_train_step(transformer, args.train_batch, device), args.repeats, device)
        figures[f"{size}_train_images_per_s"] = {"value": rate, "unit": "images/s"}
        print(f"{size:4} train, batch {args.train_batch:3}:  {rate:9.1f} images/s")
        del transformer
    print(json.dumps(figures))


def _train_step(transformer: Transformer, batch: int, device: torch.device) -> Callable[[], None]:
    """One forward, backward and optimizer step on random tokens; encoding the images is not counted."""
    config = transformer.config
    draws = torch.rand(batch, transformer.draws_per_image)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-4, fused=device.type == "cuda")
    tokens = torch.randint(config.vocabulary, (batch, config.n_tokens), device=device)
    first = transformer.schedule.lengths[0]
    inputs = torch.randn(batch, config.n_tokens - first, config.latent_channels, device=device)
    rows = torch.arange(batch, device=device) % config.n_conditions

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = transformer(rows, inputs, draws_BU=draws)
        loss = next_scale_loss(logits, tokens.split(transformer.schedule.lengths, dim=1)).mean
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _median(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])  # two to warm up


if __name__ == "__main__":
    main()
