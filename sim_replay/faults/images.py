"""Faults of one image's bytes: image in, image out, or message parts in, parts out. Each says what its account shows.

Reasons are derived here from what was done to the bytes and never asked of the parser or the decoder, whose answers
they are to check.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from streamer.decoding import HEADER_BYTES, MAX_LZ4_RATIO
from streamer.messages import Algorithm, Buffer, ImageData

Expected = dict[str, Any]
"""Differences that one fault makes in the account: ``missing.gap``, ``undecodable.bad_block``, ``received``, each with
an integer; ``any``: one of these, or none for names that no counter has."""

_LZ4 = (Algorithm.BSLZ4, Algorithm.LZ4_BLOCK, Algorithm.LZ4_HDF5)
_OTHER_SHAPES = ((64, 64), (32, 48))
_TAG_40_OF_TWO = b"\xd8\x28\x82"


def undecodable(reason: str) -> Expected:
    return {f"undecodable.{reason}": 1}


WRONG_PIXELS = "wrong_pixels"
UNKNOWN_OUTCOME: Expected = {
    "any": ["undecodable.bad_block", "undecodable.size_mismatch", "undecodable.bad_header", WRONG_PIXELS]
}


def carried(image: ImageData, protocol: str) -> ImageData:
    """The image as the stream packs it: stream v1 has LZ4 blocks bare."""
    if protocol == "v1" and image.algorithm == Algorithm.LZ4_HDF5:
        return replace(image, data=memoryview(image.data)[16:], algorithm=Algorithm.LZ4_BLOCK)
    return image


def truncate_payload(image: ImageData, known_shape: bool, rng: random.Random) -> tuple[ImageData, Expected]:
    """The second half of the packed bytes gone, or less where so few bytes could not hold the image at all."""
    del known_shape, rng
    size, least = len(image.data), image.decoded_bytes // MAX_LZ4_RATIO + HEADER_BYTES + 4
    left = min(max(size // 2, least), max(size - 8, 0))
    cut = replace(image, data=memoryview(image.data)[:left])
    if image.algorithm == Algorithm.RAW:
        return cut, undecodable("size_mismatch")
    if image.algorithm not in _LZ4:
        return cut, {"any": ["undecodable.bad_block", "undecodable.unknown_algorithm", "undecodable.size_mismatch"]}
    too_few = image.decoded_bytes > MAX_LZ4_RATIO * left
    return cut, undecodable("size_mismatch" if too_few else "bad_block")


def corrupt_payload(image: ImageData, known_shape: bool, rng: random.Random) -> tuple[ImageData, Expected]:
    """A block length, or the first token of a bare LZ4 block, that cannot be; noise where there is neither."""
    if image.algorithm == Algorithm.LZ4_BLOCK:
        # No literals, then a copy from 65535 bytes before the beginning.
        return _overwritten(image, 0, b"\x0f\xff\xff"), undecodable("bad_block")
    if image.algorithm in (Algorithm.BSLZ4, Algorithm.LZ4_HDF5):
        at = HEADER_BYTES
        for _ in range(rng.randrange(8) if image.algorithm == Algorithm.BSLZ4 else 0):
            following = at + 4 + int.from_bytes(image.data[at : at + 4], "big")
            # The last elements stand without a length, so a length is one where a block's bytes follow it.
            if following + 4 + 64 > len(image.data):
                break
            at = following
        return _overwritten(image, at, b"\xff\xff\xff\xff"), undecodable("bad_block")
    return flip_bits(image, known_shape, rng)


def flip_bits(image: ImageData, known_shape: bool, rng: random.Random) -> tuple[ImageData, Expected]:
    """16 bits behind the header flipped: what comes of it depends on the bytes."""
    del known_shape
    data = bytearray(image.data)
    first = HEADER_BYTES if image.algorithm == Algorithm.BSLZ4 else 0
    for _ in range(16):
        data[rng.randrange(first, len(data))] ^= 1 << rng.randrange(8)
    expected = UNKNOWN_OUTCOME if image.algorithm != Algorithm.RAW else {"any": [WRONG_PIXELS]}
    return replace(image, data=data), expected


def wrong_size(image: ImageData, known_shape: bool, rng: random.Random) -> tuple[ImageData, Expected]:
    """One row more than there is."""
    del rng
    larger = replace(image, shape=(image.shape[0] + 1, image.shape[1]))
    bare = image.algorithm == Algorithm.LZ4_BLOCK and larger.decoded_bytes <= MAX_LZ4_RATIO * len(image.data)
    # Nothing but the series' header tells the size of a bare LZ4 block.
    return larger, undecodable("bad_block" if bare and not known_shape else "size_mismatch")


def wrong_dtype(image: ImageData, known_shape: bool, rng: random.Random) -> tuple[ImageData, Expected]:
    """Pixels said to be 32-bit floats."""
    del known_shape, rng
    return replace(image, dtype=np.dtype("<f4")), undecodable("unknown_dtype")


def shape_change(image: ImageData, known_shape: bool, rng: random.Random) -> tuple[ImageData, Expected]:
    """A good small image, of zeros."""
    del rng
    shape = next(shape for shape in _OTHER_SHAPES if shape != image.shape)
    small = ImageData(bytes(shape[0] * shape[1] * 2), shape, np.dtype("<u2"), Algorithm.RAW, 2)
    return small, undecodable("size_mismatch") if known_shape else {}


def _overwritten(image: ImageData, at: int, data: bytes) -> ImageData:
    changed = bytearray(image.data)
    changed[at : at + len(data)] = data
    return replace(image, data=changed)


ImageFault = Callable[[ImageData, bool, random.Random], tuple[ImageData, Expected]]
IMAGE_FAULTS: dict[str, ImageFault] = {
    function.__name__: function
    for function in (
        truncate_payload, corrupt_payload, flip_bits, wrong_size, wrong_dtype, shape_change,
    )
}  # fmt: skip
"""By the name of their kind; the second argument says whether the series' header tells the shape."""


def truncate_message(parts: list[Buffer], packed: int) -> list[Buffer]:
    """The message ends before its pixels (v1), or in the middle of them (v2), which are its last ``packed`` bytes."""
    return parts[:2] if len(parts) > 1 else [memoryview(parts[0])[: len(parts[0]) - (packed + 1) // 2]]


def corrupt_header(parts: list[Buffer]) -> list[Buffer]:
    """What describes the pixels does not parse: the second part of v1, the array tag of v2."""
    if len(parts) > 1:
        return [parts[0], b"\x00" + bytes(parts[1])[1:], *parts[2:]]
    message = bytearray(parts[0])
    at = message.index(_TAG_40_OF_TWO, message.index(b"\x64data"))
    message[at + 2] = 0x80
    return [message]


def corrupt_message(parts: list[Buffer]) -> list[Buffer]:
    """The message does not parse, from its first byte (v1) or the first after what says that it is CBOR (v2)."""
    if len(parts) > 1:
        return [b"\x00" + bytes(parts[0])[1:], *parts[1:]]
    message = bytearray(parts[0])
    message[3] = 0xFF
    return [message]


def foreign_message(protocol: str) -> list[Buffer]:
    """A message of something else: a web browser's, or msgpack text, whose first byte could begin a v2 message."""
    return [b"GET / HTTP/1.1\r\nHost: detector\r\n\r\n" if protocol == "v1" else b"\xa5hello"]
