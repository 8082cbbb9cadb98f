"""Make one label of the files that hold it, on the grid of its image.

In: the label files as read, each with its own geometry. Out: one array of published values on the image's grid, and the
steps it took: a turned grid turned back, files of single structures merged, raters put to the vote, a grid of its own
resampled.
"""

from itertools import product

import numpy as np
from jaxtyping import Float64, Shaped, UInt16

from medvar_data.catalog.collection import Layout
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import voxel_sizes
from medvar_data.readers.scan import check_same_shape, digest_of_files, label_values
from medvar_data.records import Geometry, LabelVolume, Volume

AFFINE_TOLERANCE_MM = 0.1  # between image and label, at any corner
GRID_TOLERANCE = 0.501  # voxels: half a voxel is what corner and centre conventions differ by
SAME_VOXEL = 0.499  # voxels: closer than that, resampling moves nothing
UNPLACED = "unplaced"  # step of a reader: the header of this file names no place at all


def combine_labels(
    image: Volume, parts: list[Volume], layout: Layout | None, label_grid: str, stated: Geometry | None = None
) -> LabelVolume:
    """Combine a case's label files.

    Args:
        image: whose grid the label is to lie on.
        parts: one a file, in the order of `layout.label_files` where each structure has its own.
        layout: says how the files belong together; None for a single file.
        label_grid: what holds where a label's affine is neither its image's nor that grid turned (`place`).
        stated: where the image lies by the numbers of its header, before its spacing was mended.

    Raises:
        CaseRejected: `label_shape`, `label_geometry`, `label_values` or `empty_label`.
    """
    frames = (image.geometry, stated or image.geometry)
    placed = [place(part, frames, label_grid) for part in parts]
    parts, steps = [part for part, _ in placed], tuple(dict.fromkeys(step for _, step in placed if step))
    if layout and layout.label_files:
        voxels, steps = merge_structures(parts, list(layout.label_files.values())), (*steps, "merged_labels")
    elif layout and layout.vote and len(parts) > 1:
        voxels, steps = vote([label_values(part.voxels) for part in parts]), (*steps, f"voted_of_{len(parts)}")
    else:
        voxels = parts[0].voxels
    digest = digest_of_files([part.digest for part in parts])
    return LabelVolume(label_values(voxels), image.geometry, digest, steps)


def place(part: Volume, frames: tuple[Geometry, Geometry], label_grid: str) -> tuple[Volume, str]:
    """Bring one label file onto its image's grid; gives it and the step that took ("" where it lay there already).

    Its affine decides where it can: a grid that is the image's with axes swapped or reversed is turned back
    (`label_reoriented`). The image's place is taken (`affine_from_image`) only where the label's header says nothing
    usable, or lies within half a voxel. Any other grid is resampled (`label_resampled`) or refused.

    Args:
        part: as read.
        frames: where the image lies, and where its header says so.
        label_grid: "affine": a label lies where its own affine says; "image": on its image's grid, so that another is an error.

    Raises:
        CaseRejected: `label_shape`, `label_geometry`, or `empty_label` where nothing of it lies inside the image.
    """
    grid, same_shape = frames[0], part.geometry.shape == frames[0].shape
    if any(same_place(frame, part.geometry) for frame in frames):
        return _on(grid, part), ""
    if UNPLACED in part.steps:
        if label_grid == "image" or same_shape:
            check_same_shape(grid.shape, part.geometry.shape)
            return _on(grid, part), "affine_from_image"
        raise CaseRejected(Reason.LABEL_GEOMETRY, "the label has a shape of its own, and its header names no place")
    for frame in frames:
        turn = _turn(part.geometry, frame, SAME_VOXEL if label_grid == "affine" else GRID_TOLERANCE)
        if turn is not None:
            turned = np.asfortranarray(_turned(part.voxels, turn))
            step = "affine_from_image" if np.array_equal(turn, np.eye(3)) else "label_reoriented"
            return Volume(turned, grid, part.digest, part.steps), step
    if same_shape and _says_nothing(part.geometry, frames, label_grid):
        return _on(grid, part), "affine_from_image"
    if label_grid == "affine":
        return resample_label(part, grid), "label_resampled"
    check_same_shape(grid.shape, part.geometry.shape)
    raise CaseRejected(
        Reason.LABEL_GEOMETRY,
        f"by its affine the label lies up to {_distance_mm(part.geometry, grid):.4g} mm from its image's grid, and is not that grid "
        'turned; set label_grid = "affine" in the collection\'s TOML where the affines hold',
    )


def _on(grid: Geometry, part: Volume) -> Volume:
    return Volume(part.voxels, grid, part.digest, part.steps)


def _turn(label: Geometry, image: Geometry, tolerance: float) -> Float64[np.ndarray, "3 3"] | None:
    """Signed permutation from label index to image index where both are one grid to `tolerance` voxels, else None."""
    to_image = np.linalg.inv(image.affine) @ label.affine
    turn = np.rint(to_image[:3, :3])
    if not (np.array_equal(np.abs(turn).sum(axis=0), np.ones(3)) and np.array_equal(turn @ turn.T, np.eye(3))):
        return None
    if tuple(int(n) for n in np.abs(turn) @ label.shape) != image.shape:
        return None
    last = np.asarray(image.shape) - 1.0
    start = np.where(turn.sum(axis=1) < 0, last, 0.0)
    corners = np.array(list(product(*((0.0, n - 1.0) for n in label.shape))))
    off = corners @ (to_image[:3, :3] - turn).T + to_image[:3, 3] - start
    return turn + 0.0 if np.abs(off).max() <= tolerance else None


def _turned(voxels: Shaped[np.ndarray, "i j k"], turn: Float64[np.ndarray, "3 3"]) -> Shaped[np.ndarray, "a b c"]:
    """View label voxels in the order of the image's axes."""
    view = voxels.transpose([int(np.flatnonzero(row)[0]) for row in turn])
    return view[tuple(slice(None, None, -1 if row.sum() < 0 else 1) for row in turn)]


def _says_nothing(label: Geometry, frames: tuple[Geometry, Geometry], label_grid: str) -> bool:
    """Tell whether a label's affine is what programs write that know of none: the identity; or is nowhere near its image.

    Where labels lie on their image's grid, the image's own spacing may stand in the identity's place.
    """
    steps = np.diag(label.affine)[:3]
    plain = np.array_equal(label.affine, np.diag([*steps, 1.0])) and steps[2] > 0 and steps[0] * steps[1] > 0
    if plain and np.allclose(np.abs(steps), 1.0):
        return True
    if label_grid != "image":
        return False
    if plain and any(np.allclose(np.abs(steps), voxel_sizes(frame.affine), rtol=1e-3) for frame in frames):
        return True
    to_image = np.linalg.inv(frames[0].affine) @ label.affine
    ends = np.array(list(product(*((-0.5, n - 0.5) for n in label.shape)))) @ to_image[:3, :3].T + to_image[:3, 3]
    shared = np.minimum(ends.max(axis=0), np.asarray(frames[0].shape) - 0.5) - np.maximum(ends.min(axis=0), -0.5)
    return bool(shared.min() <= min(1.0, *frames[0].shape) * GRID_TOLERANCE)


def _distance_mm(label: Geometry, image: Geometry) -> float:
    """Largest distance between the corners of two grids of one shape."""
    corners = np.array([[*corner, 1.0] for corner in product(*((0.0, n - 1.0) for n in label.shape))])
    return float(np.linalg.norm((corners @ (label.affine - image.affine).T)[:, :3], axis=1).max())


def merge_structures(parts: list[Volume], values: list[int]) -> UInt16[np.ndarray, "i j k"]:
    """Paint the voxels above 0 of each file with its value, later files over earlier ones.

    Raises:
        CaseRejected: `label_values` where a file holds no whole numbers.
    """
    merged = np.zeros_like(parts[0].voxels, dtype=np.uint16)  # in the order of memory that the files have
    for part, value in zip(parts, values, strict=True):
        if part.voxels.any():  # a structure that this patient does not have is an empty file
            merged[label_values(part.voxels) > 0] = value
    return merged


def vote(raters: list[Shaped[np.ndarray, "i j k"]]) -> UInt16[np.ndarray, "i j k"]:
    """Let raters vote on each voxel: foreground where at least half of them see any, then the value that most of them give.

    Where values tie, the lowest one wins.

    >>> vote([np.full((1, 1, 1), value, np.uint16) for value in (0, 0, 2, 1)]).item()
    1
    """
    values = sorted({int(value) for rater in raters for value in np.unique(rater)} - {0})
    foreground = 2 * sum((rater > 0).astype(np.uint8) for rater in raters) >= len(raters)
    winner, most = np.zeros_like(raters[0], dtype=np.uint16), np.zeros_like(raters[0], dtype=np.uint8)
    for value in values:
        votes = sum((rater == value).astype(np.uint8) for rater in raters)
        ahead = foreground & (votes > most)
        winner[ahead], most[ahead] = value, votes[ahead]
    return winner


def resample_label(label: Volume, grid: Geometry) -> Volume:
    """Bring a label onto another grid: each voxel takes the value of the label voxel that its centre falls into, else 0."""
    to_label = np.linalg.inv(label.geometry.affine) @ grid.affine
    out = np.zeros(grid.shape, dtype=label.voxels.dtype, order="F")
    i, j = np.meshgrid(np.arange(grid.shape[0]), np.arange(grid.shape[1]), indexing="ij")
    plane = to_label[:3, 0, None, None] * i + to_label[:3, 1, None, None] * j + to_label[:3, 3, None, None]
    limits = np.asarray(label.voxels.shape).reshape(3, 1, 1)
    for k in range(grid.shape[2]):
        at = np.floor(plane + to_label[:3, 2, None, None] * k + (0.5 + 1e-6)).astype(np.int64)
        inside = ((at >= 0) & (at < limits)).all(axis=0)
        a, b, c = at[:, inside]
        out[..., k][inside] = label.voxels[a, b, c]
    if label.voxels.any() and not out.any():
        raise CaseRejected(
            Reason.EMPTY_LABEL,
            "by their affines, no annotated voxel lies inside the image; wanted a label of this scan",
        )
    return Volume(out, grid, label.digest, label.steps)


def same_place(a: Geometry, b: Geometry) -> bool:
    """Tell whether two grids have one shape and put their corners at the same places, to 0.1 mm."""
    if a.shape != b.shape:
        return False
    corners = np.array(
        [[i, j, k, 1] for i in (0, a.shape[0]) for j in (0, a.shape[1]) for k in (0, a.shape[2])], dtype=float
    )
    return bool(np.abs(corners @ (a.affine - b.affine).T).max() <= AFFINE_TOLERANCE_MM)
