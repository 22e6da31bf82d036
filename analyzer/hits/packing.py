"""How a received image lies in an HDF5 chunk: as it came, wherever HDF5 has a filter for it.

| as received           | in the file                                                                  |
|-----------------------|------------------------------------------------------------------------------|
| bitshuffle-LZ4        | filter 32008, the chunk as received                                          |
| bitshuffle-Zstandard  | filter 32008, the chunk as received                                          |
| LZ4 in HDF5's framing | filter 32004, the chunk as received                                          |
| one bare LZ4 block    | filter 32004, 16 bytes of framing before it                                  |
| uncompressed          | no filter, the chunk as received                                             |
| anything else         | no filter, unpacked: TERSE/PROLIX, bitshuffle of elements that are no pixels |
"""

import struct
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import hdf5plugin
import numpy as np

from streamer.decoding import DEFAULT_BLOCK_BYTES, decode
from streamer.messages import Algorithm, Buffer, ImageData


class Filter(StrEnum):
    """What a dataset's chunks are packed with."""

    NONE = "none"
    BSLZ4 = "bslz4"
    BSZSTD = "bszstd"
    LZ4 = "lz4"


_AS_RECEIVED = {
    Algorithm.RAW: Filter.NONE,
    Algorithm.BSLZ4: Filter.BSLZ4,
    Algorithm.BSZSTD: Filter.BSZSTD,
    Algorithm.LZ4_HDF5: Filter.LZ4,
    Algorithm.LZ4_BLOCK: Filter.LZ4,
}


def filter_of(image: ImageData, packed_bytes: int) -> Filter:
    """The filter under which an image of so many packed bytes is stored; does not look at them."""
    found = _AS_RECEIVED.get(image.algorithm, Filter.NONE)
    if found in (Filter.BSLZ4, Filter.BSZSTD) and image.element_bytes != image.dtype.itemsize:
        return Filter.NONE  # HDF5 takes the element's size from the pixel type
    if image.algorithm == Algorithm.LZ4_BLOCK and packed_bytes >= image.decoded_bytes:
        return Filter.NONE  # filter 32004 takes a block of that length for one stored as it is
    return found


def stored_bytes(image: ImageData) -> int:
    """About how many bytes the image's chunk has in a file: all of them where it is stored unpacked."""
    packed = len(image.data)
    return image.decoded_bytes if filter_of(image, packed) == Filter.NONE else packed


def dataset_options(packed_with: Filter) -> Mapping[str, Any]:
    """What h5py has to be told of the filter."""
    if packed_with == Filter.BSLZ4:
        return dict(hdf5plugin.Bitshuffle(cname="lz4"))
    if packed_with == Filter.BSZSTD:
        return dict(hdf5plugin.Bitshuffle(cname="zstd"))
    return dict(hdf5plugin.LZ4()) if packed_with == Filter.LZ4 else {}


def chunk_of(image: ImageData) -> Buffer:
    """The image's chunk under ``filter_of``. Raises ``UndecodableImage`` where it must be unpacked and cannot be."""
    packed_with = filter_of(image, len(image.data))
    if packed_with == Filter.NONE and image.algorithm != Algorithm.RAW:
        pixels = np.empty(image.shape, image.dtype.newbyteorder("="))
        decode(image, pixels)
        return pixels.astype(image.dtype, copy=False).tobytes()
    if image.algorithm == Algorithm.LZ4_BLOCK:
        size = image.decoded_bytes
        return struct.pack(">QII", size, size, len(image.data)) + bytes(image.data)
    if packed_with != Filter.NONE and not all(struct.unpack_from(">QI", image.data)):
        # Some senders leave the framing's numbers out; our decoder knows them, HDF5's does not.
        return struct.pack(">QI", image.decoded_bytes, DEFAULT_BLOCK_BYTES) + bytes(image.data[12:])
    return image.data
