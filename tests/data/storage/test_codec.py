"""Laws of the image codecs: decode(encode(x)) = x, one content one digest, damage is an error of ours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medvar_data.catalog.recipe import CODEC_NAMES
from medvar_data.errors import ShardSetError
from medvar_data.storage.codec import CODECS, decode_png, encode_png, pixel_digest

pictures = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=60, deadline=None)
@given(picture=pictures)
def test_lossless_means_equal_bits(name, picture):
    codec = CODECS[name]
    out = codec.decode(codec.encode(picture))
    assert out.dtype == np.uint8
    assert codec.lossless
    assert np.array_equal(out, picture)


@pytest.mark.parametrize(
    "picture", [np.zeros((256, 256)), np.full((256, 256), 255), np.arange(65536).reshape(256, 256) % 256]
)
def test_round_trip_at_full_size(picture):
    picture = picture.astype(np.uint8)
    assert np.array_equal(decode_png(encode_png(picture)), picture)


def test_same_pixels_same_bytes_and_memory_layout_does_not_matter():
    picture = np.random.default_rng(0).integers(0, 256, (30, 20)).astype(np.uint8)
    turned = np.asfortranarray(picture)
    assert encode_png(picture) == encode_png(turned)
    assert pixel_digest(picture) == pixel_digest(turned) == pixel_digest(picture[::-1][::-1])


@settings(max_examples=60, deadline=None)
@given(one=pictures, other=pictures)
def test_digest_names_content(one, other):
    assert (pixel_digest(one) == pixel_digest(other)) == (one.shape == other.shape and np.array_equal(one, other))


def test_digest_sees_the_shape():
    flat = np.zeros((2, 8), dtype=np.uint8)
    assert pixel_digest(flat) != pixel_digest(flat.reshape(4, 4))


@pytest.mark.parametrize("data", [b"", b"not a picture", encode_png(np.zeros((9, 9), dtype=np.uint8))[:30]])
def test_damage_is_a_shard_set_error(data):
    with pytest.raises(ShardSetError):
        decode_png(data)


def test_colour_and_16_bit_are_refused():
    import cv2

    for picture in (np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint16)):
        with pytest.raises(ShardSetError):
            decode_png(cv2.imencode(".png", picture)[1].tobytes())


def test_the_catalog_knows_every_codec():
    assert set(CODEC_NAMES) == set(CODECS)
