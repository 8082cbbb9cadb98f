"""Check what a set promises of licences and of privacy: the terms of copies, the counts of faces and texts, frames that tell no place.

In: tables of a set. Out: a sentence for each thing that is not as promised.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import zip_longest

import pyarrow as pa

from medvar_data.naming import printable
from medvar_data.records import LICENSE_TERMS
from medvar_data.shard.card import CARD_VERSION, DOCUMENTS, Stated, documents, reasons_of
from medvar_data.shard.collections import counted
from medvar_data.shard.privacy import EXTREMES, own_frame, rounded
from medvar_data.shard.terms import LOOSEST_FIRST, joined_cases, own_terms, strictest, strictest_terms
from medvar_data.shardset.dataset import Dataset
from medvar_data.shardset.schema import CASE_KEY
from medvar_data.storage.store import Store

SEEN = ("n_faces", "n_burned_in_text")
FRAME_COLUMNS = ("collection", "case", "source_affine", "source_shape", *EXTREMES)
TOLERANCE_MM = 1e-6


def check_terms(cases: pa.Table, collections: pa.Table, edges: pa.Table) -> Iterator[str]:
    """No case has looser terms than its collection, or than a copy of it; stricter ones may come from a copy that was left out."""
    if set(cases["collection"].to_pylist()) - set(collections["collection"].to_pylist()):
        return  # said elsewhere
    for row in collections.select(["collection", *LICENSE_TERMS]).to_pylist():
        for term in LICENSE_TERMS:
            if row[term] not in LOOSEST_FIRST[term]:
                yield f"{row['collection']}: its {term} is {printable(str(row[term]), 40)!r}; wanted yes, no or unknown"
    wanted = strictest_terms(own_terms(cases, collections), joined_cases(cases, edges))
    names = cases.select(list(CASE_KEY)).to_pylist()
    for term in LICENSE_TERMS:
        pairs = zip(names, cases[term].to_pylist(), wanted[term].to_pylist(), strict=True)
        for name, said, least in pairs:
            if said not in LOOSEST_FIRST[term] or strictest(term, [said, least]) != said:
                yield f"{name['collection']}/{name['case']}: its {term} is {said!r}, its collection and its copies give {least!r}"


def check_privacy(cases: pa.Table, collections: pa.Table) -> Iterator[str]:
    """Faces and texts are counted; no case of a collection that is not public says where it lay in the scanner."""
    counts = counted(collections, cases, []).select(["collection", *SEEN]).to_pylist()
    found = {row["collection"]: row for row in counts}
    for row in collections.select(["collection", *SEEN]).to_pylist():
        for name in SEEN:
            wanted = found.get(row["collection"], {name: 0})[name]
            if row[name] != wanted:
                yield f"{row['collection']}: {name} is {row[name]}, cases.parquet gives {wanted}"
    private = {
        row["collection"] for row in collections.select(["collection", "public"]).to_pylist() if not row["public"]
    }
    for row in cases.select(FRAME_COLUMNS).to_pylist() if private else ():
        if row["collection"] not in private:
            continue
        if not _tells_no_place(row["source_affine"], row["source_shape"]):
            yield f"{row['collection']}/{row['case']}: its collection is not public, but its source_affine has the scanner's frame"
        if any(row[name] != rounded(row[name]) for name in EXTREMES):
            yield f"{row['collection']}/{row['case']}: its collection is not public, but its extremes are not rounded"


def _tells_no_place(affine: list[float], shape: list[int]) -> bool:
    try:
        plain = own_frame(affine, shape)
    except (ValueError, TypeError, ArithmeticError):
        return True  # no affine: said elsewhere
    return all(abs(a - b) <= TOLERANCE_MM for a, b in zip(affine, plain, strict=True))


def check_documents(store: Store, tables: Mapping[str, pa.Table], dataset: Dataset) -> Iterator[str]:
    """Data card and citations have the digests of dataset.json and say, byte by byte, what the tables give.

    A card whose words an earlier medvar chose is held to its digest alone.
    """
    if sorted(dataset.documents) != sorted(DOCUMENTS):
        yield f"dataset.json does not list the documents {' and '.join(DOCUMENTS)}"
        return
    version = dataset.versions.get("card")
    if not (isinstance(version, int) and 1 <= version <= CARD_VERSION):
        yield f"the data card has the version {version!r}, which this medvar does not know"
        return
    wanted: Mapping[str, bytes] = {}
    try:
        if version == CARD_VERSION:
            stated = Stated(
                tables["cases.parquet"], tables["collections.parquet"], reasons_of(tables["rejects.parquet"])
            )
            wanted = documents(dataset, stated)
    except (pa.ArrowException, LookupError, TypeError, ValueError):
        yield "the data card cannot be made again: the tables hold values that are none"
    for name in DOCUMENTS:
        try:
            data = store.read(name)
        except OSError:
            yield f"{name} is missing or cannot be read"
            continue
        if sha256(data).hexdigest() != dataset.documents[name]:
            yield f"{name} does not have the digest that dataset.json gives"
        if data != wanted.get(name, data):
            yield (
                f"{name} does not say what the tables give, so one of them was edited{_first_difference(data, wanted[name])}; words of "
                "your own go into NOTICE.md"
            )


def _first_difference(found: bytes, wanted: bytes) -> str:
    """Say where two texts part."""
    pairs = zip_longest(*(text.decode("utf-8", "replace").splitlines() for text in (found, wanted)), fillvalue="")
    for number, (one, other) in enumerate(pairs, start=1):
        if one != other:
            parting = next(n for n, (a, b) in enumerate(zip_longest(one, other)) if a != b)
            at = max(0, parting - 20)
            return f" (line {number}: {printable(one[at:], 60)!r}, the tables give {printable(other[at:], 60)!r})"
    return ""
