"""The spots of the latest hits of a run, kept for what is found from many of them."""

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.parameters.lattice import Floats

MOST_FRAMES = 2000
MOST_SPOTS = 300
"""Of a frame; the brightest are kept."""


@dataclass(frozen=True, slots=True)
class FrameSpots:
    """Spots of one frame: pixels from the nominal beam centre along fs and ss, and photons, (n,) each."""

    x_px: Floats
    y_px: Floats
    photons: Floats


class BraggSpots:
    """A ring of frames in memory that is taken once: 7.2 MB. One thread may add while others look.

    Raises ValueError when the pixel size is none.
    """

    def __init__(self, pixel_size_m: float, frames: int = MOST_FRAMES) -> None:
        if not (0.0 < pixel_size_m < 1.0 and frames >= 1):
            raise ValueError(
                f"pixel size {pixel_size_m} m and {frames} frames; give a size above 0 and 1 frame or more"
            )
        self.pixel_size_m = pixel_size_m
        self._table = np.zeros((frames, 3, MOST_SPOTS), np.float32)
        self._counts = np.zeros(frames, np.int64)
        self._added = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Frames kept."""
        return min(self._added, len(self._counts))

    @property
    def added(self) -> int:
        """Frames taken since the beginning or the last `clear`."""
        return self._added

    def add(self, x_px: npt.ArrayLike, y_px: npt.ArrayLike, photons: npt.ArrayLike) -> None:
        """Take the spots of one frame, (n,) each, pixels from the nominal beam centre; the oldest frame gives way.

        What is not finite is left out. Raises ValueError for lengths that differ.
        """
        spots = np.stack([np.asarray(each, np.float32).reshape(-1) for each in (x_px, y_px, photons)])
        finite = np.isfinite(spots).all(0)
        if not finite.all():
            spots = spots[:, finite]
        if spots.shape[1] > MOST_SPOTS:
            spots = spots[:, np.sort(np.argpartition(-spots[2], MOST_SPOTS)[:MOST_SPOTS])]
        with self._lock:
            row = self._added % len(self._counts)
            self._table[row, :, : spots.shape[1]] = spots
            self._counts[row] = spots.shape[1]
            self._added += 1

    def clear(self) -> None:
        """Forget all frames: another geometry, another crystal."""
        with self._lock:
            self._added = 0

    def frames(self, most: int = MOST_FRAMES) -> list[FrameSpots]:
        """The latest frames, oldest first; copies."""
        with self._lock:
            kept = min(self._added, len(self._counts), most)
            rows = np.arange(self._added - kept, self._added) % len(self._counts)
            table, counts = self._table[rows], self._counts[rows]
        return [
            FrameSpots(*(each[:count].astype(np.float64) for each in spots))
            for spots, count in zip(table, counts.tolist(), strict=True)
        ]
