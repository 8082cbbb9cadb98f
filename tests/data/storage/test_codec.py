"""Laws of the image codecs: decode(encode(x)) = x, one content one digest, damage is an error of ours."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from medvar_data.errors import ShardSetError
from medvar_data.storage.codec import BATCH, CODECS, PNG, pixel_digest

pictures = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)))
every_codec = pytest.mark.parametrize("name", sorted(CODECS))


def smooth(side: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 3, (side, side))
    return np.clip(np.add.outer(np.arange(side), np.arange(side)) / 2 + noise, 0, 255).astype(np.uint8)


@every_codec
@settings(max_examples=60, deadline=None)
@given(picture=pictures)
def test_lossless_means_equal_bits(name, picture):
    codec = CODECS[name]
    for encode in (codec.encode, codec.encode_mask):
        out = codec.decode(encode(picture))
        assert out.dtype == np.uint8
        assert np.array_equal(out, picture)


@every_codec
@pytest.mark.parametrize("count", [1, 3, 7, 8, BATCH, BATCH + 5])
def test_a_batch_is_decoded_like_its_pictures(name, count):
    codec = CODECS[name]
    images = np.stack([smooth(40, seed) for seed in range(count)])
    data = [(codec.encode if n % 3 else codec.encode_mask)(image) for n, image in enumerate(images)]
    out = np.empty_like(images)
    codec.decode_into(data, out)
    assert np.array_equal(out, images)


@every_codec
def test_a_batch_of_another_shape_is_refused(name):
    codec = CODECS[name]
    with pytest.raises(ShardSetError, match="8 x 8"):
        codec.decode_into([codec.encode(smooth(8, 0))], np.empty((1, 16, 4), dtype=np.uint8))


@every_codec
def test_same_pixels_same_bytes_and_memory_layout_does_not_matter(name):
    codec, picture = CODECS[name], np.random.default_rng(0).integers(0, 256, (30, 20)).astype(np.uint8)
    turned = np.asfortranarray(picture)
    assert codec.encode(picture) == codec.encode(turned)
    assert codec.encode_mask(picture) == codec.encode_mask(turned)
    assert pixel_digest(picture) == pixel_digest(turned) == pixel_digest(picture[::-1][::-1])


@settings(max_examples=60, deadline=None)
@given(one=pictures, other=pictures)
def test_digest_names_content(one, other):
    assert (pixel_digest(one) == pixel_digest(other)) == (one.shape == other.shape and np.array_equal(one, other))


def test_digest_sees_the_shape():
    flat = np.zeros((2, 8), dtype=np.uint8)
    assert pixel_digest(flat) != pixel_digest(flat.reshape(4, 4))


@every_codec
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_a_shard_set_error_or_leaves_a_picture(name, data):
    codec = CODECS[name]
    good = bytearray(codec.encode(smooth(24, 1)))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(0, len(good)))])
    with contextlib.suppress(ShardSetError):
        assert codec.decode(damaged).dtype == np.uint8


@every_codec
@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"MVZ\x02"])
def test_no_picture(name, data):
    with pytest.raises(ShardSetError):
        CODECS[name].decode(data)


class TestPng:
    @pytest.mark.parametrize("encode", [PNG.encode, PNG.encode_mask])
    def test_every_reader_reads_it(self, encode):
        image = smooth(64, 3)
        data = encode(image)
        assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), image)
        with Image.open(io.BytesIO(data)) as picture:
            picture.verify()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)

    @pytest.mark.parametrize("strategy", [cv2.IMWRITE_PNG_STRATEGY_DEFAULT, cv2.IMWRITE_PNG_STRATEGY_RLE])
    def test_other_writers_are_read(self, strategy):
        image = smooth(64, 4)
        assert np.array_equal(
            PNG.decode(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_STRATEGY, strategy])[1].tobytes()), image
        )
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        assert np.array_equal(PNG.decode(stream.getvalue()), image)

    def test_damage_prints_nothing(self, capfd):
        for writer in (PNG.encode(smooth(64, 5)), cv2.imencode(".png", smooth(64, 5))[1].tobytes()):
            for cut in range(20, len(writer), 97):
                for data in (writer[:cut], writer[:cut] + b"\xff" + writer[cut + 1 :]):
                    with contextlib.suppress(ShardSetError):
                        PNG.decode(data)
        assert capfd.readouterr() == ("", "")

    def test_colour_and_16_bit_are_refused(self):
        for picture in (np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint16)):
            with pytest.raises(ShardSetError):
                PNG.decode(cv2.imencode(".png", picture)[1].tobytes())

    def test_more_pixels_than_the_bytes_can_hold(self):
        good = bytearray(PNG.encode(np.zeros((64, 64), dtype=np.uint8)))
        good[16:24] = struct.pack(">II", 30_000, 2_000)
        with pytest.raises(ShardSetError, match="claims"):
            PNG.decode(bytes(good))

    def test_more_bytes_than_the_pixels_need(self):
        rows = np.zeros((64, 65), dtype=np.uint8)
        data = zlib.compress(rows.tobytes() + bytes(1 << 20))
        good = PNG.encode_mask(rows[:, 1:])
        forged = good[:33] + struct.pack(">I", len(data)) + b"IDAT" + data + bytes(4) + good[-12:]
        with pytest.raises(ShardSetError, match="fill"):
            PNG.decode(forged)


def test_a_frame_that_claims_more_than_its_header():
    head = CODECS["zstd"].encode(np.zeros((8, 8), dtype=np.uint8))[:8]
    with pytest.raises(ShardSetError, match="64 pixels"):
        CODECS["zstd"].decode(head + zstandard.compress(bytes(1 << 30)))


def test_the_reader_in_the_docs():
    text = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "read_mvz" in code
    scope: dict = {}
    exec(code, scope)
    for image in (smooth(40, 7), np.zeros((3, 5), dtype=np.uint8)):
        for encode in (CODECS["zstd"].encode, CODECS["zstd"].encode_mask):
            assert np.array_equal(scope["read_mvz"](encode(image)), image)
