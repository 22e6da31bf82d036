"""Pixels out of packed bytes."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import bitshuffle
import numpy as np
import pytest

from streamer import decoding
from streamer.decoding import MAX_DECODED_BYTES, check_size, decode
from streamer.messages import Algorithm, ImageData, UndecodableImage
from tests.support import REPOSITORY, SHAPE, pack, packed_image, poisson, require

ALGORITHMS = (Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_BLOCK, Algorithm.LZ4_HDF5)
DTYPES = ("u1", "<u2", "<u4", ">u2", ">u4")


def decoded(image: ImageData) -> Any:
    out = np.empty(image.shape, image.dtype.newbyteorder("="))
    decode(image, out)
    return out


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8, 1), SHAPE, (64, 96), (130, 127)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_packed_is_decoded(dtype: str, algorithm: Algorithm, shape: tuple[int, int]) -> None:
    pixels = poisson(1, shape, dtype)[0]
    pixels[0, 0] = np.iinfo(dtype).max
    assert np.array_equal(decoded(packed_image(pixels, algorithm)), pixels)


@pytest.mark.parametrize("block_bytes", [64, 128, 512, 8192, 1 << 16])
@pytest.mark.parametrize("algorithm", [Algorithm.BSLZ4, Algorithm.LZ4_HDF5])
def test_blocks_may_be_of_any_size(algorithm: Algorithm, block_bytes: int) -> None:
    pixels = poisson(1)[0]
    assert np.array_equal(decoded(packed_image(pixels, algorithm, block_bytes=block_bytes)), pixels)


def test_noise_that_lz4_stores_is_decoded() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, SHAPE).astype("u2")
    for algorithm in ALGORITHMS:
        for block_bytes in (64, 1 << 16):
            assert np.array_equal(decoded(packed_image(pixels, algorithm, block_bytes=block_bytes)), pixels)


def test_a_header_of_zeros_means_the_default_block() -> None:
    pixels = poisson(1)[0]
    image = packed_image(pixels)
    assert np.array_equal(decoded(replace(image, data=bytes(12) + bytes(image.data[12:]))), pixels)


def test_every_buffer_but_a_suitable_one_is_refused() -> None:
    image = packed_image(poisson(1)[0])
    frozen = np.empty(SHAPE, "u2")
    frozen.flags.writeable = False
    buffers = (
        np.empty(SHAPE, "u4"), np.empty((1, 1), "u2"), np.empty(SHAPE, ">u2"), np.empty((SHAPE[0], 2 * SHAPE[1]), "u2")[:, ::2],  # noqa: E501
        np.empty(SHAPE, "u2", order="F"), frozen,
    )  # fmt: skip
    for out in buffers:
        with pytest.raises(ValueError, match="the buffer") as caught:
            decode(image, out)
        assert not isinstance(caught.value, UndecodableImage)
    flat = np.empty(SHAPE[0] * SHAPE[1], "u2")
    decode(image, flat)
    assert np.array_equal(flat.reshape(SHAPE), poisson(1)[0])


def test_a_packed_image_may_lie_at_any_address() -> None:
    pixels = poisson(1, dtype="u4")[0]
    for shift in range(9):
        data = memoryview(bytes(shift) + pack(pixels, Algorithm.BSLZ4))[shift:]
        assert np.array_equal(decoded(ImageData(data, SHAPE, pixels.dtype, Algorithm.BSLZ4, 4)), pixels)


@pytest.mark.parametrize("algorithm", [Algorithm.BSLZ4, Algorithm.LZ4_BLOCK, Algorithm.LZ4_HDF5])
def test_a_payload_cut_anywhere_is_undecodable(algorithm: Algorithm) -> None:
    image = packed_image(poisson(1)[0], algorithm, block_bytes=512)
    data = bytes(image.data)
    for size in range(0, len(data), 7):
        with pytest.raises(UndecodableImage):
            decoded(replace(image, data=data[:size]))


def test_an_image_larger_than_its_bytes_can_hold_gets_no_buffer() -> None:
    bomb = ImageData(bytes(1000), (8192, 8192), np.dtype("u4"), Algorithm.BSLZ4, 4)
    with pytest.raises(UndecodableImage, match="cannot hold"):
        check_size(bomb)
    with pytest.raises(UndecodableImage):
        check_size(ImageData(bytes(1000), (MAX_DECODED_BYTES, 1), np.dtype("u2"), Algorithm.RAW, 2))
    zeros = np.zeros((4096, 512), "u4")
    assert not decoded(packed_image(zeros)).any()
    assert not decoded(packed_image(zeros, Algorithm.LZ4_BLOCK)).any()


@pytest.mark.parametrize("algorithm", [Algorithm.BSLZ4, Algorithm.LZ4_HDF5])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_detector_makers_decoder_agrees(dtype: str, algorithm: Algorithm) -> None:
    require("dectris.compression", "dectris-compression")
    from dectris.compression import decompress

    image = packed_image(poisson(1, (61, 75), dtype)[0], algorithm)
    name = "bslz4" if algorithm == Algorithm.BSLZ4 else "lz4"
    theirs = decompress(bytes(image.data), name, elem_size=image.element_bytes)
    assert decoded(image).tobytes() == bytes(theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zstandard_is_decoded_where_the_detector_makers_package_is(dtype: str) -> None:
    require("dectris.compression", "dectris-compression")
    pixels = poisson(1, (61, 75), dtype)[0]
    image = packed_image(pixels, Algorithm.BSZSTD)
    assert np.array_equal(decoded(image), pixels)
    for size in (0, 11, 40, len(image.data) // 2, len(image.data) - 1):
        with pytest.raises(UndecodableImage):
            decoded(replace(image, data=image.data[:size]))
    with pytest.raises(UndecodableImage) as caught:
        decoded(replace(image, data=(2**50).to_bytes(8, "big") + bytes(image.data[8:])))
    assert caught.value.reason == "size_mismatch"


def test_without_that_package_the_algorithm_is_refused_by_name() -> None:
    program = """
import sys
sys.modules["dectris"] = None
import numpy as np
from streamer.decoding import decode
from streamer.messages import Algorithm, ImageData, UndecodableImage
try:
    decode(ImageData(b"x" * 99, (2, 2), np.dtype("u2"), Algorithm.BSZSTD, 2), np.empty((2, 2), "u2"))
except UndecodableImage as error:
    assert error.reason == "unknown_algorithm" and "dectris-compression" in str(error), error
else:
    raise SystemExit("decoded")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)


def test_the_bare_call_and_the_librarys_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of bitshuffle that hide their C functions go through its Python function."""
    assert decoding._bslz4_into is not None
    images = [packed_image(poisson(1, SHAPE, dtype)[0], a) for dtype in DTYPES for a in ALGORITHMS]
    first = [decoded(image) for image in images]
    monkeypatch.setattr(decoding, "_bslz4_into", None)
    monkeypatch.setattr(decoding, "_lz4_into", None)
    for image, expected in zip(images, first, strict=True):
        assert np.array_equal(decoded(image), expected)
    bad = packed_image(poisson(1)[0])
    noise = bytes(bad.data[:16]) + b"\xff" * (len(bad.data) - 30) + bytes(bad.data[-14:])
    with pytest.raises(UndecodableImage):
        decoded(replace(bad, data=noise))


def test_the_format_is_bitshuffles_own() -> None:
    pixels = poisson(1)[0]
    packed = bitshuffle.compress_lz4(pixels, 64)
    data = pixels.nbytes.to_bytes(8, "big") + (128).to_bytes(4, "big") + packed.tobytes()
    assert np.array_equal(decoded(ImageData(data, SHAPE, pixels.dtype, Algorithm.BSLZ4, 2)), pixels)
