"""Whatever is tampered with in a published set is noticed, digests made to fit again or not; the table says by what.

docs/auditing.md prints the same table.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.builders import acdc_tree, nifti_bytes, pairs_toml, scan, small_recipe, spaced, write_files
from support.tampering import TAMPERINGS, refit

from medvar_data.audit.remake import RemakeSpec, check_remade
from medvar_data.audit.seal import check_seal, new_key, seal
from medvar_data.audit.verify import verify
from medvar_data.errors import ShardSetError
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.shard.splits import SplitSpec
from medvar_data.shardset.dataset import read_dataset
from medvar_data.shardset.schema import TABLES
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

pytest.importorskip("cryptography")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "auditing.md"
ALL_SLICES = 1000
# Noticed by `verify`, `verify --remake`, `verify --seal` alone: with the digests as they were, then with all digests fitted.
NOTICED = {
    "pixels of an image painted": ("vr-", "-rs"),
    "a mask mirrored": ("vr-", "-rs"),
    "a case removed, all counts fitted": ("vrs", "-rs"),
    "a reject removed, all counts fitted": ("vr-", "-rs"),
    "statistics edited": ("v--", "v-s"),
    "licence edited in collections.parquet": ("v--", "v-s"),
    "licence edited wherever it stands": ("vr-", "-rs"),
    "terms edited in cases.parquet": ("v--", "v-s"),
    "obligations edited in the data card": ("v--", "v-s"),
    "spacing edited in slices.parquet": ("v--", "v-s"),
    "affine and spacing edited wherever they stand": ("vr-", "vrs"),
    "a text chunk in a PNG": ("vr-", "vrs"),
    "bytes behind the end of a tar": ("v--", "v-s"),
    "a stray file": ("v--", "v-s"),
    "a column that no set has": ("v--", "v-s"),
    "dataset.json: counts edited": ("v-s", "v-s"),
    "dataset.json: recipe edited": ("vrs", "vrs"),
    "dataset.json: seed edited": ("v-s", "v-s"),
    "dataset.json: condition edited": ("v-s", "--s"),
}  # fmt: skip
HEAD = (
    "| what was tampered with | `verify` | `--remake` | `--seal` | `verify`, digests fitted | `--remake`, digests fitted | `--seal`, digests fitted |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Published:
    """A sealed set, the workspace that it was made from, the publisher's public key."""

    folder: Path
    workspace: Workspace
    public_key: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    members = {"broken_image.nii.gz": b"no image"}
    for name, seed in (("one", 1), ("two", 2), ("three", 3)):
        image, label = scan((20, 18, 4), seed)
        members[f"{name}_image.nii.gz"] = nifti_bytes(image, spaced(1, 1, 3))
        members[f"{name}_label.nii.gz"] = nifti_bytes((label > 0).astype("u1"), spaced(1, 1, 3))
    own, recipe, work = write_files(folder / "own", members), small_recipe(folder), Workspace(folder / "work")
    (folder / "own.toml").write_text(pairs_toml())
    list(run_ingest({"acdc": acdc_tree(folder / "acdc", patients=4), str(folder / "own.toml"): own}, work))
    run_harmonize(work, recipe, 1, lambda _: None)
    store = Store(str(folder / "set"))
    write_shards(work, store, ShardSpec(recipe, SplitSpec(0.2, 0.2), slices_per_shard=20), 1, lambda _: None)
    (folder / "public.pem").write_text(new_key(folder / "private.pem"))
    seal(store, folder / "private.pem")
    return Published(folder / "set", work, folder / "public.pem")


def noticed(folder: Path, published: Published) -> str:
    """Which of the three notice something, each by itself: a letter each, or a dash."""
    store = Store(str(folder))

    def by_verify() -> bool:
        return bool(verify(store).findings)

    def by_remaking() -> bool:
        tables = {name: pq.read_table(folder / name) for name in TABLES}
        spec = RemakeSpec(published.workspace, ALL_SLICES)
        return bool(list(check_remade(store, tables, read_dataset(store), spec, lambda _: None)))

    def by_seal() -> bool:
        return bool(check_seal(store, published.public_key))

    found = ""
    for letter, finds in (("v", by_verify), ("r", by_remaking), ("s", by_seal)):
        try:
            found += letter if finds() else "-"
        except ShardSetError:
            found += letter
    return found


def test_a_set_that_nobody_touched(published):
    assert noticed(published.folder, published) == "---"


def test_digests_fitted_where_nothing_was_changed(published, tmp_path):
    """The helper that fits digests gives the set that was there, so that what is noticed is the tampering."""
    shutil.copytree(published.folder, tmp_path / "set")
    refit(tmp_path / "set")
    assert noticed(tmp_path / "set", published)[:2] == "--"


@pytest.mark.parametrize("what", TAMPERINGS)
def test_who_notices(what, published, tmp_path):
    found = []
    for name in ("plain", "fitted"):
        shutil.copytree(published.folder, tmp_path / name)
        TAMPERINGS[what](tmp_path / name)
        if name == "fitted":
            refit(tmp_path / name)
        found.append(noticed(tmp_path / name, published))
    assert tuple(found) == NOTICED[what]
    assert "---" not in found


def test_the_page_prints_the_table():
    rows = [
        f"| {what} | " + " | ".join("–" if letter == "-" else "noticed" for letter in plain + fitted) + " |"
        for what, (plain, fitted) in NOTICED.items()
    ]
    assert list(NOTICED) == list(TAMPERINGS)
    assert "\n".join([HEAD, *rows]) in PAGE.read_text(encoding="utf-8")
