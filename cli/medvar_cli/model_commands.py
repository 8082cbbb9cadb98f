"""The program `medvar-model`, and its commands that train and draw: `train tokenizer`, `tokenize`,
`train transformer`, `sample`.

A command parses, makes one value, calls one library function and prints what it returned.
"""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.codebook_commands import register as register_codebook
from medvar_cli.console import HELP_NAMES, console, errors, print_json, program, progress_bar, run
from medvar_cli.evaluate_commands import register as register_evaluation
from medvar_cli.import_command import register as register_import
from medvar_cli.info import preset as named
from medvar_cli.info import register as register_info
from medvar_cli.info import transformers_help
from medvar_cli.model_feedback import finish, show_check, show_spec, shown, stopping
from medvar_cli.model_options import (
    CACHE_GB,
    CacheOption,
    CacheSizeOption,
    DeviceOption,
    OutOption,
    OutputOptions,
    RunArgument,
    SamplingOptions,
    ShardsArgument,
    TokenizerOption,
    TrainOptions,
    cache_bytes,
)
from medvar_cli.option_groups import takes_options
from medvar_cli.publish_commands import register as register_publishing
from medvar_cli.sample_commands import register as register_sampling
from medvar_cli.tokenizer_options import TokenizerOptions
from medvar_cli.utility_command import register as register_utility
from medvar_data.records import Progress
from medvar_model import config
from medvar_model.loader import DataSpec
from medvar_model.machine import processes
from medvar_model.sampling.sample_files import NO_CONDITION, SampleFiles, check_samples, training_note, write_samples
from medvar_model.tokens.tokenize import Tokenize, check_tokenize, tokenize
from medvar_model.training.tokenizer import check_tokenizer_training, train_tokenizer
from medvar_model.training.transformer import LOOPS as TRANSFORMER_LOOPS
from medvar_model.training.transformer import TrainTransformer, check_transformer_training, train_transformer

app = program("Train a next-scale generative model on medvar's shards, and draw from it.", names_files=True)
train = typer.Typer(
    help="Train a tokenizer, then a transformer on its tokens.", no_args_is_help=True, context_settings=HELP_NAMES
)
app.add_typer(train, name="train")


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """What is drawn, and how."""

    condition: Annotated[
        list[str] | None, typer.Option(help=f"Condition, or {NO_CONDITION} (the default). Repeat.")
    ] = None
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each condition.", min=1)] = 8
    sampling: SamplingOptions
    batch_size: Annotated[int, typer.Option(help="Images drawn together.", min=1)] = 16
    tokenizer: TokenizerOption = ""
    precision: Annotated[str, typer.Option(help="auto (bfloat16 on GPUs), float32 or bfloat16.")] = "auto"
    strips: Annotated[bool, typer.Option("--strips", help="Also strips.png: images after each scale.")] = False
    dicom: Annotated[bool, typer.Option("--dicom", help="Also DICOM, marked as synthetic data.")] = False
    shards: Annotated[bool, typer.Option("--shards", help="Also shards/, a shard set to train on.")] = False

    def spec(self, run: str, out: Path) -> SampleFiles:
        """Make the library's value.

        Raises:
            ConfigMismatch: an option is not understood, or a condition is given twice.
        """
        conditions, settings = tuple(self.condition or [NO_CONDITION]), self.sampling.settings(run)
        return SampleFiles(
            run, str(out), conditions, self.count, settings, self.batch_size, self.tokenizer, self.precision, self.strips,
            self.dicom, self.shards,
        )  # fmt: skip


@train.command("tokenizer")
@takes_options
def train_tokenizer_command(
    shards: ShardsArgument, out: OutOption, tokenizer: TokenizerOptions, training: TrainOptions, output: OutputOptions
) -> None:
    """Train the multi-scale tokenizer. The same command again goes on where it stopped.

    The preset paper is the published recipe: pixels, commitment, LPIPS
    (vgg16-397923af.pth and vgg.pth, as published). The preset sharp adds an
    adversary and averaged weights.

    Example: medvar-model train tokenizer S -o runs/tok --preset demo --no-lpips

    On eight GPUs: python -m medvar_cli.launch --nproc-per-node 8 train tokenizer S -o runs/tok …

    Python:

    \b
    from medvar_model.config import TOKENIZERS
    from medvar_model.machine.processes import Process
    from medvar_model.loader import DataSpec
    from medvar_model.tokens.tokenize import Tokenize, check_tokenize, tokenize
    from medvar_model.training.losses import TokenizerLossWeights
    from medvar_model.training.tokenizer import LOOPS, TrainTokenizer
    from medvar_model.training.tokenizer import train_tokenizer
    weights = TokenizerLossWeights(perceptual=0.0)
    data, config = DataSpec("S"), TOKENIZERS["demo"]
    spec = TrainTokenizer("runs/tok", data, config, LOOPS["demo"], weights)
    train_tokenizer(spec, Process.alone(), print)
    """
    spec = tokenizer.spec(shards, out, training)
    if output.dry_run:
        show_check(check_tokenizer_training(spec, processes.Process.alone(training.device)))
        return show_spec(spec, output.as_json)
    with processes.joined(os.environ, training.device) as process, shown("tokenizer") as people, stopping() as stop:
        result = train_tokenizer(spec, process, people.step, stop, tuple(sys.argv), people.begin)
    return finish(result, output.as_json, training.stop_is_success)


@train.command("transformer")
@takes_options
def train_transformer_command(
    shards: ShardsArgument,
    out: OutOption,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's run or checkpoint.")],
    *,
    size: Annotated[str, typer.Option(help=transformers_help())] = "d16",
    tokens: Annotated[str, typer.Option(help="Token cache of `tokenize`, read in the place of images.")] = "",
    scale_power: Annotated[
        float,
        typer.Option(help="A scale weighs as its number of tokens to this power: 1 tokens alike, 0 scales alike."),
    ] = 1.0,
    no_prefix_token: Annotated[
        bool, typer.Option("--no-prefix-token", help="Keep the condition out of the sequence's first position.")
    ] = False,
    training: TrainOptions,
    output: OutputOptions,
) -> None:
    """Train the next-scale transformer on a tokenizer's tokens. The same command again goes on where it stopped.

    Example: medvar-model train transformer S -o runs/d4 --tokenizer runs/tok --size d4

    On eight GPUs: python -m medvar_cli.launch --nproc-per-node 8 train transformer S -o runs/d16 …

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
    loop = training.loop(TRANSFORMER_LOOPS[size])
    spec = TrainTransformer(
        str(out),
        training.data(shards),
        tokenizer,
        size,
        loop,
        training.init_from,
        tokens,
        scale_power,
        prefix_token=not no_prefix_token,
    )
    if output.dry_run:
        show_check(check_transformer_training(spec, processes.Process.alone(training.device)))
        return show_spec(spec, output.as_json)
    with processes.joined(os.environ, training.device) as process, shown("transformer") as people, stopping() as stop:
        result = train_transformer(spec, process, people.step, stop, tuple(sys.argv), people.begin)
    return finish(result, output.as_json, training.stop_is_success)


@app.command("tokenize")
@takes_options
def tokenize_command(
    shards: ShardsArgument,
    tokenizer: Annotated[str, typer.Argument(help="A tokenizer's run or checkpoint.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the tokens.")],
    *,
    batch_size: Annotated[int, typer.Option(help="Images encoded together; 0: one on a CPU, 64 on a GPU.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Threads that read ahead.", min=0)] = 2,
    device: DeviceOption = "auto",
    cache: CacheOption = "",
    cache_gb: CacheSizeOption = CACHE_GB,
    output: OutputOptions,
) -> None:
    """Encode every slice once, for `train transformer --tokens`. The same command again goes on where it stopped.

    On a CPU each image is encoded by itself, so its tokens depend on nothing
    else. On a GPU, and where --batch-size is above 1, some images are encoded
    both ways, and how many tokens agree is said; below 99.9 % is an error.

    Example: medvar-model tokenize S runs/tok -o tokens

    Python:

    \b
    from medvar_model.loader import DataSpec
    from medvar_model.machine.processes import device_of
    from medvar_model.tokens.tokenize import Tokenize, tokenize
    spec = Tokenize("tokens", DataSpec("S"), "runs/tok")
    cache = tokenize(spec, device_of("auto"))
    """
    data = DataSpec(shards, cache=cache, cache_bytes=cache_bytes(cache_gb), workers=workers)
    spec, place = Tokenize(str(out), data, tokenizer, batch_size), processes.device_of(device)
    if output.dry_run:
        check_tokenize(spec, place)
        return show_spec(spec, output.as_json)
    with progress_bar("tokenize", quiet=output.as_json) as show:
        made = tokenize(spec, place, lambda done, total: show(Progress(done, total, "", "encoded")))
    if output.as_json:
        return print_json(asdict(made.note))
    slices = sum(entry.slices for entry in made.note.splits.values())
    console.print(f"{slices:,} slices, {made.note.origin.n_tokens} tokens each, in {out}.", markup=False)
    if made.note.agreement is not None:
        share, images = made.note.agreement.share, made.note.agreement.images
        console.print(f"{share:.3%} of the ids of {images:,} images are those of the CPU, one image at a time.")
    return None


@app.command("sample")
@takes_options
def sample_command(
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images.")],
    *,
    drawing: DrawOptions,
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Draw images with a trained transformer: PNGs, grid.png, samples.json.

    The preset paper (guidance 4, top-k 900, top-p 0.95, seed 42) is MedVAR's:
    typical, clean images from a well trained network. The preset demo
    (guidance 1, all codes, top-p 0.98) gives more variety and suits small or
    briefly trained networks.

    Example: medvar-model sample runs/d4 -o drawn --condition acdc-mr -n 4 --preset demo

    Python:

    \b
    from medvar_model.machine.processes import Process
    from medvar_model.sampling.sample_files import SampleFiles, write_samples
    from medvar_model.sampling.sample import SAMPLINGS
    settings, names = SAMPLINGS["demo"], ("acdc-mr",)
    spec = SampleFiles("runs/d4", "drawn", names, 4, settings)
    write_samples(spec, Process.alone().device)
    """
    spec = drawing.spec(run, out)
    if output.dry_run:
        processes.device_of(device)
        check_samples(spec)
        return show_spec(spec, output.as_json)
    with processes.joined({}, device) as process, progress_bar("sample") as show:
        note = training_note(Path(run))
        files = write_samples(spec, process.device, lambda done, total: show(Progress(done, total, "", "drawn")))
    if output.as_json:
        return print_json([str(file) for file in files])
    console.print(f"{len(files)} images in {out}, all of them in {out / 'grid.png'}.", markup=False)
    if note:
        errors.print(f"Note: {note}", markup=False)
    return None


register_sampling(app)
register_evaluation(app)
register_utility(app)
register_publishing(app)
register_codebook(app)
register_import(app)
register_info(app)

if __name__ == "__main__":
    run(app)
