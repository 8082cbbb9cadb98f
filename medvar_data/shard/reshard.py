"""Make a new shard set from a finished one alone: another codec, size or order of the shards, or fewer slices.

In: a shard set, by its folder or URL; neither workspace nor sources. Out: a shard set of the same pixels, digests and splits, whose
dataset.json names the first by its digest. What is finished so far stands in the folder `unfinished` of the new set, which goes
at the end, so that the same command resumes a run that was killed.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int8, Int32, UInt64

from medvar_data.engine.engine import Engine, as_engine
from medvar_data.errors import MedvarError, ShardSetError, WorkspaceError
from medvar_data.naming import is_key, printable
from medvar_data.records import Progress
from medvar_data.shard.choose import allowed_alone, chosen_slices, left_of_cases, left_out_by_condition
from medvar_data.shard.duplicates import edges_between
from medvar_data.shard.manifests import Provenance, SetContents, write_manifests
from medvar_data.shard.plan import ShardTask, check_codec, cut_shards, order_keys, plan_digest
from medvar_data.shard.plan_files import SLICES, mapped, take_rows, write_rows
from medvar_data.shard.run import ShardSummary
from medvar_data.shard.write import Pair, finish_shard, transcoded
from medvar_data.shard.write_missing import missing_shards, write_missing
from medvar_data.shardset.dataset import (
    DATASET_FILE,
    WAY_ON,
    Dataset,
    codec_of,
    read_dataset,
    read_encoded,
    read_table,
)
from medvar_data.shardset.rejects import rejects_of
from medvar_data.shardset.schema import CASE_KEY, SLICES_SCHEMA, SPLITS, case_keys
from medvar_data.storage.codec import CODECS, Codec
from medvar_data.storage.documents import tables_of
from medvar_data.storage.store import Store, file_digest, remove_partials, scratch_path

UNFINISHED, PLAN = "unfinished", "plan.json"
Shards = list[tuple[str, Int32[np.ndarray, " _"]]]


@dataclass(frozen=True)
class ReshardSpec:
    """What the new set is made of.

    Attributes:
        codec: of the pictures; that of the first set where empty.
        slices_per_shard: upper bound.
        seed: of the order of slices; that of the first set where None.
        where: condition in SQL that the slices fulfil; all where empty.
    """

    codec: str = ""
    slices_per_shard: int = 1024
    seed: int | None = None
    where: str = ""

    def __post_init__(self) -> None:
        if self.codec:
            check_codec(self.codec)


@dataclass(frozen=True)
class _Source:
    """The first set, opened, and the new one's spec with nothing left open."""

    store: Store
    dataset: Dataset
    codec: str
    seed: int
    slices_per_shard: int
    where: str  # asked for now
    where_all: str  # with what the first set was made with


def reshard(
    source: Store, store: Store, spec: ReshardSpec, engine: Engine | int, progress: Callable[[Progress], None]
) -> ShardSummary:
    """Write a shard set made from another one.

    Args:
        source: the finished set.
        store: where the new one goes: an empty folder, or one in which the same command was killed.
        spec: codec, size, seed and condition.
        engine: who does the work; a number means so many processes.
        progress: called at the start and after every shard.

    Raises:
        ShardSetError: the first set is damaged; names the shard and the member.
        WorkspaceError: the second place is the first, or holds something else.
        SpecError: the condition is none.
    """
    _refuse_source(source, store)
    opened = _open(source, spec)
    if store.folder:
        remove_partials(store.folder)
    with _work_folder(store) as folder:
        tasks, contents = _plan(opened, store, folder)
        summary, gone = _summary(contents), left_out_by_condition(contents.rejects)
        if _is_finished(opened, store, tasks):
            store.below(UNFINISHED).remove_all()
            return ShardSummary(read_dataset(store).digest, *summary, n_reused=len(tasks), n_elsewhere=0, left_out=gone)
        _claim(store, tasks, opened)
        missing = missing_shards(tasks, store)
        n_done = len(tasks) - len(missing)
        write_missing(rewrite_shard, missing, n_done, store, as_engine(engine), progress)
        digest = write_manifests(store, contents, _provenance(opened))
    store.below(UNFINISHED).remove_all()
    return ShardSummary(digest, *summary, n_reused=n_done, n_elsewhere=0, left_out=gone)


def rewrite_shard(task: ShardTask) -> str:
    """Write one shard from the members of the first set's shards; returns its name.

    Raises:
        ShardSetError: a member is missing or damaged; names it.
    """
    source, new = Store(task.source), CODECS[task.codec]
    old = codec_of(source)
    rows = take_rows(Path(task.plan) / SLICES, task.rows)
    return finish_shard(task, rows, [_picture(source, row, old, new) for row in rows])


def _picture(source: Store, row: dict[str, object], old: Codec, new: Codec) -> Pair:
    pair = read_encoded(source, row)
    try:
        return transcoded(pair, old, new)
    except ShardSetError as error:
        raise ShardSetError(f"{row['shard']}: a picture of {row['key']} cannot be decoded ({error}) {WAY_ON}") from None


def _refuse_source(source: Store, store: Store) -> None:
    (one, first), (other, second) = source.location, store.location
    if source.folder and store.folder:
        first, second = str(Path(first).resolve()), str(Path(second).resolve())
    if type(one) is type(other) and f"{second}/".startswith(f"{first}/"):
        raise WorkspaceError(f"{store.url} is the set that is read, or lies in it. Give another, empty folder.")


def _open(source: Store, spec: ReshardSpec) -> _Source:
    dataset = read_dataset(source)
    both = [f"({where})" for where in (dataset.where, spec.where) if where]
    return _Source(
        source,
        dataset,
        spec.codec or dataset.codec,
        dataset.seed if spec.seed is None else spec.seed,
        spec.slices_per_shard,
        spec.where,
        " AND ".join(both) if len(both) == 2 else dataset.where or spec.where,
    )


@contextmanager
def _work_folder(store: Store) -> Iterator[Path]:
    """A local folder for the plan and half-written shards: in the new set where that is local, so that the disk is the same.

    A run that is refused before it has noted its plan leaves nothing.
    """
    notes = store.below(UNFINISHED)
    with tempfile.TemporaryDirectory(prefix="medvar-reshard-") as elsewhere:
        try:
            yield notes.folder or Path(elsewhere)
        except MedvarError:
            if notes.size(PLAN) is None:
                notes.remove_all()
            raise


def _plan(opened: _Source, store: Store, folder: Path) -> tuple[list[ShardTask], SetContents]:
    """Plan the shards, and write the rows that they are made from into the folder."""
    source, dataset = opened.store, opened.dataset
    cases, collections, rejected, edges = (
        read_table(source, f"{name}.parquet", dataset) for name in ("cases", "collections", "rejects", "edges")
    )
    rejects = rejects_of(rejected, f"{source.url}: rejects.parquet", ShardSetError, WAY_ON)
    _refuse_other(store, opened)
    with tempfile.TemporaryDirectory() as scratch:
        splits, order, case_of = _write_slices(opened, cases, Path(scratch), folder)
    asked = (opened.where, mapped(folder / SLICES), cases, collections, CASE_KEY)
    chosen = chosen_slices(*asked)
    counts, alone = (np.bincount(case_of[taken], minlength=cases.num_rows) for taken in (chosen, allowed_alone(*asked)))
    left, not_selected = left_of_cases(cases, collections, counts, opened.where, alone)
    left = left.filter(pc.greater(left["n_kept"], 0))
    shards = cut_shards(splits, order, chosen, opened.slices_per_shard)
    tasks = _tasks(opened, shards, store, folder)
    return tasks, SetContents(tasks, left, edges_between(edges, left), collections, [*rejects, *not_selected])


def _write_slices(
    opened: _Source, cases: pa.Table, scratch: Path, folder: Path
) -> tuple[Int8[np.ndarray, " slices"], UInt64[np.ndarray, "slices 2"], Int32[np.ndarray, " slices"]]:
    """Put the first set's rows where every process finds them; gives split, place in the order and case of each."""
    where = f"{opened.store.url}: slices.parquet"
    opened.store.get("slices.parquet", scratch / "slices.parquet")
    if file_digest(scratch / "slices.parquet") != opened.dataset.tables["slices.parquet"]:
        raise ShardSetError(f"{where} is not the one that dataset.json was published with. {WAY_ON}")
    numbers = {name: number for number, name in enumerate(case_keys(cases))}
    splits: list[int] = []
    case_of: list[int] = []
    orders = [np.empty((0, 2), dtype=np.uint64)]

    def tables() -> Iterator[pa.Table]:
        for table in tables_of(scratch / "slices.parquet", SLICES_SCHEMA, where, ShardSetError, WAY_ON):
            keys, of = table["key"].to_pylist(), table["split"].to_pylist()
            owners = case_keys(table)
            wrong = [
                k
                for k, s, o in zip(keys, of, owners, strict=True)
                if not is_key(k) or s not in SPLITS or o not in numbers
            ]
            if wrong:
                raise ShardSetError(
                    f"{where}: the row of {printable(wrong[0])} has a key, split or case that is none. {WAY_ON}"
                )
            splits.extend(SPLITS.index(split) for split in of)
            orders.append(order_keys(keys, opened.seed))
            case_of.extend(numbers[owner] for owner in owners)
            yield table.cast(SLICES_SCHEMA)

    with scratch_path(folder / SLICES) as path:
        write_rows(path, tables(), SLICES_SCHEMA)
        path.replace(folder / SLICES)
    return np.array(splits, dtype=np.int8), np.concatenate(orders), np.array(case_of, dtype=np.int32)


def _tasks(opened: _Source, shards: Shards, store: Store, folder: Path) -> list[ShardTask]:
    contents = (opened.where_all.encode(), opened.store.read(DATASET_FILE))
    digest = plan_digest(shards, opened.codec, contents)
    notes = store.below(UNFINISHED).url
    return [
        ShardTask(name, rows, str(folder), opened.store.url, opened.codec, store.url, notes, digest)
        for name, rows in shards
    ]


def _is_finished(opened: _Source, store: Store, tasks: Sequence[ShardTask]) -> bool:
    """Tell whether the new set is there as it is to be."""
    if store.size(DATASET_FILE) is None:
        return False
    found = read_dataset(store)
    wanted = {task.name: len(task.rows) for task in tasks}
    shards = {shard.name: shard.slices for split in found.splits.values() for shard in split.shards}
    return _agrees(found, opened) and shards == wanted


def _agrees(found: Dataset, opened: _Source) -> bool:
    made = (found.made_from, found.codec, found.seed, found.where, found.versions.get("encoder"))
    encoder = CODECS[opened.codec].version
    return made == (opened.dataset.digest, opened.codec, opened.seed, opened.where_all, encoder)


def _refuse_other(store: Store, opened: _Source) -> None:
    """Refuse a place that holds anything but what this command left or finished."""
    there = [name for name in store.names() if name != UNFINISHED and not name.startswith(".")]
    if store.size(DATASET_FILE) is not None:
        if not _agrees(read_dataset(store), opened):
            raise WorkspaceError(f"{store.url} holds another shard set. Give an empty folder.")
    elif there and store.below(UNFINISHED).size(PLAN) is None:
        raise WorkspaceError(f"{store.url} is not empty: it holds {printable(there[0], 80)}. Give an empty folder.")


def _claim(store: Store, tasks: Sequence[ShardTask], opened: _Source) -> None:
    """Note in the new place which plan it is for; refuse one that was begun with another."""
    notes, digest = store.below(UNFINISHED), tasks[0].digest if tasks else plan_digest([], opened.codec, [])
    if store.size(DATASET_FILE) is not None:
        raise WorkspaceError(f"{store.url} holds a set with shards of another size. Give an empty folder.")
    if notes.size(PLAN) is not None:
        if sha256(notes.read(PLAN)).digest() != sha256(_note(digest)).digest():
            raise WorkspaceError(
                f"{store.url} was begun with other options, or from another set. Repeat them, or give an empty folder."
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PLAN).write_bytes(_note(digest))
        notes.put(Path(folder) / PLAN, PLAN)


def _note(digest: str) -> bytes:
    return json.dumps({"plan": digest}).encode()


def _provenance(opened: _Source) -> Provenance:
    dataset = opened.dataset
    return Provenance(
        image_side=dataset.image_side,
        codec=opened.codec,
        recipe=dataset.recipe,
        split=dataset.split,
        seed=opened.seed,
        salt_sha256=dataset.salt_sha256,
        pipeline=dataset.versions.get("pipeline"),
        where=opened.where_all,
        made_from=dataset.digest,
        drop_duplicates=dataset.drop_duplicates,
    )


def _summary(contents: SetContents) -> tuple[dict[str, int], int, int, int]:
    """Slices by split, shards, cases and rejected cases of the new set."""
    n_slices = {split: sum(len(t.rows) for t in contents.tasks if t.split == split) for split in SPLITS}
    return n_slices, len(contents.tasks), contents.cases.num_rows, len(contents.rejects)
