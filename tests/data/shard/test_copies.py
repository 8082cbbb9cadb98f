"""Scans that are published twice, under other names: they lie in one split, are listed, and are found where they do not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.builders import acdc_tree, nifti_bytes, scan, small_recipe, spaced
from support.copies import copies_toml, copy_scans
from support.runs_of_shards import bytes_of, quiet, rows_of

from medvar_data.audit.verify import verify
from medvar_data.errors import WorkspaceError
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.reshard import ReshardSpec, reshard
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec, assign_splits
from medvar_data.shardset.dataset import read_dataset
from medvar_data.shardset.schema import SPLITS
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

PATIENTS = 10


def take_in(workspace: Workspace, sources: dict[str, Path], spec: ShardSpec) -> None:
    list(run_ingest(sources, workspace))
    run_harmonize(workspace, spec.recipe, 1, quiet)


def spec_of(folder: Path) -> ShardSpec:
    return ShardSpec(small_recipe(folder), SplitSpec(val=0.3, test=0.3), slices_per_shard=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A set of ACDC alone, then a workspace that has its scans a second time."""
    folder = tmp_path_factory.mktemp("copies")
    spec, workspace = spec_of(folder), Workspace(folder / "work")
    workspace.set_salt(bytes(range(32)))
    acdc = acdc_tree(folder / "acdc", patients=PATIENTS)
    take_in(workspace, {"acdc": acdc}, spec)
    write_shards(workspace, Store(str(folder / "before")), spec, 1, quiet)
    own = copies_toml(folder / "copies.toml")
    take_in(workspace, {str(own): copy_scans(acdc, folder / "own", range(1, PATIENTS + 1))}, spec)
    write_shards(workspace, Store(str(folder / "shards")), spec, 1, quiet)
    return folder


def write(folder: Path, name: str, **changes) -> Store:
    store = Store(str(folder / name))
    write_shards(Workspace(folder / "work"), store, replace(spec_of(folder), **changes), 1, quiet)
    return store


def splits_of(store: Store) -> dict[tuple[str, str], str]:
    return {(r["collection"], r["case"]): r["split"] for r in rows_of(Path(store.url), "cases.parquet")}


def original_of(case: str) -> tuple[str, str]:
    who, _, frame = case.partition("f")
    return "acdc", f"patient{int(who[1:]):03d}-frame{frame}"


def straddling(splits: dict[tuple[str, str], str]) -> int:
    copies = [key for key in splits if key[0] == "copies"]
    assert copies
    return sum(splits[key] != splits[original_of(key[1])] for key in copies)


def test_copies_lie_with_their_originals_and_are_listed(folder):
    store = Store(str(folder / "shards"))
    splits = splits_of(store)
    groups = {(c, f"{c}/{k.partition('f' if c == 'copies' else '-')[0]}") for c, k in splits}
    apart = assign_splits(groups, spec_of(folder).split)
    assert any(apart[f"copies/x{n}"] != apart[f"acdc/patient{n:03d}"] for n in range(1, PATIENTS + 1))
    assert straddling(splits) == 0
    assert set(splits.values()) == set(SPLITS)
    assert verify(store).findings == ()
    edges = rows_of(folder / "shards", "edges.parquet")
    assert len(edges) == 2 * PATIENTS
    for edge in edges:
        assert (edge["collection_a"], edge["case_a"]) == original_of(edge["case_b"])
        assert edge["evidence"] == ("source_digest" if int(edge["case_b"][1:].partition("f")[0]) % 2 else "pixels")
        assert edge["exact"]
        assert edge["split_a"] == edge["split_b"] == splits[edge["collection_a"], edge["case_a"]]


def test_originals_have_the_splits_that_they_have_alone(folder):
    before, after = splits_of(Store(str(folder / "before"))), splits_of(Store(str(folder / "shards")))
    assert {key: after[key] for key in before} == before
    assert rows_of(folder / "before", "edges.parquet") == []  # two frames of a patient, phantoms of one shape


def test_a_set_that_was_split_without_looking_is_found_out(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("medvar_data.shard.grouping.find_links", lambda *_: ())
    store = Store(str(tmp_path / "old"))
    write_shards(Workspace(folder / "work"), store, spec_of(folder), 1, quiet)
    found = verify(store).findings
    assert len(found) == straddling(splits_of(store)) > 0
    assert all("show one scan" in line and "acdc/patient" in line and "copies/x" in line for line in found)
    assert all(
        "(pixels)" in line for line in found
    )  # digests of the copies are keyed, since their collection is not public


def test_copies_of_published_files_are_found_by_digest_although_the_set_holds_a_keyed_one(folder):
    edges = rows_of(folder / "shards", "edges.parquet")
    cases = {(r["collection"], r["case"]): r["source_sha256"] for r in rows_of(folder / "shards", "cases.parquet")}
    by_digest = [edge for edge in edges if edge["evidence"] == "source_digest"]
    assert len(by_digest) == PATIENTS // 2 * 2
    for edge in by_digest:
        assert cases[edge["collection_a"], edge["case_a"]] != cases[edge["collection_b"], edge["case_b"]]


def test_drop_duplicates_leaves_the_first(folder, tmp_path):
    store = write(folder, "dropped", drop_duplicates=True)
    assert {c for c, _ in splits_of(store)} == {"acdc"}
    rejects = [r for r in rows_of(folder / "dropped", "rejects.parquet") if r["reason"] == "duplicate_scan"]
    assert len(rejects) == 2 * PATIENTS
    for row in rejects:
        assert (row["collection"], row["stage"]) == ("copies", "shard")
        assert "/".join(original_of(row["case"])) in row["detail"]
    assert verify(store).findings == ()
    assert rows_of(folder / "dropped", "edges.parquet") == []
    assert read_dataset(store).drop_duplicates
    copies = write(folder, "copies", drop_duplicates=True, where="collection = 'copies'")
    assert {c for c, _ in splits_of(copies)} == {"copies"}  # their originals are not in the set
    reshard(store, Store(str(tmp_path / "again")), ReshardSpec("zstd"), 1, quiet)
    assert read_dataset(Store(str(tmp_path / "again"))).drop_duplicates


def test_reshard_keeps_the_edges_of_what_is_left(folder, tmp_path):
    store = Store(str(folder / "shards"))
    for name, where, n in (("all", "", 2 * PATIENTS), ("part", "\"case\" <> 'x1f01'", 2 * PATIENTS - 1)):
        made = Store(str(tmp_path / name))
        reshard(store, made, ReshardSpec(where=where), 1, quiet)
        assert len(rows_of(tmp_path / name, "edges.parquet")) == n
        assert verify(made).findings == ()


def test_the_same_bytes_whatever_the_order_and_the_workers(folder, monkeypatch):
    from medvar_data.shard import run

    found = run._finished_cases

    def backwards(*args):
        kept, rejects = found(*args)
        return kept[::-1], rejects

    monkeypatch.setattr(run, "_finished_cases", backwards)
    write(folder, "backwards")
    one, other = bytes_of(folder / "shards"), bytes_of(folder / "backwards")
    assert {n: d for n, d in other.items() if n != "collections.parquet"} == {
        n: d for n, d in one.items() if n != "collections.parquet"
    }


@pytest.mark.filterwarnings("ignore")
def test_croissant_loads_the_edges(folder, croissant_cache):
    mlcroissant = pytest.importorskip("mlcroissant")
    records = mlcroissant.Dataset(jsonld=folder / "shards" / "croissant.json").records("edges")
    plain = ({k: v.decode() if isinstance(v, bytes) else v for k, v in record.items()} for record in records)
    found = [{k.removeprefix("edges/"): v for k, v in record.items()} for record in plain]
    assert found == rows_of(folder / "shards", "edges.parquet")


def edited(store: Store, tmp_path: Path, **values) -> Store:
    """A copy of a set, of which the first edge says something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from support.shard_sets import republished

    shutil.copytree(store.url, tmp_path / "edited")
    table = pq.read_table(tmp_path / "edited" / "edges.parquet")
    rows = table.to_pylist()
    rows[0].update(values)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "edited" / "edges.parquet")
    return Store(str(republished(tmp_path / "edited")))


def test_edges_between_splits_and_to_nowhere_are_findings(folder, tmp_path):
    store = Store(str(folder / "shards"))
    splits = splits_of(store)
    first = rows_of(folder / "shards", "edges.parquet")[0]
    other = next(k for (c, k), split in splits.items() if c == "copies" and split != first["split_a"])
    found = "\n".join(verify(edited(store, tmp_path, case_b=other)).findings)
    assert f"{first['collection_a']}/{first['case_a']} in {first['split_a']} and copies/{other} in" in found
    shutil.rmtree(tmp_path / "edited")
    found = "\n".join(verify(edited(store, tmp_path, case_b="nobody")).findings)
    assert "edges.parquet joins copies/nobody, which cases.parquet does not list" in found


class TestAppend:
    @pytest.fixture
    def grown(self, folder, tmp_path) -> Path:
        """The set of ACDC alone and a workspace that has the copies too."""
        shutil.copytree(folder / "work", tmp_path / "work")
        shutil.copytree(folder / "before", tmp_path / "shards")
        return tmp_path

    def append(self, folder: Path, **changes) -> Store:
        store = Store(str(folder / "shards"))
        spec = replace(spec_of(folder), **changes)
        write_shards(Workspace(folder / "work"), store, spec, 1, quiet, append=True)
        return store

    def test_copies_follow_what_is_there(self, grown):
        before = splits_of(Store(str(grown / "shards")))
        store = self.append(grown)
        after = splits_of(store)
        assert {key: after[key] for key in before} == before
        assert straddling(after) == 0
        assert verify(store).findings == ()
        assert len(rows_of(grown / "shards", "edges.parquet")) == 2 * PATIENTS

    def test_the_treatment_of_copies_stays(self, grown):
        with pytest.raises(WorkspaceError, match="another treatment of copies"):
            self.append(grown, drop_duplicates=True)

    def test_what_is_held_is_never_dropped(self, folder, grown):
        """The set holds the copies alone; the originals come first by name, and are left out all the same."""
        shutil.rmtree(grown / "shards")
        acdc = [grown / "work" / "ingest" / "acdc.json", grown / "acdc.json"]
        acdc[0].rename(acdc[1])
        spec = replace(spec_of(grown), drop_duplicates=True)
        write_shards(Workspace(grown / "work"), Store(str(grown / "shards")), spec, 1, quiet)
        acdc[1].rename(acdc[0])
        store = self.append(grown, drop_duplicates=True)
        assert {c for c, _ in splits_of(store)} == {"copies"}
        rejects = [r for r in rows_of(grown / "shards", "rejects.parquet") if r["reason"] == "duplicate_scan"]
        assert {r["collection"] for r in rejects} == {"acdc"}

    def test_a_case_that_joins_two_splits_is_left_out_with_its_patient(self, grown):
        before = splits_of(Store(str(grown / "shards")))
        train, test = (next(k for k, s in sorted(before.items()) if s == split) for split in ("train", "test"))
        own = copies_toml(grown / "copies.toml", ("x99f01", train[1]), ("x99f02", test[1]))
        for frame in (1, 2):
            image, label = scan((24, 20, 5), 7000 + frame)
            (grown / "new").mkdir(exist_ok=True)
            for name, voxels in ((f"x99f0{frame}", image), (f"x99f0{frame}_gt", label)):
                (grown / "new" / f"{name}.nii").write_bytes(nifti_bytes(voxels, spaced(1, 1, 3)))
        own.write_text(own.read_text().replace("\\.nii\\.gz$", "\\.nii$"))
        take_in(Workspace(grown / "work"), {str(own): grown / "new"}, spec_of(grown))
        store = self.append(grown)
        assert splits_of(store) == before
        rejects = [r for r in rows_of(grown / "shards", "rejects.parquet") if r["collection"] == "copies"]
        assert {(r["case"], r["reason"]) for r in rejects} == {
            ("x99f01", "duplicate_scan"),
            ("x99f02", "duplicate_scan"),
        }
        assert all("patients who lie in test and train of the set already" in r["detail"] for r in rejects)
        assert verify(store).findings == ()
        anew = Store(str(grown / "anew"))
        write_shards(Workspace(grown / "work"), anew, spec_of(grown), 1, quiet)
        splits = splits_of(anew)
        assert splits[train] == splits[test] == splits["copies", "x99f01"] == splits["copies", "x99f02"]
        assert {e["evidence"] for e in rows_of(grown / "anew", "edges.parquet")} == {"overlap"}
        assert verify(anew).findings == ()


def test_official_splits_hold_for_copies_too(folder):
    spec = replace(spec_of(folder).split, respect_official=True)
    store = write(folder, "official", split=spec)
    assert set(splits_of(store).values()) == {"train"}  # ACDC's training folder
    assert read_dataset(store).split["respect_official"]
    assert verify(store).findings == ()
