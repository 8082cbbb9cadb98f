"""Train the transformer: predict every scale's tokens from the coarser ones, by cross-entropy.

In: a `TrainTransformer`. Out: a run's folder with `last`, `best` and a copy of the tokenizer it belongs to.
The tokenizer is frozen; it codes the images as they come, or did so before (`tokens`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from medvar_model.checkpoints.checkpoint import (
    Contents,
    build_tokenizer,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from medvar_model.config import TokenizerConfig, TransformerConfig, transformer_config
from medvar_model.errors import ConfigMismatch
from medvar_model.loader import CodedExamples, DataSpec, Loader
from medvar_model.machine import processes
from medvar_model.machine.processes import Process
from medvar_model.networks.tokenizer import Tokenizer, channels_last
from medvar_model.networks.transformer import Transformer
from medvar_model.tokens.cache import OF_TOKENIZER, TokenCache, check_origin, open_tokens, origin_of
from medvar_model.training.checks import Ready, check_resumable, claimed, matched_rows, ready
from medvar_model.training.loop import train
from medvar_model.training.losses import next_scale_loss
from medvar_model.training.objective import Batch, Draw, Objective, decay_groups
from medvar_model.training.parallel import shard
from medvar_model.training.reports import Callbacks, RunStart, StepLog, TrainResult
from medvar_model.training.settings import LoopSettings

LOOP = LoopSettings(
    samples=20_000_000,
    batch_size=64,
    base_learning_rate=1e-4,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    clip=2.0,
)  # VAR's, with the paper's cosine in place of VAR's straight line
SMALL_LOOP = replace(
    LOOP, samples=200_000, batch_size=32, base_learning_rate=4e-3, checkpoint_every=10_000, validate_every=10_000
)  # narrow networks bear larger steps: 5e-4 at a batch of 32
LARGE_LOOP = replace(LOOP, batch_size=768, samples=250_000_000)  # VAR's batch and length for d16
LOOPS: dict[str, LoopSettings] = {
    "d2": SMALL_LOOP,
    "d3": SMALL_LOOP,
    "d4": SMALL_LOOP,
    "d6": SMALL_LOOP,
    "d8": LOOP,
    "d16": LARGE_LOOP,
    "d20": replace(LARGE_LOOP, samples=320_000_000),
    "d24": replace(LARGE_LOOP, samples=450_000_000, base_learning_rate=8e-5, floor=0.01),
    "d30": replace(LARGE_LOOP, samples=450_000_000, batch_size=1024, base_learning_rate=8e-5, floor=0.01),
}  # one a transformer size; from d16 on VAR's numbers
SPARED = ("position_embedding", "level_embedding", "start_embedding", "log_scale")  # undecayed, as in VAR


@dataclass(frozen=True)
class TrainTransformer:
    """Everything that decides a transformer's training.

    Args:
        out: the run's folder.
        data: what to train on.
        tokenizer: a tokenizer's checkpoint or run.
        size: a key of `config.TRANSFORMERS`.
        loop: how long and how fast.
        init_from: transformer's checkpoint or run whose weights the training begins with; conditions are matched by
            name, and new ones begin with random rows. Empty: random weights.
        tokens: token cache of this tokenizer and shard set, which is read in the place of images; empty encodes them.
        scale_power: a scale's weight in the loss is in proportion to its number of tokens to this power, [0, 1]; see
            `losses.next_scale_loss`. Validation weighs every token the same.
        prefix_token: see `TransformerConfig`.
    """

    out: str
    data: DataSpec
    tokenizer: str
    size: str
    loop: LoopSettings = LOOP
    init_from: str = ""
    tokens: str = ""
    scale_power: float = 1.0
    prefix_token: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.scale_power <= 1:
            raise ConfigMismatch(
                f"--scale-power is {self.scale_power}; wanted a number from 0 (every scale weighs the same) to 1 (every "
                "token weighs the same)."
            )


def train_transformer(
    spec: TrainTransformer,
    process: Process,
    report: Callable[[StepLog], None] = lambda log: None,
    stop: Callable[[], bool] = lambda: False,
    command: tuple[str, ...] = (),
    begun: Callable[[RunStart], None] = lambda start: None,
) -> TrainResult:
    """Train a transformer, or go on where the same call stopped.

    Args:
        spec: what to train.
        process: this process, from `processes.joined`.
        report: told of every step.
        stop: asked after every step; yes ends the run at a checkpoint.
        command: the command line, for run.json.
        begun: told once, before the first step.

    Raises:
        ModelError: the folder, the shard set, the weights or the memory do not allow it; the message says what would.

    Example:
        >>> import os
        >>> spec = TrainTransformer("runs/d4", DataSpec("shards"), tokenizer="runs/tok", size="d4")
        >>> with processes.joined(os.environ) as process:        # doctest: +SKIP
        ...     train_transformer(spec, process, report=print)
    """
    made, frozen = _ready(spec, process, command)
    job, loop = made.job, spec.loop
    assert isinstance(job.config, TransformerConfig)
    with claimed(made, process):
        if process.is_main and not (job.out / "tokenizer").is_dir():
            write_checkpoint(job.out / "tokenizer", frozen)
        objective = TransformerObjective(
            job.config, build_tokenizer(frozen, spec.tokenizer), loop.seed, process, spec.scale_power
        )
        if made.init_from is not None:
            weights = matched_rows(made.init_from, dict(job.conditions), objective.network.state_dict())
            load_weights(objective.network, weights, spec.init_from)
        if loop.parallel == "fsdp":
            shard(objective.network, process)
        groups = decay_groups(objective.network, loop.weight_decay, spared=SPARED)
        return train(objective, groups, made, process, Callbacks(report, stop, begun))


def check_transformer_training(spec: TrainTransformer, process: Process) -> Ready:
    """Check what `train_transformer` checks before it begins; write nothing.

    Raises:
        ModelError, MedvarError: what stands in its way.
    """
    made, _ = _ready(spec, process, ())
    check_resumable(made)
    return made


def _ready(spec: TrainTransformer, process: Process, command: tuple[str, ...]) -> tuple[Ready, Contents]:
    frozen = read_checkpoint(Path(spec.tokenizer), "tokenizer")
    assert isinstance(frozen.config, TokenizerConfig)
    config = frozen.config

    def config_of(loader: Loader) -> TransformerConfig:
        return transformer_config(spec.size, config, len(loader.conditions), spec.prefix_token)

    tokens = _tokens(spec, frozen, config) if spec.tokens else None
    return ready(spec, config.image_side, config_of, process, command, frozen, tokens=tokens), frozen


def _tokens(spec: TrainTransformer, frozen: Contents, config: TokenizerConfig) -> TokenCache:
    """Open the token cache.

    Raises:
        ConfigMismatch: it is another tokenizer's.
    """
    cache = open_tokens(Path(spec.tokens))
    there = cache.note.origin
    check_origin(cache.folder, there, origin_of(frozen.digest, config, there.shard_set), OF_TOKENIZER)
    return cache


class TransformerObjective(Objective[Batch]):
    """The transformer's loss.

    Args:
        config: of the transformer.
        tokenizer: frozen; gives tokens and what the transformer is shown.
        seed: of the initial weights.
        process: this process.
        scale_power: see `TrainTransformer`.
    """

    network: Transformer

    def __init__(
        self,
        config: TransformerConfig,
        tokenizer: Tokenizer,
        seed: int,
        process: Process,
        scale_power: float = 1.0,
    ) -> None:
        super().__init__()
        self._scale_power = scale_power
        self.network = Transformer(config, torch.Generator().manual_seed(seed)).to(process.device)
        self.tokenizer = channels_last(tokenizer.to(process.device))

    def forward(self, examples: Batch, draw: Draw) -> dict[str, Tensor]:
        """Return `loss` (cross-entropy, nats, scales weighed), `accuracy`, and the loss of each scale."""
        draws_BU = torch.from_numpy(draw.uniforms(len(examples), self.network.draws_per_image))
        return self._compare(examples, draws_BU, self._scale_power)

    def validate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Return the mean of what `forward` returns over all images, with every condition told and every token weighing the same."""
        names = ["loss", "accuracy", *_scale_names(len(self.network.config.scale_sides))]
        sums = torch.zeros(len(names) + 1, dtype=torch.float64)
        for examples in batches:
            parts = self._compare(examples, None, scale_power=1.0)
            terms = torch.stack([*parts.values(), parts["loss"].new_ones(())])
            sums += terms.double().cpu() * len(examples)
        *totals, images = processes.total(sums.to(self.network.head.weight.device)).tolist()
        return {name: value / images for name, value in zip(names, totals, strict=True)}

    def _compare(self, examples: Batch, draws_BU: Tensor | None, scale_power: float) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(examples.conditions.device.type, enabled=False):
            if isinstance(examples, CodedExamples):
                tokens = self.network.schedule.split(examples.tokens)
            else:
                tokens = self.tokenizer.encode(examples.images)
            inputs_BLC = torch.cat(self.tokenizer.pyramid.inputs(tokens), 1)
        conditions_B = examples.conditions
        logits_BLV = self.network(conditions_B, inputs_BLC, draws_BU=draws_BU)
        outcome = next_scale_loss(logits_BLV, tokens, scale_power)
        lengths = outcome.accuracy.new_tensor([ids.shape[1] for ids in tokens])
        accuracy = (outcome.accuracy * lengths).sum() / lengths.sum()
        scales = dict(zip(_scale_names(len(lengths)), outcome.per_scale, strict=True))
        return {"loss": outcome.weighted, "accuracy": accuracy, **scales}


def _scale_names(count: int) -> list[str]:
    return [f"loss/scale_{k + 1:02d}" for k in range(count)]
