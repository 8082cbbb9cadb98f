"""Measure how surely `shard` finds a scan again that was changed, and whether it ever takes two scans for one.

    python bench/duplicates.py --data FOLDER_OF_REAL_SCANS [--quick] [--half report|tuning] [--join N]

Reads ACDC, MSD Task04, BraTS and the other NIfTI files of a folder laid out as they are published. Each scan is changed in memory:
laid in another of 48 ways, cropped along its slices, resampled, shifted, windowed to 8 bits, mapped by a rising curve,
stored in other steps, its spacing overwritten, and by two to four of these at once; `all` counts these. Beyond them (`across`), slices
are cropped or padded in their own plane by up to 8 % a side. A changed copy is found where it or its original
names the other as a candidate, among all scans of the folder and a crowd of synthetic ones, and the proof on their voxels holds. Every two
different scans of the folder are compared as look-alikes, whether a candidate or not. Thresholds were chosen on the half `tuning`
(by a hash of the scan's name); `report` holds the others. `--join N` times the whole search over N synthetic scans. The last line is one JSON object.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medvar_data.harmonize.histogram import count, is_countable
from medvar_data.harmonize.signature import make_thumbnail
from medvar_data.shard.near_duplicates.candidates import describe, find_candidates
from medvar_data.shard.near_duplicates.fit import Prepared
from medvar_data.shard.near_duplicates.parts import sample
from medvar_data.shard.near_duplicates.proof import compare

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
CT_WINDOWS = ((-160, 240), (-450, 1050), (-1000, 1000), (-200, 300), (-1350, 150))
MR_PERCENTILES = ((0.5, 99.5), (0, 99.9), (2, 98), (1, 99))
# Two scans of the folder are one: the mask of the files that says so keeps them from counting as look-alikes.
SAME = (("mt0", "t1w"), ("example_ct", "example_ct_sm"), ("t2s", "t2s_uncropped"))
NO_IMAGES = ("seg", "centerline", "label", "mask", "msk", "gt", "otmulticlass", "models/")


def read_scans(folder, quick):
    """Voxels and spacing of each volume, by name."""
    found = {}
    paths = [p for p in sorted(folder.rglob("*.nii.gz")) if not p.name.startswith(".")]
    for path in paths:
        name = str(path.relative_to(folder)).lower()
        if any(word in name.replace("ct_cropped", "") for word in NO_IMAGES) and "ct_cropped" not in name:
            continue
        image = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
        frames = voxels[..., ::7] if voxels.ndim == 4 else voxels[..., None]
        for number in range(frames.shape[3]):
            key = f"{path.parent.name}/{path.name}#{number}"
            found[key] = whole_numbers(frames[..., number]), tuple(map(float, image.header.get_zooms()[:3]))
    for archive in sorted(folder.rglob("*.nrrd")):
        if "image" in archive.name:
            image = sitk.ReadImage(str(archive))
            found[archive.name] = whole_numbers(sitk.GetArrayFromImage(image).transpose(2, 1, 0)), image.GetSpacing()
    return dict(list(found.items())[:: 12 if quick else 1])


def whole_numbers(voxels):
    rounded = np.rint(voxels)
    if np.abs(voxels - rounded).max() < 1e-3 and np.abs(voxels).max() < 32_000:
        return rounded.astype(np.int16)
    return voxels.astype(np.float32)


def thumbnail(voxels):
    stack = np.ascontiguousarray(voxels.transpose(2, 1, 0))
    return make_thumbnail(stack, count(stack) if is_countable(stack.dtype) else None)


def lay(voxels, spacing, rng):
    axes, steps = ORIENTATIONS[rng.integers(1, 48)]
    return voxels.transpose(axes)[tuple(slice(None, None, s) for s in steps)], tuple(spacing[a] for a in axes)


def through(spacing):
    return int(np.argmax(spacing)) if max(spacing) > 1.01 * min(spacing) else 2


def crop(voxels, spacing, rng):
    """Up to ten slices off each end, half of the slices at most."""
    axis = through(spacing)
    n = voxels.shape[axis]
    lost = int(rng.integers(1, min(20, n // 2) + 1))
    below = int(rng.integers(max(0, lost - 10), min(10, lost) + 1))
    return voxels.take(range(below, n - lost + below), axis=axis), spacing


def across(voxels, spacing, rng):
    """Up to 8 % off each side of a slice, or added to it."""
    for axis in {0, 1, 2} - {through(spacing)}:
        for at_end in (False, True):
            n = round(rng.uniform(-0.08, 0.08) * voxels.shape[axis])
            if n > 0:
                voxels = voxels.take(range(0 if at_end else n, voxels.shape[axis] - (n if at_end else 0)), axis=axis)
            else:
                pad = [((0, -n) if at_end else (-n, 0)) if k == axis else (0, 0) for k in range(3)]
                voxels = np.pad(voxels, pad, constant_values=voxels.min())
    return voxels, spacing


def resample(voxels, spacing, rng):
    """To 1 or 1.5 mm, to another isotropic grid, or to steps that are 0.7 to 1.6 times as large."""
    mean = float(np.exp(np.mean(np.log(spacing))))
    isotropic = 1.0 if max(spacing) > 1.2 or min(spacing) < 0.9 else 1.5
    kinds = ([isotropic] * 3, [mean * rng.uniform(0.9, 1.3)] * 3, [s * rng.uniform(0.7, 1.6) for s in spacing])
    wanted = kinds[rng.integers(3)]
    shape = [max(4, round(n * s / w)) for n, s, w in zip(voxels.shape, spacing, wanted, strict=True)]
    while np.prod(shape) > 2e7:
        shape = [max(4, int(n * 0.8)) for n in shape]
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)).astype(np.float32))
    steps = [n / m for n, m in zip(voxels.shape, shape, strict=True)]
    if rng.integers(2) and max(steps) > 1.2:
        image = sitk.SmoothingRecursiveGaussian(image, [max(0.4 * s if s > 1.2 else 0, 1e-3) for s in steps])
    how = (sitk.sitkLinear, sitk.sitkBSpline)[rng.integers(2)]
    start = [(s - 1) / 2 for s in steps]
    made = sitk.Resample(
        image, shape, sitk.Transform(), how, start, steps, np.eye(3).ravel().tolist(), float(voxels.min())
    )
    found = sitk.GetArrayFromImage(made).transpose(2, 1, 0)
    if voxels.dtype.kind == "i":
        found = np.rint(np.clip(found, -32_768, 32_767)).astype(voxels.dtype)
    return found, tuple(s * step for s, step in zip(spacing, steps, strict=True))


def shift(voxels, spacing, rng):
    values = voxels.astype(np.float32)
    kinds = (
        values + 1024,
        values * np.float32(rng.uniform(0.3, 4)) + np.float32(rng.uniform(-500, 500)),
        values - values.min(),
    )
    return kinds[rng.integers(3)], spacing


def window(voxels, spacing, rng):
    values = voxels.astype(np.float32)
    if values.min() < -500 and values.max() > 300:
        low, high = CT_WINDOWS[rng.integers(len(CT_WINDOWS))]
    else:
        low, high = np.percentile(values, MR_PERCENTILES[rng.integers(len(MR_PERCENTILES))])
    low, high = (low, high) if high > low else (values.min(), values.max())
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8), spacing


def curve(voxels, spacing, rng):
    values = voxels.astype(np.float32)
    share = (values - values.min()) / (values.max() - values.min())
    return (share ** np.float32(rng.uniform(0.4, 2.2)) * 4000).astype(np.float32), spacing


def encode(voxels, spacing, rng):
    values = voxels.astype(np.float32)
    levels = (1023, 4095, 30_000)[rng.integers(3)]
    return np.rint((values - values.min()) / (values.max() - values.min()) * levels).astype(np.int16), spacing


def overwrite(voxels, spacing, rng):
    factor = rng.uniform(0.4, 2.5)
    kinds = ((1.0, 1.0, 1.0), (1.0, 1.0, 5.0), tuple(reversed(spacing)), (*spacing[:2], spacing[2] * factor))
    return voxels, kinds[rng.integers(4)]


KINDS = {f.__name__: f for f in (lay, crop, resample, shift, window, curve, encode, overwrite)}
ACROSS = {"across": across}  # beyond what has to be found: parts of the slices themselves are missing, or were added


def changed(voxels, spacing, kind, rng):
    names = [kind]
    if kind.startswith("combined"):
        names = [str(n) for n in rng.choice(list(KINDS), size=rng.integers(2, 5), replace=False)]
        names += ["across"] * kind.endswith("across")
        if "window" in names and "shift" in names:  # the windows are of HU
            names.remove("shift")
    for name in names:
        voxels, spacing = (KINDS | ACROSS)[name](voxels, spacing, rng)
    return thumbnail(voxels), "+".join(names)


def make_positives(job):
    name, (voxels, spacing), number, combined = job
    rng = np.random.default_rng([number, 14])
    kinds = [*KINDS, *["combined"] * combined, *ACROSS, "combined across"]
    return [(name, kind, *changed(voxels, spacing, kind, rng)) for kind in kinds]


def make_crowd_member(real, rng):
    """A thumbnail like a real one: parts of two of one collection blended, warped, with noise."""
    names = sorted(real)
    name = names[rng.integers(len(names))]
    shape = real[name].shape
    relatives = [other for other in names if other[:6] == name[:6]]
    boxes = [np.array([[rng.uniform(-0.05, 0.12), 1 - rng.uniform(-0.05, 0.12)] for _ in range(3)]) for _ in range(2)]
    first, second = (
        sample(real[n].astype(np.float32), shape, box)
        for n, box in zip((name, relatives[rng.integers(len(relatives))]), boxes, strict=True)
    )
    smooth = [
        cv2.resize(rng.normal(0, 1, (4, 4)).astype(np.float32), shape[:0:-1], interpolation=cv2.INTER_CUBIC)
        for _ in range(3)
    ]
    share = np.clip(smooth[0] * 0.5, 0, 1)
    rows, columns = (grid.astype(np.float32) for grid in np.indices(shape[1:]))
    maps = columns + smooth[1] * 0.04 * shape[2], rows + smooth[2] * 0.04 * shape[1]
    blended = first * (1 - share) + second * share + rng.normal(0, 5, shape).astype(np.float32)
    warped = [cv2.remap(plane, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for plane in blended]
    return np.clip(np.rint(np.stack(warped)), 0, 255).astype(np.uint8)


def found_as_candidates(original, crowd, copies):
    """Of each copy, whether it or its original names the other among the others, the copies being put in one at a time of each original."""
    names = sorted(original)
    base = [describe(original[n]) for n in names] + crowd
    by_round = {}
    seen = Counter()
    for number, copy in enumerate(copies):
        by_round.setdefault(seen[copy[0]], []).append(number)
        seen[copy[0]] += 1
    found = set()
    for numbers in by_round.values():
        rows = np.stack([*base, *(describe(copies[n][2]) for n in numbers)])
        pairs = set(find_candidates(rows, np.arange(len(rows))))
        found |= {n for place, n in enumerate(numbers, len(base)) if (names.index(copies[n][0]), place) in pairs}
    return found


def _prove(job):
    a, b = job
    return compare(Prepared.of(a), Prepared.of(b))


def measure_recall(scans, real, half, crowd, pool, combined):
    chosen = {"tuning": 0, "report": 1}
    names = [n for n in sorted(scans) if half == "all" or hashlib.sha256(n.encode()).digest()[0] % 2 == chosen[half]]
    jobs = [(name, scans[name], sorted(scans).index(name), combined) for name in names]
    copies = [copy for some in pool.imap(make_positives, jobs) for copy in some]
    proved = [likeness.is_one_scan for likeness in pool.imap(_prove, ((real[c[0]], c[2]) for c in copies), 8)]
    candidates = found_as_candidates(real, crowd, copies)
    total, found = Counter(), Counter()
    for number, (name, kind, _, how) in enumerate(copies):
        for key in (kind, "beyond" if kind.endswith("across") else "all"):
            total[key] += 1
            found[key] += proved[number] and number in candidates
        if not (proved[number] and number in candidates):
            print("lost:", name, how, "not a candidate" if number not in candidates else "not proved")
    return {kind: {"copies": n, "found": found[kind], "recall": round(found[kind] / n, 4)} for kind, n in total.items()}


def measure_look_alikes(real, pool):
    pairs = [(a, b) for a, b in itertools.combinations(sorted(real), 2) if not are_same(a, b)]
    found = list(pool.imap(_prove, ((real[a], real[b]) for a, b in pairs), 64))
    merged = [pair for pair, likeness in zip(pairs, found, strict=True) if likeness.is_one_scan]
    near = sorted(zip(found, pairs, strict=True), key=lambda entry: -entry[0].weakest)[:5]
    for likeness, pair in near:
        print("nearest:", *pair, f"weakest blocks {likeness.weakest:.3f}, median {likeness.middle:.3f}")
    print("merged:", merged)
    return {"pairs": len(pairs), "merged": len(merged), "nearest_weakest": round(near[0][0].weakest, 4)}


def are_same(a, b):
    stems = {name.split("/")[-1].split(".")[0] for name in (a, b)}
    same_place = a.split("/")[0] == b.split("/")[0]
    return same_place and any(stems == set(pair) for pair in SAME)


def measure_join(real, n):
    """Seconds to join n scans, of which every fifth is a copy of another one."""
    from medvar_data.shard.near_duplicates.search import near_pairs

    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in range(n):
            if number % 5 == 4:
                one = np.load(files[int(rng.integers(len(files)))])
                made = one.transpose(2, 0, 1)[::-1, :, : max(4, int(one.shape[1] * 0.9))]
            else:
                made = make_crowd_member(real, rng)
            path = Path(folder) / f"{number}.npy"
            np.save(path, made)
            files.append(path)
        start = time.perf_counter()
        found = list(near_pairs(files, np.arange(n), 2, read=np.load))
        return {"scans": n, "seconds": round(time.perf_counter() - start, 1), "pairs": len(found)}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--half", choices=("tuning", "report", "all"), default="report")
    options.add_argument("--crowd", type=int, default=500)
    options.add_argument("--join", type=int, default=0)
    asked = options.parse_args()
    cv2.setNumThreads(1)
    scans = read_scans(asked.data, asked.quick)
    real = {name: thumbnail(voxels) for name, (voxels, _) in scans.items()}
    print(len(scans), "scans", flush=True)
    result = {}
    with multiprocessing.Pool(2) as pool:
        rng = np.random.default_rng(5)
        crowd = [describe(make_crowd_member(real, rng)) for _ in range(asked.crowd)]
        result["recall"] = measure_recall(scans, real, asked.half, crowd, pool, 1 if asked.quick else 6)
        print(json.dumps(result), flush=True)
        result["look_alikes"] = measure_look_alikes(real, pool)
    if asked.join:
        result["join"] = measure_join(real, asked.join)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
