"""Damage small good inputs in every way that downloads are damaged, and feed them to the pipeline one by one.

`python tests/support/fuzz.py KIND FIRST COUNT ...` runs ranges of numbers in a process of its own under a memory limit and prints
one JSON line for each: how many ended how. An input is named by its kind and number, so any of them can be made again: `mutant(kind, number)`.
"""

import gzip
import json
import re
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, in a process of its own

import cv2
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from medvar_data.catalog.load import parse_collection
from medvar_data.errors import CaseRejected, MedvarError
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.sources.archives import DEFAULT_ACCESS, open_access
from medvar_data.sources.tree import open_tree
from support.builders import chaos_members, nifti_bytes, pairs_toml, scan, small_recipe
from support.dicom_files import cohort_toml, segmentation, slices, structure_set
from support.packing import packed_bytes

SECONDS = 20  # for one input, on a busy machine
MEMORY_BYTES = 6 << 30
SHAPE = (20, 18, 4)
BOUNDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def good_nifti() -> dict[str, bytes]:
    image, label = scan(SHAPE)
    return {"a_image.nii": nifti_bytes(image), "a_label.nii": nifti_bytes((label > 0).astype("u1"))}


def good_nifti_gz() -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data, 1, mtime=0) for name, data in good_nifti().items()}


def good_itk(suffix: str) -> Callable[[], dict[str, bytes]]:
    def make() -> dict[str, bytes]:
        image, label = scan(SHAPE)
        files = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, voxels in (("a_image", image), ("a_label", (label > 0).astype("u1"))):
                sitk.WriteImage(
                    sitk.GetImageFromArray(voxels.T), f"{folder}/{name}.{suffix}", useCompression=suffix == "nrrd"
                )
            for path in sorted(Path(folder).iterdir()):
                files[path.name] = path.read_bytes()
        return files

    return make


def good_dicom() -> dict[str, bytes]:
    return chaos_members(n_slices=4)


def good_cohort() -> dict[str, bytes]:
    """A CT series with a segmentation and a structure set, as an archive exports them; the first names are damaged most."""
    ramp = np.arange(4 * 24 * 24, dtype=np.uint16).reshape(4, 24, 24)
    lung = np.zeros(ramp.shape, dtype=bool)
    lung[1:3, 6:14, 6:14] = True
    square = [np.array([[5, 5, z], [12, 5, z], [12, 12, z], [5, 12, z]], dtype=float) for z in (2.0, 4.0)]
    files = slices(ramp, prefix="study/im", modality="CT")
    return files | {"a/seg": segmentation({"Lung": lung}), "a/structures": structure_set({"cord": square})}


def good_compressed(syntax: str) -> Callable[[], dict[str, bytes]]:
    """A CT series of compressed pictures, whose code streams are most of its bytes."""

    def make() -> dict[str, bytes]:
        rng = np.random.default_rng(5)
        pixels = (np.arange(4 * 40 * 40).reshape(4, 40, 40) % 900 + rng.integers(0, 60, (4, 40, 40))).astype(np.uint16)
        if syntax != JPEG2000Lossless:
            return slices(pixels, modality="CT", syntax=syntax)
        return {name: _as_jpeg_2000(data) for name, data in slices(pixels, modality="CT").items()}

    return make


def _as_jpeg_2000(data: bytes) -> bytes:
    """Pydicom has no encoder for it; OpenCV writes a file whose code stream is what DICOM holds."""
    dataset, out = pydicom.dcmread(BytesIO(data)), BytesIO()
    whole = cv2.imencode(".jp2", dataset.pixel_array, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
    dataset.PixelData = encapsulate([whole[whole.index(b"\xff\x4f\xff\x51") :]])
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    pydicom.dcmwrite(out, dataset, implicit_vr=False, little_endian=True)
    return out.getvalue()


def good_packed(suffix: str) -> Callable[[], dict[str, bytes]]:
    return lambda: {f"set{suffix}": packed(suffix, good_nifti())}


def packed(suffix: str, members: dict[str, bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return packed_bytes(suffix, members, Path(folder))


def good_toml() -> dict[str, bytes]:
    text = pairs_toml(
        suffix="nii", more='sequences = { a = "T1" }\nsplits = { train = "1-3" }\n', top='case_names = "published"\n'
    )
    return {"own.toml": text.replace("(?P<case>[^/]+)_image", r"(?P<case>(?P<number>\d+)[^/]*)_image").encode()}


# What a stranger might write in a description's quotes: patterns that repeat without end, templates that compute, names that lead out.
HOSTILE = (
    r"(?:a|a)+$", r"(?P<case>(?:a|aa)+)_image", r"(?P<case>(?P<number>\d*)(?:a|a?)*)$", "(" * 300, "(?P<case>", "[", "{case:>1000000000}",
    "{case.__class__}", "{0}", "{", "../../x", "/etc/passwd", "x" * 3000, "", "\\u001b[31m", "(?P<case>.)" * 120, r"(?P<case>(.*)*)*_image",
)  # fmt: skip


def hostile_words(text: str, rng: np.random.Generator) -> str:
    """Replace what stands in one or two pairs of quotes."""
    for _ in range(int(rng.integers(1, 3))):
        spans = [match.span(2) for match in re.finditer(r"(['\"])(.*?)\1", text)]
        start, end = spans[int(rng.integers(len(spans)))]
        text = text[:start] + HOSTILE[int(rng.integers(len(HOSTILE)))] + text[end:]
    return text


KINDS: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "nifti": (good_nifti, "nii"), "nifti-gz": (good_nifti_gz, r"nii\.gz"), "nrrd": (good_itk("nrrd"), "nrrd"),
    "mha": (good_itk("mha"), "mha"), "mhd": (good_itk("mhd"), "mhd"), "zip": (good_packed(".zip"), "nii"), "dicom": (good_dicom, ""),
    "toml": (good_toml, "nii"), "tar-gz": (good_packed(".tar.gz"), "nii"), "7z": (good_packed(".7z"), "nii"),
    "cohort": (good_cohort, ""), "jpeg-ls": (good_compressed(JPEGLSLossless), ""), "rle": (good_compressed(RLELossless), ""),
    "jpeg-2000": (good_compressed(JPEG2000Lossless), ""),
}  # fmt: skip
PACKED = {"zip": ".zip", "tar-gz": ".tar.gz", "7z": ".7z"}
_GOOD: dict[str, dict[str, bytes]] = {}


def mutant(kind: str, number: int) -> dict[str, bytes]:
    """The files of input `number`: one of a good input's files, damaged once, twice or four times; every seventh time two files."""
    if kind in PACKED and number % 2:  # a sound archive of a damaged file
        return {f"set{PACKED[kind]}": packed(PACKED[kind], mutant("nifti", number))}
    if kind not in _GOOD:
        _GOOD[kind] = KINDS[kind][0]()
    files = dict(_GOOD[kind])
    rng = np.random.default_rng([*kind.encode(), number])
    names = sorted(files)
    if kind == "toml" and number % 2:
        return {"own.toml": hostile_words(files["own.toml"].decode(), rng).encode()}
    for name in names[:2] if number % 7 == 0 else [names[int(rng.integers(len(names)))]]:
        data = files[name]
        for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
            data = DAMAGE[int(rng.integers(len(DAMAGE)))](bytearray(data), rng)
        files[name] = bytes(data)
    return files


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Anywhere, but in half of the draws within the first 400 bytes, where headers lie."""
    limit = len(data) if rng.random() < 0.5 else min(len(data), 400)
    return int(rng.integers(max(limit, 1)))


def flip_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(1, 9))):
        if data:
            data[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return data


def set_number(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Overwrite a field by a value at the edge of its type."""
    width = int(rng.choice([1, 2, 4, 8]))
    at = _place(data, rng)
    value = BOUNDS[int(rng.integers(len(BOUNDS)))]
    data[at : at + width] = value.to_bytes(8, "little" if rng.random() < 0.8 else "big")[:width]
    return data


def cut_off(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(len(data) + 1))]


def cut_out(data: bytearray, rng: np.random.Generator) -> bytearray:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 64))]
    return data


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    at, length = _place(data, rng), int(rng.integers(1, 200))
    return data[: at + length] + data[at:]


def insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 32))) + data[at:]


def swap_digits(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Change the numbers that text headers are made of."""
    digits = [n for n, byte in enumerate(data[:2000]) if chr(byte).isdigit()]
    for n in digits if len(digits) < 3 else rng.choice(digits, 3):
        data[n] = int(rng.choice(list(b"0123456789-.e")))
    return data


def zero_run(data: bytearray, rng: np.random.Generator) -> bytearray:
    at, length = _place(data, rng), int(rng.integers(1, 512))
    data[at : at + length] = bytes(len(data[at : at + length]))
    return data


DAMAGE = (flip_bits, set_number, cut_off, cut_out, repeat, insert, swap_digits, zero_run)


def outcome(kind: str, number: int, folder: Path) -> str:
    """Send one input down the pipeline: ingest, read, harmonize.

    Returns:
        "kept", or how it was left out: a reason, or the name of our error for the whole input.

    Raises:
        AssertionError: a case was lost. Any other exception is a fault of ours.
    """
    files = mutant(kind, number)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        spec = _spec(kind) if kind != "toml" else None
        if spec is None:
            spec = parse_collection(files["own.toml"].decode("utf-8", "replace"), "own.toml", own=True)
            for name, data in good_nifti().items():
                (folder / f"1{'a' * 40}{name}").write_bytes(data)
        tree = open_tree(folder)
        if tree.broken:  # one reject an archive; the run goes on without it
            return tree.broken[0][1].value if tree.broken[0][2] else "no sentence"
        found = ingest(spec, tree, b"salt")
    except MedvarError as error:
        return type(error).__name__ if str(error).strip().endswith((".", '"')) else f"no sentence: {error}"
    assert found.n_found >= 1 or found.notes, "nothing found and no error"
    ends = [reject.reason.value for reject in found.rejects]
    for case in found.cases:
        try:
            harmonize(read_scan(case, spec), case, spec, _RECIPE)
            ends.append("kept")
        except CaseRejected as error:
            ends.append(error.reason.value if error.detail else "no sentence")
    return ends[0] if ends else "passed over"


def _spec(kind: str):
    from medvar_data.catalog.load import load_collection

    if kind == "dicom":
        return load_collection("chaos")
    if kind in ("cohort", "jpeg-ls", "rle", "jpeg-2000"):
        return parse_collection(cohort_toml(modality="CT"), "fuzz", own=True)
    return parse_collection(pairs_toml(suffix=KINDS[kind][1]), "fuzz", own=True)


def run(kind: str, first: int, count: int) -> Counter[str]:
    """Run a range of inputs; a hang or a foreign exception ends it with the input's name."""
    ends: Counter[str] = Counter()
    for number in range(first, first + count):
        signal.alarm(SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            try:
                with open_access(DEFAULT_ACCESS):
                    ends[outcome(kind, number, Path(folder))] += 1
            except BaseException as error:
                raise RuntimeError(f"input {kind} {number}: {type(error).__name__}: {error}") from error
        signal.alarm(0)
    return ends


def _late(*_: object) -> None:
    raise TimeoutError(f"no end after {SECONDS} s")


def peak_mib() -> int:
    """Of this program alone; `getrusage` would count what its parent held when it forked."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20  # bytes elsewhere than on Linux
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) >> 10


def main() -> None:
    """Run in this process under the limits, print one JSON line for every KIND FIRST COUNT in the arguments."""
    global _RECIPE
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _late)
    sitk.ProcessObject.GlobalWarningDisplayOff()
    with tempfile.TemporaryDirectory() as folder:
        _RECIPE = small_recipe(Path(folder))
        for kind, first, count in zip(sys.argv[1::3], map(int, sys.argv[2::3]), map(int, sys.argv[3::3]), strict=True):
            ends = dict(run(kind, first, count).most_common())
            print(json.dumps({"kind": kind, "first": first, "count": count, "peak_mib": peak_mib(), "ends": ends}))


if __name__ == "__main__":
    main()
