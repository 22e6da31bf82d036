"""Where the blocks of a bitshuffle-LZ4 payload lie, found by a compiled walk that trusts nothing.

The format is described in ``streamer.decoding``; a payload that it refuses before decoding is refused here for the same
reason. The lengths of the blocks form a chain, so one thread has to walk it: a few microseconds a thousand blocks.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from streamer.decoding import DEFAULT_BLOCK_BYTES, MAX_BLOCK_BYTES, big_endian_u32
from streamer.messages import ImageData, UndecodableImage

HEADER_BYTES = 12

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_TABLE = types.Array(types.uint32, 2, "C")


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the elements of an image are cut into blocks: ``count`` of them, the last one perhaps shorter.

    ``left_over`` elements, fewer than 8, follow the last block as they are.
    """

    elements: int
    element_bytes: int
    block_elements: int

    @property
    def count(self) -> int:
        return -(-(self.elements - self.left_over) // self.block_elements)

    @property
    def left_over(self) -> int:
        return self.elements % 8

    @property
    def block_bytes(self) -> int:
        return self.block_elements * self.element_bytes


def blocks_of(image: ImageData) -> Blocks:
    """The blocks that the 12-byte header of a bitshuffle-LZ4 image announces. Raises ``UndecodableImage``."""
    element, size = image.element_bytes, image.decoded_bytes
    if element not in (1, 2, 4, 8) or size % element:
        raise UndecodableImage("bad_header", f"elements of {element} bytes in an image of {size}")
    if len(image.data) < HEADER_BYTES:
        raise UndecodableImage("bad_header", f"{len(image.data)} bytes, shorter than the 12-byte header")
    head = bytes(image.data[:HEADER_BYTES])
    declared, block_bytes = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
    if declared != size and any(head):
        raise UndecodableImage("size_mismatch", f"the payload declares {declared} bytes, the image has {size}")
    block_bytes = block_bytes or DEFAULT_BLOCK_BYTES
    if block_bytes % (8 * element) or block_bytes > MAX_BLOCK_BYTES:
        raise UndecodableImage("bad_header", f"blocks of {block_bytes} bytes of {element}-byte elements")
    return Blocks(size // element, element, block_bytes // element)


def write_table(payload: npt.NDArray[np.uint8], blocks: Blocks, table: npt.NDArray[np.uint32]) -> None:
    """Write where each block's LZ4 bytes start in ``payload``, header included, and how many they are.

    ``table`` is (blocks.count, 2) and C-contiguous. Raises ``UndecodableImage`` when the lengths do not end exactly at
    the payload's end, less what is left over; the table is then undefined.
    """
    bad = _walk(payload, blocks.left_over * blocks.element_bytes, table)
    if bad:
        raise UndecodableImage("bad_block", f"the length of block {-1 - bad} does not fit the payload")


@numba.njit(types.int64(_BYTES, types.int64, _TABLE), nogil=True, cache=True)
def _walk(payload: Any, left_over_bytes: int, table: Any) -> int:
    """0, or -1 - (number of the block whose length does not fit)."""
    end, position = payload.size, np.int64(HEADER_BYTES)
    for block in range(table.shape[0]):
        if end - position < 4:
            return -1 - block
        length = big_endian_u32(payload, int(position))
        position += 4
        if length == 0 or length > end - position:
            return -1 - block
        table[block, 0], table[block, 1] = position, length
        position += length
    return 0 if end - position == left_over_bytes else -1 - table.shape[0]
