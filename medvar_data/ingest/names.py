"""Name cases: keys from published names, the publisher's split, and the rejects that carry them."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import new as hmac

from medvar_data.catalog.collection import CollectionSpec, Layout, condition_name, parse_numbers
from medvar_data.errors import Reason
from medvar_data.records import Case, Reject

MAX_CASE_KEY = 48  # letters; with collection, channel and ending a member's name stays below the archive's 99


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case below a root, as `Case` holds them."""

    root: str
    image: tuple[str, ...]
    label: tuple[str, ...]
    channel: int
    n_bytes: int


def make_case(
    spec: CollectionSpec,
    layout: Layout,
    groups: Mapping[str, str],
    *,
    key: str,
    patient: str,
    sequence: str,
    files: CaseFiles,
    region: str = "",
) -> Case:
    """Make a case from what its layout and its names say.

    Args:
        spec: its collection.
        layout: that found it.
        groups: what the layout's pattern captured of the image's path.
        key: of the case.
        patient: as named within the collection, or within the one whose patients these are.
        sequence: as stored.
        files: where it lies; the times of its files are still to be noted.
        region: of the body; empty: that of the layout, else the collection's.
    """
    modality = layout.modality or spec.modality
    return Case(
        collection=spec.name,
        case=key,
        group=f"{patients_of(spec, layout)}/{patient}",
        modality=modality,
        region=region or layout.region or spec.region,
        sequence=sequence,
        official_split=official_split(layout, groups),
        condition=condition_name(spec, modality),
        layout=layout.id,
        reader=layout.reader,
        root=files.root,
        image=files.image,
        label=files.label,
        channel=files.channel,
        n_bytes=files.n_bytes,
        modified_ns=0,
    )


def patients_of(spec: CollectionSpec, layout: Layout) -> str:
    """Name the collection or family whose patients a layout's are."""
    return layout.patients_of or spec.family or spec.name


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
    """Turn a case's name into its key, [a-z0-9-]{1,48}; where names are to be hidden, 12 hex digits of a salted hash.

    A name that is too long, or holds letters beyond a to z, ends in a hash of its own, so that no two share a key for that.
    """
    if spec.case_names == "hash":
        return hmac(salt, f"{spec.name}/{name}".encode(), "sha256").hexdigest()[:12]
    key = slug(name)
    is_told = all(letter.isascii() or not letter.isalnum() for letter in name)
    return key if is_told and 0 < len(key) <= MAX_CASE_KEY else with_hash(key, name)


class CaseKeys:
    """Keys of a collection's cases: names that differ get keys that differ, though it be in upper and lower case alone.

    The first to ask for a key has it; another name gets a hash of its own at the end.
    """

    def __init__(self, spec: CollectionSpec, salt: bytes) -> None:
        self._spec, self._salt = spec, salt
        self._names: dict[str, str] = {}

    def key(self, name: str) -> str:
        """The key of the case with this name; the same for the same name."""
        key = case_key(name, self._spec, self._salt)
        return key if self._names.setdefault(key, name) == name else with_hash(key, name)


def with_hash(key: str, name: str) -> str:
    """A key cut where it is long, with a hash of the whole name at its end."""
    whole = unicodedata.normalize("NFC", name)  # as other file systems spell it too
    return f"{key[: MAX_CASE_KEY - 13]}-{sha256(whole.encode()).hexdigest()[:12]}".lstrip("-")


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
