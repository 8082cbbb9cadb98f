"""The commands `evaluate` and `demo` of `medvar-model`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import console, print_json, print_table
from medvar_cli.model_feedback import show_spec
from medvar_cli.model_options import (
    CACHE_GB,
    CacheOption,
    CacheSizeOption,
    DeviceOption,
    OutputOptions,
    RunArgument,
    SamplingOptions,
    ShardsArgument,
    TokenizerOption,
    cache_bytes,
)
from medvar_cli.option_groups import JsonOption, takes_options
from medvar_model.demo import ModelDemo, run_model_demo
from medvar_model.evaluation.evaluate import Evaluate, Evaluation, check_evaluation, evaluate
from medvar_model.loader import DataSpec
from medvar_model.machine import processes


def register(app: typer.Typer) -> None:
    """Add both commands to `medvar-model`."""
    app.command("evaluate")(evaluate_command)
    app.command("demo")(demo_command)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is compared with what, and how much of it."""

    samples: Annotated[str, typer.Option(help="Folder that `medvar-model sample` wrote; left out, new ones.")] = ""
    tokenizer: TokenizerOption = ""
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each condition.", min=1)] = 32
    sampling: SamplingOptions
    held_out: Annotated[int, typer.Option(help="Most slices of each held-out split; 0 takes all.", min=0)] = 2048
    training: Annotated[int, typer.Option(help="Most training slices searched for copies; 0: all.", min=0)] = 0
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 64
    cache: CacheOption = ""
    cache_gb: CacheSizeOption = CACHE_GB

    def spec(self, shards: str, run: str, out: Path) -> Evaluate:
        """Make the library's value.

        Raises:
            MedvarError: an option is not understood.
        """
        return Evaluate(
            out=str(out),
            data=DataSpec(shards, cache=self.cache, cache_bytes=cache_bytes(self.cache_gb)),
            run=run,
            tokenizer=self.tokenizer,
            samples=self.samples,
            count=self.count,
            settings=self.sampling.settings(),
            batch_size=self.batch_size,
            held_out=self.held_out,
            training=self.training,
        )


@takes_options
def evaluate_command(
    shards: ShardsArgument,
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for report, rows and pictures.")],
    *,
    scoring: EvaluateOptions,
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Evaluate a run: reconstructions, codes, predictions, samples, copies, conditions.

    Evaluate with the preset the run is to be used with: paper for well trained
    networks, demo for small or briefly trained ones. Some metrics need 30 or
    130 images of a set, so small counts leave them out.

    Example: medvar-model evaluate S runs/d4 -o report -n 8

    Python:

    \b
    from medvar_model.machine.processes import Process
    from medvar_model.evaluation.evaluate import Evaluate, evaluate
    from medvar_model.loader import DataSpec
    spec = Evaluate("report", DataSpec("S"), "runs/d4", count=8)
    result = evaluate(spec, Process.alone().device)
    """
    spec = scoring.spec(shards, run, out)
    if output.dry_run:
        check_evaluation(spec, processes.device_of(device))
        return show_spec(spec, output.as_json)
    with processes.joined({}, device) as process:
        result = evaluate(spec, process.device, lambda line: None if output.as_json else print(line, flush=True))
    if output.as_json:
        return print_json(result.report)
    _show(result)
    return console.print(f"\nReport: {result.page}", markup=False)


def demo_command(
    folder: Annotated[Path, typer.Argument(help="Folder in which `medvar-data demo` left its shards.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """Train a small tokenizer and transformer on the demo's shards, draw from them, and evaluate what comes out.

    Example: medvar-data demo demo && medvar-model demo demo

    Python:

    \b
    from pathlib import Path
    from medvar_model.demo import ModelDemo, run_model_demo
    result = run_model_demo(ModelDemo(Path("demo")), print)
    """
    result = run_model_demo(ModelDemo(folder), lambda line: None if as_json else print(line, flush=True))
    if as_json:
        return print_json({"report": result.evaluation.report, "seconds": result.seconds, "page": str(result.page)})
    _show(result.evaluation)
    return console.print(f"\nReport: {result.page}", markup=False)


def _show(result: Evaluation) -> None:
    report = result.report
    drawn, right, closer = report["reconstructions"], report["conditions"]["right"], report["copies"]["closer"]
    rows = [
        ("PSNR of held-out slices", f"{drawn['psnr']:.1f} dB"),
        ("SSIM of held-out slices", f"{drawn['ssim']:.3f}"),
        ("codes used", f"{100 * report['scales']['overall']['share']:.1f} %"),
        ("samples that show their condition", _percent(right)),
        ("samples closer to training than 1 % of held-out slices", _percent(closer)),
    ]  # fmt: skip
    print_table("\nEvaluation", ("what", "result"), rows)
    for note in report["notes"]:
        console.print(f"Note: {note}", markup=False)


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['share']:.1f} % of {share['n']}" if share["n"] else "none to score"
