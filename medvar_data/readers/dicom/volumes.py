"""Decide which pictures of a series make a volume, and place them: split by what differs, sort by geometry, check the gaps.

In: the frames of one series. Out: `Part`s, each with the words that set it apart; a `Stack` has the order and the affine.
A split is made only where pictures share a place or each part is a regular stack of its own, so an attribute that varies
from slice to slice never tears a volume.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.spatial import create_affine_matrix_from_attributes, get_volume_positions
from jaxtyping import Float64

from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import check_spacing
from medvar_data.readers.dicom.headers import Frame

MIN_SLICES = 3  # fewer are a planning image, a preview or a rest, no volume
MOST_KINDS = 256  # of orientations, sizes or stacks in a series; the rest counts as one more, which makes no volume
SAME_PLACE_MM = 0.01
SAME_ORIENTATION = 1e-3  # of direction cosines
SAME_PIXEL_MM = 1e-4
POSITION_RTOL = 0.02  # slices may lie this fraction of a step off the regular grid
OFF_LINE_MM, OFF_LINE_STEPS = 0.1, 0.05  # slices may lie so far off the line through the stack; the larger holds
ANY_TILT = 1.0  # a leaning stack is checked by `check_tilt`
TILT_LIMIT = 0.71  # largest |cosine| between the way through a stack and its pictures: 45 degrees
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# What tells pictures at one place apart, in the order in which it is asked, and how a part is then named: {} is the value,
# # the rank of the value. Only numbers and the closed words of `contrasts` can come out.
CONTRASTS = (
    ("part", "{}"), ("dixon", "{}"), ("echo", "echo#"), ("echo number", "echo#"), ("inversion", "inversion#"), ("flip", "flip#"),
    ("b", "b{}"), ("direction", "direction#"), ("time", "time#"), ("trigger", "time#"), ("acquisition", "acquisition#"),
    ("series", "series#"), ("kernel", "kernel#"), ("acquired", "time#"),
)  # fmt: skip

# What parts pictures that share no place, where each value holds a regular stack: two scans whose slices lie between each
# other's or one above the other. The packages of one interleaved acquisition agree in all of them.
APART = ("part", "dixon", "echo", "series", "kernel")
INTERLEAVED = ("acquisition",)  # parts stacks that lie between each other; slabs one above the other are one scan


@dataclass(frozen=True)
class Part:
    """Frames that belong together, and the words that set them apart in their series."""

    frames: tuple[Frame, ...]
    words: tuple[str, ...] = ()
    n_orientations: int = 1  # of the whole series


@dataclass(frozen=True)
class Stack:
    """Frames in order along their normal, with the affine from (column, row, slice) to RAS+ mm."""

    frames: tuple[Frame, ...]
    affine: Float64[np.ndarray, "4 4"]


def split_series(frames: Sequence[Frame]) -> list[Part]:
    """Split the frames of one series into volumes.

    First by what no volume mixes (stack, orientation, size, spacing), then, where several frames share a place, by the
    first of `CONTRASTS` that tells them apart and leaves the places together; last by full sweeps in the order of numbers,
    where each picture has a number of its own. Frames that share no place are split where a contrast parts them into
    regular stacks.
    """
    ordered = sorted(frames, key=lambda f: (f.number, f.path, f.index))
    parts = [Part(tuple(ordered))]
    for same, word in ((_same_stack, "stack#"), (_same_orientation, "plane#"), (_same_grid, "grid#")):
        parts = [split for part in parts for split in _by_value(part, _clusters(part.frames, same), word)]
    n_orientations = len(set(_clusters(ordered, _same_orientation)))
    parts = [split for part in parts for split in _by_contrasts(part)]
    return [Part(part.frames, part.words, n_orientations) for part in parts]


def stack_frames(frames: Sequence[Frame]) -> Stack:
    """Sort the frames of one volume along their normal and make its affine, which is sheared where the gantry was tilted.

    Raises:
        CaseRejected: `mixed_series`, `missing_slice`, `duplicate_position`, `uneven_spacing`, `spacing_implausible` or
            `nonorthonormal`.
    """
    first = frames[0]
    if not all(f.position_mm and f.orientation and f.pixel_mm for f in frames):
        raise CaseRejected(
            Reason.MIXED_SERIES, "a slice says nothing of where it lies; wanted position, orientation, spacing"
        )
    if not all(_same_orientation(f, first) and _same_grid(f, first) for f in frames):
        raise CaseRejected(Reason.MIXED_SERIES, f"slices differ in {_differing(frames)}; wanted one stack")
    positions = [f.position_mm for f in frames]
    try:
        step, index = get_volume_positions(positions, first.orientation, rtol=POSITION_RTOL, perpendicular_tol=ANY_TILT)
    except ValueError as error:
        raise CaseRejected(Reason.MIXED_SERIES, "the directions of a slice are no right angle") from error
    if step is None or index is None:
        raise _why_no_volume(positions, first.orientation)
    order = [int(i) for i in np.argsort(index)]
    affine = create_affine_matrix_from_attributes(
        image_position=frames[order[0]].position_mm,
        image_orientation=first.orientation,
        pixel_spacing=first.pixel_mm,
        spacing_between_slices=step,
        index_convention=("R", "D"),
    )
    if len(frames) > 1:  # the third column from the positions themselves: tilt and direction come out right
        travel = np.subtract(frames[order[-1]].position_mm, frames[order[0]].position_mm)
        affine[:3, 2] = travel / (len(frames) - 1)
        _check_line(np.asarray([positions[i] for i in order]), affine[:3, 2])
    affine = LPS_TO_RAS @ affine
    check_spacing(affine)
    check_tilt(affine)
    return Stack(tuple(frames[i] for i in order), affine)


def n_places(frames: Sequence[Frame]) -> int:
    """Different places at which the frames lie; frames without a place count one together."""
    return len(set(_places(frames)))


def tilt(affine: Float64[np.ndarray, "4 4"]) -> float:
    """Largest |cosine| between the way through a stack and the rows and columns of its pictures."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(directions[:, :2].T @ directions[:, 2]).max())


def check_tilt(affine: Float64[np.ndarray, "4 4"]) -> None:
    """Reject a stack that leans so far that straightening it would leave little of a picture."""
    if tilt(affine) > TILT_LIMIT:
        raise CaseRejected(
            Reason.NONORTHONORMAL, f"the stack leans (cosine {tilt(affine):.2f}); wanted at most {TILT_LIMIT}"
        )


def _by_contrasts(part: Part) -> list[Part]:
    """Split frames that share places, by the first contrast that does it without tearing a volume; again until none does."""
    places = _places(part.frames)
    if len(set(places)) == len(places):
        return _by_regular_stacks(part)
    if len(set(places)) == 1:
        return [part]
    for name, template in CONTRASTS:
        values = [f.contrasts.get(name, "") for f in part.frames]
        if _splits(places, values):
            return [split for one in _by_value(part, values, template) for split in _by_contrasts(one)]
    numbered = {(f.number, f.index) for f in part.frames}
    sweeps = _sweeps(places) if len(numbered) == len(places) else []  # file names tell no order
    return _by_value(part, sweeps, "time#") if sweeps else [part]


def _by_regular_stacks(part: Part) -> list[Part]:
    """Split frames that share no place, by the first contrast each of whose values holds a regular stack of its own."""
    for name, template in CONTRASTS:
        values = [f.contrasts.get(name, "") for f in part.frames]
        if name not in (*APART, *INTERLEAVED) or not 1 < len(set(values)) <= len(values) // MIN_SLICES:
            continue
        parts = _by_value(part, values, template)
        if all(_is_regular(one.frames) for one in parts) and (name in APART or _interleave(parts)):
            return [split for one in parts for split in _by_regular_stacks(one)]
    return [part]


def _is_regular(frames: Sequence[Frame]) -> bool:
    if len(frames) < MIN_SLICES:
        return False
    try:
        stack_frames(frames)
    except CaseRejected:
        return False
    return True


def _interleave(parts: Sequence[Part]) -> bool:
    """Tell whether any two stacks lie between each other along their common normal."""
    orientation = parts[0].frames[0].orientation
    normal = np.cross(orientation[:3], orientation[3:])
    heights = [np.asarray([f.position_mm for f in part.frames]) @ normal for part in parts]
    spans = sorted((float(h.min()), float(h.max())) for h in heights)
    return any(low < high for (_, high), (low, _) in itertools.pairwise(spans))


def _splits(places: Sequence[int], values: Sequence[float | str]) -> bool:
    """Tell whether values differ where places are shared, and half of them or more hold most of the places together."""
    seen: dict[int, set[float | str]] = {}
    held: dict[float | str, set[int]] = {}
    for place, value in zip(places, values, strict=True):
        seen.setdefault(place, set()).add(value)
        held.setdefault(value, set()).add(place)
    if all(len(found) == 1 for found in seen.values()):
        return False
    whole = sum(len(found) * 2 > len(seen) for found in held.values())
    return whole * 2 >= len(held)


def _by_value(part: Part, values: Sequence[float | str], template: str) -> list[Part]:
    distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    if len(distinct) == 1:
        return [part]
    shown = [f"{value:g}" if isinstance(value, float) else value or "other" for value in distinct]
    parts = []
    for rank, (value, text) in enumerate(zip(distinct, shown, strict=True), start=1):
        word = template.replace("{}", text).replace("#", str(rank))
        frames = tuple(f for f, own in zip(part.frames, values, strict=True) if own == value)
        parts.append(
            Part(frames, (*part.words, word if shown.count(text) == 1 or "#" in template else f"{word} {rank}"))
        )
    return parts


def _sweeps(places: Sequence[int]) -> list[float | str]:
    """Number the frames by sweeps, where their order runs through all places again and again, or dwells at each; else nothing.

    This is how scanners number images of a time series that carries no time (GE's functional MR).
    """
    counts = Counter(places)
    repeats = set(counts.values())
    if len(repeats) != 1:
        return []
    n_sweeps, n = repeats.pop(), len(counts)
    by_sweep = [list(places[i * n : (i + 1) * n]) for i in range(n_sweeps)]
    if all(sweep == by_sweep[0] for sweep in by_sweep):
        return [float(i // n) for i in range(len(places))]
    if all(len(set(places[i * n_sweeps : (i + 1) * n_sweeps])) == 1 for i in range(n)):
        return [float(i % n_sweeps) for i in range(len(places))]
    return []


def _places(frames: Sequence[Frame]) -> list[int]:
    """A number for the place of each frame; frames within `SAME_PLACE_MM` share one, those without a place -1."""
    found: dict[tuple[float, ...], int] = {(): -1}
    cells: dict[
        tuple[int, ...], list[tuple[int, tuple[float, ...]]]
    ] = {}  # of `SAME_PLACE_MM`; a neighbour lies in one of 27
    for frame in frames:
        at = frame.position_mm
        if at in found:
            continue
        n, cell = len(found) - 1, tuple(math.floor(v / SAME_PLACE_MM) for v in at)
        around = (tuple(map(sum, zip(cell, step, strict=True))) for step in itertools.product((-1, 0, 1), repeat=3))
        near = (m for one in around for m, other in cells.get(one, ()) if _close(other, at, SAME_PLACE_MM))
        found[at] = min(near, default=n)
        cells.setdefault(cell, []).append((n, at))
    return [found[frame.position_mm] for frame in frames]


def _clusters(frames: Sequence[Frame], same: Callable[[Frame, Frame], bool]) -> list[float | str]:
    """A number for each frame: that of the first earlier frame that it is like, among so many kinds as a scan can have."""
    heads: list[Frame] = []
    ranks: list[float | str] = []
    for frame in frames:
        rank = next((i for i, head in enumerate(heads) if same(frame, head)), len(heads))
        if rank == len(heads) < MOST_KINDS:
            heads.append(frame)
        ranks.append(float(rank))
    return ranks


def _same_stack(a: Frame, b: Frame) -> bool:
    return a.stack == b.stack


def _same_orientation(a: Frame, b: Frame) -> bool:
    return _close(a.orientation, b.orientation, SAME_ORIENTATION)


def _same_grid(a: Frame, b: Frame) -> bool:
    return a.size == b.size and _close(a.pixel_mm, b.pixel_mm, SAME_PIXEL_MM)


def _close(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def _differing(frames: Sequence[Frame]) -> str:
    """Which of what a stack has in common differs."""
    first = frames[0]
    size = any(f.size != first.size for f in frames)
    spacing = any(not _close(f.pixel_mm, first.pixel_mm, SAME_PIXEL_MM) for f in frames)
    orientation = any(not _same_orientation(f, first) for f in frames)
    named = {"rows and columns": size, "pixel spacing": spacing, "orientation": orientation}
    return " and ".join(name for name, differs in named.items() if differs)


def _check_line(positions_mm: Float64[np.ndarray, "n 3"], travel_mm: Float64[np.ndarray, "3"]) -> None:
    """Reject slices that are shifted against each other within their planes."""
    off = np.abs(positions_mm - positions_mm[0] - np.arange(len(positions_mm))[:, None] * travel_mm).max()
    if off > max(OFF_LINE_MM, OFF_LINE_STEPS * float(np.linalg.norm(travel_mm))):
        raise CaseRejected(
            Reason.UNEVEN_SPACING, f"a slice lies {off:.2f} mm beside the line of the others; wanted one line"
        )


def _why_no_volume(positions: list[tuple[float, ...]], orientation: tuple[float, ...]) -> CaseRejected:
    normal = np.cross(orientation[:3], orientation[3:])
    heights = np.sort(np.asarray(positions) @ normal)
    gaps = np.diff(heights)
    if gaps.min() < SAME_PLACE_MM:
        n = int((gaps < SAME_PLACE_MM).sum())
        return CaseRejected(
            Reason.DUPLICATE_POSITION,
            f"{n} of {len(heights)} slices lie at the position of another; wanted one slice a position",
        )
    spread = f"slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart"
    step, _ = get_volume_positions(
        positions, orientation, rtol=POSITION_RTOL, perpendicular_tol=ANY_TILT, allow_missing_positions=True
    )
    if step is not None:
        missing = round((heights[-1] - heights[0]) / step) + 1 - len(heights)
        return CaseRejected(Reason.MISSING_SLICE, f"{spread}: {missing} missing; wanted a full stack, export it again")
    return CaseRejected(Reason.UNEVEN_SPACING, f"{spread}; wanted one distance, to within {POSITION_RTOL:.0%}")
