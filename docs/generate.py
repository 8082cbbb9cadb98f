"""Rewrite the generated tables in docs/ and README.md: `python docs/generate.py [--check]`.

A generated part stands between `<!-- table: name -->` and `<!-- end -->`.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa

from medvar_data.catalog.collection import CollectionSpec, license_text
from medvar_data.catalog.load import load_collection, load_collections
from medvar_data.shardset.columns import Column
from medvar_data.shardset.schema import SLICE_COLUMNS
from medvar_data.shardset.schema import TABLES as SHARD_SET_TABLES
from medvar_data.workspace.case_file import SLICE_TABLE
from medvar_data.workspace.tables import CASE_TABLE

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/collections.md", "docs/formats.md", "docs/parity.md")
STATUS = {"originals": "original files", "listing": "published listings", "unconfirmed": "unconfirmed"}
PART = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The paper's figure of data sets, one cell a line: region, modality, names and volumes as printed, then our nearest
# reading of it as (collection, layouts; all that are no variants where empty, cases of ours that make one volume of theirs).
CELLS: tuple[tuple[str, str, str, int, tuple[tuple[str, tuple[str, ...], int], ...]], ...] = (
    ("abdomen", "CT", "AbdomenCT-1K, AMOS, BTCV, CHAOS, KiTS2023, LiTS2017, MSD-Colon, MSD-Spleen, WORD", 2701, (
        ("abdomenct1k", (), 1), ("amos", ("ct", "ct-test"), 1), ("btcv", (), 1), ("chaos", ("ct-train", "ct-test"), 1), ("kits23", (), 1),
        ("lits", (), 1), ("msd-colon", (), 1), ("msd-spleen", (), 1), ("word", ("train", "validation", "test"), 1))),
    ("chest", "CT", "COVID19, SegTHOR", 290, (("covid19-20", (), 1), ("segthor", (), 1))),
    ("heart", "CT", "MMWHS", 60, (("mmwhs", ("ct-train", "ct-test"), 1),)),
    ("spine", "CT", "Spine, VerSe2019", 95, (("xvertseg", (), 1), ("verse", (), 1))),
    ("abdomen", "MR", "AMOS, ATLAS, CHAOS, Multi-center HCC*", 3410, (
        ("amos", ("mr", "mr-test"), 1), ("atlas-liver", (), 1),
        ("chaos", ("mr-t1-in-train", "mr-t1-out-train", "mr-t2-train"), 3))),
    ("brain", "MR", "BraTS", 1251, (("brats", ("training-2021",), 4),)),
    ("heart", "MR", "ACDC, Cardic, MMWHS, MSD-Cardiac", 270, (
        ("acdc", (), 2), ("lasc2013", (), 1), ("mmwhs", ("mr-train", "mr-test"), 1), ("msd-heart", (), 1))),
    ("spine", "MR", "Spine", 80, (("scgm", (), 1),)),
    ("prostate", "MR", "MSD-Prostate, Multi-center Prostate", 168, (
        ("msd-prostate", (), 2), ("prostate-multisite", (), 1))),
)  # fmt: skip


def catalog() -> str:
    """One row a collection."""
    rows = [
        "| name | title | region | modality | licence | access | cases | checked on |",
        "|---|---|---|---|---|---|--:|---|",
    ]
    rows += [_row(spec) for spec in load_collections()]
    return "\n".join(rows) + "\n"


def _row(spec: CollectionSpec) -> str:
    modalities = " ".join(sorted({layout.modality or spec.modality for layout in spec.layouts}))
    checked = ", ".join(dict.fromkeys(STATUS[layout.confirmed] for layout in spec.layouts))
    licence = license_text(spec.license, spec.license_confirmed)
    cells = (
        f"`{spec.name}`",
        spec.title,
        spec.region,
        modalities,
        licence,
        spec.access,
        f"{spec.n_expected:,}",
        checked,
    )
    return f"| {' | '.join(cells)} |"


def parity() -> str:
    """One row a cell of the paper's figure: its volumes beside what our collections expect."""
    rows = ["| region | modality | names in the figure | volumes | ours, in the same unit | sum | difference |"]
    rows.append("|---|---|---|--:|---|--:|--:|")
    totals: dict[str, list[int]] = {}
    for region, modality, names, volumes, parts in CELLS:
        counts = [(name, _expected(name, layouts) // unit) for name, layouts, unit in parts]
        ours = sum(n for _, n in counts)
        told = " + ".join(f"`{name}` {n:,}" for name, n in counts)
        rows.append(f"| {region} | {modality} | {names} | {volumes:,} | {told} | {ours:,} | {ours - volumes:+,} |")
        total = totals.setdefault(modality, [0, 0])
        total[0] += volumes
        total[1] += ours
    for modality, (volumes, ours) in totals.items():
        rows.append(f"| all | {modality} | | {volumes:,} | | {ours:,} | {ours - volumes:+,} |")
    return "\n".join(rows) + "\n"


def _expected(name: str, layouts: tuple[str, ...]) -> int:
    spec = load_collection(name)
    return sum(o.expected for o in spec.layouts if o.id in layouts) if layouts else spec.n_expected


def columns(table: tuple[Column, ...]) -> str:
    """One row a column of a Parquet table; that of slices tells too what a sample's JSON repeats."""
    head = ["name", "type", "unit", "meaning"]
    rows = [[f"`{c.name}`", _arrow_type(c.type), c.unit, c.meaning] for c in table]
    if table is SLICE_COLUMNS:
        head.append("in the sample's JSON")
        rows = [[*row, "yes" if c.in_sample else ""] for row, c in zip(rows, table, strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _arrow_type(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"map of {kind.key_type} to {kind.item_type}"
    if pa.types.is_fixed_size_list(kind):
        return f"list of {kind.list_size} {kind.value_type}"
    if pa.types.is_struct(kind):
        return f"({', '.join(f'{field.name} {_arrow_type(field.type)}' for field in kind)})"
    return f"list of {_arrow_type(kind.value_type)}" if pa.types.is_list(kind) else str(kind)


TABLES: dict[str, Callable[[], str]] = {
    "catalog": catalog,
    "parity": parity,
    "workspace_cases": partial(columns, CASE_TABLE),
    "workspace_slices": partial(columns, SLICE_TABLE),
    **{name.removesuffix(".parquet"): partial(columns, table) for name, table in SHARD_SET_TABLES.items()},
}


def main() -> int:
    """Rewrite, or with --check only compare; returns 1 where a page is out of date."""
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        fresh = PART.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)
        if fresh != text:
            stale.append(name)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
