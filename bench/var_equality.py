"""Compare our models with VAR's own modules at the same weights and inputs.

    python bench/var_equality.py --var PATH_TO_VAR_CHECKOUT [--quick] [--depth 16]

The `narrow` case has all ten scales but few channels; `released` is the size of VAR's published files
(autoencoder of width 160, 4096 codes, 680 tokens; transformer of the given depth). --quick runs the narrow
case alone. Weights are random: no download. Everything runs on the CPU in float32, both sides with the
weights of VAR's modules translated by `medvar_model.checkpoints.import_var`. Gradients are compared relative to the
largest of their model.

Prints a table of largest differences; the last line is one JSON object.
"""

import argparse
import contextlib
import importlib
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvar_model.checkpoints.import_var import (
    rename_tokenizer,
    rename_transformer,
    tokenizer_config_of,
    transformer_config_of,
)
from medvar_model.config import PAPER_SIDES
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.choose import least_kept
from medvar_model.sampling.sample import SampleSettings, sample
from medvar_model.training.losses import next_scale_loss


@dataclass(frozen=True)
class Case:
    """One size to compare at."""

    name: str
    width: int
    latent_channels: int
    vocabulary: int
    depth: int
    n_conditions: int
    batch: int


@dataclass(frozen=True)
class Row:
    """One compared quantity."""

    case: str
    quantity: str
    difference: float
    largest: float


@contextlib.contextmanager
def var_modules(checkout: Path) -> Iterator[ModuleType]:
    """Import VAR's modules, quietly, with the one-process group that its training pass asks for."""
    sys.path.insert(0, str(checkout))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import models

        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            yield models
        finally:
            torch.distributed.destroy_process_group()


def random_images(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw smooth three-channel images in [-1, 1], so that coarse scales matter too."""
    layers = [
        F.interpolate(torch.randn(batch, 3, n, n, generator=generator), size=side, mode="bicubic")
        for n in (2, 8, 32, side)
    ]
    return torch.stack(layers).sum(0).div(3).clamp(-1, 1)


def compare_tokenizers(case: Case, models: ModuleType, generator: torch.Generator) -> tuple[list[Row], Any, Tokenizer]:
    """Compare tokens, teacher-forcing inputs, images, losses and gradients of the two autoencoders."""
    theirs = models.VQVAE(
        vocab_size=case.vocabulary,
        z_channels=case.latent_channels,
        ch=case.width,
        v_patch_nums=PAPER_SIDES,
        test_mode=False,
    ).eval()
    images = random_images(case.batch, 16 * PAPER_SIDES[-1], generator)
    with torch.no_grad():  # codes as large as what they code, or only a few would ever be chosen
        latents = theirs.quant_conv(theirs.encoder(images))
        theirs.quantize.embedding.weight.normal_(0, float(latents.std()), generator=generator)

    state = rename_tokenizer(theirs.state_dict())
    ours = Tokenizer(tokenizer_config_of(state, PAPER_SIDES)).eval()
    ours.load_state_dict(state)

    with torch.no_grad():
        their_tokens = theirs.img_to_idxBl(images)
        their_inputs = theirs.quantize.idxBl_to_var_input(their_tokens)
        their_images = theirs.idxBl_to_img(their_tokens, same_shape=True, last_one=False)
        our_tokens = ours.encode(images)
        rows = [
            row(case, "latent map", latents, ours.latents(images)),
            row(case, "tokens (how many differ)", *differing(their_tokens, our_tokens)),
            row(case, "teacher-forcing inputs", their_inputs, torch.cat(ours.pyramid.inputs(their_tokens), 1)),
            row(
                case,
                "images of every scale",
                torch.stack(their_images),
                torch.stack(list(ours.progressive(their_tokens))),
            ),
        ]

    their_output, _, their_vq = theirs(images)
    result = ours(images)
    their_loss = F.mse_loss(their_output, images) + their_vq
    our_loss = F.mse_loss(result.images, images) + result.vq_loss
    their_loss.backward()
    our_loss.backward()
    rows += [
        row(case, "reconstruction in training", their_output, result.images),
        row(case, "tokenizer loss", their_loss, our_loss),
        gradients(case, "tokenizer gradients (relative)", rename_tokenizer(grads(theirs)), grads(ours)),
    ]
    return rows, theirs, ours


def compare_transformers(
    case: Case, models: ModuleType, their_tokenizer: Any, tokenizer: Tokenizer, generator: torch.Generator
) -> list[Row]:
    """Compare logits, loss, gradients, and the likeliest image under guidance, of the two transformers."""
    theirs = models.VAR(
        their_tokenizer, case.n_conditions, case.depth, 64 * case.depth, case.depth, cond_drop_rate=0.0,
        attn_l2_norm=True, patch_nums=PAPER_SIDES,
    )  # fmt: skip
    theirs.init_weights(init_adaln=0.5, init_adaln_gamma=0.5, init_head=1, init_std=-1)  # no branch is shut
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("bias", "scale_mul_1H11")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    state = rename_transformer(theirs.state_dict())
    ours = Transformer(transformer_config_of(state, PAPER_SIDES))
    ours.load_state_dict(state)
    theirs.eval()
    ours.eval()

    condition_B = torch.randint(case.n_conditions, (case.batch,), generator=generator)
    images = random_images(case.batch, 16 * PAPER_SIDES[-1], generator)
    tokens = tokenizer.encode(images)
    inputs_BLC = torch.cat(tokenizer.pyramid.inputs(tokens), 1)
    their_logits = theirs(condition_B, inputs_BLC)
    our_logits = ours(condition_B, inputs_BLC)
    their_loss = F.cross_entropy(their_logits.flatten(0, 1), torch.cat(tokens, 1).flatten())
    our_loss = next_scale_loss(our_logits, tokens).mean
    their_loss.backward()
    our_loss.backward()
    rows = [
        row(case, "logits", their_logits, our_logits),
        row(case, "transformer loss", their_loss, our_loss),
        gradients(case, "transformer gradients (relative)", rename_transformer(grads(theirs)), grads(ours)),
    ]
    theirs.zero_grad()
    ours.zero_grad()
    likeliest = SampleSettings(guidance=4.0, top_k=1, top_p=0.0)
    their_image = theirs.autoregressive_infer_cfg(case.batch, condition_B, g_seed=0, cfg=4.0, top_k=1) * 2 - 1
    drawn = sample(ours, tokenizer, condition_B, likeliest, seeds=range(case.batch))
    return [*rows, row(case, "likeliest image, guidance 4", their_image, tokenizer.decode(drawn.tokens))]


def compare_filters(case: Case, generator: torch.Generator) -> list[Row]:
    """Compare which codes top-k and top-p leave: VAR's sampler sorts all logits, ours takes the least that passes."""
    theirs = importlib.import_module("models.helpers").sample_with_top_k_top_p_
    rows = []
    for top_k, top_p in ((case.vocabulary // 4, 0.95), (case.vocabulary // 4, 0.0), (0, 0.9)):
        logits = 3 * torch.randn(1, 64, case.vocabulary, generator=generator)
        least, filtered = least_kept(logits, top_k, top_p), logits.clone()
        theirs(filtered, top_k, top_p, torch.Generator().manual_seed(0))
        kept = logits >= least
        wrong = int((kept != filtered.isfinite()).sum())
        total = float(kept.sum())
        name = f"codes kept by top-k {top_k}, top-p {top_p}"
        rows.append(row(case, name, torch.tensor(total), torch.tensor(total - wrong)))
    return rows


def row(case: Case, quantity: str, theirs: Tensor, ours: Tensor) -> Row:
    difference = float((theirs.detach() - ours.detach()).abs().max())
    return Row(case.name, quantity, difference, float(theirs.detach().abs().max()))


def differing(theirs: list[Tensor], ours: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Count tokens that differ; the first number is how many there are."""
    first, second = torch.cat(theirs, 1), torch.cat(ours, 1)
    wrong = int((first != second).sum())
    return torch.tensor(float(first.numel())), torch.tensor(float(first.numel() - wrong))


def grads(model: nn.Module) -> dict[str, Tensor]:
    named = model.named_parameters()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def gradients(case: Case, quantity: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Row:
    if set(theirs) != set(ours):
        lonely = sorted(set(theirs) ^ set(ours))
        raise SystemExit(f"{quantity}: gradients exist on one side only: {lonely[:3]}")
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    difference = max(float((theirs[name] - ours[name]).abs().max()) for name in theirs)
    return Row(case.name, quantity, difference / largest, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", type=Path, required=True, help="a checkout of github.com/FoundationVision/VAR")
    parser.add_argument("--quick", action="store_true", help="only the narrow case")
    parser.add_argument("--depth", type=int, default=16, help="depth of the released case's transformer")
    arguments = parser.parse_args()

    narrow = Case("narrow", width=32, latent_channels=32, vocabulary=512, depth=4, n_conditions=7, batch=2)
    released = Case("released", 160, 32, 4096, arguments.depth, n_conditions=1000, batch=1)
    cases = [narrow] if arguments.quick else [narrow, released]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU, float32\n")
    print(f"{'case':9} {'quantity':34} {'largest difference':>18} {'largest value':>14}")
    worst = {}
    for case in cases:
        begun = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)  # VAR's constructors draw from the global generator
        with var_modules(arguments.var) as models, contextlib.redirect_stdout(io.StringIO()):
            rows, their_tokenizer, tokenizer = compare_tokenizers(case, models, generator)
            rows += compare_transformers(case, models, their_tokenizer, tokenizer, generator)
            rows += compare_filters(case, generator)
        for line in rows:
            print(f"{line.case:9} {line.quantity:34} {line.difference:18.2e} {line.largest:14.4g}")
        print(f"{case.name:9} took {time.perf_counter() - begun:.0f} s\n")
        worst[f"var_equality_{case.name}_largest_difference"] = {
            "value": max(line.difference for line in rows),
            "unit": "absolute (gradients: relative; tokens: how many)",
        }
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
