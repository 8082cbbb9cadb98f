"""Name cases: keys from published names, the publisher's split, and the rejects that carry them."""

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import new as hmac

from medvar_data.catalog.collection import CollectionSpec, Layout, parse_numbers
from medvar_data.errors import Reason
from medvar_data.records import Reject

MAX_CASE_KEY = 48  # letters; with collection, channel and ending a member's name stays below the archive's 99


def official_split(layout: Layout, groups: Mapping[str, str]) -> str:
    """The split that the publisher gives: by number where the layout lists numbers."""
    for name, text in layout.splits.items():
        if groups["number"].isdecimal() and int(groups["number"]) in parse_numbers(text):
            return name
    split = layout.split.format_map(groups)
    return layout.split_names.get(split, split)


def skip_reason(spec: CollectionSpec, name: str) -> str:
    """Tell why a case is left out before it is opened; "" where it is not."""
    for quirk in spec.quirks:
        if quirk.skip and quirk.holds_for(name):
            return quirk.action
    return ""


def case_key(name: str, spec: CollectionSpec, salt: bytes) -> str:
    """Turn a case's name into its key, [a-z0-9-]{1,48}; where names are to be hidden, 12 hex digits of a salted hash."""
    if spec.case_names == "hash":
        return hmac(salt, f"{spec.name}/{name}".encode(), "sha256").hexdigest()[:12]
    key = slug(name)
    if 0 < len(key) <= MAX_CASE_KEY:
        return key
    return f"{key[: MAX_CASE_KEY - 13]}-{sha256(name.encode()).hexdigest()[:12]}"


def slug(name: str) -> str:
    """Lower-case a name, with one hyphen for whatever is no letter or digit.

    >>> slug("BraTS_2021/00042")
    'brats-2021-00042'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def natural(key: str) -> list[tuple[int, int, str]]:
    """Sort key that counts: "case-2" before "case-10"."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", key)]


def make_reject(spec: CollectionSpec, case: str, reason: Reason, detail: str, files: Iterable[str] = ()) -> Reject:
    """Leave a case out at this stage, ingest."""
    return Reject(spec.name, case, "ingest", reason, detail, tuple(files))
