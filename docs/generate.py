"""Rewrite the generated tables in docs/ and README.md: `python docs/generate.py [--check]`.

A generated part stands between `<!-- table: name -->` and `<!-- end -->`.
"""

import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa

from medvar_data.catalog.collection import CollectionSpec, license_of
from medvar_data.catalog.load import load_collections
from medvar_data.catalog.paper_figure import PAPER_CELLS
from medvar_data.errors import Reason
from medvar_data.shardset.columns import Column
from medvar_data.shardset.schema import SLICE_COLUMNS
from medvar_data.shardset.schema import TABLES as SHARD_SET_TABLES
from medvar_data.workspace.case_file import SLICE_TABLE
from medvar_data.workspace.tables import CASE_TABLE

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/collections.md", "docs/formats.md", "docs/parity.md")
STATUS = {"originals": "original files", "listing": "published listings", "unconfirmed": "unconfirmed"}
REASON = re.compile(r'^    \w+ = "(\w+)"  # (.+)$', re.MULTILINE)
PART = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
    cells = (
        f"`{spec.name}`",
        spec.title,
        spec.region,
        modalities,
        license_of(spec),
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
    for cell in PAPER_CELLS:
        counts = [(part.collection, part.expected()) for part in cell.parts]
        ours = sum(n for _, n in counts)
        told = " + ".join(f"`{name}` {n:,}" for name, n in counts)
        rows.append(
            f"| {cell.region} | {cell.modality} | {cell.names} | {cell.volumes:,} | {told} | {ours:,} | {ours - cell.volumes:+,} |"
        )
        total = totals.setdefault(cell.modality, [0, 0])
        total[0] += cell.volumes
        total[1] += ours
    for modality, (volumes, ours) in totals.items():
        rows.append(f"| all | {modality} | | {volumes:,} | | {ours:,} | {ours - volumes:+,} |")
    return "\n".join(rows) + "\n"


def columns(table: tuple[Column, ...]) -> str:
    """One row a column of a Parquet table; that of slices tells too what a sample's JSON repeats."""
    head = ["name", "type", "unit", "meaning"]
    rows = [[f"`{c.name}`", _arrow_type(c.type), c.unit, c.meaning] for c in table]
    if table is SLICE_COLUMNS:
        head.append("in the sample's JSON")
        rows = [[*row, "yes" if c.in_sample else ""] for row, c in zip(rows, table, strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def reasons() -> str:
    """One row a reason for which a case is left out; its meaning is the comment on its line of the code."""
    meanings = dict(REASON.findall(inspect.getsource(Reason)))
    rows = [f"| `{reason}` | {meanings[reason.value]} |" for reason in Reason]
    return "\n".join(["| reason | means |", "|---|---|", *rows]) + "\n"


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
    "reasons": reasons,
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
