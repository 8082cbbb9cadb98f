"""The command of `medvar-data` that shows what a training will be given: `plan`."""

from typing import Annotated

import typer

from medvar_cli.console import console, print_json
from medvar_cli.data_options import ShardsArgument
from medvar_cli.option_groups import JsonOption, takes_options
from medvar_cli.stream_options import MixOptions
from medvar_data.stream import StreamSpec, plan_world


def register(app: typer.Typer) -> None:
    """Add the command to `medvar-data`."""
    app.command("plan")(takes_options(plan_command))


def plan_command(
    shards: ShardsArgument,
    mixing: MixOptions,
    world: Annotated[int, typer.Option(help="Processes that share each batch.", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="Batches to show.", min=1)] = 10,
    start_step: Annotated[int, typer.Option(help="Of the first one shown.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Slices of a batch, all processes together.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Of the order.", min=0)] = 0,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    as_json: JsonOption = False,
) -> None:
    """Print the keys that each process will be given at each step: a line for every step and rank. No shard is opened.

    Example: medvar-data plan shards --world 8 --steps 100

    Python:

    \b
    from medvar_data.stream import StreamSpec, plan_world
    rows = list(plan_world(StreamSpec("shards", world=8), steps=100))
    """
    spec = StreamSpec(
        shards, split, batch_size, seed, world, 0, mixing.where, mixing.mixture(), mixing.mix_by, mixing.temperature,
        mixing.window_shards,
    )  # fmt: skip
    rows = plan_world(spec, steps, start_step)
    if as_json:
        return print_json([{"step": step, "rank": rank, "keys": keys} for step, rank, keys in rows])
    for step, rank, keys in rows:
        console.print(step, rank, *keys, markup=False, highlight=False, soft_wrap=True)
    return None
