"""Train the tokenizer: pixels, perception and codes, with a codebook that starts from data and loses no code.

In: a `TrainTokenizer`. Out: a run's folder with `last` and `best`.

A share of the run first trains encoder and decoder without quantization. Then k-means over what all scales
have to code
places the codes, and from time to time codes that are hardly used move to where codes are needed: without the
two, few codes are ever used on the coarse scales (the best known trouble of multi-scale tokenizers).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from medvar_model.checkpoints.checkpoint import Contents, load_weights
from medvar_model.config import TokenizerConfig
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.loader import DataSpec, Examples, Loader
from medvar_model.machine import processes
from medvar_model.machine.processes import Process
from medvar_model.networks.codebook import count_codes, revive, usage
from medvar_model.networks.pyramid import fit_codebook
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.training.checks import Ready, check_resumable, claimed, ready
from medvar_model.training.loop import train
from medvar_model.training.losses import PerceptualDistance, TokenizerLossWeights, load_perceptual_distance, pixel_loss
from medvar_model.training.objective import Draw, Forget, Objective, decay_groups
from medvar_model.training.reports import Callbacks, RunStart, StepLog, TrainResult
from medvar_model.training.settings import LoopSettings

LOOP = LoopSettings(
    samples=2_000_000,
    batch_size=64,
    base_learning_rate=1e-4,
    betas=(0.5, 0.9),
    weight_decay=0.005,
    clip=10.0,
    warmup=0.01,
    floor=0.3,
)  # rates, decay, clip and schedule of the VAR authors' own autoencoder trainer
SMALL_LOOP = replace(
    LOOP,
    samples=60_000,
    batch_size=16,
    base_learning_rate=0.016,
    warmup=0.05,
    checkpoint_every=5_000,
    validate_every=5_000,
)  # narrow networks bear, and need, larger steps: 1e-3 at a batch of 16
LOOPS: dict[str, LoopSettings] = {
    "tiny": SMALL_LOOP,
    "demo": SMALL_LOOP,
    "small": LOOP,
    "base": replace(LOOP, batch_size=256, samples=20_000_000),
    "paper": replace(LOOP, batch_size=768, samples=100_000_000),
}  # one a tokenizer preset; the paper's own length and batch are unpublished
WEIGHTS = TokenizerLossWeights()


@dataclass(frozen=True)
class TrainTokenizer:
    """Everything that decides a tokenizer's training.

    Args:
        out: the run's folder.
        data: what to train on.
        config: of the tokenizer.
        loop: how long and how fast.
        weights: of the terms of the loss.
        lpips_files: weight files of LPIPS; needed unless `weights.perceptual` is 0.
        unquantized: share of the samples before the codebook is made from data.
        codebook_images: images from which it is made.
        revive_every: samples between two revivals of dead codes; 0 never revives.
        revive_until: share of the samples after which no code is moved any more, so that all can settle.
        dead_below: a code is dead when it was used less than this fraction of the mean use.
        init_from: tokenizer's checkpoint or run whose weights, codes too, the training begins with; there is then no
            share without quantization. Empty: random weights.
    """

    out: str
    data: DataSpec
    config: TokenizerConfig
    loop: LoopSettings = LOOP
    weights: TokenizerLossWeights = WEIGHTS
    lpips_files: tuple[str, ...] = ()
    unquantized: float = 0.02
    codebook_images: int = 1_024
    revive_every: int = 10_000
    revive_until: float = 0.8
    dead_below: float = 0.01
    init_from: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.unquantized < 1 and 0 <= self.revive_until <= 1 and self.dead_below >= 0):
            raise ConfigMismatch(
                f"unquantized {self.unquantized}, revive_until {self.revive_until} and dead_below "
                f"{self.dead_below} are fractions; wanted them from 0 to 1."
            )
        if self.weights.perceptual > 0 and not self.lpips_files:
            raise MissingCheckpoint(
                "The tokenizer's loss has a perceptual term (LPIPS), which needs weights that medvar does "
                "not ship. Get the two published files, vgg16-397923af.pth (torchvision's VGG-16) and vgg.pth (the "
                "LPIPS authors', package lpips, folder weights/v0.1), and name both as they are: --lpips-weights "
                "vgg16-397923af.pth --lpips-weights vgg.pth; or train without the term with --no-lpips."
            )


def train_tokenizer(
    spec: TrainTokenizer,
    process: Process,
    report: Callable[[StepLog], None] = lambda log: None,
    stop: Callable[[], bool] = lambda: False,
    command: tuple[str, ...] = (),
    begun: Callable[[RunStart], None] = lambda start: None,
) -> TrainResult:
    """Train a tokenizer, or go on where the same call stopped.

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
        >>> from medvar_model.config import TOKENIZERS
        >>> spec = TrainTokenizer("runs/tok", DataSpec("shards"), TOKENIZERS["demo"],
        ...                       weights=TokenizerLossWeights(perceptual=0))
        >>> with processes.joined(os.environ) as process:        # doctest: +SKIP
        ...     train_tokenizer(spec, process, report=print)
    """
    made = ready(spec, spec.config.image_side, lambda loader: spec.config, process, command)
    with claimed(made, process):
        objective = TokenizerObjective(spec, process, made.init_from)
        groups = decay_groups(objective.network, spec.loop.weight_decay, spared=("codebook",))
        return train(objective, groups, made, process, Callbacks(report, stop, begun))


def check_tokenizer_training(spec: TrainTokenizer, process: Process) -> Ready:
    """Check what `train_tokenizer` checks before it begins; write nothing.

    Raises:
        ModelError, MedvarError: what stands in its way.
    """
    made = ready(spec, spec.config.image_side, lambda loader: spec.config, process, ())
    check_resumable(made)
    _perceptual(spec, torch.device("cpu"))
    return made


class TokenizerObjective(Objective):
    """The tokenizer's loss and the care for its codebook.

    Args:
        spec: what to train.
        process: this process.
        begin_with: weights to begin with; None for random ones.
    """

    network: Tokenizer

    def __init__(self, spec: TrainTokenizer, process: Process, begin_with: Contents | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(spec.loop.seed)
        self.network = Tokenizer(spec.config, generator)
        if begin_with is not None:
            load_weights(self.network, begin_with.weights, spec.init_from)
        self.network.to(process.device)
        self.perceptual = _perceptual(spec, process.device)
        self.counts_KV = torch.zeros(
            len(spec.config.scale_sides), spec.config.vocabulary, dtype=torch.int64, device=process.device
        )  # hits since the last revival, all processes together
        self.skips_parameters = spec.unquantized > 0 and not spec.init_from
        self._spec = spec
        self._quantizing = False

    def forward(self, examples: Examples, draw: Draw) -> dict[str, Tensor]:
        """Return `loss` and its terms."""
        weights, images = self._spec.weights, examples.images
        if self._quantizing:
            outcome = self.network(images)
            drawn, codes = outcome.images, outcome.vq_loss
            self.counts_KV += processes.total(outcome.counts)
        else:
            drawn = self.network.render(self.network.latents(images))
            codes = drawn.new_zeros((), dtype=torch.float32)
        pixels = pixel_loss(drawn, images, weights)
        losses = {"pixels": pixels, "codes": codes}
        loss = pixels + weights.codes * codes
        if self.perceptual is not None:
            with torch.autocast(images.device.type, enabled=False):
                losses["perceptual"] = self.perceptual(drawn.float(), images)
            loss = loss + weights.perceptual * losses["perceptual"]
        return {"loss": loss, **losses}

    def before_step(self, samples_seen: int, forget: Forget) -> None:
        """Make the codebook from data when the share without quantization is over."""
        start = self._spec.unquantized * self._spec.loop.samples
        self._quantizing = samples_seen >= start or bool(self._spec.init_from)
        if self._quantizing and not self._spec.init_from and samples_seen - self._spec.loop.batch_size < start:
            self._start_codebook(forget)

    def after_step(self, samples_seen: int, examples: Examples, forget: Forget) -> None:
        """Move dead codes, when it is time, to vectors of the present batch."""
        spec = self._spec
        every, until = spec.revive_every, spec.revive_until * spec.loop.samples
        due = every > 0 and samples_seen // every > (samples_seen - spec.loop.batch_size) // every
        if self._quantizing and due and samples_seen <= until:
            self._revive(samples_seen, examples, forget)

    def validate(self, batches: Iterator[Examples]) -> dict[str, float]:
        """Return mean loss, its terms, PSNR (dB, of the full range of grey), and the share of codes used."""
        config = self._spec.config
        names = ("pixels", "codes", "perceptual", "psnr")
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.counts_KV.device)
        counts_KV = torch.zeros_like(self.counts_KV)
        for examples in batches:
            images = examples.images
            outcome = self.network(images)
            drawn = outcome.images.float()
            counts_KV += count_codes(outcome.tokens, config.vocabulary)
            error_B = F.mse_loss(drawn.clamp(-1, 1), images, reduction="none").mean((1, 2, 3))
            psnr = (10 * torch.log10(4 / error_B.clamp(min=1e-10))).mean()
            perceptual = self.perceptual(drawn, images) if self.perceptual is not None else psnr.new_zeros(())
            pixels = pixel_loss(drawn, images, self._spec.weights)
            terms = torch.stack([pixels, outcome.vq_loss, perceptual, psnr])
            sums += torch.cat([terms, terms.new_ones(1)]).double() * len(examples)
        *totals, images_seen = processes.total(sums).tolist()
        means = {name: value / images_seen for name, value in zip(names, totals, strict=True)}
        if self.perceptual is None:
            del means["perceptual"]
        weights = self._spec.weights
        loss = means["pixels"] + weights.codes * means["codes"]
        loss += weights.perceptual * means.get("perceptual", 0)
        used = (processes.total(counts_KV).sum(0) > 0).double().mean().item()
        return {"loss": loss, **means, "codes_used": used}

    def memory(self) -> dict[str, Tensor]:
        """Return the hits since the last revival."""
        return {"counts": self.counts_KV}

    def numbers(self) -> dict[str, float]:
        """Return share of used codes and perplexity of each scale since the last revival."""
        if not self.counts_KV[0].any():
            return {}
        use = usage(self.counts_KV)
        shares = {f"usage/scale_{k + 1:02d}": value for k, value in enumerate(use.share)}
        return shares | {f"perplexity/scale_{k + 1:02d}": value for k, value in enumerate(use.perplexity)}

    def _start_codebook(self, forget: Forget) -> None:
        """Process the codes by k-means: every process from the same images; the first one's result holds."""
        spec, pyramid = self._spec, self.network.pyramid
        device = self.counts_KV.device
        generator = torch.Generator(device=device).manual_seed(spec.loop.seed)
        batch, side = spec.loop.micro_batch or spec.loop.batch_size, spec.config.image_side
        loader = Loader(spec.data, "train", side, batch, spec.loop.seed, Process(1, 0, device))
        with torch.no_grad():
            parts = loader.passes(batch, spec.codebook_images)
            maps = [self.network.latents(examples.images) for examples in parts]
            fit_codebook(pyramid, torch.cat(maps), generator)
        codes = pyramid.codebook.codes
        processes.copy_from_main(codes.data)
        forget(codes, torch.ones(len(codes), dtype=torch.bool, device=device))

    def _revive(self, samples_seen: int, examples: Examples, forget: Forget) -> None:
        pyramid = self.network.pyramid
        codes = pyramid.codebook.codes
        generator = torch.Generator(device=codes.device).manual_seed(self._spec.loop.seed + samples_seen)
        size = self._spec.loop.micro_batch or len(examples)
        with torch.no_grad():
            maps = processes.gathered(self.network.latents(examples.part(0, size).images))
            # A random scale's vectors serve better than those of all, of which most belong to the finest.
            wanted = pyramid.wanted(maps)
            scale = int(torch.randint(len(wanted), (1,), generator=generator, device=codes.device))
            revival = revive(
                codes,
                self.counts_KV.sum(0).float(),
                wanted[scale].flatten(0, 1),
                generator,
                self._spec.dead_below,
            )
            codes.copy_(revival.codes)
        processes.copy_from_main(codes.data)
        forget(codes, revival.dead)
        self.counts_KV.zero_()


def _perceptual(spec: TrainTokenizer, device: torch.device) -> PerceptualDistance | None:
    if spec.weights.perceptual == 0:
        return None
    return load_perceptual_distance([Path(name) for name in spec.lpips_files]).to(device)
