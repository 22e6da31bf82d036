"""The walk of the block lengths, held against the decoder that walks the same chain."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.cuda.blocks import blocks_of, write_table
from streamer.decoding import decode
from streamer.messages import Algorithm, ImageData, UndecodableImage
from tests.support import pack, packed_image, poisson

SHAPE = (37, 51)
PACKED = {size: pack(poisson(1)[0], Algorithm.BSLZ4, size) for size in (64, 512, 8192)}


def table_of(image: ImageData) -> np.ndarray:
    blocks = blocks_of(image)
    table = np.full((blocks.count, 2), 0xFFFFFFFF, np.uint32)
    write_table(np.frombuffer(image.data, np.uint8), blocks, table)
    return table


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), SHAPE, (64, 128), (200, 301)])
@pytest.mark.parametrize("block_bytes", [64, 512, 8192])
def test_blocks_lie_one_behind_the_other(dtype: str, shape: tuple[int, int], block_bytes: int) -> None:
    image = packed_image(poisson(1, shape, dtype)[0], block_bytes=block_bytes)
    blocks, table, at = blocks_of(image), table_of(image), 12
    whole = image.pixels - image.pixels % 8
    assert (blocks.count - 1) * blocks.block_elements < max(whole, 1) <= max(1, blocks.count * blocks.block_elements)
    for start, size in table.tolist():
        assert start == at + 4
        assert size == int.from_bytes(image.data[at:start], "big")
        at = start + size
    assert at + image.pixels % 8 * image.dtype.itemsize == len(image.data)


@given(st.sampled_from(sorted(PACKED)), st.data())
@settings(max_examples=300)
def test_damaged_chains_are_refused_as_the_other_decoder_refuses_them(block_bytes: int, data: st.DataObject) -> None:
    payload = bytearray(PACKED[block_bytes])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(payload) - 1, 40)))
        payload[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(payload)), st.integers(0, len(payload))))
    image = ImageData(bytes(payload[:cut]), SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 2)
    ours = theirs = None
    try:
        table_of(image)
    except UndecodableImage as error:
        ours = (error.reason, str(error))
    try:
        decode(image, np.empty(SHAPE, "u2"))
    except UndecodableImage as error:
        theirs = (error.reason, str(error))
    if ours is None:
        # What remains is for the decoder of the blocks.
        assert theirs is None or theirs[1].startswith("bitshuffle-LZ4 decoder")
    elif theirs is not None and "cannot hold" not in theirs[1]:
        assert ours == theirs


def test_elements_of_no_known_size_are_refused() -> None:
    image = packed_image(poisson(1)[0])
    for element in (0, 3, 16):
        with pytest.raises(UndecodableImage, match="elements of") as caught:
            blocks_of(replace(image, element_bytes=element))
        assert caught.value.reason == "bad_header"
