"""The commands `evaluate` and `demo` of `medvar-model`."""

from pathlib import Path
from typing import Annotated

import typer

from medvar_cli import options as options
from medvar_cli.console import console, print_json, print_table
from medvar_model.demo import ModelDemo, run_model_demo
from medvar_model.evaluation.evaluate import Evaluate, Evaluation, check_evaluation, evaluate
from medvar_model.machine import processes


def register(app: typer.Typer) -> None:
    """Add both commands to `medvar-model`."""
    app.command("evaluate")(evaluate_command)
    app.command("demo")(demo_command)


def evaluate_command(
    shards: options.ShardsArgument,
    run: Annotated[str, typer.Argument(help="A transformer's run or checkpoint.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for report, rows and pictures.")],
    samples: Annotated[str, typer.Option(help="Folder that `medvar-model sample` wrote; left out, new ones.")] = "",
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's run; left out, the copy in the run.")] = "",
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each condition.", min=1)] = 32,
    preset: options.SamplingOption = "paper",
    guidance: options.GuidanceOption = None,
    top_k: options.TopKOption = None,
    top_p: options.TopPOption = None,
    seed: options.DrawSeedOption = None,
    held_out: Annotated[int, typer.Option(help="Most slices of each held-out split; 0 takes all.", min=0)] = 2048,
    training: Annotated[int, typer.Option(help="Most training slices searched for copies; 0: all.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 64,
    cache: options.CacheOption = "",
    cache_gb: options.CacheSizeOption = 20.0,
    device: options.DeviceOption = "auto",
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Judge a run: reconstructions, codes, predictions, samples, copies, conditions.

    Judge with the preset the run is to be used with: paper for well trained
    networks, demo for small or briefly trained ones. Some metrics need 30 or
    130 images of a set, so small counts leave them out.

    Example: medvar-model evaluate S runs/d4 -o report

    Python:

    \b
    from medvar_model.machine.processes import Process
    from medvar_model.evaluation.evaluate import Evaluate, evaluate
    from medvar_model.loader import DataSpec
    spec = Evaluate("report", DataSpec("S"), "runs/d4", count=8)
    print(evaluate(spec, Process.alone().device).report["conditions"])
    """
    data = options.data_spec(shards, None, cache, cache_gb, 0, 2)
    settings = options.sampling(preset, guidance, top_k, top_p, seed)
    spec = Evaluate(str(out), data, run, tokenizer, samples, count, settings, batch_size, held_out, training)
    if dry_run:
        check_evaluation(spec, processes.device_of(device))
        return options.show_spec(spec, as_json)
    with processes.joined({}, device) as process:
        result = evaluate(spec, process.device, lambda line: None if as_json else print(line, flush=True))
    if as_json:
        return print_json(result.report)
    _show(result)
    return console.print(f"\nReport: {result.page}", markup=False)


def demo_command(
    folder: Annotated[Path, typer.Argument(help="Folder in which `medvar-data demo` left its shards.")] = Path("demo"),
    as_json: options.JsonOption = False,
) -> None:
    """Train a small tokenizer and transformer on the demo's shards, draw from them, and judge what comes out.

    Example: medvar-data demo demo && medvar-model demo demo

    Python:

    \b
    from pathlib import Path
    from medvar_model.demo import ModelDemo, run_model_demo
    run_model_demo(ModelDemo(Path("demo")), print)
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
    return f"{100 * share['share']:.1f} % of {share['n']}" if share["n"] else "none to judge"
