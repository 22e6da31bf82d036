"""Says what is going on while a fresh installation compiles: about a minute, once, and silent otherwise.

The kernels are compiled by numba where its cache has them not, and are loaded from there ever after. numba tells
listeners of each compilation; what is in the cache is none.
"""

import logging
import time
from functools import cache
from typing import Any

from numba.core.event import Listener, register

log = logging.getLogger(__name__)

WORTH_SAYING_S = 1.0
"""Less than this is not worth a line."""

EVERY_S = 15.0
"""Between two lines while it lasts."""


class Compilation(Listener):  # type: ignore[misc]
    """Counts functions and seconds, and says so in the log. ``done`` has the last word."""

    def __init__(self) -> None:
        self.functions = 0
        self.seconds = 0.0
        self._depth = 0
        self._began = 0.0
        self._said_s: float | None = None

    def on_start(self, event: Any) -> None:
        del event
        # A function that calls others compiles them in between.
        if self._depth == 0:
            self._began = time.monotonic()
        self._depth += 1

    def on_end(self, event: Any) -> None:
        del event
        self._depth -= 1
        if self._depth:
            return
        now = time.monotonic()
        self.functions += 1
        self.seconds += now - self._began
        if self._said_s is None and self.seconds >= WORTH_SAYING_S:
            self._said_s = now
            log.info("compiling for this machine, which takes about a minute, once")
        elif self._said_s is not None and now - self._said_s >= EVERY_S:
            self._said_s = now
            log.info("compiling: %d functions in %.0f s so far", self.functions, self.seconds)

    def done(self) -> None:
        """All is compiled that was needed to begin."""
        if self._said_s is not None:
            log.info("compiled %d functions in %.0f s; the next start finds them", self.functions, self.seconds)
            self._said_s = None
        self.functions, self.seconds = 0, 0.0


compilation = Compilation()
"""That of this process."""


@cache
def announce() -> None:
    """Listen from here on."""
    register("numba:compile", compilation)  # type: ignore[no-untyped-call]
