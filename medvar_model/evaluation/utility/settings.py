"""Say what a measurement of utility is made of: data, synthetic images, arms, trainings."""

from dataclasses import dataclass

from medvar_model.errors import ConfigMismatch
from medvar_model.loader import DataSpec
from medvar_model.sampling.settings import PAPER, SampleSettings

TASKS = ("condition", "anatomy")


@dataclass(frozen=True)
class Utility:
    """What to measure.

    Args:
        out: folder for results and samples.
        data: the shard set: training slices are the real images, val and test slices the test.
        run: a transformer's run or checkpoint, of which images are drawn; empty with `images`.
        images: folder of synthetic images, as `images.ScoreImages` takes them, or one that `medvar-model sample` wrote; empty with `run`.
        count: images drawn of each condition.
        settings: of the drawing.
        shares: of the training patients that `real` and `both` are trained on, each in (0, 1].
        seeds: trainings of each arm; a seed decides weights, draws, and which patients a share takes.
        steps: of each training.
        batch_size: images of a step.
        task: what is named: condition, or anatomy (anatomy and modality, such as `heart mr`).
        slices: at most so many training slices of each condition, as good as chosen at random.
        held_out: at most so many slices of each held-out split, evenly spread; 0 takes all.
        replicates: draws of the bootstrap behind the intervals; 0 gives none.

    Raises:
        ConfigMismatch: neither or both of run and images are named, or a number is outside its range.
    """

    out: str
    data: DataSpec
    run: str = ""
    images: str = ""
    count: int = 256
    settings: SampleSettings = PAPER
    shares: tuple[float, ...] = (0.1, 1.0)
    seeds: int = 5
    steps: int = 500
    batch_size: int = 64
    task: str = "condition"
    slices: int = 2000
    held_out: int = 2048
    replicates: int = 400

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.images):
            raise ConfigMismatch("Wanted either a run to draw from or --images with a folder. Give one of them.")
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            found = ", ".join(map(str, self.shares)) or "empty"
            raise ConfigMismatch(f"--share is {found}; wanted shares of the patients above 0, up to 1.")
        if self.task not in TASKS:
            raise ConfigMismatch(f"There is no --task {self.task!r}; choose one of {', '.join(TASKS)}.")
        counts = {"--count": self.count, "--seeds": self.seeds, "--steps": self.steps, "--slices": self.slices}
        for option, value in (counts | {"--batch-size": self.batch_size}).items():
            if value < 1:
                raise ConfigMismatch(f"{option} is {value}; wanted at least 1.")
        for option, value in {"--held-out": self.held_out, "--intervals": self.replicates}.items():
            if value < 0:
                raise ConfigMismatch(f"{option} is {value}; wanted 0 or more.")
