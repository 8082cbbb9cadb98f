"""Every module, function and path that the documentation names exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NAME = re.compile(r"\bmedvar_(?:data|model|cli|manifests)(?:\.\w+)+")
FILE = re.compile(r"\b(?:medvar_data|medvar_model|cli|manifests|tests|bench|docs)/[\w./-]*[\w/]")
IMPORT = re.compile(r"^\s*from (medvar_[\w.]+) import (.+)$", re.MULTILINE)
PLACEHOLDER = re.compile(r"[<{*]")


def exists(name: str) -> bool:
    """Tell whether a dotted name can be imported, as a module or as something in one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_functions_exist(page):
    text = page.read_text(encoding="utf-8")
    names = {name for name in NAME.findall(text) if not name.endswith((".py", ".toml"))}
    for module, imported in IMPORT.findall(text):
        names |= {f"{module}.{name.strip()}" for name in imported.strip("()").split(",") if name.strip()}
    assert [name for name in sorted(names) if not exists(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = {m.group() for m in FILE.finditer(text) if not PLACEHOLDER.match(text[m.end() : m.end() + 1] or " ")}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_a_name_that_is_not_there_is_noticed():
    assert exists("medvar_data.stream.batches.Stream")
    assert not exists("medvar_data.stream.batches.Nothing")
    assert not exists("medvar_data.nothing.Stream")
