"""Train a tokenizer and a transformer on real slices within a given time on two processor cores, and measure what came of it.

    python bench/real_run.py SHARDS --out FOLDER [--tokenizer-images 28000] [--transformer-images 16000] [--perceptual st-lpips-alex]

SHARDS is a set whose images are a multiple of 64 pixels, such as `make demo DATA=…` leaves. A run that was stopped goes on where it
was. The last line is one JSON object: seconds of each stage, losses, reconstructions, use of the codes scale by scale, distances to held-out patients.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from medvar_model.config import TOKENIZERS
from medvar_model.demo import TOKENIZER_LOOP, TRANSFORMER_LOOP
from medvar_model.evaluation.codebook_report import CodebookReport, report_codebook
from medvar_model.evaluation.evaluate import Evaluate, evaluate
from medvar_model.loader import DataSpec
from medvar_model.machine.processes import Process
from medvar_model.sampling.sample import SAMPLINGS
from medvar_model.tokens.tokenize import Tokenize, tokenize
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.tokenizer import TrainTokenizer, train_tokenizer
from medvar_model.training.transformer import TrainTransformer, train_transformer

TOKENIZER = replace(TOKENIZERS["demo"], width=32, level_multipliers=(1, 2, 2))


def tell(stage, started):
    def report(log):
        if log.validation:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in log.validation.items() if "/" not in name)
            print(f"[{time.monotonic() - started:6.0f} s] {stage}, {log.samples} images: {numbers}", flush=True)

    return report


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("shards", nargs="?")
    options.add_argument("--out", type=Path, default=Path("real-run"))
    options.add_argument("--tokenizer-images", type=int, default=28_000)
    options.add_argument("--transformer-images", type=int, default=16_000)
    options.add_argument("--perceptual", default="st-lpips-alex")
    options.add_argument("--perceptual-weight", type=float, default=0.3)
    options.add_argument("--codes-per-scale", action="store_true")
    options.add_argument("--size", default="d4")
    options.add_argument("--count", type=int, default=64, help="images drawn of each condition")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--quick", action="store_true", help="say that real scans are needed, and end")
    asked = options.parse_args()
    if asked.quick or not asked.shards:
        print(json.dumps({"skipped": "name a shard set of real scans"}))
        return
    torch.set_num_threads(asked.threads)
    started, seconds = time.monotonic(), {}
    process, data = Process.alone(), DataSpec(asked.shards, workers=1)
    tokenizer, transformer = str(asked.out / "tokenizer"), str(asked.out / "transformer")

    def stage(name, work):
        mark = time.monotonic()
        found = work()
        seconds[name] = round(time.monotonic() - mark)
        return found

    loop = replace(TOKENIZER_LOOP, samples=asked.tokenizer_images, batch_size=16, base_learning_rate=0.048)
    kind = "none" if not asked.perceptual_weight else asked.perceptual
    weights = TokenizerLossWeights(perceptual=asked.perceptual_weight)
    config = replace(TOKENIZER, codes_per_scale=asked.codes_per_scale)
    training = TrainTokenizer(
        tokenizer, data, config, loop, weights, kind, unquantized=0.05, codebook_images=1024, revive_every=1600
    )
    stage("tokenizer", lambda: train_tokenizer(training, process, tell("tokenizer", started)))
    tokens = str(asked.out / "tokens")
    stage("tokens", lambda: tokenize(Tokenize(tokens, data, tokenizer), process.device))
    loop = replace(TRANSFORMER_LOOP, samples=asked.transformer_images, base_learning_rate=0.016)
    predicting = TrainTransformer(transformer, data, tokenizer, asked.size, loop, tokens=tokens)
    stage("transformer", lambda: train_transformer(predicting, process, tell("transformer", started)))
    scoring = Evaluate(
        str(asked.out / "evaluation"), data, transformer, count=asked.count, settings=SAMPLINGS["demo"], perceptual=kind
    )
    evaluation = stage("evaluation", lambda: evaluate(scoring, process.device, lambda line: print(line, flush=True)))
    codes = stage(
        "codebook",
        lambda: report_codebook(
            CodebookReport(str(asked.out / "codebook"), data, tokenizer, perceptual=kind), process.device, print
        ),
    )
    print(json.dumps({"seconds": seconds, "evaluation": evaluation.report, "codebook": codes}, default=str))


if __name__ == "__main__":
    main()
