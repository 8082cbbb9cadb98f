"""The one rule for names that become part of a path or a key, and for showing texts that others wrote.

Collections, conditions, cases, recipes and shards are named by lower-case letters, digits and hyphens, so that no name leads
anywhere. Labels are free texts: `printable` takes out what would steer a terminal.
"""

import re
import unicodedata
from typing import Annotated

import msgspec

NAME = r"[a-z0-9][a-z0-9-]{0,127}"
SHARD = r"(?:train|val|test)-[0-9]{6,9}\.tar"
DIGEST = r"[0-9a-f]{64}"
KEY = r"[a-z0-9][a-z0-9-]*-z\d{4,}"  # of a slice
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn")  # control, format and unassigned characters

Name = Annotated[str, msgspec.Meta(pattern=f"^{NAME}$")]
ShardName = Annotated[str, msgspec.Meta(pattern=f"^{SHARD}$")]
Digest = Annotated[str, msgspec.Meta(pattern=f"^{DIGEST}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def is_name(text: object) -> bool:
    """Tell whether a text may name a collection, condition, case or recipe.

    >>> is_name("msd-liver"), is_name("../x"), is_name("liver\\n")
    (True, False, False)
    """
    return isinstance(text, str) and re.fullmatch(NAME, text) is not None


def is_key(text: str) -> bool:
    """Tell whether a text may be the key of a slice.

    >>> is_key("msd-liver-0001-z0042"), is_key("../z0042")
    (True, False)
    """
    return re.fullmatch(KEY, text) is not None


def printable(text: str, limit: int = 200, *, lines: bool = False) -> str:
    """A text as it can be shown: without control and format characters (`lines` keeps line ends), cut where it is long.

    >>> printable("liver\\x1b[31m")
    'liver[31m'
    """
    kept = "".join(c for c in text if (lines and c == "\n") or unicodedata.category(c) not in HIDDEN)
    return kept if len(kept) <= limit else f"{kept[:limit]}…"


def how_many(n: int, noun: str) -> str:
    """A number and what it counts, in the singular where it is one; for nouns that take an s.

    >>> how_many(1, "case"), how_many(2000, "case")
    ('1 case', '2,000 cases')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
