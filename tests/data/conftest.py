"""One finished pipeline from downloads to shards, made once; tests that damage it take a copy."""

import shutil
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
from support.builders import (
    acdc_tree,
    chaos_members,
    msd_tree,
    nifti_bytes,
    pairs_toml,
    scan,
    small_recipe,
    spaced,
    write_files,
    write_zip,
)

from medvar_data.catalog.recipe import Recipe
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace


@dataclass(frozen=True)
class Pipeline:
    """A workspace, the shard set made from it, and how."""

    sources: dict[str, Path]
    workspace: Workspace
    recipe: Recipe
    spec: ShardSpec
    store: Store

    @property
    def shards(self) -> Path:
        return Path(self.store.url)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Pipeline:
    """ACDC (five patients, two frames), CHAOS CT from its zip, a Decathlon task, and a user's own pairs, one unlabelled."""
    folder = tmp_path_factory.mktemp("pipeline")
    own = folder / "own"
    for number, seed in (("ann", 1), ("bob", 2), ("cy", 3)):
        image, label = scan((20, 18, 4), seed)
        members = {f"{number}_image.nii.gz": nifti_bytes(image, spaced(1, 1, 3))}
        if number != "cy":
            members[f"{number}_label.nii.gz"] = nifti_bytes((label > 0).astype("u1"), spaced(1, 1, 3))
        write_files(own, members)
    write_files(own, {"broken_image.nii.gz": b"no image"})
    (folder / "own.toml").write_text(pairs_toml())
    sources = {
        "acdc": acdc_tree(folder / "acdc", patients=5),
        "chaos": write_zip(folder / "chaos" / "CHAOS_Train_Sets.zip", chaos_members()).parent,
        "msd-brain-tumour": msd_tree(folder / "msd", cases=3, channels=4),
        str(folder / "own.toml"): own,
    }
    recipe = small_recipe(folder)
    workspace = Workspace(folder / "work")
    workspace.set_salt(bytes(range(32)))
    list(run_ingest(sources, workspace))
    run_harmonize(workspace, recipe, 1, lambda _: None)
    spec = ShardSpec(recipe, SplitSpec(val=0.2, test=0.2), slices_per_shard=20)
    store = Store(str(folder / "shards"))
    write_shards(workspace, store, spec, 1, lambda _: None)
    return Pipeline(sources, workspace, recipe, spec, store)


@pytest.fixture(scope="session")
def zstd_set(pipeline, tmp_path_factory) -> Store:
    """The same set with the codec zstd."""
    store = Store(str(tmp_path_factory.mktemp("zstd") / "shards"))
    write_shards(pipeline.workspace, store, replace(pipeline.spec, codec="zstd"), 1, lambda _: None)
    return store


@pytest.fixture
def offline(monkeypatch) -> None:
    """No connection leaves the test."""

    def refuse(*_: object) -> None:
        raise OSError("a test wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def croissant_cache(tmp_path, monkeypatch, offline) -> None:
    """A folder of its own for mlcroissant, which unpacks a shard once per name, whatever set it is of."""
    extract = pytest.importorskip("mlcroissant._src.operation_graph.operations.extract")
    epath = pytest.importorskip("etils.epath")
    monkeypatch.setattr(extract, "EXTRACT_PATH", epath.Path(tmp_path / "croissant"))


@pytest.fixture
def hugging_face(tmp_path, monkeypatch, offline) -> ModuleType:
    """Hugging Face datasets with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hugging-face")
    return datasets


@pytest.fixture
def damaged(pipeline, tmp_path) -> Store:
    """A copy of the shard set to spoil."""
    shutil.copytree(pipeline.shards, tmp_path / "set")
    return Store(str(tmp_path / "set"))
