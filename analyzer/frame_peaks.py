"""A frame's peaks as arrays, for what is gathered over a run: where each is, its q, whether it stands alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.reduction import FramePlan
from streamer.validity import sentinel

_AROUND = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)])


@dataclass(frozen=True, slots=True, eq=False)
class FramePeaks:
    """Peaks of one good frame. ``peaks`` (n,) has ``PEAK_DTYPE``; ``q_per_angstrom`` (n,) is ``None`` where unknown.

    ``radius_px`` (n,): see ``Geometry.radius_px``. ``pixel`` (n,): flat index of each peak's brightest pixel.
    ``lone`` (n,): nothing but background in the eight pixels around that one.
    """

    plan: FramePlan
    peaks: npt.NDArray[Any]
    radius_px: npt.NDArray[np.float64]
    q_per_angstrom: npt.NDArray[np.float64] | None
    pixel: npt.NDArray[np.int64]
    lone: npt.NDArray[np.bool_]


def frame_peaks(
    plan: FramePlan, pixels: npt.NDArray[Any], peaks: npt.NDArray[Any], background: npt.NDArray[np.float64]
) -> FramePeaks:
    """The peaks found in ``pixels`` (ss, fs) over ``background`` (bins,), photons a pixel; copies, no views."""
    radius = plan.geometry.radius_px(peaks["fs"], peaks["ss"])
    pixel, lone = _lone(plan, pixels, peaks, background)
    return FramePeaks(plan, peaks.copy(), radius, plan.geometry.q_at(radius), pixel, lone)


def _lone(
    plan: FramePlan, pixels: npt.NDArray[Any], peaks: npt.NDArray[Any], background: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    if not len(peaks):
        return np.empty(0, np.int64), np.empty(0, bool)
    rows, columns = plan.shape
    flat, top = pixels.reshape(-1), sentinel(pixels.dtype)

    def around(ss: npt.NDArray[np.int64], fs: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Flat index (n, 9) and counts of the pixels around, -1 where there is none that is valid."""
        y, x = ss[:, None] + _AROUND[:, 0], fs[:, None] + _AROUND[:, 1]
        inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        index = np.where(inside, y * columns + x, 0)
        counts = flat[index].astype(np.int64)
        counts[~(inside & (plan.inside[index] > 0)) | (counts == top)] = -1
        return index, counts

    index, counts = around(np.rint(peaks["ss"]).astype(np.int64), np.rint(peaks["fs"]).astype(np.int64))
    # Other photons in the window draw the centroid off the pixel that made the peak.
    pixel = np.take_along_axis(index, counts.argmax(1)[:, None], 1)[:, 0]
    _, counts = around(*np.divmod(pixel, columns))
    others = np.delete(counts, 4, 1)
    expected = background[plan.bins.bin_of[pixel]] * (others >= 0).sum(1)
    light = np.maximum(others, 0).sum(1)
    # Poisson exceeds this once in a thousand times or more rarely, for any mean.
    return pixel, light <= expected + 3.1 * np.sqrt(expected) + 1.0
