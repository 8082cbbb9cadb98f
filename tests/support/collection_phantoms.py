"""Write a small phantom at every path of a published listing, and tell what was written: the truth that a run has to find.

In: a listing (tests/listings) and a row of styles (tests/styles). Out: the files below a folder, and one `Written` a case.
Nothing here reads a collection's TOML.
"""

import gzip
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import py7zr

from medvar_data.demo.phantoms.files import (
    APPLE_DOUBLE,
    Stored,
    add_to_zip,
    bilevel_png,
    dicom_series,
    grey_png,
    nifti_bytes,
    store_as,
    write_itk,
)
from medvar_data.demo.phantoms.shapes import rotation
from support.painted import MOST_VALUES, paint_image, paint_label, shape_of, spacing_of
from support.published import Listing, PublishedCase, PublishedLabel
from support.storage_styles import STYLES, StorageStyle

ARCHIVES = (".zip", ".tar", ".7z", ".tar.gz", ".tgz")
FRAMES = {"frame00": 0, "ed": 1, "es": 3}  # where a cine holds the frame that a case is named after
N_FRAMES = 4


@dataclass(frozen=True)
class Written:
    """One case as it was written.

    Attributes:
        case: as the listing tells it; `channel` is the index in the fourth dimension.
        style: how it was stored.
        codes: stored axis codes.
        shape: as stored, without channels.
        affine: that a reader has to find, stored index to RAS+ mm.
        image: [R, A, S], HU or the scanner's unit.
        label: [R, A, S], published values; None where no label file serves the case.
        steps: that a reader has to note down.
    """

    case: PublishedCase
    style: StorageStyle
    codes: str
    shape: tuple[int, ...]
    affine: np.ndarray
    image: np.ndarray
    label: np.ndarray | None
    steps: frozenset[str]


def write_collection(name: str, listing: Listing, root: Path) -> list[Written]:
    """Write every file that a listing names, the ignored ones too, below `root`."""
    members: dict[str, bytes] = {}
    written, labels = [], listing.labels()
    scans: dict[tuple[str, ...], list[PublishedCase]] = {}
    for case in listing.cases():
        scans.setdefault(case.paths, []).append(case)
    for number, (paths, cases) in enumerate(scans.items()):
        style = style_of(name, cases[0])
        mine = [label for label in labels if cases[0].case in label.cases]
        turn = labels.index(mine[0]) if mine else number
        values = values_of(listing, mine, turn)
        blocks = [paint_label(style, values, turn + n * style.cine) for n in range(len(cases))]
        images = [paint_image(style, block, case.case) for block, case in zip(blocks, cases, strict=True)]
        if style.cine:
            cases = [replace(case, channel=FRAMES[case.case.rsplit("-", 1)[1]]) for case in cases]
        codes = style.codes[number % len(style.codes)]
        stored = store(along_fourth(images, cases, style), style, codes)
        members |= image_files(paths, stored, style, images[0])
        for label in mine:
            part = along_fourth(blocks, cases, style) if style.cine else blocks[0]
            members |= label_files(label, part, style.override(label.about), codes)
        for case, image, block in zip(cases, images, blocks, strict=True):
            shape, steps = stored.voxels.shape[:3], steps_of(style, image, mine)
            written.append(Written(case, style, codes, shape, stored.affine, image, block if mine else None, steps))
    for path in set(listing.ignored) - set(members):
        members |= decoy(path, listing)
    write_members(root, members)
    return written


def style_of(name: str, case: PublishedCase) -> StorageStyle:
    """How one file is stored: as its collection is, but for what its line in the listing says."""
    half = f"{name}/{case.about.get('modality')}"
    style = STYLES[half if half in STYLES else name].override(case.about)
    return replace(style, n_slices=len(case.paths)) if case.paths[0].endswith(".dcm") else style


def values_of(listing: Listing, labels: Sequence[PublishedLabel], turn: int) -> list[int]:
    """The label values of a case: those that its line names, else all, or where they are too many every second or third."""
    texts = [label.about["values"] for label in labels if "values" in label.about]
    if texts:
        return [int(value) for value in texts[0].split()]
    values = list(listing.names())
    stride = -(-len(values) // MOST_VALUES)
    return values[turn % stride :: stride]


def steps_of(style: StorageStyle, image: np.ndarray, labels: Sequence[PublishedLabel]) -> frozenset[str]:
    """What a reader has to decide or repair, in the words of docs/formats.md."""
    label_styles = [style.override(label.about) for label in labels]
    steps = {
        "spacing_from_pixdim": style.one_mm,
        "spacing_unknown": style.identity,
        f"hu={1 / style.gain:g}*x{-style.offset / style.gain:+g}": (style.gain, style.offset) != (1, 0),
        "hu_floor_-1024": style.modality == "CT" and image.min() < -1024,
        "affine_from_image": any(other.label_affine != "image" for other in label_styles),
        "merged_labels": any("structure" in label.about for label in labels),
        f"voted_of_{len(labels)}": any("outvoted" in label.about for label in labels),
        "masks_paired_by_name": any(label.paths[0].endswith(".png") for label in labels),
    }
    return frozenset(step for step, holds in steps.items() if holds)


def along_fourth(parts: Sequence[np.ndarray], cases: Sequence[PublishedCase], style: StorageStyle) -> np.ndarray:
    """One volume, channels along a fourth axis, or the frames of a cine with others in between, as labels empty."""
    if not style.cine:
        return parts[0] if len(parts) == 1 else np.stack(parts, axis=3)
    between = (
        parts[0] * 0 if parts[0].dtype.kind == "u" else paint_image(style, np.zeros_like(parts[0], int), "between")
    )
    frames = {case.channel: part for case, part in zip(cases, parts, strict=True)}
    return np.stack([frames.get(n, between) for n in range(N_FRAMES)], axis=3)


def store(image: np.ndarray, style: StorageStyle, codes: str) -> Stored:
    """Turn physical values into a file's voxels."""
    stored = turn_to(image * style.gain + style.offset, style, codes)
    whole = np.dtype(style.dtype).kind in "iu"
    return Stored((np.rint(stored.voxels) if whole else stored.voxels).astype(style.dtype), stored.affine)


def turn_to(voxels: np.ndarray, style: StorageStyle, codes: str) -> Stored:
    """Permute and flip an R, A, S array (with or without channels) to the stored axes, and place it."""
    directions = rotation((style.tilt_deg, 0, 0))
    directions[:, 1] += style.shear * directions[:, 0]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_of(style)
    turned = store_as(voxels, affine, codes)
    placed = turned.affine.copy()
    placed[:3, 3] = (0, 0, 0) if style.identity else style.origin_mm
    return Stored(turned.voxels, placed)


def image_files(paths: Sequence[str], stored: Stored, style: StorageStyle, image: np.ndarray) -> dict[str, bytes]:
    """The file of an image, or one file a slice."""
    if not paths[0].endswith(".dcm"):
        return volume_file(paths[0], stored, style, nan_slope=style.nan_slope)
    upright = np.diag([*spacing_of(style), 1.0])
    upright[:3, 3] = stored.affine[:3, 3] - store_as(image, upright, "LPS").affine[:3, 3]
    series = dicom_series(
        np.rint(image).astype(np.int16), upright, modality=style.modality, identity=paths[0],
        intercept=-1000 if style.modality == "CT" else 0, thickness_mm=1.6 * style.spacing_mm[2],
        texts={"PatientName": "CHAOS^CT_SET", "ProtocolName": "T2SPIR"},
    )  # fmt: skip
    return dict(zip(sorted(paths), series, strict=True))


def label_files(label: PublishedLabel, blocks: np.ndarray, style: StorageStyle, codes: str) -> dict[str, bytes]:
    """One label file as its line in the listing tells, or one mask a slice."""
    if "structure" in label.about:  # one file a structure: the first one holds the later ones too
        value = int(label.about["structure"])
        blocks = np.where(blocks >= value, int(label.about.get("stored", value)), 0)
    if "outvoted" in label.about:
        blocks = np.roll(blocks, (5, -4), axis=(0, 1))
    stored = turn_to(blocks, style, codes)
    if label.paths[0].endswith(".png"):  # the k-th mask by name belongs to the k-th image by name, from the head down
        encode = bilevel_png if style.modality == "CT" else grey_png
        masks = [encode(np.ascontiguousarray(mask.T.astype(np.uint8))) for mask in np.moveaxis(stored.voxels, 2, 0)]
        return dict(zip(sorted(label.paths), reversed(masks), strict=True))
    affine = stored.affine.copy()
    affine[:3, 3] += 0.2 if style.label_affine == "shifted" else 0
    lost = replace(style, sform=0, qform=0) if style.label_affine == "none" else style
    return volume_file(label.paths[0], Stored(stored.voxels.astype(style.label_dtype), affine), lost)


def volume_file(path: str, stored: Stored, style: StorageStyle, *, nan_slope: bool = False) -> dict[str, bytes]:
    """A volume in the format that its name says; with a `.mhd` the file of its voxels."""
    if path.endswith((".nii", ".nii.gz")):
        steps = np.linalg.norm(stored.affine[:3, :3], axis=0)
        claimed = stored.affine @ np.diag([*(1 / steps if style.one_mm else np.ones(3)), 1])
        scale = (float("nan"), float("nan")) if nan_slope else None
        content = nifti_bytes(
            stored.voxels, claimed, sform=style.sform, qform=style.qform, pixdim_mm=steps, scale=scale
        )
        return {path: gzip.compress(content, 1, mtime=0) if path.endswith(".gz") else content}
    if path.endswith(".nrrd") and style.identity:
        return {path: bare_nrrd(stored.voxels)}
    with tempfile.TemporaryDirectory() as folder:
        write_itk(Path(folder) / path.split("/")[-1], stored.voxels, stored.affine, compressed=style.compressed)
        return {f"{path.rpartition('/')[0]}/{f.name}".lstrip("/"): f.read_bytes() for f in Path(folder).iterdir()}


def bare_nrrd(voxels: np.ndarray) -> bytes:
    """NRRD without space, directions and origin."""
    sizes = " ".join(map(str, voxels.shape))
    head = f"NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: {sizes}\nspacings: 1 1 1\nencoding: gzip\n\n"
    return head.encode() + gzip.compress(voxels.astype(np.uint8).tobytes(order="F"), 1, mtime=0)


def decoy(path: str, listing: Listing) -> dict[str, bytes]:
    """Something at a path that must be left alone: whole enough to do harm if it were read."""
    name = path.split("/")[-1]
    if name.startswith("._"):
        return {path: APPLE_DOUBLE}
    if name == "dataset.json":
        return {path: dataset_json(listing)}
    if name.endswith(".csv"):
        return {path: frames_csv(listing)}
    if name.endswith((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")):
        style = StorageStyle("", "", (1, 1, 1))
        return volume_file(path, Stored(np.full(shape_of(style), 99, np.uint8), np.eye(4)), style)
    return {} if name.endswith(ARCHIVES) else {path: b"not an image\n"}  # an archive of nothing would be a broken one


def dataset_json(listing: Listing) -> bytes:
    """What the Decathlon and its followers put beside the images."""
    test = [f"./imagesTs/{path.split('/')[-1]}" for path in listing.paths if "/imagesTs/" in path]
    train = [path.split("/")[-1] for path in listing.paths if "/imagesTr/" in path]
    rows = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in train]
    labels = {"0": "background"} | {str(value): name for value, name in listing.names().items()}
    return json.dumps({"labels": labels, "training": rows, "test": test}).encode()


def frames_csv(listing: Listing) -> bytes:
    """What M&Ms puts beside its cines: the annotated frames of each study, counted from 0."""
    studies = [case.case.rsplit("-", 1)[0].upper() for case in listing.cases() if case.case.endswith("-ed")]
    rows = [f"{study},A,1,{FRAMES['ed']},{FRAMES['es']}" for study in studies]
    return "\n".join(["External code,Vendor,Centre,ED,ES", *rows, ""]).encode()


def write_members(root: Path, members: dict[str, bytes]) -> None:
    """Write files, and the members of archives that a path names with `!/`."""
    archives: dict[str, dict[str, bytes]] = {}
    for path, content in members.items():
        archive, inside, member = path.partition("!/")
        if inside:
            archives.setdefault(archive, {})[member] = content
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    for archive, inner in archives.items():
        (root / archive).parent.mkdir(parents=True, exist_ok=True)
        PACKERS[Path(archive).suffix](root / archive, inner)


def pack_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """Make an uncompressed tar."""
    with tarfile.open(path, "w") as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))


def pack_7z(path: Path, members: Mapping[str, bytes]) -> None:
    """Make a 7-Zip archive."""
    with py7zr.SevenZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(content, member)


PACKERS: dict[str, Callable[[Path, Mapping[str, bytes]], None]] = {
    ".zip": add_to_zip,
    ".tar": pack_tar,
    ".7z": pack_7z,
}
