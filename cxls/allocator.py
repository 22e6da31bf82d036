"""How glibc keeps memory, set for a program through which messages of a megabyte stream.

Left alone, glibc maps a large buffer by itself until one is freed, then takes any of that size from its heaps and keeps
what is freed there. Mapped one by one, messages cost more than all else in the receiver: each page is given by the
kernel anew, and taken back. Here messages come from the heaps, which give back only what lies free beyond some tens of
megabytes; decoded frames and larger are mapped, so that they go back to the system at once.
"""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
MAPPED_BYTES = 8 << 20
"""Buffers from here on are mapped one by one: less than a decoded 4M frame, more than a packed image."""

KEPT_BYTES = 32 << 20
"""Free memory at the end of a heap that is kept for the next messages."""


def settle() -> None:
    """Set it for this process; without glibc nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
