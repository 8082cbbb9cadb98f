"""Decode frames into values in HU or the scanner's unit, each with its own slope and intercept, and straighten leaning stacks.

RLE is pydicom's own; JPEG, JPEG lossless, JPEG-LS and JPEG 2000 are GDCM's. What is changed beyond the rescaling is a step
with a name: `inverted`, `padding_replaced`, `untilted`.
"""

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID

from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.dicom.bounds import MOST_PIXELS, check_code_stream
from medvar_data.readers.dicom.decoder import decode_apart
from medvar_data.readers.dicom.headers import Frame, quiet

AIR_HU = -1024
WIDE = 1 << 24  # whole numbers below it are exact in float32


def decode_frames(dataset: Dataset, indices: Sequence[int]) -> list[Shaped[np.ndarray, "row column"]]:
    """Decode some frames of a parsed file: stored values, [row, column].

    Raises:
        CaseRejected: `truncated` where the pixels end early or cannot be decoded; `unreadable` where nothing here decodes
            their compression.
    """
    if not indices:  # which pydicom takes for all of them
        return []
    _check_compression(dataset)
    try:
        with quiet():
            _check_size(dataset)
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                found = decode_apart(dataset, _code_streams(dataset, indices))
            else:
                dataset, n_below = _with_low_bits(dataset)
                found = [
                    picture >> n_below if n_below else picture for picture in iter_pixels(dataset, indices=[*indices])
                ]
    except (MemoryError, CaseRejected):
        raise
    except Exception as error:
        raise CaseRejected(
            Reason.TRUNCATED,
            "a slice's pixels cannot be decoded: the file is cut short or damaged; export the series again",
        ) from error
    if len(found) != len(indices):
        detail = f"a file holds {len(found)} of {len(indices)} frames that its header names; export it again"
        raise CaseRejected(Reason.TRUNCATED, detail)
    if any(picture.ndim != 2 for picture in found):
        raise CaseRejected(Reason.DIMENSIONS, "a slice has colours; wanted one grey picture")
    return found


def _check_size(dataset: Dataset) -> None:
    """Hold a picture to its bounds before anything is made of it."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > MOST_PIXELS:
        raise CaseRejected(
            Reason.DIMENSIONS, f"a picture has {rows:,} x {columns:,} pixels; wanted at most {MOST_PIXELS:,}"
        )


def _code_streams(dataset: Dataset, indices: Sequence[int]) -> list[bytes]:
    """The code streams of some frames, each of the size that the header says."""
    wanted, n_frames = set(indices), int(dataset.get("NumberOfFrames") or 1)
    frames = enumerate(generate_frames(dataset.PixelData, number_of_frames=n_frames))
    found = {index: stream for index, stream in frames if index in wanted}
    for stream in found.values():
        check_code_stream(stream, (int(dataset.Rows), int(dataset.Columns)))
    return [found[index] for index in indices if index in found]


def _check_compression(dataset: Dataset) -> None:
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID") or ""))
    try:
        is_known = get_decoder(syntax).is_available
    except NotImplementedError:
        is_known = False
    if not is_known:
        named = f"by {syntax.name}" if syntax.is_transfer_syntax else "in a way that no standard names"
        raise CaseRejected(
            Reason.UNREADABLE,
            f"pixels are compressed {named}, which nothing here decodes; wanted none, RLE, JPEG, JPEG-LS or JPEG 2000: convert "
            "the files",
        )


def _with_low_bits(dataset: Dataset) -> tuple[Dataset, int]:
    """Where values do not begin at the lowest bit of their cells (HighBit, PS3.5 8.1.1), take the bits below as stored too.

    Returns:
        The data set to decode, and the number of bits to drop from each value.
    """
    high, stored = dataset.get("HighBit"), dataset.get("BitsStored")
    if high is None or stored is None:
        return dataset, 0
    n_below = int(high) + 1 - int(stored)
    if n_below <= 0:
        return dataset, 0
    whole = copy(dataset)
    whole.BitsStored = int(high) + 1
    return whole, n_below


def decode_stack(
    datasets: Mapping[str, Dataset], frames: Sequence[Frame], modality: str
) -> tuple[Shaped[np.ndarray, "i j k"], tuple[str, ...]]:
    """Decode the frames of a volume in their order and bring them to physical values.

    Args:
        datasets: parsed files by path, with pixels.
        frames: in the order of slices.
        modality: "CT" or "MR".

    Returns:
        Voxels [column, row, slice] and the steps taken.
    """
    stored = _decode_all(datasets, frames)
    padded = [_padding(datasets[f.path], picture) for f, picture in zip(frames, stored, strict=True)]
    planes = [rescaled(picture, f.slope, f.intercept) for f, picture in zip(frames, stored, strict=True)]
    voxels = np.stack(planes).transpose(2, 1, 0)  # slices stay together in memory
    steps: tuple[str, ...] = ()
    if modality != "CT" and any(_text(datasets[f.path]) == "MONOCHROME1" for f in frames):
        voxels, steps = voxels.max() - voxels, ("inverted",)  # HU are HU, however a screen is told to show them
    if any(mask is not None for mask in padded):
        return _without_padding(voxels, padded, modality, steps)
    return voxels, steps


def rescaled(
    stored: Shaped[np.ndarray, "row column"], slope: float, intercept: float
) -> Shaped[np.ndarray, "row column"]:
    """Apply slope and intercept: int32 where that is exact, else float32; float64 where float32 could round it away."""
    if stored.dtype.itemsize > 2 or abs(intercept) >= WIDE:
        return stored.astype(np.float64) * slope + intercept
    if slope == 1.0 and intercept.is_integer():
        return stored.astype(np.int32) + np.int32(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def untilt(
    voxels: Shaped[np.ndarray, "i j k"], affine: Float64[np.ndarray, "4 4"], *, nearest: bool
) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Straighten a leaning stack: shift each slice within its plane until the slices lie one above the other.

    Args:
        voxels: of the leaning stack.
        affine: its sheared affine.
        nearest: for labels; images are interpolated linearly within their planes and keep their dtype.

    Returns:
        Voxels on a grid enlarged to hold all slices (the same for image and label), filled with the image's minimum
        (label: 0), and its affine.
    """
    columns = affine[:3, :3]
    across, down = (columns[:, a] / np.linalg.norm(columns[:, a]) for a in (0, 1))
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    drift = np.linalg.solve(
        np.stack([columns[:, 0], columns[:, 1], normal], axis=1), columns[:, 2]
    )  # voxels, voxels, mm
    straight, fill = affine.copy(), 0.0 if nearest else float(voxels.min())
    straight[:3, 2] = normal * drift[2]
    for axis in (0, 1):
        shifts = np.round(np.arange(voxels.shape[2]) * drift[axis], 6)  # no rounding error counts as a lean
        first, extra = np.floor(shifts.min()), int(np.ceil(shifts.max() - np.floor(shifts.min())))
        voxels = _shifted(voxels, np.rint(shifts - first) if nearest else shifts - first, extra, axis, fill)
        straight[:3, 3] += columns[:, axis] * first
    return voxels, straight


def _shifted(
    voxels: Shaped[np.ndarray, "i j k"], shifts: Float64[np.ndarray, " k"], extra: int, axis: int, fill: float
) -> Shaped[np.ndarray, "x y z"]:
    """Move slice k by `shifts[k]` >= 0 voxels along an axis, on a grid enlarged by `extra`, which no shift exceeds."""
    shape = list(voxels.shape)
    n = shape[axis]
    shape[axis] += extra
    out = np.full(shape, fill, dtype=voxels.dtype)
    for k, shift in enumerate(shifts):
        whole, part = int(shift), float(shift - int(shift))
        plane = np.moveaxis(voxels[:, :, k], axis, 0)
        target = np.moveaxis(out[:, :, k], axis, 0)
        if part == 0:
            target[whole : whole + n] = plane
            continue
        edge = np.full((1, plane.shape[1]), fill, dtype=np.float32)
        lower, upper = (np.concatenate(pair).astype(np.float32) for pair in ((plane, edge), (edge, plane)))
        mixed = (1 - part) * lower + part * upper
        target[whole : whole + n + 1] = np.rint(mixed) if voxels.dtype.kind in "iu" else mixed
    return out


def _decode_all(datasets: Mapping[str, Dataset], frames: Sequence[Frame]) -> list[Shaped[np.ndarray, "row column"]]:
    """Decode each file once, however many of its frames are wanted."""
    pictures: dict[tuple[str, int], Shaped[np.ndarray, "row column"]] = {}
    for path in dict.fromkeys(f.path for f in frames):
        indices = [f.index for f in frames if f.path == path]
        pictures |= zip(((path, i) for i in indices), decode_frames(datasets[path], indices), strict=True)
    return [pictures[f.path, f.index] for f in frames]


def _padding(dataset: Dataset, stored: Shaped[np.ndarray, "row column"]) -> Bool[np.ndarray, "row column"] | None:
    """Where a picture holds PixelPaddingValue, or values up to PixelPaddingRangeLimit; None where it holds none.

    Source: PS3.3 C.7.5.1.1.2. Either is taken as signed or unsigned as the pixels are: 63536 is how some write -2000.
    """
    bounds = [dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")]
    if not isinstance(bounds[0], int):
        return None
    limits = np.iinfo(stored.dtype)
    ends = [v + ((v < limits.min) - (v > limits.max)) * (1 << 16) for v in bounds if isinstance(v, int)]
    mask = (stored >= min(ends)) & (stored <= max(ends))
    return mask if mask.any() else None


def _without_padding(
    voxels: Shaped[np.ndarray, "i j k"],
    padded: Sequence[Bool[np.ndarray, "row column"] | None],
    modality: str,
    steps: tuple[str, ...],
) -> tuple[Shaped[np.ndarray, "i j k"], tuple[str, ...]]:
    """Give what lies outside the field of view the value of nothing: -1024 HU in CT, 0 in MR.

    Only where the padding stands apart, below or above all the rest, or below air; else it may be what the scanner
    measured, and stays (`padding_kept`).
    """
    empty = np.zeros(voxels.shape[1::-1], dtype=bool)
    mask = np.stack([empty if m is None else m for m in padded]).transpose(2, 1, 0)
    low, high = voxels[mask].min(), voxels[mask].max()
    nothing = AIR_HU if modality == "CT" else 0
    if mask.all() or low == high == nothing:
        return voxels, steps
    rest = voxels[~mask]
    if not (high < max(rest.min(), nothing) or low > rest.max()):
        return voxels, (*steps, "padding_kept")
    return np.where(mask, np.asarray(nothing, dtype=voxels.dtype), voxels), (*steps, "padding_replaced")


def _text(dataset: Dataset) -> str:
    return str(dataset.get("PhotometricInterpretation") or "")
