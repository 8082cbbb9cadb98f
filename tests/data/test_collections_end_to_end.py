"""Walk every collection's pipeline from its published files to finished slices, and hold what comes out against what was written.

Phantoms are written at every path of the collection's listing, with its published label values and its styles of storing
(tests/support/published.py, styles.py, painted.py, collection_phantoms.py); none of that reads our description of the collection.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from support import published
from support.collection_phantoms import Written, write_collection
from support.painted import PLANES, cut_plane, spacing_of
from support.published import Listing, read_listing
from support.storage_styles import STYLES

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import collection_names, load_collection, load_conditions
from medvar_data.catalog.recipe import load_recipe
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.records import Case, Reject
from medvar_data.workspace.case_file import CaseFile, read_case_file, read_pictures, read_slice_index
from medvar_data.workspace.workspace import Workspace

NAMES = collection_names()
SIDE = 64  # pixels of the recipe `demo`
GREY_TOLERANCE = 3.0  # of 255: noise, rounding, and the edge of the percentiles


@dataclass(frozen=True)
class Run:
    """A collection's phantoms, and what ingest and harmonize made of them."""

    spec: CollectionSpec
    listing: Listing
    written: tuple[Written, ...]
    cases: dict[str, Case]
    rejects: dict[str, Reject]
    notes: tuple[str, ...]
    workspace: Workspace

    def kept(self) -> list[tuple[Written, CaseFile, Path]]:
        """Every case that nothing was expected against, with its result."""
        paths = [(w, self.workspace.case_file(self.cases[w.case.case])) for w in self.written if not reject_of(w)]
        return [(written, read_case_file(path), path) for written, path in paths]


def reject_of(written: Written) -> str:
    return written.case.about.get("reject", "")


def what_is_missing(name: str) -> str:
    """Say what a collection still needs before its phantom can be written; "" where nothing is missing."""
    if not (published.LISTINGS / f"{name}.txt").is_file():
        return f"Collection {name} has no listing: add tests/listings/{name}.txt (tests/support/published.py tells the form)."
    listing = read_listing(name)
    silent = sum(not text for text in listing.about)
    if silent:
        return (
            f"{silent} paths in tests/listings/{name}.txt do not say what they are: add ` -> case | patient | split`."
        )
    if "labels" not in listing.expected:
        return f"tests/listings/{name}.txt names no label values: add `# labels: 1 liver, 2 spleen` from the publisher."
    if name not in STYLES:
        return f"Collection {name} has no phantom: add one row to STYLES in tests/support/storage_styles.py."
    return ""


@pytest.fixture(scope="module", params=NAMES)
def run(request, tmp_path_factory) -> Run:
    name = request.param
    if missing := what_is_missing(name):
        pytest.fail(missing)
    folder = tmp_path_factory.mktemp(name)
    listing = read_listing(name)
    written = write_collection(name, listing, folder / "download")
    workspace = Workspace(folder / "work")
    workspace.set_salt(bytes(32))
    (result,) = run_ingest({name: folder / "download"}, workspace)
    run_harmonize(workspace, load_recipe("demo"), 1, lambda _: None)
    rejects = {reject.case: reject for reject in (*result.rejects, *workspace.harmonize_rejects(name))}
    assert len(rejects) == len(result.rejects) + len(list(workspace.harmonize_rejects(name)))
    cases = {case.case: case for case in result.cases}
    return Run(load_collection(name), listing, tuple(written), cases, rejects, result.notes, workspace)


def test_every_case_is_found_and_only_bad_ones_are_left_out(run):
    wanted = {w.case.case: reject_of(w) for w in run.written}
    assert {case: reject.reason.value for case, reject in run.rejects.items()} == {
        case: reason for case, reason in wanted.items() if reason
    }
    bad = {case for case, reject in run.rejects.items() if reject.stage == "ingest"}
    assert set(run.cases) == set(wanted) - bad
    assert {case.layout for case in run.cases.values()} == {layout.id for layout in run.spec.layouts}
    assert run.notes == ()


def test_rows_tell_what_was_published(run):
    conditions = load_conditions()
    assert {run.spec.slice_axis} == {"native" if written.style.native else "axial" for written in run.written}
    for written in run.written:
        if written.case.case not in run.cases:
            continue
        row, style, case = run.cases[written.case.case], written.style, written.case
        assert (row.case, row.group, row.official_split) == (case.case, case.group, case.split)
        assert (row.modality, row.region, row.sequence) == (style.modality, style.region, case.sequence)
        assert row.condition == f"{run.spec.name}-{style.modality.lower()}"
        assert row.condition in conditions
        assert bool(row.label) == (written.label is not None)
        assert row.channel == case.channel
        assert set(row.image) == set(case.paths)


def test_geometry_is_the_files(run):
    for written, file, path in run.kept():
        found, steps = file.harmonized, spacing_of(written.style)
        assert found.shape == written.shape
        there, wanted = np.reshape(found.affine, (4, 4)), written.affine
        is_stack = len(written.case.paths) > 1
        if is_stack and not np.allclose(there[:3, 2], wanted[:3, 2]):  # stacked from the head down
            wanted = wanted @ np.diag([1, 1, -1, 1]) + np.outer(wanted[:, 2] * (written.shape[2] - 1), [0, 0, 0, 1])
        assert np.allclose(there, wanted, atol=1e-4)
        codes = "".join(nib.aff2axcodes(wanted))
        assert is_stack or codes == written.codes
        assert (found.orientation, found.plane) == (codes, cut_plane(written.style))
        through = PLANES[cut_plane(written.style)]
        across, down = (axis for axis in range(3) if axis != through)
        spacing = (found.spacing_row_mm, found.spacing_col_mm, found.through_plane_mm)
        assert np.allclose(spacing, (steps[down], steps[across], steps[through]), rtol=1e-4)
        assert found.n_slices == written.image.shape[through]
        forward = "RAS"[through] in codes
        assert set(found.steps) - {"sform_over_qform"} == written.steps  # a sheared sform has no equal qform
        for row in read_slice_index(path):
            assert row["source_index"] == (row["z"] if forward else found.n_slices - 1 - row["z"])


def test_each_label_value_ends_under_its_name_where_it_was(run):
    names = {label.id: label.name for label in run.spec.labels}
    meanings = run.listing.names()
    for written, file, path in run.kept():
        if written.label is None:
            continue
        slices = read_slices(path)
        values = [value for value in np.unique(written.label) if value]
        layers = np.moveaxis(written.label, PLANES[cut_plane(written.style)], 0)
        assert sorted(slices) == [z for z, layer in enumerate(layers) if layer.any()]
        for z, (_, mask) in slices.items():
            wanted = picture(written.label, cut_plane(written.style), z)
            for value in values:
                here = wanted == value
                assert {names.get(int(i), "nothing") for i in np.unique(mask[here])} == (
                    {meanings[value]} if here.any() else set()
                )
            assert not mask[wanted == 0].any()
        assert file.harmonized.vanished_labels == ()


def test_unlabelled_cases_keep_their_slices_and_an_empty_mask(run):
    for written, _, path in run.kept():
        if written.label is None:
            slices = read_slices(path)
            assert len(slices) == written.image.shape[PLANES[cut_plane(written.style)]]
            assert not any(mask.any() for _, mask in slices.values())


def test_grey_values_are_the_physical_ones(run):
    tried = 0
    for written, file, path in run.kept():
        image, found = written.image, file.harmonized
        low, high = (-160.0, 240.0) if written.style.modality == "CT" else np.percentile(image[image != 0], [0.5, 99.5])
        assert np.allclose((found.low, found.high), (low, high), rtol=0.02, atol=1.0)
        floor = -1024 if written.style.modality == "CT" else 0
        extremes = max(image.min(), floor), image.max()
        exact = 1 / min(1, written.style.gain)  # stored in whole numbers
        assert np.allclose((found.statistics.minimum, found.statistics.maximum), extremes, atol=exact)
        blocks = np.zeros(image.shape, np.uint8) if written.label is None else written.label
        for z, (grey, _) in read_slices(path).items():
            physical, values = picture(image, cut_plane(written.style), z), picture(blocks, cut_plane(written.style), z)
            for value in set(np.unique(values)) - {0}:
                inside = cv2.erode((values == value).astype(np.uint8), reach(image, cut_plane(written.style))) > 0
                if inside.any():
                    wanted = np.clip((physical[inside] - low) / (high - low), 0, 1) * 255
                    assert abs(grey[inside].mean() - wanted.mean()) < GREY_TOLERANCE, (written.case.case, z, value)
                    tried += 1
    assert tried or all(reject_of(written) or written.label is None for written in run.written)


def test_every_published_value_was_tried_and_every_id_has_one(run):
    meanings = run.listing.names()
    used = {int(value) for w in run.written if w.label is not None for value in np.unique(w.label)} - {0}
    assert used == set(meanings)
    covered = {label.id for label in run.spec.labels for value in meanings if label.low <= value <= label.high}
    assert covered == {label.id for label in run.spec.labels}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_missing(name):
    assert what_is_missing(name) == ""


def test_a_collection_without_listing_or_phantom_is_told_what_to_add(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "LISTINGS", tmp_path)
    assert "add tests/listings/new.txt" in what_is_missing("new")
    (tmp_path / "new.txt").write_text("# labels: 1 liver\nimg/1.nii\n")
    assert "add ` -> case | patient | split`" in what_is_missing("new")
    (tmp_path / "new.txt").write_text("img/1.nii -> 1 | new/1 | -\n")
    assert "add `# labels: 1 liver" in what_is_missing("new")
    (tmp_path / "new.txt").write_text("# labels: 1 liver\nimg/1.nii -> 1 | new/1 | -\n")
    assert "add one row to STYLES" in what_is_missing("new")


def read_slices(path: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Finished slices of a case: z -> picture and mask."""
    rows = read_slice_index(path)
    encoded = read_pictures(path, range(len(rows)))
    return {row["z"]: tuple(map(decoded, encoded[n])) for n, row in enumerate(rows)}


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def reach(volume: np.ndarray, plane: str) -> np.ndarray:
    """What to take off a block's edge in the finished picture: as far as its neighbours are blended in."""
    across, down = (volume.shape[axis] for axis in range(3) if axis != PLANES[plane])
    return np.ones([2 * int(np.ceil(SIDE / n)) + 1 for n in (down, across)], np.uint8)


def picture(volume: np.ndarray, plane: str, z: int) -> np.ndarray:
    """Slice `z` of an R, A, S volume as radiologists look at it, drawn to 64 x 64 pixels by the nearest voxel."""
    if plane == "axial":  # from the front down, from the patient's right to the left
        upright = volume[::-1, ::-1, z].T
    elif plane == "coronal":  # from the head down, from the patient's right to the left
        upright = volume[::-1, z, ::-1].T
    else:  # from the head down, from the front to the back
        upright = volume[z, ::-1, ::-1].T
    down, across = (np.floor((np.arange(SIDE) + 0.5) * n / SIDE).astype(int) for n in upright.shape)
    return upright[np.ix_(down, across)]
