"""Wakes a thread that waits at a ZeroMQ poller, from any other thread."""

import os
import threading


class Wakeup:
    """``descriptor`` becomes readable for the thread that polls it; that thread alone drains and closes it."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._said = False
        self.closed = False

    def wake(self) -> None:
        """Have the thread look, unless it is over or was told already."""
        with self._lock:
            if not self.closed and not self._said:
                self._said = True
                os.eventfd_write(self.descriptor, 1)

    def drain(self) -> None:
        """What is said from now on wakes the thread again; what was said before is to be read after this."""
        with self._lock:
            if self._said:
                self._said = False
                os.eventfd_read(self.descriptor)

    def close(self) -> None:
        with self._lock:
            if not self.closed:
                self.closed = True
                os.close(self.descriptor)
