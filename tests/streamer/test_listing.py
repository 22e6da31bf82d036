"""What ``Listing`` makes of an image against the plain decoder and a plain search."""

from collections.abc import Callable
from typing import Any

import bitshuffle
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import listing
from streamer.decoding import decode
from streamer.listing import Listing, bitmap
from streamer.messages import Algorithm, ImageData, UndecodableImage

DTYPES = (np.uint8, np.uint16, np.uint32)
SHAPES = ((1, 1), (1, 7), (1, 8), (1, 64), (1, 71), (7, 9), (61, 67), (64, 64), (100, 101), (129, 1000))


def packed(pixels: npt.NDArray[Any], block_bytes: int = 8192) -> ImageData:
    body = bitshuffle.compress_lz4(pixels.reshape(-1), block_bytes // pixels.itemsize).tobytes()
    data = pixels.nbytes.to_bytes(8, "big") + block_bytes.to_bytes(4, "big") + body
    return ImageData(data, pixels.shape, pixels.dtype, Algorithm.BSLZ4, pixels.itemsize)


def expect(found: Listing, pixels: npt.NDArray[Any], valid: npt.NDArray[np.uint8]) -> None:
    flat, good = pixels.reshape(-1), valid.reshape(-1) != 0
    blank = flat == np.iinfo(pixels.dtype).max
    index = np.flatnonzero(good & (flat > 0) & ~blank)
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.value, flat[index])
    np.testing.assert_array_equal(np.sort(found.blank), np.flatnonzero(good & blank))
    np.testing.assert_array_equal(found.lit[:-1], bitmap(good & (flat > 0)))
    assert found.lit[-1] == 0


def drawn(rng: np.random.Generator, dtype: Any, shape: tuple[int, int], mean: float, blank: float) -> npt.NDArray[Any]:
    top = np.iinfo(dtype).max
    pixels = np.minimum(rng.poisson(mean, shape), top).astype(dtype)
    pixels[rng.random(shape) < blank] = top
    return pixels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_bytes", [512, 1024, 8192])
def test_frame_after_frame_in_one_buffer(
    dtype: Any, shape: tuple[int, int], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However many pixels count: by the planes.
    monkeypatch.setattr(listing, "_DENSE", np.inf)
    rng = np.random.default_rng(3)
    valid = (rng.random(shape) > 0.2).astype(np.uint8)
    found = Listing(valid, np.dtype(dtype))
    for mean, blank in ((0.01, 0.0), (0.5, 0.1), (0.0, 0.0), (20.0, 0.5), (3e5, 0.0), (0.01, 1.0), (0.001, 0.0)):
        pixels = drawn(rng, dtype, shape, mean, blank)
        found.unpack(packed(pixels, block_bytes))
        expect(found, pixels, valid)


def test_gaps_that_never_have_data_stay_as_they_are() -> None:
    valid = np.ones((40, 128), np.uint8)
    valid[10:20] = 0
    found = Listing(valid, np.dtype(np.uint16))
    for n in range(3):
        pixels = np.zeros(valid.shape, np.uint16)
        pixels[10:20], pixels[12, n], pixels[30, n] = 65535, 7, n + 1
        found.unpack(packed(pixels))
        expect(found, pixels, valid)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_way_in_follows_any_other(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 150)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    valid = (rng.random(shape) > data.draw(st.sampled_from([0.0, 0.3, 1.0]))).astype(np.uint8)
    found = Listing(valid, np.dtype(dtype))
    for way in data.draw(st.lists(st.sampled_from(["unpack", "raw", "written", "big-endian", "broken"]), max_size=6)):
        pixels = drawn(rng, dtype, shape, data.draw(st.sampled_from([0.0, 0.02, 2.0])), 0.05)
        if way == "written":
            found.pixels[:] = pixels
            found.search()
        elif way == "raw":
            found.unpack(ImageData(pixels.tobytes(), shape, pixels.dtype, Algorithm.RAW, pixels.itemsize))
        elif way == "big-endian":
            other = pixels.astype(pixels.dtype.newbyteorder(">"))
            found.unpack(ImageData(other.tobytes(), shape, other.dtype, Algorithm.RAW, other.itemsize))
        elif way == "broken":
            image = packed(pixels, 512)
            broken = bytearray(image.data)
            # Longer than it was, for the few pixels of an image without a block may have any value.
            broken[int(rng.integers(12, len(broken))) :] = b"\xff" * (len(broken) - 11)
            with pytest.raises(UndecodableImage):
                found.unpack(ImageData(bytes(broken), shape, image.dtype, image.algorithm, image.element_bytes))
            continue
        else:
            found.unpack(packed(pixels, data.draw(st.sampled_from([512, 8192]))))
        expect(found, pixels, valid)


def test_a_frame_whose_later_block_is_bad_leaves_the_buffer_fit_for_the_next() -> None:
    rng = np.random.default_rng(9)
    valid = np.ones((64, 256), np.uint8)
    found = Listing(valid, np.dtype(np.uint16))
    first, second, third = (drawn(rng, np.uint16, valid.shape, 0.1, 0.01) for _ in range(3))
    found.unpack(packed(first, 1024))
    image = packed(second, 1024)
    broken = bytearray(image.data)
    # Within the last block: a match that reaches back before its beginning.
    broken[-6:] = b"\x00\xff\xff\x0f\xff\xff"
    with pytest.raises(UndecodableImage) as failure:
        found.unpack(ImageData(bytes(broken), image.shape, image.dtype, image.algorithm, image.element_bytes))
    assert failure.value.reason == "bad_block"
    found.unpack(packed(third, 1024))
    expect(found, third, valid)


@pytest.mark.parametrize("mean", [30.0, 3000.0])
def test_a_full_frame_that_fails_half_way_leaves_no_trace_in_the_next(mean: float) -> None:
    rng = np.random.default_rng(4)
    valid = np.ones((256, 256), np.uint8)
    found = Listing(valid, np.dtype(np.uint16))
    first, third = (drawn(rng, np.uint16, valid.shape, 0.01, 0.0) for _ in range(2))
    found.unpack(packed(first))
    image = packed(rng.poisson(mean, valid.shape).astype(np.uint16) * 5)
    assert len(image.data) > listing._DENSE * image.pixels
    broken = bytearray(image.data)
    broken[-6:] = b"\x00\xff\xff\x0f\xff\xff"
    with pytest.raises(UndecodableImage):
        found.unpack(ImageData(bytes(broken), image.shape, image.dtype, image.algorithm, image.element_bytes))
    found.unpack(packed(third))
    expect(found, third, valid)


@pytest.mark.parametrize("block_bytes", [16, 48, 16384])
def test_blocks_of_a_size_that_planes_are_not_read_from(block_bytes: int) -> None:
    pixels = drawn(np.random.default_rng(2), np.uint16, (50, 60), 0.2, 0.01)
    valid = np.ones(pixels.shape, np.uint8)
    found = Listing(valid, pixels.dtype)
    found.unpack(packed(pixels, block_bytes))
    expect(found, pixels, valid)


def test_without_the_library_s_own_lz4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.decoding.LZ4_ADDRESS", 0)
    pixels = drawn(np.random.default_rng(2), np.uint16, (50, 60), 0.2, 0.01)
    found = Listing(np.ones(pixels.shape, np.uint8), pixels.dtype)
    found.unpack(packed(pixels))
    expect(found, pixels, np.ones(pixels.shape, np.uint8))


def outcome(action: Callable[..., None], *given: Any) -> str | None:
    """Why an image was refused, ``None`` where it was not."""
    try:
        action(*given)
    except UndecodableImage as error:
        return error.reason
    return None


def test_random_bytes_end_in_pixels_or_in_one_error_as_the_decoder_says() -> None:
    rng = np.random.default_rng(11)
    shape = (60, 70)
    valid = np.ones(shape, np.uint8)
    found = Listing(valid, np.dtype(np.uint16))
    good = packed(drawn(rng, np.uint16, shape, 0.3, 0.02), 1024)
    outcomes = {"same": 0, "refused": 0}
    for _ in range(2000):
        data = bytearray(good.data)
        for _ in range(int(rng.integers(1, 5))):
            data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
        if rng.random() < 0.2:
            del data[int(rng.integers(0, len(data))) :]
        image = ImageData(bytes(data), shape, good.dtype, good.algorithm, good.element_bytes)
        plain = np.empty(shape, np.uint16)
        refused = outcome(decode, image, plain)
        assert outcome(found.unpack, image) == refused
        if refused is not None:
            outcomes["refused"] += 1
            continue
        expect(found, plain, valid)
        outcomes["same"] += 1
    assert min(outcomes.values()) > 50


def test_an_image_of_another_size_is_refused() -> None:
    found = Listing(np.ones((4, 4), np.uint8), np.dtype(np.uint16))
    with pytest.raises(ValueError, match="16 pixels"):
        found.unpack(packed(np.zeros((4, 5), np.uint16)))
