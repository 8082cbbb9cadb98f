"""The commands of `medvar-model` for trained models as a whole: `export` and `zoo`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import console, print_json, print_table
from medvar_cli.model_options import SamplingOptions
from medvar_cli.option_groups import JsonOption, takes_options
from medvar_model.export.export import ExportSpec, export
from medvar_model.export.zoo import ZooRow, zoo


def register(app: typer.Typer) -> None:
    """Add both commands to `medvar-model`."""
    app.command("export")(export_command)
    app.command("zoo")(zoo_command)


@takes_options
def export_command(
    run: Annotated[str, typer.Argument(help="A run or checkpoint, of a transformer or a tokenizer.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    *,
    shards: Annotated[str, typer.Option(help="Shard set of the training, for the card's table of licences.")] = "",
    name: Annotated[str, typer.Option(help="Of the model; left out, the folder's.")] = "",
    license_name: Annotated[
        str, typer.Option("--license", help="Licence that you give the weights, as the hub spells it.")
    ] = "other",
    sampling: SamplingOptions,
    as_json: JsonOption = False,
) -> None:
    """Write a trained model as one folder with its card, in the form of a Hugging Face model repository.

    Weights as safetensors, configuration, tokenizer, settings for sampling, a
    card made from the checkpoint; no path and no command line of yours. Every
    command that takes a run takes the folder.

    Example: medvar-model export runs/d4 -o medvar-d4 --shards S --preset demo

    Python:

    \b
    from medvar_model.export.export import ExportSpec, export
    from medvar_model.sampling.sample import SAMPLINGS
    settings = SAMPLINGS["demo"]
    export(ExportSpec("runs/d4", "medvar-d4", settings, shards="S"))
    """
    spec = ExportSpec(run, str(out), sampling.settings(), shards, name, license_name)
    folder = export(spec)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if as_json:
        return print_json({"folder": str(folder), "files": files})
    return console.print(f"{folder}: {', '.join(files)}; read back and found equal.", markup=False)


def zoo_command(
    runs: Annotated[list[str], typer.Argument(help="Runs or checkpoints.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare trained models: size, parameters, images seen, validation loss, digest.

    Example: medvar-model zoo runs/tok runs/d4 --json

    Python:

    \b
    from medvar_model.export.zoo import zoo
    rows = zoo(["runs/tok", "runs/d4"])
    """
    rows = zoo(runs)
    if as_json:
        return print_json([asdict(row) for row in rows])
    columns = [
        "model",
        "kind",
        "size",
        "parameters",
        "codes",
        "conditions",
        "images seen",
        "finished",
        "validation loss",
        "digest",
    ]
    cells = [_cells(row) for row in rows]
    if not markdown:
        return print_table("", columns, cells)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for line in cells:
        print("| " + " | ".join(str(cell) for cell in line) + " |")
    return None


def _cells(row: ZooRow) -> tuple[object, ...]:
    loss = "–" if row.validation is None else f"{row.validation:.4f}"
    counts = (f"{row.parameters:,}", row.codes, row.conditions, f"{row.samples:,}")
    return (row.path, row.kind, row.size, *counts, f"{row.finished:.0%}", loss, row.digest[:12])
