"""Follow a slice back: to its row, its case, its licence and, with the workspace, to its file and how to make it again."""

from pathlib import Path
from typing import Any

from medvar_data.audit.remake import OTHER_WORKSPACE, MadeAgain, changed_columns, disagreement, make_again
from medvar_data.audit.source import recipe_of
from medvar_data.errors import CaseRejected, ShardSetError, WorkspaceError
from medvar_data.harmonize.dependencies import recipe_for
from medvar_data.harmonize.harmonize import recorded_params, replay
from medvar_data.records import HarmonizedSlice
from medvar_data.shard.write import SAID_BY_CASE
from medvar_data.shardset.dataset import Dataset, read_dataset, read_pair, read_table
from medvar_data.sources.archives import DEFAULT_ACCESS, AccessSpec, open_access
from medvar_data.storage.codec import CODECS, pixel_digest
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace, archives_of

CITED = ("title", "citation", "doi", "homepage", "license_url", "license_evidence")  # of collections.parquet
Pair = tuple[Any, Any]


def trace(
    store: Store, key: str, workspace: Workspace | None = None, archives: AccessSpec = DEFAULT_ACCESS
) -> dict[str, Any]:
    """Tell everything that is known of one slice.

    The verdict comes first: `sound`, or `wrong` and what is to blame (the shard, its row, its case, or a source that has changed).

    Args:
        store: the shard set.
        key: of the slice.
        workspace: where given, the source file is named, read, harmonized again and compared with the shard's pixels.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        ShardSetError: no slice has this key, or its pictures cannot be read at all.
        WorkspaceError: the set was made from another workspace.
    """
    dataset = read_dataset(store)
    row = _one(
        (store, dataset),
        "slices.parquet",
        {"key": key},
        f"No slice has the key {key!r}; keys look like acdc-patient001-frame01-z0004.",
    )
    case = _one(
        (store, dataset),
        "cases.parquet",
        {"collection": row["collection"], "case": row["case"]},
        "cases.parquet lacks the case.",
    )
    if workspace and dataset.salt_sha256 and dataset.salt_sha256 != workspace.salt_digest():
        raise WorkspaceError(f"{OTHER_WORKSPACE.capitalize()}.")
    pair = read_pair(store, row, CODECS[dataset.codec], checked=False)
    published = _one(
        (store, dataset),
        "collections.parquet",
        {"collection": row["collection"]},
        "collections.parquet lacks the collection.",
    )
    blamed, checks = _compare_rows(row, case, pair)
    source: dict[str, Any] = {}
    if workspace:
        with open_access(archives):
            found, source = _source(store, (row, case, pair), workspace)
        blamed = found or blamed
    verdict = f"wrong: {blamed[0]}" if blamed else "sound"
    return {
        "verdict": verdict if source else f"{verdict}; no workspace, source not read",
        "blamed": blamed,
        **checks,
        "license": row["license"],
        "license_confirmed": row["license_confirmed"],
        "citation": {name: published[name] for name in CITED},
        **({"source": source} if source else {}),
        "slice": row,
        "case": case,
    }


def _one(opened: tuple[Store, Dataset], table: str, equal: dict[str, str], missing: str) -> dict[str, Any]:
    store, dataset = opened
    rows = read_table(store, table, dataset, equal=equal).to_pylist()
    if not rows:
        raise ShardSetError(missing)
    return dict(rows[0])


def _compare_rows(row: dict[str, Any], case: dict[str, Any], pair: Pair) -> tuple[list[str], dict[str, bool]]:
    """What row, case and shard alone say against each other."""
    wrong = [
        member
        for member, picture in zip(("image", "mask"), pair, strict=True)
        if pixel_digest(picture) != row[f"{member}_sha256"]
    ]
    other = [name for name in SAID_BY_CASE if row[name] != case[name]]
    blamed = [f"the {member} in the shard does not have the digest of its row" for member in wrong]
    blamed += [f"its row says another {name} than cases.parquet" for name in other]
    return blamed, {"pixels_match_row": not wrong, "row_matches_case": not other}


def _has_digests(made: HarmonizedSlice | None, row: dict[str, Any]) -> bool:
    found = (pixel_digest(made.image), pixel_digest(made.mask)) if made else ("", "")
    return found == (row["image_sha256"], row["mask_sha256"])


def _source(
    store: Store, published: tuple[dict[str, Any], dict[str, Any], Pair], workspace: Workspace
) -> tuple[list[str], dict[str, Any]]:
    """What is to blame by the source, and what was found out about it."""
    row, case_row, pair = published
    recipe = recipe_of(store)
    try:
        again = make_again(workspace, case_row, recipe)
    except (CaseRejected, WorkspaceError) as error:
        return [f"it cannot be made again: {error}"], {"found": False, "note": str(error)}
    case, notes = again.case, workspace.archive_notes()
    made = again.slices.get(row["z"])
    params, spec = recorded_params(case_row), workspace.spec(case.collection)
    replayed = replay(again.scan, case, spec, recipe_for(case, recipe), params, [row["z"]])[0]
    by_params = _has_digests(replayed, row)
    return _blame(again, (row, case_row, pair), replayed), {
        "found": True,
        "image": [str(Path(case.root) / path) for path in case.image],
        "label": [str(Path(case.root) / path) for path in case.label],
        "archive_sha256": {path.name: notes[path].sha256 for path in sorted(archives_of(case)) if path in notes},
        "image_unchanged": again.row["source_sha256"] == row["source_sha256"],
        "label_unchanged": again.row["label_sha256"] == row["label_sha256"],
        "same_pixels_when_made_again": _has_digests(made, row),
        "same_pixels_by_the_recorded_parameters": by_params,
    }


def _blame(
    again: MadeAgain, published: tuple[dict[str, Any], dict[str, Any], Pair], replayed: HarmonizedSlice
) -> list[str]:
    """Who is wrong, most telling first; nothing where all agree."""
    row, case_row, pair = published
    if not again.unchanged:
        return ["its source has changed since the set was made, or its digests in the tables were edited"]
    made = again.slices.get(row["z"])
    if made is None:
        return ["its source gives no such slice"]
    blamed = [
        disagreement(member, picture, now, row[f"{member}_sha256"])
        for member, picture, now in zip(("image", "mask"), pair, (made.image, made.mask), strict=True)
    ]
    if columns := changed_columns(case_row, again.row):
        blamed.append(f"cases.parquet does not say what its source gives: {', '.join(columns)}")
    if other := [name for name in SAID_BY_CASE if row[name] != case_row[name]]:
        blamed.append(f"its row says another {', '.join(other)} than cases.parquet")
    if (replayed.image != made.image).any() or (replayed.mask != made.mask).any():
        blamed.append("the parameters in cases.parquet are not those that made the pixels")
    return list(filter(None, blamed))
