"""Rewrite the generated tables in docs/ and README.md: `python docs/generate.py [--check]`.

A generated part stands between `<!-- table: name -->` and `<!-- end -->`.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from medvar_data.catalog import CollectionSpec, load_collections

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/collections.md")
STATUS = {"originals": "original files", "listing": "published listings", "unconfirmed": "unconfirmed"}
PART = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def collections() -> str:
    """One row a collection."""
    rows = ["| name | title | region | modality | licence | access | cases | checked on |", "|---|---|---|---|---|---|--:|---|"]
    rows += [_row(spec) for spec in load_collections()]
    return "\n".join(rows) + "\n"


def _row(spec: CollectionSpec) -> str:
    modalities = " ".join(sorted({layout.modality or spec.modality for layout in spec.layouts}))
    checked = ", ".join(dict.fromkeys(STATUS[layout.confirmed] for layout in spec.layouts))
    licence = spec.license + ("" if spec.license_confirmed else " (unconfirmed)")
    cells = (f"`{spec.name}`", spec.title, spec.region, modalities, licence, spec.access, f"{spec.n_expected:,}", checked)
    return f"| {' | '.join(cells)} |"


TABLES: dict[str, Callable[[], str]] = {"collections": collections}


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
