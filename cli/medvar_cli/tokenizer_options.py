"""The options that the tokenizer's training alone takes, and the library's value that is made of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from medvar_cli.info import preset as named
from medvar_cli.info import tokenizers_help
from medvar_cli.model_options import TrainOptions
from medvar_model import config
from medvar_model.errors import ConfigMismatch
from medvar_model.training.adversary import ALONE
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.perceptual import KINDS
from medvar_model.training.tokenizer import ADVERSARIES, LOOPS, TrainTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """What the tokenizer's training alone is told."""

    preset: Annotated[str, typer.Option(help=tokenizers_help())] = "paper"
    perceptual: Annotated[str, typer.Option(help=f"Perceptual loss: {', '.join(KINDS)}.")] = "lpips"
    lpips_weights: Annotated[
        list[Path] | None,
        typer.Option(help="vgg16-397923af.pth (torchvision) and vgg.pth (LPIPS), as published: give it twice."),
    ] = None
    no_lpips: Annotated[bool, typer.Option("--no-lpips", help="The same as --perceptual none.")] = False
    adversary: Annotated[
        float | None, typer.Option(help="Weight of the adversary; 0: none. Default: 0.4 in sharp, else 0.", min=0)
    ] = None
    adversary_start: Annotated[
        float, typer.Option(help="Share of the samples before it takes part.", min=0, max=0.99)
    ] = ALONE.start
    rotate: Annotated[bool, typer.Option("--rotate", help="Pass gradients through the codes by rotation.")] = False
    code_layer: Annotated[
        bool, typer.Option("--code-layer", help="Learn one matrix over fixed codes instead of the codes (SimVQ).")
    ] = False
    codes_per_scale: Annotated[
        bool, typer.Option("--codes-per-scale", help="Give each scale codes of its own instead of shared ones.")
    ] = False
    scale_dropout: Annotated[
        float, typer.Option(help="Chance that an image is drawn from its coarse scales alone.", min=0, max=0.99)
    ] = 0.0

    def spec(self, shards: str, out: Path, training: TrainOptions) -> TrainTokenizer:
        """Make the library's value.

        Raises:
            MedvarError: there is no such preset, or an option is not understood.
        """
        size = named(config.TOKENIZERS, self.preset, "tokenizer preset")
        if self.no_lpips and self.perceptual not in ("lpips", "none"):
            raise ConfigMismatch(f"--no-lpips and --perceptual {self.perceptual} exclude each other. Give one of them.")
        none = self.no_lpips or self.perceptual == "none"
        adversary: Any = ADVERSARIES.get(self.preset, ALONE)
        weight = adversary.weight if self.adversary is None else self.adversary
        return TrainTokenizer(
            out=str(out),
            data=training.data(shards),
            config=replace(size, code_layer=self.code_layer, codes_per_scale=self.codes_per_scale),
            loop=training.loop(LOOPS[self.preset]),
            weights=TokenizerLossWeights(perceptual=0.0) if none else TokenizerLossWeights(),
            perceptual="none" if none else self.perceptual,
            lpips_files=tuple(map(str, self.lpips_weights or ())),
            adversary=replace(adversary, weight=weight, start=self.adversary_start),
            rotate=self.rotate,
            scale_dropout=self.scale_dropout,
            init_from=training.init_from,
        )
