"""The options of `medvar-model evaluate`, and the library's values that are made of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.model_options import (
    CacheOptions,
    FeatureWeightsOption,
    SamplingOptions,
    TokenizerOption,
    feature_paths,
)
from medvar_model.evaluation.comparison import REPLICATES
from medvar_model.evaluation.evaluate import Evaluate
from medvar_model.evaluation.extractors import EXTRACTORS
from medvar_model.evaluation.images import ScoreImages
from medvar_model.training.perceptual import KINDS

NAMES = [name for name in EXTRACTORS if name != "radiomics"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is compared with what, and how much of it."""

    images: Annotated[
        str,
        typer.Option(help="Folder of any model's images instead of a run: a sub-folder a condition, or images.csv."),
    ] = ""
    features: Annotated[
        list[str] | None,
        typer.Option(help=f"What distances stand on: {', '.join(NAMES)}; repeat. Left out, effnetlite0 if installed."),
    ] = None
    feature_weights: FeatureWeightsOption = None
    perceptual: Annotated[
        str, typer.Option(help=f"Perceptual distance of slices and reconstructions: {', '.join(KINDS)}.")
    ] = "none"
    lpips_weights: Annotated[list[Path] | None, typer.Option(help="Weight files of lpips; give it twice.")] = None
    intervals: Annotated[int, typer.Option(help="Replicates of the intervals; 0: none.", min=0)] = REPLICATES
    gate: Annotated[
        Path | None, typer.Option(help="TOML of bounds; exit code 2 where one is not kept.", dir_okay=False)
    ] = None
    samples: Annotated[str, typer.Option(help="Folder that `medvar-model sample` wrote; left out, new ones.")] = ""
    tokenizer: TokenizerOption = ""
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each condition.", min=1)] = 32
    sampling: SamplingOptions
    held_out: Annotated[int, typer.Option(help="Most slices of each held-out split; 0 takes all.", min=0)] = 2048
    training: Annotated[int, typer.Option(help="Most training slices searched for copies; 0: all.", min=0)] = 0
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 64
    caching: CacheOptions

    @property
    def names(self) -> tuple[str, ...]:
        """What distances stand on; radiomic numbers always."""
        return (*(self.features or [""]), "radiomics")

    def of_images(self, shards: str, out: Path) -> ScoreImages:
        """Make the library's value for a folder of images."""
        return ScoreImages(
            str(out), self.caching.data(shards), self.images, self.batch_size, self.held_out, self.training,
            self.names, self.intervals, feature_paths(self.feature_weights),
        )  # fmt: skip

    def spec(self, shards: str, run: str, out: Path) -> Evaluate:
        """Make the library's value for a run.

        Raises:
            MedvarError: an option is not understood.
        """
        return Evaluate(
            out=str(out),
            data=self.caching.data(shards),
            run=run,
            tokenizer=self.tokenizer,
            samples=self.samples,
            count=self.count,
            settings=self.sampling.settings(run),
            batch_size=self.batch_size,
            held_out=self.held_out,
            training=self.training,
            features=self.names,
            replicates=self.intervals,
            weights=feature_paths(self.feature_weights),
            perceptual=self.perceptual,
            lpips_files=tuple(map(str, self.lpips_weights or ())),
        )
