"""Read DICOM volumes: a stack whose masks are one PNG a slice (CHAOS), or images with segmentations and structure sets.

Slices are sorted by position, never by number or name; PNG masks pair with slices by rank in file-name order and travel with
them. Only the attributes in `medvar_data.readers.dicom.attributes` are ever parsed.
"""

import struct
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt16
from pydicom.dataset import Dataset

from medvar_data.catalog.collection import CollectionSpec, labels_of
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import SHEAR_LIMIT, check_affine
from medvar_data.readers.dicom.headers import Frame, instance_of, is_dicom, parse
from medvar_data.readers.dicom.pixels import decode_stack, untilt
from medvar_data.readers.dicom.structures import paint
from medvar_data.readers.dicom.volumes import Stack, split_series, stack_frames, tilt
from medvar_data.readers.scan import Scan, compact, label_values
from medvar_data.records import Case, Geometry, LabelVolume, Volume
from medvar_data.sources.tree import read_bytes

MOST_MASK_PIXELS = 1 << 26  # 8192 x 8192


def read_dicom(case: Case, spec: CollectionSpec) -> Scan:
    """Read one volume of a DICOM series and, where there are any, its segmentations and structure sets.

    A leaning stack (gantry tilt) is straightened by shifting its slices within their planes, image and label alike.
    """
    datasets, frames, digest = _read_images(case)
    stack = _one_volume(frames, case)
    voxels, steps = decode_stack(datasets, stack.frames, case.modality)
    geometry = Geometry(voxels.shape, stack.affine)
    label, label_steps, label_digest = _read_structures(case, spec, geometry)
    if tilt(stack.affine) > SHEAR_LIMIT:
        voxels, affine = untilt(voxels, stack.affine, nearest=False)
        label = label if label is None else untilt(label, stack.affine, nearest=True)[0]
        geometry, steps = Geometry(voxels.shape, affine), (*steps, "untilted")
    check_affine(geometry.affine)
    image = Volume(compact(voxels), geometry, digest, steps)
    if label is None:
        return Scan(image, None)
    return Scan(image, LabelVolume(label_values(label), geometry, label_digest, label_steps))


def read_dicom_png(case: Case, spec: CollectionSpec) -> Scan:
    """Read a DICOM stack and, where there is one, its stack of PNG masks."""
    if case.label and len(case.label) != len(case.image):
        raise CaseRejected(
            Reason.SLICE_COUNT,
            f"{len(case.image)} slices but {len(case.label)} masks; wanted one mask a slice",
        )
    datasets, frames, digest = _read_images(case)
    if len(frames) != len(case.image):
        raise CaseRejected(Reason.DIMENSIONS, "a slice has several frames; wanted one grey picture a file")
    stack = stack_frames(frames)
    check_affine(stack.affine)
    voxels, steps = decode_stack(datasets, stack.frames, case.modality)
    geometry = Geometry(voxels.shape, stack.affine)
    image = Volume(compact(voxels), geometry, digest, steps)
    if not case.label:
        return Scan(image, None)
    files = [read_bytes(Path(case.root), path) for path in case.label]
    masks = {path: _read_mask(data, frames[0].size) for path, data in zip(case.image, files, strict=True)}
    label = np.stack([masks[f.path] for f in stack.frames]).transpose(2, 1, 0)
    return Scan(image, LabelVolume(label_values(label), geometry, _digest(files), ("masks_paired_by_name",)))


def _read_images(case: Case) -> tuple[dict[str, Dataset], list[Frame], str]:
    """Parse every file of a case: data sets by path, frames in file order, digest of the files."""
    datasets: dict[str, Dataset] = {}
    frames: list[Frame] = []
    digests = []
    for path in case.image:
        data = read_bytes(Path(case.root), path)
        if not is_dicom(data):
            raise CaseRejected(Reason.NOT_AN_IMAGE, "a slice is not DICOM, whatever the name says")
        datasets[path] = parse(data)
        instance = instance_of(datasets[path], path)
        if not instance.frames:
            raise CaseRejected(Reason.TRUNCATED, "a slice holds no picture; its header is cut short")
        if not instance.is_grey:
            raise CaseRejected(Reason.DIMENSIONS, "a slice has colours; wanted one grey picture")
        frames += instance.frames
        digests.append(sha256(data).hexdigest())
    return datasets, frames, _digest_of(digests)


def _one_volume(frames: Sequence[Frame], case: Case) -> Stack:
    """The volume that ingest meant: all frames, or, where files hold several volumes, the one numbered `channel`."""
    if case.channel < 0:
        return stack_frames(frames)
    parts = split_series(frames)
    if case.channel >= len(parts):
        raise CaseRejected(Reason.MIXED_SERIES, "the files hold other volumes than ingest found; run ingest again")
    return stack_frames(parts[case.channel].frames)


def _read_structures(
    case: Case, spec: CollectionSpec, geometry: Geometry
) -> tuple[UInt16[np.ndarray, "i j k"] | None, tuple[str, ...], str]:
    """Paint the segmentations and structure sets of a case; None where it has none. With the steps taken and a digest."""
    if not case.label:
        return None, (), ""
    files = [read_bytes(Path(case.root), path) for path in case.label]
    parsed = [parse(data, structures=True) for data in files]
    pairs = [(instance_of(dataset, path), dataset) for path, dataset in zip(case.label, parsed, strict=True)]
    voxels, steps = paint(pairs, labels_of(spec, case.layout), geometry)
    return voxels, ("painted_structures", *steps), _digest(files)


def _read_mask(data: bytes, shape: tuple[int, int]) -> UInt16[np.ndarray, "row column"]:
    if not _is_sound_png(data):
        raise CaseRejected(Reason.NOT_AN_IMAGE, "a mask is no whole PNG, or one of impossible size")
    mask = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2:
        raise CaseRejected(Reason.NOT_AN_IMAGE, "a mask is not a grey picture")
    if mask.shape != shape:
        raise CaseRejected(
            Reason.LABEL_SHAPE,
            f"a mask is {mask.shape[0]} x {mask.shape[1]} pixels, its slice {shape[0]} x {shape[1]}",
        )
    return mask.astype(np.uint16)


def _is_sound_png(data: bytes) -> bool:
    """Walk a PNG's chunks before a decoder makes room for what they claim."""
    at, n_chunks = 8, 0
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return False
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if n_chunks == 0:
            first = data[at + 8 : at + 16]
            columns, rows = struct.unpack(">II", first) if (kind, len(first)) == (b"IHDR", 8) else (0, 0)
            if not 0 < rows * columns <= MOST_MASK_PIXELS:
                return False
        at, n_chunks = at + 12 + length, n_chunks + 1
        if kind == b"IEND":
            return at <= len(data)
    return False


def _digest(files: Sequence[bytes]) -> str:
    return _digest_of([sha256(data).hexdigest() for data in files])


def _digest_of(digests: Sequence[str]) -> str:
    """Digest of a stack: sha256 over the members' sorted sha256, so that file order and packing do not matter."""
    return sha256("".join(sorted(digests)).encode()).hexdigest()
