"""Every command and its Python twin do the same: both run as the help prints them, and what they leave is compared.

Only names are put in the place of others (a key, a recipe, a folder of downloads), and trainings are cut short.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import typer
from support.shard_sets import write_shard_set
from support.var_files import autoencoder
from typer.testing import CliRunner

from medvar_cli.data_commands import app as data
from medvar_cli.data_feedback import statistics_parts
from medvar_cli.model_commands import app as model
from medvar_data.audit.seal import new_key, seal
from medvar_data.storage.store import Store
from medvar_model import demo as model_demo
from medvar_model.config import TOKENIZERS

TIMED = {"speed.json"}  # seconds that the work took
WIDE = {"COLUMNS": "200"}
ONE_STEP = "samples=4, batch_size=4, validate_every=0"


@dataclass(frozen=True)
class Twin:
    """How a command and its twin are run and compared.

    Args:
        needs: files of the prepared folder that both begin with.
        typed: what the example is followed by.
        swaps: text for text, in the example and in the twin.
        answer: from the twin's variables to what the command prints as JSON; None where it prints none.
        made: files that both leave, to be compared byte for byte.
    """

    needs: tuple[str, ...] = ()
    typed: str = ""
    swaps: dict[str, str] = field(default_factory=dict)
    answer: Callable[[dict[str, Any]], Any] | None = None
    made: tuple[str, ...] = ()


RECIPE = {"--recipe paper": "--recipe small.toml", 'load_recipe("paper")': 'load_recipe("small.toml")'}
KEYS = {"acdc-patient001-frame01-z0004": "{key}", "acdc-patient001-frame01": "{case}"}
CUT = {name: f'__import__("dataclasses").replace({name}, {ONE_STEP})' for name in ('LOOPS["demo"]', 'LOOPS["d4"]')}
TRAIN = "--samples 4 --batch-size 4 --validate-every 0 --device cpu"

DATA = {
    "collections": Twin(typed="--json", answer=lambda twin: [asdict(spec) for spec in twin["specs"]]),
    "describe": Twin(),
    "ingest": Twin(
        needs=("work/salt",),
        swaps={"~/data/ACDC msd=~/data/msd": "{source}", 'Path.home() / "data/ACDC"': 'Path("{source}")'},
        made=("work",),
    ),
    "harmonize": Twin(needs=("found",), typed="--workers 1", swaps=RECIPE | {'"work"': '"found"', "-w work": "-w found"}, made=("found",)),
    "shard": Twin(
        needs=("work",), typed="--recipe small.toml --workers 1",
        swaps=RECIPE | {'"shards"': '"made"', "work shards": "work made"}, made=("made",),
    ),
    "reshard": Twin(needs=("shards",), typed="--workers 1", made=("shards-zstd",)),
    "stats": Twin(needs=("shards",), typed="--json", answer=lambda twin: statistics_parts(twin["contents"], twin["volumes"]) | {"figure": "figure2.svg"}),
    "report": Twin(needs=("shards",), typed="--json", answer=lambda twin: {"page": str(twin["page"])}, made=("report.html",)),
    "verify": Twin(needs=("sealed", "work", "public.pem"), typed="--json", swaps={"verify shards": "verify sealed", '"shards"': '"sealed"'},
                   answer=lambda twin: asdict(twin["result"])),
    "seal": Twin(needs=("shards", "private.pem"), made=("shards/seal.json",)),
    "diff": Twin(needs=("shards", "sealed"), typed="--json", swaps={"newer": "sealed"}, answer=lambda twin: asdict(twin["found"])),
    "trace": Twin(needs=("shards", "work"), typed="--json", swaps=KEYS, answer=lambda twin: twin["report"]),
    "reconstruct": Twin(
        needs=("shards", "work"), typed="--json", swaps=KEYS, made=("case.nii.gz", "case.mask.nii.gz"),
        answer=lambda t: {"image": str(t["image"]), "mask": str(t["mask"]), "losses": asdict(t["losses"])},
    ),
    "sheets": Twin(needs=("shards",), made=("pictures",)),
    "plan": Twin(
        needs=("shards",), typed="--json",
        answer=lambda twin: [{"step": step, "rank": rank, "keys": list(keys)} for step, rank, keys in twin["rows"]],
    ),
    "demo": Twin(
        needs=("demo/work/salt", "demo/work-64/salt"), typed="--data {source} --workers 1",
        swaps={'DemoSpec(Path("demo"))': 'DemoSpec(Path("demo"), Path("{source}"))'}, made=("demo/shards", "demo/shards-64", "demo/report.html"),
    ),
}  # fmt: skip
MODEL = {
    "train tokenizer": Twin(needs=("S",), typed=TRAIN, swaps=CUT, made=("runs/tok/last/model.safetensors",)),
    "train transformer": Twin(needs=("S", "runs/tok"), typed=TRAIN, swaps=CUT, made=("runs/d4/last/model.safetensors",)),
    "tokenize": Twin(
        needs=("S", "runs/tok"), typed="--json --device cpu", made=("tokens",), answer=lambda twin: asdict(twin["cache"].note),
    ),
    "sample": Twin(
        needs=("runs/d4",), typed="--json", swaps={"acdc-mr": "beta-mr"}, made=("drawn",),
        answer=lambda twin: [f"drawn/beta-mr-{n:04d}.png" for n in range(4)],
    ),
    "continue": Twin(needs=("S", "runs/d4"), typed="-n 4", made=("continued",)),
    "inpaint": Twin(needs=("S", "runs/d4"), typed="-n 4", made=("painted",)),
    "features": Twin(
        needs=("S", "runs/d4"), typed="--no-scan-maps --json",
        swaps={'"test", 8, (2,)': '"test", 8, (2,), scan_maps=False'}, made=("inside",),
        answer=lambda twin: {"slices": twin["n"], "out": "inside"},
    ),
    "evaluate": Twin(needs=("S", "runs/d4"), typed="--json", answer=lambda twin: twin["result"].report),
    "export": Twin(needs=("S", "runs/d4"), made=("medvar-d4",)),
    "zoo": Twin(needs=("runs/tok", "runs/d4"), answer=lambda twin: [asdict(row) for row in twin["rows"]]),
    "codebook": Twin(
        needs=("S", "runs/tok"), typed="--json", made=("codes/scales.png",), answer=lambda twin: twin["report"],
    ),
    "import-var": Twin(
        needs=("vae_ch160v4096z32.pth",), typed="--json", made=("runs/var-tokenizer",),
        answer=lambda twin: json.loads(json.dumps([asdict(one) for one in twin["imported"]], default=str)),
    ),
    "grid": Twin(
        needs=("S", "runs/d4"), typed="--json", answer=lambda twin: twin["rows"],
    ),
    "copies": Twin(needs=("S", "runs/d4"), typed="--json --preset paper", answer=lambda twin: twin["result"], made=("copies/samples",)),
    "utility": Twin(
        needs=("S", "runs/d4"), typed="--json", answer=lambda twin: twin["result"],
        made=("utility/samples", "utility/utility.parquet", "utility/named.parquet", "utility/utility.png", "utility/index.html"),
    ),
    "info": Twin(),
    "demo": Twin(needs=("demo",), typed="--json", answer=lambda twin: twin["result"].evaluation.report),
}  # fmt: skip


def commands(name: str, command: Any) -> dict[str, str]:
    """The help text of every command."""
    subs = getattr(command, "commands", None)
    if subs is None:
        return {name: command.help}
    return {key: text for sub in subs.values() for key, text in commands(f"{name} {sub.name}".strip(), sub).items()}


HELP = {
    "medvar-data": commands("", typer.main.get_command(data)),
    "medvar-model": commands("", typer.main.get_command(model)),
}
PROGRAMS = {"medvar-data": (data, DATA), "medvar-model": (model, MODEL)}
LONG = {
    "codebook",
    "copies",
    "grid",
    "utility",
}  # of these the fast tests try the functions, not the examples in the help
ALL = [(program, name) for program, (_, twins) in PROGRAMS.items() for name in twins]


def swapped(text: str, twin: Twin, places: dict[str, str]) -> str:
    for old, new in twin.swaps.items():
        text = text.replace(old, new.format_map(places) if old in KEYS or "{source}" in new else new)
    return text


def example(program: str, name: str) -> str:
    line = next(line for line in HELP[program][name].splitlines() if line.startswith("Example:"))
    return line.rpartition(f"{program} ")[2]


def printed_twin(program: str, name: str) -> str:
    """The lines of Python that a command's help ends with, as a reader copies them."""
    return dedent(HELP[program][name].split("Python:", 1)[1].replace("\b", "").strip("\n"))


def contents(folder: Path, made: tuple[str, ...]) -> dict[str, bytes]:
    """Every file below the paths; there is one at least for each path. What holds wall time is left out."""
    found = {}
    for name in made:
        files = [folder / name] if (folder / name).is_file() else [p for p in (folder / name).rglob("*") if p.is_file()]
        assert files, name
        found |= {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name not in TIMED}
    return found


@pytest.fixture(scope="module")
def prepared(pipeline, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with everything that a twin may need, under the names that the help texts use."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(pipeline["work"], folder / "work")
    shutil.copytree(pipeline["shards"], folder / "shards")
    shutil.copy(pipeline["recipe"], folder / "small.toml")
    (folder / "public.pem").write_text(new_key(folder / "private.pem"))
    shutil.copytree(pipeline["shards"], folder / "sealed")
    seal(Store(str(folder / "sealed")), folder / "private.pem")
    for name in ("demo/work", "demo/work-64", "found"):
        (folder / name).mkdir(parents=True)
        (folder / name / "salt").write_bytes((folder / "work" / "salt").read_bytes())
    assert (
        CliRunner().invoke(data, ["ingest", f"acdc={pipeline['source']}", "-w", str(folder / "found")]).exit_code == 0
    )
    write_shard_set(folder / "S", {"train": 20, "val": 6, "test": 6}, side=64)
    write_shard_set(folder / "demo" / "shards-64", {"train": 30, "val": 13, "test": 12})
    torch.save(autoencoder(), folder / "vae_ch160v4096z32.pth")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("train tokenizer", "train transformer"):
            result = CliRunner().invoke(model, shlex.split(f"{example('medvar-model', name)} {TRAIN}"))
            assert result.exit_code == 0, result.output
    key = pq.read_table(folder / "shards" / "slices.parquet", columns=["key"])["key"][0].as_py()
    return folder, {"source": pipeline["source"], "key": key, "case": re.sub(r"-z\d+$", "", key)}


def begin(prepared: Path, folder: Path, twin: Twin) -> Path:
    for name in (*twin.needs, "small.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (prepared / name).is_dir() else shutil.copy)(prepared / name, folder / name)
    return folder


@pytest.fixture
def short_demo(monkeypatch):
    """The demo of the model side in seconds: the command and the twin call the real thing on few, small steps."""
    short = {"samples": 16, "batch_size": 8, "checkpoint_every": 16, "validate_every": 16, "log_every": 8}
    real = model_demo.run_model_demo

    def run(spec, say):
        loops = {name: replace(getattr(spec, name), **short) for name in ("tokenizer_loop", "transformer_loop")}
        return real(replace(spec, tokenizer=TOKENIZERS["tiny"], size="d2", count=3, revive_every=24, **loops), say)

    monkeypatch.setattr(model_demo, "run_model_demo", run)
    monkeypatch.setattr("medvar_cli.evaluate_commands.run_model_demo", run)


@pytest.mark.parametrize(
    ("program", "name"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] in LONG else (), id=" ".join(pair)) for pair in ALL],
)
@pytest.mark.usefixtures("short_demo")
def test_a_command_and_its_twin_do_the_same(program, name, prepared, tmp_path, monkeypatch, capsys):
    app, twins = PROGRAMS[program]
    twin, (origin, places) = twins[name], prepared
    typed, twinned = begin(origin, tmp_path / "typed", twin), begin(origin, tmp_path / "twinned", twin)
    line = f"{swapped(example(program, name), twin, places)} {twin.typed.format_map(places)}"
    source = swapped(printed_twin(program, name), twin, places)

    monkeypatch.chdir(typed)
    result = CliRunner().invoke(app, shlex.split(line), env=WIDE)
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(twinned)
    variables: dict[str, Any] = {}
    exec(compile(source, name, "exec"), variables)

    if twin.answer:
        answer = json.loads(json.dumps(twin.answer(variables), default=str))
        said = json.loads(result.stdout)
        if name == "grid":  # but for the seconds that drawing took, and what they weigh
            for row in (*said, *answer):
                row.pop("seconds"), row.pop("efficiency")
        assert (said["report"] if (program, name) == ("medvar-model", "demo") else said) == answer
    if name == "info":
        assert json.loads(result.stdout)["transformer_parameters"] == variables["count"]
    if name == "describe":
        assert capsys.readouterr().out.split() == result.stdout.split()
    left = contents(typed, twin.made)
    assert left.keys() == contents(twinned, twin.made).keys()
    assert [file for file, content in contents(twinned, twin.made).items() if content != left[file]] == []


def test_every_command_has_a_twin_that_is_run():
    for program, (_, twins) in PROGRAMS.items():
        assert set(twins) == set(HELP[program])


@pytest.mark.parametrize(("program", "name"), ALL, ids=[" ".join(pair) for pair in ALL])
def test_a_terminal_of_80_columns_breaks_no_line_of_a_twin(program, name):
    assert max(map(len, printed_twin(program, name).splitlines())) <= 76
