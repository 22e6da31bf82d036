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

from streamer.decoding import HEADER_BYTES, big_endian_u32, bslz4_block_bytes
from streamer.messages import ImageData, UndecodableImage

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
    block_bytes, element = bslz4_block_bytes(image), image.element_bytes
    return Blocks(image.decoded_bytes // element, element, block_bytes // element)


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
