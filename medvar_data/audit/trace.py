"""Follow a slice back: to its row, its case, its licence and, with the workspace, to its file and how to make it again."""

from pathlib import Path
from typing import Any

from medvar_data.audit.source import recipe_of, source_case
from medvar_data.errors import ShardSetError, WorkspaceError
from medvar_data.harmonize.dependencies import recipe_for
from medvar_data.harmonize.harmonize import harmonize, recorded_params, replay
from medvar_data.readers.read import read_scan
from medvar_data.records import HarmonizedSlice
from medvar_data.shardset.dataset import codec_of, read_pair, read_table
from medvar_data.sources.archives import DEFAULT_ACCESS, AccessSpec, open_access
from medvar_data.storage.codec import pixel_digest
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace, archives_of


def trace(
    store: Store, key: str, workspace: Workspace | None = None, archives: AccessSpec = DEFAULT_ACCESS
) -> dict[str, Any]:
    """Tell everything that is known of one slice.

    Args:
        store: the shard set.
        key: of the slice.
        workspace: where given, the source file is named, read, harmonized again and compared with the shard's pixels.
        archives: passwords, and where to unpack what cannot be read in place.

    Raises:
        ShardSetError: no slice has this key.
    """
    row = _one(
        store,
        "slices.parquet",
        {"key": key},
        f"No slice has the key {key!r}; keys look like acdc-patient001-frame01-z0004.",
    )
    case = _one(
        store,
        "cases.parquet",
        {"collection": row["collection"], "case": row["case"]},
        "cases.parquet lacks the case.",
    )
    in_shard = pixel_digest(read_pair(store, row, codec_of(store))[0])
    checks = {"pixels_match_row": in_shard == row["image_sha256"]}
    source: dict[str, Any] = {}
    if workspace:
        with open_access(archives):
            source = _source(store, row, case, workspace)
    failed = [name for name, value in {**checks, **source}.items() if value is False]
    verdict = f"wrong: not {', not '.join(failed)}" if failed else "sound"
    return {
        "verdict": verdict if source else f"{verdict}; no workspace, source not read",
        **checks,
        "license": row["license"],
        "license_confirmed": row["license_confirmed"],
        **({"source": source} if source else {}),
        "slice": row,
        "case": case,
    }


def _one(store: Store, table: str, equal: dict[str, str], missing: str) -> dict[str, Any]:
    rows = read_table(store, table, equal=equal).to_pylist()
    if not rows:
        raise ShardSetError(missing)
    return dict(rows[0])


def _has_digests(made: HarmonizedSlice, row: dict[str, Any]) -> bool:
    return (pixel_digest(made.image), pixel_digest(made.mask)) == (row["image_sha256"], row["mask_sha256"])


def _source(store: Store, row: dict[str, Any], published: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    try:
        case = source_case(workspace, row)
    except WorkspaceError as error:
        return {"found": False, "note": str(error)}
    spec, notes = workspace.spec(case.collection), workspace.archive_notes()
    recipe = recipe_for(case, recipe_of(store))
    scan = read_scan(case, spec)
    again = next((s for s in harmonize(scan, case, spec, recipe).slices if s.z == row["z"]), None)
    replayed = replay(scan, case, spec, recipe, recorded_params(published), [row["z"]])[0]
    return {
        "found": True,
        "image": [str(Path(case.root) / path) for path in case.image],
        "label": [str(Path(case.root) / path) for path in case.label],
        "archive_sha256": {path.name: notes[path].sha256 for path in sorted(archives_of(case)) if path in notes},
        "image_unchanged": scan.image.digest == row["source_sha256"],
        "same_pixels_when_made_again": again is not None and _has_digests(again, row),
        "same_pixels_by_the_recorded_parameters": _has_digests(replayed, row),
    }
