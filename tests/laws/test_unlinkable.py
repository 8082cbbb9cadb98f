"""A set of scans that are not public, taken alone, leads to none of their files: whatever files, headers or archives hold is looked for in it.

The scans are made so that everything in them is rare: places in the scanner, slants, extremes, names, UIDs, dates.
"""

import gzip
import json
import struct
import zlib
from hashlib import md5, sha1, sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from support.builders import acdc_tree, nifti_bytes, pairs_toml, scan, small_recipe, write_files
from support.dicom_files import cohort_toml, slices
from support.shard_sets import rows_of

from medvar_data.audit.reconstruct import reconstruct
from medvar_data.audit.remake import RemakeSpec
from medvar_data.audit.trace import trace
from medvar_data.audit.verify import verify
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.reshard import ReshardSpec, reshard
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store
from medvar_data.storage.tar import read_tar
from medvar_data.workspace.workspace import Workspace

PRIVATE = ("own", "cohort")
NUMBERS_TOLERANCE = 1e-4


def slanted(origin: tuple[float, float, float]) -> np.ndarray:
    """An affine whose directions and place no other scan has."""
    a, b = 0.1234567, 0.0765432
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([1.0, 1.0, 3.0])
    affine[:3, 3] = origin
    return affine


def sources(root: Path) -> dict[str, Path]:
    members = {}
    for number in range(1, 4):
        image, label = scan((20, 18, 4), number)
        image[8, 8, :] = 1271 + number  # what LargestImagePixelValue would say
        affine = slanted((-131.71 - number, 207.33, 61.19))
        members[f"ward7/mueller_{number}_image.nii.gz"] = gzip.compress(nifti_bytes(image, affine), mtime=0)
        members[f"ward7/mueller_{number}_label.nii.gz"] = gzip.compress(nifti_bytes((label > 0).astype("u1"), affine))
    write_files(root / "own", members)
    (root / "own.toml").write_text(pairs_toml())
    body = np.stack([scan((32, 32, 1), number)[0][:, :, 0] for number in range(6)]) - 500
    write_files(root / "cohort", slices(body.astype(np.int16), study=1, series=1, modality="CT", prefix="export/IM_77"))
    (root / "cohort.toml").write_text(cohort_toml(modality="CT"))
    acdc_tree(root / "acdc", patients=4)
    return {"acdc": root / "acdc", str(root / "own.toml"): root / "own", str(root / "cohort.toml"): root / "cohort"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unlinkable")
    workspace, recipe = Workspace(folder / "work"), small_recipe(folder)
    list(run_ingest(sources(folder), workspace))
    run_harmonize(workspace, recipe, 1, lambda _: None)
    write_shards(workspace, Store(str(folder / "shards")), ShardSpec(recipe), 1, lambda _: None)
    reshard(Store(str(folder / "shards")), Store(str(folder / "again")), ReshardSpec("zstd"), 1, lambda _: None)
    return folder


def readable(folder: Path) -> str:
    """All that can be read in a set: bytes, decoded tables with their metadata, members, documents."""
    found = []
    for path in folder.iterdir():
        data = path.read_bytes()
        found += [path.name, data.decode("latin-1")]
        if path.suffix == ".parquet":
            found += [json.dumps(pq.read_table(path).to_pylist(), default=str), str(pq.read_schema(path).metadata)]
        if path.suffix == ".tar":
            found += [data[m.offset : m.offset + m.size].decode("latin-1") for m in read_tar(data)]
    return "\n".join(found).lower()


def digests(data: bytes) -> set[str]:
    """Digests of some bytes, whole ones and the beginnings that people shorten them to."""
    crc = zlib.crc32(data)
    whole = {h(data).hexdigest() for h in (md5, sha1, sha256)}
    raw = {h(data).digest().decode("latin-1").lower() for h in (md5, sha1, sha256)}
    return {*(text[:16] for text in whole), *raw, f"{crc:08x}", f"{crc}"}


def secrets_of(folder: Path) -> set[str]:
    """What somebody with files, headers or path lists could search a set for."""
    found = {(folder / "work" / "salt").read_text().strip(), "ward7", "mueller", "im_77", str(folder).lower()}
    for name in PRIVATE:
        found |= digests((folder / f"{name}.toml").read_bytes())
        for path in (p for p in (folder / name).rglob("*") if p.is_file()):
            data = path.read_bytes()
            found |= digests(data)
            if path.suffix == ".gz":
                inflated = gzip.decompress(data)
                found |= digests(inflated) | digests(inflated[352:])
            else:
                header = pydicom.dcmread(path)
                found |= digests(header.PixelData)
                found |= {
                    str(header[word].value).lower()
                    for word in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
                }
    return found


def numbers_in(rows: list[dict]) -> np.ndarray:
    """Every number in some rows, however deep."""

    def walk(value: object) -> list[float]:
        if isinstance(value, dict):
            return [n for item in value.values() for n in walk(item)]
        if isinstance(value, list | tuple):
            return [n for item in value for n in walk(item)]
        return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []

    return np.array(walk(rows))


@pytest.mark.parametrize("name", ["shards", "again"])
def test_no_digest_name_path_uid_or_salt(folder, name):
    text, secrets = readable(folder / name), secrets_of(folder)
    assert len(secrets) > 100
    assert [secret for secret in secrets if secret in text] == []


def test_the_search_would_find_them(folder):
    """The workspace, which is private, holds what the set must not."""
    text = readable(folder / "work" / "harmonized" / "own")
    data = (folder / "own/ward7/mueller_1_image.nii.gz").read_bytes()
    assert sha256(data).hexdigest() in text
    assert "207.33" in text


def test_no_place_and_no_slant(folder):
    told = [
        r
        for name in ("slices", "cases")
        for r in rows_of(folder / "shards", f"{name}.parquet")
        if r["collection"] == "own"
    ]
    assert len(told) > 6
    numbers = np.abs(numbers_in(told))
    for number in range(1, 4):
        affine = slanted((-131.71 - number, 207.33, 61.19))
        rare = [v for v in np.abs(affine[:3].reshape(-1)) if v > 1e-9]
        stored = affine.astype("f4").astype(float)  # as NIfTI holds it
        steps = np.linalg.norm(stored[:3, :3], axis=0)
        assert not (np.isin(numbers, steps) | np.isin(numbers, np.prod(steps))).any()
        for value in (*rare, 1271.0 + number):
            assert np.abs(numbers - value).min() > NUMBERS_TOLERANCE, value
            assert struct.pack("<f", value) not in (folder / "shards" / "cases.parquet").read_bytes()


def test_spacing_orientation_and_centre_are_told(folder):
    row = next(r for r in rows_of(folder / "shards", "cases.parquet") if r["collection"] == "own")
    affine = np.array(row["source_affine"]).reshape(4, 4)
    assert (row["orientation"], row["spacing_row_mm"], row["through_plane_mm"]) == ("RAS", 1.0, 3.0)
    assert np.allclose(affine @ [9.5, 8.5, 1.5, 1], [0, 0, 0, 1])
    assert (row["maximum"], row["minimum"]) == (1300.0, 0.0)


def test_public_collections_keep_plain_digests_and_their_frame(folder):
    rows = [r for r in rows_of(folder / "shards", "cases.parquet") if r["collection"] == "acdc"]
    files = {sha256(p.read_bytes()).hexdigest() for p in (folder / "acdc").rglob("*.nii.gz")}
    assert rows
    for row in rows:
        assert {row["source_sha256"], row["label_sha256"]} <= files
    public = {r["collection"]: r["public"] for r in rows_of(folder / "shards", "collections.parquet")}
    assert public == {"acdc": True, "own": False, "cohort": False}


def test_the_workspace_still_proves_and_finds_everything(folder):
    store, workspace = Store(str(folder / "shards")), Workspace(folder / "work")
    assert verify(store, remake=RemakeSpec(workspace, 1000)).findings == ()
    assert verify(Store(str(folder / "again"))).findings == ()
    for row in rows_of(folder / "shards", "slices.parquet")[::7]:
        told = trace(store, row["key"], workspace)
        assert (told["verdict"], told["source"]["image_unchanged"], told["source"]["label_unchanged"]) == (
            "sound",
            True,
            True,
        )
    row = next(r for r in rows_of(folder / "shards", "cases.parquet") if r["collection"] == "own")
    name = f"own-{row['case']}"
    assert np.allclose(reconstruct(store, name, workspace).geometry.affine[1, 3], 207.33, atol=1e-4)
    assert abs(reconstruct(store, name).geometry.affine[1, 3]) < 10


def test_equal_files_have_equal_keyed_digests_and_another_salt_gives_others(folder, tmp_path):
    one, other = Workspace(folder / "work"), Workspace(tmp_path / "other")
    digest = "0f" * 32
    assert one.keyed_digest(digest) == one.keyed_digest(digest) != digest
    assert len(one.keyed_digest(digest)) == 64
    assert one.keyed_digest(digest) != other.keyed_digest(digest)
    assert one.keyed_digest(digest)[:16] != one.patient_hash(digest)
