"""Run the model pipeline end to end on two processor cores: tokenizer, transformer, samples, evaluation.

In: the folder in which the data pipeline's demo left `shards-64`. Out: `model/` in it: two runs and an evaluation. Each
stage that is finished is left alone, so the same call again goes on where it stopped.

The sizes, rates and lengths are fixed numbers, chosen by the experiments in docs/log.md: small enough for minutes,
large enough for samples that show what was asked for.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from medvar_data.storage.html import assemble, write_section
from medvar_model.config import TOKENIZERS, TokenizerConfig
from medvar_model.errors import MissingCheckpoint, ShardSetMismatch
from medvar_model.evaluation.evaluate import Evaluate, Evaluation, evaluate
from medvar_model.evaluation.inputs import split_sizes
from medvar_model.evaluation.page import SECTION, model_section
from medvar_model.loader import DataSpec
from medvar_model.machine.processes import Process
from medvar_model.sampling.sample import SAMPLINGS, SampleSettings
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.reports import StepLog
from medvar_model.training.settings import LoopSettings
from medvar_model.training.tokenizer import TrainTokenizer, train_tokenizer
from medvar_model.training.transformer import TrainTransformer, train_transformer

SHARDS = "shards-64"
MODEL = "model"

TOKENIZER_LOOP = LoopSettings(
    samples=12_000,
    batch_size=8,
    base_learning_rate=0.096,  # a peak of 3e-3
    betas=(0.9, 0.95),
    weight_decay=0.005,
    clip=10.0,
    warmup=0.05,
    floor=0.05,
    checkpoint_every=4_000,
    validate_every=4_000,
    log_every=160,
    validation_slices=128,
)
TRANSFORMER_LOOP = LoopSettings(
    samples=10_000,
    batch_size=16,
    base_learning_rate=0.032,  # a peak of 2e-3
    betas=(0.9, 0.95),
    weight_decay=0.05,
    clip=2.0,
    warmup=0.05,
    floor=0.05,
    checkpoint_every=4_000,
    validate_every=4_000,
    log_every=160,
    validation_slices=128,
)
SETTINGS = SAMPLINGS["demo"]


@dataclass(frozen=True)
class ModelDemo:
    """What to run.

    Args:
        folder: where `medvar-data demo` left its shards; `model/` is made in it.
        tokenizer, tokenizer_loop: size and length of the tokenizer's training.
        size, transformer_loop: the same for the transformer.
        settings: of the drawing.
        count: images drawn of each condition.
        unquantized, revive_every: of the tokenizer's training; see `TrainTokenizer`.
    """

    folder: Path
    tokenizer: TokenizerConfig = TOKENIZERS["demo"]
    tokenizer_loop: LoopSettings = TOKENIZER_LOOP
    size: str = "d3"
    transformer_loop: LoopSettings = TRANSFORMER_LOOP
    settings: SampleSettings = SETTINGS
    count: int = 24
    unquantized: float = 0.05
    revive_every: int = 800

    @property
    def data(self) -> DataSpec:
        """The shard set."""
        return DataSpec(str(self.folder / SHARDS), workers=1)

    @property
    def model(self) -> Path:
        """Where everything goes."""
        return self.folder / MODEL


@dataclass(frozen=True)
class ModelDemoResult:
    """What the demo left behind.

    Attributes:
        evaluation: the finished report.
        tokenizer, transformer: the runs' folders.
        page: `index.html` of the demo's folder, the data's part and the model's.
        seconds: wall time of each stage of this call.
    """

    evaluation: Evaluation
    tokenizer: Path
    transformer: Path
    page: Path
    seconds: dict[str, float] = field(default_factory=dict)


def run_model_demo(spec: ModelDemo, say: Callable[[str], None]) -> ModelDemoResult:
    """Train, draw, score, and write the page.

    Args:
        spec: what to run.
        say: told a line at each validation and each stage.

    Raises:
        MissingCheckpoint: the folder holds no shard set.
        ShardSetMismatch: it has no held-out slices.
    """
    process, started, seconds = Process.alone("cpu"), time.monotonic(), {}
    tokenizer, transformer = spec.model / "tokenizer", spec.model / "transformer"

    def tell(line: str) -> None:
        say(f"[{time.monotonic() - started:5.1f} s] {line}")

    def told(stage: str) -> Callable[[StepLog], None]:
        def report(log: StepLog) -> None:
            if log.validation:
                numbers = ", ".join(f"{name} {log.validation[name]:.3g}" for name in _headline(log))
                tell(f"{stage}: {log.samples} of {log.steps * log.samples // log.step} images, {numbers}")

        return report

    first, second = _loops(spec)
    mark = time.monotonic()
    training = TrainTokenizer(
        str(tokenizer), spec.data, spec.tokenizer, first, TokenizerLossWeights(perceptual=0.0),
        unquantized=spec.unquantized, codebook_images=512, revive_every=spec.revive_every,
    )  # fmt: skip
    with one_thread():
        train_tokenizer(training, process, told("tokenizer"))
    seconds["tokenizer"], mark = time.monotonic() - mark, time.monotonic()
    predicting = TrainTransformer(str(transformer), spec.data, str(tokenizer), spec.size, second)
    train_transformer(predicting, process, told("transformer"))
    seconds["transformer"], mark = time.monotonic() - mark, time.monotonic()
    scoring = Evaluate(
        str(spec.model / "evaluation"), spec.data, str(transformer), count=spec.count, settings=spec.settings,
        features=("",), replicates=6,
    )  # fmt: skip
    evaluation = evaluate(scoring, process.device, lambda line: tell(f"evaluation: {line}"))
    seconds["evaluation"] = time.monotonic() - mark
    page = _write_page(spec, evaluation, tokenizer, transformer)
    return ModelDemoResult(evaluation, tokenizer, transformer, page, seconds)


def _write_page(spec: ModelDemo, evaluation: Evaluation, tokenizer: Path, transformer: Path) -> Path:
    """Add the model's section, with the curves of both runs, to the page that the data's demo began."""
    pictures = str((evaluation.out / "pictures").relative_to(spec.folder))
    write_section(spec.folder, SECTION, model_section(evaluation.report, pictures, tokenizer, transformer))
    lead = "From published folder layouts to training shards, and from shards to samples."
    return assemble(spec.folder, "medvar demo", lead)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread for the length of a `with` block.

    The demo's tokenizer is so narrow that a second thread saves a quarter of the time on a free machine, and costs ten
    times as much on a busy one, where the two wait for each other after every layer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loops(spec: ModelDemo) -> tuple[LoopSettings, LoopSettings]:
    """Give both trainings' settings for the shard set that is there: of few patients, none may be in its val split."""
    if not (spec.folder / SHARDS / "dataset.json").is_file():
        raise MissingCheckpoint(
            f"{spec.folder} holds no {SHARDS}; wanted the folder in which it left them. Run `medvar-data demo "
            f"{spec.folder}` first."
        )
    sizes = split_sizes(spec.data.shards)
    if sizes.get("val", 0):
        return spec.tokenizer_loop, spec.transformer_loop
    if not sizes.get("test", 0):
        raise ShardSetMismatch(
            f"{spec.data.shards} has no val or test slices, so nothing could be scored. Run `medvar-data demo` on more "
            "patients."
        )
    return replace(spec.tokenizer_loop, validate_every=0), replace(spec.transformer_loop, validate_every=0)


def _headline(log: StepLog) -> list[str]:
    return [name for name in ("loss", "psnr", "codes_used", "accuracy") if name in (log.validation or {})]
