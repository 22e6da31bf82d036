"""A batch of packed frames on its way to the device: bounded, one copy.

A batch is one run of bytes: what is known of each frame, an error word for each, then for each frame its table of
blocks and its packed bytes, as they came. The host writes it where the copy starts from (page-locked memory, where
there is a device to copy to); kernels read the copy. Nothing is allocated after the start.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 16
"""Of everything in a batch, bytes."""

FRAME_DTYPE = np.dtype(
    [
        ("table", "<u8"), ("source", "<u8"), ("source_bytes", "<u4"), ("blocks", "<i4"), ("block_elements", "<i4"),
        ("packing", "<i4"),
    ]
)  # fmt: skip
"""``Frame`` of sources/bslz4.cu."""

_ERROR_BYTES = 4


class Packing(IntEnum):
    """``Packing`` of sources/bslz4.cu: how the bytes of a frame are packed."""

    UNUSED = 0
    BSLZ4 = 1
    PLAIN = 2


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def head_bytes(capacity: int) -> int:
    """Of a batch, before its first frame."""
    return aligned(capacity * (FRAME_DTYPE.itemsize + _ERROR_BYTES))


class Batch:
    """Room for ``capacity`` frames in ``bytes_at_most`` bytes, on the host and on the device.

    ``device_bytes`` is the device's copy; ``device_errors`` (capacity,) int32 lies in it, made 0 by every upload. One
    thread fills a batch at a time.
    """

    def __init__(self, capacity: int, bytes_at_most: int, device: torch.device) -> None:
        if capacity < 1 or bytes_at_most < 1:
            raise ValueError(f"a batch of {capacity} frames in {bytes_at_most} bytes holds nothing")
        facts = capacity * FRAME_DTYPE.itemsize
        self._head = head_bytes(capacity)
        self._size = self._head + aligned(bytes_at_most)
        self.capacity = capacity
        self._host = torch.zeros(self._size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.device_bytes = torch.zeros(self._size, dtype=torch.uint8, device=device)
        self.device_errors = self.device_bytes[facts : facts + capacity * _ERROR_BYTES].view(torch.int32)
        self._bytes: npt.NDArray[np.uint8] = self._host.numpy()
        self._facts = self._bytes[:facts].view(FRAME_DTYPE)
        self._used = self._head
        self.frames = 0
        self.units = 0

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return self._size - self._used

    @property
    def largest(self) -> int:
        """Bytes that are free in an empty batch."""
        return self._size - self._head

    @property
    def used(self) -> int:
        """Bytes that the next upload copies."""
        return self._used

    def free(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """``size`` free bytes from ``offset`` on, to be written before ``add``; the offset a multiple of 16."""
        start = self._used + offset
        if offset % ALIGNMENT or size < 0 or start + size > self._size:
            raise ValueError(f"{size} bytes at {offset} are not free in a batch with room for {self.room}")
        return self._bytes[start : start + size]

    def add(self, packing: Packing, table_bytes: int, source_bytes: int, blocks: int, block_elements: int) -> int:
        """Take over what was written: a table, then the packed bytes at the next multiple of 16; the frame's number."""
        if self.frames == self.capacity:
            raise ValueError(f"a batch of {self.capacity} frames is full")
        source = self._used + aligned(table_bytes)
        end = source + aligned(source_bytes)
        if end > self._size:
            raise ValueError(f"{end - self._used} bytes do not fit a batch with room for {self.room}")
        number = self.frames
        self._facts[number] = (self._used, source, source_bytes, blocks, block_elements, packing)
        self._used = end
        self.frames += 1
        self.units = max(self.units, blocks + 1)
        return number

    def upload(self) -> None:
        """Start the one copy to the device, on torch's current stream."""
        self.device_bytes[: self._used].copy_(self._host[: self._used], non_blocking=True)

    def clear(self) -> None:
        """Forget the frames."""
        self._facts[...] = 0
        self._used = self._head
        self.frames = self.units = 0
