"""What is installed is what lies on disk: every package folder is listed, and git ignores none of them."""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
TOPS = {
    "medvar_data": "medvar_data",
    "medvar_model": "medvar_model",
    "medvar_cli": "cli/medvar_cli",
    "medvar_manifests": "manifests",
}


def packages_on_disk() -> dict[str, Path]:
    """Name of each package -> its folder."""
    found = {}
    for name, place in TOPS.items():
        top = ROOT / place
        for file in top.rglob("__init__.py"):
            found[".".join((name, *file.parent.relative_to(top).parts))] = file.parent
    return found


def test_the_list_of_packages_is_what_lies_on_disk():
    listed = SETUPTOOLS["packages"]
    assert sorted(listed) == sorted(packages_on_disk())
    assert len(listed) == len(set(listed))
    assert SETUPTOOLS["package-dir"] == {name: place for name, place in TOPS.items() if name != place}


def test_every_folder_with_modules_is_a_package():
    """Else its modules would be found in a checkout and missing once installed."""
    folders = {file.parent for place in TOPS.values() for file in (ROOT / place).rglob("*.py")}
    assert folders == set(packages_on_disk().values())


def test_every_table_of_the_manifests_is_installed():
    patterns, found = SETUPTOOLS["package-data"], packages_on_disk()
    for file in (ROOT / "manifests").rglob("*.[tc]*"):
        if file.suffix in (".toml", ".csv"):
            name = next(name for name, folder in found.items() if folder == file.parent)
            assert f"*{file.suffix}" in patterns[name], file


def test_git_ignores_no_package():
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    folders = [f"{folder.relative_to(ROOT)}/new_module.py" for folder in packages_on_disk().values()]
    done = subprocess.run(["git", "check-ignore", "--no-index", *folders], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), f"ignored: {done.stdout}{done.stderr}"
