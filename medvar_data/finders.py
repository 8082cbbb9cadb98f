"""What a published list of a collection's cases adds to what its patterns say.

In: a collection, its tree and the cases that matched. Out: cases that a list promises and the disk does not have, and notes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from medvar_data.catalog import CollectionSpec
from medvar_data.errors import CaseRejected, Reason
from medvar_data.matching import make_reject, slug
from medvar_data.records import Case, Reject
from medvar_data.tree import Tree, read_bytes


@dataclass(frozen=True)
class Found:
    """What a finder adds to what the patterns say."""

    rejects: tuple[Reject, ...] = ()
    notes: tuple[str, ...] = ()


def find_msd(spec: CollectionSpec, tree: Tree, cases: list[Case]) -> Found:
    """Hold a Decathlon task's `dataset.json` against the disk and against our labels."""
    task = spec.title.rsplit(" ", 2)[-2] + "_" + spec.title.rsplit(" ", 1)[-1]
    listing = next((f.path for f in tree.files if f.path.endswith(f"{task}/dataset.json")), None)
    if listing is None:
        return Found(notes=("no dataset.json; labels come from the TOML alone",))
    try:
        table = json.loads(read_bytes(tree.root, listing))
        listed = [
            str(row["image"] if isinstance(row, dict) else row) for row in [*table["training"], *table.get("test", [])]
        ]
        labels = {int(value) for value in table["labels"]} - {0}
    except (CaseRejected, ValueError, KeyError, TypeError):
        return Found(notes=("dataset.json is damaged; labels come from the TOML alone",))
    notes = []
    known = {label.low for label in spec.labels}
    if labels != known:
        notes.append(f"dataset.json names label values {sorted(labels)}, the TOML {sorted(known)}; the TOML holds")
    there = {"/".join(path.split("/")[-2:]) for case in cases for path in case.image}
    gone = sorted({"/".join(path.split("/")[-2:]) for path in listed} - there)
    rejects = tuple(
        make_reject(
            spec,
            slug(path.split("/")[-1].split(".")[0]),
            Reason.FILE_MISSING,
            "dataset.json lists it, the disk does not have it",
        )
        for path in gone
    )
    return Found(rejects, tuple(notes))


FINDERS: dict[str, Callable[[CollectionSpec, Tree, list[Case]], Found]] = {"msd": find_msd}
