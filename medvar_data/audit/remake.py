"""Make slices again from their sources, and say who is wrong where they differ: the shard, its row, or the source.

In: a shard set and the workspace that it was made from. Out: sentences. Whoever paints a set and makes all its digests fit again
does not pass: the pixels come from the sources alone. The sources of a few cases are read, one at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from medvar_data.audit.recount import same
from medvar_data.audit.source import recipe_of, source_case
from medvar_data.catalog.recipe import Recipe
from medvar_data.errors import CaseRejected, ShardSetError, SpecError, WorkspaceError
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.naming import printable
from medvar_data.readers.read import read_scan
from medvar_data.readers.scan import Scan
from medvar_data.records import LICENSE_TERMS, Case, HarmonizedSlice, Progress
from medvar_data.shard.rows import KeptCase, Numbering, case_row
from medvar_data.shardset.dataset import Dataset, read_encoded
from medvar_data.shardset.schema import CASES_SCHEMA
from medvar_data.sources.archives import DEFAULT_ACCESS, AccessSpec, open_access
from medvar_data.storage.codec import CODECS, Codec, pixel_digest
from medvar_data.storage.parquet import table_from_rows
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

CHOSEN = ("n_kept", "n_not_selected", "split", *LICENSE_TERMS)  # of a case: what the set decided, by its copies too
OTHER_WORKSPACE = "the set was made with another salt than this workspace's; give the one that it was made from"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class RemakeSpec:
    """Which slices are made again: `count` of them, drawn by `seed`.

    Attributes:
        workspace: that the set was made from.
        count: upper bound.
        seed: of the draw.
        archives: passwords, and where to unpack what cannot be read in place.
    """

    workspace: Workspace
    count: int
    seed: int = 0
    archives: AccessSpec = DEFAULT_ACCESS

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0:
            raise SpecError(
                f"{self.count} slices are to be made again, drawn by seed {self.seed}; wanted 1 or more, and 0 or more."
            )


@dataclass(frozen=True)
class MadeAgain:
    """A case as its source makes it now.

    Attributes:
        case: as ingested.
        scan: as read.
        unchanged: whether image and label have the digests that the set's row gives.
        slices: by z.
        row: of cases.parquet.
    """

    case: Case
    scan: Scan
    unchanged: bool
    slices: Mapping[int, HarmonizedSlice]
    row: dict[str, Any]


def make_again(workspace: Workspace, published: Row, recipe: Recipe) -> MadeAgain:
    """Read the source of a case and harmonize it.

    Args:
        workspace: that the set was made from.
        published: row of cases.parquet.
        recipe: of the set.

    Raises:
        WorkspaceError: the workspace does not hold the case.
        CaseRejected: the source can no longer be read, or gives no slice.
    """
    case = source_case(workspace, published)
    spec = workspace.spec(case.collection)
    scan = read_scan(case, spec)
    volume = harmonize(scan, case, spec, recipe)
    ids = workspace.condition_ids({case.condition})
    kept = KeptCase(Path(), case, volume.case, spec, recipe, rows_sha256="")
    row = {**case_row(kept, Numbering(ids, workspace)), "split": published["split"]}
    row = table_from_rows([row], CASES_SCHEMA).to_pylist()[0]
    unchanged = all(row[name] == published[name] for name in ("source_sha256", "label_sha256"))
    return MadeAgain(case, scan, unchanged, {s.z: s for s in volume.slices}, row)


def check_remade(
    store: Store,
    tables: Mapping[str, pa.Table],
    dataset: Dataset,
    spec: RemakeSpec,
    progress: Callable[[Progress], None],
) -> Iterator[str]:
    """Compare drawn slices, their cases and the list of all cases with what workspace and sources give.

    Args:
        store: the shard set.
        tables: of the set, by file name.
        dataset: as read.
        spec: which slices, and from where.
        progress: called after every case.
    """
    if dataset.salt_sha256 != spec.workspace.salt_digest():
        yield OTHER_WORKSPACE
        return
    yield from _check_found(tables["cases.parquet"], tables["rejects.parquet"], spec.workspace)
    drawn = _drawn(tables["slices.parquet"], spec)
    cases = {_name(row): row for row in tables["cases.parquet"].to_pylist() if _name(row) in drawn}
    recipe = recipe_of(store)
    with open_access(spec.archives):
        for done, (name, rows) in enumerate(drawn.items(), start=1):
            if published := cases.get(name):
                yield from _check_case(store, published, rows, recipe, (spec.workspace, dataset))
            progress(Progress(done, len(drawn), "/".join(name), "made again"))


def drawn_keys(slices: pa.Table, spec: RemakeSpec) -> tuple[str, ...]:
    """Name the slices that a spec draws."""
    return tuple(row["key"] for rows in _drawn(slices, spec).values() for row in rows)


def _name(row: Row) -> tuple[str, str]:
    return row["collection"], row["case"]


def _drawn(slices: pa.Table, spec: RemakeSpec) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of the drawn slices, by their case."""
    count = min(spec.count, slices.num_rows)
    numbers = np.sort(np.random.default_rng(spec.seed).permutation(slices.num_rows)[:count])
    drawn: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in slices.take(pa.array(numbers, type=pa.int64())).to_pylist():
        drawn.setdefault(_name(row), []).append(row)
    return dict(sorted(drawn.items()))


def _check_found(cases: pa.Table, rejects: pa.Table, workspace: Workspace) -> Iterator[str]:
    """Each case of the workspace is kept or rejected in the set, for the same reason, and nothing else is."""
    kept = {_name(row) for row in cases.select(["collection", "case"]).to_pylist()}
    said = Counter((*_name(row), row["reason"]) for row in rejects.to_pylist() if row["stage"] != "shard")
    chosen = {_name(row) for row in rejects.to_pylist() if row["stage"] == "shard"}
    found: set[tuple[str, str]] = set()
    wanted: Counter[tuple[str, str, str]] = Counter()
    for name in workspace.collections():
        later = list(workspace.harmonize_rejects(name))
        lost = {reject.case for reject in later}
        found |= {(name, case.case) for case in workspace.cases(name) if case.case not in lost}
        wanted.update((r.collection, r.case, r.reason.value) for r in (*workspace.ingest_rejects(name), *later))
    for pair in sorted(found - kept - chosen):
        yield f"{'/'.join(pair)}: the workspace holds the case, the set neither keeps nor rejects it"
    for pair in sorted((kept | chosen) - found):
        yield f"{'/'.join(pair)}: the set holds the case, the workspace does not"
    for (collection, case, reason), n in sorted((wanted - said).items()):
        yield f"{collection}/{case}: rejects.parquet lacks {n} rows of it with the reason {reason}"
    for (collection, case, reason), n in sorted((said - wanted).items()):
        yield f"{collection}/{case}: rejects.parquet has {n} rows of it too many with the reason {printable(reason, 40)}"


def _check_case(
    store: Store, published: Row, rows: list[dict[str, Any]], recipe: Recipe, made_by: tuple[Workspace, Dataset]
) -> Iterator[str]:
    workspace, dataset = made_by
    name = "/".join(_name(published))
    try:
        again = make_again(workspace, published, recipe)
    except (CaseRejected, WorkspaceError) as error:
        yield f"{name} cannot be made again: {error}"
        return
    if not again.unchanged:
        yield f"{name}: its source has changed since the set was made, or its digests in cases.parquet were edited"
        return
    if columns := changed_columns(published, again.row):
        yield f"{name}: cases.parquet does not say what its source gives: {', '.join(columns)}"
    for row in rows:
        made = again.slices.get(row["z"])
        if made is None:
            yield f"{row['key']}: its source gives no such slice"
            continue
        yield from (f"{row['key']}: {finding}" for finding in _check_slice(store, row, made, dataset))


def changed_columns(published: Row, made: Row) -> list[str]:
    """Which columns of a row of cases.parquet are not what the source gives; what the set itself decided is left out.

    >>> changed_columns({"low": 1.0, "split": "val"}, {"low": 2.0, "split": "train"})
    ['low']
    >>> changed_columns({"label_mm3": [(2, 1.0), (10, 3.0)]}, {"label_mm3": [(10, 3.0), (2, 1.0)]})
    []
    """
    return [
        name
        for name, value in made.items()
        if name not in CHOSEN and not same(_ordered(published[name]), _ordered(value))
    ]


def _ordered(value: Any) -> Any:
    """A map's pairs by their label, whatever their order in a file; any other value as it is."""
    pairs = isinstance(value, list) and all(isinstance(item, tuple) for item in value)
    return sorted(value) if pairs else value


def _check_slice(store: Store, row: Row, made: HarmonizedSlice, dataset: Dataset) -> Iterator[str]:
    codec = CODECS[dataset.codec]
    try:
        pair = read_encoded(store, dict(row))
        pictures = [codec.decode(data) for data in pair]
    except ShardSetError as error:
        yield str(error)
        return
    both = zip(("image", "mask"), pictures, (made.image, made.mask), strict=True)
    blamed = [disagreement(member, picture, again, row[f"{member}_sha256"]) for member, picture, again in both]
    yield from filter(None, blamed)
    if not any(blamed) and dataset.versions.get("encoder") == codec.version:
        yield from _check_encoding(pair, made, codec)
    counted = {
        "slice_index": made.source_index, "body_pixels": made.body_pixels, "foreground_pixels": made.foreground_pixels,
        "label_pixels": sorted(made.label_pixels.items()),
    }  # fmt: skip
    wrong = [n for n, v in counted.items() if (sorted(row[n]) if n == "label_pixels" else row[n]) != v]
    if wrong:
        yield f"its row does not say what its source gives: {', '.join(wrong)}"


def _check_encoding(pair: tuple[bytes, bytes], made: HarmonizedSlice, codec: Codec) -> Iterator[str]:
    """The bytes are those that the codec writes for these pixels."""
    written = (codec.encode(made.image), codec.encode_mask(made.mask))
    for member, found, wanted in zip(("image", "mask"), pair, written, strict=True):
        if found != wanted:
            yield f"the {member}'s pixels are right, but its bytes are not those that the codec writes for them"


def disagreement(member: str, in_shard: UInt8[np.ndarray, "h w"], made: UInt8[np.ndarray, "h w"], recorded: str) -> str:
    """Say which of shard, row and source stands alone; "" where all agree.

    Args:
        member: image or mask.
        in_shard: its pixels.
        made: its pixels as the source gives them now.
        recorded: the digest in its row.
    """
    shard, source = pixel_digest(in_shard), pixel_digest(made)
    if shard == source:
        return "" if source == recorded else f"{member}_sha256 of its row is wrong; shard and source agree"
    if in_shard.shape != made.shape:
        much = f"{in_shard.shape[0]} x {in_shard.shape[1]} pixels instead of {made.shape[0]} x {made.shape[1]}"
    else:
        n = int(np.count_nonzero(in_shard != made))
        much = "1 pixel differs" if n == 1 else f"{n:,} pixels differ"
    if source == recorded:
        return f"the {member} in the shard is another than its row and its source give ({much})"
    if shard == recorded:
        return f"the {member} is another than its source gives, and its row fits it ({much})"
    return f"shard, row and source give three different versions of the {member} ({much})"
