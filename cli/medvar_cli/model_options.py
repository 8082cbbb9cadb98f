"""The options that commands of `medvar-model` share, and the library's values that are made of them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from medvar_cli.option_groups import JsonOption
from medvar_cli.stream_options import MixOptions
from medvar_data.errors import SpecError
from medvar_model.errors import ConfigMismatch
from medvar_model.export.export import exported_settings
from medvar_model.loader import DataSpec
from medvar_model.sampling.settings import PAPER, SAMPLINGS, SampleSettings, load_settings
from medvar_model.training.settings import LoopSettings

Settings = TypeVar("Settings", LoopSettings, SampleSettings)
CACHE_GB = 20.0
LOOP_OPTIONS = (
    "samples", "batch_size", "micro_batch", "base_learning_rate", "average", "seed", "precision", "parallel", "recompute", "compile",
    "validate_every", "checkpoint_every", "checkpoint_minutes", "keep", "keep_every", "peak_tflops", "wandb",
)  # fmt: skip

ShardsArgument = Annotated[str, typer.Argument(help="Shard set S: a folder or URL.")]
RunArgument = Annotated[str, typer.Argument(help="A transformer's run or checkpoint.")]
OutOption = Annotated[Path, typer.Option("-o", "--out", help="The run's folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
TokenizerOption = Annotated[str, typer.Option(help="A tokenizer's run; left out, the copy in the run.")]
FeatureWeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--feature-weights", help="NAME=PATH: the weight file of those features (docs/evaluation.md); repeat."
    ),
]
CacheOption = Annotated[str, typer.Option(help="Local folder for the shards of a remote set.")]
CacheSizeOption = Annotated[float, typer.Option("--cache-gb", help="Bound of that folder, GB.")]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Whether to work at all, and how to print."""

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all inputs, show the configuration and stop.")] = (
        False
    )
    as_json: JsonOption = False


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What both trainings are told: how long and how fast, on what device, from which data."""

    samples: Annotated[
        int | None,
        typer.Option(help="Images to train on, repeats counted; whole steps are taken. Default: by preset.", min=1),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(help="Images of a step, all processes together. Default: by preset.", min=1)
    ] = None
    micro_batch: Annotated[
        int, typer.Option(help="Images of one pass, to save memory; 0 takes all at once.", min=0)
    ] = 0
    base_learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate at a batch of 256; grows with the batch. Default: by preset."),
    ] = None
    average: Annotated[
        float | None,
        typer.Option(help="Keep a running average of weights with this decay; 0 keeps none. Default: by preset."),
    ] = None
    init_from: Annotated[str, typer.Option(help="Run or checkpoint whose weights a fresh run begins with.")] = ""
    seed: Annotated[int, typer.Option(help="Of weights, order and dropping.", min=0)] = 0
    precision: Annotated[str, typer.Option(help="auto (bfloat16 on GPUs), float32, bfloat16 or float16.")] = "auto"
    parallel: Annotated[
        str, typer.Option(help="Several processes: ddp, or fsdp, which splits a transformer's weights over them.")
    ] = "ddp"
    recompute: Annotated[bool, typer.Option("--recompute", help="Save memory: compute each block twice.")] = False
    compile: Annotated[bool, typer.Option("--compile", help="Compile each block with torch.compile.")] = False
    device: DeviceOption = "auto"
    workers: Annotated[int, typer.Option(help="Threads that read ahead.", min=0)] = 2
    mixing: MixOptions
    hold_out_collection: Annotated[
        list[str] | None,
        typer.Option(help="Collection that the run never sees, in no split: to measure on it later. Repeat."),
    ] = None
    skip_bad: Annotated[
        bool, typer.Option(help="Replace slices that cannot be read, and count them, instead of ending.")
    ] = False
    cache: CacheOption = ""
    cache_gb: CacheSizeOption = CACHE_GB
    validate_every: Annotated[
        int | None, typer.Option(help="Samples between validations; 0 never validates. Default: by preset.", min=0)
    ] = None
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Samples between checkpoints. Default: by preset.", min=1)
    ] = None
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Minutes between checkpoints, if that is sooner; 0: samples alone.", min=0)
    ] = 30.0
    keep: Annotated[int, typer.Option(help="Older checkpoints to keep in kept/.", min=0)] = 0
    keep_every: Annotated[
        int, typer.Option(help="Keep the first checkpoint after each so many samples for good; 0: none.", min=0)
    ] = 0
    peak_tflops: Annotated[
        float, typer.Option(help="The device's peak, to tell the share used (MFU); 0 measures it.", min=0)
    ] = 0.0
    wandb: Annotated[str, typer.Option(help="Project in Weights & Biases to log to as well.")] = ""
    stop_is_success: Annotated[
        bool, typer.Option("--stop-is-success", help="Leave with 0, not 130, when stopped at a checkpoint.")
    ] = False

    def loop(self, preset: LoopSettings) -> LoopSettings:
        """Change a preset by the options that were given; None leaves what the preset says."""
        return changed(preset, {name: getattr(self, name) for name in LOOP_OPTIONS})

    def data(self, shards: str) -> DataSpec:
        """Say how a shard set is read.

        Raises:
            SpecError: --mix or --cache-gb is not understood.
        """
        mixing = self.mixing
        return DataSpec(
            shards, mixing.where, mixing.mixture(), mixing.mix_by, mixing.temperature, self.skip_bad, mixing.window_shards,
            self.cache, cache_bytes(self.cache_gb), self.workers, tuple(sorted(set(self.hold_out_collection or ()))),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where the shards of a remote set are kept on this machine."""

    cache: CacheOption = ""
    cache_gb: CacheSizeOption = CACHE_GB

    def data(self, shards: str, where: str = "") -> DataSpec:
        """Say how a shard set is read.

        Raises:
            SpecError: --cache-gb is not understood.
        """
        return DataSpec(shards, where, cache=self.cache, cache_bytes=cache_bytes(self.cache_gb))


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How images are drawn."""

    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="paper (the default, but for an exported model's own): guidance 4, top-k 900, top-p 0.95. demo: 1, 0, 0.98, for small "
            "networks. Or a table of --settings.",
        ),
    ] = ""
    settings_file: Annotated[
        str, typer.Option("--settings", help="A TOML of presets of your own, such as [mine] with guidance = 2.0.")
    ] = ""
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; 0 is off. Default: by preset.")] = (
        None
    )
    top_k: Annotated[int | None, typer.Option(help="Codes kept at each position; 0: all. Default: by preset.")] = None
    top_p: Annotated[
        float | None, typer.Option(help="Probability kept at each position; 0: all. Default: by preset.")
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", help="Image n of a seed is always the same. Default: 42.", min=0)
    ] = None

    unguided_scales: Annotated[
        int | None,
        typer.Option(help="So many of the finest scales without guidance: faster, other images. Default: by preset."),
    ] = None

    def settings(self, run: str = "") -> SampleSettings:
        """Change the preset by the options that were given.

        Args:
            run: where no preset is named, what an exported model says of itself goes before the paper's.

        Raises:
            ConfigMismatch: there is no such preset.
        """
        presets = SAMPLINGS | (load_settings(Path(self.settings_file)) if self.settings_file else {})
        names = ("guidance", "top_k", "top_p", "seed", "unguided_scales")
        options = {name: getattr(self, name) for name in names}
        if not self.preset:
            return changed((exported_settings(Path(run)) if run else None) or PAPER, options)
        if self.preset not in presets:
            known = ", ".join(presets)
            raise ConfigMismatch(f"There is no --preset {self.preset!r} to sample with; choose one of {known}.")
        return changed(presets[self.preset], options)


def changed(preset: Settings, options: dict[str, Any]) -> Settings:
    """Change a preset by the options that are not None."""
    return replace(preset, **{name: value for name, value in options.items() if value is not None})


def feature_paths(items: list[str] | None) -> dict[str, str]:
    """Read NAME=PATH, each name once.

    Raises:
        ConfigMismatch: one is written otherwise, or a name comes twice.
    """
    paths: dict[str, str] = {}
    for item in items or []:
        name, _, path = item.partition("=")
        if not name or not path or name in paths:
            raise ConfigMismatch(
                f"--feature-weights {item!r} is not NAME=PATH, or names features twice. Example: --feature-weights inception=weights.pth"
            )
        paths[name] = path
    return paths


def cache_bytes(gigabytes: float) -> int:
    """Turn --cache-gb into bytes.

    Raises:
        SpecError: it is negative, endless or not a number.
    """
    if not 0 <= gigabytes < math.inf:
        raise SpecError(f"--cache-gb is {gigabytes}; wanted a number from 0 on.")
    return int(gigabytes * 1e9)
