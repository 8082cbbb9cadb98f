"""Time harmonizing one case, from its files to 8-bit slices and to the finished Parquet, beside MONAI and TorchIO.

    python bench/harmonize.py [--data ../shared/real] [--rounds 9] [--quick] [--ours]

One thread. Inputs: a chest CT (LUNG1-001, 512 x 512 x 134, turned into .nii.gz here, with the lungs of 90 slices as label),
a brain MR (BraTS, its bright tissue as label), a heart MR (ACDC, expert label) and a synthetic CT of 512 x 512 x 160.
Runs of all programs alternate; a figure is the median of the ratios of neighbouring runs, in CPU seconds. `arrays` is
reading and harmonizing (statistics included), `case` adds PNG, digests and Parquet, `inflate` is reading the image file and
inflating it with ISA-L. The last line is one JSON object of figures.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cc3d
import cv2
import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from isal import igzip

from medvar_data.catalog.collection import CollectionSpec, LabelSpec
from medvar_data.catalog.load import load_collection
from medvar_data.catalog.recipe import load_recipe
from medvar_data.demo.phantoms import synthesize
from medvar_data.harmonize import body, harmonize
from medvar_data.harmonize.dependencies import wanted_inputs
from medvar_data.readers import labels
from medvar_data.readers import volume_scan as volume
from medvar_data.readers.read import read_scan
from medvar_data.records import Case, HarmonizedVolume
from medvar_data.workspace import case_file

LUNG_SLICES = 90
OWN_LABELS = tuple(LabelSpec(n, n, n, f"structure {n}") for n in range(1, 10))
SYNTHETIC_SHAPE = (512, 512, 160)
STAGES = {  # stage: functions of ours whose own time counts to it
    "read file": [(volume, "read_with_data")],
    "sha256 of file": [(volume, "sha256")],
    "inflate": [(volume, "inflate")],
    "check voxels": [(volume, "compact"), (labels, "label_values")],
    "reorient": [(harmonize, "picture_stack")],
    "body: threshold": [(body, "_foreground"), (harmonize, "fit_body")],
    "body: opening": [(body, "_opened")],
    "body: components": [(body, "label_components")],
    "body: outline": [(harmonize, "find_body")],
    "label: ids": [(harmonize, "_clean_labels")],
    "label: dust 3D": [(harmonize, "remove_label_dust")],
    "label: dust 2D": [(harmonize, "remove_slice_dust")],
    "bounds": [(harmonize, "_fit_intensity")],
    "spurious out": [(harmonize, "_without_spurious")],
    "resize": [(harmonize, "resize_image"), (harmonize, "resize_mask")],
    "8 bit": [(harmonize, "apply_intensity")],
    "counts and statistics": [
        (harmonize, "count"),
        (harmonize, "_statistics"),
        (harmonize, "_measures"),
        (harmonize, "values_inside"),
    ],
    "thumbnail": [(harmonize, "make_thumbnail")],
    "pixel digests": [(case_file, "pixel_digest")],
    "Parquet": [(case_file, "_write")],
}


@dataclass(frozen=True)
class Input:
    """One scan to harmonize: NIfTI files in a folder."""

    name: str
    case: Case
    spec: CollectionSpec

    @property
    def image(self) -> Path:
        """Path of the image."""
        return Path(self.case.root) / self.case.image[0]

    @property
    def label(self) -> Path:
        """Path of the label."""
        return Path(self.case.root) / self.case.label[0]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/real"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--ours", action="store_true", help="without MONAI and TorchIO")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    rounds = 3 if args.quick else args.rounds
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for item in inputs(args.data, Path(scratch)):
            figures |= measure(item, rounds, Path(scratch), not args.ours)
    print(json.dumps(figures))


def measure(item: Input, rounds: int, scratch: Path, peers: bool) -> dict[str, dict[str, object]]:
    """Time one input, print its table and profile, and return its figures."""
    recipe = load_recipe("paper")
    out = scratch / "case.parquet"

    def arrays() -> HarmonizedVolume:
        return harmonize.harmonize(read_scan(item.case, item.spec), item.case, item.spec, recipe)

    def case() -> None:
        case_file.write_kept(out, arrays(), item.case, wanted_inputs(item.case, item.spec, recipe))

    files = (str(item.image), str(item.label), item.case.modality, recipe)
    programs: dict[str, Callable[[], object]] = {
        "inflate": lambda: igzip.decompress(item.image.read_bytes()),
        "arrays": arrays,
        "case": case,
    }
    ours = arrays()  # warm up
    if peers:
        from peers import monai_slices, torchio_slices

        programs |= {"MONAI": lambda: monai_slices(*files), "TorchIO": lambda: torchio_slices(*files)}
    shape = " x ".join(map(str, ours.case.shape))
    print(f"\n{item.name}: {shape}, {item.image.stat().st_size / 1e6:.1f} MB, {len(ours.slices)} slices kept")
    if peers:
        tell_agreement(ours, monai_slices(*files).masks)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, program in programs.items():
            started = time.process_time()
            program()
            times[name].append(time.process_time() - started)
    print(f"{'':10} {'CPU s':>8} {'/ inflate':>10} {'/ arrays':>10}")
    for name in programs:
        print(
            f"{name:10} {statistics.median(times[name]):8.3f} {ratio(times, name, 'inflate'):10.2f}"
            f" {ratio(times, name, 'arrays'):10.2f}"
        )
    profile(case, rounds)
    suffix = "" if item.name == "chest CT" else "_" + item.name.replace(" ", "_").lower()
    wanted = {
        "vs_monai": ("MONAI", "arrays"), "vs_torchio": ("TorchIO", "arrays"),
        "arrays_vs_inflate": ("arrays", "inflate"), "case_vs_inflate": ("case", "inflate"),
    }  # fmt: skip
    return {
        name + suffix: {"value": round(ratio(times, *pair), 2), "unit": "times"}
        for name, pair in wanted.items()
        if pair[0] in times
    }


def tell_agreement(ours: HarmonizedVolume, theirs: np.ndarray) -> None:
    """Print how many slices MONAI keeps, and how far the masks agree where they are as many."""
    same = (
        [float((np.stack([s.mask for s in ours.slices]) == theirs).mean())] if len(theirs) == len(ours.slices) else []
    )
    print(f"MONAI keeps {len(theirs)}" + (f", {same[0]:.2%} of the mask pixels are ours" if same else ""))


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Median of the ratios of runs that stood beside each other."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def profile(program: Callable[[], object], rounds: int) -> None:
    """Print each stage's own CPU time in milliseconds: the median over some runs."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        with staged() as own:
            started = time.process_time()
            program()
            whole = time.process_time() - started
        for stage, seconds in own.items():
            found[stage].append(seconds)
        found["all else"].append(whole - sum(own.values()))
        found["case"].append(whole)
    print(
        "stage: "
        + " | ".join(f"{stage} {statistics.median(values) * 1e3:.1f}" for stage, values in found.items())
        + " ms"
    )


@contextmanager
def staged() -> Iterator[dict[str, float]]:
    """Let the functions of STAGES note their own time, without that of other stages called by them."""
    own = dict.fromkeys([*STAGES, "PNG"], 0.0)
    inner = [0.0]  # time of stages called by the stage that runs, innermost last

    def timed(stage: str, function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            started = time.process_time()
            inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - started
                own[stage] += spent - inner.pop()
                inner[-1] += spent

        return call

    before = [(module, name, getattr(module, name)) for pairs in STAGES.values() for module, name in pairs]
    before.append((case_file, "PNG", case_file.PNG))
    for stage, pairs in STAGES.items():
        for module, name in pairs:
            setattr(module, name, timed(stage, getattr(module, name)))
    png = case_file.PNG
    timed_png = replace(png, encode=timed("PNG", png.encode), encode_mask=timed("PNG", png.encode_mask))
    setattr(case_file, "PNG", timed_png)  # noqa: B010
    try:
        yield own
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def inputs(data: Path, scratch: Path) -> Iterator[Input]:
    """Make the inputs, as far as the real scans are there."""
    archive = data / "dicom" / "LUNG1-001.zip"
    if archive.is_file():
        image, affine = chest(archive, scratch / "dicom")
        lungs = largest_inside(image < -500)
        used = np.flatnonzero(lungs.any(axis=(1, 2)))
        first = int(used[max(0, (len(used) - LUNG_SLICES) // 2)])
        lungs[:first] = lungs[first + LUNG_SLICES :] = 0
        yield pair("chest CT", scratch, image, lungs, affine, "CT")
    brain = sorted((data / "brats").rglob("*-t1c.nii.gz"))
    if brain:
        source = nib.load(brain[0])
        image = np.asanyarray(source.dataobj).transpose(2, 1, 0)
        bright = (image > np.percentile(image[image > 0], 75)).astype(np.uint8)
        yield pair("brain MR", scratch, image, bright, source.affine, "MR")
        fractions = (image * np.float32(0.37)).astype(np.float32)  # no whole numbers, so their statistics need a sort
        yield pair("brain MR of fractions", scratch, fractions, bright, source.affine, "MR")
    heart = data / "acdc" / "database" / "training" / "patient001"
    if heart.is_dir():
        name = "patient001_frame01"
        case = a_case(heart, f"{name}.nii.gz", f"{name}_gt.nii.gz", "MR")
        yield Input("heart MR", case, load_collection("acdc"))
    image, label, affine = synthetic()
    yield pair("synthetic CT", scratch, image, label, affine, "CT")


def chest(archive: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the longest series of an archive: [z, row, column] HU, affine to RAS+ mm."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    reader = sitk.ImageSeriesReader()
    series = [
        reader.GetGDCMSeriesFileNames(str(place), uid)
        for place in {path.parent for path in folder.rglob("*.dcm")}
        for uid in reader.GetGDCMSeriesIDs(str(place))
    ]
    image = sitk.Cast(sitk.ReadImage(max(series, key=len)), sitk.sitkInt16)
    affine = np.diag([*image.GetSpacing(), 1.0])
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def largest_inside(mask: np.ndarray) -> np.ndarray:
    """The largest component that does not touch a picture's border."""
    ids = cc3d.connected_components(mask, connectivity=6)
    border = {*np.unique(ids[:, [0, -1]]), *np.unique(ids[:, :, [0, -1]])}
    n = np.bincount(ids.reshape(-1))
    n[list(border)] = 0
    return (ids == n.argmax()).astype(np.uint8)


def synthetic() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A phantom chest with noise at full size, and its lungs: [z, row, column] HU, label, affine."""
    phantom = synthesize("chest-ct", 0, 0)
    small = phantom.volumes["ct"]
    index = [((2 * np.arange(n) + 1) * m) // (2 * n) for n, m in zip(SYNTHETIC_SHAPE, small.shape, strict=True)]
    image = small[np.ix_(*index)].transpose(2, 1, 0)
    lungs = largest_inside(image < -500)
    image = np.rint(image + np.random.default_rng(0).normal(0, 12, image.shape)).astype(np.int16)
    scale = np.diag([*(np.array(small.shape) / SYNTHETIC_SHAPE), 1.0])
    return image, lungs, phantom.affine @ scale


def pair(name: str, folder: Path, image: np.ndarray, label: np.ndarray, affine: np.ndarray, modality: str) -> Input:
    """Write image and label [z, row, column] as .nii.gz and describe them as a case of a user's own collection."""
    stem = name.replace(" ", "_").lower()
    for what, voxels in (("image", image), ("label", label)):
        nib.save(
            nib.Nifti1Image(np.asfortranarray(voxels.transpose(2, 1, 0)), affine), folder / f"{stem}_{what}.nii.gz"
        )
    spec = replace(load_collection("acdc"), name="own", slice_axis="axial", spacing_from="affine", labels=OWN_LABELS)
    return Input(name, a_case(folder, f"{stem}_image.nii.gz", f"{stem}_label.nii.gz", modality), spec)


def a_case(root: Path, image: str, label: str, modality: str) -> Case:
    """A case as ingest would note it."""
    return Case(
        collection="own", case="one", group="own/one", modality=modality, region="chest", sequence="", official_split="",
        condition="own", layout="pairs", reader="volume", root=str(root), image=(image,), label=(label,), channel=-1,
        n_bytes=1, modified_ns=1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
