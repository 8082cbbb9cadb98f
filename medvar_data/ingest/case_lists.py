"""What a published list of a collection's cases adds to what its patterns say.

In: a collection, its tree and the cases that matched. Out: cases that a list promises and the disk does not have, and notes.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import StringIO

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.errors import CaseRejected, Reason
from medvar_data.ingest.names import make_reject, slug
from medvar_data.records import Case, Reject
from medvar_data.sources.tree import Tree, read_bytes

MAX_FRAME_DIGITS = 6


@dataclass(frozen=True)
class ListedCases:
    """What a published list makes of what the patterns found: the cases to go on with, and those it leaves out."""

    cases: tuple[Case, ...]
    rejects: tuple[Reject, ...] = ()
    notes: tuple[str, ...] = ()


def find_msd(spec: CollectionSpec, tree: Tree, cases: list[Case]) -> ListedCases:
    """Hold a Decathlon task's `dataset.json` against the disk and against our labels."""
    task = "_".join(spec.title.split(" ")[-2:])
    listing = next((f.path for f in tree.files if f.path.endswith(f"{task}/dataset.json")), None)
    if listing is None:
        return ListedCases(tuple(cases), notes=("no dataset.json; labels come from the TOML alone",))
    try:
        table = json.loads(read_bytes(tree.root, listing))
        listed = [
            str(row["image"] if isinstance(row, dict) else row) for row in [*table["training"], *table.get("test", [])]
        ]
        labels = {int(value) for value in table["labels"]} - {0}
    except (CaseRejected, ValueError, KeyError, TypeError):
        return ListedCases(tuple(cases), notes=("dataset.json is damaged; labels come from the TOML alone",))
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
    return ListedCases(tuple(cases), rejects, tuple(notes))


def _table(tree: Tree, path: str) -> list[dict[str, str]]:
    """Rows of a CSV; none where it cannot be read."""
    try:
        return list(csv.DictReader(StringIO(read_bytes(tree.root, path).decode("utf-8-sig", "replace"))))
    except (CaseRejected, csv.Error):
        return []


def find_mms(spec: CollectionSpec, tree: Tree, cases: list[Case]) -> ListedCases:
    """Cut each M&Ms cine into its annotated frames, end diastole and end systole, which a CSV counts from 0.

    A cine that the CSV names no frames for is rejected; one of the unlabelled studies gives its first frame.
    """
    listing = next((f.path for f in tree.files if re.search(r"M&Ms_Dataset_information[^/]*\.csv$", f.path)), None)
    frames: dict[str, dict[str, int]] = {}
    if listing:
        for row in _table(tree, listing):
            named = {moment: (row.get(moment) or "").strip().removesuffix(".0") for moment in ("ED", "ES")}
            if all(frame.isdecimal() and len(frame) < MAX_FRAME_DIGITS for frame in named.values()):
                frames[slug(row.get("External code") or "")] = {m: int(frame) for m, frame in named.items()}
    cut, rejects = [], []
    for case in cases:
        if case.case not in frames and case.label:
            detail = "the collection's CSV names no annotated frames for this cine; wanted its columns ED and ES"
            rejects.append(make_reject(spec, case.case, Reason.FILE_MISSING, detail))
            continue
        for moment, frame in frames.get(case.case, {"frame00": 0}).items():
            cut.append(replace(case, case=f"{case.case}-{moment.lower()}", channel=frame))
    return ListedCases(tuple(cut), tuple(rejects), () if listing else ("no CSV of frames beside the folders",))


CASE_LISTS: dict[str, Callable[[CollectionSpec, Tree, list[Case]], ListedCases]] = {"msd": find_msd, "mms": find_mms}
