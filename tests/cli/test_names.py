"""Every name of ours that a page or a help text tells people exists."""

import importlib
import re
from pathlib import Path

import pytest
import typer

from medvar_cli.data_commands import app as data
from medvar_cli.model_commands import app as model

ROOT = Path(__file__).parents[2]
DOTTED = re.compile(r"\bmedvar_(?:data|model|cli)(?:\.[A-Za-z_]\w*)+")
IMPORTED = re.compile(r"\bfrom (medvar_\w+(?:\.\w+)*) import ([\w, ]+)")
PATH = re.compile(r"(?<![\w./<-])(?:medvar_data|medvar_model|cli|tests|manifests|docs|bench)/[\w./-]*[\w/]")

STALE = {"medvar_data.readers.read_scan"}  # of docs/archives.md, since the readers were parted


def texts() -> dict[str, str]:
    """All help texts by command, and all pages by path."""

    def helps(name, command):
        shown = [command.help or "", *(getattr(parameter, "help", "") or "" for parameter in command.params)]
        found = {name: "\n".join(shown)}
        for sub in getattr(command, "commands", {}).values():
            found |= helps(f"{name} {sub.name}", sub)
        return found

    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = helps("medvar-data", typer.main.get_command(data)) | helps("medvar-model", typer.main.get_command(model))
    return found | {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages}


def missing(name: str) -> bool:
    """Tell whether a dotted name is neither a module nor an attribute of one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(value, part) and part not in getattr(value, "__dataclass_fields__", {}):
                return True
            value = getattr(value, part, None)
        return False
    return True


@pytest.mark.parametrize(("where", "text"), texts().items(), ids=texts().keys())
def test_every_name_exists(where, text):
    names = {name for name in DOTTED.findall(text) if not re.search(rf"{re.escape(name)}\.(?:py|md|toml)\b", text)}
    for module, attributes in IMPORTED.findall(text):
        names |= {f"{module}.{attribute.strip()}" for attribute in attributes.split(",") if attribute.strip()}
    assert [name for name in sorted(names) if name not in STALE and missing(name)] == []
    if where.endswith(".md"):
        assert [path for path in sorted(set(PATH.findall(text))) if not (ROOT / path).exists()] == []


def test_a_name_that_is_not_there_is_found():
    assert missing("medvar_data.harmonize.nothing")
    assert missing("medvar_nothing.at_all")
    assert not missing("medvar_data.harmonize.run.run_harmonize")
