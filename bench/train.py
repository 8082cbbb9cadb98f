"""Measure a training step of the transformer beside VAR's own, at the same weights and batch, in the same run.

    python bench/train.py --var PATH_TO_VAR_CHECKOUT [--depths 8 16] [--batch 2] [--rounds 5] [--threads 1]
    python bench/train.py --quick                            # without VAR: a small network, a few steps
    python bench/train.py --gpu --depths 16 30 --batch 64    # a GPU: images/s, peak memory, share of the device's peak

A step is everything: encoding the images, forward, backward, clipping, AdamW. VAR's is `VARTrainer.train_step` of the checkout with its own
optimizer (AdamW, fused), in float32, in a process of its own. Ours is `training.stepper.Stepper`, which begins with the same weights: from images, from cached
tokens, and from cached tokens in bfloat16. The steps of a round follow one another, the rounds repeat, and medians of the rounds' ratios are told, so that
what else the machine does falls on all alike; on a CPU they are CPU seconds.

The last line is one JSON object of figures.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from apart import Apart, clocked
from torch import Tensor

from medvar_model.checkpoints.import_var import (
    rename_tokenizer,
    rename_transformer,
    tokenizer_config_of,
    transformer_config_of,
)
from medvar_model.config import PAPER_SIDES, TOKENIZERS, TransformerConfig, transformer_config
from medvar_model.loader import CodedExamples, Examples
from medvar_model.machine.processes import Process, device_of
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.tokens.tokenize import encode_each
from medvar_model.training.flops import measured_peak, training_flops
from medvar_model.training.objective import decay_groups
from medvar_model.training.parallel import prepare
from medvar_model.training.settings import LoopSettings
from medvar_model.training.stepper import Stepper
from medvar_model.training.transformer import LOOP, SPARED, TransformerObjective

CONDITIONS = 30
Step = Callable[[], float]
WEIGHTS = "weights.pt"


class Ours:
    """Our trainer's steps on one network, from images or tokens, in float32 or bfloat16.

    Args:
        config, tokenizer: of the networks.
        state: weights of the transformer; None for random ones.
        settings: of the run.
        device: what to compute on.
    """

    def __init__(
        self, config: TransformerConfig, tokenizer: Tokenizer, state: dict[str, Tensor] | None, settings: LoopSettings,
        device: torch.device,
    ) -> None:  # fmt: skip
        process = Process(1, 0, device)
        objective = TransformerObjective(config, tokenizer, 0, process)
        if state is not None:
            objective.network.load_state_dict(state)
        prepare(objective.network, settings)
        groups = decay_groups(objective.network, settings.weight_decay, SPARED)
        self.stepper, self.number, self.device = Stepper(objective, groups, settings, process), 0, device

    def step(self, examples: Any, dtype: torch.dtype | None = None) -> float:
        """Take a step; returns its loss."""
        stepper = self.stepper
        stepper.autocast = torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)
        parts = stepper.gradients(self.number, examples)
        stepper.step(float(stepper.norm()), 1e-5)
        stepper.finish()
        self.number += 1
        return float(parts["loss"])


def var_trainer(checkout: Path) -> ModuleType:
    """Import VAR's trainer; its loggers, which ask for packages of their own, are replaced by ones that write nothing."""
    sys.path.insert(0, str(checkout))
    sys.modules["utils.misc"] = SimpleNamespace(MetricLogger=object, TensorboardLogger=object)  # type: ignore[assignment]
    import trainer

    return trainer


def vars_own(trainer: ModuleType, depth: int, images: Tensor, conditions: Tensor) -> tuple[Step, Any, Any]:
    """A step of VAR's trainer on a batch of three equal channels, its autoencoder and its transformer."""
    from utils.amp_sc import AmpOptimizer
    from utils.lr_control import filter_params

    vae = trainer.VQVAE(vocab_size=4096, z_channels=32, ch=160, v_patch_nums=PAPER_SIDES, test_mode=True).eval()
    var = trainer.VAR(
        vae,
        CONDITIONS,
        depth,
        64 * depth,
        depth,
        drop_path_rate=0.1 * depth / 24,
        attn_l2_norm=True,
        patch_nums=PAPER_SIDES,
    )
    var.init_weights(init_adaln=0.5, init_adaln_gamma=1e-3, init_head=0.02, init_std=-1)
    with torch.no_grad():  # codes as large as what they code
        vae.quantize.embedding.weight.normal_(0, float(vae.quant_conv(vae.encoder(images)).std()))
    sys.modules["builtins"].print, kept = (
        (lambda *a, **k: None),
        print,
    )  # filter_params prints with an argument of its own
    try:
        names, parameters, groups = filter_params(
            var,
            ("cls_token", "start_token", "pos_start", "pos_1LC", "lvl_embed", "gamma", "beta", "ada_gss", "scale_mul"),
        )
    finally:
        sys.modules["builtins"].print = kept
    for group in groups:
        group["weight_decay"] = 0.05 * group["wd_sc"]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.95), weight_decay=0, fused=True)
    own = AmpOptimizer(0, optimizer, names, parameters, grad_clip=2.0)
    driver = trainer.VARTrainer("cpu", PAPER_SIDES, (16,) * 10, vae, var, var, own, 0.0)
    silent = SimpleNamespace(log_iters=())

    def step() -> float:
        driver.train_step(1, 1, True, silent, None, images, conditions, 0 if len(PAPER_SIDES) == 1 else -1, 1.0)
        return float("nan")

    return step, vae, var


def var_rival(checkout: Path, depth: int, batch: int, folder: Path) -> dict[str, Step]:
    """Build VAR's trainer, and write its weights for our networks."""
    grey, conditions = batch_of(batch)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        step, vae, var = vars_own(var_trainer(checkout), depth, grey.expand(-1, 3, -1, -1).contiguous(), conditions)
    torch.save((rename_tokenizer(vae.state_dict()), rename_transformer(var.state_dict())), folder / WEIGHTS)
    return {"var": step}


def batch_of(batch: int) -> tuple[Tensor, Tensor]:
    """Smooth grey images and their conditions."""
    generator = torch.Generator().manual_seed(0)
    grey = torch.randn(batch, 1, 256, 256, generator=generator).cumsum(3).div(16).clamp(-1, 1)
    return grey, torch.randint(CONDITIONS, (batch,), generator=generator)


def timed(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """What each step says it took in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            took = step()
            if number:
                seconds[name].append(took)
    return seconds


def beside_var(checkout: Path, depth: int, batch: int, rounds: int) -> dict[str, float]:
    """Our steps beside VAR's: medians of each, and of the rounds' ratios."""
    device = device_of("cpu")
    with (
        tempfile.TemporaryDirectory() as folder,
        Apart(var_rival, (checkout, depth, batch, Path(folder)), "cpu", device) as rival,
    ):
        state, weights = torch.load(Path(folder) / WEIGHTS, weights_only=True)
        tokenizer = Tokenizer(tokenizer_config_of(state, PAPER_SIDES)).eval().requires_grad_(False)
        tokenizer.load_state_dict(state)
        config = transformer_config_of(weights, PAPER_SIDES)
        grey, conditions = batch_of(batch)
        images = Examples(0, grey.expand(-1, 3, -1, -1).contiguous(), conditions, ("",) * batch)
        ids = encode_each(tokenizer, images.images, batch)
        coded = CodedExamples(0, torch.from_numpy(ids.astype(np.int64)), conditions, images.keys)
        ours = Ours(config, tokenizer, weights, replace(LOOP, batch_size=batch), device)
        steps = {"var": partial(rival.seconds, "var")}
        for name, run in {
            "images": partial(ours.step, images),
            "cached": partial(ours.step, coded),
            "bf16_cached": partial(ours.step, coded, torch.bfloat16),
        }.items():
            steps[name] = partial(clocked, run, "cpu", device)
        seconds = timed(steps, rounds)
    ratios = {
        f"vs_var{'' if name == 'images' else '_' + name}": statistics.median(
            a / b for a, b in zip(seconds["var"], seconds[name], strict=True)
        )
        for name in ("images", "cached", "bf16_cached")
    }
    return {f"seconds_{name}": statistics.median(values) for name, values in seconds.items()} | ratios


def alone(
    depth: int, batch: int, rounds: int, device: torch.device, preset: str, settings: LoopSettings
) -> dict[str, float]:
    """Our steps from images and from cached tokens on a device: images/s, share of its peak, and memory of a GPU."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(TOKENIZERS[preset], generator).eval().requires_grad_(False).to(device)
    side = tokenizer.config.image_side
    config = transformer_config(f"d{depth}", tokenizer.config, CONDITIONS)
    conditions = torch.randint(CONDITIONS, (batch,), generator=generator).to(device)
    pictures = torch.randn(batch, 1, side, side, generator=generator).cumsum(3).div(16).clamp(-1, 1).to(device)
    ids = torch.randint(config.vocabulary, (batch, config.n_tokens), generator=generator).to(device)
    keys = ("",) * batch
    kinds = {"images": Examples(0, pictures, conditions, keys), "cached": CodedExamples(0, ids, conditions, keys)}
    dtype, found, clock = settings.compute_type(device), {}, "wall" if device.type == "cuda" else "cpu"
    peak, ours = measured_peak(device, dtype), Ours(config, tokenizer, None, settings, device)
    for kind, examples in kinds.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = partial(clocked, partial(ours.step, examples, dtype), clock, device)
        seconds = statistics.median(timed({kind: step}, rounds)[kind])
        found[f"{kind}_per_s"] = batch / seconds
        if kind == "cached":
            found["mfu"] = training_flops(config) * batch / seconds / peak
        if device.type == "cuda":
            found[f"{kind}_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "cuda":
        encode = partial(clocked, partial(encode_each, tokenizer, pictures, batch), clock, device)
        found["encode_per_s"] = batch / statistics.median(timed({"encode": encode}, rounds)["encode"])
    return found | {"peak_tflops": peak / 1e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", type=Path, help="a checkout of github.com/FoundationVision/VAR")
    parser.add_argument("--depths", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="our steps alone, on the GPU, with the paper's tokenizer")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small network on the CPU, without VAR")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, dict[str, object]] = {}
    settings = replace(
        LOOP,
        batch_size=options.batch,
        micro_batch=options.micro_batch,
        recompute=options.recompute,
        compile=options.compile,
    )
    runs: list[tuple[str, dict[str, float]]] = []
    if options.quick:
        runs.append(("demo_d4", alone(4, 4, 3, device_of("cpu"), "demo", replace(settings, batch_size=4))))
    elif options.gpu:
        for depth in options.depths:
            runs.append(
                (f"d{depth}", alone(depth, options.batch, options.rounds, torch.device("cuda", 0), "paper", settings))
            )
    elif options.var is None:
        parser.error("name VAR's checkout with --var, or give --quick or --gpu")
    else:
        for depth in options.depths:
            runs.append((f"d{depth}", beside_var(options.var, depth, options.batch, options.rounds)))
    for size, found in runs:
        for name, value in found.items():
            print(f"{size:8} {name:22} {value:10.3f}")
            figures[f"{size}_{name}"] = {"value": round(value, 4), "unit": unit(name)}
    print(json.dumps(figures))


def unit(name: str) -> str:
    return {"s": "images/s", "gb": "GB", "tflops": "TFLOP/s"}.get(
        name.rpartition("_")[2], "s" if name.startswith("seconds") else ""
    )


if __name__ == "__main__":
    main()
