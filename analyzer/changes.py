"""What was changed in a running analysis, the latest of it, to show."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

MOST = 1000
"""Changes that are kept."""

_OF_RUNS = ("run", "target")


@dataclass(frozen=True, slots=True)
class Changed:
    """One change: Unix seconds, what was asked for, before and after, and a line of text. Who asked is not known."""

    time: float
    action: str
    old: Any
    new: Any
    text: str


class ChangeLog:
    """The latest ``MOST`` changes; any thread may read it."""

    def __init__(self) -> None:
        self._kept: deque[Changed] = deque(maxlen=MOST)
        self._lock = threading.Lock()

    def add(self, action: str, old: Any, new: Any, text: str) -> Changed:
        changed = Changed(round(time.time(), 3), action, old, new, text)
        with self._lock:
            self._kept.append(changed)
        return changed

    def latest(self, most: int) -> list[Changed]:
        """So many of them, oldest first."""
        with self._lock:
            return list(self._kept)[-most:]

    def during(self, since: float) -> list[Changed]:
        """Those of the analysis made at ``since`` (Unix seconds) or later, not of what a run is called."""
        with self._lock:
            return [changed for changed in self._kept if changed.time >= since and changed.action not in _OF_RUNS]
