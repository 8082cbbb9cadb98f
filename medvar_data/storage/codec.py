"""Encode and decode 8-bit pictures without loss, and name their content by a digest of the pixels.

In: arrays. Out: bytes, and back, one picture or a batch at a time. A codec stores a picture either as it is or as the differences
of each row from the row above; differences are undone for a whole batch at once, so they cost little.

    >>> CODECS["zstd"].decode(CODECS["zstd"].encode(np.eye(4, dtype=np.uint8)))[3].tolist()
    [0, 0, 0, 1]
"""

import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import zstandard
from jaxtyping import UInt8

from medvar_data.errors import ShardSetError
from medvar_data.storage.png import MOST_PIXELS, NONE, UP, png_oddity, png_shape, unpack_png, write_png

BATCH = 64  # pictures whose differences are undone together; more would leave the processor's cache
FEW = 8
_MAGIC = b"MVZ"  # then the filter's number, then rows and columns as little-endian 16-bit numbers, then a zstd frame
_HEAD = struct.Struct("<3sBHH")
_LOCAL = threading.local()


@dataclass(frozen=True)
class Codec:
    """One picture format without loss: `decode(encode(x)) == x` for every 8-bit grey picture.

    Attributes:
        name: as the command line and `dataset.json` have it.
        suffix: of the members in a shard.
        encode, encode_mask: make bytes of an image, or of a label map, which has large even areas.
        shape: reads height and width from the bytes.
        unpack: fills an array with the rows as stored; tells whether they are differences from the row above.
        oddity: says what of the bytes is not laid out as `encode` does it, such as a text beside the pixels; "" where nothing is.
        version: names the encoder; equal versions give equal bytes.
    """

    name: str
    suffix: str
    encode: Callable[[UInt8[np.ndarray, "h w"]], bytes]
    encode_mask: Callable[[UInt8[np.ndarray, "h w"]], bytes]
    shape: Callable[[bytes], tuple[int, int]]
    unpack: Callable[[bytes, UInt8[np.ndarray, "h w"]], bool]
    oddity: Callable[[bytes], str]
    version: str

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w"]:
        """Decode one picture.

        Raises:
            ShardSetError: the bytes are not a picture of this codec.
        """
        out = np.empty((1, *self.shape(data)), dtype=np.uint8)
        self.decode_into([data], out)
        return out[0]

    def decode_into(self, pictures: Sequence[bytes], out: UInt8[np.ndarray, "n h w"]) -> None:
        """Decode pictures of one shape into an array.

        Raises:
            ShardSetError: one of them is not a picture of this codec, or has another shape.
        """
        for start in range(0, len(pictures), BATCH):
            part = out[start : start + BATCH]
            differences = [
                self.unpack(data, rows) for data, rows in zip(pictures[start : start + BATCH], part, strict=True)
            ]
            if all(differences):
                _add_rows(part)
            elif any(differences):
                some = part[differences]
                _add_rows(some)
                part[differences] = some


def _add_rows(pictures: UInt8[np.ndarray, "n h w"]) -> None:
    """Undo row differences in place: each row gains the row above, from the top."""
    if len(pictures) < FEW:  # where calls cost more than sums: log2(rows) sums of everything
        distance = 1
        while distance < pictures.shape[1]:
            pictures[:, distance:] += pictures[:, :-distance].copy()
            distance *= 2
        return
    for row in range(1, pictures.shape[1]):
        pictures[:, row] += pictures[:, row - 1]


def _row_differences(picture: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    rows = picture.copy()
    rows[1:] -= picture[:-1]
    return rows


def _png_image(image: UInt8[np.ndarray, "h w"]) -> bytes:
    return write_png(_row_differences(image), UP, 4, zlib.Z_DEFAULT_STRATEGY)


def _png_mask(mask: UInt8[np.ndarray, "h w"]) -> bytes:
    return write_png(mask, NONE, 1, zlib.Z_RLE)


def _zstd(rows: UInt8[np.ndarray, "h w"], row_filter: int, level: int) -> bytes:
    frame = zstandard.ZstdCompressor(level=level, write_checksum=False).compress(rows.tobytes())
    return _HEAD.pack(_MAGIC, row_filter, *rows.shape) + frame


def _zstd_head(data: bytes) -> tuple[int, int, int]:
    """Filter, rows and columns of a member of codec zstd."""
    magic, row_filter, height, width = _HEAD.unpack_from(data) if len(data) > _HEAD.size else (b"", 0, 0, 0)
    if magic != _MAGIC or row_filter not in (NONE, UP) or not 0 < height * width <= MOST_PIXELS:
        raise ShardSetError("A member is not a picture of codec zstd.")
    return row_filter, height, width


def _unpack_zstd(data: bytes, out: UInt8[np.ndarray, "h w"]) -> bool:
    row_filter, height, width = _zstd_head(data)
    if (height, width) != out.shape:
        raise ShardSetError(f"A picture has {height} x {width} pixels; wanted {out.shape[0]} x {out.shape[1]}.")
    frame = memoryview(data)[_HEAD.size :]
    if not hasattr(_LOCAL, "zstd"):
        _LOCAL.zstd = zstandard.ZstdDecompressor()  # one a thread: it keeps its work space
    try:
        if zstandard.frame_content_size(frame) != out.size:  # before memory is taken
            raise ShardSetError(f"A picture does not hold the {out.size:,} pixels that its header says.")
        rows = _LOCAL.zstd.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ShardSetError(f"A picture is damaged: {error}.") from None
    out[...] = np.frombuffer(rows, dtype=np.uint8).reshape(out.shape)
    return row_filter == UP


def _zstd_oddity(data: bytes) -> str:
    """Say what of a member of codec zstd `_zstd` would not write; whatever follows its frame does not decode."""
    _zstd_head(data)
    try:
        frame = zstandard.get_frame_parameters(data[_HEAD.size :])
    except zstandard.ZstdError as error:
        raise ShardSetError(f"A picture is damaged: {error}.") from None
    return "its frame holds a checksum or names a dictionary" if frame.has_checksum or frame.dict_id else ""


def pixel_digest(image: UInt8[np.ndarray, "h w"]) -> str:
    """Name a picture by its content: sha256 of "HxW:" and the pixels, hex. The same on every machine and encoder."""
    head = f"{image.shape[0]}x{image.shape[1]}:".encode()
    return sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


_ZSTD_VERSION = ".".join(map(str, zstandard.ZSTD_VERSION))
CODECS: dict[str, Codec] = {
    "png": Codec(
        "png",
        "png",
        _png_image,
        _png_mask,
        png_shape,
        unpack_png,
        png_oddity,
        f"png up 4, none 1 rle, zlib {zlib.ZLIB_RUNTIME_VERSION}",
    ),
    "zstd": Codec(
        name="zstd",
        suffix="mvz",
        encode=lambda image: _zstd(_row_differences(image), UP, 3),
        encode_mask=lambda mask: _zstd(mask, NONE, 9),
        shape=lambda data: _zstd_head(data)[1:],
        unpack=_unpack_zstd,
        oddity=_zstd_oddity,
        version=f"mvz up 3, none 9, zstd {_ZSTD_VERSION}",
    ),
}
PNG = CODECS["png"]
