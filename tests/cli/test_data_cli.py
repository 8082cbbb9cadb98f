"""The command `medvar-data`: every command explains itself, errors are one sentence with code 2, JSON parses."""

import inspect
import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from support.builders import acdc_tree, recipe_file
from support.packing import files_below, pack
from typer.testing import CliRunner

from medvar_cli import data_commands as commands
from medvar_cli.console import run
from medvar_cli.data_commands import app
from medvar_cli.data_feedback import show_verification, show_volumes
from medvar_data.audit.figures import CellCount
from medvar_data.audit.verify import Verification

GROUP = typer.main.get_command(app)
NAMES = sorted(GROUP.commands)


def call(*arguments: str) -> tuple[int, str, str]:
    """Run as the installed command does; returns exit code, standard output, standard error."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["medvar-data", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            run(app)
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


def one_sentence(err: str) -> str:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    return lines[0]


class TestHelp:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_command_has_an_example_and_a_python_twin(self, name):
        result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert f"Example: medvar-data {name}" in result.output
        assert "Python:" in result.output

    @pytest.mark.parametrize("name", NAMES)
    def test_every_parameter_has_help(self, name):
        for parameter in GROUP.commands[name].params:
            assert getattr(parameter, "help", None), parameter.name

    def test_no_command_shows_the_list(self):
        result = CliRunner().invoke(app, [])
        assert all(name in result.output for name in NAMES)

    def test_a_command_is_short(self):
        for name in NAMES:
            body = inspect.getsource(inspect.unwrap(GROUP.commands[name].callback))
            assert len(body.splitlines()) <= 50, name
        assert commands.app is app


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("ingest", "acdc=/nowhere/at/all", "-w", "{folder}/w"), "/nowhere/at/all does not exist"),
            (("ingest", "acdd={source}", "-w", "{folder}/w"), "nearest: acdc"),
            (("ingest", "acdc", "-w", "{folder}/w"), "NAME=PATH"),
            (("ingest", "acdc={source}", "acdc={folder}", "-w", "{folder}/w"), "given twice"),
            (("ingest", "kits23={source}", "-w", "{folder}/w"), "Nothing here looks like kits23"),
            (("ingest", "acdc={source}", "-w", "{folder}/w", "--salt-file", "{recipe}"), "salt"),
            (("harmonize", "-w", "{folder}/none"), "medvar-data ingest"),
            (("harmonize", "-w", "{work}", "--recipe", "papre"), "paper"),
            (("harmonize", "-w", "{work}", "--recipe", "/nowhere.toml"), "/nowhere.toml"),
            (("shard", "-w", "{work}", "{folder}/s", "--recipe", "paper"), "harmonize"),
            (("shard", "-w", "{work}", "{folder}/s", "--val", "0.6", "--test", "0.6"), "below 1"),
            (("shard", "-w", "{work}", "nosuch://bucket/s", "--recipe", "{recipe}"), "nosuch"),
            (
                ("shard", "-w", "{work}", "{folder}/s", "--recipe", "{recipe}", "--where", "colour = 1"),
                "is no condition over",
            ),
            (("shard", "-w", "{work}", "{folder}/s", "--recipe", "{recipe}", "--append"), "dataset.json"),
            (
                ("shard", "-w", "{work}", "{shards}", "--recipe", "{recipe}", "--append", "--codec", "zstd"),
                "another codec",
            ),
            (("reshard", "{shards}", "{shards}"), "is the set that is read"),
            (("reshard", "{shards}", "{folder}/t", "--where", "colour = 1"), "is no condition over"),
            (("reshard", "{shards}", "{folder}/t", "--codec", "jpeg"), "jpeg"),
            (("reshard", "{folder}/none", "{folder}/t"), "dataset.json"),
            (("stats", "{folder}/none"), "dataset.json"),
            (("verify", "{folder}"), "dataset.json"),
            (("trace", "{shards}", "acdc-nobody-z0001"), "No slice"),
            (("trace", "{folder}/none", "x"), "none"),
            (("sheets", "{folder}/none", "{folder}/p"), "none"),
            (("describe", "acdd"), "acdc"),
            (("describe", "/nowhere.toml"), "/nowhere.toml"),
        ],
    )
    def test_one_sentence_and_code_2(self, pipeline, arguments, says):
        code, out, err = call(*(a.format(**pipeline) for a in arguments))
        assert code == 2
        assert says in one_sentence(err)
        assert out == ""

    def test_a_missing_option_is_code_2(self, pipeline):
        assert call("harmonize")[0] == 2
        assert call("harmonise", "-w", pipeline["work"])[0] == 2

    def test_a_broken_own_toml_names_the_key(self, pipeline, tmp_path):
        (tmp_path / "own.toml").write_text('name = "own"\ncolour = "red"\n')
        code, _, err = call("ingest", f"{tmp_path / 'own.toml'}={pipeline['source']}", "-w", str(tmp_path / "w"))
        assert code == 2
        assert "colour" in one_sentence(err)


class TestRoad:
    def test_harmonize_says_what_it_did_and_resumes(self, pipeline):
        code, out, _ = call("harmonize", "-w", pipeline["work"], "--recipe", pipeline["recipe"], "--workers", "1")
        assert code == 0
        assert "6 cases: 5 kept, 1 rejected" in out
        assert "6 cases finished before" in out
        assert "truncated" in out

    def test_too_many_rejects_are_code_1(self, pipeline):
        arguments = (
            "harmonize",
            "-w",
            pipeline["work"],
            "--recipe",
            pipeline["recipe"],
            "--workers",
            "1",
            "--max-rejects",
        )
        assert call(*arguments, "0")[0] == 1
        assert call(*arguments, "1")[0] == 0

    def test_dry_run_shows_and_does_nothing(self, pipeline, tmp_path):
        code, out, _ = call("harmonize", "-w", pipeline["work"], "--dry-run", "--json")
        plan = json.loads(out)
        assert code == 0
        assert (plan["n_todo"], plan["n_finished"], plan["recipe"]["name"]) == (6, 0, "paper")
        assert plan["todo_by_reason"] == {"recipe changed": 6}
        out = call("harmonize", "-w", pipeline["work"], "--dry-run")[1]
        assert "6 cases to do, 0 finished" in out
        assert "patient002-frame10" in out
        assert "finished cases of this workspace" in out
        code, out, _ = call("shard", "-w", pipeline["work"], str(tmp_path / "s"), "--dry-run", "--val", "0.25")
        assert json.loads(out)["split"]["val"] == 0.25
        assert not (tmp_path / "s").exists()

    def test_json_parses(self, pipeline, tmp_path):
        work, shards, recipe = pipeline["work"], pipeline["shards"], pipeline["recipe"]
        found = json.loads(call("ingest", f"acdc={pipeline['source']}", "-w", str(tmp_path / "w"), "--json")[1])
        assert (found[0]["collection"], found[0]["kept"]) == ("acdc", 6)
        summary = json.loads(call("harmonize", "-w", work, "--recipe", recipe, "--workers", "1", "--json")[1])
        assert summary["n_cases"] == summary["n_kept"] + summary["n_rejected"] == 6
        written = json.loads(call("shard", "-w", work, shards, "--recipe", recipe, "--workers", "1", "--json")[1])
        assert written["n_reused"] == written["n_shards"]
        said = json.loads(call("stats", shards, "--json")[1])
        assert sum(row["cases"] for row in said["statistics"]) == 5
        assert [(row["collection"], row["n_kept"]) for row in said["collections"]] == [("acdc", 5)]
        assert said["rejects"] == [{"collection": "acdc", "reason": "truncated", "cases": 1}]
        heart = next(v for v in said["volumes"] if (v["region"], v["modality"]) == ("heart", "MR"))
        assert heart["here"] == heart["read_as"] + heart["other"] > 0
        assert said["not_harmonized"] == 0
        assert json.loads(call("verify", shards, "--json")[1])["findings"] == []
        assert len(json.loads(call("collections", "--json")[1])) > 10

    def test_tables_for_people(self, pipeline):
        assert "acdc" in call("stats", pipeline["shards"])[1]
        assert "(unconfirmed)" in call("collections")[1]
        assert "truncated" in call("stats", pipeline["shards"])[1]
        assert "sound" in call("verify", pipeline["shards"])[1]
        out = call("collections")[1]
        assert "acdc" in out
        assert "CC-BY-NC-SA-4.0" in out
        assert "patient<" not in call("describe", "acdc")[1]
        assert call("describe", "msd")[1].count("Then: medvar-data ingest msd-") == 10

    def test_the_figure_is_named_and_says_what_the_table_says(self, pipeline, tmp_path):
        figure = tmp_path / "volumes.svg"
        for place in ("shards", "work"):
            code, out, _ = call("stats", pipeline[place], "--recipe", pipeline["recipe"], "--figure", str(figure))
            assert code == 0
            assert "volumes.svg written" in out.replace("\n", "")
            row = next(line.split() for line in out.splitlines() if re.match(r"heart +MR +270", line))
            drawn = re.findall(r">\s*\(?([\d,]+)\)?\s*</text>", figure.read_text())
            assert row[2:] == ["270", "270", "3", "0"]
            assert drawn.count("3") == 1
        out = call("stats", pipeline["shards"], "--figure", str(figure), "--json")[1]
        assert json.loads(out)["figure"] == str(figure)

    def test_volumes_of_other_collections_are_among_those_here(self, capsys):
        show_volumes([CellCount("brain", "MR", "BraTS", 1251, 1251, 0, 91)])
        assert capsys.readouterr().out.split()[-6:] == ["brain", "MR", "1,251", "1,251", "91", "91"]

    def test_one_of_a_kind_is_told_in_the_singular(self, capsys):
        show_verification(Verification(1, 1, 1, ("a row is missing",), "0" * 64))
        assert capsys.readouterr().out.splitlines()[-1] == "1 shard, 1 slice, 1 case: 1 thing is wrong"
        show_verification(Verification(2, 3, 4, ("a", "b"), "0" * 64))
        assert capsys.readouterr().out.splitlines()[-1] == "2 shards, 3 slices, 4 cases: 2 things are wrong"

    def test_trace_goes_back_to_the_file(self, pipeline):
        import pyarrow.parquet as pq

        key = pq.read_table(Path(pipeline["shards"]) / "slices.parquet")["key"][0].as_py()
        code, out, _ = call("trace", pipeline["shards"], key, "-w", pipeline["work"], "--json")
        assert code == 0
        report = json.loads(out)
        assert report["source"]["same_pixels_when_made_again"] is True
        assert Path(report["source"]["image"][0]).exists()
        assert report["citation"]["doi"]
        code, out, _ = call("trace", pipeline["shards"], key, "-w", pipeline["work"])
        lines = [line.strip().split(None, 1) for line in out.splitlines() if line.strip()]
        assert code == 0
        assert ["verdict", "sound"] in lines
        said = {line[0]: line[1] for line in lines}
        assert said["slice"].startswith(key)
        assert said["image"] in report["source"]["image"]
        assert "become 0 to 255" in said["intensities"]
        assert len(lines) < 25

    def test_a_damaged_set_is_code_2(self, pipeline, tmp_path):
        import shutil

        shutil.copytree(pipeline["shards"], tmp_path / "s")
        next((tmp_path / "s").glob("*.tar")).unlink()
        code, out, _ = call("verify", str(tmp_path / "s"))
        assert code == 2
        assert "missing" in out

    @pytest.mark.parametrize("table", ["stats.parquet", "slices.parquet"])
    def test_a_damaged_table_is_one_sentence(self, pipeline, tmp_path, table):
        import shutil

        shutil.copytree(pipeline["shards"], tmp_path / "s")
        (tmp_path / "s" / table).write_bytes(b"PAR1 is not enough")
        commands = {
            "stats.parquet": [("stats",)],
            "slices.parquet": [("sheets", str(tmp_path / "p")), ("trace", "key")],
        }
        for name, *more in [*commands[table], ("verify",)]:
            code, _, err = call(name, str(tmp_path / "s"), *more)
            assert code == 2
            assert table in one_sentence(err)

    def test_sheets(self, pipeline, tmp_path):
        code, out, _ = call("sheets", pipeline["shards"], str(tmp_path / "p"))
        assert code == 0
        assert (tmp_path / "p" / "acdc.png").exists()
        assert "acdc.png" in out.replace("\n", "")

    def test_a_salt_from_a_file_gives_the_same_patients(self, pipeline, tmp_path):
        (tmp_path / "salt").write_text("5a" * 32)
        for name in ("a", "b"):
            arguments = (
                "ingest",
                f"acdc={pipeline['source']}",
                "-w",
                str(tmp_path / name),
                "--salt-file",
                str(tmp_path / "salt"),
            )
            assert call(*arguments)[0] == 0
        assert (tmp_path / "a" / "salt").read_text() == (tmp_path / "b" / "salt").read_text()
        (tmp_path / "salt").write_text("a5" * 32)
        code, _, err = call(
            "ingest", f"acdc={pipeline['source']}", "-w", str(tmp_path / "a"), "--salt-file", str(tmp_path / "salt")
        )
        assert code == 2
        assert "salt" in one_sentence(err)


def test_the_installed_command_in_a_process_of_its_own(pipeline):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from medvar_cli.main import data; data()", "verify", pipeline["shards"]],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.strip().endswith("sound")
    assert done.stderr == ""


class TestEncryptedArchives:
    PASSWORD = "Kx7-never-shown"

    @pytest.fixture
    def places(self, tmp_path) -> dict[str, str]:
        files = files_below(acdc_tree(tmp_path / "plain", patients=3))
        archive = pack(tmp_path / "d" / "x.tar.gz", {"inner.zip": packed_bytes_of(tmp_path, files, self.PASSWORD)})
        (tmp_path / "password").write_text(self.PASSWORD + "\n")
        return {"source": str(archive), "password": str(tmp_path / "password"), "folder": str(tmp_path)}

    def test_the_password_is_wanted_and_kept_nowhere(self, places, tmp_path):
        work, shards, recipe = str(tmp_path / "work"), str(tmp_path / "shards"), str(recipe_file(tmp_path / "r"))
        given = (
            "--password-file",
            places["password"],
            "--scratch",
            str(tmp_path / "scratch"),
            "--scratch-limit",
            "0.5",
        )
        texts = []

        def run_it(*arguments: str) -> tuple[int, str, str]:
            result = call(*arguments)
            texts.append("".join(result[1:]))
            return result

        code, out, _ = run_it("ingest", f"acdc={places['source']}", "-w", str(tmp_path / "locked"), "--json")
        assert (code, [r["reason"] for r in json.loads(out)[0]["rejects"]]) == (0, ["archive_password"])
        assert run_it("ingest", f"acdc={places['source']}", "-w", work, *given)[0] == 0
        code, _, err = run_it("harmonize", "-w", work, "--recipe", recipe, "--workers", "1")
        assert (code, "--password-file" in one_sentence(err)) == (2, True)
        code, out, _ = run_it("harmonize", "-w", work, "--recipe", recipe, "--workers", "1", "--json", *given)
        assert (code, json.loads(out)["n_kept"], json.loads(out)["n_rejected"]) == (0, 6, 0)
        assert run_it("shard", "-w", work, shards, "--recipe", recipe, "--workers", "1")[0] == 0
        key = pq.read_table(Path(shards) / "slices.parquet")["key"][0].as_py()
        code, out, _ = run_it("trace", shards, key, "-w", work, "--json", *given)
        source = json.loads(out)["source"]
        assert (code, source["image_unchanged"], source["same_pixels_when_made_again"]) == (0, True, True)
        assert source["archive_sha256"] == {"x.tar.gz": sha256(Path(places["source"]).read_bytes()).hexdigest()}
        assert list((tmp_path / "scratch").iterdir()) == []
        kept = [*files_below(Path(work)).values(), *files_below(Path(shards)).values(), "".join(texts).encode()]
        assert not any(self.PASSWORD.encode() in content for content in kept)

    def test_a_password_file_that_is_not_there(self, places, tmp_path):
        code, _, err = call(
            "ingest", f"acdc={places['source']}", "-w", str(tmp_path / "w"), "--password-file", str(tmp_path / "no")
        )
        assert (code, "password file" in one_sentence(err)) == (2, True)


def packed_bytes_of(folder: Path, files: dict[str, bytes], password: str) -> bytes:
    return pack(folder / "make" / "inner.zip", files, password.encode()).read_bytes()
