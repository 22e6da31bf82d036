"""The threads of a warp in any order between two meetings: the same pixels, or a meeting is missing."""

from typing import Any

import numpy as np
import pytest

from tests.analyzer.cuda.decoding import check, decoded, lz4_sequence, one_block
from tests.analyzer.cuda.host_build import LanesProgram
from tests.support import packed_image, poisson

ORDERS = (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
def test_frames_do_not_depend_on_the_order_of_the_threads(lanes_decoder: LanesProgram, dtype: str) -> None:
    shape = (61, 83)
    frames = poisson(3, shape, dtype, 0.4)
    frames[1] = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, endpoint=True)
    frames[2, 20:30] = np.iinfo(dtype).max
    images = [packed_image(pixels, block_bytes=size) for pixels in frames for size in (512, 8192)]
    for order in ORDERS:
        lanes_decoder.order = order
        result = decoded(lanes_decoder, images)
        for number, image in enumerate(images):
            check(result, number, image)


def test_no_kind_of_match_depends_on_the_order_of_the_threads(lanes_decoder: LanesProgram) -> None:
    rng = np.random.default_rng(8)
    images = []
    for _ in range(12):
        block, size = bytearray(), 0
        while size < 7000:
            literals, length = (
                int(rng.choice([0, 1, 3, 14, 15, 33, 90, 600])),
                int(rng.choice([4, 9, 31, 33, 120, 900])),
            )
            literals = max(literals, 1 - size)
            size += literals
            distance = min(size, int(rng.choice([1, 2, 3, 4, 5, 8, 15, 31, 32, 33, 100, 700, 6000])))
            block += lz4_sequence(rng.integers(0, 256, literals, dtype=np.uint8).tobytes(), distance, length)
            size += length
        last = 16 + -size % 8
        block += lz4_sequence(rng.integers(0, 256, last, dtype=np.uint8).tobytes())
        images.append(one_block(bytes(block), size + last))
    for order in ORDERS:
        lanes_decoder.order = order
        for image in images:
            check(decoded(lanes_decoder, [image]), 0, image)


def test_a_bad_block_ends_all_threads_alike(lanes_decoder: LanesProgram) -> None:
    noise: Any = np.random.default_rng(2)
    images = [one_block(noise.integers(0, 256, 700, dtype=np.uint8).tobytes(), 4096) for _ in range(40)]
    for order in ORDERS[:3]:
        lanes_decoder.order = order
        assert decoded(lanes_decoder, images).errors.all()
