"""The command `codebook` of `medvar-model`: how a tokenizer uses its codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import console, print_json, print_table
from medvar_cli.model_feedback import show_spec
from medvar_cli.model_options import (
    CacheOptions,
    DeviceOption,
    OutputOptions,
    ShardsArgument,
)
from medvar_cli.option_groups import takes_options
from medvar_model.evaluation.codebook_report import CodebookReport, open_tokenizers, report_codebook, summary_rows
from medvar_model.machine import processes
from medvar_model.training.perceptual import KINDS

COLUMNS = (
    "tokenizer", "collection", "unseen", "slices", "codes used", "of uniform use", "perplexity", "PSNR dB", "SSIM", "perceptual",
    "latent energy left",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to `medvar-model`."""
    app.command("codebook")(codebook_command)


@dataclass(frozen=True, kw_only=True)
class CodebookOptions:
    """Which tokenizers and slices are looked at."""

    imported: Annotated[
        str, typer.Option(help="Another tokenizer to compare with: a run, or VAR's vae_ch160v4096z32.pth.")
    ] = ""
    slices: Annotated[int, typer.Option(help="Most slices of each collection and split; 0: all.", min=0)] = 512
    perceptual: Annotated[str, typer.Option(help=f"Perceptual distance: {', '.join(KINDS)}.")] = "none"
    lpips_weights: Annotated[list[Path] | None, typer.Option(help="Weight files of lpips; give it twice.")] = None
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 32
    caching: CacheOptions

    def spec(self, shards: str, run: str, out: Path) -> CodebookReport:
        """Make the library's value.

        Raises:
            MedvarError: an option is not understood.
        """
        files = tuple(map(str, self.lpips_weights or ()))
        return CodebookReport(
            str(out),
            self.caching.data(shards),
            run,
            self.imported,
            self.slices,
            self.perceptual,
            files,
            self.batch_size,
        )


@takes_options
def codebook_command(
    shards: ShardsArgument,
    run: Annotated[str, typer.Argument(help="A tokenizer's run or checkpoint.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for codebook.json and pictures.")],
    *,
    looking: CodebookOptions,
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Show how a tokenizer uses its codes, beside the same one untrained and another.

    Heat maps of all codes by scale and condition, use with each scale's own
    threshold (8 % of the hits that its tokens give under uniform use),
    perplexity, energy left, PSNR and SSIM from ever more scales; a row for
    each collection, of unseen patients or unseen as a whole.

    Example: medvar-model codebook S runs/tok -o codes

    Python:

    \b
    from medvar_model.evaluation.codebook_report import CodebookReport
    from medvar_model.evaluation.codebook_report import report_codebook
    from medvar_model.machine.processes import Process
    from medvar_model.loader import DataSpec
    spec = CodebookReport("codes", DataSpec("S"), "runs/tok")
    report = report_codebook(spec, Process.alone().device)
    """
    spec = looking.spec(shards, run, out)
    if output.dry_run:
        open_tokenizers(spec)
        return show_spec(spec, output.as_json)
    with processes.joined({}, device) as process:
        report = report_codebook(spec, process.device, lambda line: None if output.as_json else print(line, flush=True))
    if output.as_json:
        return print_json(report)
    print_table("\nCodes", COLUMNS, summary_rows(report))
    return console.print(f"\nPictures and codebook.json: {out}", markup=False)
