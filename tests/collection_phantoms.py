"""Write a small phantom at every path of a published listing, and tell what was written: the truth that a run has to find.

In: a listing (tests/listings) and a row of habits (tests/habits). Out: the files below a folder, and one `Written` a case.
The body is an ellipse in air; each label value is a block of its own brightness at a place of its own, so that a flip, an
exchanged axis, value, channel or sequence shows. Nothing here reads a collection's TOML.
"""

import gzip
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zlib import crc32

import numpy as np
from habits import HABITS, Habit
from published import Listing, PublishedCase, PublishedLabel

from medvar_data.phantoms.files import (
    APPLE_DOUBLE,
    bilevel_png,
    ct_series,
    nifti_bytes,
    store_as,
    write_itk,
)
from medvar_data.phantoms.shapes import rotation

ACROSS, DOWN = 56, 48  # voxels in the acquired plane
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # -> the canonical axis across the plane
FEW, MANY = (2, 2), (4, 3)  # blocks across and down in one layer, for up to 12 values and for up to 36
LAYERS = 3


@dataclass(frozen=True)
class Written:
    """One case as it was written.

    Attributes:
        case: as the listing tells it.
        habit: how it was stored.
        codes: stored axis codes.
        shape: as stored.
        affine: that a reader has to find, stored index to RAS+ mm.
        image: [R, A, S], HU or the scanner's unit.
        label: [R, A, S], published values; None where no label file serves the case.
    """

    case: PublishedCase
    habit: Habit
    codes: str
    shape: tuple[int, ...]
    affine: np.ndarray
    image: np.ndarray
    label: np.ndarray | None

    @property
    def plane(self) -> str:
        """The plane in which slices have to be cut."""
        return self.habit.plane if self.habit.native else "axial"

    @property
    def is_stack(self) -> bool:
        """Whether it is one file a slice, which a reader may stack either way."""
        return len(self.case.paths) > 1

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Steps along R, A, S."""
        return tuple(float(step) for step in _steps(self.habit))


def write_collection(name: str, listing: Listing, root: Path) -> list[Written]:
    """Write every file that a listing names, the ignored ones too, below `root`."""
    members: dict[str, bytes] = {}
    written, labels = [], listing.labels()
    serving = {case: [label for label in labels if case in label.cases] for every in labels for case in every.cases}
    images: dict[tuple[str, ...], list[PublishedCase]] = {}
    for case in listing.cases():
        images.setdefault(case.paths, []).append(case)
    for number, (paths, cases) in enumerate(images.items()):
        habit = _habit(name, cases[0], len(paths))
        mine = serving.get(cases[0].case, [])
        values = _values(listing, mine, labels.index(mine[0]) if mine else number)
        label = _label(habit, values, labels.index(mine[0]) if mine else number)
        codes = habit.codes[number % len(habit.codes)]
        channels = [_image(habit, label, case.case) for case in cases]
        stored, affine = _stored(channels, habit, codes)
        members |= _image_files(paths, stored, affine, habit, channels[0])
        for part in mine:
            members |= _label_files(part, label, habit.override(part.about), codes)
        kept = label if mine else None
        for case, channel in zip(cases, channels, strict=True):
            written.append(Written(case, habit, codes, stored.shape[:3], affine, channel, kept))
    for path in set(listing.ignored) - set(members):
        members |= _decoy(path, listing)
    _write_all(root, members)
    return written


def _habit(name: str, case: PublishedCase, n_files: int) -> Habit:
    half = f"{name}/{case.about.get('modality')}"
    habit = HABITS[half if half in HABITS else name].override(case.about)
    return habit.override({"n_slices": str(n_files)}) if n_files > 1 else habit


def _values(listing: Listing, labels: Sequence[PublishedLabel], number: int) -> list[int]:
    """The label values of a case: those that its line names, else all, or where they are too many a share of them."""
    texts = [label.about["values"] for label in labels if "values" in label.about]
    if texts:
        return [int(value) for value in texts[0].split()]
    values, most = list(listing.names()), LAYERS * MANY[0] * MANY[1]
    stride = -(-len(values) // most)
    return values[number % stride :: stride]


def _axis(habit: Habit) -> int:
    """The canonical axis along which slices are cut."""
    return PLANES[habit.plane] if habit.native else PLANES["axial"]


def _shape(habit: Habit) -> list[int]:
    shape = [ACROSS, DOWN]
    shape.insert(PLANES[habit.plane], habit.n_slices)
    return shape


def _steps(habit: Habit) -> np.ndarray:
    """Steps along R, A, S."""
    steps = [habit.spacing_mm[0], habit.spacing_mm[1]]
    steps.insert(PLANES[habit.plane], habit.spacing_mm[2])
    return np.array([1.0, 1.0, 1.0] if habit.identity else steps)


def _label(habit: Habit, values: Sequence[int], turn: int) -> np.ndarray:
    """Blocks in the body, one a value: in rows across and down the plane, then in layers; `turn` rotates who is where."""
    axis = _axis(habit)
    label = np.zeros(_shape(habit), dtype=np.uint16)
    view = np.moveaxis(label, axis, 2)
    across, down, depth = view.shape
    columns, rows = FEW if len(values) <= LAYERS * FEW[0] * FEW[1] else MANY
    width, height = max(1, int(0.7 * across) // columns), max(1, int(0.66 * down) // rows)
    thick = max(1, (depth - 2) // LAYERS)
    first = 1 if depth > LAYERS else 0
    for place in range(len(values)):
        layer, rest = divmod(place, columns * rows)
        row, column = divmod(rest, columns)
        i, j = round(0.15 * across) + column * width, round(0.17 * down) + row * height
        k = first + layer * thick
        view[i : i + width, j : j + height, k : k + thick] = values[(place + turn) % len(values)]
    return label


def _image(habit: Habit, label: np.ndarray, case: str) -> np.ndarray:
    """Air, a body with a little noise, and a brightness for each label value that hangs on the case's name."""
    rng = np.random.default_rng(crc32(case.encode()))
    axis = _axis(habit)
    shape = label.shape
    plane = [a for a in range(3) if a != axis]
    grid = np.indices(shape)
    radii = [((grid[a] - (shape[a] - 1) / 2) / (0.46 * shape[a])) ** 2 for a in plane]
    body = radii[0] + radii[1] <= 1
    values = np.unique(label[label > 0])
    looks = rng.permutation(len(values))
    noise = rng.integers(-3, 4, size=shape)
    if habit.modality == "CT":
        image = np.where(body, 30 + noise, -1000 + abs(noise)).astype(np.float64)
        for value, look in zip(values, looks, strict=True):
            image[label == value] = -120 + 320 * (look + 0.5) // len(values)
        corner = sum(radii) > 2.1
        image[corner] = habit.padding
        return image
    image = np.where(body, 200 + noise, 0 if habit.padding == 0 else 6 + noise).astype(np.float64)
    for value, look in zip(values, looks, strict=True):
        image[label == value] = 260 + 640 * (look + 0.5) // len(values)
    return image * habit.brightness


def _stored(channels: Sequence[np.ndarray], habit: Habit, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels as the file holds them (channels or frames along a fourth axis), and their true affine."""
    parts = [_turned(channel * habit.gain + habit.offset, habit, codes) for channel in channels]
    affine = parts[0][1]
    frames = [part for part, _ in parts] * max(1, habit.frames)
    dtype = np.dtype(habit.dtype)
    rounded = [np.rint(frame) if dtype.kind in "iu" else frame for frame in frames]
    if dtype.kind == "u":
        rounded = [np.maximum(frame, 0) for frame in rounded]
    cast = [frame.astype(dtype) for frame in rounded]
    return (cast[0] if len(cast) == 1 else np.stack(cast, axis=3)), affine


def _turned(voxels: np.ndarray, habit: Habit, codes: str) -> tuple[np.ndarray, np.ndarray]:
    affine = np.eye(4)
    directions = rotation(np.array([habit.tilt_deg, 0, 0]))
    directions[:, 1] += habit.shear * directions[:, 0]
    affine[:3, :3] = directions * _steps(habit)
    turned = store_as(voxels, affine, codes)
    whole = turned.affine.copy()
    whole[:3, 3] = (0, 0, 0) if habit.identity else habit.origin_mm
    return turned.voxels, whole


def _image_files(
    paths: Sequence[str], stored: np.ndarray, affine: np.ndarray, habit: Habit, image: np.ndarray
) -> dict[str, bytes]:
    if paths[0].endswith(".dcm"):
        upright = np.diag([*_steps(habit), 1.0])
        upright[:3, 3] = affine[:3, 3] - store_as(image, upright, "LPS").affine[:3, 3]
        series = ct_series(
            np.rint(image).astype(np.int16), upright, identity=paths[0], intercept=-1000,
            thickness_mm=1.6 * habit.spacing_mm[2], texts={"PatientName": "CHAOS^CT_SET", "ProtocolName": "T2SPIR"},
        )  # fmt: skip
        return dict(zip(sorted(paths), series, strict=True))
    return _volume_files(paths[0], stored, affine, habit)


def _label_files(label: PublishedLabel, voxels: np.ndarray, habit: Habit, codes: str) -> dict[str, bytes]:
    if "structure" in label.about:  # one file a structure; the first holds the later ones too
        value = int(label.about["structure"])
        voxels = np.where(voxels >= value, int(label.about.get("stored", value)), 0)
    stored, affine = _turned(voxels, habit, codes)
    if label.paths[0].endswith(".png"):  # the k-th mask by name belongs to the k-th image by name, from the head down
        pictures = [bilevel_png(stored[:, :, -1 - k].T) for k in range(stored.shape[2])]
        return dict(zip(sorted(label.paths), pictures, strict=True))
    if habit.frames:
        empty = np.zeros_like(stored)
        stored = np.stack([stored, empty, stored, empty][: habit.frames], axis=3)
    if habit.label_affine == "shifted":
        affine = affine.copy()
        affine[:3, 3] += 0.2
    return _volume_files(label.paths[0], stored.astype(habit.label_dtype), affine, habit, is_label=True)


def _volume_files(
    path: str, stored: np.ndarray, affine: np.ndarray, habit: Habit, *, is_label: bool = False
) -> dict[str, bytes]:
    """One volume in the format that its name says; with a `.mhd` the file of its voxels."""
    if path.endswith((".nii", ".nii.gz")):
        lost = is_label and habit.label_affine == "none"
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        claimed = affine
        if habit.one_mm:
            claimed = affine.copy()
            claimed[:3, :3] /= steps
        content = nifti_bytes(
            stored, claimed, sform=0 if lost else habit.sform, qform=0 if lost else habit.qform, pixdim_mm=steps,
            scale=(float("nan"), float("nan")) if habit.nan_slope and not is_label else None,
        )  # fmt: skip
        return {path: gzip.compress(content, 1, mtime=0) if path.endswith(".gz") else content}
    if habit.identity:
        return {path: _bare_nrrd(stored)}
    with tempfile.TemporaryDirectory() as folder:
        write_itk(Path(folder) / path.split("/")[-1], stored, affine, compressed=habit.compressed)
        return {f"{path.rpartition('/')[0]}/{f.name}".lstrip("/"): f.read_bytes() for f in Path(folder).iterdir()}


def _bare_nrrd(stored: np.ndarray) -> bytes:
    """NRRD without space, directions and origin."""
    sizes = " ".join(map(str, stored.shape))
    head = f"NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: {sizes}\nspacings: 1 1 1\nencoding: gzip\n\n"
    return head.encode() + gzip.compress(stored.astype(np.uint8).tobytes(order="F"), 1, mtime=0)


def _decoy(path: str, listing: Listing) -> dict[str, bytes]:
    """Something at a path that must be left alone: whole enough to do harm if it were read."""
    name = path.split("/")[-1]
    if name.endswith((".7z", ".zip", ".tar", ".gz")) and not name.endswith(".nii.gz"):
        return {}  # an archive of nothing would be a broken archive
    if name.startswith("._"):
        return {path: APPLE_DOUBLE}
    if name == "dataset.json":
        return {path: _dataset_json(listing)}
    if name.endswith((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")):
        wrong = np.full((ACROSS, DOWN, 10), 99, dtype=np.uint8)
        return _volume_files(path, wrong, np.eye(4), Habit("", "", (1, 1, 1)))
    return {path: b"not an image\n"}


def _dataset_json(listing: Listing) -> bytes:
    """What the Decathlon and its followers put beside the images."""
    test = [f"./imagesTs/{path.split('/')[-1]}" for path in listing.paths if "/imagesTs/" in path]
    train = [path.split("/")[-1] for path in listing.paths if "/imagesTr/" in path]
    rows = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in train]
    labels = {"0": "background"} | {str(value): name for value, name in listing.names().items()}
    return json.dumps({"labels": labels, "training": rows, "test": test}).encode()


def _write_all(root: Path, members: dict[str, bytes]) -> None:
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
        if archive.endswith(".tar"):
            with tarfile.open(root / archive, "w") as tar:
                for member, content in inner.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
        else:
            with zipfile.ZipFile(root / archive, "w") as packed:
                for member, content in inner.items():
                    packed.writestr(member.lstrip("/"), content)
