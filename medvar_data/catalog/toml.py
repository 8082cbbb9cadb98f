"""Turn TOML into frozen dataclasses, with errors that name the file, the key and what it should be."""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import regex

from medvar_data.catalog.patterns import compile_pattern
from medvar_data.errors import SpecError
from medvar_data.naming import printable

MOST_LETTERS = 4_000_000
T = TypeVar("T")


def manifests(*parts: str) -> Any:
    """A file or folder of the data package `medvar_manifests`."""
    return resources.files("medvar_manifests").joinpath(*parts)


def read_text(path: Path) -> str:
    """Read a user's TOML.

    Raises:
        SpecError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not a text in UTF-8, which TOML is; save it so.") from error


def read_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        SpecError: it is none; says where.
    """
    if len(text) > MOST_LETTERS:
        raise SpecError(f"{where}: {len(text):,} letters; wanted a description of at most {MOST_LETTERS:,}.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where}: not valid TOML ({printable(str(error))}).") from error
    except (
        RecursionError,
        ValueError,
    ) as error:  # tables or lists in each other without end, numbers of thousands of digits
        raise SpecError(f"{where}: not valid TOML (values lie too deep in each other, or are too long).") from error


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a table, naming unknown, missing and mistyped keys."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise SpecError(f"{where}: unknown key {key!r}; wanted one of {', '.join(fields)}.")
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name not in table:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise SpecError(f"{where}: key {name!r} is missing.")
            continue
        values[name] = _coerce(table[name], f.type, f"{where}: {name}")
    return cls(**values)


def _coerce(value: Any, kind: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin is tuple:
        wanted = get_args(kind)[0]
        if not isinstance(value, list | tuple) or not all(isinstance(item, wanted) for item in value):
            raise SpecError(f"{where} is {value!r}; wanted a list of {wanted.__name__}.")
        return tuple(value)
    if kind == Mapping[str, tuple[float, ...]]:
        if not isinstance(value, dict):
            raise SpecError(f"{where} is {value!r}; wanted a table of lists of numbers.")
        return {str(k): tuple(float(n) for n in _numbers(value[k], f"{where}.{k}")) for k in sorted(value)}
    if origin is Mapping:
        wanted, kinds = get_args(kind)[1], {str: "texts", int: "whole numbers"}
        if not isinstance(value, dict) or not all(type(item) is wanted for item in value.values()):
            raise SpecError(f"{where} is {value!r}; wanted a table of {kinds[wanted]}.")
        return dict(value)
    accepted = {str: (str,), int: (int,), float: (int, float), bool: (bool,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise SpecError(f"{where} is {value!r}; wanted a {kind.__name__}.")
    return kind(value)


def _numbers(value: Any, where: str) -> list[Any]:
    whole = isinstance(value, list | tuple)
    if not whole or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in value):
        raise SpecError(f"{where} is {value!r}; wanted a list of numbers.")
    return list(value)


def rows_of(table: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """Take a list of tables, `[[key]]`, out of a table."""
    rows = table.pop(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SpecError(f"{where}: {key} is not a list of tables; wanted [[{key}]], in double brackets.")
    return rows


def compiled(pattern: str, where: str) -> Any:
    """Compile a regular expression of a description, naming it where it is none."""
    try:
        return compile_pattern(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise SpecError(f"{where} is not a regular expression ({printable(str(error))}).") from error


def one_of(value: str, allowed: tuple[str, ...], where: str) -> None:
    """Check a word against those that are allowed."""
    if value not in allowed:
        raise SpecError(f"{where} is {value!r}; wanted one of {', '.join(allowed)}.")


def unknown_name(what: str, name: str, known: list[str]) -> str:
    """Say that there is no such name, and which come nearest."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
    return f"No {what} named {name!r}; nearest: {', '.join(near)}."
