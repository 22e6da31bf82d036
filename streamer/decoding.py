"""From packed bytes to pixels, in the caller's buffer, on any bytes whatever.

``bitshuffle`` trusts its input: malformed bytes make it read and write out of range. So the
header is checked against the image's shape and every block length is walked before it is
called. The walk is compiled; the decoder is called through ctypes because the Python call
allocates its output and because ctypes lets go of the interpreter lock.

Format of a bitshuffle-LZ4 payload (HDF5 filter 32008, stream v1 ``bsN-lz4<``, stream v2
``bslz4``): u64 big-endian decoded bytes, u32 big-endian block bytes, then for each block a
u32 big-endian length and its LZ4 bytes; the last elements, fewer than 8, follow as they are.
"""

import ctypes
import importlib
from typing import Any

import bitshuffle.ext
import numba
import numpy as np
import numpy.typing as npt
from numba import types

from streamer.bounds import MAX_DECODED_BYTES
from streamer.messages import Algorithm, ImageData, UndecodableImage

HEADER_BYTES = 12
DEFAULT_BLOCK_BYTES = 8192
MAX_BLOCK_BYTES = 1 << 24
MAX_LZ4_RATIO = 255
"""No LZ4 block decodes to more bytes than this a byte: a match length grows by 255 a byte."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_OUT = types.Array(types.uint8, 1, "C")


@numba.njit(types.int64(_BYTES, types.int64), nogil=True, cache=True, inline="always")
def big_endian_u32(payload: Any, position: Any) -> int:
    """The four bytes at ``position``, which the caller knows to be there."""
    return int(
        (np.int64(payload[position]) << 24)
        | (np.int64(payload[position + 1]) << 16)
        | (np.int64(payload[position + 2]) << 8)
        | np.int64(payload[position + 3])
    )


@numba.njit(types.int64(_BYTES, types.int64, types.int64, types.int64), nogil=True, cache=True)
def _walk_blocks(payload: Any, elements: int, element_bytes: int, block_elements: int) -> int:
    """0 when the block lengths end exactly at the payload's end, else -1 - (number of the bad block)."""
    full = elements // block_elements
    rest = elements % block_elements
    rest -= rest % 8
    blocks = full + (1 if rest else 0)
    end = payload.size
    position = np.int64(0)
    for block in range(blocks):
        if end - position < 4:
            return -1 - block
        length = big_endian_u32(payload, int(position))
        position += 4 + length
        if length == 0 or position > end:
            return -1 - block
    if end - position != (elements % 8) * element_bytes:
        return -1 - blocks
    return 0


@numba.njit(types.int64(_BYTES, types.int64, types.int64, _OUT, types.int64, types.int64), nogil=True, cache=True)
def _lz4_block(source: Any, start: int, stop: int, out: Any, out_start: int, out_stop: int) -> int:
    """Decode one LZ4 block; 0 when it fills its output exactly, else -1.

    Source: LZ4 block format description. Every length is checked before it is used.
    """
    position, target = np.int64(start), np.int64(out_start)
    while position < stop:
        token = source[position]
        position += 1
        literals = np.int64(token >> 4)
        if literals == 15:
            while True:
                if position >= stop:
                    return -1
                more = source[position]
                position += 1
                literals += more
                if more != 255:
                    break
        if literals > stop - position or literals > out_stop - target:
            return -1
        for k in range(literals):
            out[target + k] = source[position + k]
        position += literals
        target += literals
        if position == stop:
            break
        if stop - position < 2:
            return -1
        offset = np.int64(source[position]) | (np.int64(source[position + 1]) << 8)
        position += 2
        length = np.int64(token & 15)
        if length == 15:
            while True:
                if position >= stop:
                    return -1
                more = source[position]
                position += 1
                length += more
                if more != 255:
                    break
        length += 4
        if offset == 0 or offset > target - out_start or length > out_stop - target:
            return -1
        for k in range(length):
            out[target + k] = out[target + k - offset]
        target += length
    return 0 if target == out_stop else -1


@numba.njit(types.int64(_BYTES, types.int64, _OUT), nogil=True, cache=True)
def _lz4_hdf5(payload: Any, block_bytes: int, out: Any) -> int:
    """Decode the blocks of HDF5 filter 32004; 0, or -1 - (number of the bad block)."""
    end = payload.size
    position, target, block = np.int64(0), np.int64(0), 0
    while target < out.size:
        want = min(block_bytes, out.size - target)
        if end - position < 4:
            return -1 - block
        length = big_endian_u32(payload, int(position))
        position += 4
        if length == 0 or length > end - position:
            return -1 - block
        if length == want:
            for k in range(want):
                out[target + k] = payload[position + k]
        elif _lz4_block(payload, int(position), int(position + length), out, int(target), int(target + want)) != 0:
            return -1 - block
        position += length
        target += want
        block += 1
    return 0 if position == end else -1 - block


_LZ4_PACKED = (Algorithm.BSLZ4, Algorithm.LZ4_BLOCK, Algorithm.LZ4_HDF5)


def _load_bitshuffle() -> tuple[Any, Any]:
    """The C entry points of the bitshuffle extension, ``None`` where this build hides them."""
    try:
        library = ctypes.CDLL(bitshuffle.ext.__file__)
        bslz4, lz4 = library.bshuf_decompress_lz4, library.LZ4_decompress_safe
    except (OSError, AttributeError):
        return None, None
    bslz4.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]
    bslz4.restype = ctypes.c_int64
    lz4.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    lz4.restype = ctypes.c_int
    return bslz4, lz4


_bslz4_into, _lz4_into = _load_bitshuffle()
LZ4_ADDRESS = 0 if _lz4_into is None else ctypes.cast(_lz4_into, ctypes.c_void_p).value or 0
"""Of ``LZ4_decompress_safe``, for compiled callers; 0 where this build hides it."""


def decode(image: ImageData, out: npt.NDArray[Any]) -> None:
    """Decode ``image`` into ``out``.

    ``out`` is C-contiguous, in native byte order, of the image's item size and number of
    pixels (any shape). On failure its content is undefined. Raises ``UndecodableImage``, and
    ``ValueError`` for a buffer that does not suit.
    """
    if out.dtype.itemsize != image.dtype.itemsize or out.nbytes != image.decoded_bytes:
        raise ValueError(f"the buffer holds {out.nbytes} bytes, the image {image.decoded_bytes}")
    if not (out.flags.c_contiguous and out.flags.writeable and out.dtype.isnative):
        raise ValueError("the buffer is not contiguous, writable and in native byte order")
    check_size(image)
    target = out.reshape(-1).view(np.uint8)
    payload = _payload(image)
    if image.algorithm == Algorithm.RAW:
        if payload.nbytes != target.nbytes:
            raise UndecodableImage("size_mismatch", f"{payload.nbytes} bytes for an image of {target.nbytes}")
        target[:] = payload
    elif image.algorithm == Algorithm.BSLZ4:
        _decode_bslz4(image, target)
    elif image.algorithm == Algorithm.LZ4_BLOCK:
        _decode_lz4_block(payload, target)
    elif image.algorithm == Algorithm.LZ4_HDF5:
        _decode_lz4_hdf5(payload, target)
    else:
        _decode_with_dectris(payload, image, target)
    if image.dtype.byteorder == ">":
        out.byteswap(inplace=True)


def check_size(image: ImageData) -> None:
    """Refuse an image that no buffer should be made for; call before making one for its shape.

    Raises ``UndecodableImage`` when it is too large, or larger than its bytes can decode to.
    """
    size, packed = image.decoded_bytes, len(image.data)
    if not 0 < size <= MAX_DECODED_BYTES:
        raise UndecodableImage("size_mismatch", f"an image of {image.shape} pixels of {image.dtype}")
    if image.algorithm in _LZ4_PACKED and size > MAX_LZ4_RATIO * packed:
        raise UndecodableImage("size_mismatch", f"{packed} bytes cannot hold an image of {size}")


def bslz4_block_bytes(image: ImageData) -> int:
    """Bytes that a block of a bitshuffle-LZ4 image decodes to, by its header. Raises ``UndecodableImage``."""
    element, size = image.element_bytes, image.decoded_bytes
    if element not in (1, 2, 4, 8) or size % element:
        raise UndecodableImage("bad_header", f"elements of {element} bytes in an image of {size}")
    block_bytes = _framing(_payload(image), size)
    if block_bytes % (8 * element) or not 0 < block_bytes <= MAX_BLOCK_BYTES:
        raise UndecodableImage("bad_header", f"blocks of {block_bytes} bytes of {element}-byte elements")
    return block_bytes


def walked_bslz4(image: ImageData) -> tuple[npt.NDArray[np.uint8], int]:
    """The blocks of a bitshuffle-LZ4 image, each length known to fit the payload, and the bytes that one decodes to.

    Raises ``UndecodableImage``.
    """
    block_bytes, element = bslz4_block_bytes(image), image.element_bytes
    body = _payload(image)[HEADER_BYTES:]
    bad = _walk_blocks(body, image.decoded_bytes // element, element, block_bytes // element)
    if bad:
        raise UndecodableImage("bad_block", f"the length of block {-1 - bad} does not fit the payload")
    return body, block_bytes


def _payload(image: ImageData) -> npt.NDArray[np.uint8]:
    return np.frombuffer(image.data, np.uint8) if len(image.data) else np.empty(0, np.uint8)


def _decode_bslz4(image: ImageData, target: npt.NDArray[np.uint8]) -> None:
    body, block_bytes = walked_bslz4(image)
    element = image.element_bytes
    elements, block = target.nbytes // element, block_bytes // element
    if _bslz4_into is None:
        try:
            decoded = bitshuffle.decompress_lz4(np.array(body), (elements,), np.dtype(f"u{element}"), block)
        except RuntimeError as error:
            raise UndecodableImage("bad_block", f"bitshuffle-LZ4 decoder: {error}") from None
        target[:] = decoded.view(np.uint8)
        return
    used = _bslz4_into(_address(body), _address(target), elements, element, block)
    if used != body.nbytes:
        raise UndecodableImage("bad_block", f"bitshuffle-LZ4 decoder returned {used}, not {body.nbytes}")


def _framing(payload: npt.NDArray[np.uint8], decoded_bytes: int) -> int:
    """Block size in bytes from a 12-byte header whose decoded size must be the image's."""
    if payload.nbytes < HEADER_BYTES:
        raise UndecodableImage("bad_header", f"{payload.nbytes} bytes, shorter than the 12-byte header")
    head = payload[:HEADER_BYTES].tobytes()
    total, block_bytes = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
    if head == bytes(HEADER_BYTES):
        return DEFAULT_BLOCK_BYTES
    if total != decoded_bytes:
        raise UndecodableImage("size_mismatch", f"the payload declares {total} bytes, the image has {decoded_bytes}")
    return block_bytes or DEFAULT_BLOCK_BYTES


def _decode_lz4_block(payload: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> None:
    if _lz4_into is None:
        failed = _lz4_block(payload, 0, payload.nbytes, target, 0, target.nbytes) != 0
    else:
        failed = _lz4_into(_address(payload), _address(target), payload.nbytes, target.nbytes) != target.nbytes
    if failed:
        raise UndecodableImage("bad_block", "the LZ4 block does not decode to the size of the image")


def _decode_lz4_hdf5(payload: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> None:
    block_bytes = _framing(payload, target.nbytes)
    body = payload[12:]
    if block_bytes >= target.nbytes and body.nbytes - 4 != target.nbytes:
        if int.from_bytes(body[:4].tobytes(), "big") != body.nbytes - 4:
            raise UndecodableImage("bad_block", "the length of block 0 does not fit the payload")
        _decode_lz4_block(body[4:], target)
        return
    bad = _lz4_hdf5(body, block_bytes, target)
    if bad:
        raise UndecodableImage("bad_block", f"block {-1 - bad} does not decode")


def _decode_with_dectris(payload: npt.NDArray[np.uint8], image: ImageData, target: npt.NDArray[np.uint8]) -> None:
    try:
        compression = importlib.import_module("dectris.compression")
    except ImportError:
        raise UndecodableImage(
            "unknown_algorithm", f"compression {image.algorithm} needs the package dectris-compression"
        ) from None
    if image.algorithm == Algorithm.BSZSTD:
        # The package believes the header and allocates what it says.
        block_bytes = _framing(payload, target.nbytes)
        if block_bytes > MAX_BLOCK_BYTES or image.element_bytes not in (1, 2, 4, 8):
            raise UndecodableImage("bad_header", f"blocks of {block_bytes} bytes, elements of {image.element_bytes}")
    try:
        decoded = compression.decompress(payload, str(image.algorithm), elem_size=image.element_bytes)
    except (RuntimeError, ValueError, MemoryError, TypeError, SystemError, OverflowError) as error:
        raise UndecodableImage("bad_block", f"{image.algorithm}: {error}") from None
    if len(decoded) != target.nbytes:
        raise UndecodableImage("size_mismatch", f"{len(decoded)} bytes decoded, the image has {target.nbytes}")
    target[:] = np.frombuffer(decoded, np.uint8)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
