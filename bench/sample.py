"""How fast medvar draws images, beside VAR's own sampler with the same weights and diffusion models of the paper's sizes.

    python bench/sample.py --var PATH_TO_VAR_CHECKOUT [--depths 16] [--batches 1] [--diffusion ddpm_s ddpm_l dit_s dit_l] [--quick]
    python bench/sample.py --var PATH --device cuda --depths 16 20 24 30 --batches 1 64                  # a GPU

VAR runs in a process of its own. All rivals of a depth and batch take turns, decoder included, with guidance 4, top-k 900, top-p 0.95
(VAR's demonstration, MedVAR's settings); a ratio is the median over rounds of VAR's time ÷ ours. The share of the peak is the arithmetic that we do a second ÷ that of a
matrix product of 2048 x 2048 timed in the same round; `products` are the products of the transformer's linear layers alone, at the shapes and
with the weights that an image takes, and `share_of_products` is how much of our time they and the decoder would take. Diffusion (needs the package `diffusers`) draws one image with guidance by DDIM:
5 and 10 steps are timed, their difference gives the cost of a step and so the time of 10 to 100 steps, which is extrapolated and named
so; `linear_error` is how far 10 steps are from twice 5, the decoder taken off. `--clock cpu` counts processor time of the process in
place of wall time, for a machine that does other work, too. Agreement: of tokens drawn in float32, the share that is drawn again in
bfloat16 given the same coarser tokens and noise, by our rule and by the two that stood before it. The last line is one JSON object.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from apart import CLOCKS, Apart, clocked
from sample_peers import (
    CONDITIONS,
    MODELS,
    Draw,
    diffusion_draw,
    parameters,
    ready,
    same_networks,
    var_rival,
)
from torch import Tensor

from medvar_model.config import TOKENIZERS, transformer_config
from medvar_model.machine.processes import device_of
from medvar_model.networks.fast_decoder import FastDecoder
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.choose import choose, guide, least_kept
from medvar_model.sampling.noise import gumbel, keys
from medvar_model.sampling.sampler import Sampler
from medvar_model.sampling.settings import PAPER, SAMPLINGS

DECODER_FLOPS = 393.7e9 - 75.4e9 * 5 / 9  # of an image of 256 x 256, enlarging convolutions folded
ATTENDED = 286_434 - 1  # pairs of positions in one head, all scales but the first, which is a table
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS = (5, 10)
Seconds = Callable[[], float]


@dataclass
class Bench:
    """What all measurements share."""

    device: torch.device
    rounds: int
    clock: str
    figures: dict[str, dict[str, object]] = field(default_factory=dict)

    def note(self, name: str, value: float, unit: str, digits: int = 3) -> None:
        self.figures[name] = {"value": round(value, digits), "unit": unit}
        print(f"{name:44} {value:12.{digits}f} {unit}", flush=True)

    def timed(self, run: Draw) -> Seconds:
        """Say how long a call in this process takes."""
        return partial(clocked, run, self.clock, self.device)

    def turns(self, rivals: Mapping[str, Seconds]) -> dict[str, list[float]]:
        """Time all rivals in turns, after one pass of each to warm up."""
        for seconds in rivals.values():
            seconds()
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for number in range(self.rounds):
            names = list(rivals) if number % 2 == 0 else list(rivals)[::-1]
            for name in names:
                times[name].append(rivals[name]())
        return times


def product(dtype: torch.dtype, device: torch.device) -> Draw:
    """A matrix product of 4 x 2 x 2048^3 operations."""
    a, b = (torch.randn(2048, 2048).to(device, dtype) for _ in range(2))
    return lambda: [a @ b for _ in range(4)]


@torch.no_grad()
def products(transformer: Transformer, batch: int) -> Draw:
    """The products of all linear layers for an image with guidance, scale by scale, and nothing else."""
    layers = [
        layer.weight.T
        for block in transformer.blocks
        for layer in (
            block.attention.query_key_value,
            block.attention.output,
            block.feed_forward.widen,
            block.feed_forward.narrow,
        )
    ]
    layers.append(transformer.head.weight.T)
    inputs = [
        {n: torch.randn(2 * batch * length, n).to(layers[0]) for n in {len(layer) for layer in layers}}
        for length in transformer.schedule.lengths[1:]
    ]
    return lambda: [some[len(layer)] @ layer for some in inputs for layer in layers]


def linear_flops(transformer: Transformer) -> float:
    """Operations of these products, for one image."""
    config = transformer.config
    return 4 * (12 * config.depth * config.width**2 + config.width * config.vocabulary) * (config.n_tokens - 1)


def transformer_flops(transformer: Transformer) -> float:
    """Operations of an image with guidance: both branches of all scales but the first."""
    config = transformer.config
    return linear_flops(transformer) + 2 * 4 * config.width * config.depth * ATTENDED


def against_var(bench: Bench, checkout: Path, depth: int, batches: list[int], parts: list[str]) -> None:
    """Time VAR's sampler and ours with the same weights."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Apart(var_rival, (checkout, depth, batches, bench.device, Path(folder)), bench.clock, bench.device) as var,
    ):
        transformer, tokenizer = same_networks(Path(folder), bench.device)
        if "agreement" in parts:
            agreement(bench, transformer, tokenizer, depth)
        samplers = {name: Sampler(transformer, tokenizer, name) for name in PRECISIONS}
        for batch in batches if "var" in parts else []:
            rows, seeds = list(range(batch)), list(range(batch))
            own: dict[str, Draw] = {}
            for name, sampler in samplers.items():
                own[name] = partial(sampler.draw, rows, PAPER, seeds)
                own[f"peak_{name}"] = product(PRECISIONS[name], bench.device)
                own[f"products_{name}"] = products(sampler.transformer, batch)
                own[f"decoder_{name}"] = partial(sampler.decoder, torch.zeros(batch, 32, 16, 16, device=bench.device))
            own["fast"] = partial(samplers["float32"].draw, rows, SAMPLINGS["fast"], seeds)
            if bench.device.type == "cuda":
                own["graph"] = partial(
                    Sampler(transformer, tokenizer, "bfloat16", graphs=True).draw, rows, PAPER, seeds
                )
            rivals = {name: partial(var.seconds, f"{name}_{batch}") for name in ("var", "var_autocast")}
            rivals |= {name: bench.timed(run) for name, run in own.items()}
            report(bench, f"d{depth}_b{batch}", bench.turns(rivals), batch, transformer)


def report(bench: Bench, case: str, times: dict[str, list[float]], batch: int, transformer: Transformer) -> None:
    """Note medians, ratios and shares of the peak."""
    for name, seconds in times.items():
        if not name.startswith("peak"):
            bench.note(f"{case}_{name}_s", statistics.median(seconds) / batch, "s an image")

    def ratio(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))

    bench.note(f"vs_var_{case}", ratio("var", "float32"), "VAR in float32 ÷ ours in float32")
    bench.note(f"vs_var_{case}_bf16", ratio("var", "bfloat16"), "VAR in float32 ÷ ours in bfloat16")
    bench.note(
        f"vs_var_autocast_{case}_bf16", ratio("var_autocast", "bfloat16"), "VAR under autocast ÷ ours in bfloat16"
    )
    bench.note(f"vs_var_{case}_fast", ratio("var", "fast"), "VAR in float32 ÷ ours, two scales unguided")
    if "graph" in times:
        bench.note(
            f"vs_var_autocast_{case}_graph", ratio("var_autocast", "graph"), "VAR under autocast ÷ ours recorded"
        )
    flops, peak = transformer_flops(transformer), 4 * 2 * 2048**3
    for name in PRECISIONS:
        share = statistics.median(
            (batch * (flops + DECODER_FLOPS) / ours) / (peak / gemm)
            for ours, gemm in zip(times[name], times[f"peak_{name}"], strict=True)
        )
        bench.note(f"{case}_{name}_peak", peak / statistics.median(times[f"peak_{name}"]) / 1e9, "GFLOP/s", 1)
        bench.note(f"{case}_{name}_share_of_peak", share, "of the peak")
        alone = statistics.median(
            (batch * flops / (ours - decoder)) / (peak / gemm)
            for ours, decoder, gemm in zip(times[name], times[f"decoder_{name}"], times[f"peak_{name}"], strict=True)
        )
        reached = statistics.median(
            (batch * linear_flops(transformer) / own) / (peak / gemm)
            for own, gemm in zip(times[f"products_{name}"], times[f"peak_{name}"], strict=True)
        )
        bench.note(f"{case}_{name}_products_share_of_peak", reached, "of the peak, by the products alone")
        needed = statistics.median(
            (own + decoder) / ours
            for ours, decoder, own in zip(times[name], times[f"decoder_{name}"], times[f"products_{name}"], strict=True)
        )
        bench.note(f"{case}_{name}_share_of_products", needed, "of our time are these products and the decoder alone")
        bench.note(f"{case}_{name}_transformer_share_of_peak", alone, "of the peak, choices and noise counted as waste")


@torch.no_grad()
def agreement(bench: Bench, transformer: Transformer, tokenizer: Tokenizer, depth: int) -> None:
    """Compare tokens drawn from logits of both precisions for the same coarser tokens."""
    seeds, schedule = [1, 2], transformer.schedule
    sampler = Sampler(transformer, tokenizer, "float32")
    drawn = sampler.draw([3, 4], PAPER, seeds)
    inputs = torch.cat(tokenizer.pyramid.inputs(drawn.tokens), 1)
    rows = torch.tensor([3, 4, *[transformer.config.n_conditions] * 2], device=bench.device)
    low = Sampler(transformer, tokenizer, "bfloat16").transformer
    logits = {"float32": transformer(rows, inputs.repeat(2, 1, 1))}
    with torch.autocast(bench.device.type, torch.bfloat16):
        cache, first = low.start(rows)
        parts = [first, *(low.step(k, part, cache) for k, part in enumerate(inputs.split(schedule.lengths[1:], 1), 1))]
    logits["bfloat16"] = torch.cat(parts, 1)
    chosen = {name: _by_rules(values, schedule.lengths, seeds) for name, values in logits.items()}
    for rule in chosen["float32"]:
        same = (chosen["float32"][rule] == chosen["bfloat16"][rule]).double().mean()
        bench.note(f"d{depth}_agreement_{rule}", 100 * float(same), "% of tokens, float32 and bfloat16", 1)
    free = Sampler(transformer, tokenizer, "bfloat16").draw([3, 4], PAPER, seeds).tokens
    for k in (0, 5):
        same = (drawn.tokens[k] == free[k]).double().mean()
        bench.note(f"d{depth}_free_agreement_scale{k + 1}", 100 * float(same), "% of tokens, each its own image", 1)


def _by_rules(logits_RNV: Tensor, lengths: tuple[int, ...], seeds: list[int]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"gumbel": [], "inverse_by_order": [], "inverse_by_id": []}
    start = 0
    for k, part_RNV in enumerate(logits_RNV.split(lengths, 1)):
        values = guide(part_RNV, PAPER.guidance * k / (len(lengths) - 1))
        noise = gumbel(keys(seeds, values.device), start, values.shape[1], values.shape[2])
        parts["gumbel"].append(choose(values, noise, PAPER.top_k, PAPER.top_p))
        least = least_kept(values, PAPER.top_k, PAPER.top_p)
        chance = values.masked_fill(values < least, -torch.inf).double().softmax(-1)
        uniform = torch.exp(-torch.exp(-noise[..., :1].double()))
        parts["inverse_by_id"].append((chance.cumsum(-1) <= uniform).sum(-1).clamp(max=values.shape[-1] - 1))
        falling, order = chance.sort(dim=-1, descending=True, stable=True)
        rank = (falling.cumsum(-1) <= uniform).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
        parts["inverse_by_order"].append(order.gather(-1, rank)[..., 0])
        start += part_RNV.shape[1]
    return {name: torch.cat(ids, 1) for name, ids in parts.items()}


def diffusion(bench: Bench, names: list[str]) -> None:
    """Time a few steps of each model beside ours at depth 16, and extrapolate."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = ready(Tokenizer(TOKENIZERS["paper"], generator), bench.device)
    transformer = ready(Transformer(transformer_config("d16", tokenizer.config, CONDITIONS), generator), bench.device)
    sampler, decoder = Sampler(transformer, tokenizer, "float32"), FastDecoder(tokenizer)
    latent = torch.zeros(1, 32, 16, 16, device=bench.device)
    own: dict[str, Draw] = {"ours": partial(sampler.draw, [3], PAPER, [1]), "decoder": partial(decoder, latent)}
    for name in names:
        for count in (1, 2) if name.endswith("_px") else STEPS:
            own[f"{name}_{count}"] = diffusion_draw(name, count, decoder, bench.device, torch.float32)
    turns = bench.turns({name: bench.timed(run) for name, run in own.items()})
    times = {name: statistics.median(seconds) for name, seconds in turns.items()}
    bench.note("diffusion_d16_b1_ours_s", times["ours"], "s an image")
    for name in names:
        few, many = (1, 2) if name.endswith("_px") else STEPS
        decoding = 0.0 if name.endswith("_px") else times["decoder"]
        step = (times[f"{name}_{many}"] - times[f"{name}_{few}"]) / (many - few)
        error = (times[f"{name}_{many}"] - decoding) / (2 * (times[f"{name}_{few}"] - decoding)) - 1
        bench.note(f"{name}_parameters", parameters(name) / 1e6, "million", 1)
        bench.note(f"{name}_step_s", step, "s a step, both branches")
        bench.note(f"{name}_linear_error", 100 * error, f"% ({many} steps against twice {few})", 1)
        for count in (10, 20, 30, 50, 100):
            seconds = times[f"{name}_{few}"] + (count - few) * step
            said = "measured" if count in STEPS and few == 5 else "extrapolated"
            bench.note(f"{name}_{count}_steps_over_d16", seconds / times["ours"], f"times ours, {said}", 2)


def machine(device: torch.device) -> dict[str, object]:
    """Say what this was measured on, and at which commit."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu or platform.processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", type=Path, required=True, help="a checkout of github.com/FoundationVision/VAR")
    parser.add_argument("--depths", nargs="*", type=int, default=[16])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--diffusion", nargs="*", choices=list(MODELS), default=[], help="models to time, too")
    parser.add_argument("--parts", nargs="+", choices=["var", "agreement"], default=["var", "agreement"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="depth 4, two rounds")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.depths, arguments.rounds = [4], 2
    torch.set_num_threads(arguments.threads)
    bench = Bench(device_of(arguments.device), arguments.rounds, arguments.clock)
    where = machine(bench.device)
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    for depth in arguments.depths:
        against_var(bench, arguments.var, depth, arguments.batches, arguments.parts)
    if arguments.diffusion:
        diffusion(bench, arguments.diffusion)
    print(json.dumps({**bench.figures, "machine": {"value": where, "unit": f"{arguments.clock} time"}}))


if __name__ == "__main__":
    main()
