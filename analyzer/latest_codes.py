"""Numbers of the latest frames, in memory that is there from the start and never grows.

An array a frame, some hundred bytes for each of thousands, would be an allocation a frame, and lie between the packed
images that come and go.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamer.buffers import touched


@dataclass(frozen=True, slots=True, eq=False)
class Latest:
    """Frames, oldest first: ``number`` (frames,) of each, ``size`` (frames,) how many of ``codes`` are its."""

    number: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]


class LatestCodes:
    """Keeps the codes of up to ``frames`` frames, up to ``codes`` of them together; the oldest frames go first.

    Codes are below 2^31: of a frame's pixels, up to a thousand megapixels have two each.
    """

    def __init__(self, frames: int, codes: int) -> None:
        self._number, self._size = touched(frames, np.int64), touched(frames, np.int64)
        self._codes = touched(codes, np.int32)
        self._first = self._frames = 0
        self._start = self._kept = 0
        self.forgotten = 0
        """The number of the latest frame that had to go."""

    def __len__(self) -> int:
        return self._frames

    @property
    def codes(self) -> int:
        """How many are kept."""
        return self._kept

    def append(self, number: int, codes: npt.NDArray[np.int64]) -> None:
        """Keep a frame; of one with more codes than there is room for in all, the first ones."""
        codes = codes[: len(self._codes)]
        while self._frames == len(self._size) or (self._frames and self._kept + len(codes) > len(self._codes)):
            self._forget()
        slot = (self._first + self._frames) % len(self._size)
        self._number[slot], self._size[slot] = number, len(codes)
        end = (self._start + self._kept) % len(self._codes)
        before_the_end = min(len(codes), len(self._codes) - end)
        self._codes[end : end + before_the_end] = codes[:before_the_end]
        self._codes[: len(codes) - before_the_end] = codes[before_the_end:]
        self._frames += 1
        self._kept += len(codes)

    def _forget(self) -> None:
        size = int(self._size[self._first])
        self.forgotten = int(self._number[self._first])
        self._first = (self._first + 1) % len(self._size)
        self._start = (self._start + size) % len(self._codes)
        self._frames -= 1
        self._kept -= size

    def latest(self) -> Latest:
        """All that is kept; copies."""
        frames = (self._first + np.arange(self._frames)) % len(self._size)
        whole = self._start + self._kept <= len(self._codes)
        beyond = 0 if whole else self._start + self._kept - len(self._codes)
        codes = np.concatenate([self._codes[self._start : self._start + self._kept - beyond], self._codes[:beyond]])
        return Latest(self._number[frames], self._size[frames], codes.astype(np.int64))
