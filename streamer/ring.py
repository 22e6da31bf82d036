"""The queue between the receiver and the workers, bounded in bytes and in frames."""

import threading
import time
from collections import deque
from collections.abc import Callable

from streamer.frames import Frame

DEFAULT_RING_BYTES = 512 << 20
DEFAULT_RING_FRAMES = 4096


class FrameRing:
    """Frames in the order they came. One writer, any number of readers.

    Bytes are those that the frames keep in memory, not only those of the channel analysed.
    """

    def __init__(self, max_bytes: int = DEFAULT_RING_BYTES, max_frames: int = DEFAULT_RING_FRAMES) -> None:
        self._frames: deque[tuple[Frame, int]] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._closed = False
        self._writer_waits = False
        # How many frames each reader lingers for, so that it is not woken by each of them.
        self._lingering: list[int] = []
        # Readers and the writer wait apart: a wake-up meant for one is never spent on the other.
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def capacity(self) -> int:
        return self._max_frames

    @property
    def capacity_bytes(self) -> int:
        return self._max_bytes

    @property
    def held_bytes(self) -> int:
        return self._bytes

    @property
    def oldest_received_at(self) -> float | None:
        """When the frame that waits longest arrived (Unix seconds), ``None`` without one."""
        with self._filled:
            return self._frames[0][0].received_at if self._frames else None

    def thin(self, keep: Callable[[Frame], bool]) -> list[Frame]:
        """Take out the waiting frames that are not to be kept, and return them in their order."""
        with self._filled:
            kept: deque[tuple[Frame, int]] = deque()
            out = []
            for frame, size in self._frames:
                if keep(frame):
                    kept.append((frame, size))
                else:
                    out.append(frame)
                    self._bytes -= size
            self._frames = kept
            if out:
                self._emptied.notify_all()
            return out

    def _has_room(self, size: int) -> bool:
        # A frame larger than the whole ring still passes when it is alone.
        fits = self._bytes + size <= self._max_bytes or not self._frames
        return fits and len(self._frames) < self._max_frames

    def put(self, frame: Frame, timeout_s: float = 0.0) -> bool:
        """Append; False when there is still no room after ``timeout_s`` seconds, or the ring is closed."""
        size = frame.held_bytes
        with self._emptied:
            if timeout_s > 0 and not self._closed and not self._has_room(size):
                self._writer_waits = True
                self._filled.notify_all()
                self._emptied.wait_for(lambda: self._closed or self._has_room(size), timeout_s)
                self._writer_waits = False
            if self._closed or not self._has_room(size):
                return False
            self._frames.append((frame, size))
            self._bytes += size
            # All: a reader that lingers for a full batch must not keep an idle one asleep.
            if len(self._frames) == 1 or len(self._frames) >= min(self._lingering, default=0):
                self._filled.notify_all()
            return True

    def take(self, most: int, linger_s: float, timeout_s: float, most_bytes: int | None = None) -> list[Frame]:
        """Up to ``most`` frames: waits ``timeout_s`` for a first, then ``linger_s`` for more.

        The one that reaches ``most_bytes`` is the last. Empty when none came in time, another reader took them or the
        ring is closed and empty.
        While the writer waits for room there is nothing to linger for.
        """
        with self._filled:
            self._filled.wait_for(lambda: self._frames or self._closed, timeout_s)
            self._linger(most, time.monotonic() + linger_s)
            taken: list[Frame] = []
            held = 0
            while self._frames and len(taken) < most and (most_bytes is None or held < most_bytes):
                frame, size = self._frames.popleft()
                taken.append(frame)
                held += size
            self._bytes -= held
            if taken:
                self._emptied.notify_all()
            return taken

    def _linger(self, most: int, deadline_s: float) -> None:
        """Wait for a full batch, under the lock."""
        self._lingering.append(most)
        try:
            while 0 < len(self._frames) < most and not self._closed and not self._writer_waits:
                left = deadline_s - time.monotonic()
                if left <= 0 or not self._filled.wait(left):
                    break
        finally:
            self._lingering.remove(most)

    def close(self) -> None:
        """No more frames will come; readers drain what is left, a waiting writer gets False."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()
            self._emptied.notify_all()

    @property
    def finished(self) -> bool:
        return self._closed and not self._frames
