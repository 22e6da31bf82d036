"""A frame's peaks as arrays, for what is gathered over a run: where each is, its q, whether it stands alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer import kernels
from analyzer.reduction import FramePlan
from streamer.validity import sentinel


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
    pixel, lone, _ = describe_peaks(plan, pixels, peaks, background)
    return FramePeaks(plan, peaks.copy(), radius, plan.geometry.q_at(radius), pixel, lone)


def describe_peaks(
    plan: FramePlan, pixels: npt.NDArray[Any], peaks: npt.NDArray[Any], background: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Brightest pixel, whether it stands alone, and whether the peak is one pixel; (n,) each, see ``kernels``."""
    pixel, lone, single = np.zeros(len(peaks), np.int64), np.zeros(len(peaks), bool), np.zeros(len(peaks), bool)
    kernels.describe_peaks(
        pixels.reshape(-1), plan.shape[1], sentinel(pixels.dtype), plan.inside, plan.bins.bin_of, background, peaks,
        pixel, lone, single,
    )  # fmt: skip
    return pixel, lone, single
