"""How fast `ingest` goes through a tree of many small cases, beside a bare loop that only reads the headers with nibabel.

    python bench/ingest.py [--quick] [--cases 10000] [--runs 3]

Writes an image and a label (.nii.gz) a case into a temporary folder, then alternates between the loop (list the tree, open
each file with nibabel, take shape, affine and zooms) and `ingest` (match, pair, check every header, make the rows). One process
each. A second loop reads no more than each file's first 540 bytes: the floor that the disk and gzip set. Prints a table and, as
its last line, one JSON object.
"""

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.load import parse_collection
from medvar_data.ingest.find_cases import ingest
from medvar_data.sources.tree import open_tree

TOML = """name = "many"
title = "Many small cases"
region = "abdomen"
modality = "CT"
slice_axis = "axial"
license = "none"

[[layout]]
id = "all"
image = '(?:^|/)imagesTr/(?P<case>case_\\d+)_0000\\.nii\\.gz$'
label = '(?:^|/)labelsTr/(?P<case>case_\\d+)\\.nii\\.gz$'
pair_on = ["case"]
case = "{case}"
group = "{case}"

[[label]]
value = 1
id = 1
name = "organ"
"""
SHAPE = (24, 24, 12)


def write_tree(root: Path, n_cases: int) -> None:
    """Write the cases; contents repeat, since only headers are read."""
    rng = np.random.default_rng(0)
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    image = gzip.compress(nib.Nifti1Image(rng.integers(-1000, 1000, SHAPE).astype(np.int16), affine).to_bytes(), 1)
    label = gzip.compress(nib.Nifti1Image(rng.integers(0, 2, SHAPE).astype(np.uint8), affine).to_bytes(), 1)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for number in range(n_cases):
        (root / "imagesTr" / f"case_{number:05d}_0000.nii.gz").write_bytes(image)
        (root / "labelsTr" / f"case_{number:05d}.nii.gz").write_bytes(label)


def bare_loop(root: Path) -> int:
    """Read every header as anybody would."""
    seen = 0
    for path in sorted(root.rglob("*.nii.gz")):
        image = nib.load(path)
        _, _, _ = image.shape, image.affine, image.header.get_zooms()
        seen += 1
    return seen // 2


def first_bytes(root: Path) -> int:
    """Read 540 bytes a file, parse nothing."""
    seen = 0
    for path in sorted(root.rglob("*.nii.gz")):
        with gzip.open(path) as stream:
            seen += len(stream.read(540)) == 540
    return seen // 2


def ours(root: Path, spec: CollectionSpec) -> int:
    """List, match, pair and check."""
    return len(ingest(spec, open_tree(root), b"salt").cases)


def timed(work: Callable[[], int], n_cases: int) -> float:
    """Cases per second."""
    started = time.perf_counter()
    found = work()
    if found != n_cases:
        raise SystemExit(f"found {found} of {n_cases} cases")
    return n_cases / (time.perf_counter() - started)


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2,000 cases")
    options = parser.parse_args()
    n_cases = 2_000 if options.quick else options.cases
    spec = parse_collection(TOML, "bench")
    rates: dict[str, list[float]] = {"bare nibabel loop": [], "first 540 bytes": [], "medvar ingest": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tree(root, n_cases)
        bare_loop(root)  # warms the page cache for all
        for _ in range(options.runs):
            rates["bare nibabel loop"].append(timed(lambda: bare_loop(root), n_cases))
            rates["first 540 bytes"].append(timed(lambda: first_bytes(root), n_cases))
            rates["medvar ingest"].append(timed(lambda: ours(root, spec), n_cases))
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in median.items():
        print(f"{name:20} {rate:8,.0f} cases/s   {rate / median['bare nibabel loop']:.2f} of the bare loop")
    ratios = [a / b for a, b in zip(rates["medvar ingest"], rates["bare nibabel loop"], strict=True)]
    figures = {
        "ingest_vs_bare_loop": {"value": round(statistics.median(ratios), 3), "unit": "ratio"},
        "ingest_rate": {"value": round(median["medvar ingest"]), "unit": "cases/s"},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
