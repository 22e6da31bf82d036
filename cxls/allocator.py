"""How memory is kept, set for a program through which messages of a megabyte stream.

Left alone, glibc maps a large buffer by itself until one is freed, then takes any of that size from its heaps and keeps
what is freed there. Mapped one by one, messages cost more than all else in the receiver: each page is given by the
kernel anew, and taken back. Here messages come from the heaps, which give back only what lies free beyond some tens of
megabytes; decoded frames and larger are mapped, so that they go back to the system at once.

What is freed between two buffers that stay is no end of a heap, and in an analysis of hours such gaps come to
hundreds of megabytes. A thread gives them back twice a minute. All threads share one heap, for glibc gives back nothing
at the end of any other: there each thread would come to keep what it needed at the worst of times.
"""

import contextlib
import ctypes
import functools
import gc
import threading
import time
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
MAPPED_BYTES = 4 << 20
"""Buffers from here on are mapped one by one: more than a packed image, less than a decoded 4M frame or its mask, which
stays for a series or longer and would part the heaps for good."""

KEPT_BYTES = 32 << 20
"""Free memory at the end of a heap that is kept for the next messages."""

GIVES_BACK_EVERY_S = 30.0
"""It takes 5 to 20 ms, in which another thread that wants memory may wait: seldom enough to go unseen."""


@functools.cache
def settle() -> None:
    """Set it for this process, once however often it is asked for; without glibc nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_ARENA_MAX, 1)
        threading.Thread(target=_give_back, args=(library.malloc_trim,), name="memory", daemon=True).start()


def set_aside() -> None:
    """Take all objects that are there now, of a program that is ready, out of the garbage collector's rounds.

    Most are of libraries and stay. A round over all of them holds every thread up for 0.2 s, and comes only after a
    quarter as many have been added: until then cycles lie there.
    """
    gc.collect()
    gc.freeze()
    # How many there are to compare with is taken from the last round.
    gc.collect()


def _give_back(malloc_trim: Callable[[int], int]) -> None:
    while True:
        time.sleep(GIVES_BACK_EVERY_S)
        malloc_trim(0)
