"""Hits that wait for an indexer: the newest ones, as many as are allowed, the oldest handed out first.

An indexer that is behind should tell of the crystals of now, so the queue keeps the newest hits and gives up
the oldest; every one given up is counted.
"""

import threading
from collections import deque
from dataclasses import dataclass

from analyzer.results import FrameResult
from streamer.frames import Frame
from streamer.series import Series

_PEAK_BYTES = 250
"""A ``Peak`` with its four numbers."""

_HIT_BYTES = 4000
"""A result without peaks, and what holds it."""


@dataclass(frozen=True, slots=True)
class WaitingHit:
    """A hit in the queue; ``frame`` is kept only where its packed image is to go along."""

    event_id: str
    series: Series
    result: FrameResult
    frame: Frame | None = None

    @property
    def held_bytes(self) -> int:
        """Memory that waits with it."""
        peaks = len(self.result.peaks or ())
        return _HIT_BYTES + _PEAK_BYTES * peaks + (self.frame.held_bytes if self.frame else 0)


def event_id(run: str, result: FrameResult) -> str:
    """What names a frame for ever: ``series7-image123-run66f0a1b2.2``, the run of the analyser and the number of
    the series in it last, as a detector counts series from 1 again after a reboot."""
    return f"series{result.series_id}-image{result.image_id}-run{run}.{result.ordinal}"


class HitQueue:
    """At most ``most_hits`` hits of together ``most_bytes``. Any thread puts; one takes."""

    def __init__(self, most_hits: int, most_bytes: int) -> None:
        self.dropped = 0
        self._most_hits = most_hits
        self._most_bytes = most_bytes
        self._bytes = 0
        self._hits: deque[WaitingHit] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._hits)

    def put(self, hit: WaitingHit) -> None:
        """Add the newest hit; the oldest make room."""
        with self._lock:
            self._hits.append(hit)
            self._bytes += hit.held_bytes
            self._make_room()

    def put_back(self, hit: WaitingHit) -> None:
        """Return what was taken and could not be handed out: it is the oldest again."""
        with self._lock:
            self._hits.appendleft(hit)
            self._bytes += hit.held_bytes
            self._make_room()

    def take(self) -> WaitingHit | None:
        """The oldest hit, ``None`` without one."""
        with self._lock:
            if not self._hits:
                return None
            hit = self._hits.popleft()
            self._bytes -= hit.held_bytes
            return hit

    def _make_room(self) -> None:
        while self._hits and (len(self._hits) > self._most_hits or self._bytes > self._most_bytes):
            self._bytes -= self._hits.popleft().held_bytes
            self.dropped += 1
