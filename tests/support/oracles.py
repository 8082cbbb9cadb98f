"""Inputs made at random together with what they mean: labels turned on their grid, units and offsets of headers, contours, and
scans that share a DICOM series. Each maker writes an input, reads it by the product, and compares with the truth that it was
made from by a computation of its own.

An input ends as `exact`, as `rejected: <reason>`, or as `wrong: <what>`, which no input may. The truth of one input never comes
from the product's code.
"""

import gzip
import struct
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np

from medvar_data.catalog.load import parse_collection
from medvar_data.errors import CaseRejected, SourceError
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.readers.scan import Scan
from medvar_data.sources.tree import open_tree
from support.builders import nifti_bytes, pairs_spec, write_files
from support.dicom_files import cohort_toml, image, structure_set

VOLUMES = pairs_spec(suffix=r"(?:nii\.gz|nii|nrrd|mha)")
SERIES = parse_collection(cohort_toml(), "test", own=True)
AS_PUBLISHED = {1: 1, 5: 2, 6: 2}  # label values of `VOLUMES` and their ids


def read(folder: Path, files: dict[str, bytes]) -> Scan | str:
    """The one scan among the files, or how it was refused."""
    found = ingest(VOLUMES, open_tree(write_files(folder, files)), b"salt")
    if found.rejects:
        return f"rejected: {found.rejects[0].reason}"
    try:
        return read_scan(found.cases[0], VOLUMES)
    except CaseRejected as error:
        return f"rejected: {error.reason}"


def a_grid(rng: np.random.Generator) -> tuple[tuple[int, int, int], np.ndarray]:
    """A shape of three different lengths half the time, and an affine: any axis codes, spacing, origin, a little oblique."""
    shape = tuple(int(n) for n in (rng.integers(3, 9, 3) if rng.random() < 0.5 else rng.permutation([4, 6, 7])))
    axes, signs = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
    turn = np.zeros((3, 3))
    turn[axes, range(3)] = signs
    angle = rng.choice([0.0, 0.0, rng.uniform(-0.3, 0.3)])
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ turn @ np.diag(rng.choice([0.5, 0.75, 1.0, 1.5, 3.0], 3))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return (shape[0], shape[1], shape[2]), affine


def turned(
    voxels: np.ndarray, affine: np.ndarray, axes: tuple[int, ...], flips: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels in space, stored with other axes: array and affine."""
    out, step = voxels.transpose(axes), np.zeros((4, 4))
    step[3, 3] = 1
    for new, old in enumerate(axes):
        step[old, new] = -1 if flips[new] else 1
        step[old, 3] = out.shape[new] - 1 if flips[new] else 0
    return np.flip(out, [int(n) for n in np.flatnonzero(flips)]), affine @ step


def geometry(rng: np.random.Generator, folder: Path) -> str:
    """A label on its image's grid, turned, without a place, beside it by less than half a voxel or by more, or oblique."""
    shape, affine = a_grid(rng)
    pixels = rng.integers(0, 900, shape).astype(np.int16)
    label = rng.choice([0, 0, 1, 5, 6], shape).astype(np.uint8)
    label.flat[0] = 1
    how = rng.choice(["same", "turned", "turned", "turned", "lost", "near", "far", "oblique", "qform"])
    stored, place, options = label, affine, {}
    if how in ("turned", "qform"):
        order = list(permutations(range(3)))[rng.integers(6)]
        stored, place = turned(label, affine, order, rng.random(3) < 0.5)
    elif how == "lost":
        place, options = np.eye(4), {"sform_code": 0, "pixdim": np.linalg.norm(affine[:3, :3], axis=0)}
    elif how == "near":
        place = affine.copy()
        place[:3, 3] += affine[:3, :3] @ rng.uniform(-0.2, 0.2, 3)
    elif how == "far":
        place = affine.copy()
        place[:3, 3] += affine[:3, :3] @ (
            rng.choice([-1, 1], 3) * rng.uniform(0.8, 1.8, 3)
        )  # still over the image, which is told from nowhere near it
    elif how == "oblique":
        place = affine @ np.array([[0.9, -0.43589, 0, 0], [0.43589, 0.9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    kind = rng.choice([np.uint8, np.int16, np.float32])
    if how == "qform":
        volume = nib.Nifti1Image(np.ascontiguousarray(stored).astype(kind), place)
        volume.set_sform(None, 0)
        volume.set_qform(place, 1)
        data = volume.to_bytes()
    else:
        data = nifti_bytes(np.ascontiguousarray(stored).astype(kind), place, **options)
    got = read(folder, {"a_image.nii": nifti_bytes(pixels, affine), "a_label.nii": data})
    if isinstance(got, str):
        return got if how in ("far", "oblique") else f"wrong: {how} label is {got}"
    wanted = np.zeros_like(label)
    for value, number in AS_PUBLISHED.items():
        wanted[label == value] = value if number else 0
    if how in ("far", "oblique"):
        return f"wrong: {how} label was taken as it stands"
    same = np.array_equal(got.label.voxels, wanted) and np.array_equal(got.image.voxels, pixels)
    return "exact" if same else f"wrong: {how} label lies elsewhere"


MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's spatial codes
WORDS = {"mm": 1.0, "um": 0.001, "m": 1000.0, "cm": 10.0}


def units(rng: np.random.Generator, folder: Path) -> str:
    """Units of space, where the voxels begin, types, slopes and byte order of NIfTI; units of NRRD."""
    shape = tuple(int(n) for n in rng.integers(3, 8, 3))
    spacing_mm = rng.choice([0.04, 0.5, 0.75, 1.0, 3.0, 20.0], 3)
    kind = np.dtype(rng.choice(["u1", "i1", "i2", "u2", "i4", "f4", "f8"]))
    pixels = rng.integers(0 if kind.kind == "u" else -100, 120, shape).astype(kind)
    if rng.random() < 0.3:
        word, factor = list(WORDS.items())[rng.integers(len(WORDS))]
        return _compared(
            read(folder, {"a_image.nrrd": _nrrd(pixels, spacing_mm / factor, word)}), pixels.astype(float), spacing_mm
        )
    code, slope, inter = int(rng.integers(0, 4)), float(rng.choice([1, 1, 0, 0.5, 2])), float(rng.choice([0, -7, 12.5]))
    code |= int(rng.choice([0, 8, 16]))  # seconds and milliseconds stand in the same byte
    order, offset = (
        rng.choice(["<", ">"]),
        rng.choice(["0", "348", "352", "nan", "-8", "400", "extension", "forgotten"]),
    )
    data = bytearray(
        nifti_bytes(
            pixels, np.diag([*(spacing_mm / MM[code & 7]), 1.0]), slope=slope, inter=inter, big_endian=order == ">"
        )
    )
    data[123] = code
    head, body = data[:348], bytes(data[352:])
    extension = struct.pack(f"{order}ii", 32, 6) + b"a comment of no import  "
    before = {"400": bytes(52), "extension": b"\1\0\0\0" + extension, "forgotten": b"\1\0\0\0" + extension}.get(
        offset, bytes(4)
    )
    stated = {"nan": np.nan, "extension": 352 + 32, "forgotten": 352, "400": 400}.get(offset)
    head[108:112] = struct.pack(f"{order}f", float(offset) if stated is None else stated)
    whole = bytes(head) + before + body
    packed = rng.random() < 0.5
    files = {"a_image.nii.gz": gzip.compress(whole, 1)} if packed else {"a_image.nii": whole}
    wanted = pixels.astype(float) * slope + inter if slope else pixels.astype(float)
    return _compared(read(folder, files), wanted, spacing_mm)


def _nrrd(pixels: np.ndarray, spacing: np.ndarray, word: str) -> bytes:
    kinds = {"u1": "uint8", "i1": "int8", "i2": "int16", "u2": "uint16", "i4": "int32", "f4": "float", "f8": "double"}
    vectors = " ".join("(" + ",".join(f"{v:.9g}" for v in row) + ")" for row in np.diag(spacing))
    lines = [
        "NRRD0005", f"type: {kinds[pixels.dtype.str[1:]]}", "dimension: 3", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, pixels.shape))}", f"space directions: {vectors}", "kinds: domain domain domain",
        "endian: little", "encoding: raw", f'space units: "{word}" "{word}" "{word}"', "space origin: (0,0,0)",
    ]  # fmt: skip
    return "\n".join(lines).encode() + b"\n\n" + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(order="F")


def _compared(got: Scan | str, wanted: np.ndarray, spacing_mm: np.ndarray) -> str:
    if isinstance(got, str):
        return got
    found_mm = np.linalg.norm(got.image.geometry.affine[:3, :3], axis=0)
    if not np.allclose(found_mm, spacing_mm, rtol=1e-4):
        return f"wrong: {found_mm} mm for {spacing_mm}"
    return "exact" if np.allclose(got.image.voxels, wanted, rtol=1e-6, atol=1e-4) else "wrong: values"


SIDE, STEP_MM = 32, 2.0
CORNERS, CLEAR = 180, 3e-3  # of a circle of 11 pixels, chord and arc are at most 1.7e-3 pixels apart
Shape = tuple[float, float, float]  # column, row, radius


def contours(rng: np.random.Generator, folder: Path) -> str:
    """One region of a structure set: nested, overlapping, repeated or XOR-declared circles, with heights that jitter."""
    n = int(rng.integers(4, 9))
    every = int(rng.choice([1, 1, 1, 2]))
    drawn, truth, extra = [], np.zeros((n, SIDE, SIDE), dtype=bool), []
    how = str(rng.choice(["plain", "hole", "island", "overlap", "repeated", "xor", "two"]))
    for k in range(0, n, every):
        circles, truth[k] = _circles(rng, how)
        height = k * STEP_MM + rng.uniform(-0.05, 0.05)
        order = rng.permutation(len(circles))
        drawn += [_points(rng, circles[m], height + rng.uniform(-0.002, 0.002)) for m in order]
    if rng.random() < 0.2:
        extra.append(_points(rng, (16.0, 16.0, 5.0), STEP_MM * (n + 3)))
    kind = "CLOSEDPLANAR_XOR" if how == "xor" else str(rng.choice(["CLOSED_PLANAR", "CLOSEDPLANAR", "CLOSED PLANAR"]))
    pixels = rng.integers(1, 900, (n, SIDE, SIDE)).astype(np.uint16)
    files = {f"i{k}": image(pixels[k], (0, 0, k * STEP_MM), number=k + 1) for k in rng.permutation(n)}
    files["s"] = structure_set({"lung": [*drawn, *extra]}, kind=kind)
    found = ingest(SERIES, open_tree(write_files(folder, files)), b"salt")
    try:
        scan = read_scan(found.cases[0], SERIES)
    except CaseRejected as error:
        return f"rejected: {error.reason}"
    got = scan.label.voxels.transpose(2, 1, 0) == 1
    got = got if scan.label.geometry.affine[2, 2] > 0 else got[::-1]
    if extra and "contours_outside=1" not in scan.label.steps:
        return "wrong: a contour outside is not told"
    if every == 2 and not any(step.startswith("slices_between_contours") for step in scan.label.steps):
        return "wrong: slices between contours are not told"
    wrong = [k for k in range(0, n, every) if not np.array_equal(got[k], truth[k])]
    return f"wrong: {how}, slices {wrong} of {n}" if wrong else "exact"


def _circles(rng: np.random.Generator, how: str) -> tuple[list[Shape], np.ndarray]:
    """Circles of one slice, and the pixels that they mean."""
    j, i = np.indices((SIDE, SIDE))  # row, column

    def within(shape: Shape) -> np.ndarray:
        return (i - shape[0]) ** 2 + (j - shape[1]) ** 2 < shape[2] ** 2

    def circle(column: float, row: float, low: float, high: float) -> Shape:
        """A circle whose edge runs clear of all pixel centres, so that a polygon of `CORNERS` holds the same ones."""
        while True:
            shape = (column, row, rng.uniform(low, high))
            if np.abs(np.hypot(i - column, j - row) - shape[2]).min() > CLEAR:
                return shape

    x, y = 15 + rng.uniform(-2, 2, 2)
    outer = circle(x, y, 9, 11)
    if how == "plain":
        return [outer], within(outer)
    if how == "repeated":
        return [outer, outer], within(outer)
    if how in ("overlap", "xor"):
        other = circle(x + rng.uniform(8, 9), y, 5, 7)  # well outside in part, else it were a hole
        both = (within(outer), within(other))
        return [outer, other], both[0] ^ both[1] if how == "xor" else both[0] | both[1]
    if how == "two":
        one, other = circle(8.3, y, 5, 6), circle(23.4, y, 5, 6)
        return [one, other], within(one) | within(other)
    hole = circle(x + rng.uniform(-1, 1), y, 5, 6)
    if how == "hole":
        return [outer, hole], within(outer) & ~within(hole)
    island = circle(hole[0], hole[1], 2, 3)
    return [outer, hole, island], (within(outer) & ~within(hole)) | within(island)


def _points(rng: np.random.Generator, shape: Shape, height: float) -> np.ndarray:
    """Corners of a circle from any start, either way."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False) + rng.uniform(0, 2 * np.pi)
    angles = angles[:: rng.choice([-1, 1])]
    return np.column_stack(
        [shape[0] + shape[2] * np.cos(angles), shape[1] + shape[2] * np.sin(angles), np.full(len(angles), height)]
    )


MARKS: dict[str, Callable[[int], object]] = {
    "SeriesNumber": lambda n: n + 1,
    "AcquisitionNumber": lambda n: n + 1,
    "ConvolutionKernel": lambda n: ("SOFT", "BONE", "LUNG")[n],
    "EchoTime": lambda n: 10.0 * (n + 1),
    "AcquisitionTime": lambda n: f"{10 + n}0000",
    "TriggerTime": lambda n: 100.0 * n,
    "InversionTime": lambda n: 200.0 + n,
    "FlipAngle": lambda n: 10.0 + n,
}
PARTING = {"SeriesNumber", "ConvolutionKernel", "EchoTime"}  # these part scans wherever they lie


def marks(rng: np.random.Generator, folder: Path) -> str:
    """Two or three scans under one SeriesInstanceUID at the same, interleaved or stacked places, told apart by marks or by none.

    A case must hold pictures of one scan. Scans that lie beside each other may be one volume where no mark parts them.
    """
    n_scans, n = int(rng.choice([2, 2, 3])), int(rng.integers(4, 8))
    place = str(rng.choice(["same", "same", "interleaved", "stacked"]))
    chosen = {name for name in MARKS if rng.random() < 0.25}
    running = {
        name for name in ("AcquisitionTime", "TriggerTime") if rng.random() < 0.3
    }  # another value in each picture
    own_numbers = rng.random() < 0.5
    pixels = rng.integers(1, 900, (n_scans, n, 8, 8)).astype(np.uint16)
    files, owner, total = {}, {}, 0
    names = rng.permutation(10_000)[: n_scans * n]
    for scan in range(n_scans):
        for k in range(n):
            height = {"same": 2.0 * k, "interleaved": 2.0 * (k + scan / n_scans), "stacked": 2.0 * (k + n * scan)}[
                place
            ]
            values = {name: MARKS[name](scan) for name in chosen}
            values |= {name: f"1000{total:02d}" if name == "AcquisitionTime" else 7.0 * total for name in running}
            files[f"f{names[total]:05d}"] = image(
                pixels[scan, k],
                (0, 0, height),
                number=(total if own_numbers else k) + 1,
                SOPInstanceUID=f"1.2.3.{total}",
                **values,
            )
            owner[pixels[scan, k].tobytes()] = scan
            total += 1
    try:
        found = ingest(SERIES, open_tree(write_files(folder, files)), b"salt")
    except SourceError:
        return "wrong: nothing found"
    held = sum(len(case.image) for case in found.cases) + sum(len(reject.files) for reject in found.rejects)
    if held != total:
        return f"wrong: {held} of {total} pictures are in a case or a reject"
    ends = [_of_one_scan(case, owner, place, chosen - running) for case in found.cases]
    wrong = [end for end in ends if end.startswith("wrong")]
    return wrong[0] if wrong else ends[0] if ends else f"rejected: {found.rejects[0].reason}"


def _of_one_scan(case: object, owner: dict[bytes, int], place: str, chosen: set[str]) -> str:
    try:
        voxels = read_scan(case, SERIES).image.voxels.transpose(2, 1, 0).astype(np.uint16)  # type: ignore[arg-type]
    except CaseRejected as error:
        return f"rejected: {error.reason}"
    scans = {owner.get(np.ascontiguousarray(picture).tobytes(), -1) for picture in voxels}
    if -1 in scans:
        return "wrong: a picture that no scan holds"
    may_join = (
        place != "same" and not chosen & PARTING and not (place == "interleaved" and "AcquisitionNumber" in chosen)
    )
    if len(scans) > 1 and not may_join:
        return f"wrong: {place} scans blended, parted by {sorted(chosen)}"
    return "exact"


KINDS: dict[str, Callable[[np.random.Generator, Path], str]] = {
    "geometry": geometry, "units": units, "contours": contours, "marks": marks,
}  # fmt: skip


def outcome(kind: str, number: int, folder: Path) -> str:
    """How one input ends; a number names one input for ever."""
    place = folder / f"{kind}-{number}"
    return KINDS[kind](np.random.default_rng((sorted(KINDS).index(kind), number)), place)
