"""The commands of `medvar-data` that tell what medvar knows of collections: `collections` and `describe`."""

from dataclasses import asdict
from typing import Annotated

import typer

from medvar_cli.console import console, print_json, print_table
from medvar_cli.option_groups import JsonOption
from medvar_data.catalog.collection import CollectionSpec, license_of
from medvar_data.catalog.describe import describe_collection
from medvar_data.catalog.load import collection_text, find_collections, load_collections
from medvar_data.naming import printable

MOST_LETTERS = 100_000  # of a page


def register(app: typer.Typer) -> None:
    """Add both commands to `medvar-data`."""
    app.command()(collections)
    app.command()(describe)


def collections(as_json: JsonOption = False) -> None:
    """List the collections that medvar knows.

    Example: medvar-data collections

    Python:

    \b
    from medvar_data.catalog.load import load_collections
    specs = load_collections()
    """
    specs = load_collections()
    if as_json:
        return print_json([asdict(spec) for spec in specs])
    columns = ("name", "region", "modality", "cases", "license", "title")
    return print_table("Collections", columns, [_row(spec) for spec in specs])


def describe(
    name: Annotated[str, typer.Argument(help="Collection, family, template, or path of your own TOML.")],
    as_toml: Annotated[bool, typer.Option("--toml", help="Print the TOML itself, to start your own from.")] = False,
) -> None:
    """Tell how to get a collection, what is expected where, and what is unconfirmed.

    Example: medvar-data describe acdc

    Python:

    \b
    from medvar_data.catalog.describe import describe_collection
    from medvar_data.catalog.load import find_collections
    for spec in find_collections("acdc"):
        print(describe_collection(spec))
    """
    for spec in find_collections(name):
        if as_toml:
            print(collection_text(name if name.endswith(".toml") else spec.name), end="")
        else:
            own = name if name.endswith(".toml") else ""
            console.print(printable(describe_collection(spec, own), MOST_LETTERS, lines=True), markup=False)


def _row(spec: CollectionSpec) -> tuple[object, ...]:
    modalities = " ".join(sorted({layout.modality or spec.modality for layout in spec.layouts}))
    return spec.name, spec.region, modalities, spec.n_expected, license_of(spec), spec.title
