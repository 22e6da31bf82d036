"""Bare decoders of bitshuffle-LZ4: ours, those that everybody calls, and a copy of the pixels as the floor.

Each is made once for a thread and then called with the number of a frame; it returns the pixels, in any shape.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bitshuffle
import h5py
import hdf5plugin  # noqa: F401  registers the filters of HDF5
import numpy as np
import numpy.typing as npt

from cxls.bench.inputs import decoded, image_data, packed_frames
from streamer.decoding import DEFAULT_BLOCK_BYTES, decode
from streamer.listing import Listing
from streamer.messages import ImageData
from streamer.validity import sentinel

HEADER_BYTES = 12

Pixels = npt.NDArray[Any]
Decoder = Callable[[int], Pixels]


@dataclass(frozen=True, slots=True)
class Packed:
    """The frames of one series: the file they are in, their chunks in memory, and their pixels."""

    master: Path
    images: Sequence[ImageData]
    pixels: Sequence[Pixels]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.pixels[0].dtype


def pack(master: Path) -> Packed:
    """The frames of a series that was simulated for a benchmark."""
    frames = packed_frames(master)
    return Packed(master, [image_data(frame) for frame in frames], [decoded(frame) for frame in frames])


def _ours(packed: Packed) -> Decoder:
    buffer = np.empty_like(packed.pixels[0])

    def call(number: int) -> Pixels:
        decode(packed.images[number], buffer)
        return buffer

    return call


def _listing(packed: Packed) -> Listing:
    # What has no data in the first frame lies between modules.
    return Listing((packed.pixels[0] != sentinel(packed.dtype)).astype(np.uint8), packed.dtype)


def _listed(packed: Packed) -> Decoder:
    listing = _listing(packed)

    def call(number: int) -> Pixels:
        listing.unpack(packed.images[number])
        return listing.pixels

    return call


def _searched(packed: Packed) -> Decoder:
    listing = _listing(packed)

    def call(number: int) -> Pixels:
        decode(packed.images[number], listing.pixels)
        listing.search()
        return listing.pixels

    return call


def _bitshuffle(packed: Packed) -> Decoder:
    bodies = [np.frombuffer(image.data, np.uint8)[HEADER_BYTES:] for image in packed.images]
    shape, dtype = packed.pixels[0].shape, packed.dtype
    block = DEFAULT_BLOCK_BYTES // dtype.itemsize
    return lambda number: bitshuffle.decompress_lz4(bodies[number], shape, dtype, block)  # type: ignore[no-any-return]


def _dectris(packed: Packed) -> Decoder:
    decompress = importlib.import_module("dectris.compression").decompress
    payloads, dtype = [bytes(image.data) for image in packed.images], packed.dtype
    return lambda number: np.frombuffer(decompress(payloads[number], "bslz4", elem_size=dtype.itemsize), dtype)


def _hdf5plugin(packed: Packed) -> Decoder:
    images = h5py.File(packed.master)["entry/data/data_000001"]
    return lambda number: images[number]  # type: ignore[no-any-return]


def _imagecodecs(packed: Packed) -> Decoder:
    library = importlib.import_module("imagecodecs")
    payloads, dtype = [bytes(image.data) for image in packed.images], packed.dtype

    def call(number: int) -> Pixels:
        # Typed, because it goes by the array's item size and not by the one it is told.
        shuffled = np.frombuffer(library.lz4h5_decode(payloads[number]), dtype)
        pixels: Pixels = library.bitshuffle_decode(
            shuffled, itemsize=dtype.itemsize, blocksize=DEFAULT_BLOCK_BYTES // dtype.itemsize
        )
        return pixels

    return call


def _copy(packed: Packed) -> Decoder:
    buffer = np.empty_like(packed.pixels[0])

    def call(number: int) -> Pixels:
        np.copyto(buffer, packed.pixels[number])
        return buffer

    return call


OURS, LISTED, FLOOR = "ours", "ours, with the list of what counted", "copy of the pixels"

DECODERS: dict[str, Callable[[Packed], Decoder]] = {
    OURS: _ours,
    LISTED: _listed,
    "ours, then searched for the list": _searched,
    "bitshuffle.decompress_lz4": _bitshuffle,
    "dectris-compression": _dectris,
    "h5py with hdf5plugin, from the file": _hdf5plugin,
    "imagecodecs": _imagecodecs,
    FLOOR: _copy,
}

_NEEDS = {"dectris-compression": "dectris", "imagecodecs": "imagecodecs"}
"""Packages that need not be there."""


def installed() -> list[str]:
    """The decoders that can run here."""
    return [name for name in DECODERS if name not in _NEEDS or find_spec(_NEEDS[name]) is not None]


def make(name: str, packed: Packed) -> Decoder:
    """A decoder for one thread. Raises ``RuntimeError`` when it does not give our pixels."""
    decoder = DECODERS[name](packed)
    for number, expected in enumerate(packed.pixels):
        if not np.array_equal(decoder(number).reshape(-1), expected.reshape(-1)):
            raise RuntimeError(f"{name} gives other pixels than we do for frame {number} of {packed.dtype}")
    return decoder
