"""Whether the threads of an analysis get on: how long each has been at the piece of work that it has in hand."""

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Busy:
    """``who`` has been at one piece of work for ``seconds``."""

    who: str
    seconds: float


class Pulse:
    """Threads say when they begin a piece of work, by ``beat``, and when they only wait for some, by ``rest``.

    Any thread may ask for the one that has been longest at the same piece.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_s: dict[str, float] = {}

    def beat(self) -> None:
        """The calling thread begins a piece of work, the one before is done."""
        with self._lock:
            self._since_s[threading.current_thread().name] = time.monotonic()

    def rest(self) -> None:
        """The calling thread has nothing in hand."""
        with self._lock:
            self._since_s.pop(threading.current_thread().name, None)

    def longest(self) -> Busy | None:
        """The thread that has been longest at one piece of work, ``None`` where all rest."""
        with self._lock:
            oldest = min(self._since_s.items(), key=lambda each: each[1], default=None)
        return None if oldest is None else Busy(oldest[0], time.monotonic() - oldest[1])
