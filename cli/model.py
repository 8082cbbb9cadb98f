"""The command `medvar-model`: parse, make one value, call one library function, print what it returned."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from medvar_cli import training as options
from medvar_cli.console import console, fail, print_json, progress_bar
from medvar_cli.evaluate import register
from typer.core import TyperGroup

from medvar_data.errors import MedvarError
from medvar_data.records import Progress
from medvar_model import config, dist
from medvar_model.errors import ConfigMismatch, ModelError
from medvar_model.losses import TokenizerLossWeights
from medvar_model.sample_files import NO_CONDITION, SampleFiles, write_samples
from medvar_model.sampling import PAPER, SampleSettings
from medvar_model.train_tokenizer import LOOPS as TOKENIZER_LOOPS
from medvar_model.train_tokenizer import TrainTokenizer, train_tokenizer
from medvar_model.train_transformer import LOOPS as TRANSFORMER_LOOPS
from medvar_model.train_transformer import TrainTransformer, train_transformer

PUBLISHED_CONDITIONS = 1000  # the published parameter counts (310M, 600M, …) are with ImageNet's classes


class Sentences(TyperGroup):
    """Commands whose errors are one sentence on standard error and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ModelError, MedvarError) as error:
            return fail(str(error))


SETTINGS: dict[str, Any] = {"no_args_is_help": True, "context_settings": {"help_option_names": ["-h", "--help"]}}
app = typer.Typer(
    cls=Sentences,
    help="Train a next-scale generative model on medvar's shards, and draw from it.",
    pretty_exceptions_enable=False,
    add_completion=False,
    **SETTINGS,
)
train = typer.Typer(help="Train a tokenizer, then a transformer on its tokens.", **SETTINGS)
app.add_typer(train, name="train")


@train.command("tokenizer")
def train_tokenizer_command(
    shards: options.ShardsArgument,
    out: options.OutOption,
    preset: Annotated[str, typer.Option(help=f"Size: {', '.join(config.TOKENIZERS)}.")] = "paper",
    lpips_weights: Annotated[
        list[Path] | None, typer.Option(help="Weight file of LPIPS. Repeat for two files.")
    ] = None,
    no_lpips: Annotated[bool, typer.Option("--no-lpips", help="Train without the perceptual loss.")] = False,
    samples: options.SamplesOption = None,
    batch_size: options.BatchOption = None,
    micro_batch: options.MicroBatchOption = 0,
    base_learning_rate: options.RateOption = None,
    average: options.AverageOption = 0.0,
    seed: options.SeedOption = 0,
    precision: options.PrecisionOption = "auto",
    device: options.DeviceOption = "auto",
    workers: options.WorkersOption = 2,
    mix: options.MixOption = None,
    cache: options.CacheOption = "",
    cache_gb: options.CacheSizeOption = 20.0,
    window_shards: options.WindowOption = 0,
    validate_every: options.ValidateOption = None,
    checkpoint_every: options.CheckpointOption = None,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train the multi-scale tokenizer. The same command again goes on where it stopped.

    Example: medvar-model train tokenizer S -o runs/tok --preset demo --no-lpips

    On eight GPUs: torchrun --nproc-per-node 8 -m medvar_cli.model train tokenizer S -o runs/tok …

    Python: medvar_model.train_tokenizer.train_tokenizer(TrainTokenizer(…), place)
    """
    spec = TrainTokenizer(
        out=str(out),
        data=options.data_spec(shards, mix, cache, cache_gb, window_shards, workers),
        config=_preset(config.TOKENIZERS, preset, "tokenizer preset"),
        loop=options.loop_settings(
            TOKENIZER_LOOPS[preset], samples=samples, batch_size=batch_size, micro_batch=micro_batch,
            base_learning_rate=base_learning_rate, average=average, seed=seed, precision=precision,
            validate_every=validate_every, checkpoint_every=checkpoint_every,
        ),
        weights=TokenizerLossWeights(perceptual=0.0) if no_lpips else TokenizerLossWeights(),
        lpips_files=tuple(map(str, lpips_weights or ())),
    )  # fmt: skip
    if dry_run:
        return options.show_spec(spec, as_json)
    with dist.joined(os.environ, device) as place, options.shown("tokenizer") as report, options.stopping() as stop:
        result = train_tokenizer(spec, place, report, stop, tuple(sys.argv))
    return options.finish(result, as_json)


@train.command("transformer")
def train_transformer_command(
    shards: options.ShardsArgument,
    out: options.OutOption,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's run or checkpoint.")],
    size: Annotated[str, typer.Option(help=f"Size: {', '.join(config.TRANSFORMERS)}.")] = "d16",
    samples: options.SamplesOption = None,
    batch_size: options.BatchOption = None,
    micro_batch: options.MicroBatchOption = 0,
    base_learning_rate: options.RateOption = None,
    average: options.AverageOption = 0.0,
    seed: options.SeedOption = 0,
    precision: options.PrecisionOption = "auto",
    device: options.DeviceOption = "auto",
    workers: options.WorkersOption = 2,
    mix: options.MixOption = None,
    cache: options.CacheOption = "",
    cache_gb: options.CacheSizeOption = 20.0,
    window_shards: options.WindowOption = 0,
    validate_every: options.ValidateOption = None,
    checkpoint_every: options.CheckpointOption = None,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train the next-scale transformer on a tokenizer's tokens. The same command again goes on where it stopped.

    Example: medvar-model train transformer S -o runs/d4 --tokenizer runs/tok --size d4

    On eight GPUs: torchrun --nproc-per-node 8 -m medvar_cli.model train transformer S -o runs/d16 …

    Python: medvar_model.train_transformer.train_transformer(TrainTransformer(…), place)
    """
    _preset(config.TRANSFORMERS, size, "transformer size")
    loop = options.loop_settings(
        TRANSFORMER_LOOPS[size], samples=samples, batch_size=batch_size, micro_batch=micro_batch,
        base_learning_rate=base_learning_rate, average=average, seed=seed, precision=precision,
        validate_every=validate_every, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    data = options.data_spec(shards, mix, cache, cache_gb, window_shards, workers)
    spec = TrainTransformer(str(out), data, tokenizer, size, loop)
    if dry_run:
        return options.show_spec(spec, as_json)
    with dist.joined(os.environ, device) as place, options.shown("transformer") as report, options.stopping() as stop:
        result = train_transformer(spec, place, report, stop, tuple(sys.argv))
    return options.finish(result, as_json)


@app.command("sample")
def sample_command(
    run: Annotated[str, typer.Argument(help="A transformer's run or checkpoint.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images.")],
    condition: Annotated[
        list[str] | None, typer.Option(help=f"Condition, or {NO_CONDITION} (the default). Repeat.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each condition.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Image n of a seed is always the same.", min=0)] = PAPER.seed,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 0 is off.")] = PAPER.guidance,
    top_k: Annotated[int, typer.Option(help="Codes kept at each position; 0 keeps all.")] = PAPER.top_k,
    top_p: Annotated[float, typer.Option(help="Probability kept at each position; 0 keeps all.")] = PAPER.top_p,
    batch_size: Annotated[int, typer.Option(help="Images drawn together.", min=1)] = 16,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's run; left out, the copy in the run.")] = "",
    device: options.DeviceOption = "auto",
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Draw images with a trained transformer and write PNGs and samples.json.

    Example: medvar-model sample runs/d4 -o drawn --condition acdc-mr --count 16

    Python: medvar_model.sample_files.write_samples(SampleFiles(…), device)
    """
    settings = SampleSettings(guidance, top_k, top_p, seed)
    spec = SampleFiles(run, str(out), tuple(condition or [NO_CONDITION]), count, settings, batch_size, tokenizer)
    if dry_run:
        return options.show_spec(spec, as_json)
    with dist.joined({}, device) as place, progress_bar("sample") as show:
        files = write_samples(spec, place.device, lambda done, total: show(Progress(done, total, "", "drawn")))
    if as_json:
        return print_json([str(file) for file in files])
    return console.print(f"{len(files)} images in {out}.", markup=False)


@app.command("info")
def info_command(
    preset: Annotated[str, typer.Argument(help="A transformer size or a tokenizer preset.")],
    tokenizer: Annotated[str, typer.Option(help="Tokenizer preset that goes with a transformer size.")] = "paper",
    size: Annotated[str, typer.Option(help="Transformer size that goes with a tokenizer preset.")] = "d16",
    conditions: Annotated[int, typer.Option(help="Conditions told apart.", min=1)] = PUBLISHED_CONDITIONS,
    as_json: options.JsonOption = False,
) -> None:
    """Tell what a named size is made of, and how many parameters it has.

    Example: medvar-model info d16 --json

    Python: medvar_model.config.transformer_parameters(transformer_config("d16", TOKENIZERS["paper"], 1000))
    """
    if preset in config.TOKENIZERS:
        tokenizer = preset
    else:
        size = preset
    frozen = _preset(config.TOKENIZERS, tokenizer, "tokenizer preset")
    _preset(config.TRANSFORMERS, size, "preset" if size == preset else "transformer size")
    network = config.transformer_config(size, frozen, conditions)
    numbers = {
        "transformer_parameters": config.transformer_parameters(network),
        "tokenizer_parameters": config.tokenizer_parameters(frozen),
        "tokens": network.n_tokens,
    }
    if as_json:
        return print_json(numbers | {"transformer": config.to_dict(network), "tokenizer": config.to_dict(frozen)})
    console.print(f"transformer {size} for {conditions} conditions: {numbers['transformer_parameters']:,} parameters")
    console.print(f"tokenizer {tokenizer}, {frozen.image_side} pixels: {numbers['tokenizer_parameters']:,} parameters")
    return console.print(f"{network.n_tokens} tokens an image, scales {', '.join(map(str, network.scale_sides))}")


def _preset(presets: dict[str, Any], name: str, what: str) -> Any:
    if name not in presets:
        known = presets if what != "preset" else [*config.TRANSFORMERS, *config.TOKENIZERS]
        raise ConfigMismatch(f"There is no {what} {name!r}; choose one of {', '.join(known)}.")
    return presets[name]


register(app)

if __name__ == "__main__":
    app()
