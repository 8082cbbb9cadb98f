"""Prove a shard set: every byte, row and promise of its tables is checked again, from the files alone.

Checks, in order: dataset.json and the digests of tables and shards; each shard (`audit.members`): the archive byte by byte, offsets,
keys, sample JSON, pixels against digests and counts; the tables against each other and against dataset.json, which are made again
from slices and cases (`audit.recount`); scans that lie in two splits (`audit.copies`); the files that
lie in the folder; the data card and the citations, made again; the files that croissant.json lists. Where asked for, the
seal (`audit.seal`), and slices made again from their sources (`audit.remake`).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medvar_data.audit.copies import check_copies
from medvar_data.audit.members import GreyLevels, Promised, check_shard
from medvar_data.audit.promises import check_documents
from medvar_data.audit.recount import FEW, check_tables
from medvar_data.audit.remake import OTHER_WORKSPACE, RemakeSpec, check_remade, drawn_keys
from medvar_data.audit.seal import SEAL_FILE, check_seal, key_digest
from medvar_data.errors import ShardSetError
from medvar_data.naming import printable
from medvar_data.records import Progress
from medvar_data.shard.card import DOCUMENTS
from medvar_data.shard.croissant import CROISSANT_FILE, contradictions
from medvar_data.shardset.dataset import DATASET_FILE, WAY_ON, Dataset, read_dataset
from medvar_data.shardset.schema import SCHEMAS, SPLITS, TABLES, VERSION_NOTE
from medvar_data.storage.documents import table_of
from medvar_data.storage.store import Store

MAX_FINDINGS = 50
ENOUGH = 5_000  # findings in shards after which no further shard is read
PUBLISHERS_OWN = ("LICENSE*", "NOTICE*", "CITATION.cff", "*.bib", SEAL_FILE)
"""Files that a publisher may put beside a set's own."""


@dataclass(frozen=True)
class Verification:
    """What was checked and what was found wrong; an empty list of findings is a sound set.

    Attributes:
        n_shards, n_slices, n_cases: of the set.
        findings: sentences; of one kind ten at most, and how many more there are.
        dataset_sha256: of dataset.json as it was read, which holds the digests of all tables and shards.
        remade: keys of the slices that were made again from their sources, right or wrong.
        sealed_by: sha256 of the public key whose seal was found right; empty where none was asked for, or where it was wrong.
    """

    n_shards: int
    n_slices: int
    n_cases: int
    findings: tuple[str, ...]
    dataset_sha256: str
    remade: tuple[str, ...] = ()
    sealed_by: str = ""


def verify(
    store: Store,
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    remake: RemakeSpec | None = None,
    public_key: Path | None = None,
) -> Verification:
    """Check a shard set.

    Args:
        store: the set.
        progress: called after every shard, and after every case that is made again.
        remake: slices to make again from their sources; none where absent.
        public_key: file with the key of whoever is to have sealed the set; the seal is not looked at where absent.

    Raises:
        ShardSetError: there is no set to check, or its tables cannot be read.
        WorkspaceError: there is no such key, or no such workspace.
    """
    dataset = read_dataset(store)
    findings: list[str] = check_seal(store, public_key) if public_key else []
    sealed_by = key_digest(public_key) if public_key and not findings else ""
    tables = {name: _table(store, name, dataset, findings) for name in TABLES}
    slices, cases = tables["slices.parquet"].combine_chunks(), tables["cases.parquet"]
    rows_of, promised = _rows_by_shard(slices), Promised(dataset, _labels(tables["collections.parquet"]), GreyLevels())
    entries = [(split, entry) for split in SPLITS for entry in dataset.splits[split].shards]
    for done, (split, entry) in enumerate(entries, start=1):
        rows = slices.take(rows_of.pop(entry.name, pa.array([], pa.int64()))).to_pylist()
        findings += check_shard(store, split, entry, rows, promised)
        progress(Progress(done, len(entries), entry.name, "checked"))
        if len(findings) >= ENOUGH:
            break
    else:
        findings += [f"slices.parquet names {name}, which dataset.json does not" for name in rows_of]
        findings += promised.grey_levels.contradictions(cases)
    findings += check_tables(tables, dataset)
    findings += check_copies(tables, dataset)
    findings += _check_files(store, {entry.name for _, entry in entries})
    findings += check_documents(store, tables, dataset)
    findings += _check_croissant(store, dataset)
    if remake:
        findings += check_remade(store, tables, dataset, remake, progress)
    return Verification(
        len(entries),
        slices.num_rows,
        cases.num_rows,
        tuple(few_of_a_kind(findings)[:MAX_FINDINGS]),
        sha256(store.read(DATASET_FILE)).hexdigest(),
        drawn_keys(slices, remake) if remake and OTHER_WORKSPACE not in findings else (),
        sealed_by,
    )


def few_of_a_kind(findings: Sequence[str]) -> list[str]:
    """Leave ten findings of each kind, and say how many more there are; two are of one kind that differ in names and numbers alone.

    >>> few_of_a_kind([f"a-z{n}: it lies at byte {n}" for n in range(12)])[9:]
    ['a-z9: it lies at byte 9', 'and 2 more of this kind: a-z10: it lies at byte 10']
    """
    kinds: dict[str, list[str]] = {}
    for finding in findings:
        kinds.setdefault(re.sub(r"\d[\d,]*", "0", finding.split(": ", 1)[-1]), []).append(finding)
    few = []
    for found in kinds.values():
        few += found[:FEW]
        if len(found) > FEW:
            few.append(f"and {len(found) - FEW:,} more of this kind: {found[FEW]}")
    return few


def _rows_by_shard(slices: pa.Table) -> dict[str, pa.Array]:
    """The numbers of each shard's rows, in order: as objects all rows at once would take gigabytes."""
    if not slices.num_rows:
        return {}
    shard = slices["shard"].combine_chunks().dictionary_encode()
    codes = shard.indices.to_numpy()
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return {name: pa.array(part) for name, part in zip(shard.dictionary.to_pylist(), parts, strict=True)}


def _table(store: Store, name: str, dataset: Dataset, findings: list[str]) -> pa.Table:
    try:
        data = store.read(name)
    except OSError as error:
        raise ShardSetError(f"{name} is missing or cannot be read. {WAY_ON}") from error
    if sha256(data).hexdigest() != dataset.tables[name]:
        findings.append(f"{name} does not have the digest that dataset.json gives")
    table = table_of(data, SCHEMAS[name], name, ShardSetError, WAY_ON)
    findings += _check_form(name, data)
    return table


def _check_form(name: str, data: bytes) -> Iterator[str]:
    """A table has its columns and its note of the schema's version, and nothing beside them."""
    found = pq.read_schema(pa.BufferReader(data))
    more = [column for column in found.names if column not in SCHEMAS[name].names]
    yield from (f"{name} has a column {printable(column, 80)!r} that no set has" for column in more)
    notes = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (found.metadata or {}).items()
    }
    if notes != VERSION_NOTE:
        shown = ", ".join(sorted({*notes} ^ {*VERSION_NOTE})) or "another version"
        yield f"the metadata of {name} is not as it was written: {printable(shown, 80)}"


def _labels(collections: pa.Table) -> dict[str, frozenset[int]]:
    """By collection, the label ids that its masks may hold."""
    rows = collections.select(["collection", "labels"]).to_pylist()
    return {row["collection"]: frozenset(label for label, _ in row["labels"]) for row in rows}


def _check_files(store: Store, shards: set[str]) -> Iterator[str]:
    """Only the set's own files lie in its folder, and those of its publisher."""
    own = {*shards, *TABLES, *DOCUMENTS, DATASET_FILE, CROISSANT_FILE}
    for name in store.names():
        if name not in own and not any(fnmatchcase(name, pattern) for pattern in PUBLISHERS_OWN):
            yield f"{printable(name, 80)} lies in the folder but is not part of the set"


def _check_croissant(store: Store, dataset: Dataset) -> list[str]:
    try:
        return contradictions(store.read(CROISSANT_FILE), dataset)
    except OSError:
        return [f"{CROISSANT_FILE} is missing or cannot be read"]
    except ShardSetError as error:
        return [str(error)]
