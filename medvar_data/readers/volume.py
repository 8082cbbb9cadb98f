"""Read volume files: NIfTI through nibabel, MHA, MHD and NRRD through SimpleITK.

A file is read once, whole and in order; gzip is inflated by ISA-L. Errors of the libraries become reasons; their texts
are dropped, since they can hold paths and header values.
"""

import contextlib
import tempfile
import zlib
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip
from jaxtyping import Shaped, UInt16

from medvar_data.catalog import CollectionSpec
from medvar_data.errors import CaseRejected, Reason, WorkspaceError
from medvar_data.geometry import check_affine, resolve_spacing
from medvar_data.readers.scan import Header, Scan, check_same_shape, compact, label_values
from medvar_data.records import Case, Geometry, LabelVolume, Volume
from medvar_data.store import telling_of_full_disk
from medvar_data.tree import SEPARATOR, read_bytes, read_head

GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 540  # NIfTI-2
MIN_HEADER_BYTES = 348  # NIfTI-1
HEAD_BYTES = 1 << 14  # of a file, packed or not: enough for its header
AFFINE_TOLERANCE_MM = 0.1  # between image and label, at any corner
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_volume_scan(case: Case, spec: CollectionSpec) -> Scan:
    """Read an image file and, where there is one, its label file.

    Where both have one shape but other affines, the image's affine holds for both (step `affine_from_image`). Where each
    structure has a file of its own, they are merged (step `merged_labels`).
    """
    image = _read(case.root, case.image[0], spec.spacing_from, case.channel)
    image = Volume(compact(image.voxels), image.geometry, image.digest, image.steps)
    if not case.label:
        return Scan(image, None)
    parts = []
    for path in case.label:
        parts.append(_read(case.root, path, "affine", -1))
        check_same_shape(image.geometry.shape, parts[-1].geometry.shape)
    there = all(_same_place(image.geometry, part.geometry) for part in parts)
    steps = () if there or "spacing_from_pixdim" in image.steps else ("affine_from_image",)
    values = next((layout.label_files for layout in spec.layouts if layout.id == case.layout), {})
    if not values:
        return Scan(image, LabelVolume(label_values(parts[0].voxels), image.geometry, parts[0].digest, steps))
    merged = _merge(parts, list(values.values()))
    digest = sha256("".join(part.digest for part in parts).encode()).hexdigest()
    return Scan(image, LabelVolume(merged, image.geometry, digest, (*steps, "merged_labels")))


def _merge(parts: list[Volume], values: list[int]) -> UInt16[np.ndarray, "i j k"]:
    """Paint the voxels above 0 of each file with its value, later files over earlier ones.

    Raises:
        CaseRejected: `empty_label` where every file is empty; `label_values` where one holds no whole numbers.
    """
    merged = np.zeros(parts[0].geometry.shape, dtype=np.uint16)
    for part, value in zip(parts, values, strict=True):
        if part.voxels.any():  # a structure that this patient does not have is an empty file
            merged[label_values(part.voxels) > 0] = value
    return label_values(merged)


def read_volume_header(root: str, path: str, spacing_from: str) -> Header | None:
    """Read shape and spacing from a file's header, without its voxels; None where the format cannot be peeked at.

    Raises:
        CaseRejected: the header alone shows that the file is no use.
    """
    if not _is_nifti(path):
        return None
    header = _nifti_header(_inflated_head(read_head(Path(root), path, HEAD_BYTES)))
    shape, n_channels = _three_dimensions(_stored_shape(header))
    affine, _ = resolve_spacing(*_affine_and_pixdim(header), spacing_from)
    check_affine(affine)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return Header(shape, n_channels, (float(x), float(y), float(z)), int(header["bitpix"]) // 8)


def _inflated_head(data: bytes) -> bytes:
    """The first bytes of a NIfTI file, inflated where they are gzip."""
    if data[:2] != GZIP_MAGIC:
        return data
    inflater = zlib.decompressobj(wbits=31)
    try:
        head = inflater.decompress(data, HEADER_BYTES)
    except zlib.error as error:
        raise CaseRejected(Reason.UNREADABLE, "the gzip stream is damaged; download the file again") from error
    if len(head) < MIN_HEADER_BYTES and not inflater.eof:
        raise CaseRejected(Reason.TRUNCATED, "the gzip stream ends within the header; download the file again")
    return head


def _stored_shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in header.get_data_shape())
    except Exception as error:
        raise CaseRejected(Reason.UNREADABLE, "the NIfTI header is damaged") from error


def _read(root: str, path: str, spacing_from: str, channel: int) -> Volume:
    data = read_bytes(Path(root), path)
    digest = sha256(data).hexdigest()
    reader = _read_nifti if _is_nifti(path) else _read_itk
    try:
        voxels, affine, pixdim, steps = reader(data, root, path, channel)
    except (CaseRejected, WorkspaceError):  # a full disk says nothing of the case
        raise
    except MemoryError as error:
        raise CaseRejected(Reason.UNREADABLE, "the header asks for more memory than there is") from error
    except Exception as error:
        raise CaseRejected(
            Reason.UNREADABLE, f"the reader gave up ({type(error).__name__}); the file is damaged"
        ) from error
    affine, more = resolve_spacing(affine, pixdim, spacing_from)
    check_affine(affine)
    return Volume(voxels, Geometry(voxels.shape, affine), digest, (*steps, *more))


Read = tuple[Shaped[np.ndarray, "i j k"], np.ndarray, tuple[float, float, float], tuple[str, ...]]


def _read_nifti(data: bytes, root: str, path: str, channel: int) -> Read:
    raw = _inflate(data)
    header = _nifti_header(raw)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    needed = int(header["vox_offset"]) + int(np.prod(header.get_data_shape())) * header.get_data_dtype().itemsize
    if len(raw) < needed:
        raise CaseRejected(Reason.TRUNCATED, f"the file ends after {len(raw)} of {needed} bytes; download it again")
    image = image_class.from_bytes(raw)
    shape, n_channels = _three_dimensions(image.shape)
    _check_channel(channel, n_channels)
    proxy: Any = image.dataobj
    stored = np.asanyarray(proxy.get_unscaled()).reshape((*shape, n_channels), order="A")[..., max(channel, 0)]
    steps: tuple[str, ...] = () if len(image.shape) == 3 or channel >= 0 else ("squeezed",)
    if (proxy.slope, proxy.inter) != (1.0, 0.0):
        stored = stored.astype(np.float32) * np.float32(proxy.slope) + np.float32(proxy.inter)
        steps = (*steps, "scaled")
    affine, pixdim = _affine_and_pixdim(header)
    return stored, affine, pixdim, steps


def _read_itk(data: bytes, root: str, path: str, channel: int) -> Read:
    with _on_disk(data, root, path) as file:
        image = sitk.ReadImage(file)
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
    x, y, z = spacing
    return voxels, LPS_TO_RAS @ affine, (x, y, z), ()


def _inflate(data: bytes) -> bytes:
    if data[:2] != GZIP_MAGIC:
        return data
    try:
        return igzip.decompress(data)
    except EOFError as error:
        raise CaseRejected(Reason.TRUNCATED, "the gzip stream ends early; download the file again") from error
    except (igzip.BadGzipFile, OSError) as error:
        raise CaseRejected(
            Reason.UNREADABLE, "the gzip stream is damaged (its checksum fails); download it again"
        ) from error
    except Exception as error:  # ISA-L raises its own class for broken deflate blocks
        raise CaseRejected(Reason.UNREADABLE, "the gzip stream is damaged; download the file again") from error


def _nifti_header(data: bytes) -> nib.Nifti1Header:
    if not data:
        raise CaseRejected(Reason.FILE_EMPTY, "the file has 0 bytes; download it again")
    for header_class, size, magic_at in ((nib.Nifti1Header, 348, 344), (nib.Nifti2Header, 540, 4)):
        if data[magic_at : magic_at + 2] in (b"n+", b"ni") and len(data) >= size:
            try:
                return header_class.from_fileobj(BytesIO(data[:size] + bytes(4)), check=False)
            except Exception as error:
                raise CaseRejected(Reason.UNREADABLE, "the NIfTI header is damaged") from error
    raise CaseRejected(Reason.NOT_AN_IMAGE, "the content is not NIfTI, whatever the name says; download it again")


def _affine_and_pixdim(header: nib.Nifti1Header) -> tuple[np.ndarray, tuple[float, float, float]]:
    x, y, z = (abs(float(v)) for v in header["pixdim"][1:4])
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except Exception as error:
        raise CaseRejected(Reason.SPACING_IMPLAUSIBLE, "the header holds no usable orientation") from error
    return affine, (x, y, z)


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


def _same_place(a: Geometry, b: Geometry) -> bool:
    corners = np.array(
        [[i, j, k, 1] for i in (0, a.shape[0]) for j in (0, a.shape[1]) for k in (0, a.shape[2])], dtype=float
    )
    return bool(np.abs(corners @ (a.affine - b.affine).T).max() <= AFFINE_TOLERANCE_MM)


def _is_nifti(path: str) -> bool:
    return path.lower().endswith((".nii", ".nii.gz"))


@contextlib.contextmanager
def _on_disk(data: bytes, root: str, path: str) -> Iterator[str]:
    """Give SimpleITK a file: the original, or a private copy of an archive's member."""
    if SEPARATOR not in path:
        yield str(Path(root) / path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"volume{Path(path).suffix.lower()}"
        with telling_of_full_disk(Path(folder)):
            copy.write_bytes(data)
        yield str(copy)
