"""Memory that the front and a worker on the same machine share, so that frames are copied once and sent nowhere.

It has no name in any file system: the worker opens it through the front's descriptor, which ends with the front.
"""

import contextlib
import mmap
import os
from typing import Any

import msgspec
import numba
import numpy as np
import numpy.typing as npt
from numba import types

from streamer.instructions import WIDE_BYTES, put_past_caches, settle_stores

SLOT_BYTES = 16 << 20
"""Of address space; a larger frame goes over the wire."""

KEPT_BYTES = 2 << 20
"""Memory that a slot keeps once its frame is done with; what a larger frame took is given back."""


_BYTES = types.Array(types.uint8, 1, "C")
_READ_ONLY = types.Array(types.uint8, 1, "C", readonly=True)


@numba.njit([types.void(source, _BYTES, types.intp) for source in (_BYTES, _READ_ONLY)], cache=True)
def _put_past_caches(source: npt.NDArray[np.uint8], memory: npt.NDArray[np.uint8], offset: int) -> None:
    """Copy all of ``source`` to ``offset`` of ``memory``, a multiple of ``WIDE_BYTES``.

    It is another process that reads it: through this one's caches it would cost the time to read it there first, and
    drive out all that is needed next.
    """
    whole = source.size // WIDE_BYTES * WIDE_BYTES
    begin, target = source.ctypes.data, memory.ctypes.data + offset
    for place in range(0, whole, WIDE_BYTES):
        put_past_caches(begin + place, target + place)
    for place in range(whole, source.size):
        memory[offset + place] = source[place]
    settle_stores()


class SharedFacts(msgspec.Struct, frozen=True):
    """Where a worker finds the memory: a descriptor of process ``pid``, ``slots`` of ``SLOT_BYTES``."""

    pid: int
    descriptor: int
    slots: int


class Slots:
    """The front's side: slots that frames are put into. One thread."""

    def __init__(self, slots: int) -> None:
        self._descriptor = os.memfd_create("cxls-frames", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, slots * SLOT_BYTES)
        self._map = mmap.mmap(self._descriptor, slots * SLOT_BYTES)
        self._memory: npt.NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)
        self._free = list(range(slots))
        self.facts = SharedFacts(os.getpid(), self._descriptor, slots)

    def put(self, data: Any) -> tuple[int, int] | None:
        """Copy bytes into a free slot and return their place, offset and length; ``None`` where they do not fit."""
        source = np.frombuffer(data, np.uint8)
        if not self._free or source.size > SLOT_BYTES or self._memory is None:
            return None
        offset = self._free.pop() * SLOT_BYTES
        _put_past_caches(source, self._memory, offset)
        return offset, source.size

    def free(self, place: tuple[int, int]) -> None:
        """A frame at this place is done with."""
        offset, size = place
        self._free.append(offset // SLOT_BYTES)
        if size > KEPT_BYTES:
            # Where the system cannot, the memory stays with the slot.
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, offset + KEPT_BYTES, SLOT_BYTES - KEPT_BYTES)

    def close(self) -> None:
        self._memory = None
        self._map.close()
        os.close(self._descriptor)


class SlotView:
    """A worker's side, read only. Raises ``OSError`` where the memory cannot be opened from here."""

    def __init__(self, facts: SharedFacts) -> None:
        descriptor = os.open(f"/proc/{facts.pid}/fd/{facts.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = facts.slots * SLOT_BYTES
            if os.fstat(descriptor).st_size != size:
                raise OSError(f"{os.fstat(descriptor).st_size} bytes, not {size}")
            self._map = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._view = memoryview(self._map)

    def at(self, place: tuple[int, int]) -> memoryview:
        """The bytes at a place; empty beyond the end."""
        offset, size = place
        if offset < 0 or size < 0:
            return self._view[:0]
        return self._view[offset : offset + size]
