"""Read volume files: NIfTI and FreeSurfer's MGH through nibabel, MHA, MHD and NRRD through SimpleITK.

A file is read once, whole and in order; gzip is inflated by ISA-L. Errors of the libraries become reasons; their texts
are dropped, since they can hold paths and header values.
"""

import contextlib
import math
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from jaxtyping import Shaped

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.errors import CaseRejected, Reason
from medvar_data.geometry import check_affine, resolve_spacing, voxel_sizes
from medvar_data.readers.headers import mm_of, text_header_unit, unit_mm, unit_steps, voxels_begin
from medvar_data.readers.inflate import (
    GZIP_MAGIC,
    inflate,
    inflated_head,
)
from medvar_data.readers.labels import UNPLACED, combine_labels, same_place
from medvar_data.readers.scan import Header, Scan, check_real, compact, digest_of_files
from medvar_data.records import Case, Geometry, Volume
from medvar_data.sources.archives import private_folder
from medvar_data.sources.detached import read_with_data
from medvar_data.sources.tree import SEPARATOR, read_head
from medvar_data.storage.store import telling_of_full_disk

MGH = (".mgz", ".mgh")
MGH_HEADER_BYTES = 284
MGH_PLACED = slice(28, 30)  # 0 where the header names no place
HEAD_BYTES = 1 << 14  # of a file, packed or not: enough for its header
SLACK_BYTES = 64 << 20  # inflated beyond what a header has a use for: extensions, and junk that is left alone
NO_MGH = "the content is not FreeSurfer's MGH, whatever the name says; download it again"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_volume_scan(case: Case, spec: CollectionSpec) -> Scan:
    """Read an image file and, where there is one, its label, of one file or several (`readers.labels`)."""
    image, stated = _read(case.root, case.image[0], spec.spacing_from, case.channel)
    image = Volume(compact(image.voxels), image.geometry, image.digest, image.steps)
    if not case.label:
        return Scan(image, None)
    parts = [_read(case.root, path, "affine", case.channel, is_label=True)[0] for path in case.label]
    layout = next((layout for layout in spec.layouts if layout.id == case.layout), None)
    return Scan(image, combine_labels(image, parts, layout, spec.label_grid, stated))


def read_volume_header(root: str, path: str, spacing_from: str) -> Header | None:
    """Read shape and spacing from a file's header, without its voxels; None where the format cannot be peeked at.

    Raises:
        CaseRejected: the header alone shows that the file is no use.
    """
    if path.lower().endswith(MGH):
        return _mgh_peek(root, path)
    if not _is_nifti(path):
        return None
    header = _nifti_header(inflated_head(read_head(Path(root), path, HEAD_BYTES)))
    shape, n_channels = _three_dimensions(_stored_shape(header))
    affine, _ = resolve_spacing(*_affine_and_pixdim(header), spacing_from)
    check_affine(affine)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return Header(shape, n_channels, (float(x), float(y), float(z)), int(header["bitpix"]) // 8)


def _stored_shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
    except Exception as error:
        raise CaseRejected(
            Reason.UNREADABLE, "the NIfTI header's `dim` names no shape; wanted the number of axes and their lengths"
        ) from error
    return (*shape[:3], *(n or 1 for n in shape[3:]))  # 0 beyond the third axis: there is none


def _read(root: str, path: str, spacing_from: str, channel: int, *, is_label: bool = False) -> tuple[Volume, Geometry]:
    """Read one file; with it the geometry that its header states, before it is mended.

    A label of one channel serves every channel of its image, and is marked where its header names no place.
    """
    files = read_with_data(Path(root), path)
    digest = digest_of_files([sha256(data).hexdigest() for data in files.values()])
    if _is_nifti(path):
        voxels, affine, pixdim, steps = _read_nifti(next(iter(files.values())), channel, is_label)
    elif path.lower().endswith(MGH):
        voxels, affine, pixdim, steps = _read_mgh(next(iter(files.values())), channel, is_label)
    else:
        voxels, affine, pixdim, steps = _read_itk(files, root, path)
    if not voxels.size:
        found = " x ".join(map(str, voxels.shape))
        raise CaseRejected(Reason.DIMENSIONS, f"the image is {found} voxels; wanted three dimensions")
    stated = Geometry(voxels.shape, np.diag([*[1.0 / mm_of(steps)] * 3, 1.0]) @ affine)
    affine, more = resolve_spacing(affine, pixdim, spacing_from)
    check_affine(affine)
    return Volume(voxels, Geometry(voxels.shape, affine), digest, (*steps, *more)), stated


Read = tuple[Shaped[np.ndarray, "i j k"], np.ndarray, tuple[float, float, float], tuple[str, ...]]


def _read_nifti(data: bytes, channel: int, is_label: bool) -> Read:
    header = _nifti_header(inflated_head(data[:HEAD_BYTES]))
    stored_shape = _stored_shape(header)
    shape, n_channels = _three_dimensions(stored_shape)
    dtype = header.get_data_dtype()
    check_real(dtype)
    n_bytes = math.prod(stored_shape) * dtype.itemsize
    begin = float(header["vox_offset"])
    before = min(max(int(begin), 0), SLACK_BYTES) if math.isfinite(begin) else 0
    raw = inflate(data, before + n_bytes + SLACK_BYTES)
    offset = voxels_begin(header, raw, n_bytes)
    needed = offset + n_bytes
    if len(raw) < needed:
        raise CaseRejected(
            Reason.TRUNCATED,
            f"the file ends after {len(raw)} bytes, but its header promises {needed} (voxels from byte {offset}); download it again",
        )
    channel = -1 if is_label and n_channels == 1 else channel
    _check_channel(channel, n_channels)
    flat = np.frombuffer(raw, dtype, count=math.prod(stored_shape), offset=offset)  # voxels as stored, not copied
    stored = flat.reshape((*shape, n_channels), order="F")[..., max(channel, 0)]
    steps: tuple[str, ...] = () if len(stored_shape) == 3 or channel >= 0 else ("squeezed",)
    slope, intercept = _scaling(header)
    if (slope, intercept) != (1.0, 0.0):
        stored = _scaled(stored, slope, intercept)
        steps = (*steps, "scaled")
    affine, pixdim = _affine_and_pixdim(header)
    steps = (*steps, *unit_steps(header))
    if is_label and not int(header["sform_code"]) and not int(header["qform_code"]):
        steps = (*steps, UNPLACED)
    return stored, affine, pixdim, (*steps, *_doubts(header, affine))


def _scaled(stored: Shaped[np.ndarray, "i j k"], slope: float, intercept: float) -> Shaped[np.ndarray, "i j k"]:
    """Scale in 32-bit floats what they hold exactly, anything wider in 64."""
    if stored.dtype.itemsize > 4 or (stored.dtype.itemsize == 4 and stored.dtype.kind in "iu"):
        return stored.astype(np.float64) * slope + intercept
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; a slope of 0, or one that is no number, means that nothing is scaled."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise CaseRejected(
            Reason.UNREADABLE, f"`scl_slope` is {slope:g} but `scl_inter` is no number; wanted both, or a slope of 0"
        )
    return slope, intercept


def _mgh_header(data: bytes | memoryview) -> nib.freesurfer.mghformat.MGHHeader:
    if not data:
        raise CaseRejected(Reason.FILE_EMPTY, "the file has 0 bytes; download it again")
    try:
        header = nib.freesurfer.mghformat.MGHHeader(bytes(data[:MGH_HEADER_BYTES]), check=False)
        if int(header["version"]) == 1:
            header.get_data_dtype()
            return header
    except Exception as error:
        raise CaseRejected(Reason.NOT_AN_IMAGE, NO_MGH) from error
    raise CaseRejected(Reason.NOT_AN_IMAGE, NO_MGH)


def _mgh_peek(root: str, path: str) -> Header:
    header = _mgh_header(inflated_head(read_head(Path(root), path, HEAD_BYTES)))
    shape, n_channels = _three_dimensions(tuple(int(n) for n in header["dims"]))
    affine = np.asarray(header.get_affine(), dtype=np.float64)
    check_affine(affine)
    x, y, z = voxel_sizes(affine)
    return Header(shape, n_channels, (x, y, z), header.get_data_dtype().itemsize)


def _read_mgh(data: bytes, channel: int, is_label: bool) -> Read:
    header = _mgh_header(inflated_head(data[:HEAD_BYTES]))
    sizes = tuple(int(n) for n in header["dims"])
    shape, n_channels = _three_dimensions(sizes)
    dtype = header.get_data_dtype()
    needed = MGH_HEADER_BYTES + math.prod(sizes) * dtype.itemsize
    raw = inflate(data, needed + SLACK_BYTES)
    if len(raw) < needed:
        raise CaseRejected(
            Reason.TRUNCATED,
            f"the file ends after {len(raw)} bytes, but its header promises {needed}; download it again",
        )
    channel = -1 if is_label and n_channels == 1 else channel
    _check_channel(channel, n_channels)
    flat = np.frombuffer(raw, dtype, count=math.prod(sizes), offset=MGH_HEADER_BYTES)
    voxels = flat.reshape((*shape, n_channels), order="F")[..., max(channel, 0)]
    affine = np.asarray(header.get_affine(), dtype=np.float64)
    return voxels, affine, voxel_sizes(affine), (UNPLACED,) if is_label and not any(raw[MGH_PLACED]) else ()


def _read_itk(files: dict[str, bytes], root: str, path: str) -> Read:
    try:
        with _on_disk(files, root, path) as file:
            image = sitk.ReadImage(file)
    except RuntimeError as error:  # its text can hold paths and header values
        raise CaseRejected(
            Reason.UNREADABLE,
            f"ITK cannot read the file: its header names what is not there or not known, or its {len(next(iter(files.values())))} bytes "
            "end early; compare its size with the publisher's, and download it again where they differ",
        ) from error
    factor, unit = text_header_unit(path, next(iter(files.values())))
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() not in (2, 3):
        raise CaseRejected(
            Reason.DIMENSIONS,
            f"the image has {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} values a voxel;"
            " wanted 3 and 1",
        )
    array = sitk.GetArrayFromImage(image)
    voxels = array[None].T if array.ndim == 2 else array.T
    direction = np.eye(3)
    rank = image.GetDimension()
    direction[:rank, :rank] = np.asarray(image.GetDirection()).reshape(rank, rank)
    spacing = [*image.GetSpacing(), 1.0][:3]
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = [*image.GetOrigin(), 0.0][:3]
    affine[:3] *= factor
    x, y, z = (factor * step for step in spacing)
    return voxels, LPS_TO_RAS @ affine, (x, y, z), (unit,) if unit else ()


def _nifti_header(data: bytes | memoryview) -> nib.Nifti1Header:
    if not data:
        raise CaseRejected(Reason.FILE_EMPTY, "the file has 0 bytes; download it again")
    if data[:2] == GZIP_MAGIC:
        raise CaseRejected(Reason.NOT_AN_IMAGE, "the file is packed by gzip twice; unpack it once")
    for header_class, size, magic_at in ((nib.Nifti1Header, 348, 344), (nib.Nifti2Header, 540, 4)):
        if data[magic_at : magic_at + 2] in (b"n+", b"ni") and len(data) >= size:
            try:
                header = header_class.from_fileobj(BytesIO(bytes(data[:size]) + bytes(4)), check=False)
            except Exception as error:
                raise CaseRejected(Reason.UNREADABLE, "the NIfTI header is damaged; download the file again") from error
            if float(header["pixdim"][0]) not in (-1.0, 1.0):  # qfac: nifti1.h takes 0 for 1
                header["pixdim"][0] = -1.0 if header["pixdim"][0] < 0 else 1.0
            return header
    raise CaseRejected(Reason.NOT_AN_IMAGE, "the content is not NIfTI, whatever the name says; download it again")


def _affine_and_pixdim(header: nib.Nifti1Header) -> tuple[np.ndarray, tuple[float, float, float]]:
    factor = unit_mm(header)
    x, y, z = (abs(float(v)) * factor for v in header["pixdim"][1:4])
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    except Exception as error:
        raise CaseRejected(
            Reason.SPACING_IMPLAUSIBLE,
            "`pixdim` and the quaternion of the qform make no orientation; wanted an sform or a whole qform",
        ) from error
    affine[:3] *= factor
    return affine, (x, y, z)


def _doubts(header: nib.Nifti1Header, affine: np.ndarray) -> tuple[str, ...]:
    """Steps that warn of a header's geometry: qform and sform quarrel (the sform holds), or 1 x 1 x 1 mm by default alone."""
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        return ("spacing_placeholder",) if np.array_equal(np.abs(header["pixdim"][1:4]), np.ones(3)) else ()
    if sform and qform:
        try:
            other = np.diag([*[unit_mm(header)] * 3, 1.0]) @ header.get_qform()
        except Exception:  # a quaternion or spacing that is none: it says nothing against the sform
            return ()
        grid = _three_dimensions(_stored_shape(header))[0]
        return () if same_place(Geometry(grid, affine), Geometry(grid, other)) else ("sform_over_qform",)
    return ()


def _three_dimensions(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Split a stored shape into a volume and its channels; a missing third axis is one slice."""
    sizes = [int(n) for n in shape]
    if len(sizes) < 2 or min(sizes, default=0) < 1 or any(n != 1 for n in sizes[4:]):
        found = " x ".join(map(str, sizes))
        raise CaseRejected(Reason.DIMENSIONS, f"the image is {found} voxels; wanted three dimensions")
    sizes += [1] * (4 - len(sizes))
    return (sizes[0], sizes[1], sizes[2]), sizes[3]


def _check_channel(channel: int, n_channels: int) -> None:
    if channel < 0 and n_channels > 1:
        raise CaseRejected(Reason.DIMENSIONS, f"the image has {n_channels} channels; the collection names none")
    if channel >= n_channels:
        raise CaseRejected(Reason.DIMENSIONS, f"the image has {n_channels} channels; wanted number {channel + 1}")


def _is_nifti(path: str) -> bool:
    return path.lower().endswith((".nii", ".nii.gz"))


@contextlib.contextmanager
def _on_disk(files: dict[str, bytes], root: str, path: str) -> Iterator[str]:
    """Give SimpleITK a file: the original, or a private copy of an archive's member and of the data files beside it."""
    if SEPARATOR not in path:
        yield str(Path(root) / path)
        return
    with private_folder() as folder:
        for number, (name, data) in enumerate(files.items()):
            copy = folder / (name if number else f"header{Path(name).suffix.lower()}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            with telling_of_full_disk(folder):
                copy.write_bytes(data)
        yield str(folder / f"header{Path(path).suffix.lower()}")
