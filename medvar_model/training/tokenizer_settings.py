"""Say everything that decides a tokenizer's training, with the values of each preset.

In: numbers and paths. Out: a frozen `TrainTokenizer`, refused where its parts do not fit together.
"""

from dataclasses import dataclass, replace

from medvar_model.config import TokenizerConfig
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.loader import DataSpec
from medvar_model.training.adversary import ALONE, SHARP, AdversarySettings
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.perceptual import ST_FILES, check_files, check_kind
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
    "sharp": replace(LOOP, batch_size=768, samples=100_000_000, average=0.9999),
}  # one a tokenizer preset; the paper's own length and batch are unpublished
ADVERSARIES: dict[str, AdversarySettings] = {"sharp": SHARP}  # of presets that have one
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
        perceptual: which perceptual loss, one of `perceptual.KINDS`; the weight 0 in `weights` means none, too.
        lpips_files: weight files of LPIPS, where that is the perceptual loss.
        adversary: a critic that takes part; its weight 0 means none.
        unquantized: share of the samples before the codebook is made from data.
        codebook_images: images from which it is made; 0 keeps the random codes.
        revive_every: samples between two revivals of dead codes; 0 never revives.
        revive_until: share of the samples after which no code is moved any more, so that all can settle.
        dead_below: a code is dead when it was used less than this fraction of uniform use, every scale weighing alike.
        rotate: let gradients pass the codes by rotation (`pyramid.rotated`) instead of unchanged.
        scale_dropout: chance that an image is drawn from a part of its scales: the first three, or a random number above.
        init_from: tokenizer's checkpoint or run whose weights, codes too, the training begins with; there is then no
            share without quantization. Empty: random weights.
    """

    out: str
    data: DataSpec
    config: TokenizerConfig
    loop: LoopSettings = LOOP
    weights: TokenizerLossWeights = WEIGHTS
    perceptual: str = "lpips"
    lpips_files: tuple[str, ...] = ()
    adversary: AdversarySettings = ALONE
    unquantized: float = 0.02
    codebook_images: int = 1_024
    revive_every: int = 10_000
    revive_until: float = 0.8
    dead_below: float = 0.1
    rotate: bool = False
    scale_dropout: float = 0.0
    init_from: str = ""

    def __post_init__(self) -> None:
        if not (
            0 <= self.unquantized < 1
            and 0 <= self.revive_until <= 1
            and self.dead_below >= 0
            and 0 <= self.scale_dropout < 1
        ):
            raise ConfigMismatch(
                f"unquantized {self.unquantized}, revive_until {self.revive_until}, dead_below {self.dead_below} and "
                f"scale_dropout {self.scale_dropout} are fractions; wanted them from 0 to 1."
            )
        check_kind(self.perceptual)
        if self.perceptual_kind == "lpips" and not self.lpips_files:
            raise MissingCheckpoint(
                "The tokenizer's loss has a perceptual term (LPIPS), which needs weights that medvar does "
                "not ship. Get the two published files, vgg16-397923af.pth (torchvision's VGG-16) and vgg.pth (the "
                "LPIPS authors', package lpips, folder weights/v0.1), and name both as they are: --lpips-weights "
                "vgg16-397923af.pth --lpips-weights vgg.pth; or take the shift-tolerant variant, whose weights a package brings "
                f"(pip install 'medvar[perceptual]'), with --perceptual {next(iter(ST_FILES))}; or train without the term with "
                "--no-lpips."
            )
        check_files(self.perceptual_kind, self.lpips_files)

    @property
    def perceptual_kind(self) -> str:
        """The perceptual loss that is meant; none where its weight is 0."""
        return self.perceptual if self.weights.perceptual > 0 else "none"
