"""Measure what harmonize takes of memory, and of time and disk: the constants behind `--memory` and `--dry-run`.

    python bench/memory.py [--quick] [--large] [--data FOLDER_OF_REAL_SCANS]

Each scan is harmonized in a process of its own, whose peak resident memory the system reports. `--large` adds the
512 x 512 x 1000 CT; `--data` runs the downloads found in a folder (acdc, msd, chaos, brats) and tells seconds a byte and
bytes written a voxel. The last line is one JSON object.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TOML = """name = "bench"
title = "Bench"
region = "abdomen"
modality = "{modality}"
slice_axis = "axial"
case_names = "published"

[[layout]]
id = "pairs"
image = '(?P<case>scan)_image\\.nii(?:\\.gz)?$'
label = '(?P<case>scan)_label\\.nii(?:\\.gz)?$'
pair_on = ["case"]
case = "{{case}}"
group = "{{case}}"

[[label]]
value = 1
id = 1
name = "organ"
"""
# name: modality, type as stored, whether labelled, whether packed
KINDS = {
    "CT int16": ("CT", "int16", True, False),
    "CT int16 .nii.gz": ("CT", "int16", True, True),
    "CT int16, no label": ("CT", "int16", False, False),
    "MR int16": ("MR", "int16", True, False),
    "MR float32": ("MR", "float32", True, False),
    "CT float64": ("CT", "float64", True, False),
}
SOURCES = ("acdc", "msd-hippocampus", "chaos", "brats2023")


def write_scan(folder: Path, n_slices: int, modality: str, dtype: str, labelled: bool, packed: bool) -> None:
    """A trunk with lungs and an organ, 512 x 512, noise everywhere; the organ is annotated in half of the slices."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:512, :512] / 511 - 0.5
    plane = np.where((rows / 0.35) ** 2 + (columns / 0.45) ** 2 <= 1, 40, -1000)
    plane[(rows / 0.2) ** 2 + ((np.abs(columns) - 0.2) / 0.12) ** 2 <= 1] = -800
    plane = plane if modality == "CT" else (plane + 1000) // 4
    noise = rng.integers(-20, 21, (512, 512)) * (1 if modality == "CT" else plane > 0)
    organ = ((rows + 0.05) / 0.15) ** 2 + ((columns - 0.1) / 0.2) ** 2 <= 1
    voxels = np.empty((512, 512, n_slices), dtype=dtype, order="F")
    label = np.zeros((512, 512, n_slices), dtype=np.uint8, order="F")
    for z in range(n_slices):
        voxels[:, :, z] = (plane + np.roll(noise, 7 * z, axis=0)).T + (0.25 if dtype.startswith("float") else 0)
        label[:, :, z] = organ.T if n_slices // 4 <= z < 3 * n_slices // 4 else 0
    affine = np.diag([0.8, 0.8, 1.0, 1.0])
    for name, array in (("image", voxels), ("label", label))[: 1 + labelled]:
        data = nib.Nifti1Image(array, affine).to_bytes()
        path = folder / f"scan_{name}.nii"
        if packed:
            path.with_suffix(".nii.gz").write_bytes(gzip.compress(data, 1))
        else:
            path.write_bytes(data)
    (folder / "bench.toml").write_text(TOML.format(modality=modality))


def child(folder: Path) -> None:
    """Ingest and harmonize one scan in this process; print the peaks before and after."""
    from medvar_data.catalog.recipe import load_recipe
    from medvar_data.harmonize.expect import peak_bytes
    from medvar_data.harmonize.run import run_harmonize
    from medvar_data.ingest.run import run_ingest
    from medvar_data.workspace.workspace import Workspace

    workspace = Workspace(folder / "work")
    list(run_ingest({str(folder / "bench.toml"): folder}, workspace))
    (case,) = workspace.cases("bench")
    before, started = peak_resident_bytes(), time.process_time()
    summary = run_harmonize(workspace, load_recipe("paper"), 1, lambda _: None)
    assert summary.n_kept == 1, summary
    note = {
        "before": before,
        "peak": peak_resident_bytes(),
        "seconds": time.process_time() - started,
        "voxels": case.n_voxels,
        "inflated": case.inflated_bytes,
        "expected": peak_bytes(case),
    }
    print(json.dumps(note))


def peak_resident_bytes() -> int:
    """Of this program alone; `getrusage` would count what its parent held when it forked."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(n_slices: int, modality: str, dtype: str, labelled: bool, packed: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        write_scan(Path(name), n_slices, modality, dtype, labelled, packed)
        done = subprocess.run([sys.executable, __file__, "--child", name], capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))


def show(name: str, n_slices: int, found: dict[str, float]) -> float:
    """Print a row; returns bytes a voxel beyond the start and the inflated files, the planner's constant."""
    beyond = (found["peak"] - found["before"] - found["inflated"]) / found["voxels"]
    print(
        f"{name:20s} {n_slices:5d} slices  before {found['before'] / 1e6:5.0f} MB  peak {found['peak'] / 1e6:6.0f} MB  "
        f"expected {found['expected'] / 1e6:6.0f} MB  beyond start and inflated files {beyond:5.1f} bytes a voxel  "
        f"{found['seconds']:5.1f} s"
    )
    return beyond


def real(data: Path, rate: float) -> dict[str, dict[str, object]]:
    """Harmonize real downloads with one process; what the workspace notes of them beside `rate`, seconds a byte."""
    from medvar_data.catalog.recipe import load_recipe
    from medvar_data.harmonize.expect import read_calibration
    from medvar_data.harmonize.run import run_harmonize
    from medvar_data.ingest.run import run_ingest
    from medvar_data.workspace.workspace import Workspace

    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name))
        list(run_ingest(dict.fromkeys(SOURCES, data), workspace))
        run_harmonize(workspace, load_recipe("paper"), 1, lambda _: None)
        known = read_calibration(workspace)
    fixed, written = known.seconds - rate * known.inflated_bytes, known.written_bytes / known.n_voxels
    print(
        f"{known.n_cases} real cases, {known.inflated_bytes / 1e6:.0f} MB inflated: {known.seconds:.2f} s, of which {fixed:.2f} s "
        f"are not explained by bytes; {written:.3f} bytes written a voxel"
    )
    return {
        "time_per_case": {"value": round(1000 * fixed / known.n_cases, 2), "unit": "ms"},
        "written_per_voxel": {"value": round(written, 4), "unit": "bytes"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    figures: dict[str, dict[str, object]] = {}
    n_slices = 40 if options.quick else 150
    found = {name: measure(n_slices, *kind) for name, kind in KINDS.items()}
    beyond = {name: show(name, n_slices, row) for name, row in found.items()}
    figures["start"] = {"value": round(max(r["before"] for r in found.values()) / 1e6), "unit": "MB"}
    figures["peak_over_expected"] = {
        "value": round(max(r["peak"] / r["expected"] for r in found.values()), 2),
        "unit": "",
    }
    figures["peak_beyond_inflated"] = {"value": round(max(beyond.values()), 1), "unit": "bytes a voxel"}
    if options.large:
        row = measure(1000, *KINDS["CT int16"])
        show("CT int16", 1000, row)
        figures["peak_512x512x1000_over_expected"] = {"value": round(row["peak"] / row["expected"], 2), "unit": ""}
        figures["peak_512x512x1000"] = {"value": round(row["peak"] / 1e9, 2), "unit": "GB"}
    rate = max(r["seconds"] / r["inflated"] for name, r in found.items() if name.startswith("CT int16"))
    figures["time_per_inflated_byte"] = {"value": round(1e9 * rate, 1), "unit": "ns"}
    if options.data:
        figures |= real(options.data, rate)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
