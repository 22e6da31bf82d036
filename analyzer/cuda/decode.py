"""From packed frames to pixels on the device, a batch at once.

Frames in bitshuffle-LZ4 travel as they came and are decoded there (sources/bslz4.cu). Any other packing is decoded by
``streamer.decoding`` into the batch, so that every frame takes the same way from there on.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from analyzer.cuda.blocks import Blocks, blocks_of, write_table
from analyzer.cuda.staging import Batch, Packing, aligned
from streamer.decoding import DEFAULT_BLOCK_BYTES, HEADER_BYTES, check_size, decode
from streamer.listing import bitmap
from streamer.messages import Algorithm, ImageData, UndecodableImage

NO_DATA = 0xFFFF
"""What a pixel without data becomes, whatever the type it came in."""

MOST_COUNTS = 0xFFFE
"""What more counts than this become."""

LARGEST_BLOCK_BYTES = 8192
"""``ROOM`` of sources/bslz4.cu."""

SMALLEST_BLOCK_BYTES = 512
"""Smaller blocks, which no detector sends, are decoded on the host: their table would be longer than they are."""

_TABLE_BYTES = 8
_LENGTH_BYTES = 4
_PIXELS_A_WORD = 64
_ERROR_TOP = 0x7FFFFFFF
_KERNELS = {1: "bslz4_u8", 2: "bslz4_u16", 4: "bslz4_u32"}


class Launcher(Protocol):
    """Where kernels run: ``program.Program``, or in tests a build of the same source for the CPU."""

    @property
    def device(self) -> torch.device: ...

    def launch(
        self, name: str, blocks_x: int, blocks_y: int, stream: Any, *arguments: torch.Tensor | int | float
    ) -> None:
        """Start kernel ``name`` on a grid of blocks, on ``stream`` (torch's current one for ``None``)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DecodedBatch:
    """What a batch is decoded into, on the device; n frames, a stride of s pixels, a multiple of 64.

    ``pixels`` (n, s) uint16: counts up to 0xFFFE, 0xFFFF where there are no data. ``lit``, ``blank`` (n, s / 64)
    uint64: valid pixels with at least one count, and valid pixels without data; bit k of word w is pixel 64 w + k.
    Behind the last pixel everything is 0. A frame that does not decode leaves its part undefined.
    """

    pixels: torch.Tensor
    lit: torch.Tensor
    blank: torch.Tensor


class BatchDecoder:
    """Decodes batches of frames of one shape (ss, fs) and type: 8, 16 or 32 bit, unsigned.

    ``valid`` (ss, fs) uint8 says which pixels count. ``valid_bits`` (s / 64,) uint64 are they, on the device.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: np.dtype[Any], valid: npt.NDArray[np.uint8], program: Launcher
    ) -> None:
        if dtype.kind != "u" or dtype.itemsize not in _KERNELS:
            raise ValueError(f"pixels of type {dtype}; 8, 16 or 32 bit unsigned are decoded")
        if valid.shape != shape:
            raise ValueError(f"a mask of {valid.shape} for images of {shape}")
        self._shape, self._dtype = shape, dtype.newbyteorder("=")
        self._pixels = shape[0] * shape[1]
        self._program = program
        self.stride = -(-self._pixels // _PIXELS_A_WORD) * _PIXELS_A_WORD
        self.valid_bits = torch.from_numpy(bitmap(valid.reshape(-1) != 0)).to(program.device)

    @property
    def frame_bytes_at_most(self) -> int:
        """What a frame takes of a batch at most, however it is packed."""
        size = self._pixels * self._dtype.itemsize
        blocks = -(-size // SMALLEST_BLOCK_BYTES)
        return aligned(_TABLE_BYTES * blocks) + aligned(
            HEADER_BYTES + blocks * _LENGTH_BYTES + size + size // 255 + 16 * blocks
        )

    @property
    def units(self) -> int:
        """Units of a frame in blocks of the usual size, with what is left over: the grid's width for most frames."""
        return -(-self._pixels * self._dtype.itemsize // DEFAULT_BLOCK_BYTES) + 1

    def outputs(self, frames: int) -> DecodedBatch:
        """Buffers for a batch of so many frames."""
        device, words = self._program.device, self.stride // _PIXELS_A_WORD
        return DecodedBatch(
            torch.zeros((frames, self.stride), dtype=torch.uint16, device=device),
            torch.zeros((frames, words), dtype=torch.uint64, device=device),
            torch.zeros((frames, words), dtype=torch.uint64, device=device),
        )

    def stage(self, image: ImageData, batch: Batch) -> int | None:
        """Put a frame into a batch: its number there, or ``None`` when the batch has no room for it.

        Raises ``UndecodableImage``, the batch being as before; ``ValueError`` for an image of another kind, and for a
        batch that is too small for a frame of this one.
        """
        if image.shape != self._shape or image.dtype.newbyteorder("=") != self._dtype:
            raise ValueError(f"an image of {image.shape} {image.dtype} for a decoder of {self._shape} {self._dtype}")
        if batch.largest < self.frame_bytes_at_most:
            raise ValueError(f"a batch of {batch.largest} bytes; a frame may take {self.frame_bytes_at_most}")
        if batch.frames == batch.capacity:
            return None
        check_size(image)
        blocks = _blocks_for_device(image)
        return self._stage_plain(image, batch) if blocks is None else self._stage_packed(image, blocks, batch)

    def decode(self, batch: Batch, into: DecodedBatch, stream: Any = None, grid: tuple[int, int] | None = None) -> None:
        """Decode an uploaded batch: one launch on ``stream``, without waiting or allocating.

        A ``grid`` of (units, frames) larger than the batch needs is for a graph that is replayed with other batches.
        Afterwards ``batch.device_errors`` holds a word a frame, for ``failure``.
        """
        units, frames = (batch.units, batch.frames) if grid is None else grid
        if frames < batch.frames or units < batch.units or frames > min(batch.capacity, len(into.pixels)):
            raise ValueError(f"a grid of {units} units, {frames} frames for {batch.units} and {batch.frames}")
        if frames:
            self._program.launch(
                _KERNELS[self._dtype.itemsize], units, frames, stream,
                batch.device_bytes, batch.device_bytes.nbytes, batch.device_errors, self._pixels, self.stride,
                self.valid_bits, into.pixels, into.lit, into.blank,
            )  # fmt: skip

    def _stage_packed(self, image: ImageData, blocks: Blocks, batch: Batch) -> int | None:
        payload = np.frombuffer(image.data, np.uint8)
        table_bytes, size = _TABLE_BYTES * blocks.count, payload.nbytes
        if aligned(table_bytes) + aligned(size) > batch.room:
            if aligned(table_bytes) + aligned(size) > batch.largest:
                raise UndecodableImage("bad_block", f"{size} bytes, more than blocks of {image.decoded_bytes} can be")
            return None
        table = batch.free(0, table_bytes).view(np.uint32).reshape(blocks.count, 2)
        write_table(payload, blocks, table)
        batch.free(aligned(table_bytes), size)[:] = payload
        return batch.add(Packing.BSLZ4, table_bytes, size, blocks.count, blocks.block_elements)

    def _stage_plain(self, image: ImageData, batch: Batch) -> int | None:
        size = image.decoded_bytes
        if aligned(size) > batch.room:
            return None
        decode(image, batch.free(0, size).view(self._dtype))
        elements = LARGEST_BLOCK_BYTES // self._dtype.itemsize
        return batch.add(Packing.PLAIN, 0, size, -(-self._pixels // elements), elements)


def failure(error: int) -> UndecodableImage | None:
    """What a frame's word of ``Batch.device_errors`` says."""
    return UndecodableImage("bad_block", f"block {_ERROR_TOP - error} does not decode") if error else None


def _blocks_for_device(image: ImageData) -> Blocks | None:
    """The blocks of an image that the kernel decodes; ``None`` for one that the host does."""
    if image.algorithm != Algorithm.BSLZ4:
        return None
    blocks = blocks_of(image)
    fits = SMALLEST_BLOCK_BYTES <= blocks.block_bytes <= LARGEST_BLOCK_BYTES
    as_pixels = image.element_bytes == image.dtype.itemsize and image.dtype.newbyteorder("<") == image.dtype
    return blocks if fits and as_pixels else None
