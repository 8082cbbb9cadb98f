"""Load descriptions of collections and the condition vocabulary: TOML in, the dataclasses of `collection` out.

The files of the distribution live in the data package `medvar_manifests`; a user's own file has the same form and is
checked by the same code, so a wrong key is named in the error.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from medvar_data.catalog.checks import check_collection
from medvar_data.catalog.collection import CollectionSpec, LabelSpec, Layout, Overlap, Quirk, Repair
from medvar_data.catalog.toml import build, manifests, read_text, read_toml, rows_of, unknown_name
from medvar_data.errors import SpecError

MAX_LABEL_VALUE = 65535
T = TypeVar("T")


OWN_CONDITION_IDS = range(1000, 2000)  # reserved for users' own collections


def collection_names() -> list[str]:
    """List the collections of the distribution, sorted."""
    return sorted(p.name.removesuffix(".toml") for p in manifests("collections").iterdir() if p.name.endswith(".toml"))


def load_collections() -> list[CollectionSpec]:
    """Load every collection of the distribution."""
    return [load_collection(name) for name in collection_names()]


def find_collections(name: str) -> list[CollectionSpec]:
    """Resolve a command-line name: a collection, else a family of collections, or the path of a user's own TOML.

    Raises:
        SpecError: no such name; the nearest ones are given.
    """
    if name.endswith(".toml"):
        return [load_collection_file(Path(name))]
    if name in template_names():
        return [parse_collection(collection_text(name), f"template {name}", own=True)]
    specs = load_collections()
    found = [s for s in specs if s.name == name] or [s for s in specs if s.family == name]
    if not found:
        raise SpecError(
            unknown_name(
                "collection",
                name,
                [*{s.name for s in specs}, *{s.family for s in specs if s.family}, *template_names()],
            )
            + " Or give the path of your own TOML."
        )
    return found


def collection_text(name: str) -> str:
    """The TOML of a collection or template, by name or by the path of a user's own."""
    if name.endswith(".toml"):
        return Path(name).read_text(encoding="utf-8")
    folder = "templates" if name in template_names() else "collections"
    return str((manifests(folder) / f"{name}.toml").read_text(encoding="utf-8"))


def template_names() -> list[str]:
    """List the templates: descriptions of users' own data that serve as they stand, and as a start for better ones."""
    return sorted(p.name.removesuffix(".toml") for p in manifests("templates").iterdir() if p.name.endswith(".toml"))


@cache
def load_collection(name: str) -> CollectionSpec:
    """Load one collection of the distribution by name, once a process."""
    entry = manifests("collections") / f"{name}.toml"
    if not entry.is_file():
        raise SpecError(unknown_name("collection", name, collection_names()))
    return parse_collection(entry.read_text(encoding="utf-8"), f"collection {name}")


def load_collection_file(path: Path) -> CollectionSpec:
    """Load a user's own collection; unless it says otherwise, it is not public and its case names are hashed."""
    if not path.is_file():
        raise SpecError(
            f"No collection file at {path}; wanted a TOML that describes your folders. See docs/own-data.md."
        )
    return parse_collection(read_text(path), str(path), own=True)


def parse_collection(text: str, where: str, *, own: bool = False) -> CollectionSpec:
    """Parse and check one collection's TOML.

    Raises:
        SpecError: names the file, the key and what it should be.
    """
    table = read_toml(text, where)
    table["layouts"] = _rows(Layout, table, "layout", where)
    table["labels"] = tuple(
        _label(row, f"{where}, label {i}") for i, row in enumerate(rows_of(table, "label", where), start=1)
    )
    table["quirks"] = _rows(Quirk, table, "quirk", where)
    table["overlaps"] = _rows(Overlap, table, "overlap", where)
    table["repairs"] = _rows(Repair, table, "repair", where)
    table["digest"] = sha256(text.encode()).hexdigest()
    if own:
        table.setdefault("case_names", "hash")
        table.setdefault("public", False)
        if table.setdefault("license", "not stated") == "own data":
            table.setdefault("license_confirmed", True)
    spec = build(CollectionSpec, table, where)
    check_collection(spec, where)
    return spec


def _rows(kind: type[T], table: dict[str, Any], name: str, where: str) -> tuple[T, ...]:
    """Take the rows [[name]] out of a table, each built and, in errors, counted from 1."""
    rows = rows_of(table, name, where)
    return tuple(build(kind, row, f"{where}, {name} {i}") for i, row in enumerate(rows, start=1))


@dataclass(frozen=True)
class SharedCase:
    """One scan that two collections hold."""

    case: str
    collection: str  # the other
    their_case: str
    certainty: str


def load_shared_cases(name: str, overlap: Overlap) -> tuple[SharedCase, ...]:
    """The shared cases that a table lists, as seen from the collection `name`; none where there is no table."""
    if not overlap.pairs:
        return ()
    table = manifests("overlaps") / overlap.pairs
    if not table.is_file():
        raise SpecError(
            f"{name}: pairs names {overlap.pairs}, which manifests/overlaps does not hold; take the line out."
        )
    text = table.read_text(encoding="utf-8")
    rows = [SharedCase(**row) for row in csv.DictReader(text.splitlines())]
    owner = overlap.pairs.removesuffix(".csv")
    if name == owner:
        return tuple(row for row in rows if row.collection == overlap.collection)
    return tuple(SharedCase(row.their_case, owner, row.case, row.certainty) for row in rows if row.collection == name)


def same_scans(spec: CollectionSpec, cases: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Name the cases of a collection that its description finds in another one: our case, the other collection, its case there.

    Args:
        spec: the collection.
        cases: keys of its cases.
    """
    cases = list(cases)
    for overlap in spec.overlaps:
        listed = {(row.case, row.their_case) for row in load_shared_cases(spec.name, overlap)}
        if overlap.collection and overlap.theirs:
            listed |= {(case, overlap.their_case(case)) for case in cases if overlap.holds_for(case)}
        wanted = set(cases) if listed else set()
        yield from ((ours, overlap.collection, theirs) for ours, theirs in sorted(listed) if ours in wanted)


def load_conditions() -> dict[str, int]:
    """Read the condition vocabulary: name -> id. Append-only; users' own ids start at 1000.

    >>> load_conditions()["acdc-mr"]
    0
    """
    table = read_toml((manifests() / "conditions.toml").read_text(encoding="utf-8"), "conditions.toml")
    ids = {row["name"]: int(row["id"]) for row in table["condition"]}
    if len(set(ids.values())) != len(ids) or len(ids) != len(table["condition"]):
        raise SpecError("conditions.toml gives one id or one name twice; ids are append-only and never reused.")
    return ids


def _label(row: Mapping[str, Any], where: str) -> LabelSpec:
    value = row.get("value", row.get("id") if "roi" in row else None)
    bounds: list[Any] = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in bounds):
        raise SpecError(f"{where}: value is {value!r}; wanted an integer or [low, high].")
    low, high = bounds
    if not 1 <= low <= high <= MAX_LABEL_VALUE:
        raise SpecError(f"{where}: value is {value!r}; wanted 1 to {MAX_LABEL_VALUE}, 0 being the background.")
    rest = {k: v for k, v in row.items() if k != "value"}
    return build(LabelSpec, {**rest, "low": low, "high": high}, where)
