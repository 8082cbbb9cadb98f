"""A finished set grows: what it holds is not touched, patients keep their split, ids their number; a kill costs nothing."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.builders import acdc_tree, msd_tree, nifti_bytes, pairs_toml, scan, small_recipe, spaced, write_files
from support.runs_of_shards import bytes_of, quiet, rows_of

from medvar_data.audit.verify import verify
from medvar_data.errors import ShardSetError, WorkspaceError
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.dataset import read_dataset
from medvar_data.shardset.index import open_shard_set
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

OWN = (
    pairs_toml(top='case_names = "published"\n')
    .replace("(?P<case>[^/]+)", "(?P<case>(?P<who>[a-z])[^/]*)")
    .replace('group = "{case}"', 'group = "{who}"')
)
FIRST, LATER = ("a", "b", "c"), ("d", "e", "f", "g", "h", "a2", "b2", "c2")  # the last three are patients who are known


@dataclass(frozen=True)
class Grown:
    """A workspace into which cases came after its set was made."""

    folder: Path
    workspace: Workspace
    spec: ShardSpec

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "shards"))

    def append(self, **changes):
        return write_shards(self.workspace, self.store, replace(self.spec, **changes), 1, quiet, append=True)


def own_scans(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        image, label = scan((20, 18, 4), sum(name.encode()))
        write_files(folder, {
            f"{name}_image.nii.gz": nifti_bytes(image, spaced(1, 1, 3)),
            f"{name}_label.nii.gz": nifti_bytes((label > 0).astype("u1"), spaced(1, 1, 3)),
        })  # fmt: skip
    return folder


def take_in(workspace: Workspace, sources: dict[str, Path], spec: ShardSpec) -> None:
    list(run_ingest(sources, workspace))
    run_harmonize(workspace, spec.recipe, 1, quiet)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Made once: a set of ACDC and of somebody's own scans; then a Decathlon task and more own scans of the workspace alone."""
    folder = tmp_path_factory.mktemp("grown")
    (folder / "own.toml").write_text(OWN)
    spec = spec_of(folder)
    workspace = Workspace(folder / "work")
    acdc = acdc_tree(folder / "acdc", patients=5)
    take_in(workspace, {"acdc": acdc, str(folder / "own.toml"): own_scans(folder / "own", FIRST)}, spec)
    write_shards(workspace, Store(str(folder / "shards")), spec, 1, quiet)
    msd = msd_tree(folder / "msd", cases=5, channels=4)
    sources = {"msd-brain-tumour": msd, str(folder / "own.toml"): own_scans(folder / "own", LATER)}
    take_in(workspace, sources, spec)
    return folder


def spec_of(folder: Path) -> ShardSpec:
    return ShardSpec(small_recipe(folder), SplitSpec(val=0.2, test=0.2), slices_per_shard=10)


@pytest.fixture
def grown(original, tmp_path) -> Grown:
    shutil.copytree(original / "work", tmp_path / "work")
    shutil.copytree(original / "shards", tmp_path / "shards")
    return Grown(tmp_path, Workspace(tmp_path / "work"), spec_of(tmp_path))


def test_what_is_there_is_not_touched_and_what_came_is_added(grown):
    folder = Path(grown.store.url)
    tars = {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in folder.glob("*.tar")}
    before = {row["key"]: row for row in rows_of(folder, "slices.parquet")}
    patients = {row["patient"]: row["split"] for row in rows_of(folder, "cases.parquet")}
    ids = read_dataset(grown.store).conditions
    summary = grown.append(slices_per_shard=8)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in tars} == tars
    after = {row["key"]: row for row in rows_of(folder, "slices.parquet")}
    assert {key: after[key] for key in before} == before
    assert {row["collection"] for key, row in after.items() if key not in before} == {"msd-brain-tumour", "own"}
    cases = rows_of(folder, "cases.parquet")
    assert {(r["collection"], r["case"]) for r in cases} >= {("own", name) for name in FIRST + LATER}
    assert {r["patient"]: r["split"] for r in cases if r["patient"] in patients} == patients
    split_of = {r["case"]: r["split"] for r in cases if r["collection"] == "own"}
    assert all(split_of[name] == split_of[f"{name}2"] for name in FIRST)
    assert {r["split"] for r in cases if r["collection"] == "msd-brain-tumour"} == {"train", "val", "test"}
    assert ids.items() < read_dataset(grown.store).conditions.items()
    assert verify(grown.store).findings == ()
    assert (summary.n_reused, summary.n_cases) == (len(tars), len(cases))
    assert summary.n_shards == len(list(folder.glob("*.tar"))) > len(tars)


def test_new_shards_are_numbered_on_and_the_set_can_be_streamed(grown):
    before = read_dataset(grown.store)
    grown.append()
    after = read_dataset(grown.store)
    for split, entry in after.splits.items():
        n = len(before.splits[split].shards)
        assert entry.shards[:n] == before.splits[split].shards
        assert [s.name for s in entry.shards] == [f"{split}-{i:06d}.tar" for i in range(len(entry.shards))]
        assert len(open_shard_set(grown.store.url, split)) == entry.slices
    assert len(list((grown.workspace.path / "shards").glob("before-*/*"))) == 1
    grown.append()
    assert len(list((grown.workspace.path / "shards").glob("before-*/*"))) == 1


def test_with_nothing_new_nothing_changes(grown):
    grown.append()
    once = bytes_of(Path(grown.store.url))
    again = grown.append()
    assert bytes_of(Path(grown.store.url)) == once
    assert again.n_reused == again.n_shards


@pytest.mark.slow
def test_two_workers_and_parts_give_the_same_bytes(grown, tmp_path):
    from medvar_data.engine.engine import Engine, Part

    shutil.copytree(grown.store.url, tmp_path / "other")
    other = Store(str(tmp_path / "other"))
    grown.append()
    for number in (2, 1, 1):
        write_shards(grown.workspace, other, grown.spec, Engine(2, part=Part(number, 2)), quiet, append=True)
    assert bytes_of(tmp_path / "other") == bytes_of(Path(grown.store.url))


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "n_files", [n if n in {1, 2, 6} else pytest.param(n, marks=pytest.mark.slow) for n in range(7)]
)
def test_a_run_that_was_killed_is_completed_by_the_same_command(grown, monkeypatch, n_files):
    """Killed while shards are written (0: before any), and after each file that is put in place at the end."""
    folder, before = Path(grown.store.url), read_dataset(grown.store)
    shutil.copytree(folder, grown.folder / "undisturbed")
    write_shards(grown.workspace, Store(str(grown.folder / "undisturbed")), grown.spec, 1, quiet, append=True)

    put, at_end = Store.put, []

    def dying(store, local, name):
        if "tar" not in name and store.url == grown.store.url:
            at_end.append(name)
        if len(at_end) > n_files - 1:
            raise Killed
        put(store, local, name)

    monkeypatch.setattr(Store, "put", dying)
    with pytest.raises(Killed):
        grown.append()
    monkeypatch.undo()
    if n_files < 2:  # no table was replaced yet
        assert read_dataset(grown.store) == before
        assert len(open_shard_set(grown.store.url, "train")) == before.splits["train"].slices
    elif n_files == 2:  # slices.parquet is new, dataset.json is not
        with pytest.raises(ShardSetError, match="is not the one"):
            open_shard_set(grown.store.url, "train")
    grown.append()
    assert bytes_of(folder) == bytes_of(grown.folder / "undisturbed")


def test_a_case_that_changed_is_named(grown):
    own = grown.folder / "own"
    (grown.folder / "own.toml").write_text(OWN)
    own_scans(own, FIRST + LATER)
    image, label = scan((20, 18, 4), 99)
    write_files(own, {"b_image.nii.gz": nifti_bytes(image, spaced(1, 1, 3)),
                      "b_label.nii.gz": nifti_bytes((label > 0).astype("u1"), spaced(1, 1, 3))})  # fmt: skip
    take_in(grown.workspace, {str(grown.folder / "own.toml"): own}, grown.spec)
    before = bytes_of(Path(grown.store.url))
    with pytest.raises(WorkspaceError, match=r"own/b is in the set, but has changed .* into an empty folder"):
        grown.append()
    assert bytes_of(Path(grown.store.url)) == before


def test_a_case_that_is_gone_is_named(grown):
    (grown.folder / "own.toml").write_text(OWN)
    take_in(grown.workspace, {str(grown.folder / "own.toml"): own_scans(grown.folder / "own", FIRST[1:])}, grown.spec)
    with pytest.raises(WorkspaceError, match="own/a is in the set, but the workspace has no such slices any more"):
        grown.append()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"codec": "zstd"}, "another codec"), ({"where": "z > 1"}, "another condition"), ({"seed": 4}, "another seed"),
     ({"split": SplitSpec(0.1, 0.2)}, "another split")],
)  # fmt: skip
def test_other_options_are_refused(grown, changes, words):
    with pytest.raises(WorkspaceError, match=words):
        grown.append(**changes)


def test_there_must_be_a_finished_set_of_this_workspace(grown, pipeline, tmp_path):
    with pytest.raises(ShardSetError, match=r"holds no dataset\.json"):
        write_shards(grown.workspace, Store(str(tmp_path / "none")), grown.spec, 1, quiet, append=True)
    with pytest.raises(WorkspaceError, match="was not made from this workspace"):
        write_shards(grown.workspace, pipeline.store, grown.spec, 1, quiet, append=True)
    (Path(grown.store.url) / "train-000000.tar").unlink()
    with pytest.raises(ShardSetError, match=r"lacks train-000000\.tar"):
        grown.append()


def test_a_condition_holds_for_what_is_added_too(grown):
    where = "z >= 1 AND \"case\" <> 'd'"
    shutil.rmtree(grown.store.url)
    whole = replace(grown.spec, where=where)
    shutil.move(grown.workspace.path / "ingest" / "msd-brain-tumour.json", grown.folder / "note.json")
    write_shards(grown.workspace, grown.store, whole, 1, quiet)
    shutil.move(grown.folder / "note.json", grown.workspace.path / "ingest" / "msd-brain-tumour.json")
    grown.append(where=where)
    assert verify(grown.store).findings == ()
    rows = rows_of(Path(grown.store.url), "slices.parquet")
    assert {"msd-brain-tumour", "own"} < {row["collection"] for row in rows}
    assert all(row["z"] >= 1 and row["case"] != "d" for row in rows)
