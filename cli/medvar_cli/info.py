"""The command `info` of `medvar-model`, and what the help of other commands says of named sizes."""

from typing import Annotated, Any

import typer

from medvar_cli.console import console, print_json, print_table
from medvar_cli.option_groups import JsonOption
from medvar_model import config
from medvar_model.errors import ConfigMismatch
from medvar_model.machine.memory import least_training_bytes
from medvar_model.training.tokenizer import LOOPS as TOKENIZER_LOOPS
from medvar_model.training.transformer import LOOPS as TRANSFORMER_LOOPS

PUBLISHED_CONDITIONS = 1000  # the published parameter counts (310M, 600M, …) are with ImageNet's classes
PAPER = config.TOKENIZERS["paper"]


def register(app: typer.Typer) -> None:
    """Add the command to `medvar-model`."""
    app.command("info")(info_command)


def preset(presets: dict[str, Any], name: str, what: str) -> Any:
    """Look a named size up.

    Raises:
        ConfigMismatch: there is none; the message names those there are.
    """
    if name not in presets:
        known = presets if what != "preset" else [*config.TRANSFORMERS, *config.TOKENIZERS]
        raise ConfigMismatch(f"There is no {what} {name!r}; choose one of {', '.join(known)}.")
    return presets[name]


def tokenizers_help() -> str:
    """Say which tokenizer presets there are: side of the images, parameters."""
    sizes = (
        f"{name} ({size.image_side} px, {_short(config.tokenizer_parameters(size))})" for name, size in _tokenizers()
    )
    return f"Size: {', '.join(sizes)}."


def transformers_help() -> str:
    """Say which transformer sizes there are, with the parameters beside the paper's tokenizer."""
    sizes = (f"{name} ({_short(count)})" for name, count in _transformers(PUBLISHED_CONDITIONS))
    return f"Size: {', '.join(sizes)}."


def info_command(
    preset_name: Annotated[
        str, typer.Argument(metavar="[PRESET]", help="Transformer size or tokenizer preset; left out, all are listed.")
    ] = "",
    tokenizer: Annotated[str, typer.Option(help="Tokenizer preset that goes with a transformer size.")] = "paper",
    size: Annotated[str, typer.Option(help="Transformer size that goes with a tokenizer preset.")] = "d16",
    conditions: Annotated[int, typer.Option(help="Conditions told apart.", min=1)] = PUBLISHED_CONDITIONS,
    as_json: JsonOption = False,
) -> None:
    """Tell what the named sizes are made of, how many parameters they have, and how long they train.

    Example: medvar-model info d16 --json

    Python:

    \b
    from medvar_model.config import TOKENIZERS
    from medvar_model.config import transformer_config, transformer_parameters
    config = transformer_config("d16", TOKENIZERS["paper"], 1000)
    count = transformer_parameters(config)
    """
    if not preset_name:
        return _list_all(conditions, as_json)
    if preset_name in config.TOKENIZERS:
        tokenizer = preset_name
    else:
        size = preset_name
    frozen = preset(config.TOKENIZERS, tokenizer, "tokenizer preset")
    preset(config.TRANSFORMERS, size, "preset" if size == preset_name else "transformer size")
    network = config.transformer_config(size, frozen, conditions)
    numbers = {
        "transformer_parameters": config.transformer_parameters(network),
        "tokenizer_parameters": config.tokenizer_parameters(frozen),
        "tokens": network.n_tokens,
    }
    if as_json:
        return print_json(numbers | {"transformer": config.to_dict(network), "tokenizer": config.to_dict(frozen)})
    console.print(f"transformer {size} for {conditions} conditions: {numbers['transformer_parameters']:,} parameters")
    console.print(f"tokenizer {tokenizer}, {frozen.image_side} pixels: {numbers['tokenizer_parameters']:,} parameters")
    return console.print(f"{network.n_tokens} tokens an image, scales {', '.join(map(str, network.scale_sides))}")


def _list_all(conditions: int, as_json: bool) -> None:
    """Show every preset with its size and what training it means."""
    tokenizers = [
        {
            "name": name, "image_side": size.image_side, "parameters": config.tokenizer_parameters(size),
            "tokens": size.n_tokens, "codes": size.vocabulary, "samples": TOKENIZER_LOOPS[name].samples,
            "batch_size": TOKENIZER_LOOPS[name].batch_size, "least_mb_an_image": _mb(size),
        }
        for name, size in _tokenizers()
    ]  # fmt: skip
    transformers = [
        {
            "name": name, "depth": config.TRANSFORMERS[name].depth, "parameters": count,
            "samples": TRANSFORMER_LOOPS[name].samples, "batch_size": TRANSFORMER_LOOPS[name].batch_size,
            "least_mb_an_image": _mb(config.transformer_config(name, PAPER, conditions)),
        }
        for name, count in _transformers(conditions)
    ]  # fmt: skip
    if as_json:
        return print_json({"tokenizers": tokenizers, "transformers": transformers})
    columns = ["preset", "pixels a side", "parameters", "tokens", "codes", "images by default", "batch", "MB an image"]
    print_table("Tokenizers (train tokenizer --preset)", columns, [tuple(row.values()) for row in tokenizers])
    columns = ["size", "blocks", "parameters", "images by default", "batch", "MB an image"]
    title = f"\nTransformers (train transformer --size), on the tokenizer paper, {conditions} conditions"
    print_table(title, columns, [tuple(row.values()) for row in transformers])
    return console.print(
        "\nMB an image: the least that training in float32 keeps for each image of a pass; --micro-batch says how many there are."
    )


def _tokenizers() -> list[tuple[str, config.TokenizerConfig]]:
    return list(config.TOKENIZERS.items())


def _transformers(conditions: int) -> list[tuple[str, int]]:
    return [
        (name, config.transformer_parameters(config.transformer_config(name, PAPER, conditions)))
        for name in config.TRANSFORMERS
    ]


def _mb(size: config.TokenizerConfig | config.TransformerConfig) -> int:
    return -(-least_training_bytes(size, 4) // 10**6)


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
