"""What bench/stream.py lets medvar do in a process of its own: write shards, stream them, open a large index.

    python bench/stream_ours.py --child REQUEST      # a JSON object; bench/stream.py makes it

Out: lines of JSON, as bench/stream_peers.py gives them.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from stream_peers import BATCH, Epoch, answers, peak_bytes, serve
from stream_remote import LINE, register

from medvar_data.catalog.recipe import load_recipe
from medvar_data.demo.phantoms import write_phantoms
from medvar_data.harmonize.run import run_harmonize
from medvar_data.ingest.run import run_ingest
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.run import write_shards
from medvar_data.storage.store import Store
from medvar_data.stream import Stream, StreamSpec, open_shard_set, open_stream
from medvar_data.workspace.workspace import Workspace


def opened(request: dict) -> Stream:
    options = {"masks": True}
    names = ("cache", "cache_bytes", "window_shards")
    options |= {name: request[name] for name in names if name in request}
    return open_stream(StreamSpec(shards=request["shards"], batch_size=BATCH, **options))


def epoch_of(request: dict) -> Epoch:
    """Each call goes on where the last one ended; whole batches only."""
    stream, start = opened(request), 0

    def epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal start
        steps = len(stream.selected) // BATCH
        yield from read(stream, start, steps, request["workers"])
        start += steps

    return epoch


def read(stream: Stream, start: int, steps: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in stream.batches(start_step=start, steps=steps, workers=workers):
        yield batch.images, batch.masks


def first_epoch_of(request: dict) -> tuple[Epoch, Callable[[], dict]]:
    """Each call opens the set anew and finds an empty cache: a reader that stays open may keep what it fetched, whatever the bound.

    Returns:
        The epoch, and what tells how often the last one fetched the set; it fails where that is less than once.
    """
    register()
    fetched = 0

    def epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal fetched
        shutil.rmtree(request.get("cache", ""), ignore_errors=True)
        before, stream = LINE.carried, opened(request)
        yield from read(stream, 0, len(stream.selected) // BATCH, request["workers"])
        fetched = LINE.carried - before

    def told() -> dict:
        if "cache" not in request:
            return {}
        assert fetched >= request["set_bytes"], f"only {fetched:,} of {request['set_bytes']:,} bytes came from far away"
        return {"fetched": fetched / request["set_bytes"]}

    return epoch, told


def shard(request: dict) -> dict:
    """Write a shard set with one process."""
    spec = ShardSpec(load_recipe("paper"), slices_per_shard=request["per_shard"], codec=request["codec"])
    started = time.perf_counter()
    write_shards(Workspace(Path(request["workspace"])), Store(request["out"]), spec, 1, lambda _: None)
    return {"seconds": time.perf_counter() - started, "peak": peak_bytes()}


def synthetic(request: dict) -> dict:
    """Write phantoms, ingest and harmonize them."""
    folder = Path(request["folder"])
    sources = write_phantoms(folder / "phantoms", patients=request["patients"], cells=request["cells"], broken=False)
    workspace = Workspace(folder / "work")
    list(run_ingest(sources, workspace))
    return {"slices": run_harmonize(workspace, load_recipe("paper"), 1, lambda _: None).n_slices}


def open_index(request: dict) -> dict:
    """Open a shard set that this process has not seen; seconds, and growth of the peak of resident memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is held now
    before, started, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    shard_set = open_shard_set(request["shards"], "train")
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "bytes": peak_bytes() - before,
        "slices": len(shard_set),
    }


def main(request: dict) -> None:
    answer = answers()
    os.sched_setaffinity(0, request["cores"])
    cv2.setNumThreads(1)
    once = {"shard": shard, "synthetic": synthetic, "index": open_index}
    if request["do"] in once:
        answer(once[request["do"]](request))
    elif request["do"] == "first epoch":
        serve(*first_epoch_of(request), answer)
    else:
        serve(epoch_of(request), dict, answer)


if __name__ == "__main__" and sys.argv[1:2] == ["--child"]:
    main(json.loads(sys.argv[2]))
