"""Put our slices beside MONAI's on real scans: same steps, pixel difference, and where it comes from.

    python bench/monai_parity.py [--data ../shared/real] [--out pictures] [--quick]

For one case each of ACDC, MSD hippocampus, CHAOS CT and BraTS it prints the difference after each step and writes a
picture: source slice, our slice, our slice with its mask, MONAI's slice, and the difference times eight.
The last line is one JSON object of figures.
"""

import argparse
import json
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, Resize, ScaleIntensityRange

from medvar_data.audit.contact_sheets import grid, outlined
from medvar_data.catalog.load import load_collection
from medvar_data.catalog.recipe import Recipe, load_recipe
from medvar_data.geometry import canonical, plan_slices, resize_image, slices_first
from medvar_data.harmonize.body import fit_body
from medvar_data.harmonize.harmonize import harmonize
from medvar_data.harmonize.intensity import NORMALIZERS, apply_intensity
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.records import Case
from medvar_data.sources.tree import open_tree

CASES = {"acdc": "acdc", "msd-hippocampus": "msd", "chaos": "chaos", "brats2023": "brats"}


@dataclass(frozen=True)
class Parity:
    """Differences on one case; grey levels of 0..255, mean and share above 2 over all kept slices."""

    collection: str
    slices: int
    canonical_equal: bool  # voxels after reorientation
    resize_mean: float  # resampling and windowing alone, no cleanup of ours
    resize_over2: float
    full_mean: float  # everything
    full_over2: float
    mask_differs: float  # share of mask pixels
    ours_s: float
    monai_s: float


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/real"))
    parser.add_argument("--out", type=Path, default=None, help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="leave out the DICOM case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if not args.data.is_dir():
        print(f"no real scans at {args.data}; nothing to compare")
        print(json.dumps({}))
        return
    names = [n for n in CASES if not (args.quick and n == "chaos")]
    rows = [compare(n, args.data / CASES[n], args.out) for n in names]
    print(f"{'case':16} slices  same voxels  resize: mean >2     full: mean >2      mask    ours s  MONAI s")
    for r in rows:
        print(
            f"{r.collection:16} {r.slices:6} {r.canonical_equal!s:>12} {r.resize_mean:12.3f} {r.resize_over2:6.2%}"
            f" {r.full_mean:10.3f} {r.full_over2:6.2%} {r.mask_differs:8.3%} {r.ours_s:8.2f} {r.monai_s:8.2f}"
        )
    print(
        json.dumps(
            {f"{r.collection}_mean_grey_difference": {"value": r.full_mean, "unit": "grey levels"} for r in rows}
        )
    )


def compare(name: str, folder: Path, out: Path | None) -> Parity:
    """Harmonize one case with both and compare."""
    spec, recipe = load_collection(name), load_recipe("paper")
    case = next(c for c in ingest(spec, open_tree(folder), b"").cases if c.label or name == "brats2023")
    started = time.perf_counter()
    scan = read_scan(case, spec)
    volume = harmonize(scan, case, spec, recipe)
    ours_s = time.perf_counter() - started
    plan = plan_slices(scan.image.geometry, spec.slice_axis)
    stack = slices_first(canonical(scan.image.voxels, plan), plan.axis)
    params = NORMALIZERS[volume.case.normalizer](stack, recipe)
    started = time.perf_counter()
    loaded = monai_volume(case)
    theirs = monai_slices(loaded, params.low, params.high, recipe, plan.axis)
    monai_s = time.perf_counter() - started
    oriented = slices_first(loaded[0].astype(np.float32), plan.axis)
    kept = [s.z for s in volume.slices]
    plain = np.stack([apply_intensity(resize_image(stack[z].astype(np.float32), recipe.side), params) for z in kept])
    ours = np.stack([s.image for s in volume.slices])
    mine, other = ours.astype(int), np.rint(theirs[kept]).astype(int)
    mask_differs = 0.0
    if case.label and name != "chaos":
        labels = slices_first(monai_volume(case, label=True)[0], plan.axis)
        theirs_mask = np.stack([_nearest_exact(labels[z], recipe.side) for z in kept])
        mask_differs = float((theirs_mask != np.stack([s.mask for s in volume.slices])).mean())
    if out:
        z = len(kept) // 2
        source = apply_intensity(np.ascontiguousarray(stack[kept[z]]), params)
        threshold = fit_body(np.ascontiguousarray(stack), case.modality, recipe).threshold
        picture(out / f"{name}.png", source, volume.slices[z].image, volume.slices[z].mask, other[z])
        print(
            f"{name}: foreground above {threshold:.0f}, {volume.case.removed_body_mm3 / 1000:.0f} mL of it taken as spurious"
        )
    return Parity(
        collection=name,
        slices=len(kept),
        canonical_equal=bool(np.array_equal(oriented, stack.astype(np.float32))),
        resize_mean=float(np.abs(plain.astype(int) - other).mean()),
        resize_over2=float((np.abs(plain.astype(int) - other) > 2).mean()),
        full_mean=float(np.abs(mine - other).mean()),
        full_over2=float((np.abs(mine - other) > 2).mean()),
        mask_differs=mask_differs,
        ours_s=ours_s,
        monai_s=monai_s,
    )


def monai_volume(case: Case, *, label: bool = False) -> np.ndarray:
    """Load with MONAI and bring to RAS: [1, R, A, S]."""
    paths = case.label if label else case.image
    with tempfile.TemporaryDirectory() as scratch:
        if case.reader == "dicom_png":  # MONAI reads no archives: unpack for it
            archive = paths[0].split("!/")[0]
            with zipfile.ZipFile(Path(case.root) / archive) as file:
                for path in paths:
                    (Path(scratch) / Path(path).name).write_bytes(file.read(path.split("!/")[1]))
            source, reader = scratch, "PydicomReader"
        else:
            source, reader = str(Path(case.root) / paths[0]), "NibabelReader"
        steps = Compose(
            [LoadImage(image_only=True, reader=reader), EnsureChannelFirst(), Orientation(axcodes="RAS", labels=None)]
        )
        return np.asarray(steps(source))


def monai_slices(volume: np.ndarray, low: float, high: float, recipe: Recipe, axis: int) -> np.ndarray:
    """Resize every slice with MONAI (area to shrink, bilinear to enlarge) and scale to 0..255 by the same bounds."""
    stack = np.ascontiguousarray(slices_first(volume[0].astype(np.float32), axis))
    shrinks = max(stack.shape[1:]) > recipe.side
    steps = Compose([
        Resize((recipe.side, recipe.side), mode="area" if shrinks else "bilinear"),
        ScaleIntensityRange(low, high, 0, 255, clip=True),
    ])  # fmt: skip
    return np.stack([np.asarray(steps(picture[None]))[0] for picture in stack])


def picture(path: Path, source: np.ndarray, ours: np.ndarray, mask: np.ndarray, theirs: np.ndarray) -> None:
    """Write source, ours, ours with mask, MONAI's, and eight times the difference, side by side."""
    side = ours.shape[0]
    height, width = source.shape
    scale = side / max(height, width)
    shown = np.zeros((side, side), dtype=np.uint8)
    small = cv2.resize(source, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    shown[: small.shape[0], : small.shape[1]] = small
    difference = np.minimum(255, np.abs(ours.astype(int) - theirs) * 8).astype(np.uint8)
    none = np.zeros_like(mask)
    tiles = [
        outlined(p, m)
        for p, m in ((shown, none), (ours, none), (ours, mask), (theirs.astype(np.uint8), none), (difference, none))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), grid(tiles))


def _nearest_exact(mask: np.ndarray, side: int) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(mask).astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, (side, side), mode="nearest-exact")[0, 0].numpy().astype(np.uint8)


if __name__ == "__main__":
    main()
