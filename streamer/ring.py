"""The queue between the receiver and the workers, bounded in bytes and in frames."""

import threading
import time
from collections import deque

from streamer.frames import Frame

DEFAULT_RING_BYTES = 512 << 20
DEFAULT_RING_FRAMES = 4096


class FrameRing:
    """Frames in the order they came. One writer, any number of readers."""

    def __init__(self, max_bytes: int = DEFAULT_RING_BYTES, max_frames: int = DEFAULT_RING_FRAMES) -> None:
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def capacity(self) -> int:
        return self._max_frames

    def _has_room(self, frame: Frame) -> bool:
        # A frame larger than the whole ring still passes when it is alone.
        fits = self._bytes + frame.nbytes <= self._max_bytes or not self._frames
        return fits and len(self._frames) < self._max_frames

    def put(self, frame: Frame, timeout_s: float = 0.0) -> bool:
        """Append; False when there is still no room after ``timeout_s`` seconds."""
        with self._changed:
            if not self._has_room(frame) and not self._changed.wait_for(lambda: self._has_room(frame), timeout_s):
                return False
            self._frames.append(frame)
            self._bytes += frame.nbytes
            self._changed.notify()
            return True

    def take(self, most: int, linger_s: float, timeout_s: float) -> list[Frame]:
        """Up to ``most`` frames: waits ``timeout_s`` for a first, then ``linger_s`` for more.

        Empty when none came in time or the ring is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed, timeout_s)
            deadline = time.monotonic() + linger_s
            while 0 < len(self._frames) < most and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            batch = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
            self._bytes -= sum(frame.nbytes for frame in batch)
            self._changed.notify_all()
            return batch

    def close(self) -> None:
        """No more frames will come; readers drain what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        return self._closed and not self._frames
