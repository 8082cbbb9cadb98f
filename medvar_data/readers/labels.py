"""Make one label of the files that hold it, on the grid of its image.

In: the label files as read, each with its own geometry. Out: one array of published values on the image's grid, and the
steps it took: files of single structures merged, raters put to the vote, a grid of its own resampled.
"""

import numpy as np
from jaxtyping import Shaped, UInt16

from medvar_data.catalog.collection import Layout
from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.scan import check_same_shape, digest_of_files, label_values
from medvar_data.records import Geometry, LabelVolume, Volume

AFFINE_TOLERANCE_MM = 0.1  # between image and label, at any corner


def combine_labels(image: Volume, parts: list[Volume], layout: Layout | None, label_grid: str) -> LabelVolume:
    """Combine a case's label files.

    Args:
        image: whose grid the label is to lie on.
        parts: one a file, in the order of `layout.label_files` where each structure has its own.
        layout: says how the files belong together; None for a single file.
        label_grid: "image": the files lie on the image's grid, whatever their affine says (step `affine_from_image` where
            it says something else); "affine": each lies where its own affine says (step `label_resampled`).

    Raises:
        CaseRejected: `label_shape`, `label_values` or `empty_label`.
    """
    steps: tuple[str, ...] = ()
    elsewhere = [not same_place(image.geometry, part.geometry) for part in parts]
    if label_grid == "affine" and any(elsewhere):
        parts = [
            resample_label(part, image.geometry) if moved else part
            for part, moved in zip(parts, elsewhere, strict=True)
        ]
        steps = ("label_resampled",)
    for part in parts:
        check_same_shape(image.geometry.shape, part.voxels.shape)
    if any(elsewhere) and not steps and "spacing_from_pixdim" not in image.steps:
        steps = ("affine_from_image",)
    if layout and layout.label_files:
        voxels, steps = merge_structures(parts, list(layout.label_files.values())), (*steps, "merged_labels")
    elif layout and layout.vote and len(parts) > 1:
        voxels, steps = vote([label_values(part.voxels) for part in parts]), (*steps, f"voted_of_{len(parts)}")
    else:
        voxels = parts[0].voxels
    digest = digest_of_files([part.digest for part in parts])
    return LabelVolume(label_values(voxels), image.geometry, digest, steps)


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
