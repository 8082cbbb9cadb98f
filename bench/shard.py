"""Measure what shard and reshard take of time and memory as slices grow: a synthetic workspace of N and one of 2N slices.

    python bench/shard.py [--quick] [--slices N] [--workers W]

Pictures are 8 x 8 pixels, since the number of slices is what counts; N is half of the 438,905 slices of 8,325 cases that the
collections of the paper are expected to give. Each workspace is sharded by a process of its own, and the set that came of it made
into another order by a second one; their peak resident memory (that of their worker processes apart) the system reports. The last
line is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SLICES, SLICES_PER_CASE, SIDE = 219_453, 53, 8
TOML = """name = "bench"
title = "Bench"
region = "abdomen"
modality = "CT"
slice_axis = "axial"
case_names = "published"

[[layout]]
id = "all"
image = '(?P<case>.+)\\\\.nii$'
case = "{case}"
group = "{case}"

[[label]]
value = 1
id = 1
name = "organ"
"""
RECIPE = f'extends = "paper"\nname = "bench"\nside = {SIDE}\n'


def write_workspace(folder: Path, n_slices: int) -> None:
    """Cases of 53 slices as ingest and harmonize would leave them; their pictures are the same hundred but for a row."""
    from medvar_data.catalog.load import parse_collection
    from medvar_data.catalog.recipe import load_recipe
    from medvar_data.harmonize.dependencies import wanted_inputs
    from medvar_data.records import Case, HarmonizedVolume, Ingested
    from medvar_data.workspace.case_file import write_kept
    from medvar_data.workspace.workspace import Workspace

    workspace = Workspace(folder / "work")
    (folder / "bench.toml").write_text(RECIPE)
    recipe, spec = load_recipe(str(folder / "bench.toml")), parse_collection(TOML, "bench", own=True)
    cases = [
        Case("bench", f"c{n:06d}", f"bench/{n // 2}", "CT", "abdomen", "", "", "bench-ct", "all", "volume", "/data",
             (f"c{n}.nii",), (f"c{n}.nii",), -1, 1, n, 1, 1)
        for n in range(-(-n_slices // SLICES_PER_CASE))
    ]  # fmt: skip
    workspace.save_ingested(spec, TOML, Ingested("bench", tuple(cases), (), (), ()), own=True)
    slices = pictures()
    for number, case in enumerate(cases):
        n = min(SLICES_PER_CASE, n_slices - number * SLICES_PER_CASE)
        volume = HarmonizedVolume(
            harmonized_case(number, n), tuple(slices[(number + z) % len(slices)](z, number) for z in range(n))
        )
        write_kept(workspace.case_file(case), volume, case, wanted_inputs(case, spec, recipe))


def pictures() -> list:
    from medvar_data.records import HarmonizedSlice

    rng = np.random.default_rng(0)
    made = []
    for _ in range(100):
        image = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        mask = (image > 128).astype(np.uint8)
        n = int(mask.sum())
        made.append(
            lambda z, number, image=image, mask=mask, n=n: HarmonizedSlice(
                z, z, stamped(image, number, z), mask, SIDE**2, n, {1: n}
            )
        )
    return made


def stamped(image: np.ndarray, number: int, z: int) -> np.ndarray:
    """The picture with a first row of its own, so that no two cases are taken for copies."""
    image = image.copy()
    image[0] = list((number * 1000 + z).to_bytes(SIDE, "big"))
    return image


def harmonized_case(number: int, n_slices: int) -> object:
    from medvar_data.records import CaseMeasures, CaseStatistics, HarmonizedCase

    digest = f"{number:064x}"
    return HarmonizedCase(
        digest, digest, ("scaled",), (512, 512, n_slices), tuple(float(i) for i in range(16)), "LPS", "axial", 0.8, 0.8, 2.5,
        "window", -160.0, 240.0, -300.0, -1024.0, n_slices, n_slices, 0, 0, 1.0, {1: 0.5}, {1: 900.0}, (),
        CaseStatistics(-1024.0, 3000.0, float(number), 1.0, -1000.0, 0.0, 1000.0),
        CaseMeasures(512, 512, 1.0, 0.5, 1.0, 1.0, 0.1, 0.1, (9,) * 130, (1,) * 130, (9,) * 256, (1,) * 256),
    )  # fmt: skip


def child(folder: Path, what: str, workers: int) -> None:
    """Shard a workspace, or the set that came of it, in this process; print seconds, and the peaks before and after."""
    from medvar_data.catalog.recipe import load_recipe
    from medvar_data.shard.plan import ShardSpec
    from medvar_data.shard.reshard import ReshardSpec, reshard
    from medvar_data.shard.run import write_shards
    from medvar_data.storage.store import Store
    from medvar_data.workspace.workspace import Workspace

    spec, planned = ShardSpec(load_recipe(str(folder / "bench.toml"))), []
    shards, again = Store(str(folder / "shards")), Store(str(folder / "again"))
    before, started = peak_resident_bytes(), time.monotonic()

    def progress(_: object) -> None:
        planned.append((time.monotonic(), peak_resident_bytes()))

    if what == "shard":
        summary = write_shards(Workspace(folder / "work"), shards, spec, workers, progress)
    else:
        summary = reshard(shards, again, ReshardSpec(seed=1), workers, progress)
    note = {
        "slices": sum(summary.n_slices.values()), "cases": summary.n_cases, "seconds": time.monotonic() - started,
        "cpu": cpu_seconds(), "plan": planned[0][0] - started, "tables": time.monotonic() - planned[-1][0],
        "before": before, "peak_plan": planned[0][1], "peak": peak_resident_bytes(),
    }  # fmt: skip
    print(json.dumps(note))


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended: unlike wall time it says little of what else the machine does."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_resident_bytes() -> int:
    """Of this program alone; `getrusage` would count what its parent held when it forked."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(n_slices: int, workers: int) -> dict[str, dict[str, float]]:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        write_workspace(Path(name), n_slices)
        for what in ("shard", "reshard"):
            command = [sys.executable, __file__, "--child", name, "--what", what, "--workers", str(workers)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[what] = dict(json.loads(done.stdout))
            show(what, found[what])
    return found


def show(what: str, found: dict[str, float]) -> None:
    print(
        f"{what:7s} {found['slices']:9,d} slices of {found['cases']:,d} cases  {found['seconds']:6.1f} s (plan {found['plan']:.1f}, "
        f"tables {found['tables']:.1f})  {found['slices'] / found['seconds']:,.0f} slices/s  CPU {found['cpu']:.1f} s  "
        f"start {found['before'] / 1e6:.0f} MB  peak {found['peak'] / 1e6:.0f} MB (plan {found['peak_plan'] / 1e6:.0f})",
        flush=True,
    )


def figures_of(what: str, one: dict[str, float], two: dict[str, float]) -> dict[str, dict[str, object]]:
    return {
        f"{what}_slices": {"value": two["slices"], "unit": "slices"},
        f"{what}_speed": {"value": round(two["slices"] / two["seconds"]), "unit": "slices/s"},
        f"{what}_time": {"value": round(two["seconds"], 1), "unit": "s"},
        f"{what}_peak": {"value": round(two["peak"] / 1e6), "unit": "MB"},
        f"{what}_growth_of_peak": {"value": round((two["peak"] - one["peak"]) / 1e6), "unit": "MB"},
        f"{what}_time_2n_over_n": {"value": round(two["seconds"] / one["seconds"], 2), "unit": ""},
        f"{what}_cpu_2n_over_n": {"value": round(two["cpu"] / one["cpu"], 2), "unit": ""},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--what", default="shard")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.what, options.workers)
        return
    n_slices = 1_000 if options.quick else options.slices
    one, two = measure(n_slices, options.workers), measure(2 * n_slices, options.workers)
    figures: dict[str, dict[str, object]] = {}
    for what in one:
        figures |= figures_of(what, one[what], two[what])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
