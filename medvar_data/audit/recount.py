"""Make again, from the rows of slices and cases, all that the other tables and dataset.json say; and compare.

In: the tables as they lie in the set, and its dataset.json. Out: a sentence for each thing that contradicts another. Slices are
compared with their cases column by column, never as Python objects, so that memory stays small.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from medvar_data.audit.align import matched, repeated, unequal
from medvar_data.audit.promises import check_privacy, check_terms
from medvar_data.audit.recount_measures import check_measures
from medvar_data.audit.source import source_grid
from medvar_data.catalog.recipe import Recipe, parse_recipe
from medvar_data.errors import CaseRejected, SpecError
from medvar_data.geometry import SlicePlan, check_affine
from medvar_data.naming import printable
from medvar_data.shard.statistics import names_of_labels, statistics
from medvar_data.shard.tally import BY, SliceCounts, tally
from medvar_data.shard.write import SAID_BY_CASE
from medvar_data.shardset.dataset import Dataset
from medvar_data.shardset.schema import CASE_KEY, SPLITS, content_digest

FEW = 10  # findings of one kind
CASES_AT_ONCE = 4096
SAID_BY_COLLECTION = ("license", "license_confirmed", "collection_sha256")
GEOMETRY = (
    "source_shape",
    "source_affine",
    "plane",
    "orientation",
    "spacing_row_mm",
    "spacing_col_mm",
    "through_plane_mm",
    "n_slices",
)
COUNTS = ("n_kept", "n_without_foreground", "n_emptied_by_cleanup", "n_not_selected")
"""What became of a case's `n_slices` slices."""
MADE_BY = ("recipe", "recipe_sha256", "pipeline_version", "has_label", "label_sha256")
Tables = Mapping[str, pa.Table]
Plans = Sequence[SlicePlan | None]


def check_tables(tables: Tables, dataset: Dataset) -> Iterator[str]:
    """Compare a set's tables with each other and with dataset.json.

    Args:
        tables: all of them, by file name.
        dataset: as read.
    """
    slices, cases = tables["slices.parquet"], tables["cases.parquet"]
    owners, plans = matched(slices, cases, CASE_KEY), _plans(cases)
    for findings in (
        (f"{key} appears {n} times" for (key,), n in repeated(slices, ["key"])),
        (f"{c}/{k} stands in cases.parquet {n} times" for (c, k), n in repeated(cases, CASE_KEY)),
        _check_patients(slices, cases),
        _check_owners(slices, cases, owners),
        _check_cases(cases, plans, dataset),
        check_measures(slices, cases, owners, plans, dataset),
        _check_slice_indices(slices, plans, owners),
        _check_collections(tables["collections.parquet"], cases, tables["rejects.parquet"]),
        check_terms(cases, tables["collections.parquet"], tables["edges.parquet"]),
        check_privacy(cases, tables["collections.parquet"]),
        _check_statistics(tables, dataset),
        _check_rejects(tables["rejects.parquet"], cases, dataset),
        _check_dataset(slices, cases, dataset),
    ):
        yield from islice(findings, FEW)


def _check_patients(slices: pa.Table, cases: pa.Table) -> Iterator[str]:
    both = pa.concat_tables([table.select(["patient", "split"]).replace_schema_metadata() for table in (slices, cases)])
    pairs = both.group_by(["patient", "split"], use_threads=False).aggregate([]).to_pylist()
    splits: dict[str, set[str]] = {}
    for pair in pairs:
        splits.setdefault(pair["patient"], set()).add(pair["split"])
    yield from (f"patient {p} is in {' and '.join(sorted(s))}" for p, s in splits.items() if len(s) > 1)


def _check_owners(slices: pa.Table, cases: pa.Table, owners: Int64[np.ndarray, " slices"]) -> Iterator[str]:
    """Each slice says of its case what its case says, and each case counts its slices."""
    lost = slices.select(CASE_KEY).filter(pa.array(owners < 0)).group_by(list(CASE_KEY), use_threads=False)
    for row in lost.aggregate([]).to_pylist():
        yield f"{row['collection']}/{row['case']}: slices of a case that cases.parquet does not list"
    owned = np.flatnonzero(owners >= 0)
    counts = np.bincount(owners[owned], minlength=cases.num_rows)
    for row, found in zip(cases.select([*CASE_KEY, "n_kept"]).to_pylist(), counts.tolist(), strict=True):
        if found != row["n_kept"]:
            yield f"{row['collection']}/{row['case']}: {found} slices, cases.parquet says {row['n_kept']}"
    for name in (name for name in SAID_BY_CASE if name not in CASE_KEY):
        said = slices[name].take(pa.array(owned))
        other = np.flatnonzero(unequal(said, cases[name].take(pa.array(owners[owned]))))
        if len(other):
            key = slices["key"][int(owned[other[0]])].as_py()
            yield f"{key}: its {name} is not that of its case in cases.parquet (so in {len(other):,} slices)"


def _check_cases(cases: pa.Table, plans: Plans, dataset: Dataset) -> Iterator[str]:
    recipe = _recipe(dataset)
    if isinstance(recipe, str):
        yield recipe
    planned = iter(plans)
    for batch in cases.select(sorted({*CASE_KEY, *GEOMETRY, *COUNTS, *MADE_BY})).to_batches(CASES_AT_ONCE):
        for row in batch.to_pylist():
            name = f"{row['collection']}/{row['case']}"
            left = row["n_slices"] - sum(row[column] for column in COUNTS)
            if left:
                yield f"{name}: {row['n_slices']} slices, of which {left} are neither kept nor counted as left out"
            if row["n_not_selected"] and not dataset.where:
                yield f"{name}: {row['n_not_selected']} slices are not selected, but dataset.json names no condition"
            if row["has_label"] != bool(row["label_sha256"]):
                yield f"{name}: has_label is {row['has_label']}, its label_sha256 says otherwise"
            yield from (f"{name}: {finding}" for finding in _check_made_by(row, recipe, dataset))
            yield from (f"{name}: {finding}" for finding in _check_geometry(row, next(planned)))


def _recipe(dataset: Dataset) -> Recipe | str:
    """The recipe of dataset.json, or what is wrong with it."""
    try:
        recipe = parse_recipe(dataset.recipe, "the recipe in dataset.json")
    except SpecError as error:
        return str(error)
    if dataset.recipe.get("digest") != recipe.digest:
        return "the recipe in dataset.json does not have the digest that stands in it"
    if recipe.side != dataset.image_side:
        return f"the recipe in dataset.json makes {recipe.side} pixels a side, its image_side is {dataset.image_side}"
    return recipe


def _check_made_by(row: Mapping[str, Any], recipe: Recipe | str, dataset: Dataset) -> Iterator[str]:
    if isinstance(recipe, Recipe) and (row["recipe"], row["recipe_sha256"]) != (recipe.name, recipe.digest):
        yield f"it was made by another recipe ({printable(row['recipe'], 40)}) than the one in dataset.json"
    if row["pipeline_version"] != dataset.versions.get("pipeline"):
        yield f"its pipeline_version is {row['pipeline_version']}, dataset.json says {dataset.versions.get('pipeline')}"


def _plan(row: Mapping[str, Any]) -> SlicePlan | None:
    """How a case's slices were cut, by shape, affine and plane alone; None where these name no grid."""
    try:
        with np.errstate(all="ignore"):
            geometry, plan = source_grid(row)
            check_affine(geometry.affine)
    except (CaseRejected, ValueError, TypeError, IndexError):
        return None
    return plan


def _plans(cases: pa.Table) -> list[SlicePlan | None]:
    batches = cases.select(GEOMETRY).to_batches(CASES_AT_ONCE)
    return [_plan(row) for batch in batches for row in batch.to_pylist()]


def _check_geometry(row: Mapping[str, Any], plan: SlicePlan | None) -> Iterator[str]:
    if plan is None:
        yield "its source_shape, source_affine and plane name no grid"
        return
    row_mm, col_mm, through_mm = plan.spacing_mm
    wanted = {"spacing_row_mm": row_mm, "spacing_col_mm": col_mm, "through_plane_mm": through_mm}
    yield from (
        f"its {name} is {row[name]}, its source_affine gives {value}"
        for name, value in wanted.items()
        if not math.isclose(row[name], value, rel_tol=1e-9)
    )
    if (row["orientation"], row["n_slices"]) != (plan.orientation, plan.n_slices):
        yield f"its orientation or n_slices is not what its affine and shape give ({plan.orientation}, {plan.n_slices})"


def _check_slice_indices(slices: pa.Table, plans: Plans, owners: Int64[np.ndarray, " slices"]) -> Iterator[str]:
    """The index along the stored axis is z, or counted from the other end, as the case's affine says."""
    n_slices = np.array([plan.n_slices if plan else 0 for plan in plans], dtype=np.int64)
    flipped = np.array([bool(plan and plan.flips[plan.axis]) for plan in plans], dtype=np.bool_)
    owned = np.flatnonzero(owners >= 0)
    z, index = (np.asarray(slices[name])[owned].astype(np.int64) for name in ("z", "slice_index"))
    of = owners[owned]
    wrong = np.flatnonzero((z < 0) | (z >= n_slices[of]) | (index != np.where(flipped[of], n_slices[of] - 1 - z, z)))
    if len(wrong):
        key = slices["key"][int(owned[wrong[0]])].as_py()
        yield f"{key}: its slice_index is not what z and the affine of its case give (so in {len(wrong):,} slices)"


def _check_collections(collections: pa.Table, cases: pa.Table, rejects: pa.Table) -> Iterator[str]:
    kept, rejected = (Counter(table["collection"].to_pylist()) for table in (cases, rejects))
    listed = Counter(collections["collection"].to_pylist())
    yield from (f"{name} stands in collections.parquet {n} times" for name, n in listed.items() if n > 1)
    yield from (
        f"{name} has cases, but collections.parquet does not list it" for name in sorted({*kept, *rejected} - {*listed})
    )
    for row in collections.select(["collection", "n_found", "n_kept", "n_rejected"]).to_pylist():
        name = row["collection"]
        counts = (kept[name], rejected[name], kept[name] + rejected[name])
        if (row["n_kept"], row["n_rejected"], row["n_found"]) != counts:
            yield (
                f"{name}: {kept[name]} cases kept and {rejected[name]} rejected, collections.parquet says {row['n_kept']} and "
                f"{row['n_rejected']} of {row['n_found']}"
            )
    owners = matched(cases, collections, ["collection"])
    owned = np.flatnonzero(owners >= 0)
    for column in SAID_BY_COLLECTION:
        said = cases[column].take(pa.array(owned))
        whole = collections[column].take(pa.array(owners[owned]))
        for number in np.flatnonzero(unequal(said, whole)):
            row = {name: cases[name][int(owned[number])].as_py() for name in CASE_KEY}
            ours, theirs = (printable(str(values[int(number)].as_py()), 80) for values in (said, whole))
            yield (
                f"{row['collection']}/{row['case']}: its {column} is {ours!r} in cases.parquet, collections.parquet says {theirs!r} of "
                "its collection"
            )


def _check_statistics(tables: Tables, dataset: Dataset) -> Iterator[str]:
    """Summarise slices and cases again, and compare value by value."""
    sums, cases, found = SliceCounts(), tables["cases.parquet"], tables["stats.parquet"]
    sums.add(tables["slices.parquet"])
    groups = {tuple(row[name] for name in BY) for row in cases.select(BY).to_pylist()}
    if groups != sums.sums.keys():
        yield "slices and cases do not have the same collections, modalities, regions, sequences and splits"
        return
    try:
        names = names_of_labels(tables["collections.parquet"])
        wanted = statistics(tally(sums.sums, cases), names, dataset.image_side)
    except (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError):
        yield "the statistics of cases.parquet cannot be computed: it holds values that are none"
        return
    rows = {tuple(row[name] for name in BY): row for row in found.to_pylist()}
    if len(rows) != found.num_rows or rows.keys() != groups:
        yield f"stats.parquet has {found.num_rows} rows for other groups than the {len(groups)} of slices and cases"
    for row in wanted.to_pylist():
        group = tuple(row[name] for name in BY)
        for name, value in row.items():
            said = rows.get(group, row)[name]
            if not same(said, value):
                yield f"stats.parquet: {name} of {' '.join(filter(None, group))} is {said}; slices and cases give {value}"


def same(one: Any, other: Any) -> bool:
    """Tell whether two values of tables are equal, numbers up to the rounding of another machine.

    >>> same([1.0, "a"], [1.0 + 1e-15, "a"]), same(1.0, 1.1)
    (True, False)
    """
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (one != one and other != other)
    return bool(one == other)


def _check_rejects(rejects: pa.Table, cases: pa.Table, dataset: Dataset) -> Iterator[str]:
    if not dataset.where:
        by_condition = pa.array(["not_selected", "license_of_copy"])
        for row in rejects.filter(pc.is_in(rejects["reason"], value_set=by_condition)).to_pylist():
            yield f"{row['collection']}/{row['case']} is not selected, but dataset.json names no condition"
    gone = cases.filter(pc.less_equal(cases["n_kept"], 0))
    yield from (f"{row['collection']}/{row['case']} is a case without slices" for row in gone.to_pylist())


def _check_dataset(slices: pa.Table, cases: pa.Table, dataset: Dataset) -> Iterator[str]:
    pairs = cases.group_by(["condition", "condition_id"], use_threads=False).aggregate([]).to_pylist()
    ids, known = {(pair["condition"], pair["condition_id"]) for pair in pairs}, dataset.conditions
    yield from (f"condition {n} has id {i}, dataset.json says {known.get(n)}" for n, i in ids if known.get(n) != i)
    unused = sorted(known.keys() - {name for name, _ in ids})
    yield from (f"dataset.json lists the condition {name}, which no case has" for name in unused)
    if content_digest(slices) != dataset.digest:
        yield "the rows of slices.parquet do not have the digest in dataset.json"
    for split in SPLITS:
        mine, entry = cases.filter(pc.equal(cases["split"], split)), dataset.splits[split]
        n_slices = slices.filter(pc.equal(slices["split"], split)).num_rows
        n_patients = len(pc.unique(mine["patient"]))
        for noun, found, said in (
            ("slices", n_slices, entry.slices),
            ("cases", mine.num_rows, entry.cases),
            ("patients", n_patients, entry.patients),
        ):
            if found != said:
                yield f"{split}: {found} {noun}, dataset.json says {said}"
    wanted = [shard.name for split in SPLITS for shard in dataset.splits[split].shards if shard.slices]
    if _runs(slices["shard"]) != wanted:
        yield "slices.parquet does not list its slices shard by shard, in the order of dataset.json"


def _runs(column: pa.ChunkedArray) -> list[str]:
    """The values of a column, each run of equal ones once."""
    runs: list[str] = []
    for chunk in column.chunks:
        ends = pc.run_end_encode(chunk).values.to_pylist()
        runs += ends[1:] if runs and ends and runs[-1] == ends[0] else ends
    return runs
