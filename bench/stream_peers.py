"""Store slices with webdataset, litdata and mosaicml-streaming, and read them back: the peers of bench/stream.py.

    INTERPRETER bench/stream_peers.py --child REQUEST      # a JSON object; bench/stream.py makes it

Runs in the interpreter that has the peer, so it imports numpy, cv2 and the peer alone. Each peer is used as its manual says it is
fastest: raw bytes shuffled first and decoded last, sixteen files so that two workers get equal parts, workers that live on from
epoch to epoch. In: the tars of a shard set of codec png. Out: lines of JSON.
"""

import gc
import importlib.metadata
import json
import os
import random
import resource
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

BATCH = 64
FILES = 16  # that a peer's data set is cut into
BUFFER = 1000  # slices that webdataset shuffles at a time
PEERS = {"webdataset": "webdataset", "litdata": "litdata", "mosaicml": "mosaicml-streaming"}
USUAL = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
Pair = tuple[bytes, bytes]
Epoch = Callable[[], Iterable]  # yields batches of images and masks


def decode(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def encode(data: bytes) -> bytes:
    """The same picture as the PNG that cv2 writes."""
    return cv2.imencode(".png", decode(data), USUAL)[1].tobytes()


def pairs(tar: str, usual_png: bool) -> Iterator[Pair]:
    """Image and mask of each slice of a shard; as they are, or encoded by cv2."""
    found: list[bytes] = []
    with tarfile.open(tar) as archive:
        for member in archive:
            if not member.name.endswith(".png"):
                continue
            data = archive.extractfile(member).read()
            found.append(encode(data) if usual_png else data)
            if len(found) == 2:
                yield found[0], found[1]
                found = []


def write_webdataset(tars: list[str], out: Path, per_file: int, usual_png: bool) -> None:
    import webdataset as wds

    with wds.ShardWriter(f"{out}/%06d.tar", maxcount=per_file, verbose=0) as writer:
        for number, (image, mask) in enumerate(pair for tar in tars for pair in pairs(tar, usual_png)):
            writer.write({"__key__": f"{number:08d}", "image.png": image, "mask.png": mask})


def read_webdataset(folder: Path, workers: int) -> Epoch:
    import webdataset as wds

    files = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(files, shardshuffle=len(files), empty_check=False).shuffle(BUFFER)
    data = data.to_tuple("image.png", "mask.png").map_tuple(decode, decode)
    if not workers:
        return data.batched(BATCH, collation_fn=stack).__iter__
    data = data.batched(BATCH, collation_fn=stack_tensors)
    return wds.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=True).__iter__


def write_litdata(tars: list[str], out: Path, per_file: int, usual_png: bool) -> None:
    from litdata import optimize

    optimize(
        partial(pairs, usual_png=usual_png), tars, str(out), chunk_size=per_file, num_workers=1, verbose=False, keep_data_ordered=True
    )  # fmt: skip


def read_litdata(folder: Path, workers: int) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(str(folder), shuffle=True, drop_last=False, transform=decode_pair)
    if not workers:
        return lambda: batches(data)
    return StreamingDataLoader(
        data, batch_size=BATCH, num_workers=workers, collate_fn=stack_tensors, persistent_workers=True
    ).__iter__


def write_mosaicml(tars: list[str], out: Path, per_file: int, usual_png: bool) -> None:
    from streaming import MDSWriter

    n_bytes = sum(os.path.getsize(tar) for tar in tars) // FILES  # noqa: PTH202
    with MDSWriter(out=str(out), columns={"image": "bytes", "mask": "bytes"}, size_limit=n_bytes) as writer:
        for tar in tars:
            for image, mask in pairs(tar, usual_png):
                writer.write({"image": image, "mask": mask})


def read_mosaicml(folder: Path, workers: int) -> Epoch:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Slices(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[np.ndarray, np.ndarray]:
            sample = super().__getitem__(at)
            return decode(sample["image"]), decode(sample["mask"])

    data = Slices(local=str(folder), shuffle=True, batch_size=BATCH)
    if not workers:
        return lambda: batches(data)
    return DataLoader(
        data, batch_size=BATCH, num_workers=workers, collate_fn=stack_tensors, persistent_workers=True
    ).__iter__


def decode_only(tars: list[str]) -> Epoch:
    """Decode the pictures that lie in memory, in random order, and keep none."""
    held = [pair for tar in tars for pair in pairs(tar, False)]

    def epoch() -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        random.shuffle(held)
        for start in range(0, len(held), BATCH):
            some = held[start : start + BATCH]
            yield [decode(image) for image, _ in some], [decode(mask) for _, mask in some]

    return epoch


def decode_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    return decode(pair[0]), decode(pair[1])


def batches(samples: Iterable) -> Iterator[tuple[np.ndarray, ...]]:
    some = []
    for sample in samples:  # to its first end: an ended litdata iterator that is asked again begins anew
        some.append(sample)
        if len(some) == BATCH:
            yield stack(some)
            some = []
    if some:
        yield stack(some)


def stack(samples: list) -> tuple[np.ndarray, ...]:
    return tuple(np.stack(part) for part in zip(*samples, strict=True))


def stack_tensors(samples: list) -> tuple:
    """As tensors, which a worker hands over in shared memory, and an array would be pickled."""
    import torch

    return tuple(torch.from_numpy(part) for part in stack(samples))


def serve(epoch: Epoch, told: Callable[[], dict], answer: Callable[[dict], None]) -> None:
    """Read one epoch to warm up, then one for each line of standard input; tell slices, seconds and what `told` adds."""
    for asked in chain([""], iter(sys.stdin.readline, "")):
        gc.collect()
        started, cpu, n_slices = time.perf_counter(), time.process_time(), 0
        for images, masks in epoch():
            n_slices += len(images)
            assert len(images) == len(masks)
        assert n_slices, "no slice was read"
        note = {"slices": n_slices, "seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
        note |= told()
        answer(note if asked else {"ready": True, **note})


def peak_bytes() -> int:
    """Most memory that this program, or the largest of those it started, held at a time."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return 1024 * max(int(line.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def answers() -> Callable[[dict], None]:
    """Keep standard output for JSON; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda note: print(json.dumps(note), file=out, flush=True)


def versions() -> dict[str, str]:
    """The peers that this interpreter has."""
    found = {}
    for name, package in PEERS.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(request: dict) -> None:
    answer = answers()
    os.sched_setaffinity(0, request["cores"])
    cv2.setNumThreads(1)
    peer = request.get("peer", "")
    if request["do"] == "versions":
        answer(versions())
    elif request["do"] == "decode":
        serve(decode_only(request["tars"]), dict, answer)
    elif request["do"] == "write":
        write = {"webdataset": write_webdataset, "litdata": write_litdata, "mosaicml": write_mosaicml}[peer]
        out = Path(request["out"])
        shutil.rmtree(out, ignore_errors=True)  # half-written by a run that was stopped
        out.mkdir(parents=True)
        per_file = -(-request["slices"] // FILES)
        started = time.perf_counter()
        write(request["tars"], out, per_file, request["usual_png"])
        answer({"seconds": time.perf_counter() - started, "peak": peak_bytes()})
    else:
        read = {"webdataset": read_webdataset, "litdata": read_litdata, "mosaicml": read_mosaicml}[peer]
        serve(read(Path(request["folder"]), request["workers"]), dict, answer)


if __name__ == "__main__" and sys.argv[1:2] == ["--child"]:
    main(json.loads(sys.argv[2]))
