"""The decoder behind its guard: what it takes is what a slow decoder makes of the same bytes."""

import itertools
from collections.abc import Iterator

import numpy as np

from streamer.messages import Algorithm, ImageData
from tests.fuzz import reference
from tests.fuzz.messages import decoded
from tests.support import pack, poisson

ALGORITHMS = (Algorithm.RAW, Algorithm.BSLZ4, Algorithm.LZ4_BLOCK, Algorithm.LZ4_HDF5)
DTYPES = ("|u1", "<u2", "<u4", ">u2", ">u4")
WIDTHS = (0, 1, 2, 3, 4, 8)
"""Of bitshuffle's elements; 0: that of the pixels."""


def one(data: bytes) -> None:
    if len(data) < 5:
        return
    algorithm, dtype = ALGORITHMS[data[0] % len(ALGORITHMS)], np.dtype(DTYPES[data[1] % len(DTYPES)])
    width = WIDTHS[data[2] % len(WIDTHS)] or dtype.itemsize
    payload = data[5:]
    image = ImageData(payload, (data[3] + 1, 8 * data[4] + 1), dtype, algorithm, width)
    pixels = decoded(image)
    if pixels is None:
        return
    size = image.decoded_bytes
    if algorithm == Algorithm.RAW:
        expected = payload
    elif algorithm == Algorithm.BSLZ4:
        expected = reference.bslz4(payload, size, width)
    elif algorithm == Algorithm.LZ4_BLOCK:
        expected = reference.lz4_block(payload, size)
    else:
        expected = reference.lz4_hdf5(payload, size)
    assert pixels.tobytes() == np.frombuffer(expected, dtype).astype(dtype.newbyteorder("=")).tobytes()


def seeds() -> Iterator[bytes]:
    # A match at offset 0, which liblz4 takes.
    yield bytes([2, 1, 0, 0, 4]) + b"\x1f\x07\x00\x00\x29\x50abcde"
    rng = np.random.default_rng(1)
    for (a, algorithm), (d, dtype) in itertools.product(enumerate(ALGORITHMS), enumerate(DTYPES)):
        for (rows, eighths), block in itertools.product(((0, 0), (6, 2), (16, 6)), (64, 8192)):
            shape = (rows + 1, 8 * eighths + 1)
            for pixels in (poisson(1, shape, dtype)[0], rng.integers(0, 255, shape).astype(dtype)):
                yield bytes([a, d, 0, rows, eighths]) + pack(pixels, algorithm, block)
    for w, width in enumerate(WIDTHS):
        if width in (1, 2, 4, 8):
            pixels = poisson(1, (8, 9), "u4")[0]
            yield bytes([1, 2, w, 7, 1]) + pack(pixels, Algorithm.BSLZ4, 64, width)
