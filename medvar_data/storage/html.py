"""Put sections of HTML together as one page that needs no network: tables, pictures, a little style."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from medvar_data.storage.store import write_bytes

SECTIONS = "sections"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #1d2430; background: #fbfbfd; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d9dde5; padding-bottom: .3rem }
h3 { margin: 1.6rem 0 .4rem } p.lead { color: #566072; margin-top: 0 }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: 14px }
th { text-align: left; color: #566072; font-weight: 600 } th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e8ebf0; vertical-align: top }
td.number { text-align: right } img { max-width: 100%; border-radius: 4px; background: #181818; image-rendering: auto }
svg { max-width: 100% } figure { margin: .6rem 0 1.2rem } figcaption { color: #566072; font-size: 14px }
"""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table; numbers are set flush right."""
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(_cell(v) for v in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def figure(source: str, caption: str) -> str:
    """Show a picture that lies beside the page."""
    return f'<figure><img src="{escape(source)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def write_section(folder: Path, name: str, html: str) -> None:
    """Keep one section; names sort in the order of the page."""
    write_bytes(folder / SECTIONS / f"{name}.html", html.encode())


def assemble(folder: Path, title: str, lead: str) -> Path:
    """Put all kept sections on one page, `index.html`."""
    parts = [p.read_text(encoding="utf-8") for p in sorted((folder / SECTIONS).glob("*.html"))]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(lead)}</p>{"".join(parts)}</body></html>\n'
    )
    write_bytes(folder / "index.html", page.encode())
    return folder / "index.html"


def number(value: float | int | None) -> str:
    """Write a number as a table shows it; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def picture(folder: str, name: str, says: str) -> str:
    """Show `<folder>/<name>.png`, which lies beside the page."""
    return f'<img src="{escape(folder)}/{escape(name)}.png" alt="{escape(says)}">'


def folded(title: str, html: str) -> str:
    """Hide a part of the page behind its title."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def _cell(value: object) -> str:
    if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
        return f"<td>{escape(str(value))}</td>"
    return f'<td class="number">{number(value)}</td>'
