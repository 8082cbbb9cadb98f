"""Add to a finished set: what it holds stays as it is, cases that have come into the workspace since go into further shards.

In: a finished set of this workspace. Out: its shards and rows as an `Earlier`, the splits that its patients keep, and which
planned cases it holds already, after each was compared with the workspace.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32

from medvar_data.errors import ShardSetError, WorkspaceError
from medvar_data.shard.manifests import Earlier
from medvar_data.shard.plan import ShardSpec
from medvar_data.shardset.dataset import DATASET_FILE, Dataset, read_dataset
from medvar_data.shardset.schema import CASE_IDENTITY, CASES_SCHEMA, SLICES_SCHEMA, SPLITS, case_keys
from medvar_data.storage.documents import table_of, tables_of
from medvar_data.storage.store import Store, canonical_json, file_digest, scratch_path
from medvar_data.workspace.workspace import Workspace

ANEW = "Write the whole set anew: `medvar-data shard` into an empty folder."
COMPARED = (*(column.name for column in CASE_IDENTITY), "split", "n_kept")  # of a case
MARKED = ("collection", "case", "key", "image_sha256", "mask_sha256", "body_pixels", "foreground_pixels")  # of a slice
CaseKey = tuple[str, str]


def open_earlier(workspace: Workspace, store: Store, spec: ShardSpec) -> Earlier:
    """Open the set that is to be added to.

    Its tables of slices and cases are copied into the workspace first: they are replaced before dataset.json is, so a run that is
    killed in between finds them there.

    Raises:
        ShardSetError: no finished set lies there, or it is damaged.
        WorkspaceError: it is another workspace's, or was made otherwise than is asked for now.
    """
    dataset = read_dataset(store)
    _check_same(workspace, store, spec, dataset)
    for shard in (shard for split in SPLITS for shard in dataset.splits[split].shards):
        if store.size(shard.name) != shard.bytes:
            raise ShardSetError(f"{store.url} lacks {shard.name}, or it has another length than published. {ANEW}")
    copies = workspace.path / "shards" / f"before-{sha256(store.url.encode()).hexdigest()[:16]}"
    folder = copies / sha256(store.read(DATASET_FILE)).hexdigest()[:16]
    for other in copies.glob("*"):
        if other != folder:  # what the set was before it was added to the last time
            shutil.rmtree(other, ignore_errors=True)
    for name in ("slices.parquet", "cases.parquet"):
        copy = folder / name
        if copy.exists() and file_digest(copy) == dataset.tables[name]:
            continue
        with scratch_path(copy) as partial:
            store.get(name, partial)
            if file_digest(partial) != dataset.tables[name]:
                raise ShardSetError(f"{store.url}: {name} is not the one that was published. {ANEW}")
            partial.replace(copy)
    cases = table_of(folder / "cases.parquet", CASES_SCHEMA, f"{store.url}: cases.parquet", ShardSetError, ANEW)
    return Earlier(dataset, folder / "slices.parquet", cases)


def _check_same(workspace: Workspace, store: Store, spec: ShardSpec, dataset: Dataset) -> None:
    if dataset.salt_sha256 != workspace.salt_digest() or dataset.made_from:
        raise WorkspaceError(
            f"{store.url} was not made from this workspace by `medvar-data shard`; wanted a set that was, or no --append."
        )
    asked = {
        "recipe": json.loads(canonical_json(asdict(spec.recipe))), "codec": spec.codec, "condition (--where)": spec.where,
        "split (--val, --test, --seed, --respect-official-splits)": asdict(spec.split), "seed": spec.seed,
        "treatment of copies (--drop-duplicates)": spec.drop_duplicates,
    }  # fmt: skip
    held = (dataset.recipe, dataset.codec, dataset.where, dataset.split, dataset.seed, dataset.drop_duplicates)
    for (name, wanted), found in zip(asked.items(), held, strict=True):
        if wanted != found:
            raise WorkspaceError(
                f"{store.url} was made with another {name}; what is added must be made with the same. Repeat that option, or "
                "shard into an empty folder."
            )


def next_numbers(dataset: Dataset) -> dict[str, int]:
    """The number of the next shard of each split."""
    return {
        split: max((int(shard.name.removeprefix(f"{split}-").removesuffix(".tar")) + 1 for shard in entry.shards), default=0)
        for split, entry in dataset.splits.items()
    }  # fmt: skip


def kept_splits(earlier: Earlier, workspace: Workspace, groups: Iterable[str]) -> dict[str, str]:
    """The split of every patient group that the set holds already."""
    known = dict(zip(earlier.cases["patient"].to_pylist(), earlier.cases["split"].to_pylist(), strict=True))
    hashes = {group: workspace.patient_hash(group) for group in set(groups)}
    return {group: known[patient] for group, patient in hashes.items() if patient in known}


def held_cases(
    earlier: Earlier, cases: pa.Table, slices: Iterable[pa.RecordBatch], chosen: Bool[np.ndarray, " slices"]
) -> Bool[np.ndarray, " cases"]:
    """Tell which planned cases the set holds already; each of them must be in the workspace as it is in the set.

    Args:
        earlier: the set.
        cases: rows of cases.parquet as planned; a slice's `__case` counts them.
        slices: of the plan.
        chosen: which slices are taken.

    Raises:
        WorkspaceError: a case has changed meanwhile, or is gone; names one.
    """
    keys: list[CaseKey] = case_keys(cases)
    before = _rows_by_case(earlier.cases)
    now = _rows_by_case(cases)
    marks: dict[CaseKey, int] = {}
    for batch in slices:
        taken = pa.table(batch).filter(pa.array(chosen[: batch.num_rows]))
        chosen = chosen[batch.num_rows :]
        names = np.array(taken["__case"].to_numpy())
        _add_marks(marks, [keys[number] for number in names], taken)
    found = _marks_of_set(earlier)
    for key in sorted(before):
        if key not in now:
            raise WorkspaceError(
                f"{key[0]}/{key[1]} is in the set, but the workspace has no such slices any more. {ANEW}"
            )
        if before[key] != now[key] or found.get(key) != marks.get(key):
            raise WorkspaceError(f"{key[0]}/{key[1]} is in the set, but has changed in the workspace since. {ANEW}")
    return np.array([key in before for key in keys], dtype=np.bool_)


def fresh_slices(
    held: Bool[np.ndarray, " cases"], case_of: Int32[np.ndarray, " slices"], chosen: Bool[np.ndarray, " slices"]
) -> Bool[np.ndarray, " slices"]:
    """The chosen slices of cases that the set does not hold."""
    return chosen & ~held[case_of] if len(held) else chosen


def _rows_by_case(cases: pa.Table) -> Mapping[CaseKey, str]:
    rows = cases.select(COMPARED).to_pylist()
    return {(row["collection"], row["case"]): json.dumps(row, sort_keys=True) for row in rows if row["n_kept"]}


def _marks_of_set(earlier: Earlier) -> dict[CaseKey, int]:
    marks: dict[CaseKey, int] = {}
    for table in tables_of(earlier.slices, SLICES_SCHEMA, "slices.parquet", ShardSetError, ANEW, columns=MARKED):
        _add_marks(marks, case_keys(table), table)
    return marks


def _add_marks(marks: dict[CaseKey, int], names: list[CaseKey], slices: pa.Table) -> None:
    """Add up a hash of each slice, case by case: a sum does not depend on the order."""
    rows = zip(*(slices[column].to_pylist() for column in MARKED[2:]), strict=True)
    for name, row in zip(names, rows, strict=True):
        mark = int.from_bytes(sha256(json.dumps(row).encode()).digest()[:8], "big")
        marks[name] = (marks.get(name, 0) + mark) % (1 << 64)
