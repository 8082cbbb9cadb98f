"""Train the tokenizer: pixels, perception and codes, with a codebook that starts from data and loses no code.

In: a `TrainTokenizer`. Out: a run's folder with `last` and `best`.

A share of the run first trains encoder and decoder without quantization. Then k-means over what all scales
have to code
places the codes, and from time to time codes that are hardly used move to where codes are needed: without the
two, few codes are ever used on the coarse scales (the best known trouble of multi-scale tokenizers).
"""

from collections.abc import Callable

from medvar_model.machine.processes import Process
from medvar_model.training.adversary import WEIGHT_DECAY
from medvar_model.training.checks import Ready, check_resumable, claimed, ready
from medvar_model.training.loop import train
from medvar_model.training.objective import decay_groups
from medvar_model.training.perceptual import load_perceptual
from medvar_model.training.reports import Callbacks, RunStart, StepLog, TrainResult
from medvar_model.training.tokenizer_objective import TokenizerObjective
from medvar_model.training.tokenizer_settings import ADVERSARIES, LOOP, LOOPS, WEIGHTS, TrainTokenizer

__all__ = [
    "ADVERSARIES", "LOOP", "LOOPS", "WEIGHTS", "TokenizerObjective", "TrainTokenizer", "check_tokenizer_training", "train_tokenizer",
]  # fmt: skip


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
        if objective.critic is not None:
            groups += decay_groups(objective.critic, WEIGHT_DECAY, spared=())
        return train(objective, groups, made, process, Callbacks(report, stop, begun))


def check_tokenizer_training(spec: TrainTokenizer, process: Process) -> Ready:
    """Check what `train_tokenizer` checks before it begins; write nothing.

    Raises:
        ModelError, MedvarError: what stands in its way.
    """
    made = ready(spec, spec.config.image_side, lambda loader: spec.config, process, ())
    check_resumable(made)
    load_perceptual(spec.perceptual_kind, spec.lpips_files)
    return made
