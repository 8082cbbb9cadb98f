"""Check all that can be known of a training before it begins, then claim its folder.

In: a training spec and this process. Out: a `Ready`, or a sentence. Nothing is written until the folder is claimed, so a dry
run makes the same checks as the run itself.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvar_model.checkpoints.checkpoint import Contents, find_last, kind_of, read_checkpoint, read_run
from medvar_model.config import TokenizerConfig, TransformerConfig, to_dict
from medvar_model.errors import ConfigMismatch
from medvar_model.loader import Loader
from medvar_model.machine.folders import check_free, held
from medvar_model.machine.memory import check_memory, least_training_bytes, told_when_memory_ends
from medvar_model.machine.processes import Process
from medvar_model.tokens.cache import TokenCache
from medvar_model.tokens.read import TokenLoader
from medvar_model.training.log import check_wandb
from medvar_model.training.perceptual import perceptual_source
from medvar_model.training.reports import Job
from medvar_model.training.run_folder import check_folder, check_same_run, describe_run
from medvar_model.training.settings import LoopSettings


@dataclass(frozen=True, eq=False)
class Ready:
    """A training that may begin.

    Attributes:
        job: where to and what of.
        loop: how long and how fast.
        loader: of the training split.
        validation: of the val split; None never validates.
        init_from: what a fresh run begins with; None for random weights, and where the run goes on.
    """

    job: Job
    loop: LoopSettings
    loader: Loader
    validation: Loader | None
    init_from: Contents | None


def ready(
    spec: Any,
    image_side: int,
    config_of: Callable[[Loader], TokenizerConfig | TransformerConfig],
    process: Process,
    command: tuple[str, ...],
    tokenizer: Contents | None = None,
    *,
    tokens: TokenCache | None = None,
) -> Ready:
    """Open the data and look at the folder; see `Ready`.

    Args:
        spec: a `TrainTokenizer` or `TrainTransformer`.
        image_side: pixels a side that the network takes.
        config_of: gives the network's configuration for the data.
        process: this process.
        command: the command line as typed; empty from Python.
        tokenizer: the frozen one; a transformer's only.
        tokens: what is read in the place of images.
    """
    out, loop = Path(spec.out), spec.loop
    check_folder(out, spec.data.shards)
    if loop.wandb:
        check_wandb()
    if loop.parallel == "fsdp" and tokenizer is None:
        raise ConfigMismatch(
            "--parallel fsdp splits a transformer's weights; a tokenizer's fit on every device. Leave the option out, which trains it by ddp."
        )

    def opened(split: str) -> Loader:
        if tokens is not None:
            return TokenLoader(spec.data, split, tokens, loop.batch_size, loop.seed, process)
        return Loader(spec.data, split, image_side, loop.batch_size, loop.seed, process)

    loader = opened("train")
    validation = opened("val") if loop.validate_every else None
    config = config_of(loader)
    run = describe_run(spec, loader, process, command)
    if tokenizer is not None:
        run["tokenizer"] = {"path": spec.tokenizer, "digest": tokenizer.digest}
    if source := perceptual_source(getattr(spec, "perceptual_kind", "none"), getattr(spec, "lpips_files", ())):
        run["perceptual"] = asdict(source)
    last, init_from = find_last(out), None
    if last is not None:
        run |= {name: value for name, value in read_run(last).items() if name == "init_from"}
    elif spec.init_from:
        init_from = read_checkpoint(Path(spec.init_from), kind_of(config))
        _check_beginning(spec, init_from, config, tokenizer)
        run["init_from"] = {"path": spec.init_from, "digest": init_from.digest}
    job = Job(out, config, run, loader.conditions if tokenizer is not None else {})
    images = loop.micro_batch or loop.batch_size // process.world
    each = least_training_bytes(config, 4 if loop.compute_type(process.device) is None else 2)
    check_memory(images * each, process.device, f"A pass of {images:,} images", _smaller(loop))
    return Ready(job, loop, loader, validation, init_from)


def check_resumable(made: Ready) -> None:
    """Compare a training with the run that its folder may hold, without claiming it."""
    check_free(made.job.out)
    check_same_run(made.job)


@contextlib.contextmanager
def claimed(made: Ready, process: Process) -> Iterator[None]:
    """Hold a run's folder for the length of a `with` block; running out of memory becomes a sentence.

    Raises:
        FolderInUse: another process trains in it.
        ModelError: the folder holds another run, or memory does not suffice.
    """
    loop = made.loop
    images = loop.micro_batch or loop.batch_size // process.world
    with contextlib.ExitStack() as stack:
        if process.is_main:
            stack.enter_context(held(made.job.out))
        check_same_run(made.job)
        stack.enter_context(
            told_when_memory_ends(f"A pass of {images:,} images on {process.device.type}", _smaller(loop))
        )
        yield


def _smaller(loop: LoopSettings) -> str:
    now = loop.micro_batch or "all at once"
    return (
        f"Give a smaller --micro-batch (now {now}), which changes memory and speed but not the training; or a smaller "
        f"--batch-size (now {loop.batch_size:,})."
    )


def _check_beginning(
    spec: Any, kept: Contents, config: TokenizerConfig | TransformerConfig, tokenizer: Contents | None
) -> None:
    """Refuse weights of another network, or those that learnt another tokenizer's tokens."""
    ours, theirs = to_dict(config), to_dict(kept.config)
    names = [name for name in ours if name != "n_conditions" and ours[name] != theirs[name]]
    if names:
        option = "--preset" if tokenizer is None else "--size, --tokenizer and --no-prefix-token"
        differ = "; ".join(f"{name} is {theirs[name]} there, {ours[name]} here" for name in names)
        raise ConfigMismatch(
            f"--init-from {spec.init_from} holds another network: {differ}. Choose {option} as that run did."
        )
    if (
        tokenizer is not None
        and (wanted := kept.run.get("tokenizer", {}).get("digest", tokenizer.digest)) != tokenizer.digest
    ):
        raise ConfigMismatch(
            f"--init-from {spec.init_from} learnt the tokens of a tokenizer of digest {wanted[:12]}; {spec.tokenizer} has "
            f"{tokenizer.digest[:12]}, whose tokens mean other things. Pass --tokenizer with the copy in that run's folder."
        )


def matched_rows(kept: Contents, conditions: dict[str, int], fresh: dict[str, Any]) -> dict[str, Any]:
    """Return a transformer's kept weights with the rows of its conditions where this run has them.

    Args:
        kept: what the run begins with.
        conditions: this run's, name → row.
        fresh: this run's random weights, which conditions unknown to `kept` keep.
    """
    name = "condition_embedding.weight"
    table, rows = fresh[name].detach().clone(), kept.weights[name]
    table[-1] = rows[-1]  # "no condition"
    for condition, row in conditions.items():
        if condition in kept.conditions:
            table[row] = rows[kept.conditions[condition]]
    return {**kept.weights, name: table}
