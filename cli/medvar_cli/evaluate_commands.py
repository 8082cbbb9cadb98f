"""The commands `evaluate`, `grid`, `copies` and `demo` of `medvar-model`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from medvar_cli.console import WRONG, console, errors, print_json, print_table
from medvar_cli.evaluate_options import EvaluateOptions
from medvar_cli.model_feedback import show_spec
from medvar_cli.model_options import (
    DeviceOption,
    FeatureWeightsOption,
    OutputOptions,
    RunArgument,
    SamplingOptions,
    ShardsArgument,
    feature_paths,
)
from medvar_cli.option_groups import JsonOption, takes_options
from medvar_model.demo import ModelDemo, run_model_demo
from medvar_model.errors import ConfigMismatch
from medvar_model.evaluation.comparison import FLOOR
from medvar_model.evaluation.copies.audit import Audit, audit
from medvar_model.evaluation.evaluate import Evaluate, Evaluation, check_evaluation, evaluate
from medvar_model.evaluation.gate import failures, read_gate
from medvar_model.evaluation.grid import Grid, try_settings
from medvar_model.evaluation.images import score_images
from medvar_model.evaluation.reconstructions import TITLES
from medvar_model.loader import DataSpec
from medvar_model.machine import processes


def register(app: typer.Typer) -> None:
    """Add the commands to `medvar-model`."""
    app.command("evaluate")(evaluate_command)
    app.command("grid")(grid_command)
    app.command("copies")(copies_command)
    app.command("demo")(demo_command)


@takes_options
def evaluate_command(
    shards: ShardsArgument,
    run: Annotated[str, typer.Argument(help="A transformer's run or checkpoint; none with --images.")] = "",
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for report, rows and pictures.")],
    scoring: EvaluateOptions,
    device: DeviceOption = "auto",
    output: OutputOptions,
) -> None:
    """Evaluate a run, or the images of any model: distances, copies, conditions.

    Evaluate with the preset the run is to be used with: paper for well trained
    networks, demo for small or briefly trained ones. Some metrics need 30 or
    more images of a set, so small counts leave them out. With --gate, exit code
    2 says that a bound is not kept.

    Example: medvar-model evaluate S runs/d4 -o report -n 8

    Python:

    \b
    from medvar_model.machine.processes import Process
    from medvar_model.evaluation.evaluate import Evaluate, evaluate
    from medvar_model.loader import DataSpec
    spec = Evaluate("report", DataSpec("S"), "runs/d4", count=8)
    result = evaluate(spec, Process.alone().device)
    """
    if bool(run) == bool(scoring.images):
        raise ConfigMismatch("Wanted either a run to evaluate or --images with a folder. Give one of them.")
    gate = read_gate(scoring.gate) if scoring.gate else None
    spec = scoring.of_images(shards, out) if scoring.images else scoring.spec(shards, run, out)
    if output.dry_run:
        if isinstance(spec, Evaluate):
            check_evaluation(spec, processes.device_of(device))
        show_spec(spec, output.as_json)
        return
    with processes.joined({}, device) as process:
        say = _said(output.as_json)
        score = (
            evaluate(spec, process.device, say)
            if isinstance(spec, Evaluate)
            else score_images(spec, process.device, say)
        )
    if output.as_json:
        print_json(score.report)
    else:
        _show(score)
        console.print(f"\nReport: {score.page}", markup=False)
    missed = failures(gate, score.report) if gate else []
    for sentence in missed:
        errors.print(f"Gate: {sentence}", markup=False)
    if missed:
        raise typer.Exit(WRONG)


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """The settings that are tried, and on how many images."""

    guidance: Annotated[list[float] | None, typer.Option(help="Guidance; repeat for several. Default: 1 and 4.")] = None
    top_k: Annotated[list[int] | None, typer.Option(help="Codes kept; repeat for several. Default: 0 and 900.")] = None
    top_p: Annotated[list[float] | None, typer.Option(help="Probability kept; likewise. Default: 0 and 0.95.")] = None
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each condition and setting.", min=1)] = 32
    seed: Annotated[int, typer.Option(help="Seed of all settings.", min=0)] = 42
    batch_size: Annotated[int, typer.Option(help="Images drawn at a time.", min=1)] = 16
    features: Annotated[str, typer.Option(help="As of `evaluate`; one.")] = ""
    feature_weights: FeatureWeightsOption = None

    def spec(self, shards: str, run: str, out: Path) -> Grid:
        """Make the library's value."""
        usual = Grid(str(out), DataSpec(shards), run)
        return replace(
            usual,
            guidance=tuple(self.guidance or usual.guidance),
            top_k=tuple(self.top_k or usual.top_k),
            top_p=tuple(self.top_p or usual.top_p),
            count=self.count,
            seed=self.seed,
            batch_size=self.batch_size,
            features=self.features,
            weights=feature_paths(self.feature_weights),
        )


@takes_options
def grid_command(
    shards: ShardsArgument,
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for tables and samples.")],
    *,
    trying: GridOptions,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw and score every combination of guidance, top-k and top-p.

    Example: medvar-model grid S runs/d4 -o grid --guidance 1 --guidance 4 --top-k 0 --top-p 0.95 -n 4

    Python:

    \b
    from medvar_model.evaluation.grid import Grid, try_settings
    from medvar_model.loader import DataSpec
    from medvar_model.machine.processes import Process
    spec = Grid("grid", DataSpec("S"), "runs/d4", (1.0, 4.0), (0,), (0.95,), 4)
    rows = try_settings(spec, Process.alone().device)
    """
    with processes.joined({}, device) as process:
        rows = try_settings(trying.spec(shards, run, out), process.device, _said(as_json))
    if as_json:
        return print_json(rows)
    columns = [name for name in rows[0] if name != "seed"]
    print_table("\nSettings", columns, [[_short(row[name]) for name in columns] for row in rows])
    return console.print(f"\nThe last row is of fresh real slices. Tables: {out}", markup=False)


@dataclass(frozen=True, kw_only=True)
class CopiesOptions:
    """What is looked at, and how closely."""

    images: Annotated[
        str, typer.Option(help="Folder of images or samples to look at; left out, new ones are drawn.")
    ] = ""
    count: Annotated[int, typer.Option("-n", "--count", help="Images drawn of each condition.", min=1)] = 32
    sampling: SamplingOptions
    held_out: Annotated[int, typer.Option(help="Most slices of each held-out split that set the threshold.")] = 1024
    planted: Annotated[int, typer.Option(help="Copies planted of each kind and strength.", min=2)] = 100
    members: Annotated[int, typer.Option(help="Most slices of each split in the membership tests.", min=1)] = 1024
    alpha: Annotated[float, typer.Option(help="Share of unseen slices that may be called copies.")] = 0.01
    features: Annotated[str, typer.Option(help="As of `evaluate`; one.")] = ""
    feature_weights: FeatureWeightsOption = None

    def spec(self, shards: str, run: str, out: Path) -> Audit:
        """Make the library's value."""
        return Audit(
            str(out), DataSpec(shards), run, self.images, self.count, self.sampling.settings(run), self.held_out,
            self.planted, self.members, self.alpha, self.features, weights=feature_paths(self.feature_weights),
        )  # fmt: skip


@takes_options
def copies_command(
    shards: ShardsArgument,
    run: Annotated[str, typer.Argument(help="A transformer's run or checkpoint; may be left out with --images.")] = "",
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for report, page and index.")],
    looking: CopiesOptions,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Look for memorised training slices: copies, whether they would be found, membership.

    Example: medvar-model copies S runs/d4 -o copies -n 4 --planted 4

    Python:

    \b
    from medvar_model.evaluation.copies.audit import Audit, audit
    from medvar_model.loader import DataSpec
    from medvar_model.machine.processes import Process
    spec = Audit("copies", DataSpec("S"), "runs/d4", count=4, planted=4)
    result = audit(spec, Process.alone().device)
    """
    with processes.joined({}, device) as process:
        result = audit(looking.spec(shards, run, out), process.device, _said(as_json))
    if as_json:
        return print_json(result)
    rows = [("images called copies", _percent(result["copies"])), ("false alarms", _percent(result["false_alarms"]))]
    rows += [(f"planted, {r['kind']} {r['strength']:g} ({r['unit']})", _percent(r)) for r in result["planted"]]
    print_table("\nCopies", ("what", "share"), rows)
    return console.print(f"\nReport: {out / 'index.html'}", markup=False)


def _said(as_json: bool) -> Callable[[str], None]:
    return lambda line: None if as_json else print(line, flush=True)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


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
    right, closer = report["conditions"]["right"], report["copies"]["closer"]
    rows = []
    if "reconstructions" in report:
        drawn = report["reconstructions"]
        rows += [
            ("PSNR of held-out slices", f"{drawn['psnr']:.1f} dB"),
            ("SSIM of held-out slices", f"{drawn['ssim']:.3f}"),
            *((f"{title} of held-out slices", f"{drawn[key]:.4f}") for key, title in TITLES.items() if key in drawn),
            *(
                (f"{row['metric']} of held-out slices", _interval(row))
                for row in drawn["distances"]
                if row["value"] is not None
            ),
            ("codes used", f"{100 * report['scales']['overall']['share']:.1f} %"),
        ]
    rows += [
        ("samples that show their condition", _percent(right)),
        ("samples closer to training than 1 % of held-out slices", _percent(closer)),
    ]
    print_table("\nEvaluation", ("what", "result"), rows)
    scores = [score for score in report["distribution"]["scores"] if score["candidate"] == "samples"]
    floors = {(s["cell"], s["metric"]): s["value"] for s in report["distribution"]["scores"] if s["candidate"] == FLOOR}
    lines = [
        (s["cell"], s["metric"], _interval(s), _short(floors[s["cell"], s["metric"]]), s["n_candidate"], s["better"])
        for s in scores
        if s["value"] is not None
    ]
    if lines:
        print_table("\nDistances", ("cell", "metric", "samples", "real slices", "n", "better"), lines)
    for note in report["notes"]:
        console.print(f"Note: {note}", markup=False)


def _interval(score: dict[str, float]) -> str:
    ends = "" if score["low"] is None else f" [{score['low']:.3g}, {score['high']:.3g}]"
    return f"{score['value']:.4g}{ends}"


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['share']:.1f} % of {share['n']}" if share["n"] else "none to score"
