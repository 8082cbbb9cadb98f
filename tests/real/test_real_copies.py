"""Real scans under other names: no pair of copies lies in two splits, no two patients are taken for one."""

from pathlib import Path

import pytest
from support.copies import copies_toml, copy_scans
from support.runs_of_shards import quiet, rows_of

from medvar_data.audit.verify import verify
from medvar_data.catalog.recipe import load_recipe
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

ACDC = Path(__file__).parents[3] / "shared" / "real" / "acdc"
PATIENTS = range(1, 9)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not ACDC.is_dir(), reason="the real scans are not here"),
]


def straddling_pairs(acdc: Path, folder: Path) -> tuple[int, int, list[dict], tuple[str, ...]]:
    """Copies in another split than their originals with and without looking, the rows of edges.parquet, what verify finds."""
    workspace, recipe, store = Workspace(folder / "work"), load_recipe("demo"), Store(str(folder / "shards"))
    own = copies_toml(folder / "copies.toml")
    list(run_ingest({"acdc": acdc, str(own): copy_scans(acdc, folder / "own", PATIENTS)}, workspace))
    run_harmonize(workspace, recipe, 1, quiet)
    counts = []
    for name, find in (("shards", None), ("blind", lambda *_: ())):
        with pytest.MonkeyPatch.context() as patch:
            if find:
                patch.setattr("medvar_data.shard.grouping.find_links", find)
            write_shards(workspace, Store(str(folder / name)), ShardSpec(recipe, SplitSpec(0.25, 0.25)), 1, quiet)
        split_of = {(r["collection"], r["case"]): r["split"] for r in rows_of(folder / name, "cases.parquet")}
        copies = [case for collection, case in split_of if collection == "copies"]
        originals = [f"patient{int(c[1:].partition('f')[0]):03d}-frame{c.partition('f')[2]}" for c in copies]
        pairs = zip(copies, originals, strict=True)
        counts.append(sum(split_of["copies", ours] != split_of["acdc", theirs] for ours, theirs in pairs))
    return counts[0], counts[1], rows_of(folder / "shards", "edges.parquet"), verify(store).findings


def test_copies_of_eight_patients(tmp_path):
    together, blind, edges, findings = straddling_pairs(ACDC, tmp_path)
    assert (together, findings) == (0, ())
    assert blind > 0
    assert len(edges) == 2 * len(PATIENTS)
    assert {edge["evidence"] for edge in edges} == {"source_digest", "pixels"}
    assert all((edge["collection_a"], edge["collection_b"]) == ("acdc", "copies") for edge in edges)
