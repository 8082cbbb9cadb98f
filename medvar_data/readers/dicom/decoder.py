"""Decode compressed pictures in a process of their own: a decoder that meets a damaged code stream may end its process.

`python -m medvar_data.readers.dicom.decoder` is that process. It takes requests on its standard input and answers on its standard
output: each a line of JSON, and the bytes that it announces. It is started at the first compressed file, answers one request
after the other, has a limit of memory, and ends with the process that started it.
"""

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import iter_pixels

SECONDS = 120.0  # for the frames of one file
MEMORY_BYTES = 4 << 30  # address space of the decoding process: a frame of 1 GiB and what decoders take beside it
NEEDED = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration",
)  # fmt: skip
LENGTH = struct.Struct("<I")


class DecodingFailed(Exception):
    """A code stream could not be decoded, or ended the process that tried."""


class _Decoder:
    """The decoding process of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, dataset: Dataset, streams: Sequence[bytes]) -> list[Shaped[np.ndarray, "row column"]]:
        """Decode frames; each is a code stream.

        Raises:
            DecodingFailed: also where the process ends or takes too long; the next call starts another.
        """
        head: dict[str, Any] = {name: _plain(dataset.get(name)) for name in NEEDED if dataset.get(name) is not None}
        head |= {"syntax": str(dataset.file_meta.TransferSyntaxUID), "sizes": [len(stream) for stream in streams]}
        with self._lock:
            process = self._started()
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            try:
                assert process.stdin
                assert process.stdout
                _send(process.stdin, head, streams)
                answer, parts = _receive(process.stdout)
            except (OSError, EOFError, ValueError, struct.error):
                self.close()
                raise DecodingFailed from None
            finally:
                timer.cancel()
        if "failed" in answer:
            raise DecodingFailed
        shapes = zip(parts, answer["dtypes"], answer["shapes"], strict=True)
        return [np.frombuffer(part, dtype=kind).reshape(shape) for part, kind, shape in shapes]

    def close(self) -> None:
        """End the process, if there is one of ours."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            with suppress(OSError):
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    with suppress(OSError):
                        stream.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.close()
            command = [
                sys.executable,
                "-P",
                "-m",
                "medvar_data.readers.dicom.decoder",
            ]  # -P: not from the current folder
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            self._owner = os.getpid()
        return self._process


_DECODER = _Decoder()
atexit.register(_DECODER.close)


def decode_apart(dataset: Dataset, streams: Sequence[bytes]) -> list[Shaped[np.ndarray, "row column"]]:
    """Decode code streams of a parsed file in the decoding process.

    Raises:
        DecodingFailed: one of them cannot be decoded.
    """
    return _DECODER.decode(dataset, streams)


def _plain(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def _send(stream: IO[bytes], head: Mapping[str, Any], parts: Sequence[bytes]) -> None:
    text = json.dumps(head).encode()
    stream.write(LENGTH.pack(len(text)) + text)
    for part in parts:
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    (length,) = LENGTH.unpack(_exactly(stream, LENGTH.size))
    head = json.loads(_exactly(stream, length))
    return head, [_exactly(stream, size) for size in head["sizes"]]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _decoded(head: Mapping[str, Any], streams: Sequence[bytes]) -> list[np.ndarray]:
    dataset = Dataset()
    for name in NEEDED:
        if name in head:
            setattr(dataset, name, head[name])
    dataset.NumberOfFrames = len(streams)
    dataset.PixelData = encapsulate(list(streams))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = head["syntax"]
    return [np.ascontiguousarray(picture) for picture in iter_pixels(dataset)]


def main() -> None:
    """Answer requests until the input ends."""
    with suppress(ImportError, OSError, ValueError):  # where the system knows no such limit
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            head, streams = _receive(requests)
        except (EOFError, struct.error):
            return
        try:
            pictures = _decoded(head, streams)
            shapes, kinds = [picture.shape for picture in pictures], [picture.dtype.str for picture in pictures]
            note = {"sizes": [picture.nbytes for picture in pictures], "shapes": shapes, "dtypes": kinds}
            _send(answers, note, [picture.tobytes() for picture in pictures])
        except Exception:  # whatever a decoder says of a stream; it may quote what is in it
            _send(answers, {"failed": True, "sizes": []}, [])


if __name__ == "__main__":
    main()
