"""What tests of the decoder share: what a batch should become, and what it became."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.cuda.decode import BatchDecoder, DecodedBatch
from analyzer.cuda.staging import Batch
from streamer.decoding import decode
from streamer.messages import Algorithm, ImageData

UNTOUCHED = 0x5555
"""What pixels hold before they are decoded."""


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Of n frames: pixels (n, stride), bits of pixels (n, stride), error words (n,)."""

    pixels: npt.NDArray[np.uint16]
    lit: npt.NDArray[np.bool_]
    blank: npt.NDArray[np.bool_]
    errors: npt.NDArray[np.int32]


def batch_for(decoder: BatchDecoder, frames: int, device: Any) -> Batch:
    """Room for so many frames of this kind, however they are packed."""
    return Batch(frames, frames * decoder.frame_bytes_at_most, device)


def run(decoder: BatchDecoder, batch: Batch, grid: tuple[int, int] | None = None) -> Frames:
    """Decode a batch over what was there before."""
    into = decoder.outputs(batch.capacity)
    into.pixels.fill_(UNTOUCHED)
    batch.upload()
    decoder.decode(batch, into, grid=grid)
    return fetched(batch, into)


def fetched(batch: Batch, into: DecodedBatch) -> Frames:
    """A decoded batch as arrays."""
    lit, blank = (
        np.unpackbits(bits.cpu().numpy().view(np.uint8), axis=1, bitorder="little").astype(bool)
        for bits in (into.lit, into.blank)
    )
    return Frames(into.pixels.cpu().numpy(), lit, blank, batch.device_errors.cpu().numpy().copy())


def decoded(
    program: Any, images: Sequence[ImageData], valid: npt.NDArray[np.uint8] | None = None, dtype: Any = None
) -> Frames:
    """Images of one shape and type, each of them put into one batch and decoded."""
    first = images[0]
    mask = np.ones(first.shape, np.uint8) if valid is None else valid
    decoder = BatchDecoder(first.shape, dtype or first.dtype, mask, program)
    batch = batch_for(decoder, len(images), program.device)
    for number, image in enumerate(images):
        assert decoder.stage(image, batch) == number
    return run(decoder, batch)


def check(frames: Frames, number: int, image: ImageData, valid: npt.NDArray[np.uint8] | None = None) -> None:
    """Frame ``number`` is what ``streamer.decoding`` makes of the image, in 16 bits, and its bits say so."""
    out = np.empty(image.pixels, image.dtype.newbyteorder("="))
    decode(image, out)
    without = out == np.iinfo(out.dtype).max
    counts = np.minimum(out, 0xFFFE) if out.dtype.itemsize > 1 else out
    expected = np.where(without, 0xFFFF, counts.astype(np.uint16))
    counted = np.ones(out.size, bool) if valid is None else valid.reshape(-1) != 0
    assert frames.errors[number] == 0
    np.testing.assert_array_equal(frames.pixels[number, : out.size], expected)
    np.testing.assert_array_equal(frames.lit[number, : out.size], (out != 0) & ~without & counted)
    np.testing.assert_array_equal(frames.blank[number, : out.size], without & counted)
    assert (frames.pixels[number, out.size :] == UNTOUCHED).all(), "pixels behind the frame were written"
    assert not frames.lit[number, out.size :].any()
    assert not frames.blank[number, out.size :].any()


def lz4_sequence(literals: bytes, distance: int = 0, length: int = 0) -> bytes:
    """Of an LZ4 block: a token, its literals and its match, if it has a length."""
    more = length - 4 if length else 0
    head = bytes([min(len(literals), 15) << 4 | min(more, 15)]) + _rest(len(literals)) + literals
    return head + (struct.pack("<H", distance) + _rest(more) if length else b"")


def one_block(packed: bytes, pixels: int) -> ImageData:
    """An image of 8 bits in a single block, of LZ4 bytes that need not make sense."""
    payload = struct.pack(">QII", pixels, 8192, len(packed)) + packed
    return ImageData(payload, (1, pixels), np.dtype("u1"), Algorithm.BSLZ4, 1)


def _rest(length: int) -> bytes:
    return b"" if length < 15 else b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])
