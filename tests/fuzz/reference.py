"""Decoders as their formats are described, slow and short, to compare with: LZ4 blocks, bitshuffle.

One thing is as liblz4 has it, not as described: a match at offset 0, which no encoder writes, is zeros.

Sources: LZ4 block format description; bitshuffle's README (bit planes of a block, elements in multiples of 8).
"""

import struct

import numpy as np


class Refused(ValueError):
    """Bytes that the format does not allow."""


def lz4_block(packed: bytes, size: int) -> bytes:
    """A block of ``size`` bytes unpacked. Raises ``Refused``."""
    out, place = bytearray(), 0

    def more(length: int) -> int:
        nonlocal place
        if length == 15:
            while True:
                byte = packed[place]
                place += 1
                length += byte
                if byte != 255:
                    break
        return length

    try:
        while True:
            token = packed[place]
            place += 1
            literals = more(token >> 4)
            if len(packed) - place < literals:
                raise Refused("literals beyond the end")
            out += packed[place : place + literals]
            place += literals
            if place == len(packed):
                break
            offset = packed[place] | packed[place + 1] << 8
            place += 2
            length = more(token & 15) + 4
            if offset > len(out) or len(out) + length > size:
                raise Refused("a match outside the block")
            for _ in range(length):
                out.append(out[-offset] if offset else 0)
    except IndexError:
        raise Refused("cut short") from None
    if len(out) != size:
        raise Refused("another size")
    return bytes(out)


def bslz4(packed: bytes, size: int, width: int) -> bytes:
    """A payload of HDF5 filter 32008 of ``size`` bytes in elements of ``width``. Raises ``Refused``."""
    _, block_bytes = struct.unpack(">QI", packed[:12])
    block_bytes = block_bytes or 8192
    place, out = 12, b""
    whole = size // width // 8 * 8 * width
    while len(out) < whole:
        here = min(block_bytes, whole - len(out))
        (length,) = struct.unpack(">I", packed[place : place + 4])
        planes = np.frombuffer(lz4_block(packed[place + 4 : place + 4 + length], here), np.uint8)
        bits = np.unpackbits(planes.reshape(8 * width, -1), axis=1, bitorder="little")
        out += np.packbits(bits.T, axis=1, bitorder="little").tobytes()
        place += 4 + length
    if len(packed) - place != size - whole:
        raise Refused("another length")
    return out + packed[place:]


def lz4_hdf5(packed: bytes, size: int) -> bytes:
    """A payload of HDF5 filter 32004 of ``size`` bytes. Raises ``Refused``."""
    _, block_bytes = struct.unpack(">QI", packed[:12])
    block_bytes = block_bytes or 8192
    place, out = 12, b""
    while len(out) < size:
        here = min(block_bytes, size - len(out))
        (length,) = struct.unpack(">I", packed[place : place + 4])
        block = packed[place + 4 : place + 4 + length]
        out += block if length == here else lz4_block(block, here)
        place += 4 + length
    if place != len(packed):
        raise Refused("another length")
    return out
