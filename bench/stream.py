"""How fast medvar streams slices and masks, beside decoding alone, webdataset, litdata and mosaicml-streaming.

    python bench/stream.py [--workspace W | --shards S] [--peer-python PATH] [--peer-python litdata=PATH] [--remote] [--quick]

Every rival reads image and mask of each training slice once an epoch, shuffled, as uint8 arrays in batches of 64. `W` is a workspace
harmonized by the recipe `paper`, `S` a shard set of codec png (then writing it is not timed); phantoms where neither is given. A peer
is measured where an interpreter is named that has it. It stores PNGs twice: as cv2 writes them for most users (level 1, run lengths),
and the very bytes of our shards (`_same_png`). Each rival is a process of its own, on one core without workers, and on two cores
with two; rounds alternate between all of them, and a ratio is the median over rounds. The last line is one JSON object of figures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from stream_peers import PEERS
from stream_sets import large_index, repack

from medvar_data.shardset.dataset import read_dataset
from medvar_data.storage.store import Store

HERE = Path(__file__).parent
SLICES_OF_THE_PAPER = 438_905
SMALL_SHARD = 64  # slices, in the remote set
SAME = "_same_png"
PARTS = ("one-core", "two-cores", "index")
Figures = dict[str, dict[str, object]]
Rates = dict[str, list[float]]  # slices a second in each round


@dataclass(frozen=True)
class Rival:
    """A program that reads the slices: what its process is asked to do, and by which interpreter."""

    name: str
    script: str
    request: Mapping[str, object]
    python: str = sys.executable


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    scratch: Path
    cores: list[int]
    rounds: int
    figures: Figures

    def note(self, name: str, value: float, unit: str, digits: int = 2) -> None:
        self.figures[name] = {"value": round(value, digits), "unit": unit}

    def once(self, rival: Rival, **request: object) -> dict:
        """Let a process do one thing on the first core; returns its answer."""
        done = self.scratch / f"{Path(str(request['out'])).name}.json" if "out" in request else None
        if done and done.exists():  # made by an earlier run in this folder
            return json.loads(done.read_text())
        with self.started(rival, {"cores": self.cores[:1], **request}) as process:
            answer = answer_of(process, rival, self.scratch)
        if done:
            done.write_text(json.dumps(answer))
        return answer

    @contextmanager
    def started(self, rival: Rival, request: Mapping[str, object]) -> Iterator[subprocess.Popen]:
        text = json.dumps({**rival.request, **request})
        command = [rival.python, str(HERE / rival.script), "--child", text]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "ERROR"}
        pipe = subprocess.PIPE
        with (
            (self.scratch / f"{rival.name}.log").open("w") as log,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=env) as process,
        ):
            try:
                yield process
            finally:
                process.stdin.close()
                process.wait(60)


def answer_of(process: subprocess.Popen, rival: Rival, scratch: Path) -> dict:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{rival.name} failed:\n{(scratch / f'{rival.name}.log').read_text()[-2000:]}")
    return json.loads(line)


def race(bench: Bench, rivals: list[Rival], workers: int) -> dict[str, Rates]:
    """Let all rivals read an epoch in turns, in every round another one first; rates by the clock and by CPU time."""
    file = bench.scratch / f"rounds_{rivals[0].name}_{workers}.json"
    rates = earlier_rounds(file, rivals)
    cores = bench.cores[: max(1, workers)]
    with ExitStack() as stack:
        running = []
        for rival in rivals:
            process = stack.enter_context(bench.started(rival, {"workers": workers, "cores": cores}))
            answer_of(process, rival, bench.scratch)  # the warm-up is over
            running.append((rival, process))
        for number in range(bench.rounds):
            turn = number % len(running)
            for rival, process in running[turn:] + running[:turn]:
                process.stdin.write("epoch\n")
                process.stdin.flush()
                found = answer_of(process, rival, bench.scratch)
                for what, of in rates.items():
                    of[rival.name].append(found["slices"] / found[what])
            file.write_text(json.dumps(rates))
    return rates


def earlier_rounds(file: Path, rivals: list[Rival]) -> dict[str, Rates]:
    """The rounds that a run of the same rivals left in the kept folder."""
    names = [rival.name for rival in rivals]
    if file.exists() and list((rates := json.loads(file.read_text()))["seconds"]) == names:
        return rates
    return {what: {name: [] for name in names} for what in ("seconds", "cpu")}


def compare(bench: Bench, rates: Rates, suffix: str) -> None:
    """Note each rival's rate and the ratios of the rounds, and print them."""
    print(f"\nslices a second{suffix.replace('_', ' ') or ' on one core'}, {len(next(iter(rates.values())))} rounds")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"  {name:22s} {middle:8.0f}   rounds {min(found):.0f} to {max(found):.0f}")
        bench.note(f"{name}_rate{suffix}", middle, "slices/s", 0)
    if "decode_only" in rates:
        bench.note(f"png_vs_decode_only{suffix}", ratio(rates["medvar_png"], rates["decode_only"]), "times")
        bench.note(f"fast_vs_decode_only{suffix}", ratio(rates["medvar_zstd"], rates["decode_only"]), "times")
    for same in ("", SAME):
        peers = [rates[name + same] for name in PEERS if name + same in rates]
        if peers:
            best = [max(of_round) for of_round in zip(*peers, strict=True)]
            bench.note(f"fast_vs_best_peer{same}{suffix}", ratio(rates["medvar_zstd"], best), "times")
            bench.note(f"png_vs_best_peer{same}{suffix}", ratio(rates["medvar_png"], best), "times")


def ratio(one: list[float], other: list[float]) -> float:
    """Median of the ratios of runs that stood beside each other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def our_sets(bench: Bench, workspace: Path | None, shards: Path | None, quick: bool) -> dict[str, Path]:
    """Make the sets that the measurements need: codec png, codec zstd, small shards."""
    scratch, ours = bench.scratch, Rival("medvar", "stream_ours.py", {})
    sets = {"medvar_png": scratch / "png", "medvar_zstd": scratch / "zstd", "small": scratch / "small"}
    options = {"medvar_png": ("png", 1024), "medvar_zstd": ("zstd", 1024), "small": ("png", SMALL_SHARD)}
    if shards:
        for name in ("medvar_zstd", "small"):
            if not sets[name].exists():
                repack(shards, sets[name], *options[name])
        sets["medvar_png"] = shards
    else:
        if not workspace:
            what = (
                {"cells": ["brain-mr"], "patients": 8} if quick else {"cells": ["brain-mr", "spine-ct"], "patients": 16}
            )
            if not (scratch / "work").exists():
                bench.once(ours, do="synthetic", folder=str(scratch), **what)
            workspace = scratch / "work"
        for name, (codec, per_shard) in options.items():
            request = {"workspace": str(workspace), "out": str(sets[name]), "codec": codec, "per_shard": per_shard}
            found = bench.once(ours, do="shard", **request)
            if name != "small":
                note_writing(bench, name, found)
    for name in ("medvar_png", "medvar_zstd"):
        n_bytes = sum(shard.bytes for shard in read_dataset(Store(str(sets[name]))).splits["train"].shards)
        bench.note(f"{name}_disk", n_bytes / 1e6, "MB", 1)
    return sets


def note_writing(bench: Bench, name: str, found: dict) -> None:
    bench.note(f"{name}_convert", found["seconds"], "s")
    bench.note(f"{name}_convert_peak", found["peak"] / 1e6, "MB", 0)


def their_sets(bench: Bench, interpreters: dict[str, str], source: Path) -> list[Rival]:
    """Convert the train slices with every peer, both ways; returns the readers."""
    train = read_dataset(Store(str(source))).splits["train"]
    tars = [str(source / shard.name) for shard in train.shards]
    readers = []
    for peer, python in interpreters.items():
        for same in ("", SAME):
            out = bench.scratch / f"{peer}{same}"
            rival = Rival(out.name, "stream_peers.py", {"peer": peer}, python)
            request = {"tars": tars, "slices": train.slices, "usual_png": not same, "out": str(out)}
            note_writing(bench, rival.name, bench.once(rival, do="write", **request))
            n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            bench.note(f"{rival.name}_disk", n_bytes / 1e6, "MB", 1)
            readers.append(
                Rival(rival.name, "stream_peers.py", {"do": "read", "peer": peer, "folder": str(out)}, python)
            )
    return readers


def interpreters_of(bench: Bench, named: list[str]) -> dict[str, str]:
    """The interpreter of each peer: PEER=PATH, or a path for all that it has and nobody else was named for."""
    found: dict[str, str] = {}
    for text in sorted(named, key=lambda text: "=" not in text):
        peer, _, python = text.rpartition("=")
        has = bench.once(Rival("peers", "stream_peers.py", {}, python), do="versions")
        for name, version in has.items():
            if name not in found and peer in ("", name):
                found[name] = python
                print(f"{name} {version}")
    return found


def measure_index(bench: Bench, source: Path, n_slices: int) -> None:
    """Open the index of a set as large as the paper's."""
    out, ours = bench.scratch / "index", Rival("index", "stream_ours.py", {})
    if not out.exists():
        large_index(source, out, n_slices)
    found = [bench.once(ours, do="index", shards=str(out)) for _ in range(min(5, bench.rounds))]
    assert all(run["slices"] == n_slices for run in found)
    bench.note("index_open_s", statistics.median(run["seconds"] for run in found), "s")
    bench.note("index_open_cpu", statistics.median(run["cpu"] for run in found), "s")
    bench.note("index_open_mb", statistics.median(run["bytes"] for run in found) / 1e6, "MB", 0)


def measure_remote(bench: Bench, source: Path) -> None:
    """Stream a set from far away through a cache of a quarter of its bytes, beside the same order from the local disk."""
    sizes = [shard.bytes for shard in read_dataset(Store(str(source))).splits["train"].shards]
    cache_bytes = max(sum(sizes) // 4, 2 * max(sizes))
    order = {"do": "first epoch", "window_shards": cache_bytes // (2 * max(sizes))}
    far = {"cache": str(bench.scratch / "cache"), "cache_bytes": cache_bytes, "set_bytes": sum(sizes)}
    rivals = [
        Rival("local", "stream_ours.py", {**order, "shards": str(source)}),
        Rival("remote", "stream_ours.py", {**order, **far, "shards": f"slow://{source}"}),
    ]
    rates = race(bench, rivals, 2)["seconds"]
    compare(bench, rates, "_2_workers")
    bench.note("remote_vs_local", ratio(rates["remote"], rates["local"]), "times")
    bench.note("remote_shards", len(sizes), "shards", 0)
    with bench.started(rivals[1], {"workers": 2, "cores": bench.cores}) as process:
        bench.note("remote_fetched", answer_of(process, rivals[1], bench.scratch)["fetched"], "times the set")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--workspace", type=Path, help="harmonized by the recipe paper")
    source.add_argument("--shards", type=Path, help="shard set of codec png")
    parser.add_argument("--peer-python", action="append", default=[], metavar="[PEER=]PATH")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument(
        "--only", nargs="+", choices=[*PARTS, "remote"], default=PARTS, help="a part of the measurements"
    )
    parser.add_argument("--remote", action="store_true", help="measure a set that is far away, too")
    parser.add_argument("--latency", type=float, default=20, help="of a remote request, in ms")
    parser.add_argument("--bandwidth", type=float, default=1000, help="of the remote store, in MB a second")
    parser.add_argument("--index-slices", type=int, default=SLICES_OF_THE_PAPER)
    parser.add_argument(
        "--keep", type=Path, help="folder for what is made; a further run adds its rounds to those there"
    )
    args = parser.parse_args()
    os.environ |= {"LATENCY_MS": str(args.latency), "BANDWIDTH_MB": str(args.bandwidth)}
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        if args.keep:
            args.keep = args.keep.resolve()
            args.keep.mkdir(exist_ok=True)
        bench = Bench(args.keep or Path(folder), cores, 3 if args.quick else args.rounds, {})
        run(bench, args)
    print(json.dumps(bench.figures))


def run(bench: Bench, args: argparse.Namespace) -> None:
    shards = args.shards.resolve() if args.shards else None
    sets = our_sets(bench, args.workspace and args.workspace.resolve(), shards, args.quick)
    train = read_dataset(Store(str(sets["medvar_png"]))).splits["train"]
    bench.note("train_slices", train.slices, "slices", 0)
    tars = [str(sets["medvar_png"] / shard.name) for shard in train.shards]
    decode = Rival("decode_only", "stream_peers.py", {"do": "decode", "tars": tars})
    rivals = [
        Rival(n, "stream_ours.py", {"do": "stream", "shards": str(sets[n])}) for n in ("medvar_png", "medvar_zstd")
    ]
    if {"one-core", "two-cores"} & set(args.only):
        rivals += their_sets(bench, interpreters_of(bench, args.peer_python), sets["medvar_png"])
    if "one-core" in args.only:
        rates = race(bench, [decode, *rivals], 0)
        compare(bench, rates["seconds"], "")
        compare(bench, rates["cpu"], "_cpu")
    if "two-cores" in args.only and len(bench.cores) > 1:
        compare(bench, race(bench, rivals, 2)["seconds"], "_2_workers")
    if "index" in args.only:
        measure_index(bench, sets["medvar_png"], args.index_slices)
    if args.remote or "remote" in args.only:
        measure_remote(bench, sets["small"])


if __name__ == "__main__":
    main()
