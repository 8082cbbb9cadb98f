"""The command `import-var` of `medvar-model`: VAR's official files as checkpoints."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import console, print_json
from medvar_cli.option_groups import JsonOption
from medvar_model.checkpoints.import_files import ImportVar, import_var
from medvar_model.errors import ConfigMismatch


def register(app: typer.Typer) -> None:
    """Add the command to `medvar-model`."""
    app.command("import-var")(import_var_command)


def import_var_command(
    file: Annotated[Path, typer.Argument(help="vae_ch160v4096z32.pth, var_d16.pth … or VAR's training checkpoint.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the checkpoint.")],
    image_channels: Annotated[int, typer.Option(help="1 folds colours, exactly for grey images; 3 keeps them.")] = 1,
    scale_sides: Annotated[
        str, typer.Option(help="Sides of the token maps, as 1,2,3,4; left out, VAR's own that fit the file.")
    ] = "",
    check: Annotated[bool, typer.Option("--check", help="Compare the fold with the colours on a grey image.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a weight file of VAR's authors into a checkpoint; weights only, no code of the file is run.

    Example: medvar-model import-var vae_ch160v4096z32.pth -o runs/var-tokenizer

    Python:

    \b
    from medvar_model.checkpoints.import_files import ImportVar, import_var
    spec = ImportVar("vae_ch160v4096z32.pth", "runs/var-tokenizer")
    imported = import_var(spec)
    """
    written = import_var(ImportVar(str(file), str(out), image_channels, _sides(scale_sides), check))
    if as_json:
        return print_json([asdict(one) for one in written])
    for one in written:
        console.print(f"{one.kind}: {one.parameters:,} parameters in {one.folder}", markup=False)
        if one.difference is not None:
            console.print(f"  largest difference between fold and colours: {one.difference:.1e}", markup=False)
        for note in one.notes:
            console.print(f"  {note}", markup=False)
    return None


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigMismatch(f"--scale-sides is {text!r}; wanted whole numbers with commas, such as 1,2,3,4.") from None
