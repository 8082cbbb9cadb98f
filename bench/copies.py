"""How long the search for copies takes among as many slices as the paper has, on made-up descriptors.

    python bench/copies.py [--slices 438905] [--samples 10000] [--measured 1024] [--quick]

Descriptors and thumbnails are random numbers of the right shapes in flat files, as an audit leaves them. `measured` samples are
searched and matched; the time of all is that times samples / measured, for samples are taken a block at a time and each costs the
same. What describing samples and slices by the network takes is not in it. The last line is one JSON object of figures.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from medvar_model.evaluation.copies.index import COMPONENTS, Index, _best_of_patients, search
from medvar_model.evaluation.copies.match import FLIPS, SIDE, best_scores, spectra, turned_spectra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=438_905)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--measured", type=int, default=1024)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.slices, args.measured = 20_000, 64
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        index = made_up(Path(folder), args.slices, draw)
        queries = draw.normal(size=(args.measured * len(FLIPS), COMPONENTS)).astype(np.float32)
        begun, used = time.monotonic(), time.process_time()
        found = {name: search(rows, queries) for name, rows in index.vectors.items()}
        searched = time.monotonic() - begun
        thumbs = draw.integers(0, 256, (args.measured, SIDE, SIDE)).astype(np.uint8)
        matched(index, found, thumbs, args.measured)
        seconds, cpu = time.monotonic() - begun, time.process_time() - used
    share = args.samples / args.measured
    figures = {
        "slices": args.slices, "samples": args.samples, "measured": args.measured,
        "search_minutes": round(searched * share / 60, 2), "all_minutes": round(seconds * share / 60, 2),
        "cpu_minutes": round(cpu * share / 60, 2), "files_mb": round(args.slices * (4 * COMPONENTS + SIDE**2) / 1e6),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip
    print(json.dumps(figures))


def made_up(folder: Path, n: int, draw: np.random.Generator) -> Index:
    """Write files of random numbers and open them."""
    vectors = {}
    for name in ("learned", "spectrum"):
        rows = np.memmap(folder / name, np.float16, "w+", shape=(n, COMPONENTS))
        for start in range(0, n, 65_536):
            part = rows[start : start + 65_536]
            part[:] = draw.standard_normal(part.shape, dtype=np.float32) / COMPONENTS**0.5
        vectors[name] = rows
    thumbs = np.memmap(folder / "thumbs", np.uint8, "w+", shape=(n, SIDE, SIDE))
    for start in range(0, n, 65_536):
        thumbs[start : start + 65_536] = draw.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    return Index([""] * n, np.arange(n) // 60, vectors, thumbs)


def matched(index: Index, found: dict, thumbs: np.ndarray, n: int) -> None:
    """Choose candidates and match them, as the audit does."""
    turned = turned_spectra(thumbs)
    for i in range(n):
        places, flips = [], []
        for values, where in found.values():
            flip = np.repeat(np.arange(len(FLIPS)), values.shape[1])
            for at in _best_of_patients(values[i::n].ravel(), index.patients[where[i::n].ravel()]):
                places.append(where[i::n].ravel()[at])
                flips.append(flip[at])
        best_scores(turned[i], spectra(np.asarray(index.thumbs[places])), np.array(flips))


if __name__ == "__main__":
    main()
