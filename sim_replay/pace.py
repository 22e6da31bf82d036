"""When the next image is due."""

import threading
import time

CATCH_UP_S = 0.1
"""Lateness that a steady rate makes up for. After a longer stall, time starts anew: no burst."""


class Pace:
    """Waits for the moments of a steady rate, counted from a fixed origin so that it cannot drift."""

    def __init__(self, rate_hz: float | None) -> None:
        self._period_s = None if rate_hz is None else 1 / rate_hz
        self._due = 0.0

    def restart(self) -> None:
        """The next image is due now, unless the rate makes it due a little later."""
        now = time.monotonic()
        if self._period_s is None or not 0 <= self._due - now <= self._period_s:
            self._due = now

    def wait(self, cancel: threading.Event) -> bool:
        """Wait until the next image is due; False when cancelled."""
        if self._period_s is not None:
            now = time.monotonic()
            if now - self._due > max(CATCH_UP_S, self._period_s):
                self._due = now
            if self._due > now:
                cancel.wait(self._due - now)
            self._due += self._period_s
        return not cancel.is_set()
