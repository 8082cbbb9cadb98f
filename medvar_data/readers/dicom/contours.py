"""Turn the contours of a structure set (RTSTRUCT, PS3.3 C.8.8.6) into masks of the image's slices.

Contours of one region at one height make one picture: one within another is a hole, one within the hole an island, those that
overlap in part unite, one drawn twice counts once, and those declared CLOSEDPLANAR_XOR are combined by exclusive or. A
keyhole, which runs into a hole and back, has its hole by itself. What is left out is counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float64
from pydicom.dataset import Dataset
from skimage.draw import polygon

from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.dicom.headers import quiet

CONTOUR_DATA = 0x30060050
CLOSED = ("CLOSEDPLANAR", "CLOSED", "")  # as vendors write it, less underscores, spaces and hyphens
EXCLUSIVE = ("CLOSEDPLANARXOR", "XOR")
OFF_PLANE = 0.5  # a contour may lie this fraction of a slice beside the image's slice, and so much out of plane
SAME_HEIGHT = 0.1  # of a slice: contours so close are of one picture
SAME_LINE = 0.1  # of a pixel: two contours whose corners lie so close are one, drawn twice
COARSER = 1.2  # slices from one contour to the next: from here on, they were drawn on a coarser grid than the image's
USUAL_GAP = 1.3  # times the least distance of two contours; beyond it the region has a true gap
WITHIN = 0.01  # a contour is within another if at most this share of its pixels is not
MOST_AT_ONE_HEIGHT = 4096  # contours of one region
MOST_CORNERS_COMPARED = 1000  # of each contour


@dataclass(frozen=True)
class Contour:
    """A closed contour in voxel indices of the image."""

    corners: Float64[np.ndarray, "n 2"]  # i, j
    height: float  # k
    exclusive: bool


@dataclass
class Region:
    """What the contours of one region make."""

    slices: dict[int, Bool[np.ndarray, "i j"]] = field(default_factory=dict)
    steps: Counter[str] = field(default_factory=Counter)  # contours left out, slices filled between


def read_region(
    dataset: Dataset, number: int, to_index: Float64[np.ndarray, "4 4"], shape: tuple[int, int, int]
) -> Region:
    """Masks of the slices in which one region lies.

    Args:
        dataset: a parsed structure set.
        number: ROINumber.
        to_index: from LPS mm to voxel indices of the image.
        shape: of the image, voxels.

    Raises:
        CaseRejected: `label_geometry` where contours lie across the slices or all outside; `truncated`.
    """
    region = Region()
    inside = []
    for kind, points in _contours_of(dataset, number):
        if kind not in CLOSED and kind not in EXCLUSIVE:
            region.steps["contours_not_closed"] += 1
            continue
        if len(points) < 9 or len(points) % 3 or not np.isfinite(points).all():
            region.steps["contours_without_area"] += 1
            continue
        contour = _place(points, to_index, exclusive=kind in EXCLUSIVE)
        if not 0 <= round(contour.height) < shape[2] or _is_beside(contour, shape):
            region.steps["contours_outside"] += 1
            continue
        region.steps["contours_cut"] += _is_cut(contour, shape)
        inside.append(contour)
    if region.steps["contours_outside"] and not inside:
        raise CaseRejected(Reason.LABEL_GEOMETRY, "all contours lie outside the image; wanted those of its own series")
    heights: dict[int, float] = {}
    for height, contours in _by_height(inside):
        k = round(height)
        if k in heights and abs(height - k) >= abs(heights[k] - k):
            region.steps["contours_between_slices"] += len(contours)
            continue
        region.steps["contours_between_slices"] += k in heights
        heights[k] = height
        region.slices[k] = combine(contours, shape[:2])
    _fill_between(region, heights)
    return region


def _is_beside(contour: Contour, shape: tuple[int, int, int]) -> bool:
    """Tell whether a contour lies beside the picture altogether."""
    low, high = contour.corners.min(axis=0), contour.corners.max(axis=0)
    return bool((high < -0.5).any() or (low > np.asarray(shape[:2]) - 0.5).any())


def _is_cut(contour: Contour, shape: tuple[int, int, int]) -> bool:
    """Tell whether the edge of the picture cuts off a pixel or more of a contour."""
    low, high = contour.corners.min(axis=0), contour.corners.max(axis=0)
    return bool((low < -1.5).any() or (high > np.asarray(shape[:2]) + 0.5).any())


@dataclass(frozen=True)
class _Patch:
    """Pixels whose centres lie within a contour, in the least rectangle around them."""

    start: tuple[int, int]
    mask: Bool[np.ndarray, "i j"]

    @property
    def box(self) -> tuple[slice, slice]:
        """Where it lies in the picture."""
        (i, j), (n, m) = self.start, self.mask.shape
        return slice(i, i + n), slice(j, j + m)


def combine(contours: Sequence[Contour], shape: tuple[int, int]) -> Bool[np.ndarray, "i j"]:
    """One picture of the contours at one height.

    Raises:
        CaseRejected: `label_geometry` where there are more than anybody draws.
    """
    if len(contours) > MOST_AT_ONE_HEIGHT:
        raise CaseRejected(
            Reason.LABEL_GEOMETRY,
            f"{len(contours):,} contours lie at one height; wanted at most {MOST_AT_ONE_HEIGHT:,}",
        )
    picture = np.zeros(shape, dtype=bool)
    if any(contour.exclusive for contour in contours):
        for contour in contours:
            patch = _patch(contour, shape)
            picture[patch.box] ^= patch.mask
        return picture
    patches = sorted(
        (_patch(contour, shape) for contour in _distinct(contours)), key=lambda patch: -int(patch.mask.sum())
    )
    depths: list[int] = []
    for n, patch in enumerate(patches):
        around = [depths[m] for m in range(n) if _is_within(patch, patches[m])]
        depths.append(1 + max(around, default=-1))
        picture[patch.box] = np.where(patch.mask, depths[n] % 2 == 0, picture[patch.box])
    return picture


def _distinct(contours: Sequence[Contour]) -> list[Contour]:
    """The contours without those that are drawn twice."""
    spans = np.array([[*c.corners.min(axis=0), *c.corners.max(axis=0)] for c in contours])
    kept: list[int] = []
    for n, contour in enumerate(contours):
        near = np.flatnonzero(np.abs(spans[kept] - spans[n]).max(axis=1) <= SAME_LINE) if kept else ()
        if not any(_is_same(contour, contours[kept[m]]) for m in near):
            kept.append(n)
    return [contours[n] for n in kept]


def _is_within(inner: _Patch, outer: _Patch) -> bool:
    """Tell whether all but a hundredth of a smaller patch lies in a larger one, and is not the same."""
    (rows, columns), (outer_rows, outer_columns) = inner.box, outer.box
    top, bottom = max(rows.start, outer_rows.start), min(rows.stop, outer_rows.stop)
    left, right = max(columns.start, outer_columns.start), min(columns.stop, outer_columns.stop)
    if top >= bottom or left >= right:
        return False
    mine = inner.mask[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
    theirs = outer.mask[
        top - outer_rows.start : bottom - outer_rows.start, left - outer_columns.start : right - outer_columns.start
    ]
    area = int(inner.mask.sum())
    outside = area - int((mine & theirs).sum())
    return outside <= WITHIN * area < WITHIN * int(outer.mask.sum())


def _patch(contour: Contour, shape: tuple[int, int]) -> _Patch:
    i, j = _inside(contour, shape)
    if not len(i):
        return _Patch((0, 0), np.zeros((0, 0), dtype=bool))
    mask = np.zeros((int(np.ptp(i)) + 1, int(np.ptp(j)) + 1), dtype=bool)
    mask[i - i.min(), j - j.min()] = True
    return _Patch((int(i.min()), int(j.min())), mask)


def _inside(contour: Contour, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels whose centres lie within a contour."""
    i, j = polygon(contour.corners[:, 0], contour.corners[:, 1], shape)
    return i, j


def _place(points: Float64[np.ndarray, " n"], to_index: Float64[np.ndarray, "4 4"], *, exclusive: bool) -> Contour:
    corners = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    i, j, k = (to_index @ np.column_stack([corners, np.ones(len(corners))]).T)[:3]
    height = float(np.median(k))
    off = float(np.abs(k - height).max())
    if off > OFF_PLANE:
        raise CaseRejected(
            Reason.LABEL_GEOMETRY,
            f"a contour leans over {off:.2g} slices to either side; wanted at most {OFF_PLANE}, in the plane of the image's slices",
        )
    return Contour(np.column_stack([i, j]), height, exclusive)


def _by_height(contours: Iterable[Contour]) -> Iterator[tuple[float, list[Contour]]]:
    """Contours of one picture together, from the lowest; those within `SAME_HEIGHT` of the first are of one picture."""
    group: list[Contour] = []
    for contour in sorted(contours, key=lambda c: c.height):
        if group and contour.height - group[0].height > SAME_HEIGHT:
            yield float(np.mean([c.height for c in group])), group
            group = []
        group.append(contour)
    if group:
        yield float(np.mean([c.height for c in group])), group


def _is_same(a: Contour, b: Contour) -> bool:
    """Tell whether two contours of one span are one line, whatever corner they begin at and whichever way they run."""
    if max(len(a.corners), len(b.corners)) > MOST_CORNERS_COMPARED:
        return bool(np.array_equal(a.corners, b.corners))
    apart = np.linalg.norm(a.corners[:, None] - b.corners[None], axis=2)
    return bool(max(apart.min(axis=0).max(), apart.min(axis=1).max()) <= SAME_LINE)


def _fill_between(region: Region, heights: Mapping[int, float]) -> None:
    """Fill the slices between contours that were drawn on a coarser grid than the image's.

    Only between contours that keep their usual distance, so that a true gap stays one: the mask between two is where
    the mean of their signed distances is positive, weighted by nearness (shape-based interpolation, Raya and Udupa
    1990).
    """
    drawn = sorted(heights)
    gaps = np.diff([heights[k] for k in drawn])
    if not len(gaps) or gaps.min() < COARSER:
        return
    for low, high, gap in zip(drawn, drawn[1:], gaps, strict=False):
        if gap > USUAL_GAP * gaps.min() or high - low < 2:
            continue
        below, above = (_signed_distance(region.slices[k]) for k in (low, high))
        for k in range(low + 1, high):
            above_share = (k - heights[low]) / gap
            region.slices[k] = below * (1 - above_share) + above * above_share > 0
            region.steps["slices_between_contours"] += 1


def _signed_distance(mask: Bool[np.ndarray, "i j"]) -> Float64[np.ndarray, "i j"]:
    """Pixels to the edge, positive within."""
    if not mask.any():
        return np.full(mask.shape, -float(max(mask.shape)))
    within, outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (mask, ~mask)
    )
    return within.astype(np.float64) - outside


def _numbers(contour: Dataset) -> Float64[np.ndarray, " n"]:
    """The coordinates of a contour, from its text where that lies unparsed: numbers as objects take 25 times its bytes."""
    element = contour.get_item(CONTOUR_DATA)
    text = getattr(element, "value", None)
    if isinstance(text, bytes):
        return np.array([float(v) for v in text.rstrip(b"\0 ").split(b"\\") if v.strip()])
    values = contour.get("ContourData")
    return np.array(
        [float(v) for v in (values if hasattr(values, "__iter__") else [values])] if values is not None else []
    )


def _contours_of(dataset: Dataset, number: int) -> Iterator[tuple[str, Float64[np.ndarray, " n"]]]:
    """Kind and points (LPS, mm, three numbers a point) of the contours of one region."""
    try:
        with quiet():
            for region in dataset.get("ROIContourSequence") or ():
                if int(region.get("ReferencedROINumber") or 0) != number:
                    continue
                for contour in region.get("ContourSequence") or ():
                    kind = str(contour.get("ContourGeometricType") or "").upper()
                    points = _numbers(contour)
                    yield kind.translate(str.maketrans("", "", "_- ")), points
    except MemoryError:
        raise
    except Exception as error:
        raise CaseRejected(Reason.TRUNCATED, "a structure set is cut short or damaged") from error
