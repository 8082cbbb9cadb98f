"""The command `medvar-model`: parse, make one value, call one library function, print what it returned."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from medvar_cli import options as options
from medvar_cli.console import console, errors, fail, interrupted, print_json, progress_bar, run
from medvar_cli.evaluate_commands import register as register_evaluation
from medvar_cli.info import preset as named
from medvar_cli.info import register as register_info
from medvar_cli.info import tokenizers_help, transformers_help
from medvar_data.errors import MedvarError
from medvar_data.records import Progress
from medvar_model import config
from medvar_model.errors import ModelError
from medvar_model.machine import processes
from medvar_model.sampling.sample_files import NO_CONDITION, SampleFiles, check_samples, training_note, write_samples
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.tokenizer import LOOPS as TOKENIZER_LOOPS
from medvar_model.training.tokenizer import TrainTokenizer, check_tokenizer_training, train_tokenizer
from medvar_model.training.transformer import LOOPS as TRANSFORMER_LOOPS
from medvar_model.training.transformer import TrainTransformer, check_transformer_training, train_transformer

RESTARTS = {"train": "Stopped at once. The same command goes on from the last checkpoint."}


class Sentences(TyperGroup):
    """Commands whose errors are one sentence on standard error and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ModelError, MedvarError) as error:
            return fail(str(error))
        except BrokenPipeError:  # the reader of a pipe has left: typer ends without a word
            raise
        except OSError as error:
            what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
            return fail(f"{what}. Check the path, its permissions and the space left on that disk.")
        except KeyboardInterrupt:
            again = "Stopped. What was not finished is left out; the same command does it again."
            return interrupted(RESTARTS.get(ctx.invoked_subcommand or "", again))


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
    preset: Annotated[str, typer.Option(help=tokenizers_help())] = "paper",
    lpips_weights: Annotated[
        list[Path] | None,
        typer.Option(help="vgg16-397923af.pth (torchvision) and vgg.pth (LPIPS), as published: give it twice."),
    ] = None,
    no_lpips: Annotated[bool, typer.Option("--no-lpips", help="Train without the perceptual loss.")] = False,
    samples: options.SamplesOption = None,
    batch_size: options.BatchOption = None,
    micro_batch: options.MicroBatchOption = 0,
    base_learning_rate: options.RateOption = None,
    average: options.AverageOption = 0.0,
    init_from: options.InitFromOption = "",
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

    On eight GPUs: torchrun --nproc-per-node 8 -m medvar_cli.train_commands train tokenizer S -o runs/tok …

    Python:

    \b
    from medvar_model.config import TOKENIZERS
    from medvar_model.machine.processes import Process
    from medvar_model.loader import DataSpec
    from medvar_model.training.losses import TokenizerLossWeights
    from medvar_model.training.tokenizer import LOOPS, TrainTokenizer
    from medvar_model.training.tokenizer import train_tokenizer
    weights = TokenizerLossWeights(perceptual=0.0)
    data, config = DataSpec("S"), TOKENIZERS["demo"]
    spec = TrainTokenizer("runs/tok", data, config, LOOPS["demo"], weights)
    train_tokenizer(spec, Process.alone(), print)
    """
    spec = TrainTokenizer(
        out=str(out),
        data=options.data_spec(shards, mix, cache, cache_gb, window_shards, workers),
        config=named(config.TOKENIZERS, preset, "tokenizer preset"),
        loop=options.loop_settings(
            TOKENIZER_LOOPS[preset], samples=samples, batch_size=batch_size, micro_batch=micro_batch,
            base_learning_rate=base_learning_rate, average=average, seed=seed, precision=precision,
            validate_every=validate_every, checkpoint_every=checkpoint_every,
        ),
        weights=TokenizerLossWeights(perceptual=0.0) if no_lpips else TokenizerLossWeights(),
        lpips_files=tuple(map(str, lpips_weights or ())),
        init_from=init_from,
    )  # fmt: skip
    if dry_run:
        options.show_check(check_tokenizer_training(spec, processes.Process.alone(device)))
        return options.show_spec(spec, as_json)
    with (
        processes.joined(os.environ, device) as process,
        options.shown("tokenizer") as people,
        options.stopping() as stop,
    ):
        result = train_tokenizer(spec, process, people.step, stop, tuple(sys.argv), people.begin)
    return options.finish(result, as_json)


@train.command("transformer")
def train_transformer_command(
    shards: options.ShardsArgument,
    out: options.OutOption,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's run or checkpoint.")],
    size: Annotated[str, typer.Option(help=transformers_help())] = "d16",
    samples: options.SamplesOption = None,
    batch_size: options.BatchOption = None,
    micro_batch: options.MicroBatchOption = 0,
    base_learning_rate: options.RateOption = None,
    average: options.AverageOption = 0.0,
    init_from: options.InitFromOption = "",
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

    On eight GPUs: torchrun --nproc-per-node 8 -m medvar_cli.train_commands train transformer S -o runs/d16 …

    Python:

    \b
    from medvar_model.machine.processes import Process
    from medvar_model.loader import DataSpec
    from medvar_model.training.transformer import LOOPS, TrainTransformer
    from medvar_model.training.transformer import train_transformer
    data, loop = DataSpec("S"), LOOPS["d4"]
    spec = TrainTransformer("runs/d4", data, "runs/tok", "d4", loop)
    train_transformer(spec, Process.alone(), print)
    """
    named(config.TRANSFORMERS, size, "transformer size")
    loop = options.loop_settings(
        TRANSFORMER_LOOPS[size], samples=samples, batch_size=batch_size, micro_batch=micro_batch,
        base_learning_rate=base_learning_rate, average=average, seed=seed, precision=precision,
        validate_every=validate_every, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    data = options.data_spec(shards, mix, cache, cache_gb, window_shards, workers)
    spec = TrainTransformer(str(out), data, tokenizer, size, loop, init_from)
    if dry_run:
        options.show_check(check_transformer_training(spec, processes.Process.alone(device)))
        return options.show_spec(spec, as_json)
    with (
        processes.joined(os.environ, device) as process,
        options.shown("transformer") as people,
        options.stopping() as stop,
    ):
        result = train_transformer(spec, process, people.step, stop, tuple(sys.argv), people.begin)
    return options.finish(result, as_json)


@app.command("sample")
def sample_command(
    run: Annotated[str, typer.Argument(help="A transformer's run or checkpoint.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images.")],
    condition: Annotated[
        list[str] | None, typer.Option(help=f"Condition, or {NO_CONDITION} (the default). Repeat.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each condition.", min=1)] = 8,
    preset: options.SamplingOption = "paper",
    guidance: options.GuidanceOption = None,
    top_k: options.TopKOption = None,
    top_p: options.TopPOption = None,
    seed: options.DrawSeedOption = None,
    batch_size: Annotated[int, typer.Option(help="Images drawn together.", min=1)] = 16,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's run; left out, the copy in the run.")] = "",
    device: options.DeviceOption = "auto",
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Draw images with a trained transformer: PNGs, grid.png, samples.json.

    The preset paper (guidance 4, top-k 900, top-p 0.95, seed 42) is MedVAR's:
    typical, clean images from a well trained network. The preset demo
    (guidance 1, all codes, top-p 0.98) gives more variety and suits small or
    briefly trained networks.

    Example: medvar-model sample runs/d4 -o drawn --condition acdc-mr --count 16

    Python:

    \b
    from medvar_model.machine.processes import Process
    from medvar_model.sampling.sample_files import SampleFiles, write_samples
    from medvar_model.sampling.sample import SAMPLINGS
    spec = SampleFiles("runs/d4", "drawn", count=4, settings=SAMPLINGS["demo"])
    write_samples(spec, Process.alone().device)
    """
    settings = options.sampling(preset, guidance, top_k, top_p, seed)
    spec = SampleFiles(run, str(out), tuple(condition or [NO_CONDITION]), count, settings, batch_size, tokenizer)
    if dry_run:
        processes.device_of(device)
        check_samples(spec)
        return options.show_spec(spec, as_json)
    with processes.joined({}, device) as process, progress_bar("sample") as show:
        note = training_note(Path(run))
        files = write_samples(spec, process.device, lambda done, total: show(Progress(done, total, "", "drawn")))
    if as_json:
        return print_json([str(file) for file in files])
    console.print(f"{len(files)} images in {out}, all of them in {out / 'grid.png'}.", markup=False)
    if note:
        errors.print(f"Note: {note}", markup=False)
    return None


register_evaluation(app)
register_info(app)

if __name__ == "__main__":
    run(app)
