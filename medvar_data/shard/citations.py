"""Write CITATION.bib: what the collections of a set ask to be cited, one entry each."""

import re
from collections.abc import Sequence

from medvar_data.shard.datasheet import Origin

CITATION_FILE = "CITATION.bib"
ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
VERBATIM = re.compile(r"[^\w.:/()<>;,=?&+\-]", re.ASCII)  # what a link may not hold as it is
YEAR = re.compile(r"\b(?:19[89]|20[0-9])\d\b")


def citations_bytes(origins: Sequence[Origin]) -> bytes:
    """Make CITATION.bib of the collections whose scans a set holds; those that name neither DOI nor citation have no entry.

    Args:
        origins: the collections, in order.
    """
    entries = [_entry(origin) for origin in origins if origin.doi or origin.citation]
    head = "% What the collections in this set ask to be cited. UTF-8; entries are @misc, their notes as published.\n"
    return "\n".join([head, *entries]).encode()


def _entry(origin: Origin) -> str:
    years = YEAR.findall(origin.citation)
    fields = {
        "title": f"{{{escaped(origin.title)}}}",  # doubled braces keep upper and lower case
        "year": years[-1] if years else "",
        "doi": _link(origin.doi),
        "url": _link(origin.homepage),
        "note": escaped(origin.citation),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{origin.name},", *lines, "}\n"])


def escaped(text: str) -> str:
    """A text as BibTeX and LaTeX show it.

    >>> escaped("R&D {100 %}")
    'R\\\\&D \\\\{100 \\\\%\\\\}'
    """
    return " ".join("".join(ESCAPES.get(letter, letter) for letter in text).split())


def _link(text: str) -> str:
    """A DOI or address, which BibTeX takes as it stands; letters that could end the field are percent-encoded."""
    return VERBATIM.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)
