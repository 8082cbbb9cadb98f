"""Text burned into pictures is suspected wherever and in whatever plane it stands; scans, implants and grids are not taken for text."""

import itertools

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.builders import pairs_toml, small_recipe, spaced, write_nifti
from support.shard_sets import rows_of

from medvar_data.audit.verify import verify
from medvar_data.catalog.collection import defaced
from medvar_data.catalog.load import load_collections
from medvar_data.geometry import plan_slices
from medvar_data.harmonize.burned_in import NONE_FOUND, SUSPECTED, UNKNOWN, find_burned_in_text
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.records import Geometry
from medvar_data.shard.collections import may_show_face, with_column
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store
from medvar_data.workspace.workspace import Workspace

SIDE = 192
FONTS = ("SIMPLEX", "DUPLEX", "COMPLEX", "TRIPLEX", "COMPLEX_SMALL", "SCRIPT_SIMPLEX", "SCRIPT_COMPLEX")
PLACES = {"above the body": (8, 16), "below the body": (60, 186), "in the body": (60, 100)}


def body(n_slices: int = 12, seed: int = 0) -> np.ndarray:
    """A noisy body in noisy air with an organ that wanders: HU, [z, row, column]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    inside = (x / 0.42) ** 2 + (y / 0.36) ** 2 < 1
    stack = np.where(inside, rng.normal(40, 40, (n_slices, SIDE, SIDE)), rng.normal(-1000, 15, (n_slices, SIDE, SIDE)))
    for z in range(n_slices):
        organ = (x - 0.01 * z) ** 2 + (y + 0.1) ** 2 < 0.01
        stack[z][organ] = 250
    return stack


def painted(
    stack: np.ndarray,
    text: str,
    place: tuple[int, int],
    *,
    font: str = "SIMPLEX",
    scale: float = 0.5,
    thickness: int = 1,
):
    """The stack with a text in each picture."""
    ink = cv2.putText(
        np.zeros((SIDE, SIDE), np.uint8), text, place, getattr(cv2, f"FONT_HERSHEY_{font}"), scale, 255, thickness
    )
    return stack * (1 - ink / 255) + 1500.0 * (ink / 255)


def found_in(
    stack: np.ndarray, axes: tuple[int, int, int] = (2, 1, 0), steps: tuple[float, ...] = (0.8, 0.8, 4.0)
) -> str:
    """What is said of a stack that is stored with its axes in another order; the steps are those of the stored axes."""
    voxels = np.ascontiguousarray(np.clip(stack, -1024, 3071).astype(np.int16).transpose(axes))
    geometry = Geometry(voxels.shape, np.diag([*steps, 1.0]))
    return find_burned_in_text(voxels, plan_slices(geometry, "native"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("font", FONTS)
def test_every_font_and_place(font, place):
    assert found_in(painted(body(), "DOE JANE 1947", PLACES[place], font=font)) == SUSPECTED


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.2])
@pytest.mark.parametrize("thickness", [1, 2])
def test_every_size_from_eight_pixels(scale, thickness):
    assert found_in(painted(body(), "DOE 1947", (4, 60), scale=scale, thickness=thickness)) == SUSPECTED


@pytest.mark.slow
def test_how_much_is_found():
    """The figure of docs/security.md: eight fonts, four sizes, three places, two widths on one body."""
    cases = itertools.product((*FONTS, "PLAIN"), (0.4, 0.5, 0.8, 1.2), PLACES.values(), (1, 2))
    found = [found_in(painted(body(24), "DOE JANE 1947", p, font=f, scale=s, thickness=t)) for f, s, p, t in cases]
    assert len(found) == 192
    assert found.count(SUSPECTED) >= 180


def test_text_in_every_plane_and_on_its_side():
    stack = painted(body(), "DOE JANE", (20, 20))
    assert found_in(stack, (0, 1, 2), (4.0, 0.8, 0.8)) == SUSPECTED
    assert found_in(stack, (1, 0, 2), (0.8, 4.0, 0.8)) == SUSPECTED
    assert found_in(np.ascontiguousarray(stack.transpose(0, 2, 1)[:, ::-1])) == SUSPECTED


def test_text_on_some_slices_alone_and_in_mr():
    stack = body(24)
    stack[16:] = painted(stack[16:], "DOE JANE 1947", (8, 16))
    assert found_in(stack) == SUSPECTED
    mr = np.clip(body() + 1000, 0, None)
    assert found_in(painted(mr, "DOE JANE 1947", (8, 16))) == SUSPECTED
    assert found_in(mr) == NONE_FOUND


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_slices", [3, 5, 12, 40])
def test_a_scan_holds_none(seed, n_slices):
    assert found_in(body(n_slices, seed)) == NONE_FOUND


def test_too_few_slices_to_tell():
    assert found_in(painted(body(2), "DOE JANE", (8, 16))) == UNKNOWN


def test_what_is_constant_and_bright_is_not_always_text():
    rods = body()
    for column in (60, 130):
        cv2.circle(blob := np.zeros((SIDE, SIDE), np.uint8), (column, 100), 6, 1, -1)
        rods[:, blob > 0] = 3071
    assert found_in(rods) == NONE_FOUND
    framed = body()
    framed[:, :2] = framed[:, -2:] = framed[:, :, :2] = framed[:, :, -2:] = 3071
    assert found_in(framed) == NONE_FOUND
    masked = body()
    masked[:, :, :40] = -1024
    assert found_in(masked) == NONE_FOUND
    assert found_in(np.zeros((12, SIDE, SIDE))) == NONE_FOUND


@pytest.mark.parametrize("text", ["", "DOE JANE 1947"])
def test_the_collection_counts_it(tmp_path, text):
    """From a file to the set's tables, and to the card."""
    for number in range(3):
        stack = painted(body(seed=number), text, (8, 16)) if number == 1 else body(seed=number)
        voxels = np.ascontiguousarray(np.clip(stack + 1024, 0, 4095).astype(np.int16).transpose(2, 1, 0))
        label = np.zeros(voxels.shape, np.uint8)
        label[60:120, 60:120] = 1
        for kind, data in (("image", voxels), ("label", label)):
            write_nifti(tmp_path / "own" / f"{number}_{kind}.nii.gz", data, spaced(0.8, 0.8, 4.0))
    (tmp_path / "own.toml").write_text(pairs_toml(top='defaced = "yes"'))
    workspace, store = Workspace(tmp_path / "work"), Store(str(tmp_path / "shards"))
    list(run_ingest({str(tmp_path / "own.toml"): tmp_path / "own"}, workspace))
    run_harmonize(workspace, small_recipe(tmp_path), 1, lambda _: None)
    write_shards(workspace, store, ShardSpec(small_recipe(tmp_path)), 1, lambda _: None)
    [row] = rows_of(tmp_path / "shards", "collections.parquet")
    assert (row["n_kept"], row["n_burned_in_text"], row["n_faces"]) == (3, int(bool(text)), 0)
    said = [r["burned_in_text"] for r in rows_of(tmp_path / "shards", "cases.parquet")]
    assert sorted(said) == sorted([NONE_FOUND, NONE_FOUND, SUSPECTED if text else NONE_FOUND])
    assert f"suspected in {int(bool(text))} scan" in (tmp_path / "shards" / "README.md").read_text()
    edited = pq.read_table(tmp_path / "shards" / "collections.parquet")
    pq.write_table(with_column(edited, "n_burned_in_text", [2]), tmp_path / "shards" / "collections.parquet")
    assert "own: n_burned_in_text is 2" in "\n".join(verify(store).findings)


def test_which_scans_may_show_a_face():
    found = {
        spec.name: {may_show_face(defaced(spec, layout.id), layout.region or spec.region) for layout in spec.layouts}
        for spec in load_collections()
    }
    assert all(found[name] == {False} for name in ("brats", "atlas-stroke", "msd-hippocampus", "lits", "acdc"))
    assert found["ctspine1k"] == {False, True}  # its scans of necks
